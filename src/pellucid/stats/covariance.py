"""Covariance between the units of a layer, for its dimensionality."""

import dataclasses as dc
from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pellucid.data import Batch
from pellucid.stats._common import Stat, check_state, check_units, need_samples, same_kind, snapshot, take


@dc.dataclass(frozen=True)
class CovarianceResult:
    """Mean and covariance of the units; `cov` is symmetric, divides by count - 1 and is NaN for one sample."""

    count: int
    mean: Float64[Tensor, " units"]
    cov: Float64[Tensor, "units units"]


class Covariance:
    """Mean and covariance matrix of the units, in float64: 8 bytes x units^2 of memory.

    Deviations are taken from the mean of each part, and parts are combined as in `pellucid.stats.moments`, so that
    a large mean costs no accuracy.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Tensor] = {}

    def update(self, values: Float[Tensor, "batch units"], batch: Batch) -> None:
        """Take the responses of one batch."""
        x = take(values, batch, units=self._seen["mean"].shape[0] if self._seen else None)
        if len(x) == 0:
            return
        if not self._seen:
            units = x.shape[1]
            self._seen = {
                "count": torch.tensor(0.0, dtype=torch.float64),
                "mean": torch.zeros(units, dtype=torch.float64),
                "scatter": torch.zeros(units, units, dtype=torch.float64),
            }
        mean = x.mean(0)
        spread = self._shift(len(x), mean)
        rows = torch.cat([x - mean, spread.unsqueeze(0)])
        self._seen["scatter"].addmm_(rows.T, rows)

    def merge(self, other: Stat) -> None:
        """Take what another fitter has seen."""
        other = same_kind(self, other, settings=())
        if not other._seen:
            return
        if not self._seen:
            self._seen = snapshot(other._seen)
            return
        check_units(len(self._seen["mean"]), len(other._seen["mean"]))
        spread = self._shift(int(other._seen["count"]), other._seen["mean"])
        self._seen["scatter"] += other._seen["scatter"] + torch.outer(spread, spread)

    def state(self) -> dict[str, Tensor]:
        """All that was seen, as tensors."""
        return snapshot(self._seen)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            check_state("Covariance", state, {"count": (), "mean": (None,), "scatter": (None, None)})
        self._seen = snapshot(state)

    def result(self) -> CovarianceResult:
        """The covariance of all that was seen."""
        need_samples(bool(self._seen), "Covariance")
        seen = snapshot(self._seen)
        count = int(seen["count"])
        scatter = (seen["scatter"] + seen["scatter"].T) / 2
        cov = scatter / (count - 1) if count > 1 else torch.full_like(scatter, torch.nan)
        return CovarianceResult(count=count, mean=seen["mean"], cov=cov)

    def _shift(self, n: int, mean: Float64[Tensor, " units"]) -> Float64[Tensor, " units"]:
        """Take n samples of that mean into count and mean; what they add to the scatter is the outer square."""
        seen = self._seen
        before = float(seen["count"])
        step = mean - seen["mean"]
        seen["mean"] += step * (n / (before + n))
        seen["count"] += n
        return step * (before * n / (before + n)) ** 0.5
