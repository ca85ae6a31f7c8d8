"""Balls: how far an attack may move an image, and the geometry of its steps.

A ball knows its radius in pixel range (images lie in [0, 1]) and four things about its norm: the length of a
perturbation, the step of length 1 that climbs a gradient fastest, the projection onto itself, and a uniform draw.
"""

import dataclasses as dc
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid._checks import ConfigError


@runtime_checkable
class Ball(Protocol):
    """What `pgd` and the others ask of a ball; write your own with these members."""

    @property
    def name(self) -> str: ...
    @property
    def radius(self) -> float: ...
    def length(self, delta: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]: ...
    def direction(self, gradient: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]: ...
    def project(self, delta: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]: ...
    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "..."]: ...


@dc.dataclass(frozen=True)
class Linf:
    """max |delta| <= radius: every pixel may change by at most `radius`, in [0, 1]."""

    radius: float
    name: str = dc.field(default="linf", init=False)

    def __post_init__(self) -> None:
        _check_radius(self.radius)
        if self.radius > 1:
            raise ConfigError(
                f"radius {self.radius:g} is outside the pixel range [0, 1]: images are floats in [0, 1]; "
                f"for a radius counted in grey levels write {self.radius:g} / 255"
            )

    def length(self, delta: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """Largest absolute change of each image."""
        return delta.flatten(1).abs().amax(1)

    def direction(self, gradient: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """sign(gradient)."""
        return gradient.sign()

    def project(self, delta: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Nearest perturbation inside the ball."""
        return delta.clamp(-self.radius, self.radius)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "..."]:
        """Uniform in the ball."""
        return (2 * torch.rand(tuple(shape), generator=generator) - 1) * self.radius


@dc.dataclass(frozen=True)
class L2:
    """||delta||_2 <= radius over all pixels and channels of an image; at most sqrt(number of values)."""

    radius: float
    name: str = dc.field(default="l2", init=False)

    def __post_init__(self) -> None:
        _check_radius(self.radius)

    def length(self, delta: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """Euclidean length of each image's change."""
        return torch.linalg.vector_norm(delta.flatten(1), dim=1)

    def direction(self, gradient: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """gradient / ||gradient||_2, zero where the gradient is."""
        return gradient / self._column(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)

    def project(self, delta: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Nearest perturbation inside the ball: shortened along its own direction."""
        length = self._column(delta)
        return delta * torch.where(length > self.radius, self.radius / length, 1.0)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "..."]:
        """Uniform in the ball: a normal direction, length radius * u ** (1 / dimension)."""
        draw = torch.randn(tuple(shape), generator=generator)
        length = self.radius * torch.rand((), generator=generator) ** (1 / math.prod(shape))
        return draw * (length / torch.linalg.vector_norm(draw))

    def _column(self, values: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        return self.length(values).view(-1, *[1] * (values.dim() - 1))


def _check_radius(radius: float) -> None:
    if not (math.isfinite(radius) and radius >= 0):
        raise ConfigError(f"a radius must be a finite number >= 0 in pixel range, got {radius}")


def check_fits(ball: Ball, inputs: Float[Tensor, "batch ..."]) -> None:
    """Raise `ConfigError` when the ball is larger than the box [0, 1] that the images live in."""
    widest = float(ball.length(torch.ones((1, *inputs.shape[1:]))))
    if ball.radius > widest * (1 + 1e-6):
        raise ConfigError(
            f"{ball.name} radius {ball.radius:g} is outside the pixel range: images of shape {tuple(inputs.shape[1:])} "
            f"in [0, 1] are at most {widest:g} apart; for a radius counted in grey levels divide by 255"
        )
