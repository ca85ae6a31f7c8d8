"""The card of a claim: statement, verdict with its rung, effect against delta, nulls, counts, power, falsifier.

`card_html` is a fragment for any page, `card_page` a page of its own, `Verdict.to_dict` the same as JSON. Everything a
person wrote is escaped. The verdict is a word and a shape, never a colour alone.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pellucid.claims.claim import Claim
from pellucid.claims.verdict import NullResult, Outcome, Verdict
from pellucid.claims.words import RUNGS, falsifier, percent
from pellucid.html import count, number, table

SHAPES: dict[Outcome, str] = {
    "supported": '<path d="M2 9l5 5L16 3" fill="none" stroke="currentColor" stroke-width="2.5"/>',
    "refuted": '<path d="M3 3l12 12M15 3L3 15" fill="none" stroke="currentColor" stroke-width="2.5"/>',
    "inconclusive": '<circle cx="9" cy="9" r="6.5" fill="none" stroke="currentColor" stroke-width="2.5"/>',
    "invalid": '<path d="M9 1.5l8 15H1z" fill="none" stroke="currentColor" stroke-width="2"/><path d="M9 7v5m0 1.5v1" stroke="currentColor" stroke-width="2"/>',
}
MOST_POINTS = 300
"""Most points drawn in a strip; the JSON holds all."""

WIDTH, LEFT = 600, 150

STYLE = Markup("""
:root{color-scheme:light dark;--ink:#1b1b1b;--soft:#5c5c5c;--line:#c9c9c9;--band:#eef1f5;--accent:#0b5fa5}
@media (prefers-color-scheme:dark){:root{--ink:#ececec;--soft:#adadad;--line:#4a4a4a;--band:#23272d;--accent:#7ab8f0}}
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:var(--ink)}
.claim-card svg{max-width:100%;height:auto;color:inherit}.claim-card dt{font-weight:600}.claim-card dd{margin:0 0 .6rem}
.claim-card .verdict{font-size:1.25rem;display:flex;gap:.5rem;align-items:center}.claim-card text{fill:currentColor}
.claim-card table{border-collapse:collapse;margin:.8rem 0}.claim-card caption{text-align:left;font-weight:600}.claim-card td,.claim-card th{padding:.15rem .6rem;text-align:left}
.claim-card td.n,.claim-card th.n{text-align:right}.claim-card .scroll{overflow-x:auto}
""")


def card_page(verdict: Verdict) -> str:
    """A page with one card that opens from disk and fetches nothing."""
    return str(
        Markup(
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            "<title>{}: {}</title><style>{}</style></head><body><main><h1>Claim</h1>{}</main></body></html>\n"
        ).format(verdict.headline, verdict.claim.statement, STYLE, card_html(verdict))
    )


def card_html(verdict: Verdict) -> Markup:
    """The card as an HTML fragment (`<article class="claim-card">`)."""
    claim = verdict.claim
    shape = Markup('<svg width="18" height="18" viewBox="0 0 18 18" aria-hidden="true">{}</svg>').format(
        Markup(SHAPES[verdict.outcome])
    )
    rows = [
        ("Scope", _scope(claim)),
        ("Rung", f"{verdict.rung} of 6: {RUNGS[verdict.rung]}"),
        ("Effect", _effect(verdict)),
        ("Seed", str(verdict.seed)),
        (
            "Replicates",
            "; ".join(f"{count(n)} {name}" for name, n in verdict.n.items()) or "none were measured",
        ),
        (
            "Smallest effect that counts",
            f"{_amount(claim.delta, claim.unit)}: {claim.reason or 'no reason given'}",
        ),
        ("Power, stated before", _power(verdict)),
        ("What would have refuted it", falsifier(claim)),
        ("Registration", _registration(verdict)),
    ]
    facts = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(name, text) for name, text in rows)
    return Markup(
        '<article class="claim-card" data-verdict="{}"><h2>{}</h2><p class="verdict">{}<strong>{}</strong></p>{}{}'
        "<dl>{}</dl>{}</article>"
    ).format(
        verdict.outcome,
        claim.statement,
        shape,
        verdict.headline,
        _list("Why", verdict.reasons),
        figure_svg(verdict) if math.isfinite(verdict.effect) else Markup(""),
        facts,
        Markup("").join(_further(verdict)),
    )


def write_card(verdict: Verdict, path: Path | str) -> tuple[Path, Path]:
    """Write `path` with the endings `.html` and `.json`; returns both paths."""
    base = Path(path)
    html, data = base.with_name(base.name + ".html"), base.with_name(base.name + ".json")
    base.parent.mkdir(parents=True, exist_ok=True)
    html.write_text(card_page(verdict), encoding="utf-8")
    data.write_text(
        json.dumps(verdict.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    return html, data


def _further(verdict: Verdict) -> Iterable[Markup]:
    if verdict.nulls:
        yield _null_table(verdict)
    if verdict.controls:
        rows = [(c.name, "passed" if c.passed else "failed", c.detail) for c in verdict.controls]
        yield table(("control", "outcome", "detail"), rows, caption="Controls")
    for name in ("deviations", "amendments", "warnings", "notes"):
        yield _list(name.capitalize(), getattr(verdict, name))
    if len(verdict.parts) > 1:
        rows = [(part.claim.effect, part.headline, _effect(part)) for part in verdict.parts]
        yield table(("part", "verdict", "effect"), rows, caption="Parts, all of which must hold")


def _scope(claim: Claim) -> str:
    scope = claim.scope
    where = f", layer {scope.layer}" if scope.layer else ""
    return f"this {scope.level}: {scope.subject}{where}; the interval generalises over {scope.replicate}"


def _effect(verdict: Verdict) -> str:
    inside = f"[{number(verdict.lo)}, {number(verdict.hi)}]"
    p = _p(verdict.p_raw)
    if verdict.p_adjusted != verdict.p_raw:
        p += f", adjusted {_p(verdict.p_adjusted)}"
    return (
        f"{verdict.claim.effect} {_amount(verdict.effect, verdict.claim.unit)} "
        f"({percent(verdict.level)} interval {inside}; {verdict.method}; {p})"
    )


def _amount(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".rstrip()


def _p(p: float) -> str:
    return f"p = {number(p)}" if p != 0 else "p below 10⁻³⁰⁰"


def _power(verdict: Verdict) -> str:
    power = verdict.power
    if power is None:
        return "not stated"
    word = " (underpowered)" if power.underpowered else ""
    return f"{power.value:.2f} at an effect of {_amount(power.at, verdict.claim.unit)}, {count(power.n)} replicates{word}"


def _registration(verdict: Verdict) -> str:
    return (
        f"{verdict.label}; claim hash {verdict.registration}" if verdict.registration else "none: exploratory"
    )


def _list(title: str, lines: Sequence[str]) -> Markup:
    if not lines:
        return Markup("")
    items = Markup("").join(Markup("<li>{}</li>").format(line) for line in lines)
    return Markup("<section><h3>{}</h3><ul>{}</ul></section>").format(title, items)


def _null_table(verdict: Verdict) -> Markup:
    rows: list[tuple[str, str, str, str, str]] = []
    for null in verdict.nulls:
        noted = math.isnan(null.p)
        outcome = "see notes" if noted else ("beaten" if null.beaten(verdict.level) else "not beaten")
        least = number(null.attainable) if null.form == "rank" else "0"
        rows.append(
            (
                null.name,
                null.form,
                count(len(null.values)),
                "" if noted else f"{number(null.p)} (least {least})",
                outcome,
            )
        )
    return table(("null", "form", "worlds", "p", "outcome"), rows, caption="Null worlds", numeric=(2, 3))


def figure_svg(verdict: Verdict) -> Markup:
    """Effect with interval against delta, replicates behind it, and one strip of worlds for each null."""
    claim = verdict.claim
    strips = [
        ("replicates", list(verdict.values)),
        *((null.name, _raw(null, claim)) for null in verdict.nulls),
    ]
    marks = [-claim.delta, claim.delta] if claim.kind == "equivalent" else [claim.sign * claim.delta]
    low, high = _domain(
        [*marks, 0.0, verdict.effect, verdict.lo, verdict.hi, *(v for _, vs in strips[1:] for v in vs)]
    )
    rows = [
        _interval_row(verdict, low, high),
        *(_strip(name, vs, y=62 + 28 * i, low=low, high=high) for i, (name, vs) in enumerate(strips)),
    ]
    height = 62 + 28 * len(strips) + 18
    lines = [_line(m, low, high, height=height, dash="4 3", text=f"{number(m)} (delta)") for m in marks]
    label = f"{claim.effect}: {_effect(verdict)}; delta {number(claim.delta)}"
    return Markup(
        '<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" font-size="12" aria-label="{}">{}</svg>'
    ).format(
        WIDTH + LEFT, height, WIDTH + LEFT, height, label,
        Markup("").join([_line(0.0, low, high, height=height, dash="", text="0"), *lines, *rows]),
    )  # fmt: skip


def _raw(null: NullResult, claim: Claim) -> list[float]:
    return [claim.sign * v for v in null.values]


def _domain(values: Iterable[float]) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _x(value: float, low: float, high: float) -> float:
    inside = min(max(value, low), high)
    return round(LEFT + 10 + (WIDTH - 20) * (inside - low) / (high - low), 1)


def _line(at: float, low: float, high: float, *, height: int, dash: str, text: str) -> Markup:
    x = _x(at, low, high)
    return Markup(
        '<path d="M{} 16V{}" stroke="var(--soft,#777)" stroke-dasharray="{}"/><text x="{}" y="{}" text-anchor="middle">{}</text>'
    ).format(x, height - 18, dash or "none", x, 12 if dash else height - 4, text)


def _interval_row(verdict: Verdict, low: float, high: float) -> Markup:
    a, b, x = (_x(v, low, high) for v in (verdict.lo, verdict.hi, verdict.effect))
    return Markup(
        '<text x="0" y="39">effect</text><path d="M{} 35H{}" stroke="var(--accent,#0b5fa5)" stroke-width="5"/>'
        '<circle cx="{}" cy="35" r="6" fill="var(--accent,#0b5fa5)"/>'
    ).format(a, b, x)


def _strip(name: str, values: Sequence[float], *, y: int, low: float, high: float) -> Markup:
    step = max(1, math.ceil(len(values) / MOST_POINTS))
    chosen = np.sort(np.asarray(values))[::step]
    dots = Markup("").join(
        Markup('<circle cx="{}" cy="{}" r="2.5"/>').format(_x(float(v), low, high), y)
        for v in chosen
        if low <= v <= high
    )
    short = name if len(name) <= 22 else name[:21] + "…"
    return Markup('<text x="0" y="{}">{}</text><g fill="currentColor" fill-opacity="0.55">{}</g>').format(
        y + 4, short, dots
    )
