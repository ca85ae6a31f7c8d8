"""Arrays of images at another size or number of channels, batch by batch."""

import dataclasses as dc
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from pellucid._checks import DataError
from pellucid.data.examples import Gathered, as_float, digest, gather, labels, skipped
from pellucid.data.images import Look, cover
from pellucid.data.source import Source

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL


@dc.dataclass(frozen=True)
class Adapted:
    """Images of `parent` made to fit a `Look`, on the fly."""

    parent: Any
    look: Look

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        x, target = self.parent[i]
        return adapt_images(as_float(x).unsqueeze(0), self.look)[0], target

    def labels(self) -> Tensor | None:
        return labels(self.parent)

    def gather(self, index: Int[Tensor, " batch"], *, seed: int, epoch: int) -> Gathered:
        found = gather(self.parent, index, seed=seed, epoch=epoch)
        return dc.replace(found, inputs=adapt_images(found.inputs, self.look))

    def digest(self, index: Int[Tensor, " batch"]) -> str:
        text = digest(self.parent, index) + repr(dc.astuple(self.look))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def skipped(self) -> Mapping[int, tuple[str, str]]:
        return skipped(self.parent)


def adapt(source: Source, look: Look) -> Source:
    """A source of images fitted to `look`; the same source if there is nothing to do."""
    if not len(source):
        return source
    shape = source[0][0].shape
    if len(shape) != 3:
        if look.size is None and look.channels is None:
            return source
        raise DataError(
            f"{source.name!r} holds no images but examples of shape {tuple(shape)}; size and channels do not apply"
        )
    wanted = {"grey": 1, "rgb": 3}.get(look.channels or "", shape[0])
    if tuple(shape) == (wanted, *(look.size or shape[1:])):
        return source
    return dc.replace(source, examples=Adapted(source.examples, look))


def adapt_images(
    images: Float[Tensor, "batch channels height width"], look: Look
) -> Float[Tensor, "batch new_channels new_height new_width"]:
    """Change channels, then resize (bilinear, antialiased) and cut the centre; pixels stay in [0, 1]."""
    if look.channels == "rgb" and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    elif look.channels == "grey" and images.shape[1] == 3:
        weights = torch.tensor(LUMA, dtype=images.dtype).view(1, 3, 1, 1)
        images = (images * weights).sum(1, keepdim=True)
    if look.size is None:
        return images.contiguous()
    old = (images.shape[2], images.shape[3])
    covering, (top, left) = cover(old, look.size) if look.fit == "crop" else (look.size, (0, 0))
    if covering != old:
        images = functional.interpolate(images, covering, mode="bilinear", antialias=True).clamp(0, 1)
    return images[:, :, top : top + look.size[0], left : left + look.size[1]].contiguous()
