"""Families of claims: adjusted p-values, and the level at which each claim's interval is read.

Headline claims control the familywise error (Holm, Dunnett, max-T in `nulls`), screening lists the false discovery
rate (Benjamini-Hochberg, Benjamini-Yekutieli). References: Holm 1979; Benjamini and Hochberg 1995; Benjamini and
Yekutieli 2001, 2005 (intervals after selection); Dunnett 1955.
"""

import dataclasses as dc
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from pellucid.rng import stream

Correction = Literal["holm", "bh", "by"]


def holm(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Adjusted p-values: running maximum of (m - i) p_(i) over the sorted p-values, at most 1."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return adjusted


def holm_levels(p: Float[np.ndarray, " tests"], *, alpha: float = 0.05) -> Float[np.ndarray, " tests"]:
    """The level at which Holm's procedure tests each hypothesis: alpha / (m - i) down to the first that fails."""
    m, order = len(p), np.argsort(p, kind="stable")
    steps = alpha / (m - np.arange(m))
    failed = np.flatnonzero(p[order] > steps)
    if len(failed):
        steps[failed[0] :] = steps[failed[0]]
    levels = np.empty(m)
    levels[order] = steps
    return levels


def benjamini_hochberg(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Adjusted p-values for false discovery rate under independence or positive dependence."""
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p, method="bh"))


def benjamini_yekutieli(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Adjusted p-values for false discovery rate under any dependence."""
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p, method="by"))


def harmonic(tests: int) -> float:
    """1 + 1/2 + ... + 1/m: what Benjamini-Yekutieli pays for allowing any dependence."""
    return float(np.sum(1 / np.arange(1, tests + 1)))


def selection_levels(
    adjusted: Float[np.ndarray, " tests"], *, alpha: float = 0.05, penalty: float = 1.0
) -> Float[np.ndarray, " tests"]:
    """One common level alpha R / (m penalty), R rejections, that keeps the false coverage rate of selected intervals.

    It rejects exactly what the adjusted p-values reject.

    Args:
        penalty: 1 for Benjamini-Hochberg, `harmonic(m)` for Benjamini-Yekutieli.
    """
    m, rejected = len(adjusted), int((adjusted <= alpha).sum())
    return np.full(m, alpha * max(rejected, 1) / (m * penalty))


@dc.dataclass(frozen=True)
class ManyToOne:
    """Arms against one common control: differences, simultaneous interval, adjusted p-values, by arm."""

    arms: tuple[str, ...]
    difference: Float[np.ndarray, " arms"]
    lo: Float[np.ndarray, " arms"]
    hi: Float[np.ndarray, " arms"]
    p: Float[np.ndarray, " arms"]


def dunnett(
    arms: Mapping[str, Float[np.ndarray, " _"]],
    control: Float[np.ndarray, " n"],
    *,
    level: float = 0.05,
    seed: int = 0,
) -> ManyToOne:
    """Dunnett's many-to-one comparison of independent arms with a control, two-sided p, interval at 1 - 2 level."""
    from scipy import stats

    result = stats.dunnett(*arms.values(), control=control, rng=stream(seed, "dunnett"))
    interval = result.confidence_interval(confidence_level=1 - 2 * level)
    difference = np.array([float(arm.mean() - control.mean()) for arm in arms.values()])
    low, high = np.asarray(interval.low, dtype=float), np.asarray(interval.high, dtype=float)
    return ManyToOne(tuple(arms), difference, low, high, np.asarray(result.pvalue, dtype=float))
