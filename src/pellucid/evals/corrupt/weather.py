"""Corruptions by weather: snow, frost and fog."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pellucid._checks import DataError
from pellucid.evals.corrupt.blur import enlarge, streak
from pellucid.evals.corrupt.drawing import Draws
from pellucid.evals.corrupt.severities import Level

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def snow(images: Float[Tensor, "batch c h w"], draws: Draws, level: Level) -> Float[Tensor, "batch c h w"]:
    """Whiten the scene and add falling flakes: noise, enlarged, cut off below a threshold, smeared downwards.

    keep * x + (1 - keep) * max(x, 1.5 grey + 0.5) + flakes + flakes turned by 180 degrees.
    """
    height, width = images.shape[2:]
    rows, columns = (max(1, round(side / level["pixel_px"])) for side in (height, width))
    flakes = level["mean"] + level["sigma"] * draws.normal((1, rows, columns))
    flakes = enlarge(flakes, level["flake"])
    flakes = flakes.masked_fill(flakes < level["threshold"], 0).clamp(0, 1)
    angles = draws.uniform((), -135.0, -45.0).tolist()
    flakes = streak(flakes, angles, radius=level["radius"], sigma=level["blur"])
    if (rows, columns) != (height, width):
        flakes = F.interpolate(flakes, (height, width), mode="bilinear", antialias=True)
    flakes = flakes.to(images)
    white = torch.maximum(images, 1.5 * _grey(images) + 0.5)
    return level["keep"] * images + (1 - level["keep"]) * white + flakes + flakes.flip(2, 3)


def _grey(images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch 1 h w"]:
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def fog(images: Float[Tensor, "batch c h w"], draws: Draws, level: Level) -> Float[Tensor, "batch c h w"]:
    """(x + amount * plasma) * top / (top + amount): plasma is a random cloud in [0, 1], top the brightest value of x."""
    height, width = images.shape[2:]
    cloud = plasma(draws, max(height, width), level["decay"])[:, None, :height, :width].to(images)
    top = images.amax((1, 2, 3), keepdim=True)
    amount = level["amount"]
    return (images + amount * cloud) * top / (top + amount)


def plasma(draws: Draws, side: int, decay: float) -> Float[Tensor, "batch size size"]:
    """A random cloud for each image, from 0 to 1, by the diamond-square algorithm on a torus.

    Each scale halves the grid: a new node is the mean of its four neighbours plus uniform noise, whose amplitude falls
    by decay^2 from scale to scale (the published images scale the noise twice, hence the square). kornia's
    `diamond_square` mixes noise in by weight on an open grid, which gives clouds of another spectrum.
    """
    size = 1 << (side - 1).bit_length()
    noise = draws.uniform((size, size), -1.0, 1.0)
    cloud = torch.zeros_like(noise)
    step, amplitude = size, 1.0
    while step >= 2:
        old, new = slice(0, None, step), slice(step // 2, None, step)
        corners = cloud[:, old, old]
        across, down = corners + corners.roll(-1, 2), corners + corners.roll(-1, 1)
        middles = (across + across.roll(-1, 1)) / 4 + amplitude * noise[:, new, new]
        cloud[:, new, new] = middles
        cloud[:, old, new] = (across + middles + middles.roll(1, 1)) / 4 + amplitude * noise[:, old, new]
        cloud[:, new, old] = (down + middles + middles.roll(1, 2)) / 4 + amplitude * noise[:, new, old]
        step, amplitude = step // 2, amplitude / decay**2
    low, high = cloud.amin((1, 2), keepdim=True), cloud.amax((1, 2), keepdim=True)
    return (cloud - low) / (high - low)


def frost(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level, folder: Path
) -> Float[Tensor, "batch c h w"]:
    """image * x + frost * (a random piece of a random texture)."""
    channels, height, width = images.shape[1:]
    textures = load_textures(folder, channels, level["texture_px"], (height, width))
    pieces = []
    for g in draws.generators:
        texture = textures[int(torch.randint(len(textures), (), generator=g))]
        top, left = (
            int(torch.randint(have - need + 1, (), generator=g))
            for have, need in zip(texture.shape[1:], (height, width), strict=True)
        )
        pieces.append(texture[:, top : top + height, left : left + width])
    return level["image"] * images + level["frost"] * torch.stack(pieces).to(images)


@lru_cache(maxsize=16)
def load_textures(
    folder: Path, channels: int, factor: float, at_least: tuple[int, int]
) -> tuple[Float[Tensor, "c h w"], ...]:
    """The pictures of a folder in order of name, resized by `factor`, or more where they would not cover the image."""
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not files:
        raise DataError(
            f"no frost textures in {folder}: expected a folder with {', '.join(PICTURES)} pictures"
        )
    found: list[Tensor] = []
    for file in files:
        with Image.open(file) as picture:
            picture = picture.convert("L" if channels == 1 else "RGB")
        enough = max(
            factor,
            *(need / have for need, have in zip(at_least, (picture.height, picture.width), strict=True)),
        )
        size = (
            max(at_least[1], round(picture.width * enough)),
            max(at_least[0], round(picture.height * enough)),
        )
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
        found.append(
            torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous()
        )
    return tuple(found)
