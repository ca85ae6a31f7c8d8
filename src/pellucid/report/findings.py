"""Sentences computed from the numbers: the titles of figures, and what is worth a look."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from pellucid.html import count, counted, number, percent
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
    """In which layers responses are above 0 on most and on fewest images."""
    known = [
        (value, shown_name(layer.name)) for layer in layers if (value := layer.get("activity")) is not None
    ]
    if not known:
        return "No layer has a recorded activity"
    low, high = min(known), max(known)
    if high[0] - low[0] < 0.01:
        return f"Responses are above 0 on {percent(high[0])} of the images in every layer"
    return (
        f"Responses are above 0 on most images in {high[1]} ({percent(high[0])}), "
        f"on fewest in {low[1]} ({percent(low[0])})"
    )


def above_chance(layer: Layer) -> bool | None:
    """Whether the interval of the cross-fitted index lies above 0 and that of the raw one above permuted labels."""
    low, raw, chance = layer.get("si_cf_lo"), layer.get("si_lo"), layer.get("si_perm")
    if low is None:
        return None
    return low > 0 and (raw is None or chance is None or raw > chance)


def selective_units(contents: Contents, rows: np.ndarray) -> np.ndarray:
    """Which of the units in `rows` have a raw index above what permuted labels give and a cross-fitted one above 0."""
    raw, chance, cross, low = (
        contents.column(key, rows) for key in ("si_lo", "si_perm", "si_cf", "si_cf_lo")
    )
    return (raw > chance) & (cross > 0) & ~(low <= 0)


def layer_in_short(contents: Contents, layer: Layer) -> str:
    """A sentence about the units of one layer."""
    n = len(layer.units)
    dead = int(contents.column("dead", layer.units).sum()) if "dead" in contents.units else 0
    silent = f"; {count(dead)} {'is' if dead == 1 else 'are'} dead" if dead else ""
    if layer.get("si_cf") is None:
        return f"{counted(n, 'unit')}{silent}"
    chosen = int(selective_units(contents, layer.units).sum())
    verb = "prefers" if chosen == 1 else "prefer"
    return (
        f"{count(chosen)} of {counted(n, 'unit')} {verb} a class by more than permuted labels explain{silent}"
    )


def worth_a_look(contents: Contents) -> list[tuple[str, Layer]]:
    """Layers that stand out, each with the sentence that says why."""
    return [
        *_most_dead(contents.layers),
        *_largest_step(contents.layers),
        *_fewest_dimensions(contents.layers),
    ]


def _most_dead(layers: Sequence[Layer]) -> Iterator[tuple[str, Layer]]:
    shares = [layer.get("dead_fraction") or 0.0 for layer in layers]
    most = max(shares, default=0.0)
    if most < 0.05:
        return
    first, *others = [layer for layer, share in zip(layers, shares, strict=True) if share == most]
    if others:
        names = ", ".join(shown_name(layer.name) for layer in others[:3]) + (
            " and others" if others[3:] else ""
        )
        yield f"along with {names} has the largest share of dead units: {percent(most)}", first
    else:
        yield f"has the largest share of dead units: {percent(most)}", first


def _largest_step(layers: Sequence[Layer]) -> Iterator[tuple[str, Layer]]:
    """The largest gain or loss from one layer to the next; what is not above chance is neither."""
    steps = [
        (after - before, b)
        for a, b in itertools.pairwise(layers)
        if (before := a.get("si_cf")) is not None
        and (after := b.get("si_cf")) is not None
        and above_chance(b if after > before else a) is not False
    ]
    step, layer = max(steps, key=lambda pair: abs(pair[0]), default=(0.0, None))
    if layer is not None and abs(step) > 0.05:
        yield f"{'adds' if step > 0 else 'loses'} most selectivity: {number(abs(step))} in one step", layer


def _fewest_dimensions(layers: Sequence[Layer]) -> Iterator[tuple[str, Layer]]:
    shares = [
        (pr / units, layer)
        for layer in layers
        if (pr := layer.get("pr")) is not None and (units := layer.get("units"))
    ]
    share, layer = min(shares, key=lambda pair: pair[0], default=(0.0, None))
    if layer is not None and len(layers) > 1:
        yield (
            f"uses the smallest share of its dimensions: participation ratio {percent(share)} of its units",
            layer,
        )


def _error(layer: Layer) -> float:
    low, high = layer.get("si_cf_lo"), layer.get("si_cf_hi")
    return 0.0 if low is None or high is None else (high - low) / 2
