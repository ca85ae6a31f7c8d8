"""Corruptions by noise: Gaussian, shot and impulse."""

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.evals.corrupt.drawing import Draws
from pellucid.evals.corrupt.severities import Level


def gaussian_noise(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """x + sigma * n, n standard normal in every value."""
    return images + level["sigma"] * draws.normal(images.shape[1:]).to(images)


def shot_noise(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """Poisson(x * photons) / photons: few photons, much noise."""
    rates = (images * level["photons"]).cpu()
    counts = [torch.poisson(rate, generator=g) for rate, g in zip(rates, draws.generators, strict=True)]
    return torch.stack(counts).to(images) / level["photons"]


def impulse_noise(
    images: Float[Tensor, "batch c h w"], draws: Draws, level: Level
) -> Float[Tensor, "batch c h w"]:
    """A fraction `amount` of the values becomes 0 or 1, half each."""
    u = draws.uniform(images.shape[1:]).to(images.device)
    half = level["amount"] / 2
    return images.masked_fill(u < half, 0.0).masked_fill(u > 1 - half, 1.0)
