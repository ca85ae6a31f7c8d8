"""What is left of an image in each layer: errors beside their baselines, the rebuilt images, and what units stand for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from pellucid.html import Series, breakable, column_chart, count, interval, number, percent, table
from pellucid.report.backtrack_album import Shot, shots
from pellucid.report.contents import Contents, Table, shown_name
from pellucid.report.robustness import Figure
from pellucid.report.templates import render
from pellucid.report.trust import Check

OURS = "backtracking"
PINV = "pseudo-inverse"
SEARCH = "gradient search"
OTHER = "other weights"
GOOD = 0.5  # of the image's length: an error that leaves the image recognisable in every run looked at
LOOKS: Mapping[str, Literal["ring", "dash", "step"]] = {PINV: "ring", SEARCH: "dash", OTHER: "step"}
FLOOR = 1e-7  # below this an error is rounding, and its logarithm would stretch the chart


def backtracking(contents: Contents) -> Markup:
    """Errors, pictures and views; nothing where `pellucid backtrack` did not run."""
    run = contents.run
    if "backtrack" not in run.table_names() or not run.has("backtracked"):
        return Markup("")
    facts, rows = run.facts("backtracked"), run.table("backtrack")
    pictures = shots(contents, "backtrack_pictures")
    return render(
        "backtrack.html",
        {
            "checks": list(_checks(facts, rows)),
            "figures": [_errors(facts, rows), _cosines(facts, rows)],
            "numbers": _numbers(facts, rows),
            "rebuilt": _rebuilt(facts, pictures, OURS),
            "others": [(way, _rebuilt(facts, pictures, way)) for way in facts["ways"] if way != OURS],
            "views": list(_views(facts, pictures)),
        },
    )


def _value(rows: Table, way: str, layer: str, column: str) -> float:
    found = rows[column][(rows["way"] == way) & (rows["layer"] == layer)]
    return float(found[0]) if len(found) else float("nan")


def _checks(facts: Mapping[str, Any], rows: Table) -> Iterator[Check]:
    last = facts["layers"][-1]
    error = _value(rows, OURS, last, "error")
    text = (
        f"From {shown_name(last)} the transposed weights give images back with an error of "
        f"{_interval(rows, OURS, last, 'error')} of their length (a black image scores 1) and a cosine of "
        f"{_interval(rows, OURS, last, 'cosine')}, over {count(facts['n'])} images."
    )
    if error < GOOD:
        yield Check("sound", "The image can be brought back", text)
    elif error < 1:
        yield Check("note", "The image comes back distorted", text)
    else:
        yield Check(
            "caution",
            "Worse than a black image",
            f"{text} Views and edits at this layer show the distortion of the weights as much as the unit: the weights are "
            "far from orthogonal. Train with the constraint, or look at an earlier layer.",
        )
    yield _pseudo_inverse(facts, rows, last)
    if OTHER in facts["ways"]:
        yield _without(facts, rows, last)
    if facts["stops"]:
        yield Check(
            "note", "How far back one can go", f"No further than {shown_name(last)}: {facts['stops']}."
        )
    kept = [f"{one['layer']} {percent(one['share'])}" for one in facts["kept"] if one["share"] < 1]
    if kept:
        yield Check(
            "note",
            "What layers cannot keep",
            "Layers with fewer filters than a patch has pixels lose the rest whatever their weights are. Share of the "
            f"directions of a patch that each can keep: {', '.join(kept)}. Images have most of their energy in few directions, "
            "so the loss in images is smaller.",
        )


def _pseudo_inverse(facts: Mapping[str, Any], rows: Table, last: str) -> Check:
    ours, theirs = (_value(rows, way, last, "error") for way in (OURS, PINV))
    text = f"The pseudo-inverse of each layer, which needs no orthogonal weights, has an error of {_interval(rows, PINV, last, 'error')}"
    if SEARCH in facts["ways"]:
        text += (
            f", a search of {count(facts['search'])} gradient steps {_interval(rows, SEARCH, last, 'error')}"
        )
    verdict = "more" if theirs > ours else "less"
    return Check(
        "note",
        "What other ways back give",
        f"{text}: the first is {verdict} than backtracking's {number(ours)}. What orthogonal weights buy is that the transpose "
        "suffices and noise is not amplified, not that an inverse exists.",
    )


def _without(facts: Mapping[str, Any], rows: Table, last: str) -> Check:
    ours, other = (_value(rows, way, last, "error") for way in (OURS, OTHER))
    times = other / ours if ours else float("nan")
    state = "sound" if times > 1 else "caution"
    words = f"{number(times)} times the error" if times > 1 else "no larger error"
    return Check(
        state,
        f"Against {facts['against']}",
        f"The same network with those weights has {words} ({_interval(rows, OTHER, last, 'error')}) from {shown_name(last)}.",
    )


def _interval(rows: Table, way: str, layer: str, column: str) -> str:
    return interval(*(_value(rows, way, layer, key) for key in (column, f"{column}_lo", f"{column}_hi")))


def _errors(facts: Mapping[str, Any], rows: Table) -> Figure:
    """Errors span many powers of ten, so the chart counts those."""
    layers: list[str] = facts["layers"]

    def powers(way: str, column: str) -> list[float]:
        values = [_value(rows, way, layer, column) for layer in layers]
        return [float(np.log10(max(v, FLOOR))) if v == v else float("nan") for v in values]

    first, last = (_value(rows, OURS, layer, "error") for layer in (layers[0], layers[-1]))
    title = (
        f"The error goes from {number(first)} to {number(last)} with depth"
        if len(layers) > 1
        else f"An error of {number(last)}"
    )
    series = [
        Series(way, powers(way, "error"), powers(way, "error_lo"), powers(way, "error_hi"))
        if way == OURS
        else Series(way, powers(way, "error"), look=LOOKS[way])
        for way in facts["ways"]
    ]
    label = f"{title}. " + "; ".join(
        f"{shown_name(layer)}: "
        + ", ".join(f"{way} {number(_value(rows, way, layer, 'error'))}" for way in facts["ways"])
        for layer in layers
    )
    chart = column_chart(
        [shown_name(layer) for layer in layers],
        series,
        label=label,
        y_label="relative error, in powers of ten",
    )
    return Figure(
        title,
        chart,
        f"0 is as far off as a black image, −1 a tenth of that. {_key(facts)}. The numbers are in the table below.",
    )


def _key(facts: Mapping[str, Any]) -> str:
    marks = {PINV: "Rings", SEARCH: "dashed", OTHER: "bars"}
    return "; ".join(f"{mark}: {way}" for way, mark in marks.items() if way in facts["ways"])


def _cosines(facts: Mapping[str, Any], rows: Table) -> Figure:
    layers: list[str] = facts["layers"]
    by_way = {way: [_value(rows, way, layer, "cosine") for layer in layers] for way in facts["ways"]}
    low, high = ([_value(rows, OURS, layer, f"cosine_{end}") for layer in layers] for end in ("lo", "hi"))
    title = f"The cosine with the image is {number(by_way[OURS][-1])} at {shown_name(layers[-1])}"
    series = [
        Series(way, values, low, high) if way == OURS else Series(way, values, look=LOOKS[way])
        for way, values in by_way.items()
    ]
    label = f"{title}. " + "; ".join(
        f"{shown_name(layer)}: " + ", ".join(f"{way} {number(values[i])}" for way, values in by_way.items())
        for i, layer in enumerate(layers)
    )
    least = min((v for values in by_way.values() for v in values if v == v), default=0.0)
    chart = column_chart(
        [shown_name(layer) for layer in layers], series, label=label, y_label="cosine of rebuilt and true image",
        domain=(min(0.9, float(np.floor(least * 10)) / 10), 1.0),
    )  # fmt: skip
    return Figure(
        title, chart, "1 is the image up to its brightness; any two photographs have a cosine well above 0."
    )


def _numbers(facts: Mapping[str, Any], rows: Table) -> Markup:
    body = [
        [
            breakable(shown_name(layer)), way, _interval(rows, way, layer, "error"),
            number(_value(rows, way, layer, "error_median")), _interval(rows, way, layer, "cosine"),
        ]
        for layer in facts["layers"]
        for way in facts["ways"]
    ]  # fmt: skip
    header = ["Layer", "Way back", "Relative error", "Median", "Cosine"]
    caption = f"Mean over {count(facts['n'])} images with its 95 % interval"
    return table(header, body, caption=caption, numeric={2, 3, 4})


def _rebuilt(facts: Mapping[str, Any], pictures: Sequence[Shot], way: str) -> Markup:
    """One column an image: itself, then below it what each layer gives back, with its error."""
    inputs = [shot for shot in pictures if shot.row["kind"] == "input"]
    found = {
        (s.row["row"], s.row["layer"]): s
        for s in pictures
        if s.row["kind"] == "rebuilt" and s.row["way"] == way
    }
    body = [[Markup("input"), *[shot.show(f"{shot.row['name']}, the input") for shot in inputs]]]
    for layer in facts["layers"]:
        cells = [found.get((shot.row["row"], layer)) for shot in inputs]
        body.append(
            [
                breakable(shown_name(layer)),
                *[Markup("") if c is None else _cell(c, layer, way) for c in cells],
            ]
        )
    header = ["From", *[breakable(str(shot.row["name"])) for shot in inputs]]
    return table(header, body, caption=f"Images rebuilt by {way}, relative error below each")


def _cell(shot: Shot, layer: str, way: str) -> Markup:
    error = shot.row["error"]
    alt = f"{shot.row['name']} rebuilt from {shown_name(layer)} by {way}, relative error {number(error)}"
    return Markup('{}<br><span class="ci">{}</span>').format(shot.show(alt), number(error))


def _views(facts: Mapping[str, Any], pictures: Sequence[Shot]) -> Iterator[tuple[str, Markup]]:
    for layer in facts["layers"]:
        mine = [shot for shot in pictures if shot.row["kind"] == "view" and shot.row["layer"] == layer]
        if mine:
            shown = [
                shot.show(f"view of unit {shot.row['unit']} of {shown_name(layer)}", side=64) for shot in mine
            ]
            yield shown_name(layer), Markup("").join(shown)
