"""Marks that fit into a line of a table or a card: small inline SVG in the colours of the page."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup

from pellucid.html.numbers import Real


def strip(
    value: Real,
    low: Real = None,
    high: Real = None,
    *,
    label: str,
    domain: tuple[float | int, float | int] = (0.0, 1.0),
    ring: Real = None,
    tick: Real = None,
    extent: tuple[Real, Real] = (None, None),
) -> Markup:
    """A dot with its interval on a line that spans `domain`; empty where `value` is missing.

    Args:
        label: the mark in words, for who does not see it.
        ring: a second value, drawn hollow; the raw index beside the cross-fitted one.
        tick: a reference, drawn as a short upright line; the value that chance gives.
        extent: a range that is no interval of the value and may lie beside it, drawn as a bracket below the line.
    """
    at = _position(value, domain)
    if at is None:
        return Markup("")
    parts = ['<line class="rail" x1="0" x2="100%" y1="8" y2="8"/>']
    if (t := _position(tick, domain)) is not None:
        parts.append(f'<line class="null" x1="{t}" x2="{t}" y1="1.5" y2="14.5"/>')
    if (r := _position(ring, domain)) is not None:
        parts.append(f'<circle class="ring" cx="{r}" cy="8" r="5"/>')
    a, b = _position(low, domain), _position(high, domain)
    if a is not None and b is not None:
        parts.append(f'<line class="ci" x1="{a}" x2="{b}" y1="8" y2="8"/>')
    a, b = _position(extent[0], domain), _position(extent[1], domain)
    if a is not None and b is not None:
        parts.append(f'<line class="extent" x1="{a}" x2="{b}" y1="14.5" y2="14.5"/>')
        parts += [f'<line class="extent" x1="{x}" x2="{x}" y1="11.5" y2="15"/>' for x in (a, b)]
    parts.append(f'<circle class="dot" cx="{at}" cy="8" r="3.5"/>')
    return Markup('<svg class="strip" role="img" aria-label="{}">{}</svg>').format(
        label, Markup("".join(parts))
    )


def fill(share: Real, *, label: str) -> Markup:
    """A share in [0, 1] as a filled length."""
    at = _position(share, (0.0, 1.0))
    if at is None:
        return Markup("")
    return Markup(
        '<svg class="strip" role="img" aria-label="{}"><rect class="rail-box" width="100%" height="8" y="4"/>'
        '<rect class="fill" width="{}" height="8" y="4"/></svg>'
    ).format(label, at)


def bars(values: Sequence[float | int] | np.ndarray, *, highlight: Iterable[int] = (), label: str) -> Markup:
    """Upright bars from a common zero line, one for each value, the ones in `highlight` in the accent colour."""
    clean = [v if math.isfinite(v) else 0.0 for v in map(float, values)]
    top, bottom = max([*clean, 0.0]), min([*clean, 0.0])
    unit = 100 / (top - bottom) if top > bottom else 0.0
    zero = top * unit
    chosen = set(highlight)
    gap = 0.2 if len(clean) <= 40 else 0.0

    def box(i: int) -> str:
        height = clean[i] * unit
        return f"M{i + gap / 2:g} {zero:.1f}v{-height:.1f}h{1 - gap:g}v{height:.1f}z"

    grey = "".join(box(i) for i in range(len(clean)) if i not in chosen)
    accent = "".join(box(i) for i in range(len(clean)) if i in chosen)
    return Markup(
        f'<svg class="bars" role="img" aria-label="{{}}" viewBox="0 0 {max(len(clean), 1)} 100" preserveAspectRatio="none">'
        f'<path class="rest" d="{grey}"/><path class="top" d="{accent}"/>'
        f'<path class="zero" d="M0 {zero:.1f}h{len(clean)}"/></svg>'
    ).format(label)


def _position(value: Real, domain: tuple[float | int, float | int]) -> str | None:
    """Where a value lies in `domain`, in percent, kept inside; None for what is missing."""
    if value is None or math.isnan(value):
        return None
    share = (value - domain[0]) / (domain[1] - domain[0])
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"
