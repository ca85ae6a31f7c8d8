"""Corruptions by blur: defocus, frosted glass, motion and zoom."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pellucid.evals.corrupt.drawing import Draws
from pellucid.evals.corrupt.needs import kornia
from pellucid.evals.corrupt.severities import Level


def defocus_blur(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """Mean over a disc, whose edge is softened by a 3 x 3 Gaussian (5 x 5 above a radius of 8 px)."""
    del draws
    kernel = disc(level["radius_px"], level["edge_px"]).to(images)
    return kornia().filters.filter2d(images, kernel[None], border_type="reflect")


def disc(radius: float, edge: float) -> Float[Tensor, "size size"]:
    """The pixels within `radius` of the centre, equally weighted, then softened; sums to 1."""
    soft = 1 if radius <= 8 else 2
    reach = math.floor(radius) + soft
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    inside = (at[:, None] ** 2 + at**2 <= radius**2).float()
    bell = torch.exp(-0.5 * (torch.arange(-soft, soft + 1) / edge) ** 2)
    bell = bell / bell.sum()
    softened = F.conv2d(inside[None, None], (bell[:, None] * bell)[None, None], padding=soft)[0, 0]
    return softened / softened.sum()


def glass_blur(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """Blur a little, let every pixel take the colour of a random one nearby, `rounds` times, blur again.

    Offsets are whole numbers in [-reach, reach), as in the published images; pixels at the border stay.
    """
    reach = max(1, round(level["reach_px"]))
    found = _gaussian(images, level["sigma_px"])
    height, width = images.shape[2:]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inner = (rows > reach) & (rows <= height - reach) & (columns > reach) & (columns <= width - reach)
    for _ in range(int(level["rounds"])):
        shift = draws.integers((2, height, width), -reach, reach) * inner
        source = (rows + shift[:, 0]).clamp_(max=height - 1) * width + (columns + shift[:, 1]).clamp_(
            max=width - 1
        )
        place = source.flatten(1)[:, None].expand(-1, images.shape[1], -1).to(images.device)
        found = found.flatten(2).gather(2, place).view_as(images)
    return _gaussian(found, level["sigma_px"])


def _gaussian(images: Float[Tensor, "batch c h w"], sigma: float) -> Float[Tensor, "batch c h w"]:
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(images.cpu().numpy(), (0, 0, sigma, sigma), mode="nearest")
    return torch.from_numpy(blurred).to(images)


def motion_blur(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """Mean along a line, weights falling as half a Gaussian, in a direction within 45 degrees of horizontal."""
    angles = draws.uniform((), -45.0, 45.0).tolist()
    return streak(images, angles, radius=level["radius_px"], sigma=level["sigma_px"])


def streak(
    images: Float[Tensor, "batch c h w"], degrees: Sequence[float], *, radius: float, sigma: float
) -> Float[Tensor, "batch c h w"]:
    """Smear each image along its own angle: sum over i = 0 .. 2 radius of w_i * x shifted by i pixels.

    w_i is proportional to exp(-i^2 / (2 sigma^2)); shifts are whole pixels, border pixels repeat.
    """
    taps = range(2 * math.ceil(radius) + 1)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in taps]
    weights = [w / sum(weights) for w in weights if w > 1e-4]
    return torch.stack(
        [_streak_one(x, math.radians(a), weights) for x, a in zip(images, degrees, strict=True)]
    )


def _streak_one(x: Float[Tensor, "c h w"], angle: float, weights: Sequence[float]) -> Float[Tensor, "c h w"]:
    height, width = x.shape[1:]
    across, down = math.cos(angle), math.sin(angle)
    reach = len(weights)
    padded = F.pad(x[None], (reach, reach, reach, reach), mode="replicate")[0]
    out = torch.zeros_like(x)
    for i, weight in enumerate(weights):
        top, left = reach + round(i * down), reach + round(i * across)
        out.add_(padded[:, top : top + height, left : left + width], alpha=weight)
    return out


def zoom_blur(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """Mean of the image and of itself enlarged by 1, 1 + step, ..., largest."""
    del draws
    steps = round((level["largest"] - 1) / level["step"])
    total = images.clone()
    for i in range(steps + 1):
        total += enlarge(images, 1 + i * level["step"])
    return total / (steps + 2)


def enlarge(images: Float[Tensor, "batch c h w"], factor: float) -> Float[Tensor, "batch c h w"]:
    """Enlarge about the centre, bilinear, cut to the same size."""
    theta = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], dtype=images.dtype, device=images.device)
    grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
