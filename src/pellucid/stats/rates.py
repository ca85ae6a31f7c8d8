"""How often every unit is active."""

import dataclasses as dc
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pellucid._checks import ConfigError
from pellucid.data import Batch
from pellucid.stats._common import (
    Stat,
    check_state,
    check_units,
    need_samples,
    same_kind,
    snapshot,
    take,
)


@dc.dataclass(frozen=True)
class RatesResult:
    """Share of samples whose response lies above each threshold, in [0, 1]."""

    thresholds: tuple[float, ...]
    rate: Float64[Tensor, "thresholds units"]
    count: int


class Rates:
    """How often the response of every unit lies above each threshold: rate = #{response > threshold} / n.

    With the default threshold 0 this is the activity of a unit behind a ReLU.
    """

    unit_axes: ClassVar[Mapping[str, int | None]] = {"count": None, "above": 1}

    def __init__(self, thresholds: Sequence[float] = (0.0,)) -> None:
        self.thresholds = tuple(float(t) for t in thresholds)
        if not self.thresholds or any(math.isnan(t) for t in self.thresholds):
            raise ConfigError(f"Rates needs one or more numbers as thresholds, got {list(thresholds)}")
        self._seen: dict[str, Tensor] = {}

    def update(self, values: Float[Tensor, "batch units"], batch: Batch) -> None:
        """Take the responses of one batch."""
        x = take(values, batch, units=self._seen["above"].shape[1] if self._seen else None)
        above = torch.stack([(x > t).sum(0) for t in self.thresholds])
        self._add({"count": torch.tensor(len(x)), "above": above})

    def merge(self, other: Stat) -> None:
        """Take what another fitter has seen."""
        other = same_kind(self, other, settings=("thresholds",))
        if other._seen:
            self._add(snapshot(other._seen))

    def state(self) -> dict[str, Tensor]:
        """All that was seen, as tensors."""
        return snapshot(self._seen)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            check_state("Rates", state, {"count": (), "above": (len(self.thresholds), None)})
        self._seen = snapshot(state)

    def result(self) -> RatesResult:
        """The rates of all that was seen."""
        count = int(self._seen["count"]) if self._seen else 0
        need_samples(count > 0, "Rates")
        return RatesResult(thresholds=self.thresholds, rate=self._seen["above"].double() / count, count=count)

    def _add(self, part: dict[str, Tensor]) -> None:
        if not self._seen:
            self._seen = part
            return
        check_units(self._seen["above"].shape[1], part["above"].shape[1])
        for name in self._seen:
            self._seen[name] += part[name]
