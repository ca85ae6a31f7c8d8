"""Thumbnails of the example images that a page shows, packed into sprite sheets."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.html import Place, sprite_sheets
from pellucid.store import Run

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.data import Source

# Pixels a side of a thumbnail; smaller images stay as they are, to be enlarged without smoothing.
LARGEST = 64
# Pixels a side of a sheet: 256 of the largest thumbnails, so that a page loads little it does not show.
SIDE = 1024


def save_thumbs(run: Run, source: "Source", indices: Sequence[int]) -> dict[int, Place]:
    """Write `images/thumbs/SHEET.png` for the examples at `indices`; where each lies. Empty for inputs not images.

    Keep the order by layer of first use: a page about one layer then loads few sheets.
    """
    places: dict[int, Place] = {}
    sheets = 0
    at_once = (SIDE // LARGEST) ** 2
    for start in range(0, len(indices), at_once):
        pictures = dict(_pictures(source, indices[start : start + at_once]))
        painted, found = sprite_sheets(list(pictures.values()), side=SIDE)
        for number, sheet in enumerate(painted):
            run.save_image("thumbs", str(sheets + number), sheet)
        for index, place in zip(pictures, found, strict=True):
            places[index] = Place(sheets + place.sheet, place.x, place.y, place.w, place.h)
        sheets += len(painted)
    return places


def _pictures(source: "Source", indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    for batch in source.take(list(indices)).batches(64):
        if batch.inputs.ndim != 4 or batch.inputs.shape[1] not in (1, 3):
            return
        for place, image in zip(batch.index.tolist(), batch.inputs, strict=True):
            yield indices[place], thumbnail(image)


def thumbnail(image: "Tensor") -> np.ndarray:
    """(height, width, 3) bytes of an image in [0, 1], at most `LARGEST` pixels a side."""
    from PIL import Image

    pixels = np.rint(image.permute(1, 2, 0).numpy().clip(0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels)
    if max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return np.asarray(picture)
