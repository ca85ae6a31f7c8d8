"""Mean and variance of every unit, over all samples or by class and fold, without cancellation.

Each cell (a unit, or a class x fold x unit) keeps n, the mean and S = sum of squared deviations from it. Two parts
a and b become one by S = S_a + S_b + (mean_b - mean_a)^2 n_a n_b / n, mean = mean_a + (mean_b - mean_a) n_b / n,
which never subtracts large numbers: a variance is never negative, and a mean of 1e6 does not hide a deviation of 1.

References: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1982.
"""

import dataclasses as dc
from collections.abc import Mapping
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
    fold_of,
    need_samples,
    same_kind,
    snapshot,
    take,
    take_targets,
)

# Ten folds leave a sample or more in each cell up to here; above it the memory, classes x folds x units, rules.
MOST_CLASSES_FOR_TEN_FOLDS = 100


@dc.dataclass(frozen=True)
class MomentsResult:
    """Moments of each unit over `count` samples; `var` divides by count - 1 and is NaN for one sample."""

    count: int
    mean: Float64[Tensor, " units"]
    var: Float64[Tensor, " units"]
    min: Float64[Tensor, " units"]
    max: Float64[Tensor, " units"]
    zero_fraction: Float64[Tensor, " units"]  # share of samples whose response is exactly 0, in [0, 1]

    @property
    def std(self) -> Float64[Tensor, " units"]:
        """Standard deviation, the square root of `var`."""
        return self.var.sqrt()


class Moments:
    """Count, mean, variance, extremes and share of exact zeros of every unit."""

    unit_axes: ClassVar[Mapping[str, int | None]] = {
        "count": None,
        "mean": 0,
        "deviations": 0,
        "min": 0,
        "max": 0,
        "zeros": 0,
    }

    def __init__(self) -> None:
        self._seen: dict[str, Tensor] = {}

    def update(self, values: Float[Tensor, "batch units"], batch: Batch) -> None:
        """Take the responses of one batch."""
        x = take(values, batch, units=self._seen["mean"].shape[0] if self._seen else None)
        if len(x) == 0:
            return
        mean = x.mean(0)
        low, high = x.aminmax(dim=0)
        self._add(
            {
                "count": torch.tensor(len(x), dtype=torch.float64),
                "mean": mean,
                "deviations": (x - mean).square_().sum(0),
                "min": low,
                "max": high,
                "zeros": (x == 0).sum(0, dtype=torch.float64),
            }
        )

    def merge(self, other: Stat) -> None:
        """Take what another fitter has seen."""
        other = same_kind(self, other, settings=())
        if other._seen:
            self._add(snapshot(other._seen))

    def state(self) -> dict[str, Tensor]:
        """All that was seen, as tensors."""
        return snapshot(self._seen)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            shapes = {k: () if axis is None else (None,) for k, axis in self.unit_axes.items()}
            check_state("Moments", state, shapes)
        self._seen = snapshot(state)

    def result(self) -> MomentsResult:
        """The moments of all that was seen."""
        need_samples(bool(self._seen), "Moments")
        seen = snapshot(self._seen)
        count = int(seen["count"])
        var = seen["deviations"] / (count - 1) if count > 1 else torch.full_like(seen["mean"], torch.nan)
        return MomentsResult(
            count=count,
            mean=seen["mean"],
            var=var,
            min=seen["min"],
            max=seen["max"],
            zero_fraction=seen["zeros"] / count,
        )

    def _add(self, part: dict[str, Tensor]) -> None:
        if not self._seen:
            self._seen = part
            return
        seen = self._seen
        check_units(seen["mean"].shape[0], part["mean"].shape[0])
        _combine(seen, part)
        seen["min"] = torch.minimum(seen["min"], part["min"])
        seen["max"] = torch.maximum(seen["max"], part["max"])
        seen["zeros"] += part["zeros"]


def _combine(seen: dict[str, Tensor], part: Mapping[str, Tensor]) -> None:
    """Put count, mean and deviations of `part` into `seen`, in place; a cell without samples changes nothing."""
    n_seen, n_part = seen["count"], part["count"]
    total = n_seen + n_part
    share = (n_part / total.clamp(min=1)).unsqueeze(-1)
    step = part["mean"] - seen["mean"]
    seen["mean"] += step * share
    seen["deviations"] += part["deviations"] + step.square_() * (n_seen.unsqueeze(-1) * share)
    seen["count"] = total


@dc.dataclass(frozen=True)
class ClassMomentsResult:
    """Count, sum and sum of squares by class and fold; classes without samples have count 0.

    `deviations` is the sum of squared deviations from the mean of its cell. It holds what `sum_sq - sum^2 / count`
    loses when the mean is large against the spread; a result put together by hand may leave it out.
    """

    count: Float64[Tensor, "classes folds"]
    sum: Float64[Tensor, "classes folds units"]
    sum_sq: Float64[Tensor, "classes folds units"]
    deviations: Float64[Tensor, "classes folds units"] | None = None

    @property
    def counts(self) -> Float64[Tensor, " classes"]:
        """Samples of each class."""
        return self.count.sum(1)

    @property
    def n(self) -> int:
        """Samples in all."""
        return int(self.count.sum())

    @property
    def mean(self) -> Float64[Tensor, "classes units"]:
        """Mean response to each class; NaN for a class without samples."""
        return self.sum.sum(1) / self.counts.unsqueeze(1)

    @property
    def within(self) -> Float64[Tensor, "classes folds units"]:
        """Sum of squared deviations from the mean of each class and fold; at least 0, and 0 in an empty cell."""
        if self.deviations is not None:
            return self.deviations
        count = self.count.unsqueeze(2)
        return (self.sum_sq - self.sum.square() / count.clamp(min=1)).clamp(min=0)

    @property
    def var(self) -> Float64[Tensor, "classes units"]:
        """Variance inside each class, divided by n - 1; NaN for a class with fewer than two samples."""
        count = self.count.unsqueeze(2)
        cell = self.sum / count.clamp(min=1)
        between = (count * (cell - self.mean.unsqueeze(1).nan_to_num()).square()).sum(1)
        n = self.counts.unsqueeze(1)
        return torch.where(n > 1, (self.within.sum(1) + between) / (n - 1).clamp(min=1), torch.nan)


class ClassMoments:
    """Count, sum and sum of squares of every unit's response by class and fold.

    Folds are disjoint parts of the samples, decided by `fold_of(index, folds)` alone; measures that choose on one
    part and judge on another (the cross-fitted selectivity index) need them.

    Args:
        classes: number of classes K; labels are 0..K-1.
        folds: parts to keep apart; default 10 up to 100 classes and 2 above. Memory: 16 bytes x K x folds x units.

    Raises:
        DataError: a batch without labels, or a label outside 0..K-1 (the message names the sample).
    """

    unit_axes: ClassVar[Mapping[str, int | None]] = {"count": None, "mean": 2, "deviations": 2}

    def __init__(self, classes: int, folds: int | None = None) -> None:
        if folds is None:
            folds = 10 if classes <= MOST_CLASSES_FOR_TEN_FOLDS else 2
        if classes < 1 or folds < 1:
            raise ConfigError(
                f"ClassMoments needs at least one class and one fold, got {classes} and {folds}"
            )
        self.classes = classes
        self.folds = folds
        self._seen: dict[str, Tensor] = {}

    def update(self, values: Float[Tensor, "batch units"], batch: Batch) -> None:
        """Take the responses of one batch and its labels."""
        x = take(values, batch, units=self._seen["mean"].shape[2] if self._seen else None)
        targets = take_targets(batch, classes=self.classes)
        if not self._seen:
            self._start(x.shape[1])
        cells, cell = torch.unique(
            targets * self.folds + fold_of(batch.index.cpu(), self.folds), return_inverse=True
        )
        member = torch.zeros(len(cells), len(x), dtype=torch.float64)
        member[cell, torch.arange(len(x))] = 1.0
        count = member.sum(1)
        mean = (member @ x) / count.unsqueeze(1)
        part = {"count": count, "mean": mean, "deviations": member @ (x - mean[cell]).square_()}
        # Only the cells of this batch are touched: a batch costs the same with 10 classes and with 1,000.
        flat = {name: tensor.flatten(0, 1) for name, tensor in self._seen.items()}
        touched = {name: tensor[cells] for name, tensor in flat.items()}
        _combine(touched, part)
        for name, tensor in touched.items():
            flat[name][cells] = tensor

    def merge(self, other: Stat) -> None:
        """Take what another fitter has seen."""
        other = same_kind(self, other, settings=("classes", "folds"))
        if not other._seen:
            return
        if not self._seen:
            self._seen = snapshot(other._seen)
            return
        check_units(self._seen["mean"].shape[2], other._seen["mean"].shape[2])
        _combine(self._seen, other._seen)

    def state(self) -> dict[str, Tensor]:
        """All that was seen, as tensors."""
        return snapshot(self._seen)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if state:
            cells = (self.classes, self.folds)
            shapes = {"count": cells, "mean": (*cells, None), "deviations": (*cells, None)}
            check_state("ClassMoments", state, shapes)
        self._seen = snapshot(state)

    def result(self) -> ClassMomentsResult:
        """The sums of all that was seen."""
        need_samples(bool(self._seen), "ClassMoments")
        seen = snapshot(self._seen)
        total = seen["count"].unsqueeze(2) * seen["mean"]
        return ClassMomentsResult(
            count=seen["count"],
            sum=total,
            sum_sq=seen["deviations"] + total * seen["mean"],
            deviations=seen["deviations"],
        )

    def _start(self, units: int) -> None:
        cells = (self.classes, self.folds)
        self._seen = {
            "count": torch.zeros(cells, dtype=torch.float64),
            "mean": torch.zeros(*cells, units, dtype=torch.float64),
            "deviations": torch.zeros(*cells, units, dtype=torch.float64),
        }
