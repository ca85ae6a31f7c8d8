"""MNIST and Fashion-MNIST from their idx files."""

import gzip
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8

from pellucid._checks import DataError, check_one_of
from pellucid.data.arrays import array_source
from pellucid.data.source import Source

Split = Literal["train", "test", "all"]

DIGITS = tuple(str(i) for i in range(10))
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
PREFIX = {"train": "train", "test": "t10k"}


def mnist_source(root: str | Path, *, split: Split = "test") -> Source:
    """MNIST (LeCun, Cortes & Burges), 1 x 28 x 28: 60,000 to train and 10,000 to test; `all` is train then test.

    `root` holds the four idx files, or a folder `raw`, or `MNIST/raw`; each file may be gzipped (`.gz`).
    """
    return _idx_source(root, "MNIST", DIGITS, split)


def fashion_mnist_source(root: str | Path, *, split: Split = "test") -> Source:
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017), laid out as MNIST, with `FashionMNIST/raw`."""
    return _idx_source(root, "FashionMNIST", CLOTHES, split)


def _idx_source(root: str | Path, name: str, classes: tuple[str, ...], split: Split) -> Source:
    check_one_of(split, ("train", "test", "all"), "split")
    root = Path(root).expanduser()
    parts = [PREFIX[part] for part in (("train", "test") if split == "all" else (split,))]
    folder = _find(root, name, f"{parts[0]}-images-idx3-ubyte")
    images: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for part in parts:
        images.append(read_idx(folder / f"{part}-images-idx3-ubyte", 3))
        targets.append(read_idx(folder / f"{part}-labels-idx1-ubyte", 1))
        if len(images[-1]) != len(targets[-1]):
            raise DataError(f"{folder}: {len(images[-1])} {part} images but {len(targets[-1])} labels")
    x = torch.from_numpy(np.concatenate(images)).unsqueeze(1)
    return array_source(x, np.concatenate(targets), name=name, classes=classes)


def _find(root: Path, name: str, wanted: str) -> Path:
    if not root.is_dir():
        raise DataError(f"no folder at {root}; expected the idx files of {name}")
    folders = [root / name / "raw", root / "raw", root, root / name]
    for folder in folders:
        if (folder / wanted).is_file() or (folder / f"{wanted}.gz").is_file():
            return folder
    raise DataError(
        f"no {wanted} (or .gz) for {name} in {root}; looked in {[str(folder.relative_to(root)) for folder in folders]}"
    )


def read_idx(path: str | Path, ndim: int) -> UInt8[np.ndarray, "..."]:
    """Read an idx file of unsigned bytes with `ndim` axes; `path` or `path.gz`.

    Raises:
        DataError: missing, of another kind (its magic number), or shorter or longer than its header says.
    """
    path = Path(path)
    if not path.is_file():
        path = path.with_name(path.name + ".gz")
    if not path.is_file():
        raise DataError(f"no {path.with_suffix('')} (or .gz)")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; the file is damaged or truncated") from error
    magic = 0x0800 + ndim  # unsigned bytes, ndim axes
    start = 4 + 4 * ndim
    if len(data) < start or int.from_bytes(data[:4], "big") != magic:
        raise DataError(
            f"{path} is no idx file of {ndim} axes of bytes: magic {data[:4].hex()}, expected {magic:08x}"
        )
    shape: tuple[int, ...] = struct.unpack(f">{ndim}I", data[4:start])
    expected = int(np.prod(shape, dtype=np.int64))
    if len(data) - start != expected:
        raise DataError(
            f"{path} is truncated or damaged: {len(data) - start} bytes of data, {expected} expected for {shape}"
        )
    return np.frombuffer(bytearray(data[start:]), dtype=np.uint8).reshape(shape)
