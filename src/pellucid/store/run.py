"""`Run`: one folder that holds everything a job found, and from which the pages are made."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pellucid._checks import ConfigError, DataError, StaleResultError, nearest
from pellucid.store.files import check_space, existing, explained, write_bytes
from pellucid.store.tables import read_table, stored_inputs, table_bytes
from pellucid.store.tree import Arrays, from_json, put_together, take_apart, to_json

SCHEMA = 1
"""Version of the layout of a run folder; another one is refused, never guessed at."""

HEADER = "run.json"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
RESERVED = ("schema", "created", "versions")
PACKAGES = ("pellucid", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn")

Inputs = Mapping[str, str]


class Run:
    """A run folder, opened: `run.json`, `facts/`, `tables/`, `arrays/`, `images/`, `pages/`.

    Every write is whole or not at all. A result may carry `inputs`, SHA-256 hashes of what it was computed from
    (weights, layers, preprocessing, data, package version, the method's version); asked for with other inputs it is
    a `StaleResultError`. Names are letters, digits, "_", "-" and ".", so that no name leaves the folder.

    Args:
        path: a folder that `Run.create` made.

    Raises:
        ConfigError: no run there, or one of another schema version.
        DataError: `run.json` is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.header: dict[str, Any] = _read_header(self.path)

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """The run in `path`; the same as `Run(path)`."""
        return cls(path)

    @classmethod
    def create(cls, path: Path | str, facts: Mapping[str, Any] | None = None, *, needed: int = 0) -> "Run":
        """Make a run folder of a path that does not exist or is empty, and write `facts` to its `run.json`.

        Args:
            facts: what a reader must know to judge or repeat the run: recipe, seed, data fingerprint, weights hash.
                Schema version, time and package versions are added here.
            needed: bytes that the whole run will take; checked against the free space.

        Raises:
            ConfigError: the folder holds something else, is a run already, cannot be written, or has no room.
        """
        path = Path(path)
        if (path / HEADER).exists():
            raise ConfigError(f"{path} is a run already; open it with Run.open, or write to another folder")
        check_writable(path, needed=needed)
        own = _plain(facts or {})
        header = {"schema": SCHEMA, "created": _now(), "versions": _versions(), **own}
        write_bytes(path / HEADER, to_json(header))
        return cls(path)

    def annotate(self, facts: Mapping[str, Any]) -> None:
        """Add to `run.json`, or replace there: the end of a job, its duration, its recipe resolved."""
        header = {**self.header, **_plain(facts)}
        write_bytes(self.path / HEADER, to_json(header))
        self.header = header

    def save(self, name: str, result: Any, *, inputs: Inputs | None = None) -> None:
        """Keep a dataclass or mapping: numbers and text in `facts/NAME.json`, arrays in `arrays/NAME.safetensors`.

        The JSON is written last and carries the hash of the arrays, so that the two always belong together.

        Raises:
            ConfigError: a name or value that has no place in a run folder, or a disk that does not take it.
        """
        from safetensors.numpy import save

        arrays: Arrays = {}
        tree = take_apart(result, arrays)
        if not isinstance(tree, dict):
            raise ConfigError(
                f"{name}: expected a dataclass or a mapping to save, got {type(result).__name__}"
            )
        about: dict[str, Any] = {"$type": type(result).__name__, "$inputs": dict(inputs or {})}
        file = self._file("arrays", name, "safetensors")
        if arrays:
            data = save(arrays)
            about["$arrays"] = hashlib.sha256(data).hexdigest()
            write_bytes(file, data)
        write_bytes(self._file("facts", name, "json"), to_json({**about, **tree}))
        if not arrays:
            file.unlink(missing_ok=True)

    def facts(self, name: str, *, inputs: Inputs | None = None) -> dict[str, Any]:
        """The numbers and texts saved under `name`, nested as they were, without the arrays.

        Raises:
            DataError: nothing saved under this name (the nearest are listed), or the file is damaged.
            StaleResultError: saved with other inputs than the ones given; says which differ.
        """
        _, tree = self._tree(name, inputs)
        return put_together(tree, None)

    def arrays(self, name: str, *, inputs: Inputs | None = None) -> Arrays:
        """The arrays saved under `name` by their path, such as "mean" or "conv1/mean". Raises as `facts` does."""
        about, _ = self._tree(name, inputs)
        return self._arrays(name, about)

    def load(self, name: str, *, inputs: Inputs | None = None) -> dict[str, Any]:
        """What was saved under `name`, nested as it was, arrays in their places. Raises as `facts` does."""
        about, tree = self._tree(name, inputs)
        return put_together(tree, self._arrays(name, about))

    def has(self, name: str, *, inputs: Inputs | None = None) -> bool:
        """Whether a result or table of this name is there and was computed from `inputs`.

        Raises:
            StaleResultError: it is there, computed from something else.
        """
        table = self._file("tables", name, "parquet")
        found = table.exists()
        if found:
            self._check_inputs(name, stored_inputs(table), inputs)
        if self._file("facts", name, "json").exists():
            about, _ = self._tree(name, inputs)
            # A job killed between the two files of one result left a pair that does not match: not there yet.
            found |= self._array_bytes(name, about) is not None
        return found

    def save_table(self, name: str, columns: Mapping[str, Any], *, inputs: Inputs | None = None) -> None:
        """Keep columns of equal length (lists, arrays, tensors; numbers, text, booleans, None) as parquet.

        Raises:
            DataError: columns of unequal length or of mixed types.
        """
        write_bytes(self._file("tables", name, "parquet"), table_bytes(name, columns, inputs or {}))

    def table(self, name: str, *, inputs: Inputs | None = None) -> dict[str, np.ndarray]:
        """Columns by name; text as object arrays, an integer column with gaps as float with NaN.

        Raises as `facts` does.
        """
        file = self._file("tables", name, "parquet")
        if not file.exists():
            raise DataError(f"no table {name!r} in {self.path}; nearest: {nearest(name, self.table_names())}")
        self._check_inputs(name, stored_inputs(file), inputs)
        return read_table(file)

    def table_names(self) -> list[str]:
        """The tables that are there."""
        return sorted(file.stem for file in (self.path / "tables").glob("[!.]*.parquet"))

    def save_image(self, folder: str, name: str, image: Any) -> Path:
        """Keep an image as `images/FOLDER/NAME.png`, losslessly; the path of the file.

        Args:
            image: (height, width) or (height, width, 1 | 3 | 4); bytes, or reals in [0, 1] with 1 for white.

        Raises:
            DataError: another shape, another type, or values outside of [0, 1].
        """
        from pellucid.store.images import png_bytes

        file = self.path / "images" / _checked(folder) / f"{_checked(name)}.png"
        write_bytes(file, png_bytes(image, f"image {folder}/{name}"))
        return file

    def image_files(self, folder: str) -> list[Path]:
        """The PNG files in `images/FOLDER`, by number where their names are numbers; empty when there are none."""
        files = (self.path / "images" / _checked(folder)).glob("[!.]*.png")
        return sorted(files, key=lambda f: (len(f.stem), f.stem) if f.stem.isdecimal() else (1 << 30, f.stem))

    def _file(self, folder: str, name: str, suffix: str) -> Path:
        return self.path / folder / f"{_checked(name)}.{suffix}"

    def _tree(self, name: str, inputs: Inputs | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The `$` entries of a facts file and the rest of it, once its inputs are known to be the ones wanted."""
        file = self._file("facts", name, "json")
        if not file.exists():
            there = sorted(other.stem for other in (self.path / "facts").glob("[!.]*.json"))
            raise DataError(f"no result {name!r} in {self.path}; nearest: {nearest(name, there)}")
        tree = from_json(file.read_bytes(), str(file))
        about = {key: tree.pop(key) for key in list(tree) if key.startswith("$")}
        self._check_inputs(name, about.get("$inputs", {}), inputs)
        return about, tree

    def _arrays(self, name: str, about: dict[str, Any]) -> Arrays:
        from safetensors.numpy import load

        data = self._array_bytes(name, about)
        if data is None:
            file = self._file("arrays", name, "safetensors")
            raise DataError(
                f"{file} does not belong to facts/{name}.json (damaged or half replaced); compute it again"
            )
        return load(data) if data else {}

    def _array_bytes(self, name: str, about: dict[str, Any]) -> bytes | None:
        """The arrays file of a result, empty if it has no arrays, None where it is not the one the facts name."""
        if "$arrays" not in about:
            return b""
        file = self._file("arrays", name, "safetensors")
        data = file.read_bytes() if file.exists() else b""
        return data if hashlib.sha256(data).hexdigest() == about["$arrays"] else None

    def _check_inputs(self, name: str, stored: Inputs, wanted: Inputs | None) -> None:
        if wanted is None:
            return
        differ = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
        if differ:
            how = "; ".join(
                f"{key}: {_short(stored.get(key))} there, {_short(wanted.get(key))} here" for key in differ
            )
            raise StaleResultError(
                f"{name!r} in {self.path} was computed from other inputs ({how}); compute it again, into another run "
                "folder if you want to keep the old one"
            )


def check_writable(path: Path | str, *, needed: int = 0) -> None:
    """Raise before long work when `path` cannot become a run folder or take more of a run.

    Passes where nothing is there yet, an empty folder, or a run of this schema version; tries a file, so that the
    permissions, quotas and read-only mounts that count are the ones of the system.

    Raises:
        ConfigError: what stands in the way, and what to do.
    """
    path = Path(path)
    try:
        if (path / HEADER).exists():
            _read_header(path)
        elif path.is_dir() and any(path.iterdir()):
            raise ConfigError(
                f"{path} is neither empty nor a run (it has no {HEADER}); choose another folder"
            )
        there = existing(path)
        if not there.is_dir():
            raise ConfigError(f"{path} cannot be a folder: {there} is a file; choose another name")
        check_space(there, needed)
        _try_to_write(there / f".pellucid-{os.getpid()}.part")
    except OSError as error:
        raise explained(error, path, needed=needed) from error


def _try_to_write(trial: Path) -> None:
    try:
        trial.write_bytes(b"x")
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()


def _read_header(path: Path) -> dict[str, Any]:
    file = path / HEADER
    if not file.is_file():
        raise ConfigError(f"{path} is not a run folder: it has no {HEADER}")
    header = from_json(file.read_bytes(), str(file))
    schema = header.get("schema")
    if schema != SCHEMA:
        writer = header.get("versions", {}).get("pellucid", "unknown")
        raise ConfigError(
            f"{path} is a run folder of schema version {schema} (written by pellucid {writer}); this pellucid "
            f"({_versions()['pellucid']}) reads version {SCHEMA}: open it with the version that wrote it, or write "
            "a new run to another folder"
        )
    return put_together(header, None)


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    arrays: Arrays = {}
    tree = take_apart(dict(facts), arrays)
    if arrays:
        raise ConfigError(f"{HEADER} holds facts only; save these arrays as results: {sorted(arrays)}")
    if taken := [key for key in RESERVED if key in tree]:
        raise ConfigError(f"{HEADER} writes these itself, choose other names: {taken}")
    return tree


def _checked(name: str) -> str:
    if not NAME.fullmatch(name) or name.endswith("."):
        raise ConfigError(f"a name in a run is up to 128 letters, digits, '_', '-' and '.', got {name!r}")
    return name


def _short(value: str | None) -> str:
    return "nothing" if value is None else repr(value if len(value) <= 20 else value[:12] + "…")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    """Versions of what computes, read from package metadata: nothing is imported for it."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    found.setdefault("pellucid", "unknown")
    return found
