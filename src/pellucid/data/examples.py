"""How a source gets at its examples: arrays gathered in one go, any indexable thing, subsets and maps of them.

A source's `examples` is anything with `len()` and `[i] -> (input, target or None)`. Three optional methods make it
fast or careful: `gather(index, seed=, epoch=) -> Gathered`, `labels() -> targets or None` without touching the
inputs, and `digest(index) -> SHA-256` of the content. The functions here fall back to plain indexing without them.
"""

import dataclasses as dc
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from pellucid._checks import DataError
from pellucid.rng import rng

CHUNK = 1024  # examples hashed at a time


@dc.dataclass(frozen=True)
class Gathered:
    """Some examples, stacked. `kept` tells which of the asked ones these are; None: all of them, in order."""

    inputs: Shaped[Tensor, "kept ..."]
    targets: Int[Tensor, " kept"] | None
    kept: Int[Tensor, " kept"] | None = None


@dc.dataclass(frozen=True)
class ArrayExamples:
    """Examples in memory. uint8 is kept as it is and becomes float32 in [0, 1] batch by batch."""

    inputs: Shaped[Tensor, "n ..."]
    targets: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        return as_float(self.inputs[i]), None if self.targets is None else int(self.targets[i])

    def labels(self) -> Tensor | None:
        return self.targets

    def gather(self, index: Int[Tensor, " batch"], *, seed: int, epoch: int) -> Gathered:  # noqa: ARG002
        inputs = as_float(self.inputs.index_select(0, index))
        return Gathered(inputs, None if self.targets is None else self.targets.index_select(0, index))

    def digest(self, index: Int[Tensor, " batch"]) -> str:
        head = [str(self.inputs.dtype), list(self.inputs.shape[1:])]
        sha = hashlib.sha256(repr(head).encode())
        for part in index.split(CHUNK):
            feed(sha, self.inputs.index_select(0, part))
        feed(sha, None if self.targets is None else self.targets.index_select(0, index))
        return sha.hexdigest()


@dc.dataclass(frozen=True)
class Subset:
    """The examples of `parent` at `index`, in that order."""

    parent: Any
    index: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        return self.parent[int(self.index[i])]

    def labels(self) -> Tensor | None:
        found = labels(self.parent)
        return None if found is None else found[self.index]

    def gather(self, index: Int[Tensor, " batch"], *, seed: int, epoch: int) -> Gathered:
        return gather(self.parent, self.index[index], seed=seed, epoch=epoch)

    def digest(self, index: Int[Tensor, " batch"]) -> str:
        return digest(self.parent, self.index[index])

    @property
    def skipped(self) -> Mapping[int, tuple[str, str]]:
        below = skipped(self.parent)
        if not below:
            return {}
        return {place: below[i] for place, i in enumerate(self.index.tolist()) if i in below}


@dc.dataclass(frozen=True)
class Mapped:
    """The examples of `parent` after `change(x)`; a random change is `change(x, rng)`, one stream an example."""

    parent: Any
    change: Callable[..., Tensor]
    name: str
    random: bool = False

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        x, target = self.parent[i]
        return self._apply(as_float(x), i, seed=0, epoch=0), target

    def labels(self) -> Tensor | None:
        return labels(self.parent)

    def gather(self, index: Int[Tensor, " batch"], *, seed: int, epoch: int) -> Gathered:
        before = gather(self.parent, index, seed=seed, epoch=epoch)
        places = (index if before.kept is None else index[before.kept]).tolist()
        if not places:
            return before
        rows = [self._apply(x, i, seed=seed, epoch=epoch) for x, i in zip(before.inputs, places, strict=True)]
        return dc.replace(before, inputs=stack(rows, f"map {self.name!r}"))

    def digest(self, index: Int[Tensor, " batch"]) -> str:
        sha = hashlib.sha256(digest(self.parent, index).encode())
        sha.update(repr((self.name, self.random)).encode())
        if self.random:  # the draws belong to the positions, so other positions are other data
            feed(sha, index)
        return sha.hexdigest()

    @property
    def skipped(self) -> Mapping[int, tuple[str, str]]:
        return skipped(self.parent)

    def _apply(self, x: Tensor, i: int, *, seed: int, epoch: int) -> Tensor:
        y = self.change(x, rng(seed, "map", self.name, epoch, i)) if self.random else self.change(x)
        if not isinstance(y, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  # a user's function
            raise DataError(f"map {self.name!r} must return a tensor, got {type(y).__name__} at example {i}")
        return y


def as_float(x: Tensor) -> Tensor:
    """uint8 becomes float32 in [0, 1], exactly x / 255; anything else is returned as it is."""
    return x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x


def stack(rows: list[Tensor], what: str) -> Tensor:
    """`torch.stack`, with an error that names `what` and the two shapes that do not fit."""
    first = rows[0].shape
    for row in rows:
        if row.shape != first:
            raise DataError(f"{what}: examples of unequal shape, {tuple(first)} and {tuple(row.shape)}")
    return torch.stack(rows)


def gather(examples: Any, index: Int[Tensor, " batch"], *, seed: int = 0, epoch: int = 0) -> Gathered:
    """The examples at `index`, stacked: by their own `gather`, or one by one."""
    if hasattr(examples, "gather"):
        return examples.gather(index, seed=seed, epoch=epoch)
    items = [examples[i] for i in index.tolist()]
    if not items:
        return Gathered(torch.empty(0), None)
    inputs = stack([as_float(x) for x, _ in items], "source")
    return Gathered(inputs, _as_targets([target for _, target in items]))


def labels(examples: Any) -> Tensor | None:
    """Every target, or None: by `labels()`, or by looking at each example once."""
    if hasattr(examples, "labels"):
        return examples.labels()
    return _as_targets([examples[i][1] for i in range(len(examples))])


def skipped(examples: Any) -> Mapping[int, tuple[str, str]]:
    """Position -> (name, reason) of the examples that could not be read so far."""
    return getattr(examples, "skipped", {})


def digest(examples: Any, index: Int[Tensor, " batch"]) -> str:
    """SHA-256 of the inputs and targets at `index`: by `digest(index)`, or by reading them."""
    if hasattr(examples, "digest"):
        return examples.digest(index)
    sha = hashlib.sha256()
    for part in index.split(CHUNK):
        found = gather(examples, part)
        feed(sha, found.inputs)
        feed(sha, found.targets)
    return sha.hexdigest()


def feed(sha: Any, tensor: Tensor | None) -> None:
    """Put dtype, shape and bytes of a tensor into a running hash."""
    if tensor is None:
        sha.update(b"none")
        return
    array = tensor.detach().cpu().contiguous()
    sha.update(repr((str(array.dtype), tuple(array.shape))).encode())
    sha.update(array.numpy().tobytes())


def _as_targets(found: list[int | None]) -> Tensor | None:
    missing = [i for i, target in enumerate(found) if target is None]
    if len(missing) == len(found):
        return None
    if missing:
        raise DataError(
            f"{len(missing)} of {len(found)} examples have no target; give all of them one, or none"
        )
    return torch.tensor([int(target) for target in found if target is not None])
