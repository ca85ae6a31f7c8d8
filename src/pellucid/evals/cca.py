"""Canonical correlation of two layers: how much of one network's responses another one holds, in whatever basis.

    CCA = sum_i w_i rho_i / sum_i w_i,    w_i = sum over units u of |<h_i, x_u>|

with rho_i the canonical correlations and h_i the canonical variates of the first layer (projection weighting: what
explains more of the responses counts more).
"""

import dataclasses as dc
import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pellucid._checks import ConfigError, DataError, NumericError, check_range

VERSION = "1"
ROUNDING = 1e-10


@dc.dataclass(frozen=True)
class CCARatio:
    """Distance of treated networks from their baselines, in units of the distance between two baselines.

    `ratio` = mean (1 - CCA(treated_r, baseline_r)) / mean (1 - CCA(baseline_r, baseline_s)): about 1 means that
    treatment changed the layer as much as another start of training does; a pure rotation of the baseline gives 0.
    `ranks` says how many directions were compared; comparisons of few directions look close by themselves.
    """

    ratio: float
    treated: tuple[float, ...]
    between: tuple[float, ...]
    ranks: tuple[int, ...]
    version: str


def pwcca(
    first: Float[Tensor, "items units"], second: Float[Tensor, "other_items others"], *, keep: float = 0.99
) -> float:
    """Projection-weighted canonical correlation of two layers on the same items; 1 when one is a rotation of the other.

    Each layer is cut to the principal directions that hold `keep` of its variance, and both to equally many. In
    [0, 1]; weighted by the first layer, so not symmetric. With few items for each unit it is too high.

    Raises:
        DataError: different items, or no more items than directions.
        NumericError: NaN or infinity.

    References: Morcos, Raghu and Bengio, "Insights on representational similarity in neural networks with canonical
    correlation", NeurIPS 2018, section 2.
    """
    return _pwcca(_directions(first, keep), _directions(second, keep), first)[0]


def cca_ratio(
    treated: Sequence[Float[Tensor, "items units"]],
    baselines: Sequence[Float[Tensor, "items others"]],
    *,
    keep: float = 0.99,
) -> CCARatio:
    """How far a treatment moved a layer, against how far two untreated trainings are apart.

    Args:
        treated, baselines: responses to the same items, one entry a replicate, in the same order.

    Raises: as `pwcca`; ConfigError: not as many treated as baselines, or fewer than two.
    """
    if len(treated) != len(baselines) or len(baselines) < 2:
        raise ConfigError(
            f"a CCA ratio needs two or more replicates of both, got {len(treated)} treated, {len(baselines)} baselines"
        )
    there = [_directions(x, keep) for x in treated]
    base = [_directions(x, keep) for x in baselines]
    own = [_pwcca(a, b, x) for a, b, x in zip(there, base, treated, strict=True)]
    pairs = [
        _pwcca(base[i], base[j], baselines[i])[0] for i, j in itertools.permutations(range(len(base)), 2)
    ]
    moved, between = tuple(1 - value for value, _ in own), tuple(1 - value for value in pairs)
    middle = sum(between) / len(between)
    ratio = sum(moved) / len(moved) / middle if middle > 0 else float("nan")
    return CCARatio(ratio, moved, between, tuple(rank for _, rank in own), VERSION)


def _directions(x: Float[Tensor, "items units"], keep: float) -> Float64[Tensor, "items rank"]:
    """Orthonormal principal components over items that hold `keep` of the variance, largest first."""
    check_range(keep, 0.5, 1.0, "keep")
    if not bool(x.isfinite().all()):
        raise NumericError("responses hold NaN or infinity: leave such items out")
    centred = x.double() - x.double().mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    energy = values.square()
    total = float(energy.sum())
    if total <= ROUNDING * float(x.double().square().sum()):
        raise DataError("a layer's responses are constant: there is nothing to correlate")
    share = energy.cumsum(0) / total
    rank = min(int((share < keep - 1e-12).sum()) + 1, int((values > ROUNDING * values[0]).sum()))
    if len(x) <= rank + 1:
        raise DataError(f"CCA needs more items than directions, got {len(x)} items and {rank} directions")
    return left[:, :rank]


def _pwcca(
    a: Float64[Tensor, "items rank"],
    b: Float64[Tensor, "others_items other_rank"],
    x: Float[Tensor, "items units"],
) -> tuple[float, int]:
    if len(a) != len(b):
        raise DataError(f"CCA compares the same items, got {len(a)} and {len(b)}")
    rank = min(a.shape[1], b.shape[1])
    a, b = a[:, :rank], b[:, :rank]
    turned, rho, _ = torch.linalg.svd(a.T @ b)
    variates = a @ turned
    centred = x.double() - x.double().mean(0)
    weights = (variates.T @ centred).abs().sum(1)
    return float((weights * rho.clamp(0, 1)).sum() / weights.sum()), rank
