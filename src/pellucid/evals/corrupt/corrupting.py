"""Corrupt a batch of images, or a whole source, at one severity of one type."""

import dataclasses as dc
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid._checks import ConfigError, DataError
from pellucid.attack.ascent import as_index, check_images
from pellucid.data import Source
from pellucid.data.examples import Gathered, digest, gather, labels, skipped
from pellucid.evals.corrupt.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from pellucid.evals.corrupt.digital import brightness, contrast, elastic_transform, jpeg_compression, pixelate
from pellucid.evals.corrupt.drawing import Draws, draws_for
from pellucid.evals.corrupt.noise import gaussian_noise, impulse_noise, shot_noise
from pellucid.evals.corrupt.severities import Level, level
from pellucid.evals.corrupt.weather import fog, frost, snow

VERSION = "1"

# frost stands apart: it needs textures.
CORRUPTIONS: Mapping[str, Callable[[Tensor, Draws, Level], Tensor]] = {
    f.__name__: f
    for f in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip


def corrupt(
    images: Float[Tensor, "batch c h w"],
    name: str,
    severity: int,
    *,
    index: Int[Tensor, " batch"] | Sequence[int] | None = None,
    seed: int = 0,
    frost_textures: str | Path | None = None,
) -> Float[Tensor, "batch c h w"]:
    """One of the fifteen standard corruptions, at severity 1 to 5, of images in [0, 1]; the result lies there too.

    Args:
        name: one of `TYPES`.
        index: sample numbers; randomness is keyed by (seed, name, severity, index), so an image is corrupted in the
            same way in any batch. Default 0..n-1.
        frost_textures: a folder of pictures of frost, which `frost` lays over the images.

    Raises:
        ConfigError: an unknown name, a severity outside 1 to 5, frost without textures, kornia missing.
        DataError: images outside [0, 1], neither greyscale nor RGB, or below 8 px.

    References: Hendrycks & Dietterich, ICLR 2019; constants in `pellucid.evals.corrupt.severities`.
    """
    constants = level(name, severity, min(images.shape[2:]))
    check_images(images)
    if images.shape[1] not in (1, 3):
        raise DataError(f"corruptions take greyscale (1) or RGB (3) images, got {images.shape[1]} channels")
    draws = draws_for(name, severity, as_index(index, len(images)).tolist(), seed=seed)
    with torch.no_grad():
        if name == "frost":
            if frost_textures is None:
                raise ConfigError("frost needs pictures of frost: pass frost_textures=FOLDER")
            changed = frost(images, draws, constants, Path(frost_textures))
        else:
            changed = CORRUPTIONS[name](images, draws, constants)
        return changed.clamp(0, 1)


def corruption_source(
    source: Source, name: str, severity: int, *, seed: int = 0, frost_textures: str | Path | None = None
) -> Source:
    """The same source with every image corrupted; labels, names and order stay.

    The corruption of an image depends on (seed, name, severity, its position in `source`), not on batch or epoch.
    """
    examples = Corrupted(
        source.examples, name, severity, seed, None if frost_textures is None else Path(frost_textures)
    )
    return dc.replace(source, name=f"{source.name} + {name} {severity}", examples=examples)


@dc.dataclass(frozen=True)
class Corrupted:
    """Examples of a source after a corruption."""

    parent: Any
    name: str
    severity: int
    seed: int
    frost_textures: Path | None

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        found = self.gather(torch.tensor([i]), seed=0, epoch=0)
        return found.inputs[0], None if found.targets is None else int(found.targets[0])

    def labels(self) -> Tensor | None:
        return labels(self.parent)

    def gather(self, index: Int[Tensor, " batch"], *, seed: int, epoch: int) -> Gathered:
        clean = gather(self.parent, index, seed=seed, epoch=epoch)
        places = index if clean.kept is None else index[clean.kept]
        if len(places) == 0:
            return clean
        changed = corrupt(
            clean.inputs,
            self.name,
            self.severity,
            index=places,
            seed=self.seed,
            frost_textures=self.frost_textures,
        )
        return dc.replace(clean, inputs=changed)

    def digest(self, index: Int[Tensor, " batch"]) -> str:
        text = f"{digest(self.parent, index)} {self.name} {self.severity} {self.seed} {VERSION}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def skipped(self) -> Mapping[int, tuple[str, str]]:
        return skipped(self.parent)
