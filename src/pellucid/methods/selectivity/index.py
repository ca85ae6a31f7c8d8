"""The index itself, on class means: differentiable, so that it can be measured or trained with."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid._checks import DataError

# 1e-6 and 1e-7 are both found in public code of the index; the smaller disturbs weak units less.
EPS = 1e-7
# A unit is dead when no class drives it beyond this.
SILENT = 1e-12

# What to do with negative class means. A policy must be scale-equivariant: policy(a m) = a policy(m) for a > 0.
Policy = Callable[[Tensor], Tensor]


def selectivity_index(means: Float[Tensor, "classes units"], *, eps: float = EPS) -> Float[Tensor, " units"]:
    """How far the preferred class of each unit stands above the mean of the others.

    SI = (m_max - m_rest) / (m_max + m_rest + eps), m_rest the unweighted mean of the other classes' means.

    In [0, 1] for non-negative means: 0 is the same mean for every class, 1 a response to one class alone. The index
    ignores scale but not offset: (3, 1, 1) gives 0.50, (4, 2, 2) gives 0.33. Fewer than two classes give NaN. Where
    classes tie, the first takes the gradient.

    Args:
        means: mean response of each unit to each class, absent classes left out. Means, not sums: with sums an
            unequal number of samples looks like selectivity.

    References: Morcos et al., ICLR 2018, section "Class selectivity".
    """
    if means.shape[0] < 2:
        return means.new_full((means.shape[1],), float("nan"))
    return index_at(means, means.argmax(0), eps=eps)


def index_at(
    means: Float[Tensor, "classes units"], preferred: Int[Tensor, " units"], *, eps: float = EPS
) -> Float[Tensor, " units"]:
    """The same formula for a preferred class that was chosen elsewhere; in [-1, 1] for non-negative means."""
    best = means.gather(0, preferred[None])[0]
    rest = (means.sum(0) - best) / (means.shape[0] - 1)
    return (best - rest) / (best + rest + eps)


def offset_free_index(means: Float[Tensor, "classes units"], *, eps: float = EPS) -> Float[Tensor, " units"]:
    """The index after each unit's smallest class mean is taken off, so that a resting level cannot hide selectivity.

    SI_off = SI(m - min_c m). In [0, 1] for means of any sign; 0 for a unit whose class means are all the same.
    """
    return selectivity_index(means - means.amin(0), eps=eps)


def rectify(means: Float[Tensor, "classes units"]) -> Float[Tensor, "classes units"]:
    """Policy for negative class means: they count as 0."""
    return means.clamp_min(0)


def absolute(means: Float[Tensor, "classes units"]) -> Float[Tensor, "classes units"]:
    """Policy for negative class means: their size counts, whatever the sign."""
    return means.abs()


def shift_min(means: Float[Tensor, "classes units"]) -> Float[Tensor, "classes units"]:
    """Policy for negative class means: a unit that has some is raised until its smallest is 0."""
    return means - means.amin(0).clamp_max(0)


def through(policy: Policy | None, means: Float[Tensor, "classes units"]) -> Float[Tensor, "classes units"]:
    """Class means as the index takes them."""
    return means if policy is None else policy(means)


def check_not_negative(total: Float[Tensor, "classes folds units"], policy: Policy | None) -> None:
    """Raise `DataError` when some class has a negative mean in some fold and no policy says what to do with it."""
    if policy is not None or not total.numel():
        return
    negative = (total.amin((0, 1)) < 0).nonzero().flatten()
    if len(negative):
        raise DataError(
            f"selectivity is defined for class means >= 0, but {len(negative)} of {total.shape[2]} units have "
            f"negative ones (the first is unit {int(negative[0])}): tap the output of a ReLU, or name what to do with "
            f"them: negative=rectify, negative=absolute or negative=shift_min"
        )


def with_slope(
    index: Callable[[Tensor], Tensor], means: Float[Tensor, "classes units"]
) -> tuple[Float[Tensor, " units"], Float[Tensor, "classes units"]]:
    """An index of each unit and its derivative by that unit's class means, also where gradients are off."""
    with torch.inference_mode(False), torch.enable_grad():
        means = means.detach().clone().requires_grad_()
        value = index(means)
        (slope,) = torch.autograd.grad(value.sum(), means)
    return value.detach(), slope
