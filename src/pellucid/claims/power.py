"""Power, computed before the confirmation data are opened.

Closed forms are Student's; the planning formulas add 1.35 replicates for the estimated spread. The pilot spread comes
from exploration replicates only. References: section numbers in docs/claims.md; Hanley and McNeil, Radiology 1982.
"""

import dataclasses as dc
import math

import numpy as np
from scipy import special

from pellucid._checks import check_range
from pellucid.claims.claim import Claim

ENOUGH = 0.8
"""Below this a card says "underpowered"."""

FOR_ESTIMATED_SPREAD = 1.35


@dc.dataclass(frozen=True)
class Power:
    """Probability of `supported` if the effect is `at`, for n replicates of the given spread."""

    value: float
    at: float
    n: int
    sd: float

    @property
    def underpowered(self) -> bool:
        """Less than 0.8."""
        return self.value < ENOUGH


def power_exceeds(
    n: int, *, sd: float, delta: float, theta: float | None = None, level: float = 0.05
) -> float:
    """P(lower bound > delta) of the t interval at theta (2 delta unless given): noncentral t tail."""
    check_range(sd, 1e-300, math.inf, "sd")
    shift = ((2 * delta if theta is None else theta) - delta) * math.sqrt(n) / sd
    critical = -float(special.stdtrit(n - 1, level))
    return _power_above(critical, shift, n)


def _power_above(critical: float, shift: float, n: int) -> float:
    """P(noncentral t > critical), by averaging the normal tail over the chi distribution of the spread."""
    ratio, weight = _spread_grid(n)
    return float((special.ndtr(shift - critical * ratio) * weight).sum())


def _spread_grid(n: int, points: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Equal-probability values of s / sigma for n replicates, and their weights."""
    middle = (np.arange(points) + 0.5) / points
    return np.sqrt(special.chdtri(n - 1, 1 - middle) / (n - 1)), np.full(points, 1 / points)


def power_equivalent(n: int, *, sd: float, delta: float, theta: float = 0.0, level: float = 0.05) -> float:
    """P(-delta < lo and hi < delta) of the t interval at theta, averaged over the spread's distribution."""
    check_range(sd, 1e-300, math.inf, "sd")
    ratio, weight = _spread_grid(n)
    room = delta * math.sqrt(n) / sd + special.stdtrit(n - 1, level) * ratio
    shift = theta * math.sqrt(n) / sd
    inside = special.ndtr(room - shift) - special.ndtr(-room - shift)
    return float((np.where(room > 0, inside, 0.0) * weight).sum())


def replicates_exceeds(sd: float, delta: float, *, level: float = 0.05, power: float = ENOUGH) -> float:
    """((z_{1-level} + z_power) sd / delta)^2 + 1.35 replicates for `exceeds` at theta = 2 delta; one too few below 5."""
    z = -float(special.ndtri(level)) + float(special.ndtri(power))
    return (z * sd / delta) ** 2 + FOR_ESTIMATED_SPREAD


def replicates_equivalent(sd: float, delta: float, *, level: float = 0.05, power: float = ENOUGH) -> float:
    """((z_{1-level} + z_{1-(1-power)/2}) sd / delta)^2 + 1.35 replicates for `equivalent` at theta = 0."""
    z = -float(special.ndtri(level)) - float(special.ndtri((1 - power) / 2))
    return (z * sd / delta) ** 2 + FOR_ESTIMATED_SPREAD


def images_for_difference(
    discordance: float, difference: float, *, level: float = 0.05, power: float = ENOUGH
) -> int:
    """Images that show a paired accuracy difference of one checkpoint: (z + z)^2 d / difference^2, 6.2 d / D^2."""
    z = -float(special.ndtri(level)) + float(special.ndtri(power))
    return math.ceil(z * z * discordance / difference**2)


def auroc_error(auroc: float, present: int, absent: int) -> float:
    """Hanley-McNeil standard error of an AUROC, for planning; analysis uses DeLong."""
    check_range(auroc, 0.0, 1.0, "auroc")
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (present - 1) * (q1 - auroc**2) + (absent - 1) * (q2 - auroc**2)
    return math.sqrt(variance / (present * absent))


def power_before(claim: Claim) -> Power | None:
    """Power of the planned analysis at theta = 2 delta (0 for `equivalent`), or None without pilot spread and counts.

    DeLong needs no pilot: half of the images on each side, AUROC at most 0.99.
    """
    plan, level = claim.analysis, claim.analysis.level
    n = plan.images if claim.scope.level == "checkpoint" else plan.models
    if n < 2:
        return None
    if plan.interval == "delong":
        return _auroc_power(claim, n, level)
    if plan.sd == 0:
        return None
    if claim.kind == "equivalent":
        return Power(power_equivalent(n, sd=plan.sd, delta=claim.delta, level=level), 0.0, n, plan.sd)
    return Power(power_exceeds(n, sd=plan.sd, delta=claim.delta, level=level), 2 * claim.delta, n, plan.sd)


def _auroc_power(claim: Claim, n: int, level: float) -> Power:
    z, half = -float(special.ndtri(level)), max(2, n // 2)
    if claim.kind == "equivalent":
        error = auroc_error(0.5, half, half)
        value = max(0.0, 2 * float(special.ndtr(claim.delta / error - z)) - 1)
        return Power(value, 0.0, n, error)
    at = min(2 * claim.delta, 0.49)
    error = auroc_error(0.5 + at, half, half)
    return Power(float(special.ndtr((at - claim.delta) / error - z)), at, n, error)
