"""Figures over layers: the title states the finding, every unit is a point behind its layer's mean."""

import math

import numpy as np
from markupsafe import Markup

from pellucid.html import Series, column_chart
from pellucid.report.contents import Contents, shown_name
from pellucid.report.findings import activity_by_layer, selectivity_by_layer
from pellucid.report.templates import render

MOST_CLASSES = 24


def figures(contents: Contents) -> Markup:
    """Index by layer and activity by layer, and which classes the units prefer."""
    if not contents.layers:
        return Markup("")
    charts = [chart for chart in (_selectivity(contents), _activity(contents)) if chart]
    return render("figures.html", {"charts": charts, "preferred": _preferred(contents)})


def _values(contents: Contents, column: str) -> list[float]:
    return [float("nan") if (v := layer.get(column)) is None else v for layer in contents.layers]


def _selectivity(contents: Contents) -> dict[str, object] | None:
    values = _values(contents, "si_cf")
    if not np.isfinite(values).any():
        return None
    series = [
        Series("cross-fitted", values, _values(contents, "si_cf_lo"), _values(contents, "si_cf_hi")),
        Series("raw", _values(contents, "si"), look="ring"),
        Series("labels permuted", _values(contents, "si_perm"), look="step"),
    ]
    title = selectivity_by_layer(contents.layers)
    points = [contents.column("si_cf", layer.units) for layer in contents.layers]
    lowest = min((float(np.nanmin(p)) for p in points if np.isfinite(p).any()), default=0.0)
    return {
        "title": title,
        "chart": column_chart(
            [shown_name(layer.name) for layer in contents.layers],
            [one for one in series if np.isfinite(one.values).any()],
            points=points,
            label=f"{title}. Mean selectivity of each layer with its interval, every unit a point.",
            y_label="selectivity index",
            domain=(min(0.0, max(-1.0, math.floor(lowest * 10) / 10)), 1.0),
            links=[f"pages/{layer.page}.html" for layer in contents.layers],
        ),
        "note": "A point is a unit, a dot the mean of the units of a layer that are not dead, with its 95 % interval over images.",
    }


def _activity(contents: Contents) -> dict[str, object] | None:
    values = _values(contents, "activity")
    if not np.isfinite(values).any():
        return None
    title = activity_by_layer(contents.layers)
    return {
        "title": title,
        "chart": column_chart(
            [shown_name(layer.name) for layer in contents.layers],
            [Series("mean", values)],
            points=[contents.column("activity", layer.units) for layer in contents.layers],
            label=f"{title}. Share of images on which a unit's response is above 0, every unit a point.",
            y_label="share of images with a response above 0",
            domain=(0.0, 1.0),
            links=[f"pages/{layer.page}.html" for layer in contents.layers],
        ),
        "note": "A point is a unit, a dot the mean of a layer. Points at 0 never responded above 0.",
    }


def _preferred(contents: Contents) -> dict[str, object] | None:
    """How the units of each layer divide over preferred classes, for a number of classes that fits on a page."""
    if not contents.labelled or not 2 <= len(contents.classes) <= MOST_CLASSES:
        return None
    place = {name: i for i, name in enumerate(contents.classes)}
    best = np.array([place.get(name, -1) for name in contents.text("top_class")], dtype=np.int64)
    rows = []
    for layer in contents.layers:
        mine = best[layer.units]
        counts = np.bincount(mine[mine >= 0], minlength=len(place))
        if counts.sum():
            shares = counts / counts.sum()
            rows.append(
                (
                    shown_name(layer.name),
                    f"pages/{layer.page}.html",
                    list(zip(counts.tolist(), shares.tolist(), strict=True)),
                )
            )
    if not rows:
        return None
    top = max((share for _, _, cells in rows for _, share in cells), default=1.0)
    return {"classes": contents.classes, "rows": rows, "top": top, "title": _most_preferred(contents, best)}


def _most_preferred(contents: Contents, best: np.ndarray) -> str:
    counts = np.bincount(best[best >= 0], minlength=len(contents.classes))
    first = int(counts.argmax())
    if (counts == counts[first]).sum() > 1:
        return f"No class is preferred by more than {counts[first]:,} of {counts.sum():,} units"
    return f"“{contents.classes[first]}” is preferred by {counts[first]:,} of {counts.sum():,} units, more than any other class"
