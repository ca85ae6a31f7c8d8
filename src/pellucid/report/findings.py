"""Sentences computed from the numbers: the titles of figures, and what is worth a look."""

from collections.abc import Sequence

import numpy as np

from pellucid.html import count, number, percent
from pellucid.report.contents import Contents, Layer, shown_name


def selectivity_by_layer(layers: Sequence[Layer]) -> str:
    """What the index does with depth, in one sentence."""
    known = [(layer, value) for layer in layers if (value := layer.get("si_cf")) is not None]
    if not known:
        return "No layer has a selectivity index"
    if len(known) == 1:
        return f"Mean selectivity in {shown_name(known[0][0].name)} is {number(known[0][1])}"
    low, high = min(known, key=lambda k: k[1]), max(known, key=lambda k: k[1])
    if high[1] - low[1] < _error(low[0]) + _error(high[0]):
        return f"Selectivity hardly differs between layers: {number(low[1])} to {number(high[1])}"
    if high[0] is known[-1][0] and low[0] is known[0][0]:
        return f"Selectivity rises from {number(low[1])} in the first layer to {number(high[1])} in the last"
    if low[0] is known[-1][0] and high[0] is known[0][0]:
        return f"Selectivity falls from {number(high[1])} in the first layer to {number(low[1])} in the last"
    return (
        f"Selectivity is highest in {shown_name(high[0].name)} ({number(high[1])}) "
        f"and lowest in {shown_name(low[0].name)} ({number(low[1])})"
    )


def activity_by_layer(layers: Sequence[Layer]) -> str:
    """Which layers answer to most and to fewest images."""
    known = [
        (value, shown_name(layer.name)) for layer in layers if (value := layer.get("activity")) is not None
    ]
    if not known:
        return "No layer has a recorded activity"
    low, high = min(known), max(known)
    if high[0] - low[0] < 0.01:
        return f"Units answer to {percent(high[0])} of the images in every layer"
    return f"Units answer to most images in {high[1]} ({percent(high[0])}), to fewest in {low[1]} ({percent(low[0])})"


def above_chance(layer: Layer) -> bool | None:
    """Whether the interval of the cross-fitted index lies above 0 and that of the raw one above permuted labels."""
    low, raw, chance = layer.get("si_cf_lo"), layer.get("si_lo"), layer.get("si_perm")
    if low is None:
        return None
    return low > 0 and (raw is None or chance is None or raw > chance)


def selective_units(contents: Contents, rows: np.ndarray) -> np.ndarray:
    """Which of the units in `rows` have an index whose interval lies above what permuted labels give."""
    low, chance, cross = (contents.column(name, rows) for name in ("si_lo", "si_perm", "si_cf"))
    return (low > chance) & (cross > 0)


def layer_in_short(contents: Contents, layer: Layer) -> str:
    """A sentence about the units of one layer."""
    n = len(layer.units)
    dead = int(contents.column("dead", layer.units).sum()) if "dead" in contents.units else 0
    silent = f"; {count(dead)} {'is' if dead == 1 else 'are'} dead" if dead else ""
    if layer.get("si_cf") is None:
        return f"{count(n)} units{silent}"
    chosen = int(selective_units(contents, layer.units).sum())
    return f"{count(chosen)} of {count(n)} units prefer a class by more than permuted labels explain{silent}"


def worth_a_look(contents: Contents) -> list[tuple[str, Layer]]:
    """Layers that stand out, each with the sentence that says why."""
    found: list[tuple[str, Layer]] = []
    dead = [(layer.get("dead_fraction") or 0.0, layer) for layer in contents.layers]
    most = max(dead, key=lambda pair: pair[0], default=None)
    if most and most[0] >= 0.05:
        found.append((f"has the largest share of dead units: {percent(most[0])}", most[1]))
    steps = [
        (after - before, b)
        for a, b in zip(contents.layers, contents.layers[1:], strict=False)
        if (before := a.get("si_cf")) is not None and (after := b.get("si_cf")) is not None
    ]
    if steps:
        step, layer = max(steps, key=lambda pair: abs(pair[0]))
        if abs(step) > 0.05:
            found.append(
                (
                    f"{'adds' if step > 0 else 'loses'} most selectivity: {number(abs(step))} in one step",
                    layer,
                )
            )
    shares = [
        (pr / units, layer)
        for layer in contents.layers
        if (pr := layer.get("pr")) is not None and (units := layer.get("units"))
    ]
    if shares:
        share, layer = min(shares, key=lambda pair: pair[0])
        found.append(
            (
                f"uses the smallest share of its dimensions: participation ratio {percent(share)} of its units",
                layer,
            )
        )
    return found


def _error(layer: Layer) -> float:
    low, high = layer.get("si_cf_lo"), layer.get("si_cf_hi")
    return 0.0 if low is None or high is None else (high - low) / 2
