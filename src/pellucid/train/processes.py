"""Several processes, and several parts a process, that together take one optimizer step on one batch.

The model is not wrapped: gradients are summed after the backward pass. So hooks, extra networks and second
forward passes of a term see the plain model, and the rule is one line: the gradient is that of the mean over
all rows of the batch, however the rows were split.
"""

import dataclasses as dc
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError
from pellucid.data import Batch, Source
from pellucid.record.ranks import choose_device, find_ranks


@dc.dataclass(frozen=True)
class Processes:
    """This process among its peers, and the device it works on."""

    rank: int
    world: int
    device: torch.device

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes; one message for each type of number."""
        if self.world == 1:
            return
        for dtype in {t.dtype: None for t in tensors}:  # in the same order everywhere
            group = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in group])
            torch.distributed.all_reduce(flat)
            for t, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                t.copy_(part.view_as(t))

    def sum_gradients_(self, params: Sequence[Tensor], facts: Sequence[float]) -> list[float]:
        """Sum gradients and `facts` over the processes; a parameter that none used keeps no gradient."""
        if self.world == 1:
            return list(facts)
        numbers = torch.tensor([*facts, *(float(p.grad is not None) for p in params)], dtype=torch.float64)
        numbers = numbers.to(self.device)
        torch.distributed.all_reduce(numbers)
        summed = numbers.tolist()
        for p, n in zip(params, summed[len(facts) :], strict=True):
            if n and p.grad is None:
                p.grad = torch.zeros_like(p)
        self.sum_([p.grad for p in params if p.grad is not None])
        return summed[: len(facts)]

    def copy_from_first_(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values of the first."""
        if self.world == 1:
            return
        for t in tensors:
            # Messages are contiguous and carry no truth values.
            value = (t.detach().byte() if t.dtype == torch.bool else t.detach()).contiguous()
            torch.distributed.broadcast(value, src=0)
            t.detach().copy_(value)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world > 1:
            torch.distributed.barrier()


def open_processes(device: torch.device | str | None, model: nn.Module) -> Processes:
    """Join the processes that `torchrun` or `accelerate launch` started; alone, this is one process.

    Without a device, an accelerator where there is one: under a launcher, the one of this process.

    Raises:
        ConfigError: There is no such device here; the message lists what there is.
    """
    if device is None:
        there = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if there is None else there.type
    chosen = choose_device(device, model)
    ranks = find_ranks(chosen)
    return Processes(ranks.rank, ranks.world, chosen)


@dc.dataclass(frozen=True)
class Plan:
    """How an epoch of `n` rows is cut: `size` rows a step, in `accumulate` parts on `world` processes."""

    n: int
    size: int
    accumulate: int
    rank: int
    world: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.accumulate < 1 or self.size % (self.accumulate * self.world):
            raise ConfigError(
                f"batch_size {self.size} must be a positive multiple of {self.world} processes x accumulate "
                f"{self.accumulate}: it is the rows of one optimizer step, whatever they are split over"
            )
        if 0 < self.n % self.size < self.world:
            raise ConfigError(
                f"the last batch of {self.n} examples would have {self.n % self.size} rows for {self.world} "
                "processes; choose another batch_size"
            )

    @property
    def count(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-self.n // self.size)

    def rows(self, step: int) -> int:
        """Rows of one step, of all processes together."""
        return min(self.size, self.n - step * self.size)

    def steps(
        self, source: Source, *, seed: int, epoch: int, start: int
    ) -> Iterator[tuple[int, list[Batch]]]:
        """Number and own parts of every step from `start` on; the same permutation whatever the split."""
        full = self.n // self.size
        parts = self.accumulate * self.world
        fine = source.batches(
            self.size // parts,
            shuffle=True,
            seed=seed,
            epoch=epoch,
            start=start * parts,
            shard=(self.rank, self.world),
        )
        ahead = next(fine, None)
        for step in range(start, full):
            found: list[Batch] = []
            while ahead is not None and ahead.number < (step + 1) * parts:
                found.append(ahead)
                ahead = next(fine, None)
            if self.world > 1 and len(found) < self.accumulate:
                raise DataError(
                    f"no image of a whole part of batch {step} in epoch {epoch} could be read, so the processes "
                    f"no longer agree; leave out the unreadable ones, or use one process: {source.skipped[:3]}"
                )
            if found:
                yield step, found
        if self.n % self.size and start <= full:
            last = next(source.batches(self.size, shuffle=True, seed=seed, epoch=epoch, start=full), None)
            if last is not None:
                yield full, self._split(last)

    def _split(self, batch: Batch) -> list[Batch]:
        """This process's share of a last, smaller batch: even, in the same number of parts everywhere."""
        n = len(batch.index)
        parts = self.world * min(self.accumulate, n // self.world)
        if not parts:
            raise DataError(f"only {n} rows of the last batch could be read, for {self.world} processes")
        return [_rows(batch, chunk) for chunk in torch.arange(n).tensor_split(parts)[self.rank :: self.world]]


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return dc.replace(
        batch,
        inputs=batch.inputs[rows],
        targets=None if batch.targets is None else batch.targets[rows],
        index=batch.index[rows],
        groups=None if batch.groups is None else batch.groups[rows],
    )
