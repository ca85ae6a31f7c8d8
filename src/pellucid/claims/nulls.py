"""Null worlds: what the statistic looks like where the claim is false, and when it has been beaten.

With few worlds "z above 1.645" is wrong 10% of the time for J = 5 and 20% for J = 2; the prediction interval and the
rank keep the level. References: Phipson and Smyth, SAGMB 2010 (permutation p-values are never zero); Westfall and
Young, Resampling-Based Multiple Testing, 1993 (max-T).
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from pellucid._checks import ConfigError, DataError, check_range
from pellucid.rng import derive, stream


def prediction_threshold(worlds: Float[np.ndarray, " worlds"], *, level: float = 0.05) -> float:
    """mean + t(J-1, 1-level) sd sqrt(1 + 1/J): exceeded by one more Gaussian world with probability `level`."""
    count = _at_least_two(worlds)
    widen = prediction_factor(count, level=level)
    return float(worlds.mean()) + widen * float(worlds.std(ddof=1))


def prediction_factor(worlds: int, *, level: float = 0.05) -> float:
    """How many sd above the mean of J worlds the threshold lies: 2.34 for J = 5, 1.87 for J = 12."""
    return -float(special.stdtrit(worlds - 1, level)) * math.sqrt(1 + 1 / worlds)


def prediction_p(x: float, worlds: Float[np.ndarray, " worlds"]) -> float:
    """P-value of x as one more world: Student's tail of (x - mean) / (sd sqrt(1 + 1/J)), df = J - 1."""
    count = _at_least_two(worlds)
    spread = float(worlds.std(ddof=1)) * math.sqrt(1 + 1 / count)
    if spread == 0:
        raise DataError(
            "the null worlds do not vary, so they are copies of one world; give each its own seed"
        )
    return float(special.stdtr(count - 1, (float(worlds.mean()) - x) / spread))


def rank_p(x: float, worlds: Float[np.ndarray, " worlds"]) -> float:
    """(1 + number of worlds >= x) / (J + 1): for any distribution; cannot fall below 1 / (J + 1)."""
    _at_least_two(worlds)
    near = 1e-12 * max(1.0, abs(x))  # equal sums in another order must count as equal
    return (1 + int((worlds >= x - near).sum())) / (len(worlds) + 1)


permutation_p = rank_p
"""p = (1 + b) / (1 + B): a permutation is a world."""


def smallest_p(worlds: int) -> float:
    """The smallest p-value that `worlds` worlds or permutations can give."""
    return 1 / (worlds + 1)


def worlds_needed(level: float = 0.05) -> int:
    """Fewest worlds whose rank can reach `level`: 19 for 0.05."""
    check_range(level, 1e-9, 1.0, "level")
    return math.ceil(round(1 / level, 9)) - 1


def permutations_needed(tests: int, *, alpha: float = 0.05) -> int:
    """20 m / alpha permutations, so that Holm over m tests is not decided by Monte-Carlo error."""
    return math.ceil(20 * tests / alpha)


def search_inside(
    statistic: Callable[[int], Float[np.ndarray, "..."]], *, worlds: int, seed: int
) -> Float[np.ndarray, " worlds"]:
    """The best of many statistics in each null world, searched anew: what "the best unit" must be compared with.

    Args:
        statistic: from a world's seed to the statistics of all candidates (units, layers, labels) in that world.
    """
    if worlds < 2:
        raise ConfigError(f"at least 2 null worlds are needed, got {worlds}")
    return np.array([float(np.max(statistic(derive(seed, "world", j)))) for j in range(worlds)])


def max_t(
    observed: Float[np.ndarray, " tests"], worlds: Float[np.ndarray, "worlds candidates"]
) -> Float[np.ndarray, " tests"]:
    """Step-down max-T adjusted p-values (Westfall-Young) of one-sided statistics and their joint null worlds.

    The k-th largest statistic is compared with the maximum over the tests not yet rejected; monotone, never 0.
    """
    if worlds.shape[1] != len(observed):
        raise DataError(f"null worlds have {worlds.shape[1]} tests, observed {len(observed)}")
    order = np.argsort(-observed, kind="stable")
    largest = np.maximum.accumulate(worlds[:, order][:, ::-1], axis=1)[:, ::-1]
    p = (1 + (largest >= observed[order]).sum(axis=0)) / (1 + len(worlds))
    adjusted = np.empty(len(observed))
    adjusted[order] = np.maximum.accumulate(p)
    return adjusted


def permuted_auroc_worlds(
    responses: Float[np.ndarray, "images units"],
    concepts: Int[np.ndarray, "images concepts"],
    *,
    worlds: int,
    seed: int,
    strata: Int[np.ndarray, " images"] | None = None,
) -> Float[np.ndarray, "worlds units concepts"]:
    """AUROC - 1/2 of every unit for every concept in worlds where the labels are permuted (within strata).

    The maximum over the last two axes is the null of "the best unit for the best label".
    """
    from scipy.stats import rankdata

    n = len(responses)
    ranks = rankdata(responses, axis=0).T
    positives = concepts.sum(axis=0)
    if (positives == 0).any() or (positives == n).any():
        raise DataError("every concept must be present on some images and absent on others")
    groups = np.zeros(n, dtype=int) if strata is None else strata
    random, result = stream(seed, "permuted labels"), np.empty((worlds, len(ranks), concepts.shape[1]))
    for j in range(worlds):
        order = np.lexsort((random.random(n), groups))  # a random order inside each stratum
        shuffled = np.empty_like(concepts)
        shuffled[np.argsort(groups, kind="stable")] = concepts[order]
        above = ranks @ shuffled - positives * (positives + 1) / 2
        result[j] = above / (positives * (n - positives)) - 0.5
    return result


def matched_sets(
    norms: Float[np.ndarray, " units"],
    chosen: Int[np.ndarray, " size"],
    *,
    worlds: int,
    seed: int,
    pool: int = 10,
) -> Int[np.ndarray, "worlds size"]:
    """Random sets of units as large as `chosen`, each unit replaced by one of the `pool` nearest in activation norm.

    No set repeats a unit or holds a chosen one. Raises `ConfigError` where too few other units exist.
    """
    others = np.setdiff1d(np.arange(len(norms)), chosen)
    if len(others) < 2 * len(chosen):
        raise ConfigError(
            f"{len(chosen)} chosen of {len(norms)} units leave {len(others)} to draw random sets from; at least "
            f"{2 * len(chosen)} are needed"
        )
    random, result = stream(seed, "matched sets"), np.empty((worlds, len(chosen)), dtype=int)
    nearest = [others[np.argsort(np.abs(norms[others] - norms[unit]), kind="stable")] for unit in chosen]
    for j in range(worlds):
        taken: set[int] = set()
        for k in random.permutation(len(chosen)):
            free = [int(unit) for unit in nearest[k] if int(unit) not in taken][:pool]
            result[j, k] = free[int(random.integers(len(free)))]
            taken.add(int(result[j, k]))
    return result


def _at_least_two(worlds: Float[np.ndarray, " worlds"]) -> int:
    if len(worlds) < 2:
        raise DataError(f"at least 2 null worlds are needed, got {len(worlds)}")
    return len(worlds)
