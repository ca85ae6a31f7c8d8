"""The smallest change that fools a network: an upper bound on the L2 distance to its decision boundary."""

import dataclasses as dc
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid._checks import DataError, NumericError
from pellucid.attack.ascent import attack_mode, check_attack, check_logits, input_gradient
from pellucid.attack.ball import L2
from pellucid.attack.classifier import masked_message
from pellucid.attack.losses import cross_entropy
from pellucid.train import logits_of


@dc.dataclass(frozen=True)
class Minimal:
    """`distance`: L2 length of the smallest fooling change found; 0 where already wrong, infinite where none was found."""

    inputs: Float[Tensor, "batch ..."]
    distance: Float[Tensor, " batch"]


def minimal_l2(
    model: nn.Module, inputs: Float[Tensor, "batch ..."], targets: Int[Tensor, " batch"], *, steps: int = 100
) -> Minimal:
    """Walk along the loss's gradient on a sphere that shrinks while the image is misclassified and grows while not.

    delta <- r * unit(delta + a_t * unit(grad loss)),  r <- r * (0.95 if misclassified else 1.05),  a_t from 1 to 0.01
    by a cosine. One gradient a step; no randomness. The distance is in pixel range and an upper bound.

    Raises: as `pgd`.
    References: Rony et al., "Decoupling direction and norm", CVPR 2019, algorithm 1 (without its rounding).
    """
    widest = L2(math.sqrt(max(inputs[:1].numel(), 1)))
    check_attack(inputs, ball=widest, steps=steps, restarts=1)
    if targets.shape != (len(inputs),):
        raise DataError(
            f"targets must hold one class for each of the {len(inputs)} images, got {tuple(targets.shape)}"
        )
    clean = inputs.detach()
    delta = torch.zeros_like(clean)
    radius = clean.new_ones(len(clean))
    best, distance = clean.clone(), clean.new_full((len(clean),), math.inf)
    moved = False
    with attack_mode(model):
        for t in range(steps + 1):
            x = (clean + delta).requires_grad_()
            logits = logits_of(model(x))
            check_logits(logits)
            fooled = logits.argmax(1) != targets
            length = widest.length(delta)
            closer = fooled & (length < distance)
            best[closer], distance[closer] = x.detach()[closer], length[closer]
            if t == steps:
                break
            gradient, norm = input_gradient(cross_entropy(logits, targets), x)
            moved = moved or bool(norm.any())
            radius = radius * torch.where(fooled, 0.95, 1.05)
            rate = 0.01 + 0.99 * (1 + math.cos(math.pi * t / steps)) / 2
            delta = delta + rate * widest.direction(gradient)
            delta = widest.direction(delta) * radius.view(-1, *[1] * (clean.dim() - 1))
            delta = (clean + delta).clamp_(0, 1) - clean
    if not moved and not bool(distance.isfinite().all()):
        raise NumericError(masked_message(len(inputs)))
    return Minimal(best, distance)
