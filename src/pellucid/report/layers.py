"""The layer strip: one row a layer, small horizontal marks with intervals; a click opens the layer."""

import math
from typing import Any

from markupsafe import Markup

from pellucid.html import count, fill, interval, missing, number, percent, strip
from pellucid.report.contents import Contents, Layer, shown_name
from pellucid.report.notes import term
from pellucid.report.reasons import reason
from pellucid.report.templates import render


def layer_strip(contents: Contents) -> Markup:
    """The table of layers, in the order of the forward pass."""
    if not contents.layers:
        return Markup("")
    low = min([0.0, *(layer.get("si_cf_lo") or 0.0 for layer in contents.layers)])
    domain = (max(-1.0, math.floor(low * 10) / 10), 1.0)
    return render(
        "layers.html",
        {
            "header": [term("si_cf", "Selectivity"), term("activity"), term("dim"), term("dead", "Dead")],
            "scale": f"{domain[0]:g}".replace("-", "−"),
            "rows": [_row(contents, layer, domain) for layer in contents.layers],
            "labelled": contents.labelled,
        },
    )


def _row(contents: Contents, layer: Layer, domain: tuple[float, float]) -> dict[str, Any]:
    return {
        "name": shown_name(layer.name),
        "href": f"pages/{layer.page}.html",
        "type": layer.row.get("type", ""),
        "shape": str(layer.row.get("shape", "")).replace("x", " × "),
        "units": count(int(layer.get("units") or len(layer.units))),
        "cells": [
            ("Selectivity", *selectivity_cell(contents, layer, domain)),
            ("Activity", *_activity(layer)),
            ("Dimension", *_dimension(layer)),
            ("Dead", *_dead(layer)),
        ],
    }


def selectivity_cell(
    contents: Contents, layer: Layer, domain: tuple[float, float]
) -> tuple[Markup, Markup | str]:
    """The mark of a layer's mean index (dot: cross-fitted, ring: raw, upright: permuted) and its number."""
    value, low, high = (layer.get(key) for key in ("si_cf", "si_cf_lo", "si_cf_hi"))
    if value is None:
        why = reason(contents, layer)
        return Markup(""), missing(why.short, title=why.sentence) if why else ""
    raw, chance = layer.get("si"), layer.get("si_perm")
    said = interval(value, low, high, digits=3)
    words = f"cross-fitted {said}, raw {number(raw)}, labels permuted {number(chance)}"
    return strip(value, low, high, ring=raw, tick=chance, domain=domain, label=words), said


def _activity(layer: Layer) -> tuple[Markup, Markup | str]:
    value, low, high = (layer.get(key) for key in ("activity", "activity_lo", "activity_hi"))
    if value is None:
        return Markup(""), missing("not recorded")
    words = f"mean {percent(value)}, middle half of the units {percent(low)} to {percent(high)}"
    return strip(value, extent=(low, high), label=words), percent(value)


def _dimension(layer: Layer) -> tuple[Markup, Markup | str]:
    units, value = layer.get("units"), layer.get("dim_95")
    if value is None or not units:
        return Markup(""), missing("too many units" if units and units > 4096 else "not computed")
    low, high, ratio = (None if v is None else v / units for v in map(layer.get, ("dim_90", "dim_99", "pr")))
    words = (
        f"{number(value)} of {number(units)} directions hold 95 % of the variance, {number(layer.get('dim_90'))} "
        f"90 %, {number(layer.get('dim_99'))} 99 %; participation ratio {number(layer.get('pr'))}"
    )
    return strip(
        value / units, extent=(low, high), tick=ratio, label=words
    ), f"{number(value, 0)} of {number(units, 0)}"


def _dead(layer: Layer) -> tuple[Markup, Markup | str]:
    share = layer.get("dead_fraction")
    if share is None:
        return Markup(""), missing("not counted")
    dead = int(layer.get("dead") or 0)
    return fill(share, label=f"{dead} units, {percent(share)}"), count(dead)
