"""AUROC of a unit for a concept: DeLong's interval, complete separation, and the difference of two AUROCs.

Reference: DeLong, DeLong and Clarke-Pearson, Biometrics 1988.
"""

import dataclasses as dc
import math

import numpy as np
from jaxtyping import Bool, Float

from pellucid._checks import DataError
from pellucid.claims.estimate import Student


def auroc(present: Float[np.ndarray, " n"], absent: Float[np.ndarray, " m"]) -> float:
    """P(present > absent) + P(equal) / 2, from ranks."""
    from scipy.stats import rankdata

    n, m = len(present), len(absent)
    ranks = rankdata(np.concatenate([present, absent]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


@dc.dataclass(frozen=True)
class Separated:
    """AUROC - 1/2 of complete separation, where DeLong's variance is 0 and says nothing.

    min(n, m) disjoint pairs are independent trials that all succeeded, so theta's far bound is Clopper-Pearson's:
    AUROC >= level^(1 / pairs).
    """

    theta: float
    pairs: int
    values: Float[np.ndarray, " replicates"]
    method: str = "DeLong (complete separation: Clopper-Pearson over disjoint pairs)"

    def bounds(self, level: float) -> tuple[float, float]:
        """[level^(1/pairs) - 1/2, 1/2], mirrored when every absent image scores higher."""
        far = level ** (1 / self.pairs) - 0.5
        return (far, 0.5) if self.theta > 0 else (-0.5, -far)

    def p_above(self, x: float) -> float:
        """(x + 1/2)^pairs for the upper end."""
        if self.theta > 0:
            return min(1.0, max(0.0, x + 0.5) ** self.pairs)
        return 1.0 if x >= -0.5 else 0.0

    def p_below(self, x: float) -> float:
        """(1/2 - x)^pairs for the lower end."""
        if self.theta < 0:
            return min(1.0, max(0.0, 0.5 - x) ** self.pairs)
        return 1.0 if x <= 0.5 else 0.0


def delong(present: Float[np.ndarray, " n"], absent: Float[np.ndarray, " m"]) -> Student | Separated:
    """AUROC - 1/2 with DeLong's variance: var(V10)/n + var(V01)/m over the placements of each image."""
    from scipy.stats import rankdata

    n, m = len(present), len(absent)
    if min(n, m) < 2:
        raise DataError(f"an AUROC needs at least 2 images with and 2 without, got {n} and {m}")
    ranks = rankdata(np.concatenate([present, absent]))
    with_, without = ranks[:n], ranks[n:]
    v10 = (with_ - rankdata(present)) / m
    v01 = 1 - (without - rankdata(absent)) / n
    theta = float(v10.mean()) - 0.5
    variance = float(v10.var(ddof=1)) / n + float(v01.var(ddof=1)) / m
    if variance == 0 and abs(theta) == 0.5:
        return Separated(theta, min(n, m), v10 - 0.5)
    return Student(theta, math.sqrt(variance), math.inf, v10 - 0.5, "DeLong")


def auroc_difference(
    responses: Float[np.ndarray, " images"],
    concept: Bool[np.ndarray, " images"],
    other: Bool[np.ndarray, " images"],
) -> Student:
    """AUROC for one concept minus AUROC for another on the same images, from the influence of each image.

    An image with the concept moves its AUROC by (V10 - A) / p, one without by (V01 - A) / (1 - p).
    """
    first, second = _influence(responses, concept), _influence(responses, other)
    theta, moves = first[0] - second[0], first[1] - second[1]
    se = float(moves.std(ddof=1)) / math.sqrt(len(moves))
    return Student(theta, se, math.inf, theta + moves, "difference of two AUROCs on the same images")


def _influence(
    responses: Float[np.ndarray, " images"], concept: Bool[np.ndarray, " images"]
) -> tuple[float, Float[np.ndarray, " images"]]:
    share = float(concept.mean())
    if share in (0.0, 1.0):
        raise DataError("a concept must be present on some images and absent on others")
    found = delong(responses[concept], responses[~concept])
    v10, v01 = found.values + 0.5, 0.5 - delong(responses[~concept], responses[concept]).values
    area = found.theta + 0.5
    moves = np.empty(len(responses))
    moves[concept], moves[~concept] = (v10 - area) / share, (v01 - area) / (1 - share)
    return area, moves
