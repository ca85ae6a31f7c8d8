"""How much the gradient of a unit to the image varies: over images, over units, and in direction.

g_iu = gradient to image i of unit u's response,    G_iu = ||g_iu||_2
"""

import dataclasses as dc
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn

from pellucid._checks import DataError
from pellucid.attack import attack_mode
from pellucid.data import Batch, Source
from pellucid.evals._accuracy import model_device
from pellucid.taps import Tap, watch

VERSION = "1"


@dc.dataclass(frozen=True)
class GradientVariability:
    """Variability of one layer's gradients over `n` images; units whose gradient is 0 on every image are left out.

    `over_images`: of each unit, standard deviation / mean of G_iu over images. `over_units`: of each image, the same
    over units. `cosine`: of each unit, the mean cosine between its gradients for two different images, in [-1, 1];
    images on which the unit's gradient is 0 do not count. NaN where a unit has no gradient, or on one image only.
    """

    over_images: Float64[Tensor, " units"]
    over_units: Float64[Tensor, " images"]
    cosine: Float64[Tensor, " units"]
    n: int
    silent: int
    version: str

    @property
    def summary(self) -> dict[str, float]:
        """Means over units, images and units: `cv_images`, `cv_units`, `cosine`."""
        return {
            "cv_images": float(self.over_images.nanmean()),
            "cv_units": float(self.over_units.nanmean()),
            "cosine": float(self.cosine.nanmean()),
        }


def gradient_variability(
    model: nn.Module,
    source: Source,
    taps: Mapping[str, Tap],
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, GradientVariability]:
    """Gradients of every unit of the tapped layers to every image of a source, summarised by layer.

    One backward pass a unit and batch, so take a few hundred images. The model runs in evaluation mode, where images
    do not touch each other, and is left as it was.

    Raises:
        DataError: fewer than two images.

    References: Leavitt and Morcos, "On the relationship between class selectivity, dimensionality, and robustness",
    2020, for the claim; the formulas are ours.
    """
    if len(source) < 2:
        raise DataError(f"gradient variability needs at least 2 images, got {len(source)}")
    place = model_device(model)
    sums = {name: _Sums() for name in taps}
    done = 0
    with attack_mode(model):
        for batch in source.batches(batch_size):
            _add(model, batch.to(place), taps, sums)
            done += len(batch.index)
            if progress is not None:
                progress(done, len(source))
    return {name: found.result() for name, found in sums.items()}


def _add(model: nn.Module, batch: Batch, taps: Mapping[str, Tap], sums: Mapping[str, "_Sums"]) -> None:
    x = batch.inputs.detach().clone().requires_grad_()
    with watch(model, taps, grad=True, stop=True) as seen:
        model(x)
        responses = dict(seen)
    for name, values in responses.items():
        # Images do not touch each other in evaluation mode: the gradient of a sum over them is each one's own.
        gradients = (torch.autograd.grad(unit.sum(), x, retain_graph=True)[0] for unit in values.unbind(1))
        sums[name].add([g.flatten(1) for g in gradients])


class _Sums:
    """Norms of all gradients, and for each unit the sum of its unit-length gradients."""

    def __init__(self) -> None:
        self.norms: list[Float[Tensor, "batch units"]] = []
        self.directions: Shaped[Tensor, "units pixels"] | None = None

    def add(self, gradients: list[Float[Tensor, "batch pixels"]]) -> None:
        lengths = [torch.linalg.vector_norm(g, dim=1) for g in gradients]
        self.norms.append(torch.stack(lengths, 1).double().cpu())
        unit = [
            torch.where(n[:, None] > 0, g / n[:, None].clamp_min(torch.finfo(g.dtype).tiny), 0.0).sum(0)
            for g, n in zip(gradients, lengths, strict=True)
        ]
        total = torch.stack(unit).double().cpu()
        self.directions = total if self.directions is None else self.directions + total

    def result(self) -> GradientVariability:
        norms = torch.cat(self.norms)
        assert self.directions is not None
        alive = (norms > 0).any(0)
        count = (norms > 0).double().sum(0)
        # Sum over pairs of unit vectors: ||sum||^2 - count.
        pairs = (self.directions.square().sum(1) - count) / (count * (count - 1))
        return GradientVariability(
            over_images=torch.where(alive, _variation(norms, 0), float("nan")),
            over_units=_variation(norms[:, alive], 1),
            cosine=torch.where(count > 1, pairs, float("nan")),
            n=len(norms),
            silent=int((~alive).sum()),
            version=VERSION,
        )


def _variation(values: Float64[Tensor, "images units"], axis: int) -> Float64[Tensor, " kept"]:
    """Standard deviation / mean along an axis; NaN where the mean is 0 or there is nothing to spread."""
    mean = values.mean(axis)
    spread = values.std(axis) if values.shape[axis] > 1 else torch.full_like(mean, float("nan"))
    return torch.where(mean > 0, spread / mean, float("nan"))
