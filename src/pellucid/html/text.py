"""Text and tables, escaped."""

import re
from collections.abc import Collection, Iterable, Sequence

from markupsafe import Markup, escape

BREAKS = re.compile(r"(?<=[./:_])(?=[^./:_])")


def breakable(name: str) -> Markup:
    """A long dotted name that may wrap after its dots, slashes, colons and underscores."""
    return Markup("<wbr>").join(BREAKS.split(name))


def missing(reason: str, *, title: str = "") -> Markup:
    """What stands in place of a number that is not there: its reason, set apart by its look; `title` says more."""
    more = Markup(' title="{}"').format(title) if title and title != reason else ""
    return Markup('<span class="missing"{}>{}</span>').format(more, reason)


def table(
    header: Sequence[str | Markup],
    rows: Iterable[Sequence[str | Markup]],
    *,
    caption: str = "",
    numeric: Collection[int] = (),
) -> Markup:
    """A plain table that scrolls sideways within itself where the window is narrow.

    Args:
        numeric: positions of the columns that align right.
    """
    title = Markup("<caption>{}</caption>").format(caption) if caption else Markup("")
    head = Markup("").join(_cell("th", text, i in numeric, ' scope="col"') for i, text in enumerate(header))
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(_cell("td", text, i in numeric, "") for i, text in enumerate(row))
        )
        for row in rows
    )
    return Markup(
        '<div class="scroll" tabindex="0" role="group" aria-label="{}">'
        "<table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(caption or "table", title, head, body)


def _cell(tag: str, text: str | Markup, numeric: bool, scope: str) -> Markup:
    look = ' class="n"' if numeric else ""
    return Markup(f"<{tag}{scope}{look}>{{}}</{tag}>").format(escape(text))
