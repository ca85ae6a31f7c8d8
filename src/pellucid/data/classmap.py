"""Which outputs of a model stand for which class of the data, when the two lists differ."""

import csv
import dataclasses as dc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid._checks import DataError, nearest


@dc.dataclass(frozen=True)
class ClassMap:
    """For each class name the model outputs that mean it, e.g. `cat` -> ImageNet outputs 281 to 285.

    The score of a class is the mean probability over its outputs, and the decision is the class with the highest
    score (Geirhos et al. 2019, "ImageNet-trained CNNs are biased towards texture", section 2).
    """

    names: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.outputs):
            raise DataError(f"a class map needs outputs for each of its {len(self.names)} names")
        for name, outputs in zip(self.names, self.outputs, strict=True):
            if not outputs or min(outputs) < 0:
                raise DataError(f"class map: {name!r} needs one or more outputs >= 0, got {list(outputs)}")
        owner: dict[int, str] = {}
        for name, output in (
            (n, o) for n, outputs in zip(self.names, self.outputs, strict=True) for o in outputs
        ):
            if output in owner:
                where = (
                    f"twice for {name!r}" if owner[output] == name else f"for {owner[output]!r} and {name!r}"
                )
                raise DataError(
                    f"class map: output {output} stands {where}; an output belongs to one class, and counts once"
                )
            owner[output] = name

    def align(self, classes: Sequence[str]) -> "ClassMap":
        """The same map with `classes` first and in their order; other names follow and stay in competition."""
        missing = [name for name in classes if name not in self.names]
        if missing:
            raise DataError(
                f"class map has no entry for {missing[:5]}; its nearest names: {nearest(missing[0], self.names)}"
            )
        order = [*classes, *(name for name in self.names if name not in classes)]
        found = dict(zip(self.names, self.outputs, strict=True))
        return ClassMap(tuple(order), tuple(found[name] for name in order))

    def from_logits(self, logits: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch names"]:
        """Mean over each class's outputs of softmax(logits)."""
        return self.from_probs(logits.softmax(-1))

    def from_probs(self, probs: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch names"]:
        """Mean probability over each class's outputs; in [0, 1], not normalised over the classes."""
        widest = max(max(outputs) for outputs in self.outputs)
        if widest >= probs.shape[1]:
            raise DataError(f"class map names output {widest}, but the model has {probs.shape[1]} outputs")
        return torch.stack([probs[:, list(outputs)].mean(-1) for outputs in self.outputs], dim=-1)


def read_class_map(path: str | Path) -> ClassMap:
    """Read a class map from JSON or CSV.

    JSON: `{"cat": [281, 282], "tiger": 292}`, or an object for each class with one list of whole numbers in it
    (`{"cat": {"imagenet_indices": [281, 282], "wnids": [...]}}`). CSV: columns `class,index`, one row an output.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no class map at {path}; expected a JSON or CSV file")
    text = path.read_text(encoding="utf-8-sig")
    found = _from_csv(text, path) if path.suffix.lower() == ".csv" else _from_json(text, path)
    if not found:
        raise DataError(f"class map {path} names no class")
    return ClassMap(tuple(found), tuple(tuple(outputs) for outputs in found.values()))


def _from_json(text: str, path: Path) -> dict[str, list[int]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"class map {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"class map {path} must be an object of class names, got a {type(content).__name__}")
    return {str(name): _indices(value, f"class map {path}, {name!r}") for name, value in content.items()}


def _indices(value: Any, where: str) -> list[int]:
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value).values()
        lists = [entry for entry in entries if _is_indices(entry)]
        if len(lists) != 1:
            raise DataError(
                f"{where}: expected one list of output numbers, found {len(lists)} in {list(value)}"
            )
        value = lists[0]
    value = [value] if isinstance(value, int) else value
    if not _is_indices(value):
        raise DataError(f"{where}: expected an output number or a list of them, got {value!r}")
    return list(value)


def _is_indices(value: Any) -> bool:
    return isinstance(value, list) and all(type(entry) is int for entry in cast("list[Any]", value))


def _from_csv(text: str, path: Path) -> dict[str, list[int]]:
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or not {"class", "index"} <= set(rows[0]):
        raise DataError(
            f"class map {path} needs the columns class and index, got {list(rows[0]) if rows else []}"
        )
    found: dict[str, list[int]] = {}
    for row in rows:
        try:
            found.setdefault(row["class"], []).append(int(row["index"]))
        except ValueError:
            raise DataError(
                f"class map {path}: {row['index']!r} of {row['class']!r} is no output number"
            ) from None
    return found
