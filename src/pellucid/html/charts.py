"""Charts as inline SVG that fill the width they are given while their text keeps its size.

The drawing lives in a box of 1000 x 1000 stretched to the space there is; strokes do not scale, so a stroke of no
length with round ends is a dot at any width. Words stand around the box as HTML, placed in percent.
"""

import dataclasses as dc
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from markupsafe import Markup

from pellucid.html.numbers import SUPERSCRIPT, number

Values = Sequence[float | int] | np.ndarray

BOX = 1000
# Widths of a chart (CSS pixels) at which more labels fit under it; page.css asks for the same ones.
TIERS = (300, 420, 640, 900)
CHARACTER = 6.4
MOST_POINTS = 400
LONGEST = 16


@dc.dataclass(frozen=True)
class Series:
    """A line of values with its name, written beside it; NaN where there is none.

    Args:
        low, high: bounds of the interval of each value; both or none.
        look: "dot" for what is measured, "ring" for what it is compared with, "dash" for another such thing beside rings,
            "step" for what chance gives.
    """

    name: str
    values: Values
    low: Values | None = None
    high: Values | None = None
    look: Literal["dot", "ring", "dash", "step"] = "dot"


def column_chart(
    names: Sequence[str],
    series: Sequence[Series],
    *,
    points: Sequence[np.ndarray] | None = None,
    label: str,
    y_label: str,
    domain: tuple[float | int, float | int] | None = None,
    links: Sequence[str] | None = None,
) -> Markup:
    """Values by named column, in order: every point behind its mean, intervals, direct labels at the right.

    Args:
        points: for each column, the values that its mean summarises; at most 400 evenly spaced ones are drawn.
        label: the chart in words.
        links: where a click on a column leads.
    """
    axis = _axis(domain, [*[s for one in series for s in _all(one)], *(points or [])])
    width = BOX / max(len(names), 1)
    centres = [(i + 0.5) * width for i in range(len(names))]
    drawn = [_grid(axis)]
    for centre, values in zip(centres, points or [], strict=False):
        drawn.append(_swarm(np.asarray(values, float), centre, 0.84 * width, axis))
    # What is measured is drawn last, inside of the rings of what it is compared with.
    for one in sorted(series, key=lambda one: ("step", "dash", "ring", "dot").index(one.look)):
        drawn.append(_draw(one, centres, width, axis))
    drawn += [_hit(i, names, series, links) for i in range(len(names))]
    return _frame(
        Markup("").join(drawn), _y_ticks(axis), _column_labels(names), _ends(series, axis),
        label=label, y_label=_y_title(y_label, axis),
    )  # fmt: skip


def line_chart(
    x: Values,
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    domain: tuple[float | int, float | int] | None = None,
) -> Markup:
    """Values over a number, with interval bands and direct labels at the right."""
    across = np.asarray(x, float)
    first, last = float(np.min(across)), float(np.max(across))
    span = last - first or 1.0
    places = [BOX * (float(v) - first) / span for v in across]
    axis = _axis(domain, [s for one in series for s in _all(one)])
    drawn = [_grid(axis)]
    for one in series:
        # A band in place of an upright at each point: bounds between two points are drawn, too.
        drawn.append(_band(one, places, axis))
        drawn.append(_draw(dc.replace(one, low=None, high=None), places, 0.0, axis))
    marks = [t for t in nice_ticks(first, last, 5) if first <= t <= last] or [first]
    labels = Markup("").join(
        Markup('<span class="t0 t1 t2 t3" style="left:{}%">{}</span>').format(
            f"{100 * (t - first) / span:.2f}", f"{t:,g}"
        )
        for t in marks
    )
    return _frame(
        Markup("").join(drawn), _y_ticks(axis), labels, _ends(series, axis),
        label=label, y_label=_y_title(y_label, axis), x_label=x_label, kind=" lines",
    )  # fmt: skip


def histogram(
    values: Values,
    *,
    against: Values | None = None,
    domain: tuple[float | int, float | int] = (0.0, 1.0),
    bins: int = 40,
    label: str,
    x_label: str,
    y_label: str,
) -> Markup:
    """How often values occur, filled; `against`, drawn as an outline, is what they are compared with."""
    edges = np.linspace(*domain, bins + 1)

    def counted(v: Values) -> np.ndarray:
        array = np.asarray(v, float)
        return np.histogram(np.clip(array[np.isfinite(array)], *domain), edges)[0]

    mine, other = counted(values), None if against is None else counted(against)
    top = float(max(mine.max(), 0 if other is None else other.max(), 1))
    axis = _axis(None, [np.array([top])])
    step = BOX / bins

    def path(counts: np.ndarray) -> str:
        levels = [axis.y(float(c)) for c in counts]
        return (
            f"M0 {BOX}" + "".join(f"V{y}H{round((i + 1) * step)}" for i, y in enumerate(levels)) + f"V{BOX}"
        )

    drawn = _grid(axis) + Markup('<path class="area" d="{}z"/>').format(path(mine))
    if other is not None:
        drawn += Markup('<path class="outline" d="{}"/>').format(path(other))
    labels = Markup("").join(
        Markup('<span class="t0 t1 t2 t3" style="left:{}%">{}</span>').format(
            f"{100 * (t - domain[0]) / (domain[1] - domain[0]):.2f}", f"{t:g}"
        )
        for t in nice_ticks(*domain, 4)
        if domain[0] <= t <= domain[1]
    )
    return _frame(
        drawn,
        _y_ticks(axis),
        labels,
        Markup(""),
        label=label,
        y_label=_y_title(y_label, axis),
        x_label=x_label,
    )


def nice_ticks(low: float | int, high: float | int, n: int = 4) -> list[float]:
    """About `n` round numbers from at or below `low` to at or above `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / n
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dc.dataclass(frozen=True)
class _Axis:
    """The upright axis of a chart."""

    low: float
    high: float
    ticks: list[float]

    def y(self, value: float) -> int:
        """Where a value lies in the box, kept inside."""
        return round(BOX * (1 - min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))))


def _axis(domain: tuple[float | int, float | int] | None, values: Sequence[np.ndarray]) -> _Axis:
    if domain is not None:
        low, high = float(domain[0]), float(domain[1])
        slack = 1e-9 * (high - low)
        return _Axis(low, high, [t for t in nice_ticks(low, high) if low - slack <= t <= high + slack])
    flat = np.concatenate([np.zeros(0), *(np.ravel(np.asarray(v, float)) for v in values)])
    flat = flat[np.isfinite(flat)]
    ticks = nice_ticks(min(0.0, float(flat.min())), float(flat.max())) if flat.size else [0.0, 1.0]
    return _Axis(ticks[0], ticks[-1], ticks)


def _all(one: Series) -> list[np.ndarray]:
    return [np.asarray(v, float) for v in (one.values, one.low, one.high) if v is not None]


def _grid(axis: _Axis) -> Markup:
    return Markup('<path class="grid" d="{}"/>').format("".join(f"M0 {axis.y(t)}H{BOX}" for t in axis.ticks))


def _swarm(values: np.ndarray, centre: float, width: float, axis: _Axis) -> Markup:
    """Dots spread sideways by how many share their height, so that the outline shows the distribution."""
    values = np.sort(values[np.isfinite(values)])
    if values.size == 0:
        return Markup("")
    if values.size > MOST_POINTS:
        values = values[np.linspace(0, values.size - 1, MOST_POINTS).round().astype(int)]
    rows = np.clip((values - axis.low) / (axis.high - axis.low) * 40, 0, 39).astype(int)
    counts = np.bincount(rows, minlength=40)
    # A golden-ratio sequence over the sorted values: neighbours in height never share a place.
    spread = (np.arange(values.size) * 0.6180339887) % 1 - 0.5
    x = centre + spread * width * np.sqrt(counts[rows] / counts.max())
    return Markup('<path class="point" d="{}"/>').format(
        "".join(f"M{round(a)} {axis.y(v)}h0" for a, v in zip(x.tolist(), values.tolist(), strict=True))
    )


def _draw(one: Series, centres: Sequence[float], width: float, axis: _Axis) -> Markup:
    there = [
        (c, float(v), i) for i, (c, v) in enumerate(zip(centres, one.values, strict=True)) if math.isfinite(v)
    ]
    if one.look == "step":
        path = "".join(f"M{round(c - width * 0.42)} {axis.y(v)}h{round(width * 0.84)}" for c, v, _ in there)
        return Markup('<path class="step" d="{}"/>').format(path)
    dots = "".join(f"M{round(c)} {axis.y(v)}h0" for c, v, _ in there)
    line = "M" + "L".join(f"{round(c)} {axis.y(v)}" for c, v, _ in there) if there else ""
    if one.look == "dash":
        return Markup('<path class="dash" d="{}"/><path class="dash-at" d="{}"/>').format(line, dots)
    if one.look == "ring":
        return Markup('<path class="ring-out" d="{}"/><path class="ring-in" d="{}"/>').format(dots, dots)
    spans = ""
    if one.low is not None and one.high is not None:
        bounds = [(c, float(one.low[i]), float(one.high[i])) for c, _, i in there]
        spans = "".join(f"M{round(c)} {axis.y(a)}V{axis.y(b)}" for c, a, b in bounds if math.isfinite(a + b))
    return Markup('<path class="line" d="{}"/><path class="span" d="{}"/><path class="mean" d="{}"/>').format(
        line, spans, dots
    )


def _band(one: Series, places: Sequence[float], axis: _Axis) -> Markup:
    if one.low is None or one.high is None:
        return Markup("")
    bounds = [(x, float(a), float(b)) for x, a, b in zip(places, one.low, one.high, strict=True)]
    there = [(round(x), axis.y(a), axis.y(b)) for x, a, b in bounds if math.isfinite(a + b)]
    if not there:
        return Markup("")
    outline = [f"{x} {a}" for x, a, _ in there] + [f"{x} {b}" for x, _, b in reversed(there)]
    return Markup('<path class="band" d="M{}z"/>').format("L".join(outline))


def _hit(i: int, names: Sequence[str], series: Sequence[Series], links: Sequence[str] | None) -> Markup:
    """A transparent column that says its numbers on hover and leads to its page on a click."""
    width = BOX / len(names)
    said = "; ".join(f"{one.name} {number(float(one.values[i]))}" for one in series)
    box = Markup('<rect class="hit" x="{}" y="0" width="{}" height="{}"><title>{}</title></rect>').format(
        round(i * width), round(width), BOX, f"{names[i]}: {said}"
    )
    # Not a tab stop: the table above the chart has the same links.
    return Markup('<a href="{}" tabindex="-1">{}</a>').format(links[i], box) if links else box


def _y_ticks(axis: _Axis) -> Markup:
    scaled = [t / _factor(axis) for t in axis.ticks]
    digits = max((len(f"{t:.6g}".partition(".")[2]) for t in scaled), default=0)
    return Markup("").join(
        Markup('<span style="top:{}%">{}</span>').format(
            f"{100 - 100 * (t - axis.low) / (axis.high - axis.low):.1f}", number(shown, digits)
        )
        for t, shown in zip(axis.ticks, scaled, strict=True)
    )


def _factor(axis: _Axis) -> float:
    """The power of ten that very small or large ticks are divided by, so that they fit beside the axis."""
    size = max(abs(axis.low), abs(axis.high))
    return 1.0 if 0.01 <= size < 1e4 else 10.0 ** math.floor(math.log10(size))


def _y_title(label: str, axis: _Axis) -> str:
    factor = _factor(axis)
    power = str(round(math.log10(factor))).translate(SUPERSCRIPT)
    return label if factor == 1 else f"{label} (×10{power})"


def _column_labels(names: Sequence[str]) -> Markup:
    """Names under the columns; each says at which widths it has room."""
    short = [_shortened(name) for name in names]
    longest = CHARACTER * max(map(len, short), default=1) + 10
    steps = [max(1, math.ceil(len(names) * longest / (tier - 130))) for tier in TIERS]
    return Markup("").join(
        Markup('<span class="{}" style="left:{}%" title="{}">{}</span>').format(
            " ".join(f"t{tier}" for tier, step in enumerate(steps) if i % step == 0),
            f"{100 * (i + 0.5) / len(names):.2f}", names[i], text,
        )
        for i, text in enumerate(short)
    )  # fmt: skip


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else "…" + name[-LONGEST + 1 :]


def _ends(series: Sequence[Series], axis: _Axis) -> Markup:
    """The name of each series at the height of its last value, moved apart where two would touch."""
    ends: list[tuple[float, Series]] = []
    for one in series:
        finite = [float(v) for v in one.values if math.isfinite(v)]
        if finite and one.name:
            ends.append((axis.y(finite[-1]) / 10, one))
    ends.sort(key=lambda end: end[0])
    gap, tops = 7.5, [top for top, _ in ends]
    for i in range(1, len(tops)):
        tops[i] = max(tops[i], tops[i - 1] + gap)
    over = max(0.0, tops[-1] - 100) if tops else 0.0
    # The names are placed by hand and take no room of their own: this keeps as much free as the longest needs.
    room = Markup('<b aria-hidden="true">{}</b>').format(
        max((one.name for _, one in ends), key=len, default="")
    )
    return room + Markup("").join(
        Markup('<span class="{}" style="top:{}%">{}</span>').format(one.look, f"{top - over:.1f}", one.name)
        for top, (_, one) in zip(tops, ends, strict=True)
    )


def _frame(
    drawn: Markup,
    y_ticks: Markup,
    x_labels: Markup,
    ends: Markup,
    *,
    label: str,
    y_label: str,
    x_label: str = "",
    kind: str = "",
) -> Markup:
    return Markup(
        '<div class="chart{}"><div class="y-label">{}</div><div class="frame"><div class="y">{}</div>'
        '<svg role="img" aria-label="{}" viewBox="0 0 {} {}" preserveAspectRatio="none">{}</svg>'
        '<div class="ends">{}</div><div class="x" aria-hidden="true">{}</div></div>{}</div>'
    ).format(
        kind, y_label, y_ticks, label, BOX, BOX, drawn, ends, x_labels,
        Markup('<div class="x-label">{}</div>').format(x_label) if x_label else "",
    )  # fmt: skip
