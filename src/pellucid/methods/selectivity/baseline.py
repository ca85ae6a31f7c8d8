"""What the index would read if the labels meant nothing: the permutation baseline, from moments alone.

Under permuted labels the class sums S_c of one unit (n_c samples of N; mean mu and variance var over all samples)
have mean n_c mu and covariance var N / (N - 1) * (n_c [c = d] - n_c n_d / N). For responses >= 0 exactly these
first and second moments belong to N mu times a Dirichlet vector with weights n_c / N and concentration

    a = (N - 1) mu^2 / var - 1,

which, unlike a normal with the same moments, stays positive and is as skewed as sparse responses make it: one
single non-zero response gives a = 0, and the index of every permutation is 1. For many samples both agree.

Whatever the unit, the index of such a vector depends on `a` alone, so it is simulated on a grid of concentrations
with the same random numbers and interpolated; the cost does not grow with classes x units.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pellucid.methods.selectivity.index import Policy, selectivity_index
from pellucid.rng import rng

# Grid spacing, in log concentration or asinh level: the interpolation error stays below 0.002, less than the noise
# of 400 draws.
SPACING = 0.3


def permuted_index(
    mean: Float64[Tensor, " units"],
    var: Float64[Tensor, " units"],
    counts: Float64[Tensor, " classes"],
    *,
    policy: Policy | None = None,
    draws: int = 400,
    seed: int = 0,
) -> Float64[Tensor, " units"]:
    """Expected selectivity index of each unit when its responses are dealt to classes at random.

    In [0, 1]; 0 for a constant unit, NaN for a silent one. It grows as samples per class or a unit's rate of
    activity fall. For non-negative responses the class means are moment-matched (see above); with a policy for
    negative means they are normal and go through the policy.

    Args:
        mean, var: of each unit over all samples, the variance with divisor N.
        counts: samples of each class, all > 0.
        draws: simulated permutations.
    """
    total = counts.sum()
    constant = var <= 1e-24 * mean.square()
    if policy is None:
        spread = torch.where(constant, 1.0, var)
        # Below and above these the index is within 1e-4 of 1 and 0.
        concentration = ((total - 1) * mean.square() / spread - 1).clamp(1e-6, 1e12)
        simulate = _positive(counts, draws, seed)
        found = _on_grid(simulate, concentration.log(), torch.exp)
    else:
        # In units of the spread of a class mean, where the index as a function of the mean bends.
        bend = (total / len(counts)).sqrt()
        level = torch.where(constant, 0.0, mean / torch.where(constant, 1.0, var.sqrt())) * bend
        simulate = _signed(counts, policy, draws, seed)
        found = _on_grid(simulate, level.asinh(), lambda place: place.sinh() / bend)
    found = torch.where(constant, 0.0, found)
    return torch.where((mean == 0) & (var == 0), float("nan"), found)


def _on_grid(
    simulate: Callable[[float], float],
    places: Float64[Tensor, " units"],
    to_parameter: Callable[[Tensor], Tensor],
) -> Float64[Tensor, " units"]:
    """`simulate` at each place, by linear interpolation where there are more units than grid points."""
    if not len(places):
        return places
    low, high = float(places.min()), float(places.max())
    grid = torch.linspace(low, high, 2 + int((high - low) / SPACING), dtype=torch.float64)
    values = [simulate(float(parameter)) for parameter in to_parameter(grid)]
    return torch.from_numpy(np.interp(places.numpy(), grid.numpy(), np.asarray(values)))


def _normals(draws: int, classes: int, seed: int) -> Float64[Tensor, "classes draws"]:
    return torch.randn(classes, draws, dtype=torch.float64, generator=rng(seed, "permuted_index", "normal"))


def _positive(counts: Float64[Tensor, " classes"], draws: int, seed: int) -> Callable[[float], float]:
    """Mean index of Dirichlet class means as a function of the concentration."""
    weights = (counts / counts.sum())[:, None]
    normal = _normals(draws, len(counts), seed)
    uniform = torch.rand(normal.shape, dtype=torch.float64, generator=rng(seed, "permuted_index", "uniform"))
    log_uniform = uniform.clamp_min(1e-300).log()

    def simulate(concentration: float) -> float:
        shape = concentration * weights
        # Gamma(shape) = Gamma(shape + 1) U^(1/shape); Gamma(shape + 1) by Wilson and Hilferty's cube of a normal,
        # a smooth function of the shape, which keeps the curve over the grid smooth. Logarithms: tiny shapes.
        cube = 1 - 1 / (9 * (shape + 1)) + normal / (3 * (shape + 1).sqrt())
        logs = (shape + 1).log() + 3 * cube.clamp_min(1e-12).log() + log_uniform / shape
        return float(selectivity_index(logs.softmax(0) / weights, eps=0.0).mean())

    return simulate


def _signed(
    counts: Float64[Tensor, " classes"], policy: Policy, draws: int, seed: int
) -> Callable[[float], float]:
    """Mean index of normal class means through the policy as a function of mean / standard deviation."""
    total = counts.sum()
    noise = _normals(draws, len(counts), seed) / counts[:, None].sqrt()
    noise = (noise - (counts[:, None] * noise).sum(0) / total) * (total / (total - 1)).sqrt()

    def simulate(level: float) -> float:
        index: Float[Tensor, " draws"] = selectivity_index(policy(level + noise), eps=0.0)
        return float(index.nan_to_num(0.0).mean())

    return simulate
