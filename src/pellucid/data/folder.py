"""Images of the user's own: a folder or a tar archive, with classes from sub-folders or from a CSV file."""

import dataclasses as dc
import logging
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pellucid._checks import DataError, nearest
from pellucid.data.columns import encode, numbers, read_csv
from pellucid.data.files import EXTENSIONS, Files, is_archive, list_archive, list_folder
from pellucid.data.imagefiles import image_examples
from pellucid.data.images import Channels, Fit, Look
from pellucid.data.source import Source
from pellucid.preprocess import Size, parse_size

log = logging.getLogger(__name__)

SPLIT_NAMES = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


@dc.dataclass(frozen=True)
class _Labels:
    """What is known of the files that are used: their places in the list, and columns in that order."""

    used: list[int]
    targets: Tensor | None
    classes: tuple[str, ...]
    factors: dict[str, Tensor]
    factor_names: dict[str, tuple[str, ...]]
    groups: Tensor | None = None


def folder_source(
    path: str | Path,
    *,
    split: Literal["train", "test", "all"] = "all",
    size: Size | None = None,
    fit: Fit = "crop",
    channels: Channels | None = None,
    labels: str | Path | None = None,
    skip_unreadable: bool = False,
    workers: int = 0,
) -> Source:
    """Images in a folder or a tar archive, decoded batch by batch.

    One sub-folder a class, or a flat and unlabelled folder; in natural order, hidden files left out. A folder that
    holds nothing but `train` and `test` (or `val`) is entered at `split`; any other folder is one set, whatever the
    split. `size`, `fit` and `channels` are those of `pellucid.data.images.Look`.

    Args:
        labels: CSV with the columns `path` (relative) and `label`, which then decides which files are used and in
            what order. Further columns become factors; one called `group` also becomes the groups.
        skip_unreadable: leave unreadable images out of the batches and list them in `Source.skipped`.
        workers: threads that decode batches ahead.

    Raises:
        DataError: nothing there, no images, an empty class folder, unreadable or unequal images, wrong labels.
    """
    path = Path(path).expanduser()
    look = Look(parse_size(size), fit, channels)
    files, found = _open(path, split, labels)
    chosen = [files.names[i] for i in found.used]
    examples = image_examples(
        _Chosen(files, chosen, found.used), look, targets=found.targets, skip_unreadable=skip_unreadable
    )
    return Source(
        path.name,
        examples,
        found.classes,
        found.factors,
        names=chosen,
        groups=found.groups,
        factor_names=found.factor_names,
        workers=workers,
    )


@dc.dataclass(frozen=True)
class _Chosen:
    """Some files of a list, in another order."""

    files: Files
    names: list[str]
    places: list[int]

    def open(self, i: int) -> BufferedIOBase:
        return self.files.open(self.places[i])

    def where(self, i: int) -> str:
        return self.files.where(self.places[i])


def _open(path: Path, split: str, labels: str | Path | None) -> tuple[Files, _Labels]:
    if not path.exists():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = f"; beside it: {nearest(path.name, sorted(beside))}" if beside else ""
        raise DataError(f"no folder or archive at {path}{hint}")
    if path.is_dir():
        root = path if labels else _enter_split(path, split)
        files: Files = list_folder(root)
    elif is_archive(path):
        root, files = None, list_archive(path)
    else:
        raise DataError(f"{path} is neither a folder nor a tar archive")
    if not files.names:
        raise DataError(f"no images in {root or path}; expected files ending in {', '.join(EXTENSIONS)}")
    if labels:
        return files, _from_csv(files, Path(labels).expanduser(), path)
    return files, _from_folders(files, root)


def _enter_split(root: Path, split: str) -> Path:
    """`root`, or its sub-folder for `split` when it holds nothing but such sub-folders."""
    entries = [entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".")]
    folders = {entry.name.lower(): entry for entry in entries if entry.is_dir()}
    known = {name for names in SPLIT_NAMES.values() for name in names}
    images = any(entry.name.lower().endswith(EXTENSIONS) for entry in entries if entry.is_file())
    if images or not folders or not set(folders) <= known:
        return root
    if split not in SPLIT_NAMES:
        raise DataError(
            f"{root} holds {sorted(folders)}; say which with split='train' or 'test', or give its path"
        )
    for name in SPLIT_NAMES[split]:
        if name in folders:
            return folders[name]
    raise DataError(
        f"{root} holds {sorted(folders)} but nothing for split {split!r}; give the path of one of them"
    )


def _from_folders(files: Files, root: Path | None) -> _Labels:
    """Targets from the first folder of each name; for an archive, below the folders that all files share."""
    parts = [name.split("/") for name in files.names]
    while root is None and all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    used = list(range(len(parts)))
    flat = sum(len(part) == 1 for part in parts)
    if root is not None:
        _check_no_empty_class(root, {part[0] for part in parts if len(part) > 1})
    if flat == len(parts):
        return _Labels(used, None, (), {}, {})
    if flat:
        loose = next("/".join(part) for part in parts if len(part) == 1)
        raise DataError(
            f"images lie both in sub-folders and beside them ({loose!r} and {flat - 1} more beside): "
            "keep one sub-folder a class, or all images in one flat folder"
        )
    targets, classes = encode(part[0] for part in parts)
    return _Labels(used, targets, classes, {}, {})


def _check_no_empty_class(root: Path, classes: set[str]) -> None:
    if not classes:
        return
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    empty = sorted(folders - classes - {"__MACOSX"})
    if empty:
        raise DataError(
            f"class folder {root / empty[0]} holds no images; fill or remove it (empty: {empty[:5]})"
        )


def _from_csv(files: Files, labels: Path, path: Path) -> _Labels:
    columns = read_csv(labels, "labels file")
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        raise DataError(f"labels file {labels} lacks the columns {missing}; it has {list(columns)}")
    paths = [name.replace("\\", "/").removeprefix("./") for name in columns.pop("path")]
    place = {name: i for i, name in enumerate(files.names)}
    lost = [name for name in paths if name not in place]
    if lost:
        raise DataError(
            f"labels file {labels} names {len(lost)} images that are not in {path}, first {lost[0]!r}; "
            f"nearest there: {nearest(lost[0], files.names)}"
        )
    if len(set(paths)) < len(paths):
        twice = next(name for i, name in enumerate(paths) if name in paths[:i])
        raise DataError(f"labels file {labels} names {twice!r} more than once")
    if len(paths) < len(place):
        log.warning(
            "%d of %d images in %s have no row in %s and are not used",
            len(place) - len(paths),
            len(place),
            path,
            labels,
        )
    label = columns.pop("label")
    if not all(label):
        raise DataError(f"labels file {labels}: {paths[label.index('')]!r} has an empty label")
    targets, classes = encode(label)
    factors, factor_names = factor_columns(columns)
    groups = factors["group"].long() if "group" in factors else None
    return _Labels([place[name] for name in paths], targets, classes, factors, factor_names, groups)


def factor_columns(columns: dict[str, list[str]]) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Text columns as codes with their names, numeric ones as float32 (NaN where empty). `group` is always coded."""
    factors: dict[str, Tensor] = {}
    names: dict[str, tuple[str, ...]] = {}
    for key, values in columns.items():
        found = None if key == "group" else numbers(values)
        if found is None:
            factors[key], names[key] = encode(values)
        else:
            factors[key] = torch.tensor(found, dtype=torch.float32)
    return factors, names
