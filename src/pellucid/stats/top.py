"""The samples that drive every unit most, and the place in the map where they do."""

import dataclasses as dc
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from pellucid._checks import ConfigError, DataError
from pellucid.data import Batch
from pellucid.stats._common import Stat, check_state, check_units, need_samples, same_kind, snapshot, take

NOBODY = torch.iinfo(torch.int64).max  # an empty slot: sorts behind every sample


@dc.dataclass(frozen=True)
class TopExamplesResult:
    """The k largest responses of each unit, largest first; equal ones by lower sample index.

    Where fewer than k samples were seen, `values` is -inf and `index` -1. `place` is (row, column) in a map of
    `grid` (rows, columns), and None where responses have no place.
    """

    values: Float64[Tensor, "units k"]
    index: Int64[Tensor, "units k"]
    place: Int64[Tensor, "units k 2"] | None
    grid: tuple[int, int] | None


class TopExamples:
    """The k samples with the largest response of every unit, ties broken by lower sample index.

    A place is kept where `update` is told one: `grid` is then the size of the layer's map, and `places` the
    position of each response in it, counted row by row (`record(..., places=True)` does so).
    """

    unit_axes: ClassVar[Mapping[str, int | None]] = {"values": 0, "index": 0, "place": 0}

    def __init__(self, k: int = 16, *, grid: tuple[int, int] | None = None) -> None:
        if k < 1:
            raise ConfigError(f"TopExamples needs k of at least 1, got {k}")
        self.k = k
        self.grid = grid
        self._seen: dict[str, Tensor] = {}

    def update(
        self,
        values: Float[Tensor, "batch units"],
        batch: Batch,
        *,
        places: Int[Tensor, "batch units"] | None = None,
    ) -> None:
        """Take the responses of one batch; `places` may hold anything where `enters` is false."""
        x = take(values, batch, units=len(self._seen["index"]) if self._seen else None)
        if places is not None and places.shape != x.shape:
            raise DataError(
                f"one place for each response expected: {tuple(x.shape)}, got {tuple(places.shape)}"
            )
        if not self._seen:
            self._start(x.shape[1])
        index = batch.index.to("cpu", torch.int64)
        units = self.enters(x, index).any(0).nonzero().squeeze(1)
        if len(units) == 0:
            return
        chosen = x[:, units].T
        if places is None:
            place = torch.full(chosen.shape, -1, dtype=torch.int64)
        else:
            place = places.to("cpu", torch.int64)[:, units].T
        self._compete(units, {"values": chosen, "index": index.expand(chosen.shape), "place": place})

    def enters(
        self, values: Float[Tensor, "batch units"], index: Int[Tensor, " batch"], *, first: int = 0
    ) -> Bool[Tensor, "batch units"]:
        """Which responses, of the units from `first` on, are among the k largest so far and need their place."""
        if not self._seen:
            return torch.ones(values.shape, dtype=torch.bool)
        units = slice(first, first + values.shape[1])
        last, holder = self._seen["values"][units, -1], self._seen["index"][units, -1]
        return (values > last) | ((values == last) & (index.unsqueeze(1) < holder))

    def merge(self, other: Stat) -> None:
        """Take what another fitter has seen."""
        other = same_kind(self, other, settings=("k", "grid"))
        if not other._seen:
            return
        if not self._seen:
            self._seen = snapshot(other._seen)
            return
        check_units(len(self._seen["index"]), len(other._seen["index"]))
        self._compete(torch.arange(len(self._seen["index"])), other._seen)

    def state(self) -> dict[str, Tensor]:
        """All that was seen, as tensors."""
        return snapshot(self._seen)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            check_state("TopExamples", state, dict.fromkeys(self.unit_axes, (None, self.k)))
        self._seen = snapshot(state)

    def result(self) -> TopExamplesResult:
        """The best of all that was seen."""
        need_samples(bool(self._seen), "TopExamples")
        seen = snapshot(self._seen)
        place = None
        if self.grid is not None:
            flat, columns = seen["place"], self.grid[1]
            place = torch.stack([flat // columns, flat % columns], dim=2).masked_fill(
                (flat < 0).unsqueeze(2), -1
            )
        index = seen["index"].masked_fill(seen["index"] == NOBODY, -1)
        return TopExamplesResult(values=seen["values"], index=index, place=place, grid=self.grid)

    def _start(self, units: int) -> None:
        self._seen = {
            "values": torch.full((units, self.k), -torch.inf, dtype=torch.float64),
            "index": torch.full((units, self.k), NOBODY),
            "place": torch.full((units, self.k), -1),
        }

    def _compete(self, units: Int64[Tensor, " some"], part: Mapping[str, Tensor]) -> None:
        """Let the rows of `part` compete for the k slots of `units`."""
        both = {name: torch.cat([self._seen[name][units], part[name]], dim=1) for name in self._seen}
        # Sorting by index first and then, stably, by value orders equal values by index.
        by_index = both["index"].argsort(dim=1)
        by_value = both["values"].gather(1, by_index).argsort(dim=1, descending=True, stable=True)
        order = by_index.gather(1, by_value[:, : self.k])
        for name, tensor in both.items():
            self._seen[name][units] = tensor.gather(1, order)
