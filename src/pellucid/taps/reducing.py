"""From an activation map to one number per sample and unit."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pellucid._checks import ConfigError


def unit_axis_of(ndim: int, unit_axis: int | None = None) -> int:
    """The axis that holds the units of an activation with `ndim` axes, counted from the batch axis 0.

    (batch, units): 1. (batch, tokens, units): 2. (batch, units, *space) with two or more space axes: 1.
    `unit_axis` says otherwise (-1 for channels-last maps, 1 for (batch, units, length) of 1-D convolutions).

    Raises:
        ConfigError: fewer than two axes, or an axis that is not there or is the batch.
    """
    if ndim < 2:
        raise ConfigError(
            f"an activation needs a batch axis and a unit axis, got {ndim} axes; give the tap a reduce"
        )
    if unit_axis is None:
        return 2 if ndim == 3 else 1
    axis = unit_axis + ndim if unit_axis < 0 else unit_axis
    if not 0 < axis < ndim:
        raise ConfigError(f"unit_axis must be one of 1..{ndim - 1} or -1..{1 - ndim}, got {unit_axis}")
    return axis


def unit_mean(
    activations: Shaped[Tensor, "batch ..."], unit_axis: int | None = None
) -> Float[Tensor, "batch units"]:
    """The default reduction: r[b, u] = mean over every axis but batch and unit of the activation.

    Half precision is summed in float32 and rounded once, back to the activation's type. (batch, units) is
    copied as it is. The result never shares memory with the activation.

    Raises:
        ConfigError: not floating point, or no unit axis (`unit_axis_of`).
    """
    if not activations.is_floating_point():
        raise ConfigError(f"responses need floating point, got {activations.dtype}; give the tap a reduce")
    axis = unit_axis_of(activations.ndim, unit_axis)
    if activations.ndim == 2:
        return activations.clone()
    others = [i for i in range(1, activations.ndim) if i != axis]
    if activations.dtype in (torch.float16, torch.bfloat16):
        return activations.mean(others, dtype=torch.float32).to(activations.dtype)
    return activations.mean(others)


def keep(activations: Tensor) -> Tensor:
    """The whole map: `Tap(layer, reduce=keep)`. `watch` copies it, out of reach of in-place layers."""
    return activations
