"""CIFAR-10 from python batches (read without executing what they hold) or from a JPEG archive with labels."""

import io
import logging
import lzma
import pickle
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from pellucid._checks import ConfigError, DataError, check_one_of
from pellucid.data.arrays import array_source
from pellucid.data.columns import natural_key
from pellucid.data.source import Source

log = logging.getLogger(__name__)

Split = Literal["train", "test", "all"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = "cifar10_jpeg.tar.xz"
COUNTS = {"train": 50000, "test": 10000}
Pixels = UInt8[np.ndarray, "n 3 32 32"]


def cifar10_source(
    root: str | Path, *, split: Split = "test", images: Literal["any", "batches", "jpeg", "lossless"] = "any"
) -> Source:
    """CIFAR-10 (Krizhevsky 2009), 3 x 32 x 32, held in memory as bytes.

    Args:
        root: a folder with python batches (`data_batch_*`, any number of them, and `test_batch`; or a sub-folder
            `cifar-10-batches-py` of it), or with `cifar10_jpeg.tar.xz`, `labels.npz` and `lossless_train_*.png`.
        split: `all` is train then test.
        images: which of those to read; `any` takes the batches, else the JPEG archive. `lossless` are the first
            training images without JPEG's loss, 1,000 a file: training images, so never a test set.

    The factor `original` is each image's place in the original 50,000 or 10,000, where the files tell it.

    Raises:
        DataError: files missing, damaged, or pickles that hold anything but arrays, lists, text and numbers.
    """
    check_one_of(split, ("train", "test", "all"), "split")
    check_one_of(images, ("any", "batches", "jpeg", "lossless"), "images")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder at {root}; expected CIFAR-10")
    batches = next((f for f in (root, root / "cifar-10-batches-py") if _batches(f, "all")), None)
    if images == "lossless":
        return _from_sheets(root, split)
    if images != "jpeg" and batches is not None:
        return _from_batches(batches, split)
    if images != "batches" and (root / ARCHIVE).is_file():
        return _from_archive(root, split)
    raise DataError(
        f"no CIFAR-10 in {root}: expected data_batch_* and test_batch, or {ARCHIVE} with labels.npz"
    )


# --- python batches


def _array(_kind: object, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.ndarray(shape, dtype)  # empty; the pickle's next step fills it


def _scalar(dtype: Any, data: bytes) -> Any:
    return np.frombuffer(data, dtype)[0]


def _from_buffer(data: bytes | bytearray, dtype: Any, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Builds numpy arrays and plain values; refuses every other name that a pickle may ask for."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _array,
        ("numpy._core.multiarray", "_reconstruct"): _array,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("numpy", "ndarray"): None,  # only handed on to _reconstruct, which does not look at it
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is not plain data")
        return self.ALLOWED[module_name, global_name]


def read_batch(path: str | Path) -> dict[str, Any]:
    """Read one CIFAR batch file: a dict of arrays, lists, text and numbers; anything else is refused.

    Raises:
        DataError: not a pickle, truncated, or one that asks for any other type or function.
    """
    path = Path(path)
    try:
        found = _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle fails in any way
        raise DataError(f"cannot read CIFAR batch {path}: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"CIFAR batch {path} holds a {type(found).__name__}, expected a dict")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in found.items()}


def _batches(folder: Path, split: Split) -> list[Path]:
    train = sorted(folder.glob("data_batch_*"), key=lambda path: natural_key(path.name))
    test = [folder / "test_batch"] if (folder / "test_batch").is_file() else []
    return {"train": train, "test": test, "all": train + test}[split]


def _from_batches(folder: Path, split: Split) -> Source:
    paths = _batches(folder, split)
    if not paths:
        raise DataError(f"no {'test_batch' if split == 'test' else 'data_batch_*'} in {folder}")
    pixels: list[np.ndarray] = []
    targets: list[int] = []
    original: list[int] = []
    for path in paths:
        batch = read_batch(path)
        data, labels = batch.get("data"), batch.get("labels")
        if (
            not isinstance(data, np.ndarray)
            or data.dtype != np.uint8
            or data.ndim != 2
            or data.shape[1] != 3072
        ):
            raise DataError(f"CIFAR batch {path}: 'data' must be bytes of shape (n, 3072), got {_kind(data)}")
        if not isinstance(labels, list) or len(labels) != len(data):
            raise DataError(
                f"CIFAR batch {path}: 'labels' must be a list of {len(data)}, got {_kind(labels)}"
            )
        pixels.append(data.reshape(-1, 3, 32, 32))
        targets += [int(label) for label in labels]
        original += [int(i) for i in batch.get("indices", [])]
    meta = folder / "batches.meta"
    classes = (
        tuple(str(name) for name in read_batch(meta).get("label_names", CLASSES))
        if meta.is_file()
        else CLASSES
    )
    factors = {"original": torch.tensor(original)} if len(original) == len(targets) else {}
    return array_source(np.concatenate(pixels), targets, name="CIFAR-10", classes=classes, factors=factors)


def _kind(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


# --- JPEG archive and lossless sheets


def _from_archive(root: Path, split: Split) -> Source:
    labels, classes = _read_labels(root)
    parts = ("train", "test") if split == "all" else (split,)
    pixels = _read_archive(root / ARCHIVE, parts)
    targets = np.concatenate([labels[part] for part in parts])
    names = [f"{part}/{i}" for part in parts for i in range(COUNTS[part])]
    factors = {"original": torch.cat([torch.arange(COUNTS[part]) for part in parts])}
    return array_source(
        pixels, targets, name="CIFAR-10 (JPEG)", classes=classes, names=names, factors=factors
    )


def _read_labels(root: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    path = root / "labels.npz"
    if not path.is_file():
        raise DataError(f"no labels.npz in {root}: it holds the labels of the images")
    try:
        with np.load(path, allow_pickle=False) as found:
            labels = {part: np.asarray(found[part]).astype(np.int64) for part in COUNTS}
            classes = tuple(str(name) for name in found["classes"]) if "classes" in found else CLASSES
    except Exception as error:  # zip, npy and key errors alike
        raise DataError(
            f"cannot read {path}: {error}; expected the arrays train, test and classes"
        ) from error
    for part, n in COUNTS.items():
        if labels[part].shape != (n,):
            raise DataError(f"{path}: {part} has shape {labels[part].shape}, expected ({n},)")
    return labels, classes


def _read_archive(path: Path, parts: tuple[str, ...]) -> Pixels:
    """Decode `.../SPLIT/CLASS/INDEX.jpg` for the wanted splits; the index is the original one."""
    begun = time.monotonic()
    n = sum(COUNTS[part] for part in parts)
    offset = {part: sum(COUNTS[p] for p in parts[:k]) for k, part in enumerate(parts)}
    pixels = np.zeros((n, 32, 32, 3), np.uint8)
    filled = np.zeros(n, bool)
    log.info("decoding %d images of %s", n, path)
    try:
        with tarfile.open(path, "r|*") as archive:
            for done, (part, i, content) in enumerate(_members(archive, parts), start=1):
                with Image.open(io.BytesIO(content)) as image:
                    pixels[offset[part] + i] = np.asarray(image.convert("RGB"))
                filled[offset[part] + i] = True
                if done % 10000 == 0:
                    log.info("decoded %d of %d images", done, n)
    except (tarfile.TarError, lzma.LZMAError, OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"cannot read {path}: {error}; the archive is damaged or truncated") from error
    if not filled.all():
        raise DataError(
            f"{path} holds {int(filled.sum())} of {n} images of {'/'.join(parts)}; it is truncated"
        )
    log.info("decoded %d images in %.1f s", n, time.monotonic() - begun)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _members(archive: tarfile.TarFile, parts: tuple[str, ...]) -> Iterator[tuple[str, int, bytes]]:
    """(split, index, content) of the images of the wanted splits, in the order of the archive."""
    for member in archive:
        path = PurePosixPath(member.name)
        part = path.parent.parent.name
        stream = archive.extractfile(member) if part in parts else None
        if stream is not None:
            yield part, int(path.stem), stream.read()


def _from_sheets(root: Path, split: Split) -> Source:
    if split == "test":
        raise ConfigError(
            "the lossless CIFAR-10 images are training images; ask for split='train' (--split train)"
        )
    labels, classes = _read_labels(root)
    paths = sorted(root.glob("lossless_train_*.png"), key=lambda path: natural_key(path.name))
    if not paths:
        raise DataError(f"no lossless_train_*.png in {root}")
    sheets: list[np.ndarray] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                sheet = np.asarray(image.convert("RGB"))
            sheets.append(sheet.reshape(-1, 32, 32, 3))  # one image a row of the sheet
        except Exception as error:  # decoders fail with errors of many types on broken files
            raise DataError(f"cannot read {path}: {error}") from error
    pixels = np.concatenate(sheets).transpose(0, 3, 1, 2)
    n = len(pixels)
    names = [f"train/{i}" for i in range(n)]
    return array_source(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        labels["train"][:n],
        name="CIFAR-10 (lossless training images)",
        classes=classes,
        names=names,
        factors={"original": torch.arange(n)},
    )
