"""Estimates: a number with intervals at any level and the p-values that agree with them.

Every estimate answers three questions: its interval with one-sided level a at each boundary, the p-value of
"theta <= x" and that of "theta >= x". Interval and p-values are inversions of each other, so a verdict read from one
is the verdict read from the other.

References: Wilson, JASA 1927; Nadeau and Bengio, Machine Learning
2003 (corrected resampled t); Hesterberg, The American Statistician 2015 (expanded percentile interval).
"""

import dataclasses as dc
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy import special

from pellucid._checks import ConfigError, DataError


@runtime_checkable
class Estimate(Protocol):
    """A number and its uncertainty."""

    @property
    def theta(self) -> float:
        """The point estimate."""
        ...

    @property
    def values(self) -> Float[np.ndarray, " replicates"]:
        """The effect of each replicate."""
        ...

    @property
    def method(self) -> str:
        """Name of test and interval, for the card."""
        ...

    def bounds(self, level: float) -> tuple[float, float]:
        """(lo, hi), each missed with probability `level`: 0.05 gives the 90% interval."""
        ...

    def p_above(self, x: float) -> float:
        """P-value of theta <= x: small when theta is shown to lie above x."""
        ...

    def p_below(self, x: float) -> float:
        """P-value of theta >= x: small when theta is shown to lie below x."""
        ...


@dc.dataclass(frozen=True)
class Student:
    """A statistic with a standard error and Student's distribution (df = inf: normal).

    `lo_exact`, `hi_exact`: bounds for the case of zero standard error, as functions of the level.
    """

    theta: float
    se: float
    df: float
    values: Float[np.ndarray, " replicates"]
    method: str

    def bounds(self, level: float) -> tuple[float, float]:
        """theta -+ t(df, 1 - level) * se."""
        half = -float(special.stdtrit(self.df, level)) * self.se
        return self.theta - half, self.theta + half

    def p_above(self, x: float) -> float:
        """P(T >= (theta - x) / se)."""
        if self.se == 0:
            return 0.0 if self.theta > x else 1.0
        return float(special.stdtr(self.df, (x - self.theta) / self.se))

    def p_below(self, x: float) -> float:
        """P(T <= (theta - x) / se)."""
        if self.se == 0:
            return 0.0 if self.theta < x else 1.0
        return float(special.stdtr(self.df, (self.theta - x) / self.se))


def one_sample_t(values: Float[np.ndarray, " n"], *, method: str = "paired t") -> Student:
    """Student's t of the mean: se = s / sqrt(n), df = n - 1. On differences it is the paired t test."""
    n = len(values)
    if n < 2:
        raise DataError(f"a t interval needs at least 2 values, got {n}")
    return Student(
        float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n), float(n - 1), values, method
    )


def welch_t(treated: Float[np.ndarray, " n"], control: Float[np.ndarray, " m"]) -> Student:
    """Difference of two independent means, unequal variances, Satterthwaite's degrees of freedom."""
    n, m = len(treated), len(control)
    if min(n, m) < 2:
        raise DataError(f"two independent samples of at least 2 values are needed, got {n} and {m}")
    a, b = float(treated.var(ddof=1)) / n, float(control.var(ddof=1)) / m
    df = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1)) if a + b > 0 else float(n + m - 2)
    theta = float(treated.mean() - control.mean())
    return Student(theta, math.sqrt(a + b), df, treated - control.mean(), "Welch t")


def corrected_resampled_t(values: Float[np.ndarray, " n"], *, test_fraction: float) -> Student:
    """t for overlapping resamples of one data set: variance s^2 (1/n + n_test/n_train), df = n - 1."""
    plain = one_sample_t(values)
    spread = float(values.std(ddof=1))
    se = spread * math.sqrt(1 / len(values) + test_fraction)
    return dc.replace(plain, se=se, method="corrected resampled t")


@dc.dataclass(frozen=True)
class LogRatio:
    """A positive ratio of means with Student's interval for its logarithm.

    Squared distances are skewed and a low ratio comes with a low standard error, so that on the plain scale the upper
    bound fails too often (0.10 at 20 two-unit images, nominal 0.05; on the log scale 0.06).
    """

    theta: float
    se: float
    values: Float[np.ndarray, " replicates"]
    method: str = "ratio of means, t of its logarithm"

    def bounds(self, level: float) -> tuple[float, float]:
        """theta exp(-+ t(n-1, 1-level) se / theta); [0, 0] where nothing moved at all."""
        if self.theta == 0:
            return 0.0, 0.0
        half = -float(special.stdtrit(len(self.values) - 1, level)) * self.se / self.theta
        return self.theta * math.exp(-half), self.theta * math.exp(min(half, 700.0))

    def _statistic(self, x: float) -> float:
        if x <= 0 or self.theta == 0 or self.se == 0:
            gap = self.theta - x
            return math.copysign(math.inf, gap) if gap else 0.0
        return math.log(self.theta / x) * self.theta / self.se

    def p_above(self, x: float) -> float:
        """Student's upper tail of log(theta / x)."""
        return float(special.stdtr(len(self.values) - 1, -self._statistic(x)))

    def p_below(self, x: float) -> float:
        """Student's lower tail of log(theta / x)."""
        return float(special.stdtr(len(self.values) - 1, self._statistic(x)))


def ratio_of_means(
    numerator: Float[np.ndarray, " n"], denominator: Float[np.ndarray, " n"], *, influence: float = 1.0
) -> LogRatio:
    """mean(numerator) / mean(denominator) of values that are not negative, delta method over images.

    `influence` is 2 where the denominator averages over pairs of images, as each image then counts twice.
    """
    n, below = len(numerator), float(denominator.mean())
    if below <= 0:
        raise DataError(
            "the denominator of a ratio is 0: all images are represented identically (a dead layer?)"
        )
    theta = float(numerator.mean()) / below
    residual = (numerator - numerator.mean()) - influence * theta * (denominator - below)
    return LogRatio(theta, float(residual.std(ddof=1)) / (below * math.sqrt(n)), numerator / below)


@dc.dataclass(frozen=True)
class Wilson:
    """A rate minus a reference rate, with Wilson's score interval."""

    rate: float
    reference: float
    values: Float[np.ndarray, " replicates"]
    method: str = "Wilson score"

    @property
    def theta(self) -> float:
        """rate - reference."""
        return self.rate - self.reference

    def bounds(self, level: float) -> tuple[float, float]:
        """(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), minus the reference."""
        n, z = len(self.values), -float(special.ndtri(level))
        centre = self.rate + z * z / (2 * n)
        half = z * math.sqrt(self.rate * (1 - self.rate) / n + z * z / (4 * n * n))
        low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
        return low - self.reference, high - self.reference

    def _score(self, x: float) -> float:
        at = x + self.reference
        if not 0 < at < 1:
            return math.copysign(math.inf, 0.5 - at)
        return (self.rate - at) / math.sqrt(at * (1 - at) / len(self.values))

    def p_above(self, x: float) -> float:
        """Score test of rate <= x + reference."""
        return float(special.ndtr(-self._score(x)))

    def p_below(self, x: float) -> float:
        """Score test of rate >= x + reference."""
        return float(special.ndtr(self._score(x)))


def wilson(values: Float[np.ndarray, " n"], *, reference: float) -> Wilson:
    """Rate of ones among 0/1 values, minus `reference`.

    Raises:
        DataError: a value is neither 0 nor 1.
    """
    if not np.isin(values, (0.0, 1.0)).all():
        raise DataError("a Wilson interval is about a rate: every value must be 0 or 1")
    return Wilson(float(values.mean()), reference, values)


@dc.dataclass(frozen=True)
class Draws:
    """A bootstrap distribution over `units` top-level replicates, read with the expanded percentile interval.

    The plain percentile interval is too narrow by sqrt((n-1)/n) and uses normal quantiles; the level is changed to
    Phi(-sqrt(n / (n-1)) t(n-1, level)), which for Gaussian data gives the t interval.
    """

    theta: float
    draws: Float[np.ndarray, " draws"]
    units: int
    values: Float[np.ndarray, " replicates"]
    method: str

    @cached_property
    def _sorted(self) -> Float[np.ndarray, " draws"]:
        return np.sort(self.draws)

    @property
    def _stretch(self) -> float:
        return math.sqrt(self.units / (self.units - 1))

    def bounds(self, level: float) -> tuple[float, float]:
        """Expanded percentiles; the end of the distribution where the draws cannot resolve the level."""
        tail = float(special.ndtr(self._stretch * special.stdtrit(self.units - 1, level)))
        k = math.floor(tail * (len(self.draws) + 1)) - 1
        if k < 0:
            return -math.inf, math.inf
        return float(self._sorted[k]), float(self._sorted[-1 - k])

    def _p(self, extreme: int) -> float:
        tail = (1 + extreme) / (1 + len(self.draws))
        return float(special.stdtr(self.units - 1, special.ndtri(tail) / self._stretch)) if tail < 1 else 1.0

    def p_above(self, x: float) -> float:
        """Level at which the lower bound reaches x; never 0."""
        return self._p(int(np.searchsorted(self._sorted, x, side="right")))

    def p_below(self, x: float) -> float:
        """Level at which the upper bound reaches x; never 0."""
        return self._p(len(self.draws) - int(np.searchsorted(self._sorted, x, side="left")))


FEWEST_BOOTSTRAP = 6
"""A bootstrap of fewer replicates cannot reach beyond their extremes: with 3, the lower bound fails 1 time in 8."""


def bootstrap_mean(values: Float[np.ndarray, " n"], *, draws: int, rng: np.random.Generator) -> Draws:
    """Bootstrap of the mean over replicates."""
    n = len(values)
    _enough(n)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    return Draws(float(values.mean()), counts @ values / n, n, values, "bootstrap, expanded percentile")


def two_level_bootstrap(
    treated: Sequence[Float[np.ndarray, " _"]],
    control: Sequence[Float[np.ndarray, " _"]] | None,
    *,
    draws: int,
    rng: np.random.Generator,
) -> Draws:
    """Bootstrap of models, then of images within each drawn model; arms are paired by model.

    Where a model's two arms have equally many images they share the drawn images (paired), otherwise each arm is drawn
    on its own.
    """
    n = len(treated)
    _enough(n)
    arms = [(treated[i], None if control is None else control[i]) for i in range(n)]
    chosen = rng.integers(n, size=(draws, n))
    means = np.empty((draws, n))
    for i, (one, other) in enumerate(arms):
        where = chosen == i
        means[where] = _image_means(one, other, int(where.sum()), rng)
    values = np.array([one.mean() - (0.0 if other is None else other.mean()) for one, other in arms])
    return Draws(float(values.mean()), means.mean(axis=1), n, values, "bootstrap of models, then images")


def _image_means(
    one: Float[np.ndarray, " _"], other: Float[np.ndarray, " _"] | None, times: int, rng: np.random.Generator
) -> Float[np.ndarray, " times"]:
    """Means of `times` image bootstraps of one model's effect."""
    if other is not None and len(one) != len(other):
        return _image_means(one, None, times, rng) - _image_means(other, None, times, rng)
    effect = one if other is None else one - other
    size = len(effect)
    drawn, block = np.empty(times), max(1, 2**20 // size)  # at most 8 MB of indices at a time
    for start in range(0, times, block):
        stop = min(start + block, times)
        drawn[start:stop] = effect[rng.integers(size, size=(stop - start, size))].mean(axis=1)
    return drawn


def _enough(n: int) -> None:
    if n < FEWEST_BOOTSTRAP:
        raise ConfigError(
            f"a bootstrap over {n} replicates cannot reach beyond their extremes; use interval='t', or at least "
            f"{FEWEST_BOOTSTRAP} replicates"
        )


@dc.dataclass(frozen=True)
class Weakest:
    """The weakest of several parts that must all hold (intersection-union).

    Supporting all needs no correction: p_above is the largest. Refuting one of k parts does: p_below is k times the
    smallest, and the upper bound is the smallest upper bound at level / k.
    """

    parts: tuple[Estimate, ...]

    @property
    def weakest(self) -> Estimate:
        """The part with the smallest point estimate."""
        return min(self.parts, key=lambda part: part.theta)

    @property
    def theta(self) -> float:
        """Smallest point estimate."""
        return self.weakest.theta

    @property
    def values(self) -> Float[np.ndarray, " replicates"]:
        """Values of the weakest part."""
        return self.weakest.values

    @property
    def method(self) -> str:
        """The parts' method and how they are joined."""
        many = len(self.parts)
        return self.weakest.method + (f", weakest of {many} (intersection-union)" if many > 1 else "")

    def bounds(self, level: float) -> tuple[float, float]:
        """Smallest lower bound at `level`, smallest upper bound at level / k."""
        k = len(self.parts)
        lows, highs = zip(*((p.bounds(level)[0], p.bounds(level / k)[1]) for p in self.parts), strict=True)
        return min(lows), min(highs)

    def p_above(self, x: float) -> float:
        """Largest p-value of the parts."""
        return max(part.p_above(x) for part in self.parts)

    def p_below(self, x: float) -> float:
        """k times the smallest p-value of the parts, at most 1."""
        return min(1.0, len(self.parts) * min(part.p_below(x) for part in self.parts))
