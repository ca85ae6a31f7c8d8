"""What an edit is compared with, at its own size: blending with the exemplar, and one step of gradient.

Each moves the image along a direction until ||added|| / ||image|| is the wanted size, after clipping to [0, 1].
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid._checks import DataError
from pellucid.attack import attack_mode
from pellucid.methods.bort.edits import relative_size
from pellucid.train import logits_of

# Halvings of the interval that holds the step's length: 2^-40 of it is far below rounding.
HALVINGS = 40


def blended(
    inputs: Float[Tensor, "images ..."],
    exemplars: Float[Tensor, "images ..."],
    size: Float[Tensor, " images"],
) -> Float[Tensor, "images ..."]:
    """(1 - b) image + b exemplar with b in [0, 1] such that the relative size is `size`, or the exemplar itself.

    An edit may be larger than the whole way to the exemplar; blending then stops there.
    """
    _check(inputs, size)
    full = relative_size(exemplars - inputs, inputs)
    share = torch.where(full > 0, (size / full).clamp(max=1.0), 0.0)
    return inputs + share.view(-1, *[1] * (inputs.ndim - 1)) * (exemplars - inputs)


def gradient_signed(
    model: nn.Module,
    inputs: Float[Tensor, "images ..."],
    targets: Int[Tensor, " images"],
    size: Float[Tensor, " images"],
) -> Float[Tensor, "images ..."]:
    """One step along the sign of the gradient towards the target (FGSM), as long as it takes to be of this size.

    References: Goodfellow et al., "Explaining and harnessing adversarial examples", ICLR 2015, section 4.
    """
    _check(inputs, size)
    with attack_mode(model):
        x = inputs.detach().clone().requires_grad_()
        log_prob = logits_of(model(x)).log_softmax(1).gather(1, targets.long()[:, None]).sum()
        (gradient,) = torch.autograd.grad(log_prob, x)
    return stretched(inputs, gradient.sign(), size)


def stretched(
    inputs: Float[Tensor, "images ..."],
    direction: Float[Tensor, "images ..."],
    size: Float[Tensor, " images"],
) -> Float[Tensor, "images ..."]:
    """clip(x + t * direction, 0, 1) with t such that the relative size is `size`, or the largest that clipping allows.

    The size never falls with t, so t is found by halving.
    """
    _check(inputs, size)
    shape = [-1, *[1] * (inputs.ndim - 1)]
    smallest = torch.where(direction == 0, float("inf"), direction.abs()).flatten(1).amin(1)
    # Beyond 1 over its smallest entry, every pixel that moves has met its end.
    low, high = torch.zeros_like(smallest), torch.where(smallest.isfinite(), 1 / smallest, 0.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        moved = (inputs + middle.view(shape) * direction).clamp(0, 1) - inputs
        short = relative_size(moved, inputs) < size
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (inputs + low.view(shape) * direction).clamp(0, 1)


def _check(inputs: Tensor, size: Tensor) -> None:
    if size.shape != inputs.shape[:1] or not bool(((size >= 0) & size.isfinite()).all()):
        raise DataError(
            f"expected a finite relative size from 0 up for each of {len(inputs)} images, got {size.tolist()[:8]}; black "
            "images have none: leave them out"
        )
