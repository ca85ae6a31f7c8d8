"""Templates that ship with the package; everything they are given is escaped unless it is `Markup`."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pellucid import html

FOLDER = Path(__file__).parent / "templates"


@functools.cache
def environment() -> Any:
    """The jinja2 environment: escaping on, a name that is not there is an error."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"breakable": html.breakable, "count": html.count, "percent": html.percent}
    return env


def render(template: str, values: Mapping[str, Any]) -> Markup:
    """A template filled with `values`."""
    return Markup(environment().get_template(template).render(values))
