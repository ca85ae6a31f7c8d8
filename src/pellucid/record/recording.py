"""`record`: one pass over a source feeds every statistic."""

import contextlib
import dataclasses as dc
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError, PellucidError, check_one_of
from pellucid.data import Batch, Source
from pellucid.record.board import Board
from pellucid.record.checkpoint import Checkpoint, Tally, identity
from pellucid.record.ranks import Ranks, choose_device, find_ranks, refuse_sharded
from pellucid.rng import kept_generators
from pellucid.stats import Stat
from pellucid.taps import Tap, unwrap, watch


@dc.dataclass(frozen=True, eq=False)
class Recording(Mapping[str, Mapping[str, Any]]):
    """What a pass found: `recording[tap][statistic]` is the result of that statistic.

    `n` samples are in the statistics. `skipped` lists (name, reason) of what could not be read, `left_out` counts
    the samples that were left out for a NaN or infinity, and `non_finite` at which taps they had one. `fitters` are
    the fitters behind the results, to merge with those of another pass.
    """

    results: Mapping[str, Mapping[str, Any]]
    n: int
    skipped: tuple[tuple[str, str], ...]
    left_out: int
    non_finite: Mapping[str, int]
    fitters: Mapping[str, Mapping[str, Stat]]

    def __getitem__(self, tap: str) -> Mapping[str, Any]:
        return self.results[tap]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)


def record(
    model: nn.Module,
    source: Source,
    taps: Mapping[str, Tap],
    stats: Mapping[str, Mapping[str, Stat]],
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    places: bool = False,
    checkpoint: Path | None = None,
    every: float = 60.0,
    inputs: Mapping[str, str] | None = None,
    non_finite: Literal["error", "count"] = "error",
    progress: Callable[[int, int], None] | None = None,
    also: Callable[[Any, Batch], None] | None = None,
) -> Recording:
    """Run the model once over the source, without gradients and in eval mode, and feed every statistic.

    Statistics stay of one size, so memory beside the model does not grow with the data. Under `torchrun` or
    `accelerate launch` each process takes every n-th batch, nothing is padded, and all get the result of the whole.
    The model's training mode, hooks and the random generators are left as they were.

    Args:
        stats: statistics by tap and name. They are copied: give new ones, and the same one for many taps if you like.
        device: where to run; default where the model is. The model is moved there and stays.
        places: keep for `TopExamples` where in its map a unit was driven most. Needs the tap's default reduction.
        checkpoint: a file in which the pass is kept every `every` seconds; the same call goes on from it after a
            kill, to the same result. The finished pass stays in it: delete it when the result is stored.
        inputs: hashes that say which model and data this is, for the checkpoint; default: hashes of the weights and
            the data themselves.
        non_finite: "error" raises on a NaN or infinite response; "count" leaves that sample out of every statistic
            and counts it.
        progress: called with (samples done, samples in all) after each batch.
        also: called with the model's own output and the batch, on the model's device. With several processes it sees
            the batches of its own process; it is not kept in a checkpoint (a statistic on `Tap("")` is).

    Raises:
        ConfigError: no taps, statistics without a tap, no such device, `also` with a checkpoint, a full disk.
        DataError: the source is empty, or the model cannot run on its inputs, or labels do not fit.
        NumericError: a NaN or infinity; the message names layer, unit and sample.
        StaleResultError: the checkpoint belongs to another model, data, taps, statistics or settings.
    """
    check_one_of(non_finite, ("error", "count"), "non_finite")
    if batch_size < 1 or every < 0:
        raise ConfigError(f"batch_size must be at least 1 and every at least 0, got {batch_size} and {every}")
    if checkpoint is not None and also is not None:
        raise ConfigError(
            "`also` cannot go on from a checkpoint: put a statistic on Tap('') instead, such as evals.classify.Predictions"
        )
    if len(source) == 0:
        raise DataError(f"source {source.name!r} has no examples: nothing to record")
    board = Board(taps, stats, places=places)
    network = unwrap(model)
    target = choose_device(device, network)
    ranks = find_ranks(target)
    refuse_sharded(model, ranks)
    if device is not None:
        network.to(target)
    work = _Pass(network, source, board, device=target, policy=non_finite, also=also, progress=progress)

    def go() -> None:
        saved: Checkpoint | None = None
        if checkpoint is not None:
            settings = {"batch size": batch_size, "non-finite policy": non_finite, "places": places}
            key = identity(network, source, board, inputs=inputs, settings=settings)
            saved = Checkpoint(checkpoint, every=every, key=key, ranks=ranks)
        work.run(batch_size, ranks, saved)

    ranks.together(go)
    return _conclude(work, ranks)


class _Pass:
    """One pass of one process."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        board: Board,
        *,
        device: torch.device,
        policy: str,
        also: Callable[[Any, Batch], None] | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.source, self.board = model, source, board
        self.device, self.policy, self.also, self.progress = device, policy, also, progress
        self.tally = Tally()
        self.skipped_before: tuple[tuple[str, str], ...] = ()

    def run(self, batch_size: int, ranks: Ranks, saved: Checkpoint | None) -> None:
        """Go through the batches of this process, from where the checkpoint says."""
        if saved is not None:
            self.tally = saved.resume(self.board)
        start = self.tally.next_batch
        self.skipped_before = tuple(self.tally.skipped)
        batches = self.source.batches(batch_size, start=start, shard=(ranks.rank, ranks.world))
        with (
            kept_generators(self.device),
            evaluating(self.model),
            torch.no_grad(),
            watch(self.model, self.board.watched()) as seen,
        ):
            for batch in batches:
                self._one(batch, seen)
                self.tally.next_batch = batch.number + 1
                if self.progress is not None:
                    self.progress(min(self.tally.next_batch * batch_size, len(self.source)), len(self.source))
                if saved is not None and saved.due():
                    self._save(saved)
        self._note_skipped()
        if saved is not None and self.tally.next_batch > start:
            self._save(saved)

    def _one(self, batch: Batch, seen: Mapping[str, Tensor]) -> None:
        self.board.expect(batch)
        moved = batch.to(self.device)
        output = self._forward(moved)
        values = self.board.take(seen, batch)
        bad = self.board.find_bad(values)
        if bad and self.policy == "error":
            raise self.board.explain_bad(values, batch, names=self.source.names)
        if bad:
            self._leave_out(values, batch, bad)
        else:
            self.board.update(values, batch)
            self.tally.n += len(batch.index)
        if self.also is not None:
            self.also(output, moved)

    def _forward(self, batch: Batch) -> Any:
        if self.board.widths:
            return self.model(batch.inputs)
        try:
            return self.model(batch.inputs)
        except PellucidError:
            raise
        except Exception as error:
            shape = tuple(batch.inputs.shape)
            raise DataError(
                f"{type(self.model).__name__} cannot run on source {self.source.name!r}, whose batches have shape "
                f"{shape} and type {batch.inputs.dtype}: {type(error).__name__}: {error}"
            ) from error

    def _save(self, saved: Checkpoint) -> None:
        self._note_skipped()
        saved.save(self.board, self.tally)

    def _note_skipped(self) -> None:
        # A source knows what it skipped since it was opened; the part before a kill is known from the checkpoint.
        self.tally.skipped = list(dict.fromkeys([*self.skipped_before, *self.source.skipped]))

    def _leave_out(
        self, values: Float64[Tensor, "batch units"], batch: Batch, bad: Mapping[str, Tensor]
    ) -> None:
        for tap, rows in bad.items():
            self.tally.non_finite[tap] = self.tally.non_finite.get(tap, 0) + int(rows.sum())
        kept = ~torch.stack(list(bad.values())).any(0)
        self.tally.left_out += int((~kept).sum())
        self.tally.n += int(kept.sum())
        if bool(kept.any()):
            self.board.update(values[kept], _rows(batch, kept), rows=kept)


def _rows(batch: Batch, kept: Tensor) -> Batch:
    return dc.replace(
        batch,
        inputs=batch.inputs[kept],
        targets=None if batch.targets is None else batch.targets[kept],
        index=batch.index[kept],
        groups=None if batch.groups is None else batch.groups[kept],
    )


def _conclude(work: _Pass, ranks: Ranks) -> Recording:
    """Put the shares of all processes together and ask for the results."""
    work.board.merge(ranks)
    tallies = ranks.gather(work.tally)
    n, left_out = sum(t.n for t in tallies), sum(t.left_out for t in tallies)
    skipped = list(dict.fromkeys(entry for t in tallies for entry in t.skipped))
    if n == 0:
        raise DataError(
            f"no sample of {work.source.name!r} could be recorded: {len(skipped)} unreadable, "
            f"{left_out} with a NaN or infinite response"
        )
    non_finite = {tap: sum(t.non_finite.get(tap, 0) for t in tallies) for tap in work.board.taps}
    fitters = work.board.fitters()
    return Recording(
        results={tap: {name: f.result() for name, f in chosen.items()} for tap, chosen in fitters.items()},
        n=n,
        skipped=tuple(sorted(skipped)),
        left_out=left_out,
        non_finite={tap: count for tap, count in non_finite.items() if count},
        fitters=fitters,
    )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode inside the block; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
