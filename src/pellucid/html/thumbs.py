"""Thumbnails: packed into sprite sheets, shown by integer upscaling without smoothing, the driving place outlined."""

import dataclasses as dc
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup, escape

from pellucid._checks import DataError

Box = tuple[float | int, float | int, float | int, float | int]
# A box smaller than this many pixels on the screen is not seen; it grows about its middle.
SMALLEST_BOX = 11


@dc.dataclass(frozen=True)
class Place:
    """Where a thumbnail lies: sheet number, left, top, width, height in pixels of the sheet."""

    sheet: int
    x: int
    y: int
    w: int
    h: int


@dc.dataclass(frozen=True)
class Thumb:
    """A thumbnail on a sheet: the sheet's address as the page sees it, its size, and the place on it."""

    url: str
    sheet_w: int
    sheet_h: int
    place: Place

    def scale(self, side: int) -> int:
        """The whole factor by which the thumbnail comes closest to `side` pixels without passing it; at least 1."""
        return max(1, side // max(self.place.w, self.place.h))


def thumb(image: Thumb, *, alt: str, box: Box | None = None, side: int = 64, faded: bool = False) -> Markup:
    """An image of at most `side` pixels cut from a sheet, with `box` outlined on it.

    Args:
        box: (left, top, width, height) as shares of the image.
        faded: shown pale, as one that counts less.
    """
    k = image.scale(side)
    place = image.place
    style = (
        f"width:{place.w * k}px;height:{place.h * k}px;"
        f"background:url({image.url}) {-place.x * k}px {-place.y * k}px/{image.sheet_w * k}px {image.sheet_h * k}px"
    )
    mark = _outline(box, place.w * k, place.h * k) if box else Markup("")
    look = "thumb faded" if faded else "thumb"
    # An f-string for speed: a large run has 60,000 of these.
    return Markup(
        f'<span class="{look}" role="img" title="{escape(alt)}" style="{escape(style)}">{mark}</span>'
    )


def image_grid(thumbs: Iterable[Markup], *, label: str) -> Markup:
    """Thumbnails side by side, wrapping."""
    return Markup('<div class="thumbs" role="group" aria-label="{}">{}</div>').format(
        label, Markup("").join(thumbs)
    )


def sprite_sheets(
    images: Sequence[UInt8[np.ndarray, "_ _ _"]], *, side: int = 2048
) -> tuple[list[UInt8[np.ndarray, "_ _ 3"]], list[Place]]:
    """Pack small RGB or grey images row by row onto sheets of at most `side` pixels a side.

    Returns the sheets and, for each image in order, its place.

    Raises:
        DataError: an image larger than a sheet, or with other than 1 or 3 channels.
    """
    places: list[Place] = []
    sheet = x = y = row = 0
    for i, image in enumerate(images):
        h, w, channels = image.shape
        if max(h, w) > side or channels not in (1, 3):
            raise DataError(
                f"thumbnail {i}: expected 1 or 3 channels and at most {side} px a side, got {image.shape}"
            )
        if x + w > side:
            x, y, row = 0, y + row, 0
        if y + h > side:
            sheet, x, y, row = sheet + 1, 0, 0, 0
        places.append(Place(sheet, x, y, w, h))
        x, row = x + w, max(row, h)
    return [_paint(images, places, number) for number in range(sheet + 1 if places else 0)], places


def _paint(images: Sequence[np.ndarray], places: Sequence[Place], number: int) -> np.ndarray:
    mine = [(image, place) for image, place in zip(images, places, strict=True) if place.sheet == number]
    height = max(place.y + place.h for _, place in mine)
    width = max(place.x + place.w for _, place in mine)
    canvas = np.zeros((height, width, 3), np.uint8)
    for image, place in mine:
        canvas[place.y : place.y + place.h, place.x : place.x + place.w] = image
    return canvas


def _outline(box: Box, width: int, height: int) -> Markup:
    left, w = _widened(box[0] * width, box[2] * width, width)
    top, h = _widened(box[1] * height, box[3] * height, height)
    return Markup(f'<i style="left:{left:.0f}px;top:{top:.0f}px;width:{w:.0f}px;height:{h:.0f}px"></i>')


def _widened(start: float | int, length: float | int, limit: int) -> tuple[float | int, float | int]:
    """Grow [start, start + length] to the smallest visible box about its middle, inside of [0, limit]."""
    grown = min(max(length, SMALLEST_BOX), limit)
    start += (length - grown) / 2
    return min(max(start, 0), limit - grown), grown
