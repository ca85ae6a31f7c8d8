"""The tables of a run that are about layers and units, made from what one pass recorded."""

import dataclasses as dc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pellucid._checks import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.methods.selectivity import Selectivity
    from pellucid.record import Recording
    from pellucid.taps import LayerInfo

Policy = Callable[["Tensor"], "Tensor"]
DEAD = 1e-12  # a unit whose largest response stays below this never answered
SELECTIVITY = (
    "si",
    "si_lo",
    "si_hi",
    "si_cf",
    "si_cf_lo",
    "si_cf_hi",
    "si_perm",
    "si_off",
    "d_prime",
    "eta2",
)


@dc.dataclass(frozen=True)
class Measured:
    """What was measured of one layer. `selectivity` is None where it means nothing, and `why` says why."""

    info: "LayerInfo"
    stats: Mapping[str, Any]
    selectivity: "Selectivity | None"
    why: str


def measure_layers(
    recording: "Recording",
    infos: Sequence["LayerInfo"],
    *,
    labelled: bool,
    negative: Policy | None,
    seed: int,
) -> list[Measured]:
    """The selectivity of every layer, or the reason why it has none."""
    from pellucid.methods.selectivity import class_selectivity

    found: list[Measured] = []
    for info in infos:
        stats = recording[info.name]
        if not labelled:
            found.append(Measured(info, stats, None, "the data has no labels"))
            continue
        try:
            index = class_selectivity(stats["by_class"], negative=negative, seed=seed)
            found.append(Measured(info, stats, index, _why(index)))
        except DataError as error:
            found.append(Measured(info, stats, None, str(error)))
    return found


def _why(index: "Selectivity") -> str:
    """Why the indices of a layer are missing although they were computed; "" when they are there."""
    if index.classes_present < 2:
        return f"selectivity compares classes, and only {index.classes_present} has images"
    return "every unit is dead" if bool(index.dead.all()) else ""


def layer_table(measured: Sequence[Measured], n: int) -> dict[str, list[Any]]:
    """One row a layer; NaN where a number means nothing (`why` says why)."""
    rows = [_layer_row(layer, n) for layer in measured]
    return {column: [row[column] for row in rows] for column in rows[0]}


def unit_table(measured: Sequence[Measured], classes: Sequence[str]) -> dict[str, list[Any]]:
    """One row a unit, over all layers."""
    out: dict[str, list[Any]] = {}
    for layer in measured:
        for column, values in _unit_columns(layer, classes).items():
            out.setdefault(column, []).extend(values)
    return out


def top_table(measured: Sequence[Measured]) -> dict[str, list[Any]]:
    """One row for each unit and rank: the example, its response, and the place in the map that drove the unit."""
    names = ("layer", "unit", "rank", "index", "value", "row", "col", "rows", "cols")
    out: dict[str, list[Any]] = {name: [] for name in names}
    for layer in measured:
        top = layer.stats["top"]
        rows, cols = top.grid or (-1, -1)
        units, k = top.index.shape
        unit = [u for u in range(units) for _ in range(k)]
        place = top.place.reshape(-1, 2).tolist() if top.place is not None else [(-1, -1)] * (units * k)
        index, value = top.index.flatten().tolist(), top.values.flatten().tolist()
        for i, u in enumerate(unit):
            if index[i] >= 0:
                row = (layer.info.name, u, i % k, index[i], value[i], place[i][0], place[i][1], rows, cols)
                for name, entry in zip(names, row, strict=True):
                    out[name].append(entry)
    return out


def _layer_row(layer: Measured, n: int) -> dict[str, Any]:
    from pellucid.evals.dimension import dimensionality
    from pellucid.methods.selectivity import layer_selectivity

    info, nan = layer.info, math.nan
    dead = _dead(layer)
    active, active_lo, active_hi = _activity(layer)
    row: dict[str, Any] = {
        "layer": info.name, "type": info.type, "shape": "x".join(map(str, info.shape)), "units": info.units,
        "unit_axis": info.unit_axis, "n": n, "dead": int(dead.sum()), "dead_fraction": float(dead.double().mean()),
    }  # fmt: skip
    if layer.selectivity is None:
        row |= dict.fromkeys(
            ("si", "si_lo", "si_hi", "si_cf", "si_cf_lo", "si_cf_hi", "si_perm", "si_off"), nan
        )
    else:
        mean = layer_selectivity(layer.selectivity)
        row |= {
            k: getattr(mean, k)
            for k in ("si", "si_lo", "si_hi", "si_cf", "si_cf_lo", "si_cf_hi", "si_perm", "si_off")
        }
    row |= {"activity": active, "activity_lo": active_lo, "activity_hi": active_hi}
    if "covariance" in layer.stats and n > 1:
        dims = dimensionality(layer.stats["covariance"])
        row |= {"dim_90": dims.dim_90, "dim_95": dims.dim_95, "dim_99": dims.dim_99, "pr": dims.pr}
    else:
        row |= dict.fromkeys(("dim_90", "dim_95", "dim_99", "pr"), nan)
    return row | {"why": layer.why}


def _unit_columns(layer: Measured, classes: Sequence[str]) -> dict[str, list[Any]]:
    moments, index = layer.stats["moments"], layer.selectivity
    units = len(moments.mean)
    columns: dict[str, list[Any]] = {"layer": [layer.info.name] * units, "unit": list(range(units))}
    if index is None:
        columns |= {name: [math.nan] * units for name in SELECTIVITY}
        columns["top_class"] = [""] * units
    else:
        columns |= {name: getattr(index, name).tolist() for name in SELECTIVITY}
        columns["top_class"] = [classes[c] if c >= 0 else "" for c in index.top_class.tolist()]
    return columns | {
        "dead": _dead(layer).tolist(),
        "mean": moments.mean.tolist(),
        "std": moments.std.tolist(),
        "max": moments.max.tolist(),
        "activity": layer.stats["rates"].rate[0].tolist(),
    }


def _dead(layer: Measured) -> "Tensor":
    if layer.selectivity is not None:
        return layer.selectivity.dead
    moments = layer.stats["moments"]
    return (moments.max.abs() < DEAD) & (moments.min.abs() < DEAD)


def _activity(layer: Measured) -> tuple[float, float, float]:
    """Share of (image, unit) pairs above 0: mean over units, and where the middle half of the units lies."""
    import torch

    rate = layer.stats["rates"].rate[0]
    low, high = torch.quantile(rate, torch.tensor([0.25, 0.75], dtype=rate.dtype)).tolist()
    return float(rate.mean()), low, high
