"""Open a source by what a user types: `digits`, `folder:PATH`, `table:FILE.csv?target=COLUMN`, ..."""

import dataclasses as dc
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import unquote

import torch

from pellucid._checks import ConfigError, DataError, check_one_of, nearest
from pellucid.data.adapt import adapt
from pellucid.data.cifar import cifar10_source
from pellucid.data.classmap import ClassMap, read_class_map
from pellucid.data.digits import digits_source
from pellucid.data.folder import folder_source
from pellucid.data.hf import hf_source
from pellucid.data.idx import fashion_mnist_source, mnist_source
from pellucid.data.images import Channels, Fit, Look
from pellucid.data.shapes import shapes_source
from pellucid.data.source import Source
from pellucid.data.table import table_source
from pellucid.preprocess import Size, parse_size
from pellucid.rng import rng

SPECS = {  # kind -> (what stands after the colon, the options after `?`)
    "digits": ("", ("channels",)),
    "shapes": ("", ("target", "channels")),
    "mnist": ("ROOT", ("channels",)),
    "fashion-mnist": ("ROOT", ("channels",)),
    "cifar10": ("ROOT", ("images", "channels")),
    "folder": ("PATH", ("channels",)),
    "table": ("FILE.csv", ("target", "group", "columns", "drop")),
    "hf": ("NAME", ("config", "image", "label", "channels")),
}
SHAPES_LENGTH = 2000
Split = Literal["train", "test", "all"]


def open_source(
    spec: str,
    *,
    split: str = "test",
    size: Size | None = None,
    fit: str = "crop",
    channels: str | None = None,
    class_map: ClassMap | str | Path | None = None,
    labels: str | Path | None = None,
    skip_unreadable: bool = False,
    length: int | None = None,
    seed: int = 0,
    workers: int = 0,
) -> Source:
    """Open the data that `spec` names: `KIND`, `KIND:PATH` or `KIND:PATH?option=value&option=value`.

    Kinds: digits, shapes, mnist:ROOT, fashion-mnist:ROOT, cifar10:ROOT, folder:PATH, table:FILE.csv, hf:NAME.

    Args:
        split: `train`, `test` or `all`, of data that has them; a plain folder is one set.
        size: pixels (a side, or height and width) to fit images to; for `shapes` the size they are drawn at.
        fit: `crop` (cover the size, cut the centre) or `stretch`.
        channels: `rgb`, `grey`, or None for as they are.
        class_map: model outputs for each class (`ClassMap`, or its file), put in the order of the classes.
        labels: CSV of path and label, for `folder:`.
        length: how many examples; for `shapes` any number, else a random part that (`seed`, length) alone decide.
        seed: of `shapes` and of `length`.

    Raises:
        ConfigError: an unknown kind or option, or options that do not go together.
        DataError: the data is not there or not what its kind says.
    """
    kind, path, options = parse_spec(spec)
    channels = channels or options.get("channels")
    check_one_of(split, ("train", "test", "all"), "split")
    check_one_of(fit, ("crop", "stretch"), "fit")
    check_one_of(channels or "rgb", ("rgb", "grey"), "channels")
    if labels is not None and kind != "folder":
        raise ConfigError(f"a labels file goes with folder:PATH, not with {kind}")
    part = cast("Split", split)
    look = Look(parse_size(size), cast("Fit", fit), cast("Channels | None", channels))
    if kind == "shapes":
        source = _shapes(options, part, look, length=length, seed=seed)
    elif kind in ("folder", "hf"):
        column = options.get
        opener = (
            partial(folder_source, path, labels=labels)
            if kind == "folder"
            else partial(
                hf_source, path, config=column("config"), image=column("image"), label=column("label")
            )
        )
        source = opener(
            split=part,
            size=look.size,
            fit=look.fit,
            channels=look.channels,
            skip_unreadable=skip_unreadable,
            workers=workers,
        )
    else:
        source = adapt(_arrays(kind, path, part, options), look)
    if length is not None and kind != "shapes":
        source = _part(source, length, seed)
    return source if class_map is None else _with_map(source, class_map)


def parse_spec(spec: str) -> tuple[str, str, dict[str, str]]:
    """Split a spec into kind, path and options; `%26` and the like stand for `&`, `=` and `?` in values."""
    head, _, query = spec.strip().partition("?")
    kind, _, path = head.partition(":")
    if kind not in SPECS:
        known = [f"{name}:{what}" if what else name for name, (what, _) in SPECS.items()]
        here = (
            f"; {spec!r} is a folder: did you mean 'folder:{spec}'?"
            if Path(spec).expanduser().is_dir()
            else ""
        )
        near = [entry for name in nearest(kind, SPECS) for entry in known if entry.partition(":")[0] == name]
        raise ConfigError(f"unknown data {spec!r}; nearest: {near}; all: {known}{here}")
    what, allowed = SPECS[kind]
    if bool(what) != bool(path):
        raise ConfigError(
            f"data {spec!r}: expected {kind}:{what}" if what else f"data {spec!r}: {kind} takes no path"
        )
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if key not in allowed or not equals or not value:
            raise ConfigError(
                f"data {spec!r}: expected option=value with one of {list(allowed)}, got {part!r}"
            )
        options[key] = unquote(value)
    return kind, path, options


def _arrays(kind: str, path: str, split: Split, options: dict[str, str]) -> Source:
    match kind:
        case "digits":
            return digits_source(split=split)
        case "mnist":
            return mnist_source(path, split=split)
        case "fashion-mnist":
            return fashion_mnist_source(path, split=split)
        case "cifar10":
            images = cast("Literal['any', 'batches', 'jpeg', 'lossless']", options.get("images", "any"))
            return cifar10_source(path, split=split, images=images)
        case _:
            lists = {key: options[key].split(",") for key in ("columns", "drop") if key in options}
            return table_source(
                path, target=options.get("target"), group=options.get("group"), split=split, **lists
            )


def _shapes(options: dict[str, str], split: Split, look: Look, *, length: int | None, seed: int) -> Source:
    if split == "all":
        raise ConfigError(
            "shapes has no split 'all': train and test are two endless streams; say one of them"
        )
    side = look.size or (32, 32)
    if side[0] != side[1]:
        raise ConfigError(f"shapes are square, got size {side[0]}x{side[1]}")
    target = cast("Any", options.get("target", "shape"))
    wanted = SHAPES_LENGTH if length is None else length
    found = shapes_source(wanted, split=split, size=side[0], seed=seed, target=target)
    return adapt(found, look)


def _part(source: Source, length: int, seed: int) -> Source:
    n = len(source)
    if not 1 <= length <= n:
        raise DataError(f"{source.name!r} has {n} examples, {length} were asked for")
    return source.take(torch.randperm(n, generator=rng(seed, "length", length))[:length].sort().values)


def _with_map(source: Source, class_map: ClassMap | str | Path) -> Source:
    found = class_map if isinstance(class_map, ClassMap) else read_class_map(class_map)
    return dc.replace(source, class_map=found.align(source.classes))
