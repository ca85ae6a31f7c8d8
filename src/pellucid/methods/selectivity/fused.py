"""ReLU and the mean of its output in one autograd function: the regulariser's taps at almost no cost.

An ordinary tap reads a ReLU's output and takes its mean; in the backward pass that mean's gradient is spread over a
whole map, which is then added to the gradient from the next layer. Here one function returns (relu, mean), and its
backward adds the mean's few numbers before the threshold.
"""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pellucid.methods.selectivity.regularise import selectivity_taps
from pellucid.taps import Tap, unit_axis_of
from pellucid.taps.find import get_layer, split_call

MEAN = "mean"
"""Name of the layer that a fused ReLU gives its mean to: `relu1` becomes tappable as `relu1.mean`."""


@contextlib.contextmanager
def fused(
    model: nn.Module, patterns: Sequence[str] | None = None, *, inputs: Tensor | None = None
) -> Generator[dict[str, Tap]]:
    """Inside, the ReLUs of a model also compute their mean; yields taps for `SelectivityTerm`, by the ReLU's name.

    `with fused(model) as taps: fit(..., {"selectivity": SelectivityTerm(taps, -1.0)})`. Outputs, gradients, layer
    names, hooks and state-dict keys stay what they were; each chosen ReLU has one layer more, `NAME.mean`, without
    weights. At the end everything is as before. Layers that are no `nn.ReLU` get an ordinary tap. In-place ReLUs work
    out of place meanwhile. Gradients of gradients are refused by autograd.

    Args:
        patterns, inputs: as in `selectivity_taps`.

    Raises: as `selectivity_taps`.
    """
    taps = selectivity_taps(model, patterns, inputs=inputs)
    changed: list[nn.Module] = []
    found: dict[str, Tap] = {}
    try:
        for name in taps:
            layer, call = split_call(name)
            module = get_layer(model, layer)[1]
            if type(module) is nn.ReLU:
                module.__class__ = FusedReLU
                module.add_module(MEAN, nn.Identity())
                changed.append(module)
            # A ReLU that an outer block has fused is fused already.
            found[name] = Tap(f"{layer}.{MEAN}", call=call) if isinstance(module, FusedReLU) else taps[name]
        yield found
    finally:
        for module in changed:
            module.__class__ = nn.ReLU
            delattr(module, MEAN)


class FusedReLU(nn.ReLU):
    """A ReLU that gives the mean of its output over space or tokens to its child `mean`. Made by `fused`."""

    def forward(self, input: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "batch ..."]:  # noqa: A002 - torch's name
        """relu(input); the mean goes to the child."""
        keep = self.get_submodule(MEAN)
        if input.ndim == 2:
            output = torch.relu(input)
            keep(output)
            return output
        output, mean = cast("tuple[Tensor, Tensor]", _ReLUMean.apply(input))
        keep(mean)
        return output


class _ReLUMean(torch.autograd.Function):
    """x -> relu(x), its mean over all axes but batch and units."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        axis = unit_axis_of(x.ndim)
        ctx.others = [i for i in range(1, x.ndim) if i != axis]
        output = torch.relu(x)
        ctx.save_for_backward(output)
        # Sums in half precision lose what they add.
        dtype = torch.float32 if x.dtype.itemsize < 4 else x.dtype
        return output, output.mean(ctx.others, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator
        (output,) = ctx.saved_tensors
        size = output.numel() // (output.shape[0] * grads[1].shape[1])
        share = (grads[1] / size).to(output.dtype)
        for axis in ctx.others:
            share = share.unsqueeze(axis)
        total = grads[0] + share
        # Into the sum itself: a second map to write to costs more than the arithmetic.
        return torch.ops.aten.threshold_backward.grad_input(total, output, 0, grad_input=total)
