"""Standard errors of an index over samples, from moments: the first-order (delta) approximation.

An index is a function of class means. Its error is the sum over classes of slope x error of that class mean, and
samples of different classes are independent: this is the variance that the bootstrap stratified by class estimates.
It is symmetric and knows nothing of the upward bias of a maximum; the cross-fitted index is the answer to that.
"""

from statistics import NormalDist

import torch
from jaxtyping import Float64
from torch import Tensor


def unit_error(
    slope: Float64[Tensor, "classes units"], variance: Float64[Tensor, "classes units"]
) -> Float64[Tensor, " units"]:
    """Standard error of each unit's index: sqrt(sum_c slope_c^2 variance_c).

    Args:
        slope: derivative of the index by each class mean.
        variance: squared standard error of each class mean.
    """
    return (slope.square() * variance).sum(0).sqrt()


def filled(var: Float64[Tensor, "classes units"]) -> Float64[Tensor, "classes units"]:
    """The variance of a class with one sample is unknown: the mean over the other classes stands in."""
    return torch.where(var.isnan(), var.nanmean(0), var)


def influence(
    slope: Float64[Tensor, "classes units"],
    count: Float64[Tensor, "classes folds"],
    total: Float64[Tensor, "classes folds units"],
) -> Float64[Tensor, "classes folds"]:
    """How far the samples of each class and fold move the sum of the units' indices.

    D_cf = sum_u slope_cu (sum_cfu - n_cf m_cu). Units answer to the same images, so their errors are not
    independent; summing over units before squaring keeps what they share.
    """
    mean = total.sum(1) / count.sum(1, keepdim=True).clamp_min(1)
    deviation = total - count[:, :, None] * mean[:, None]
    return torch.einsum("ku,kfu->kf", slope, deviation)


def mean_error(influence: Float64[Tensor, "classes folds"], count: Float64[Tensor, "classes folds"]) -> float:
    """Standard error of a mean of indices from its influence: the folds of a class are repeated measurements.

    sqrt(sum_c v_c / n_c), v_c = sum_f D_cf^2 / n_cf / (F_c - 1) over the F_c folds in which class c occurs. A class
    seen in one fold only gets the mean v of the others; NaN when there is no other.
    """
    present = count > 0
    folds = present.sum(1)
    counts = count.sum(1)
    squares = torch.where(present, influence.square() / count.clamp_min(1), 0.0).sum(1)
    v = torch.where(folds > 1, squares / (folds - 1).clamp_min(1), float("nan"))[counts > 0]
    return float((filled(v[:, None])[:, 0] / counts[counts > 0]).sum().sqrt())


def quantile(level: float) -> float:
    """How many standard errors to each side a two-sided interval of this level reaches."""
    return NormalDist().inv_cdf((1 + level) / 2)
