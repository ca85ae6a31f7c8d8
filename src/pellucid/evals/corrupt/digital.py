"""Corruptions of light and encoding: brightness, contrast, elastic_transform, pixelate, jpeg_compression."""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pellucid.evals.corrupt.drawing import Draws
from pellucid.evals.corrupt.needs import kornia
from pellucid.evals.corrupt.severities import Level


def brightness(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """Add to the value channel of HSV (to the grey value of greyscale images)."""
    del draws
    if images.shape[1] == 1:
        return images + level["add"]
    color = kornia().color
    hue, saturation, value = color.rgb_to_hsv(images).unbind(1)
    return color.hsv_to_rgb(torch.stack([hue, saturation, (value + level["add"]).clamp(0, 1)], 1))


def contrast(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """(x - mean) * factor + mean, the mean being each channel's own."""
    del draws
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * level["factor"] + mean


def elastic_transform(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """Move three points by up to `jitter` (an affine map) and every pixel by smoothed noise; bilinear, mirrored edges.

    Displacement = amount * Gaussian blur of uniform(-1, 1) noise with `sigma`, both fields on their own.
    """
    height, width = images.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    affine = _random_affine(draws, height, width, level["jitter_px"])
    points = torch.stack([x, y], -1) + _displacement(draws, height, width, level).permute(0, 2, 3, 1)
    ones = torch.ones(*points.shape[:3], 1)
    mapped = torch.cat([points, ones], -1).flatten(1, 2) @ affine
    size = torch.tensor([width, height])
    grid = ((2 * mapped + 1) / size - 1).view(-1, height, width, 2).to(images)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _random_affine(draws: Draws, height: int, width: int, jitter: float) -> Float[Tensor, "batch 3 2"]:
    """The map from output to input places (x, y, 1) -> (x, y) that undoes a random move of three points."""
    centre, half = torch.tensor([width // 2, height // 2]), min(height, width) // 3
    corners = centre + half * torch.tensor([[1, 1], [1, -1], [-1, -1]])
    moved = corners + draws.uniform((3, 2), -jitter, jitter)
    return torch.linalg.solve(
        torch.cat([moved, torch.ones(len(moved), 3, 1)], -1), corners.float().expand_as(moved)
    )


def _displacement(draws: Draws, height: int, width: int, level: Level) -> Float[Tensor, "batch 2 h w"]:
    from scipy.ndimage import gaussian_filter

    noise = draws.uniform((2, height, width), -1.0, 1.0)
    if level["amount_px2"] == 0:
        return torch.zeros_like(noise)
    sigma = level["sigma_px"]
    smooth = gaussian_filter(noise.numpy(), (0, 0, sigma, sigma), mode="reflect", truncate=3)
    return torch.from_numpy(smooth) * level["amount_px2"]


def pixelate(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """Shrink to `factor` of the size and enlarge again, both with a box filter, in 8 bits."""
    del draws

    def change(picture: Image.Image) -> Image.Image:
        small = [max(1, math.floor(side * level["factor"])) for side in picture.size]
        return picture.resize((small[0], small[1]), Image.Resampling.BOX).resize(
            picture.size, Image.Resampling.BOX
        )

    return _by_picture(images, change)


def jpeg_compression(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """Save as JPEG of this quality and read again."""
    del draws

    def change(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(level["quality"]))
        return Image.open(file)

    return _by_picture(images, change)


def _by_picture(
    images: Float[Tensor, "batch c h w"], change: Callable[[Image.Image], Image.Image]
) -> Float[Tensor, "batch c h w"]:
    """Round to 8 bits, change each image as a picture, return to [0, 1]."""
    grey = images.shape[1] == 1
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    changed = [np.asarray(change(Image.fromarray(p[..., 0] if grey else p))) for p in pixels]
    stacked = np.stack(changed).reshape(pixels.shape)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).to(images) / 255
