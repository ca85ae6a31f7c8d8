"""What an attack on a classifier raises: one number for each image, larger = further from the target class."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Float[Tensor, "batch classes"], targets: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """-log softmax(logits)[target], in nats; its gradient fades where the network is very sure."""
    return F.cross_entropy(logits, targets, reduction="none")


def margin(logits: Float[Tensor, "batch classes"], targets: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Largest other logit minus the target's: positive where misclassified; never saturates.

    References: Carlini & Wagner, "Towards evaluating the robustness of neural networks", 2017, loss f6 at kappa = inf.
    """
    own = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], float("-inf"))
    return others.amax(1) - own[:, 0]


def normalized_cross_entropy(
    logits: Float[Tensor, "batch classes"], targets: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Cross-entropy of logits brought to standard deviation 1 over classes, so that their scale cannot matter.

    z -> (z - mean z) / (std z + eps). Two networks that differ by a factor on the logits get the same attack: the
    margin control of a robustness claim.
    """
    centred = logits - logits.mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    return F.cross_entropy(centred / (spread + torch.finfo(logits.dtype).tiny), targets, reduction="none")
