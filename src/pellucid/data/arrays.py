"""Sources from arrays in memory."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Integer, Shaped
from torch import Tensor

from pellucid._checks import DataError
from pellucid.data.examples import ArrayExamples
from pellucid.data.source import Source


def array_source(
    inputs: Shaped[Tensor, "n ..."] | Shaped[np.ndarray, "n ..."],
    targets: Integer[Tensor, " n"] | Integer[np.ndarray, " n"] | Sequence[int] | None = None,
    *,
    name: str = "array",
    classes: Sequence[str] = (),
    factors: Mapping[str, Tensor] | None = None,
    factor_names: Mapping[str, tuple[str, ...]] | None = None,
    captions: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    groups: Tensor | None = None,
) -> Source:
    """A source of arrays: images (n, channels, height, width), features (n, features) or any other shape.

    uint8 images stay uint8 in memory and become float32 in [0, 1] batch by batch; floating images must lie in
    [0, 1]. Classes default to "0", "1", ... up to the largest target.

    Raises:
        DataError: NaN or infinity, images outside [0, 1], channels last, targets that do not fit.
    """
    x = torch.as_tensor(inputs)
    y = None if targets is None else torch.as_tensor(targets).long()
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        x = x.float()
    _check_inputs(x, name)
    if y is not None:
        classes = _check_targets(y, len(x), classes, name)
    return Source(
        name,
        ArrayExamples(x, y),
        tuple(classes),
        dict(factors or {}),
        captions,
        names,
        groups,
        dict(factor_names or {}),
    )


def _check_inputs(x: Tensor, name: str) -> None:
    if not len(x):
        raise DataError(f"{name!r} holds no examples")
    image = x.ndim == 4
    if image and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        raise DataError(
            f"{name!r}: images must be (n, channels, height, width), got {tuple(x.shape)}; try permute(0, 3, 1, 2)"
        )
    if x.dtype == torch.uint8:
        return
    if not x.is_floating_point():
        raise DataError(f"{name!r}: inputs must be uint8 or floating, got {x.dtype}")
    low, high = (float(value) for value in x.aminmax())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name!r}: inputs contain NaN or infinity")
    if image and (low < 0 or high > 1):
        raise DataError(
            f"{name!r}: floating images must lie in [0, 1], got [{low:.4g}, {high:.4g}]; "
            "divide by 255, and leave mean and standard deviation to the model (pellucid.normalize)"
        )


def _check_targets(y: Tensor, n: int, classes: Sequence[str], name: str) -> tuple[str, ...]:
    if y.ndim != 1 or len(y) != n:
        raise DataError(f"{name!r}: {n} examples need {n} targets, got shape {tuple(y.shape)}")
    low, high = int(y.min()), int(y.max())
    classes = tuple(classes) or tuple(str(i) for i in range(high + 1))
    if low < 0 or high >= len(classes):
        raise DataError(f"{name!r}: targets must lie in [0, {len(classes) - 1}], got {low} to {high}")
    return classes
