"""Betting e-values: evidence that may be looked at after every replicate.

Against H0 "mean <= m" a gambler stakes a predictable share lambda of the wealth on each value being above m:
    W_t = prod_i (1 + lambda_i (x_i - m)),  E[W_t] <= 1 under H0,
so P(some W_t >= 1 / alpha) <= alpha (Ville), whenever one stops. References: Waudby-Smith and Ramdas, JRSS B 2024
(predictable plug-in stakes, eq. 24-26); Wang and Ramdas, JRSS B 2022 (e-BH).
"""

import dataclasses as dc
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from pellucid._checks import DataError, check_range

TRUNCATION = 0.5
"""Largest share of what a single value could lose: wealth never falls by more than half in one step."""


def _stakes(unit: Float[np.ndarray, " n"], alpha: float) -> Float[np.ndarray, " n"]:
    """sqrt(2 log(1/alpha) / (var_{t-1} t log(1 + t))) on values in [0, 1]; uses the past only."""
    t = np.arange(1, len(unit) + 1)
    mean = (0.5 + np.cumsum(unit)) / (t + 1)
    var = (0.25 + np.cumsum((unit - mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], var[:-1]])
    return np.sqrt(2 * np.log(1 / alpha) / (before * t * np.log1p(t)))


def betting_wealth(
    values: Float[np.ndarray, " n"], mean: float, *, low: float, high: float, alpha: float = 0.05
) -> Float[np.ndarray, " n"]:
    """Wealth after each value of bets against "mean of the values <= `mean`"; an e-value at any stopping time.

    Args:
        values: in the order in which they came, each in [low, high].

    Raises:
        DataError: a value lies outside [low, high]: the bound was not one.
    """
    check_range(mean, low, high, "mean")
    _check_bounds(values, low, high)
    unit, m = (values - low) / (high - low), (mean - low) / (high - low)
    return np.exp(_log_wealth(unit, m, _stakes(unit, alpha)))


def _log_wealth(
    unit: Float[np.ndarray, " n"], m: float, stakes: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    if m > 0:
        stakes = np.minimum(stakes, TRUNCATION / m)
    return np.cumsum(np.log1p(stakes * (unit - m)))


def _check_bounds(values: Float[np.ndarray, " n"], low: float, high: float) -> None:
    outside = int(((values < low) | (values > high)).sum())
    if outside:
        raise DataError(f"{outside} of {len(values)} values lie outside the stated bounds [{low}, {high}]")


def e_bh(evalues: Float[np.ndarray, " claims"], *, alpha: float = 0.05) -> Bool[np.ndarray, " claims"]:
    """Which claims are discoveries at false discovery rate alpha, under any dependence: e-BH.

    The k largest e-values with the largest k such that the k-th is at least m / (alpha k).
    """
    m = len(evalues)
    order = np.argsort(-evalues, kind="stable")
    passed = np.flatnonzero(evalues[order] >= m / (alpha * np.arange(1, m + 1)))
    keep = np.zeros(m, dtype=bool)
    keep[order[: passed[-1] + 1 if len(passed) else 0]] = True
    return keep


@dc.dataclass(frozen=True)
class Betting:
    """Mean of bounded values with a confidence sequence: valid however often one looked before stopping."""

    values: Float[np.ndarray, " replicates"]
    low: float
    high: float
    alpha: float = 0.05
    method: str = "betting e-value (optional stopping allowed)"

    @property
    def theta(self) -> float:
        """Mean of the values."""
        return float(self.values.mean())

    def evalue_above(self, x: float) -> float:
        """Largest wealth ever reached against "theta <= x"."""
        unit, stakes = self._scaled
        m = min(max((x - self.low) / (self.high - self.low), 0.0), 1.0)
        return float(np.exp(_log_wealth(unit, m, stakes).max()))

    def evalue_below(self, x: float) -> float:
        """Largest wealth ever reached against "theta >= x"."""
        return self._mirrored.evalue_above(-x)

    @cached_property
    def _scaled(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        unit = (self.values - self.low) / (self.high - self.low)
        return unit, _stakes(unit, self.alpha)

    @cached_property
    def _mirrored(self) -> "Betting":
        return Betting(-self.values, -self.high, -self.low, self.alpha)

    def p_above(self, x: float) -> float:
        """1 / e-value, at most 1."""
        return min(1.0, 1 / max(self.evalue_above(x), 1.0)) if x >= self.low else 0.0

    def p_below(self, x: float) -> float:
        """1 / e-value, at most 1."""
        return min(1.0, 1 / max(self.evalue_below(x), 1.0)) if x <= self.high else 0.0

    def bounds(self, level: float) -> tuple[float, float]:
        """The means that no bet has ruined at `level`: wealth falls as the mean rises, so bisection finds the ends."""
        return self.lowest(level), -self._mirrored.lowest(level)

    def lowest(self, level: float) -> float:
        """The smallest mean that is not ruled out at `level`."""
        out, kept = self.low, self.theta
        if self.evalue_above(out) < 1 / level:
            return out
        for _ in range(40):
            middle = (out + kept) / 2
            if self.evalue_above(middle) >= 1 / level:
                out = middle
            else:
                kept = middle
        return out


def betting(values: Float[np.ndarray, " n"], *, bounds: tuple[float, ...], alpha: float) -> Betting:
    """Mean of values that cannot leave `bounds`, with an interval that survives optional stopping."""
    low, high = bounds
    _check_bounds(values, low, high)
    return Betting(values, low, high, alpha)
