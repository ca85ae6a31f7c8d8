"""A convolution whose backward pass is cheap where its gradient is almost everywhere zero.

In the plain network a global maximum stands behind the last convolution: of the 225 places of each of its channels one
has a gradient. Products with all the others are products with zero, and they are most of the training of the CIFAR-10
network. Left out here, the gradients are those of `nn.Conv2d` to rounding, at less than half the time.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGES = 4
"""Images at a time, so that their patches stay in the cache."""

SPARSE = 0.05
"""Share of gradients that are not zero up to which this is worth it."""


class SparseGradConv2d(nn.Conv2d):
    """`nn.Conv2d` without dilation and groups, for gradients that are mostly zero."""

    def forward(self, x: Tensor) -> Tensor:
        return _Convolution.apply(x, self.weight, self.bias, self.stride, self.padding)


@contextlib.contextmanager
def sparse_gradient(model: nn.Module, layer: str) -> Iterator[None]:
    """Inside, this convolution's backward pass is replaced; parameters and names stay as they are. "" replaces none."""
    conv = model.get_submodule(layer) if layer else None
    if conv is None:
        yield
        return
    if type(conv) is not nn.Conv2d or conv.groups != 1 or conv.dilation != (1, 1) or conv.bias is None:
        raise ValueError(f"{layer} is no convolution with a bias and without groups and dilation")
    conv.__class__ = SparseGradConv2d
    try:
        yield
    finally:
        conv.__class__ = nn.Conv2d


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x, weight), (stride, padding), grad = ctx.saved_tensors, ctx.how, grads[0].permute(0, 2, 3, 1)
        if int(grad.count_nonzero()) > SPARSE * grad.numel():
            dense = torch.ops.aten.convolution_backward(
                grads[0], x, weight, [len(weight)], stride, padding, (1, 1), False, (0, 0), 1, [True] * 3
            )
            return *dense, None, None
        found = _sparse(x, weight, grad, stride=stride, padding=padding)
        return *found, grad.sum((0, 1, 2)), None, None


def _sparse(x: Tensor, weight: Tensor, grad: Tensor, *, stride: Any, padding: Any) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight, from what of `grad` (image, row, column, channel) is not zero."""
    where = grad.nonzero()
    (rows, columns), (down, right) = grad.shape[1:3], stride
    channels, (high, wide) = weight.shape[1], weight.shape[2:]
    last = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1).contiguous()
    windows = padded.unfold(1, high, down).unfold(2, wide, right).permute(0, 1, 2, 4, 5, 3)
    into, per_weight = torch.zeros_like(padded), torch.zeros_like(last)
    values = grad[tuple(where.T)]
    place = (where[:, 0] * rows + where[:, 1]) * columns + where[:, 2]
    for start in range(0, len(x), IMAGES):
        stop = min(start + IMAGES, len(x))
        mine = slice(*torch.searchsorted(where[:, 0].contiguous(), torch.tensor([start, stop])).tolist())
        at, unit, size = place[mine] - start * rows * columns, where[mine, 3], (stop - start) * rows * columns
        order = unit.argsort(stable=True)
        by_unit = _compressed(unit[order], at[order], values[mine][order], (len(weight), size))
        per_weight += by_unit @ windows[start:stop].reshape(size, -1)
        by_place = _compressed(at, unit, values[mine], (size, len(weight)))
        patches = (by_place @ last).view(stop - start, rows, columns, high, wide, channels)
        for i in range(high):
            for j in range(wide):
                part = into[start:stop, i : i + down * rows : down, j : j + right * columns : right]
                part += patches[:, :, :, i, j]
    height, width = x.shape[2:]
    inside = into[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width].permute(0, 3, 1, 2)
    return inside, per_weight.view(len(weight), high, wide, channels).permute(0, 3, 1, 2)


def _compressed(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, ...]) -> Tensor:
    """A sparse matrix from entries that are sorted by row."""
    starts = torch.searchsorted(rows.contiguous(), torch.arange(size[0] + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse tensors are in beta
        return torch.sparse_csr_tensor(starts, columns, values, size)
