"""The cross-fitted index: the preferred class is chosen on one half of the samples and judged on the other."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from pellucid.methods.selectivity.index import EPS, SILENT, Policy, index_at, through
from pellucid.rng import rng


def crossfit_index(
    count: Float64[Tensor, "classes folds"],
    total: Float64[Tensor, "classes folds units"],
    *,
    policy: Policy | None = None,
    splits: int = 10,
    eps: float = EPS,
    seed: int = 0,
) -> Float64[Tensor, " units"]:
    """Cross-fitted selectivity of each unit.

    SI_cf = mean over halves (A, B) of (m_b - m_rest) / (m_b + m_rest + eps), b = argmax of the class means on A,
    m on B, both orders of each split. The raw index takes the maximum of noisy means and so is too high in small
    samples; this one is not, and where noise rivals signal it errs low. In [-1, 1]: about 0 without selectivity,
    below 0 by chance. A unit that is silent on the choosing half names no class and scores 0 there. NaN where
    fewer than two classes are present in both halves.

    Args:
        count, total: number of samples and sum of responses of each class in each fold.
        splits: how many ways to deal the folds into halves, fewer where fewer exist (two folds allow one).
    """
    found: list[Tensor] = []
    for chosen in _halves(count.shape[1], splits, seed):
        for choose in (chosen, ~chosen):
            n_choose, n_judge = count[:, choose].sum(1), count[:, ~choose].sum(1)
            both = ((n_choose > 0) & (n_judge > 0)).nonzero().flatten()
            if len(both) < 2:
                continue
            choosing = through(policy, total[:, choose].sum(1)[both] / n_choose[both, None])
            judging = through(policy, total[:, ~choose].sum(1)[both] / n_judge[both, None])
            found.append(judged(choosing, judging, eps=eps))
    return torch.stack(found).mean(0) if found else total.new_full((total.shape[2],), float("nan"))


def judged(
    choosing: Float64[Tensor, "classes units"], judging: Float64[Tensor, "classes units"], *, eps: float
) -> Float64[Tensor, " units"]:
    """The index on one half's class means of the class that the other half prefers."""
    best, preferred = choosing.max(0)
    return torch.where(best < SILENT, 0.0, index_at(judging, preferred, eps=eps))


def crossfit_error(
    means: Float64[Tensor, "classes units"],
    variance: Float64[Tensor, "classes units"],
    *,
    policy: Policy | None = None,
    draws: int = 60,
    eps: float = EPS,
    seed: int = 0,
) -> Float64[Tensor, " units"]:
    """Standard error of the cross-fitted index over samples.

    The standard deviation over `draws` pairs of halves whose class means are normal with twice the variance of the
    whole (first-order slopes would miss that another sample may choose another class). One split is drawn; the
    average over several varies a little less, so with ten folds this errs wide.

    Args:
        means, variance: class means and their squared standard errors.
    """
    spread = (2 * variance).sqrt()
    generator = rng(seed, "crossfit_error")

    def half() -> Tensor:
        # The same numbers for all units: each unit's own error is right, and a draw costs no K x U of them.
        noise = torch.randn(len(means), 1, dtype=means.dtype, generator=generator)
        drawn = torch.addcmul(means, spread, noise)
        return drawn.clamp_min_(0) if policy is None else policy(drawn)

    first, second = means.new_zeros(means.shape[1]), means.new_zeros(means.shape[1])
    for _ in range(draws):
        a, b = half(), half()
        index = (judged(a, b, eps=eps) + judged(b, a, eps=eps)) / 2
        first += index
        second += index.square()
    return ((second / draws - (first / draws).square()).clamp_min(0) * draws / (draws - 1)).sqrt()


def _halves(folds: int, splits: int, seed: int) -> Iterator[Bool[Tensor, " folds"]]:
    """Distinct ways to deal the folds into halves; fold 0 stays in the second, so no way is another's mirror."""
    size = folds // 2
    generator = rng(seed, "crossfit_index")
    seen: set[tuple[int, ...]] = set()
    while len(seen) < min(splits, math.comb(folds - 1, size)):
        way = 1 + torch.randperm(folds - 1, generator=generator)[:size].sort().values
        if tuple(way.tolist()) not in seen:
            seen.add(tuple(way.tolist()))
            half = torch.zeros(folds, dtype=torch.bool)
            half[way] = True
            yield half
