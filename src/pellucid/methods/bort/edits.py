"""Adversarial samples a person can read: features of a class are put in, those of the other taken out, and only the
difference is backtracked, so that the error of reconstruction cancels.

    z_new = z_s + alpha * (z_t on top(z_t, target) - z_s on top(z_s, source))
    x_new = clip(x + g(z_new) - g(z_s), 0, 1)

top(z, c): the k channels with the largest (channel maximum) * (head weight of class c). The source paper's own
procedure is not public; this one is ours. Compare it with blending and with a gradient at equal size
(`pellucid.methods.bort.edits_baselines`).

References: Zhang et al., "Bort", ICLR 2023, abstract (no extra parameters, no training).
"""

import dataclasses as dc

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError
from pellucid.methods.bort.backtrack import Path, trace
from pellucid.methods.bort.backtrack_chain import still
from pellucid.methods.bort.saliency import head_weights, rows_of
from pellucid.train import logits_of

VERSION = "1"


@dc.dataclass(frozen=True)
class Edited:
    """Edited images and what became of them.

    `added`: what was added to the image after clipping, in [-1, 1]. `source`, `target`: the class that was taken out
    and the one put in; `predicted`: what the network says of the edited image; `size`: ||added|| / ||image||.
    `put_in`, `taken_out`: the channels, strongest first.
    """

    inputs: Float[Tensor, "images channels height width"]
    added: Float[Tensor, "images channels height width"]
    source: Int64[Tensor, " images"]
    target: Int64[Tensor, " images"]
    predicted: Int64[Tensor, " images"]
    size: Float[Tensor, " images"]
    put_in: Int64[Tensor, "images k"]
    taken_out: Int64[Tensor, "images k"]

    @property
    def reached(self) -> Bool[Tensor, " images"]:
        """Whether the edited image is taken for the target."""
        return self.predicted == self.target


def edit_towards(
    model: nn.Module,
    inputs: Float[Tensor, "images channels height width"],
    exemplars: Float[Tensor, "exemplars channels height width"],
    targets: Int[Tensor, " targets"],
    *,
    layer: str,
    alpha: float = 1.0,
    k: int = 32,
    head: Float[Tensor, "classes units"] | None = None,
    source: Int[Tensor, " images"] | None = None,
) -> Edited:
    """Edit each image towards a class, with features of an exemplar of that class.

    alpha = 0 returns the image to the bit. One forward of both images, two ways back, no gradient.

    Args:
        exemplars: for each image, one of the target class.
        layer: a layer with a map whose channels the head reads: the last activation before the pool.
        alpha: how much of the features is exchanged; 1 is all of it. Relative size and success rise with it.
        k: how many channels of each class.
        head: weights from channels to logits; by default the model's last linear layer.
        source: the class taken out; by default what the network says.

    Raises: as `trace`; ConfigError and DataError for what does not fit.
    """
    plan = plan_edit(model, inputs, exemplars, targets, layer=layer, k=k, head=head, source=source)
    return apply_edit(model, plan, alpha=alpha)


@dc.dataclass(frozen=True, eq=False)
class Plan:
    """What an edit of given images is made of, whatever alpha: kept, so that many alphas cost one way back each."""

    path: Path
    change: Float[Tensor, "images units ..."]
    rebuilt: Float[Tensor, "images channels height width"]
    source: Int64[Tensor, " images"]
    target: Int64[Tensor, " images"]
    put_in: Int64[Tensor, "images k"]
    taken_out: Int64[Tensor, "images k"]


def plan_edit(
    model: nn.Module,
    inputs: Float[Tensor, "images channels height width"],
    exemplars: Float[Tensor, "exemplars channels height width"],
    targets: Int[Tensor, " targets"],
    *,
    layer: str,
    k: int = 32,
    head: Float[Tensor, "classes units"] | None = None,
    source: Int[Tensor, " images"] | None = None,
) -> Plan:
    """Everything of `edit_towards` but alpha."""
    if exemplars.shape != inputs.shape or targets.shape != inputs.shape[:1]:
        raise DataError(
            f"expected an exemplar and a target class for each image of {tuple(inputs.shape)}, got "
            f"{tuple(exemplars.shape)} and {tuple(targets.shape)}"
        )
    path = trace(model, inputs, layer)
    z_s, z_t = path.features, trace(model, exemplars, layer).features
    if z_s.ndim < 3 or k < 1:
        raise ConfigError(
            f"expected k of at least 1 and a layer with a map, got {k} and {tuple(z_s.shape[1:])}"
        )
    head = head_weights(model, z_s.shape[1]) if head is None else head
    source = predict(model, inputs) if source is None else source.long()
    target = targets.long().to(inputs.device)
    put_in, taken_out = top_channels(z_t, head, target, k=k), top_channels(z_s, head, source, k=k)
    change = _only(z_t, put_in) - _only(z_s, taken_out)
    return Plan(path, change, path.back(z_s), source, target, put_in, taken_out)


def apply_edit(model: nn.Module, plan: Plan, *, alpha: float) -> Edited:
    """The edit of a plan at one strength."""
    if not 0 <= alpha < float("inf"):
        raise ConfigError(f"alpha must be a number from 0 up, got {alpha}")
    images = plan.path.inputs
    moved = plan.path.back(plan.path.features + alpha * plan.change) - plan.rebuilt
    edited = (images + moved).clamp(0, 1)
    added = edited - images
    return Edited(
        edited, added, plan.source, plan.target, predict(model, edited), relative_size(added, images), plan.put_in,
        plan.taken_out,
    )  # fmt: skip


def contributions(
    plan: Plan, row: int, *, alpha: float, most: int = 8
) -> tuple[list[int], Float[Tensor, "units channels height width"]]:
    """What each channel of the edit of one image adds by itself: (channels, pictures), the largest first.

        g(z_s + alpha * change on channel c alone) - g(z_s)

    They add up to the edit before clipping where the way back is linear; leaky ReLU makes it so only in part.
    """
    if not 0 <= row < len(plan.change) or most < 1:
        raise ConfigError(
            f"expected one of {len(plan.change)} images and at least one channel, got {row} and {most}"
        )
    change = plan.change[row]
    channels = change.flatten(1).any(1).nonzero().flatten()
    values = plan.path.features[row].repeat(len(channels), *[1] * (change.ndim))
    here = torch.arange(len(channels), device=change.device)
    values[here, channels] += alpha * change[channels]
    rows = torch.full((len(channels),), row, device=change.device)
    pictures = plan.path.back(values, rows=rows) - plan.rebuilt[row]
    order = pictures.flatten(1).norm(dim=1).argsort(descending=True)[:most]
    return channels[order].tolist(), pictures[order]


def top_channels(
    z: Float[Tensor, "images units ..."],
    head: Float[Tensor, "classes units"],
    classes: Int[Tensor, " images"],
    *,
    k: int,
) -> Int64[Tensor, "images k"]:
    """The k channels with the largest channel maximum times head weight of the image's class, largest first."""
    strongest = z.flatten(2).amax(2)
    return (strongest * rows_of(head, classes, strongest)).topk(min(k, strongest.shape[1]), dim=1).indices


def predict(model: nn.Module, inputs: Float[Tensor, "images ..."]) -> Int64[Tensor, " images"]:
    """The class that the network, in evaluation mode, gives each image."""
    with still(model):
        return logits_of(model(inputs)).argmax(1)


def relative_size(
    added: Float[Tensor, "images ..."], images: Float[Tensor, "images ..."]
) -> Float[Tensor, " images"]:
    """||added|| / ||image||: 0 where nothing was added, infinite for something added to a black image."""
    length = added.flatten(1).norm(dim=1)
    return torch.where(length > 0, length / images.flatten(1).norm(dim=1), length)


def _only(
    z: Float[Tensor, "images units ..."], channels: Int64[Tensor, "images k"]
) -> Float[Tensor, "images units ..."]:
    chosen = torch.zeros(z.shape[:2], dtype=z.dtype, device=z.device).scatter_(1, channels, 1.0)
    return z * chosen.view(*z.shape[:2], *[1] * (z.ndim - 2))
