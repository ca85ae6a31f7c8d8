"""The two matrix products of a pull, in as little time and memory as they take.

Left to right they cost 4 m^2 n; on the smaller side 4 min(m, n)^2 max(m, n). On a processor the Gram matrix is
computed in strips up to its diagonal, and the second product in panels that stay in the cache, so that no copy of the
weight is ever made.
"""

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

STRIP = 64
"""Rows of the Gram matrix that one product fills, on a processor."""

PANEL = 1 << 18
"""Numbers of the weight that are copied at a time, on a processor: 1 MB in float32."""


def is_tall(w: Float[Tensor, "*parts rows columns"]) -> bool:
    """Whether the column side is the smaller one."""
    return w.shape[-2] > w.shape[-1]


def gram(w: Float[Tensor, "*parts rows columns"]) -> Float[Tensor, "*parts side side"]:
    """W W^T for a wide matrix, W^T W for a tall one."""
    return row_gram(w.mT) if is_tall(w) else row_gram(w)


def row_gram(w: Float[Tensor, "*parts rows columns"]) -> Float[Tensor, "*parts rows rows"]:
    """W W^T."""
    rows = w.shape[-2]
    if w.ndim > 2 or w.device.type != "cpu" or rows <= STRIP or w.dtype == torch.bfloat16:
        return w @ w.mT  # strips of bfloat16 take longer than the whole
    found = w.new_empty(rows, rows)
    for start in range(0, rows, STRIP):
        stop = min(start + STRIP, rows)
        strip = found[start:stop, :stop]
        torch.mm(w[start:stop], w[:stop].mT, out=strip)
        found[:start, start:stop] = strip[:, :start].mT
    return found


def row_squares(w: Float[Tensor, "*parts rows columns"]) -> Float[Tensor, "*parts rows 1"]:
    """The squared norm of each row."""
    if w.ndim > 2 or w.device.type != "cpu" or w.stride(-1) == 1:
        return torch.linalg.vector_norm(w, dim=-1, keepdim=True).square_()
    # Rows that are columns in memory: summing along memory, a cacheful at a time, is four times as fast.
    lying = w.mT
    found = w.new_zeros(w.shape[0])
    for panel in lying.split(max(1, PANEL // 2 // lying.shape[1])):
        found += panel.square().sum(0)
    return found[:, None]


def add_bfloat16_product_(
    w: Float[Tensor, "*parts rows columns"],
    e: Float[Tensor, "*parts side side"],
    half: BFloat16[Tensor, "*parts rows columns"],
) -> Float[Tensor, "*parts rows columns"]:
    """As `add_product_`, the product taken of bfloat16 copies of both; the sum keeps the precision of W."""
    if is_tall(w):
        add_bfloat16_product_(w.mT, e, half.mT)
        return w
    e = e.bfloat16()
    width = w.shape[-1] if w.ndim > 2 else _width(w)
    for part, operand in zip(w.split(width, -1), half.split(width, -1), strict=True):
        part.add_(e @ operand)
    return w


def add_product_(
    w: Float[Tensor, "*parts rows columns"], e: Float[Tensor, "*parts side side"]
) -> Float[Tensor, "*parts rows columns"]:
    """W <- W + E W where E has the rows of W, W + W E where it has its columns; E is symmetric."""
    if is_tall(w):
        add_product_(w.mT, e)  # W + W E = (W^T + E W^T)^T
    elif w.ndim > 2:
        w.baddbmm_(e, w.clone())
    else:
        _add_in_panels_(w, e)
    return w


def _add_in_panels_(w: Float[Tensor, "rows columns"], e: Float[Tensor, "rows rows"]) -> None:
    # A column of E W needs no other column of W, so columns can be replaced a panel at a time.
    for panel in w.split(_width(w), 1):
        panel.addmm_(e, panel.clone())


def _width(w: Float[Tensor, "rows columns"]) -> int:
    """Columns of a panel: half at most, so that panel and Gram matrix together stay below one copy of the weight."""
    rows, columns = w.shape
    return max(1, min(max(STRIP, PANEL // rows), -(-columns // 2))) if w.device.type == "cpu" else columns
