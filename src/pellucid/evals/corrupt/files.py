"""Read corrupted images from files in the layout of CIFAR-10-C.

A folder holds one `TYPE.npy` for each corruption, uint8 of shape (5 n, height, width, channels), the n images of
severity 1 first, and `labels.npy` with 5 n labels (or n, when they are not repeated).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pellucid._checks import ConfigError, DataError, nearest
from pellucid.data import Source, array_source
from pellucid.evals.corrupt.severities import SEVERITIES

LABELS = "labels.npy"


def corruption_files(folder: str | Path) -> tuple[str, ...]:
    """Names of the corruptions that a folder has a file for, in alphabetical order; `DataError` when there is none."""
    folder = Path(folder)
    found = sorted(p.stem for p in folder.glob("*.npy") if p.name != LABELS) if folder.is_dir() else []
    if not found:
        raise DataError(
            f"no corruption files in {folder}: expected TYPE.npy for each corruption, and {LABELS}"
        )
    return tuple(found)


def corruption_file(folder: str | Path, name: str, severity: int, *, classes: Sequence[str] = ()) -> Source:
    """The images of one corruption at one severity, in the order of the file.

    Only that fifth of the file is read.

    Raises:
        ConfigError: a severity outside 1 to 5, or no file of that name (the nearest is named).
        DataError: no labels, a wrong length, shape or type.
    """
    folder = Path(folder)
    if severity not in SEVERITIES:
        raise ConfigError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    there = corruption_files(folder)
    if name not in there:
        raise ConfigError(f"no {name}.npy in {folder}; nearest: {nearest(name, there)}")
    images = _read(folder / f"{name}.npy")
    labels = _read(folder / LABELS)
    n = _images_each(images, folder / f"{name}.npy")
    part = slice((severity - 1) * n, severity * n)
    targets = _labels_of(labels, n, part, folder)
    pixels = torch.from_numpy(np.array(images[part])).permute(0, 3, 1, 2).contiguous()
    return array_source(pixels, targets, name=f"{name} {severity}", classes=classes)


def _images_each(images: np.ndarray, path: Path) -> int:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{path} must hold uint8 images (5 n, height, width, 1 or 3), got {images.dtype} of shape {images.shape}"
        )
    if len(images) == 0 or len(images) % len(SEVERITIES):
        raise DataError(
            f"{path} holds {len(images)} images, which is not five severities of the same images: it is cut short, or "
            "not a corruption file"
        )
    return len(images) // len(SEVERITIES)


def _labels_of(labels: np.ndarray, n: int, part: slice, folder: Path) -> np.ndarray:
    if (
        labels.ndim != 1
        or not np.issubdtype(labels.dtype, np.integer)
        or len(labels) not in (n, len(SEVERITIES) * n)
    ):
        raise DataError(
            f"{folder / LABELS} must hold {len(SEVERITIES) * n} or {n} whole numbers to go with {len(SEVERITIES)} x {n} "
            f"images, got {labels.dtype} of shape {labels.shape}"
        )
    return np.array(labels if len(labels) == n else labels[part]).astype(np.int64)


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a whole .npy array of numbers: {error}") from error
