"""What class means are compared with: variances within and between classes, d' and eta squared."""

import dataclasses as dc

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pellucid.methods.selectivity.interval import filled

# A variance below this share of the squared mean is rounding: float32 responses carry up to 1e-14.
ROUNDING = 1e-12


@dc.dataclass(frozen=True)
class Spread:
    """Spread of each unit over samples whose classes are all present.

    `means` by class; `mean` and `var` (divisor N) over all samples; `within` the variance inside each class (divisor n_c - 1, NaN for
    a class with one sample); `eta2` = variance between classes / total variance, 0 for a constant unit.
    """

    means: Float64[Tensor, "classes units"]
    mean: Float64[Tensor, " units"]
    var: Float64[Tensor, " units"]
    within: Float64[Tensor, "classes units"]
    eta2: Float64[Tensor, " units"]


def spread(
    counts: Float64[Tensor, " classes"],
    means: Float64[Tensor, "classes units"],
    within: Float64[Tensor, "classes units"],
) -> Spread:
    """Spread from the counts, means and variances of classes."""
    n = counts[:, None]
    within = torch.where(within < ROUNDING * means.square(), 0.0, within)
    overall = (n * means).sum(0) / counts.sum()
    between = (n * (means - overall).square()).sum(0)
    whole = ((n - 1) * within.nan_to_num()).sum(0) + between
    constant = whole <= ROUNDING * (n * means.square()).sum(0)
    return Spread(
        means=means,
        mean=overall,
        var=torch.where(constant, 0.0, whole / counts.sum()),
        within=within,
        eta2=torch.where(constant, 0.0, between / torch.where(constant, 1.0, whole)),
    )


def d_prime(
    means: Float64[Tensor, "classes units"],
    within: Float64[Tensor, "classes units"],
    preferred: Int64[Tensor, " units"],
) -> Float64[Tensor, " units"]:
    """Distance of the preferred class from the rest in standard deviations.

    d' = (m_b - m_rest) / sqrt((var_b + var_rest) / 2). The rest is the mixture of the other classes with equal
    weight: var_rest = mean over them of var_c + (m_c - m_rest)^2. 0 for a constant unit, infinite where the classes
    stand apart without any spread.
    """
    others = means.shape[0] - 1
    within = filled(within)
    best = means.gather(0, preferred[None])[0]
    rest = (means.sum(0) - best) / others
    apart = within + (means - rest).square()
    var_best = within.gather(0, preferred[None])[0]
    var_rest = apart.scatter(0, preferred[None], 0.0).sum(0) / others
    distance = torch.where((best - rest).abs() <= 1e-6 * best.abs(), 0.0, best - rest)
    found = distance / ((var_best + var_rest) / 2).sqrt()
    return torch.where(distance == 0, 0.0, found)
