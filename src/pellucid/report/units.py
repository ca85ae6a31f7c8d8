"""The table of all units: a section of the front page, and the script file that holds its rows."""

import dataclasses as dc
import json
import math
from typing import Any

import numpy as np
from markupsafe import Markup

from pellucid.html import count, decimals
from pellucid.report.cards import OWN
from pellucid.report.contents import Contents, Layer, shown_name
from pellucid.report.notes import NOTES, term
from pellucid.report.reasons import Reason, reasons
from pellucid.report.templates import render

IMAGES_IN_ROW = 3
LONGEST_TEXT = 160


@dc.dataclass(frozen=True)
class Column:
    """A column of the table of units: where its values are, and how they are shown."""

    key: str
    label: str
    digits: int | None = None
    low: str = ""
    high: str = ""
    percent: bool = False

    @property
    def is_text(self) -> bool:
        """Whether its values are words."""
        return self.digits is None


MEASURES = (
    Column("si_cf", "Selectivity", 3, "si_cf_lo", "si_cf_hi"),
    Column("si", "Raw", 3, "si_lo", "si_hi"),
    Column("si_perm", "Permuted", 3),
    Column("si_off", "Offset-free", 3),
    Column("d_prime", "d′", 2),
    Column("eta2", "η²", 3),
    Column("activity", "Activity", 1, percent=True),
)


def columns(contents: Contents) -> list[Column]:
    """The columns that this run has, those that later methods added behind the known ones."""
    known = [c for c in MEASURES if np.isfinite(contents.column(c.key)).any()]
    known = [c if c.low in contents.units else dc.replace(c, low="", high="") for c in known]
    added: list[Column] = []
    for name, values in contents.units.items():
        if name in OWN:
            continue
        label = name.replace("_", " ")
        numeric = values.dtype.kind in "iuf"
        added.append(Column(name, label, decimals(values.tolist()) if numeric else None))
    return [*([Column("top_class", "Class")] if contents.labelled else []), *known, *added]


def units(contents: Contents) -> Markup:
    """The table's frame: filters, headers and an empty body, filled from the script file."""
    if not len(contents.units.get("unit", ())):
        return Markup("")
    shown = columns(contents)
    missing = [c.label for c in MEASURES if c.key not in {s.key for s in shown}]
    return render(
        "units.html",
        {
            "n": count(len(contents.units["unit"])),
            "layers": [(i, shown_name(layer.name)) for i, layer in enumerate(contents.layers)],
            "classes": contents.classes if contents.labelled else (),
            "columns": [(c, term(c.key, c.label) if c.key in NOTES else c.label) for c in shown],
            "missing": missing,
            "labelled": contents.labelled,
            "images": bool(contents.top),
            "why": sorted({why.short for why in reasons(contents).values()}),
        },
    )


def search_index(contents: Contents) -> str:
    """A script that assigns one variable: the rows of the table, column by column.

    Numbers are rounded as they are shown; words that repeat are numbered. 10,000 units stay well under 2 MB.
    """
    shown = columns(contents)
    order = np.concatenate([np.zeros(0, np.int64), *(one.units for one in contents.layers)])
    layer = np.repeat(np.arange(len(contents.layers)), [len(one.units) for one in contents.layers])
    whys = reasons(contents)
    data: dict[str, Any] = {
        "layers": [_named(one, whys.get(one.name)) for one in contents.layers],
        "labelled": contents.labelled,
        "layer": layer.tolist(),
        "unit": contents.units["unit"][order].tolist(),
        "dead": (contents.column("dead", order) == 1).astype(int).tolist(),
        "columns": [_described(column) for column in shown],
        "values": _values(contents, shown, order),
        **_images(contents, order),
    }
    return f"window.pellucidUnits = {json.dumps(data, separators=(',', ':'), allow_nan=False)};\n"


def _named(layer: Layer, why: Reason | None) -> dict[str, str]:
    said = {} if why is None else {"why": why.short, "detail": why.sentence}
    return {"name": shown_name(layer.name), "page": layer.page, **said}


def _described(column: Column) -> dict[str, Any]:
    return {
        "key": column.key, "text": column.is_text, "digits": column.digits, "percent": column.percent,
        "low": column.low, "high": column.high,
    }  # fmt: skip


def _values(contents: Contents, shown: list[Column], order: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column in shown:
        if column.is_text:
            text = contents.text(column.key)
            found[column.key] = _numbered([text[i][:LONGEST_TEXT] for i in order.tolist()])
            continue
        for key in filter(None, (column.key, column.low, column.high)):
            values = contents.column(key, order) * (100 if column.percent else 1)
            found[key] = [_rounded(v, column.digits or 0) for v in values.tolist()]
    return found


def _rounded(value: float, digits: int) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = round(value, digits)
    return int(rounded) if rounded == int(rounded) else rounded


def _numbered(words: list[str]) -> dict[str, Any]:
    """Each different word once, and the number of the word in each row."""
    place: dict[str, int] = {}
    rows = [place.setdefault(word, len(place)) for word in words]
    return {"words": list(place), "rows": rows}


def _images(contents: Contents, order: np.ndarray) -> dict[str, Any]:
    """The first top images of each unit as numbers into a list of places on sheets."""
    place: dict[int, int] = {}
    rows: list[list[int]] = []
    for i in order.tolist():
        key = str(contents.units["layer"][i]), int(contents.units["unit"][i])
        best = [
            top.index
            for top in contents.top.get(key, ())[:IMAGES_IN_ROW]
            if top.index in contents.example_row
        ]
        rows.append([place.setdefault(index, len(place)) for index in best])
    found = [contents.example_row[index] for index in place]
    return {
        "images": rows,
        "places": [[int(contents.examples[k][row]) for k in ("sheet", "x", "y", "w", "h")] for row in found],
        "sheets": [list(sheet) for sheet in contents.sheets],
    }
