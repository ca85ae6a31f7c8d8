"""`class_selectivity`: everything about the selectivity of one layer's units that streamed moments can tell."""

import dataclasses as dc

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from pellucid._checks import ConfigError, DataError, NumericError, check_range
from pellucid.methods.selectivity.baseline import permuted_index
from pellucid.methods.selectivity.crossfit import crossfit_error, crossfit_index
from pellucid.methods.selectivity.index import (
    EPS,
    SILENT,
    Policy,
    check_not_negative,
    offset_free_index,
    selectivity_index,
    through,
    with_slope,
)
from pellucid.methods.selectivity.interval import filled, influence, quantile, unit_error
from pellucid.methods.selectivity.spread import Spread, d_prime, spread
from pellucid.stats import ClassMomentsResult

VERSION = "1"

# Entries of one temporary, classes x folds x units: 8 MB in float64. Units are taken in chunks of this size.
CHUNK = 1 << 20
NUMBERS = ("si", "si_lo", "si_hi", "si_cf", "si_cf_lo", "si_cf_hi", "si_off", "d_prime", "eta2")


@dc.dataclass(frozen=True)
class Selectivity:
    """Class selectivity of the units of one layer.

    Per unit: `si` the raw index with its interval `si_lo`, `si_hi`; `si_cf` the cross-fitted index, the one to
    quote, with `si_cf_lo`, `si_cf_hi`; `si_perm` the index expected under permuted labels; `si_off` the offset-free
    index; `d_prime` of the preferred class against the rest (infinite for a separation without any spread);
    `eta2` the share of variance between classes; `top_class` the preferred class (-1 for a dead unit); `dead`.
    Every number of a dead unit is NaN; with fewer than two classes all indices are NaN.

    `si_influence`, `si_cf_influence`: by class and fold, for intervals of means over living units (`layer_selectivity`).
    """

    si: Float64[Tensor, " units"]
    si_lo: Float64[Tensor, " units"]
    si_hi: Float64[Tensor, " units"]
    si_cf: Float64[Tensor, " units"]
    si_cf_lo: Float64[Tensor, " units"]
    si_cf_hi: Float64[Tensor, " units"]
    si_perm: Float64[Tensor, " units"]
    si_off: Float64[Tensor, " units"]
    d_prime: Float64[Tensor, " units"]
    eta2: Float64[Tensor, " units"]
    top_class: Int64[Tensor, " units"]
    dead: Bool[Tensor, " units"]
    count: Float64[Tensor, "classes folds"]
    si_influence: Float64[Tensor, "classes folds"]
    si_cf_influence: Float64[Tensor, "classes folds"]
    level: float
    policy: str
    version: str

    @property
    def units(self) -> int:
        """Number of units, dead ones included."""
        return len(self.si)

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.count.sum())

    @property
    def classes_present(self) -> int:
        """Number of classes that have samples; the others are left out of every mean."""
        return int((self.count.sum(1) > 0).sum())

    @property
    def si_dead_zero(self) -> Float64[Tensor, " units"]:
        """The raw index with dead units at 0, as the bare formula gives it."""
        return torch.where(self.dead, 0.0, self.si)


def class_selectivity(
    moments: ClassMomentsResult,
    *,
    negative: Policy | None = None,
    splits: int = 10,
    draws: int = 400,
    level: float = 0.95,
    eps: float = EPS,
    seed: int = 0,
) -> Selectivity:
    """Measure the class selectivity of each unit of one layer.

    SI = (m_max - m_rest) / (m_max + m_rest + eps): m_max the largest class mean, m_rest the unweighted mean of the
    others, over the classes that have samples. Beside it the cross-fitted index (`crossfit_index`), the index under
    permuted labels (`permuted_index`), the offset-free index (`offset_free_index`), and

    d' = (m_b - m_rest) / sqrt((var_b + var_rest) / 2), b the preferred class and var_rest the variance of the other
    classes taken together with equal weight; eta^2 = variance between classes / total variance, in [0, 1].

    Intervals are over samples, for this network: index +- z x standard error (first order in the class means),
    cut to the range of the index.

    Args:
        moments: of the responses after the nonlinearity, in at least two folds.
        negative: what to do with negative class means: `rectify`, `absolute`, `shift_min` or your own function. Its
            name is kept in the result. None raises where there are some.
        splits: ways to halve the folds for the cross-fitted index (two folds have one).
        draws: simulated permutations.
        level: of the intervals.

    Raises:
        DataError: negative class means without a policy, or no samples.
        ConfigError: fewer than two folds, or settings out of range.
        NumericError: the moments hold NaN or infinity.

    References: Leavitt and Morcos, "Selectivity considered harmful", ICLR 2021, section on the selectivity index.
    """
    check_range(level, 0.5, 0.9999, "level")
    if splits < 1 or draws < 200:
        raise ConfigError(f"selectivity needs splits >= 1 and draws >= 200, got {splits} and {draws}")
    _check_moments(moments)
    count, total = moments.count, moments.sum
    check_not_negative(total, negative)
    settings = _Settings((count.sum(1) > 0).nonzero().flatten(), negative, splits, level, eps, seed)
    width = max(1, CHUNK // count.numel())
    starts = range(0, max(total.shape[2], 1), width)
    parts = [_part(_units(moments, slice(start, start + width)), settings) for start in starts]
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
    dead, mean, var = columns["dead"], columns.pop("mean"), columns.pop("var")
    columns["si_perm"] = torch.full_like(mean, float("nan"))
    if len(settings.present) > 1:
        counts = count.sum(1)[settings.present]
        baseline = permuted_index(mean, var, counts, policy=negative, draws=draws, seed=seed)
        columns["si_perm"] = torch.where(dead, float("nan"), baseline)
    living = (~dead).sum().clamp_min(1)
    return Selectivity(
        **columns,
        count=count,
        si_influence=torch.stack([part.si_influence for part in parts]).sum(0) / living,
        si_cf_influence=torch.stack([part.si_cf_influence for part in parts]).sum(0) / living,
        level=level,
        policy="none" if negative is None else getattr(negative, "__name__", repr(negative)),
        version=VERSION,
    )


def _check_moments(moments: ClassMomentsResult) -> None:
    if moments.count.shape[1] < 2:
        raise ConfigError("selectivity needs moments in at least 2 folds: ClassMoments(classes, folds=10)")
    if not (moments.sum.isfinite().all() and moments.sum_sq.isfinite().all()):
        raise NumericError("the class moments hold NaN or infinity: record with such samples left out")
    if moments.n == 0:
        raise DataError("no labelled sample in these moments: selectivity has nothing to measure")


@dc.dataclass(frozen=True)
class _Settings:
    present: Int64[Tensor, " present"]
    policy: Policy | None
    splits: int
    level: float
    eps: float
    seed: int


@dc.dataclass(frozen=True)
class _Part:
    """Some of the units: columns by unit, and influences summed over living units."""

    columns: dict[str, Tensor]
    si_influence: Float64[Tensor, "classes folds"]
    si_cf_influence: Float64[Tensor, "classes folds"]


def _units(moments: ClassMomentsResult, some: slice) -> ClassMomentsResult:
    deviations = None if moments.deviations is None else moments.deviations[:, :, some]
    return ClassMomentsResult(moments.count, moments.sum[:, :, some], moments.sum_sq[:, :, some], deviations)


def _part(moments: ClassMomentsResult, settings: _Settings) -> _Part:
    present = settings.present
    influences = torch.zeros(2, *moments.count.shape, dtype=torch.float64)
    count, total = moments.count[present], moments.sum[present]
    found = spread(count.sum(1), moments.mean[present], moments.var[present])
    dead = found.means.abs().amax(0) < SILENT
    numbers: dict[str, Tensor] = dict.fromkeys(NUMBERS, torch.full_like(found.mean, float("nan")))
    if len(present) > 1:
        measured, slopes = _indices(count, total, found, settings)
        numbers |= measured
        for row, slope in enumerate(slopes):
            influences[row, present] = influence(slope * ~dead, count, total)
    columns = {name: torch.where(dead, float("nan"), column) for name, column in numbers.items()}
    preferred = through(settings.policy, found.means).argmax(0)
    columns |= {"dead": dead, "top_class": torch.where(dead, -1, present[preferred])}
    columns |= {"mean": found.mean, "var": found.var}
    return _Part(columns, influences[0], influences[1])


def _indices(
    count: Float64[Tensor, "classes folds"],
    total: Float64[Tensor, "classes folds units"],
    found: Spread,
    settings: _Settings,
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """The numbers of each unit, and the slopes that carry its errors in the raw and the cross-fitted index."""
    policy, eps, seed = settings.policy, settings.eps, settings.seed
    counts, means = count.sum(1), found.means
    si, slope = with_slope(lambda values: selectivity_index(through(policy, values), eps=eps), means)
    si_cf = crossfit_index(count, total, policy=policy, splits=settings.splits, eps=eps, seed=seed)
    variance = filled(found.within) / counts[:, None]
    error = unit_error(slope, variance)
    error_cf = crossfit_error(means, variance, policy=policy, eps=eps, seed=seed)
    reach, reach_cf = quantile(settings.level) * error, quantile(settings.level) * error_cf
    preferred = through(policy, means).argmax(0)
    numbers = {
        "si": si.clamp(0, 1),
        "si_lo": (si - reach).clamp(0, 1),
        "si_hi": (si + reach).clamp(0, 1),
        "si_cf": si_cf,
        "si_cf_lo": (si_cf - reach_cf).clamp(-1, 1),
        "si_cf_hi": (si_cf + reach_cf).clamp(-1, 1),
        "si_off": offset_free_index(means, eps=eps),
        "d_prime": d_prime(means, found.within, preferred),
        "eta2": found.eta2,
    }
    # What units share of their errors is known along the raw slope; the cross-fitted index shares it in proportion.
    ratio = torch.where(error > 0, error_cf / torch.where(error > 0, error, 1.0), 0.0)
    return numbers, (slope, slope * ratio)
