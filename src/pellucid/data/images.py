"""One image file to one tensor in [0, 1]: orientation, transparency, bit depth, colour, size."""

import dataclasses as dc
from io import BufferedIOBase
from typing import IO, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from pellucid._checks import DataError, check_one_of
from pellucid.data.examples import as_float

Fit = Literal["crop", "stretch"]
Channels = Literal["rgb", "grey"]

ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap height and width
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dc.dataclass(frozen=True)
class Look:
    """What images are turned into: `size` (height, width) or None for as they are, `fit`, `channels` or None."""

    size: tuple[int, int] | None = None
    fit: Fit = "crop"
    channels: Channels | None = None

    def __post_init__(self) -> None:
        check_one_of(self.fit, ("crop", "stretch"), "fit")
        if self.channels is not None:
            check_one_of(self.channels, ("rgb", "grey"), "channels")


@dc.dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels are decoded."""

    height: int
    width: int
    channels: Channels
    whole: bool  # False: the end of the file is not the end of an image, so it may be truncated


def peek(stream: BufferedIOBase) -> Header:
    """Read the header of an image and look whether the file ends as its format says."""
    with _open(stream) as image:
        width, height = image.size
        if "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5:
            width, height = height, width
        channels: Channels = "grey" if image.mode in GREY_MODES else "rgb"
        stream.seek(0)
        end = _tail(stream)
        whole = {"PNG": end.endswith(b"IEND\xaeB`\x82"), "JPEG": end.rstrip(b"\0").endswith(b"\xff\xd9")}
        return Header(height, width, channels, whole.get(image.format or "", True))


def decode(stream: BufferedIOBase, look: Look) -> Float[Tensor, "channels height width"]:
    """Decode an image file to float32 in [0, 1].

    EXIF orientation is applied, transparency is laid over white, palettes become RGB, 16-bit grey is divided by
    65,535 and everything else by 255. Grey stays one channel unless `look.channels` says otherwise; RGB becomes
    grey by ITU-R 601 luma. Then it is fitted to `look.size` (see `fit_image`).
    """
    with _open(stream) as opened:
        image = _plain(ImageOps.exif_transpose(opened))
    if look.channels == "grey" and image.mode == "RGB":
        image = image.convert("L")
    elif look.channels == "rgb" and image.mode == "L":
        image = image.convert("RGB")
    if look.size is not None:
        image = fit_image(image, look.size, look.fit)
    x = torch.from_numpy(np.array(image))  # a copy: PIL's memory is read-only
    x = x.unsqueeze(0) if x.ndim == 2 else x.permute(2, 0, 1).contiguous()
    x = x.clamp_(0, 1) if image.mode == "F" else as_float(x)
    return x.expand(3, -1, -1).contiguous() if look.channels == "rgb" and len(x) == 1 else x


def fit_image(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """Fit an image to (height, width), bilinear with antialiasing.

    `crop`: resize until it just covers the size, then cut the centre (for squares, torchvision's
    `Resize(s), CenterCrop(s)`). `stretch`: resize both sides, whatever that does to proportions.
    """
    height, width = size
    if fit == "crop":
        covering, (top, left) = cover((image.height, image.width), size)
    else:
        covering, (top, left) = size, (0, 0)
    if covering != (image.height, image.width):
        image = image.resize((covering[1], covering[0]), Image.Resampling.BILINEAR)
    if covering != size:
        image = image.crop((left, top, left + width, top + height))
    return image


def cover(old: tuple[int, int], new: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size at which `old` (height, width) just covers `new`, and the (top, left) of the central cut."""
    (height, width), (h, w) = old, new
    if height * w >= width * h:  # relatively too tall: the width decides
        covering = max(h, int(w * height / width)), w
    else:
        covering = h, max(w, int(h * width / height))
    return covering, (round((covering[0] - h) / 2), round((covering[1] - w) / 2))


def _open(stream: BufferedIOBase) -> Image.Image:
    if not stream.read(1):
        raise DataError("the file is empty (0 bytes)")
    stream.seek(0)
    return Image.open(cast("IO[bytes]", stream))


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB, or F (16-bit grey as floats in [0, 1])."""
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        raise DataError("floating-point pixels, whose range is unknown; expected 8 or 16 bits")
    if image.mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        grey = image.mode in GREY_MODES
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.float32)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise DataError("32-bit integer pixels; expected 8 or 16 bits")
    return Image.fromarray(pixels / np.float32(65535))


def _tail(stream: BufferedIOBase, length: int = 64) -> bytes:
    end = stream.seek(0, 2)
    stream.seek(max(0, end - length))
    tail = stream.read()
    stream.seek(0)
    return tail
