"""Arrays to PNG, losslessly."""

import io
from typing import Any

import numpy as np

from pellucid._checks import DataError
from pellucid.store.tree import as_numpy


def png_bytes(image: Any, what: str) -> bytes:
    """A PNG of an array (height, width) or (height, width, 1 | 3 | 4): bytes, or reals in [0, 1]."""
    from PIL import Image

    pixels = _as_bytes(as_numpy(image, what), what)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise DataError(
            f"{what}: expected (height, width) or (height, width, 1 | 3 | 4), got shape {pixels.shape}; "
            "a channels-first tensor becomes one by .permute(1, 2, 0)"
        )
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, format="png")
    return sink.getvalue()


def _as_bytes(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise DataError(f"{what}: expected bytes or reals in [0, 1], got {array.dtype}")
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise DataError(f"{what}: expected reals in [0, 1], got [{array.min():.3g}, {array.max():.3g}]")
    return np.rint(array * 255).astype(np.uint8)
