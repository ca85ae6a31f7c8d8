"""Quantiles of every unit from a histogram whose bins are decided before any data is seen."""

import dataclasses as dc
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pellucid._checks import ConfigError, check_range
from pellucid.data import Batch
from pellucid.stats._common import Stat, check_state, check_units, need_samples, same_kind, snapshot, take

# A float64 is sign, 11 bits of exponent (biased by 1023), 52 bits of mantissa: its leading bits, read as an
# integer, number the bins of a logarithmic scale that is linear inside each power of two.
MANTISSA_BITS, EXPONENT_BIAS = 52, 1023


@dc.dataclass(frozen=True)
class QuantilesResult:
    """`values[i, u]`: the smallest response of unit u with a share of at least `levels[i]` at or below it.

    The true one lies within `relative_error` of it (times its size), or within `absolute_error` where it is nearer
    to 0 than the sketch resolves. The values at levels 0 and 1 are exact.
    """

    levels: tuple[float, ...]
    values: Float64[Tensor, "levels units"]
    count: int
    relative_error: float
    absolute_error: float


class Quantiles:
    """A histogram of fixed, data-independent bins for every unit: the result is the same in any order and merge.

    Each power of two between 2^low and 2^high is cut into 2^bits equal bins, on both sides of 0; what is smaller is
    one bin, what is larger falls into the last. A quantile is the middle of its bin, kept between the smallest and
    the largest response seen, so its relative error is at most 2^-(bits + 1) for responses up to 2^high in size.

    Args:
        levels: which quantiles, each in [0, 1].
        bits: resolution; 5 means 1.6 %. Memory: 8 bytes x units x (2 (high - low) 2^bits + 1); 16 KiB a unit.
        low, high: powers of two between which the bins lie.
    """

    unit_axes: ClassVar[Mapping[str, int | None]] = {"count": None, "bins": 0, "min": 0, "max": 0}

    def __init__(
        self,
        levels: Sequence[float] = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99),
        *,
        bits: int = 5,
        low: int = -16,
        high: int = 16,
    ) -> None:
        for level in levels:
            check_range(level, 0.0, 1.0, "a quantile level")
        if not 0 <= bits <= 12:
            raise ConfigError(f"bits of Quantiles must lie in 0..12, got {bits}")
        if not -1022 <= low < high <= 1023:
            raise ConfigError(f"Quantiles needs low < high within [-1022, 1023], got {low} and {high}")
        self.levels = tuple(float(level) for level in levels)
        self.bits, self.low, self.high = bits, low, high
        self._side = (high - low) << bits  # bins on one side of the bin that holds 0
        self._seen: dict[str, Tensor] = {}

    def update(self, values: Float[Tensor, "batch units"], batch: Batch) -> None:
        """Take the responses of one batch."""
        x = take(values, batch, units=len(self._seen["min"]) if self._seen else None)
        if len(x) == 0:
            return
        units = x.shape[1]
        if not self._seen:
            self._seen = {
                "count": torch.tensor(0),
                "bins": torch.zeros(units, 2 * self._side + 1, dtype=torch.int64),
                "min": torch.full((units,), torch.inf, dtype=torch.float64),
                "max": torch.full((units,), -torch.inf, dtype=torch.float64),
            }
        low, high = x.aminmax(dim=0)
        bins = self._bin(x).T.contiguous()
        self._seen["bins"].scatter_add_(1, bins, torch.ones_like(bins))
        self._seen["count"] += len(x)
        self._seen["min"] = torch.minimum(self._seen["min"], low)
        self._seen["max"] = torch.maximum(self._seen["max"], high)

    def merge(self, other: Stat) -> None:
        """Take what another fitter has seen."""
        other = same_kind(self, other, settings=("levels", "bits", "low", "high"))
        if not other._seen:
            return
        if not self._seen:
            self._seen = snapshot(other._seen)
            return
        check_units(len(self._seen["min"]), len(other._seen["min"]))
        self._seen["bins"] += other._seen["bins"]
        self._seen["count"] += other._seen["count"]
        self._seen["min"] = torch.minimum(self._seen["min"], other._seen["min"])
        self._seen["max"] = torch.maximum(self._seen["max"], other._seen["max"])

    def state(self) -> dict[str, Tensor]:
        """All that was seen, as tensors."""
        return snapshot(self._seen)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            shapes = {"count": (), "bins": (None, 2 * self._side + 1), "min": (None,), "max": (None,)}
            check_state("Quantiles", state, shapes)
        self._seen = snapshot(state)

    def result(self) -> QuantilesResult:
        """The quantiles of all that was seen."""
        need_samples(bool(self._seen), "Quantiles")
        count = int(self._seen["count"])
        below = self._seen["bins"].cumsum(1)
        rows = [self._quantile(below, level, count) for level in self.levels]
        return QuantilesResult(
            levels=self.levels,
            values=torch.stack(rows),
            count=count,
            relative_error=2.0 ** -(self.bits + 1),
            absolute_error=2.0**self.low,
        )

    def _bin(self, x: Float64[Tensor, "batch units"]) -> Int64[Tensor, "batch units"]:
        """Bin 0 holds the most negative responses, `_side` those around 0, 2 `_side` the largest."""
        leading = x.abs().view(torch.int64) >> (MANTISSA_BITS - self.bits)
        first = (self.low + EXPONENT_BIAS) << self.bits
        return self._side + (leading - first + 1).clamp_(0, self._side) * x.sign().to(torch.int64)

    def _middle(self, bins: Int64[Tensor, " units"]) -> Float64[Tensor, " units"]:
        """The middle of each bin."""
        away = (bins - self._side).abs()
        leading = (away - 1 + ((self.low + EXPONENT_BIAS) << self.bits)).clamp(min=0)
        half = 1 << (MANTISSA_BITS - self.bits - 1)
        middle = ((leading << (MANTISSA_BITS - self.bits)) + half).view(torch.float64)
        return torch.where(away > 0, middle, 0.0) * (bins - self._side).sign()

    def _quantile(
        self, below: Int64[Tensor, "units bins"], level: float, count: int
    ) -> Float64[Tensor, " units"]:
        # The guard: 0.07 * 100 is a hair above 7 in floating point.
        rank = min(max(math.ceil(level * count - 1e-9), 1), count)
        if level == 0.0:
            return self._seen["min"].clone()
        if level == 1.0:
            return self._seen["max"].clone()
        bins = torch.searchsorted(below, torch.full((len(below), 1), rank, dtype=below.dtype)).squeeze(1)
        return self._middle(bins).clamp(self._seen["min"], self._seen["max"])
