"""Wilcoxon's signed-rank interval: the Hodges-Lehmann estimate and the exact inversion of the test.

The statistic at x counts the Walsh averages (v_i + v_j) / 2, i <= j, above x, so the ordered averages are the ends of
the interval. References: Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3rd ed., section 3.2-3.3.
"""

import dataclasses as dc
import math
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy import special

from pellucid._checks import ConfigError, DataError

EXACT_UP_TO = 60
"""Above this many replicates the normal approximation with continuity correction takes over (error below 1e-3)."""

LARGEST = 3000


@dc.dataclass(frozen=True)
class SignedRank:
    """Median of the Walsh averages, exact up to 60 replicates."""

    values: Float[np.ndarray, " replicates"]
    method: str = "Wilcoxon signed rank, Hodges-Lehmann"

    @cached_property
    def _walsh(self) -> Float[np.ndarray, " averages"]:
        i, j = np.triu_indices(len(self.values))
        return np.sort((self.values[i] + self.values[j]) / 2)

    @cached_property
    def _cdf(self) -> Float[np.ndarray, " statistic"]:
        """P(T+ <= k) for k = 0 .. n(n+1)/2: counts of subsets of {1..n} by their sum."""
        n = len(self.values)
        if n > EXACT_UP_TO:
            centre, spread = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
            return special.ndtr((np.arange(n * (n + 1) // 2 + 1) + 0.5 - centre) / spread)
        ways = np.zeros(n * (n + 1) // 2 + 1)
        ways[0] = 1
        for rank in range(1, n + 1):
            ways[rank:] = ways[rank:] + ways[:-rank]
        return np.cumsum(ways) / 2.0**n

    @property
    def theta(self) -> float:
        """Hodges-Lehmann: the median Walsh average."""
        return float(np.median(self._walsh))

    def bounds(self, level: float) -> tuple[float, float]:
        """The widest pair of ordered Walsh averages that keeps the level; infinite when no pair does."""
        k = int(np.searchsorted(self._cdf, level * (1 + 1e-12), side="right"))
        if k == 0:
            return -math.inf, math.inf
        return float(self._walsh[k - 1]), float(self._walsh[-k])

    def p_above(self, x: float) -> float:
        """P(T+ as large as the number of averages above x)."""
        below = int(np.searchsorted(self._walsh, x, side="right"))
        return float(self._cdf[below])

    def p_below(self, x: float) -> float:
        """P(T+ as small as the number of averages above x)."""
        above = len(self._walsh) - int(np.searchsorted(self._walsh, x, side="left"))
        return float(self._cdf[above])


def signed_rank(values: Float[np.ndarray, " n"]) -> SignedRank:
    """Hodges-Lehmann estimate of paired differences that are symmetric about it."""
    if len(values) < 5:
        raise DataError(
            f"a signed-rank test of {len(values)} values cannot fall below p = {0.5 ** len(values):.3g}; use 't'"
        )
    if len(values) > LARGEST:
        raise ConfigError(
            f"{len(values)} values give too many pairs for signed ranks (at most {LARGEST}); use 't'"
        )
    return SignedRank(values)
