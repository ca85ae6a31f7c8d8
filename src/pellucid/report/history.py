"""How the network was trained, where the run has a table `history`."""

import numpy as np
from markupsafe import Markup

from pellucid.html import Series, line_chart, number
from pellucid.report.contents import Contents
from pellucid.report.templates import render

ACROSS = ("epoch", "iteration", "step")
MOST_CURVES = 12


def history(contents: Contents) -> Markup:
    """One small chart for each column of the table, over its epochs."""
    if "history" not in contents.run.table_names():
        return Markup("")
    table = contents.run.table("history")
    across = next((name for name in ACROSS if name in table), "")
    numeric = {k: np.asarray(v, float) for k, v in table.items() if v.dtype.kind in "iuf" and k not in ACROSS}
    curves = {name: values for name, values in numeric.items() if np.isfinite(values).any()}
    rows = len(next(iter(table.values()), ()))
    if not curves or rows < 2:
        return Markup("")
    x = np.asarray(table[across], float) if across else np.arange(1.0, rows + 1)
    charts = [_curve(name, x, values, across or "row") for name, values in list(curves.items())[:MOST_CURVES]]
    return render("history.html", {"charts": charts, "rest": len(curves) - len(charts)})


def _curve(name: str, x: np.ndarray, values: np.ndarray, across: str) -> tuple[str, Markup]:
    label = name.replace("_", " ")
    known = values[np.isfinite(values)]
    title = f"{label}: {number(float(known[0]))} to {number(float(known[-1]))}"
    chart = line_chart(x, [Series("", values)], label=f"{title} by {across}", x_label=across, y_label=label)
    return title, chart
