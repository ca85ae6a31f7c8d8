"""The family of pulls: W <- W - step * Delta(W), in place, Delta the gradient of a potential with the target a.

| function | potential | Delta |
|---|---|---|
| `pull_full_` | 1/4 ||W W^T - a I||_F^2 (and of W^T W: the same) | W W^T W - a W |
| `pull_full_bfloat16_` | the same | the same, its products in bfloat16 |
| `pull_rows_` | 1/4 sum_i (||w_i||^2 - a)^2 | (||w_i||^2 - a) w_i |
| `pull_columns_` | the same over columns | the same over columns |
| `pull_signs_` | 1/2 sum abs(W W^T - a I) | sign(W W^T - a I) W |
| `pull_column_signs_` | 1/2 sum abs(W^T W - a I) | W sign(W^T W - a I) |
| `pull_row_norm_signs_` | 1/2 sum_i abs(||w_i||^2 - a) | sign(||w_i||^2 - a) w_i |
| `pull_column_norm_signs_` | the same over columns | the same over columns |

The forms with signs never settle: about a step away from the target they turn back and forth, and on tall matrices
`pull_signs_` shrinks the weight to nothing.

References: Zhang et al., "Bort: Towards Explainable Neural Networks with Bounded Orthogonal Constraint", ICLR 2023
(the full form; the others are in its public code).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid._checks import ConfigError
from pellucid.methods.bort.gram import (
    add_bfloat16_product_,
    add_product_,
    gram,
    is_tall,
    row_gram,
    row_squares,
)

Number = float | Tensor
"""A Python number, or a tensor without axes that stays on its device."""

Amplitude = float | Callable[[Tensor, Tensor], Tensor]
"""The target a of the squared singular values: a number, or a function of ||G||_F^2 and tr G of each matrix."""

Pull = Callable[[Tensor, Number, Amplitude], Tensor]
"""Moves `(*parts, m, n)` matrices in place by a step, and returns them."""

MOST = 0.5
"""Largest step * a: there the full pull is one cubic Newton-Schulz step; at 1 it oscillates, beyond it diverges."""


def keep_norm(
    quartic: Float[Tensor, " *parts"], quadratic: Float[Tensor, " *parts"]
) -> Float[Tensor, " *parts"]:
    """The amplitude that leaves the norm of each matrix as it is: a = ||G||_F^2 / tr G, G its Gram matrix.

    For weights that are trained already: singular values become equal, their scale stays. Steps are clipped to
    0.5 / a, because a is not known before.
    """
    return quartic / quadratic.clamp_min(torch.finfo(quadratic.dtype).tiny)


def pull_full_(
    w: Float[Tensor, "*parts rows columns"], step: Number, amplitude: Amplitude
) -> Float[Tensor, "*parts rows columns"]:
    """Orthonormal rows (wide) or columns (tall), times sqrt(a): Delta = W W^T W - a W.

    Without other forces each singular value follows s <- s (1 + step (a - s^2)): it settles for 0 < step * a < 1 and
    diverges from s^2 > a + 2 / step.
    """
    return add_product_(w, _factor(gram(w), step, amplitude))


def pull_full_bfloat16_(
    w: Float[Tensor, "*parts rows columns"], step: Number, amplitude: Amplitude
) -> Float[Tensor, "*parts rows columns"]:
    """`pull_full_` with both products in bfloat16: two thirds to four fifths of the cost where hardware multiplies it.

    Each pull is off by about 0.5 % of itself, and it settles at a defect near 0.002 in place of 0, far below where the
    optimizer's own steps hold it. Weights and sums keep their precision.
    """
    half = w.bfloat16()
    return add_bfloat16_product_(w, _factor(gram(half).to(w.dtype), step, amplitude), half)


def _factor(
    g: Float[Tensor, "*parts side side"], step: Number, amplitude: Amplitude
) -> Float[Tensor, "*parts side side"]:
    """step (a I - G), in the memory of the Gram matrix G."""
    diagonal = g.diagonal(dim1=-2, dim2=-1)
    if callable(amplitude):
        a = amplitude(g.square().sum((-2, -1)), diagonal.sum(-1))
        step, a = _clipped(step, a)
        step, shift = step[..., None, None], (step * a)[..., None]
    else:
        shift = step * amplitude
    g.mul_(-step)
    diagonal.add_(shift)
    return g


def pull_rows_(
    w: Float[Tensor, "*parts rows columns"], step: Number, amplitude: Amplitude
) -> Float[Tensor, "*parts rows columns"]:
    """Rows of norm sqrt(a), whatever their angles: Delta = (||w_i||^2 - a) w_i."""
    n = row_squares(w)
    if callable(amplitude):
        a = amplitude(n.square().sum((-2, -1)), n.sum((-2, -1)))
        step, a = (x[..., None, None] for x in _clipped(step, a))
    else:
        a = amplitude
    return w.mul_((a - n).mul_(step).add_(1.0))


def pull_columns_(
    w: Float[Tensor, "*parts rows columns"], step: Number, amplitude: Amplitude
) -> Float[Tensor, "*parts rows columns"]:
    """Columns of norm sqrt(a), whatever their angles."""
    pull_rows_(w.mT, step, amplitude)
    return w


def pull_signs_(
    w: Float[Tensor, "*parts rows columns"], step: Number, amplitude: Amplitude
) -> Float[Tensor, "*parts rows columns"]:
    """Sparse deviation from orthonormal rows: Delta = sign(W W^T - a I) W. Never settles; collapses tall matrices."""
    g = row_gram(w)
    g.diagonal(dim1=-2, dim2=-1).sub_(_constant(amplitude))
    g.sign_().mul_(-step)
    if is_tall(w):  # here E has the larger side, which `add_product_` does not take
        return w.add_(g @ w)
    return add_product_(w, g)


def pull_column_signs_(
    w: Float[Tensor, "*parts rows columns"], step: Number, amplitude: Amplitude
) -> Float[Tensor, "*parts rows columns"]:
    """Sparse deviation from orthonormal columns: Delta = W sign(W^T W - a I). Never settles."""
    pull_signs_(w.mT, step, amplitude)
    return w


def pull_row_norm_signs_(
    w: Float[Tensor, "*parts rows columns"], step: Number, amplitude: Amplitude
) -> Float[Tensor, "*parts rows columns"]:
    """Rows grow or shrink by the share `step` towards norm sqrt(a): Delta = sign(||w_i||^2 - a) w_i. Never settles."""
    n = row_squares(w)
    return w.mul_(n.sub_(_constant(amplitude)).sign_().mul_(-step).add_(1.0))


def pull_column_norm_signs_(
    w: Float[Tensor, "*parts rows columns"], step: Number, amplitude: Amplitude
) -> Float[Tensor, "*parts rows columns"]:
    """Columns grow or shrink by the share `step` towards norm sqrt(a). Never settles."""
    pull_row_norm_signs_(w.mT, step, amplitude)
    return w


SIGNED: tuple[Pull, ...] = (
    pull_signs_,
    pull_column_signs_,
    pull_row_norm_signs_,
    pull_column_norm_signs_,
)
"""The pulls of constant size."""

FULL: tuple[Pull, ...] = (pull_full_, pull_full_bfloat16_)
"""The pulls towards orthogonality: what they bound are singular values, not norms."""


def _clipped(step: Number, a: Float[Tensor, " *parts"]) -> tuple[Tensor, Tensor]:
    return torch.minimum(torch.as_tensor(step, dtype=a.dtype, device=a.device), MOST / a), a


def _constant(amplitude: Amplitude) -> float:
    if callable(amplitude):
        raise ConfigError(
            "a pull with signs needs a number as amplitude: against one that follows the norm it shrinks the weight to "
            "nothing; use pull_full_ with keep_norm"
        )
    return amplitude
