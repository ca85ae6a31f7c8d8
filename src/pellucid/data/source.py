"""Batches, and the sources they come from."""

import dataclasses as dc
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from pellucid._checks import ConfigError, DataError
from pellucid.data.classmap import ClassMap
from pellucid.data.examples import Mapped, Subset, as_float, digest, feed, gather, labels, skipped
from pellucid.rng import rng


@dc.dataclass(frozen=True, eq=False)
class Batch:
    """Some examples of a source. Images are float in [0, 1], NCHW; normalising belongs to the model.

    `index` holds each example's position in the source, so results can point back at it; `number` is the batch's
    place in the partition of one epoch (where to go on: `batches(..., start=number + 1)`).
    """

    inputs: Shaped[Tensor, "batch ..."]
    targets: Int[Tensor, " batch"] | None
    index: Int[Tensor, " batch"]
    groups: Int[Tensor, " batch"] | None = None
    number: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`. `index` stays where it is: it is for bookkeeping, not for the model."""
        return dc.replace(
            self,
            inputs=self.inputs.to(device),
            targets=None if self.targets is None else self.targets.to(device),
            groups=None if self.groups is None else self.groups.to(device),
        )


@dc.dataclass(frozen=True, eq=False)
class Source:
    """A set of examples of known order, from which batches are cut.

    Args:
        name: what to call it in pages and errors.
        examples: `len()` and `[i] -> (input, target or None)`; see `pellucid.data.examples` for the faster paths.
        classes: names of the targets 0, 1, ...; empty when unlabelled.
        factors: what else is known of each example, looked up by `Batch.index`: one row an example.
        captions: a sentence for each example.
        names: a file name or label for each example.
        groups: a group number for each example, for measures of fairness.
        features: names of the input columns, where inputs are rows of a table.
        factor_names: for the factors that are codes 0, 1, ..., what each code means.
        class_map: how a model's outputs become scores of `classes`, where they are not the same thing.
        workers: threads that read batches ahead; 0 reads each batch when it is asked for.
    """

    name: str
    examples: Any
    classes: tuple[str, ...] = ()
    factors: Mapping[str, Tensor] = dc.field(default_factory=dict[str, Tensor])
    captions: Sequence[str] | None = None
    names: Sequence[str] | None = None
    groups: Tensor | None = None
    factor_names: Mapping[str, tuple[str, ...]] = dc.field(default_factory=dict[str, tuple[str, ...]])
    features: tuple[str, ...] = ()
    class_map: ClassMap | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        n = len(self.examples)
        columns: dict[str, Any] = {f"factor {key!r}": value for key, value in self.factors.items()}
        columns |= {"captions": self.captions, "names": self.names, "groups": self.groups}
        for what, column in columns.items():
            if column is not None and len(column) != n:
                raise DataError(f"source {self.name!r} has {n} examples but {len(column)} rows of {what}")

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        x, target = self.examples[i]
        return as_float(x), target

    @property
    def targets(self) -> Tensor | None:
        """Every target in order, or None when unlabelled; inputs are not read where the source can do without."""
        return labels(self.examples)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of the examples that could not be read so far, in the order of the source."""
        return [entry for _, entry in sorted(skipped(self.examples).items())]

    def batches(
        self,
        size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Cut one epoch into batches; nothing is padded, so no example is seen twice.

        The order is that of the source, or a permutation that depends on (seed, epoch) alone. Batch b holds places
        b * size to (b + 1) * size - 1 of that order. Shard (r, n) yields the batches b >= `start` with b % n == r,
        so n processes together see the same batches as one. Unreadable examples that the source may skip are left
        out; a batch of which nothing is left is not yielded.
        """
        rank, world = shard
        if size < 1 or start < 0 or not 0 <= rank < world:
            raise ConfigError(
                f"batches need size >= 1, start >= 0 and 0 <= rank < world; got size={size}, start={start}, shard={shard}"
            )
        n = len(self)
        order = torch.randperm(n, generator=rng(seed, "shuffle", epoch)) if shuffle else torch.arange(n)
        numbers = [b for b in range(start, -(-n // size)) if b % world == rank]

        def read(b: int) -> Batch | None:
            return self._read(order[b * size : (b + 1) * size], b, seed=seed, epoch=epoch)

        found = map(read, numbers) if self.workers < 1 else _ahead(read, numbers, self.workers)
        return (batch for batch in found if batch is not None)

    def take(
        self, index: Sequence[int] | Shaped[Tensor, " picked"] | Shaped[np.ndarray, " picked"]
    ) -> "Source":
        """The examples at `index` (positions, in that order; or a boolean mask), with all that is known of them."""
        n = len(self)
        chosen = torch.as_tensor(index if isinstance(index, Tensor | np.ndarray) else list(index)).cpu()
        if chosen.dtype == torch.bool:
            if len(chosen) != n:
                raise DataError(f"a mask for {self.name!r} needs {n} entries, got {len(chosen)}")
            chosen = chosen.nonzero().flatten()
        chosen = chosen.long()
        if len(chosen) and not (int(chosen.min()) >= 0 and int(chosen.max()) < n):
            raise DataError(
                f"index {int(chosen.min())} to {int(chosen.max())} reaches beyond {self.name!r} of {n} examples"
            )
        places = chosen.tolist()
        return dc.replace(
            self,
            examples=Subset(self.examples, chosen),
            factors={key: value[chosen] for key, value in self.factors.items()},
            captions=None if self.captions is None else [self.captions[i] for i in places],
            names=None if self.names is None else [self.names[i] for i in places],
            groups=None if self.groups is None else self.groups[chosen],
        )

    def map(self, change: Callable[..., Tensor], name: str, *, random: bool = False) -> "Source":
        """Change every input: x -> change(x), or change(x, rng) when `random`.

        `rng` is keyed by (seed, name, epoch, position) of this source, whatever the batch or process; seed and
        epoch are those given to `batches`. `name` stands for the change in the fingerprint: another change needs
        another name.
        """
        return dc.replace(self, examples=Mapped(self.examples, change, name, random))

    def fingerprint(self) -> str:
        """SHA-256 of the data itself: inputs (arrays or file bytes), targets, classes, factors, names of maps.

        Where the data lies and what it is called do not enter.
        """
        sha = hashlib.sha256(digest(self.examples, torch.arange(len(self))).encode())
        sha.update(json.dumps([self.classes, self.features, sorted(self.factor_names.items())]).encode())
        for key in sorted(self.factors):
            sha.update(key.encode())
            feed(sha, self.factors[key])
        feed(sha, self.groups)
        for caption in self.captions or ():
            sha.update(caption.encode() + b"\n")
        if self.class_map is not None:
            sha.update(json.dumps([self.class_map.names, self.class_map.outputs]).encode())
        return sha.hexdigest()

    def _read(self, index: Tensor, number: int, *, seed: int, epoch: int) -> Batch | None:
        found = gather(self.examples, index, seed=seed, epoch=epoch)
        kept = index if found.kept is None else index[found.kept]
        if not len(kept):
            return None
        groups = None if self.groups is None else self.groups[kept]
        return Batch(found.inputs, found.targets, kept, groups, number)


def _ahead(
    read: Callable[[int], Batch | None], numbers: Sequence[int], workers: int
) -> Iterator[Batch | None]:
    """`map(read, numbers)` by threads, in order, with at most `workers` + 1 batches waiting."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pellucid-data")
    waiting: deque[Future[Batch | None]] = deque()
    try:
        for number in numbers:
            waiting.append(pool.submit(read, number))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
