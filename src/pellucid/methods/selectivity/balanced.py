"""Batches in which every class that appears appears often enough for its mean to mean something."""

import dataclasses as dc
import hashlib
from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid._checks import ConfigError, DataError
from pellucid.data import Batch, Source
from pellucid.rng import rng


@dc.dataclass(frozen=True, eq=False)
class BalancedSource(Source):
    """A source whose shuffled order runs in blocks of `per_class` examples of each of `at_once` classes."""

    at_once: int = 1
    per_class: int = 8

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
        """As `Source.batches`; shuffled, the order is that of the blocks."""
        if not shuffle:
            yield from super().batches(size, seed=seed, epoch=epoch, start=start, shard=shard)
            return
        rank, world = shard
        order = self.order(seed=seed, epoch=epoch)
        for number in range(start, -(-len(order) // size)):
            if number % world == rank:
                batch = self._read(order[number * size : (number + 1) * size], number, seed=seed, epoch=epoch)
                if batch is not None:
                    yield batch

    def order(self, *, seed: int, epoch: int) -> Int[Tensor, " n"]:
        """Every example once. Blocks take the classes with most examples left; what fills no block comes last."""
        targets = self.targets
        assert targets is not None
        draw = rng(seed, "balanced", epoch)
        waiting = [(targets == c).nonzero().flatten() for c in range(len(self.classes))]
        waiting = [places[torch.randperm(len(places), generator=draw)] for places in waiting]
        found: list[Tensor] = []
        left = torch.tensor([len(places) for places in waiting])
        while int((left >= self.per_class).sum()) >= self.at_once:
            # Most left first, ties at random: classes run out together, so that few examples stay over.
            ties = torch.rand(len(left), generator=draw)
            chosen = (left // self.per_class + 0.5 * ties).topk(self.at_once).indices
            rows = [waiting[c][len(waiting[c]) - left[c] :][: self.per_class] for c in chosen.tolist()]
            block = torch.cat(rows)
            found.append(block[torch.randperm(len(block), generator=draw)])
            left[chosen] -= self.per_class
        over = torch.cat([places[len(places) - int(n) :] for places, n in zip(waiting, left, strict=True)])
        return torch.cat([*found, over[torch.randperm(len(over), generator=draw)]])

    def fingerprint(self) -> str:
        """The data's, chained with how it is balanced."""
        text = f"{super().fingerprint()} balanced {self.at_once} {self.per_class}"
        return hashlib.sha256(text.encode()).hexdigest()


def balanced_batches(source: Source, *, at_once: int, per_class: int = 8) -> BalancedSource:
    """The same source, in shuffled batches of `per_class` examples of each of `at_once` classes.

    Train with `batch_size = at_once * per_class` (or a multiple). Every example comes once an epoch; those that fill no
    whole block come last, in batches without balance.

    Raises:
        DataError: no labels.
        ConfigError: fewer than 2 classes at once, or more than there are with `per_class` examples.
    """
    targets = source.targets
    if targets is None or not source.classes:
        raise DataError(f"source {source.name!r} has no labels: there is nothing to balance")
    enough = (
        int((torch.bincount(targets, minlength=len(source.classes)) >= per_class).sum())
        if per_class > 0
        else 0
    )
    if not 2 <= at_once <= enough:
        raise ConfigError(
            f"balanced batches need 2 or more classes at once, with {per_class} examples each; {enough} of "
            f"{len(source.classes)} classes have as many, and {at_once} were asked for"
        )
    fields = {field.name: getattr(source, field.name) for field in dc.fields(Source)}
    return BalancedSource(**fields, at_once=at_once, per_class=per_class)
