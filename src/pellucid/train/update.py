"""One optimizer step, from the parts of a batch to new weights; and a look at held-out data in between."""

import dataclasses as dc
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.data import Batch, Source
from pellucid.rng import derive, rng
from pellucid.taps import Tap, watch
from pellucid.taps.find import walk
from pellucid.train.processes import Plan, Processes
from pellucid.train.randomness import seed_generators
from pellucid.train.step import Looks, Step, Term, full_precision, logits_of

Prepare = Callable[[nn.Module, Batch, torch.Generator], Batch]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dc.dataclass(frozen=True)
class Outcome:
    """One optimizer step: its last `Step`, and means over all rows of the batch, of all processes.

    `means` holds the loss, each term and the accuracy (NaN without labels or logits); `stepped` is False when
    a scaled half-precision gradient overflowed and the optimizer was left out.
    """

    step: Step
    means: dict[str, float]
    rows: int
    stepped: bool = True


@dc.dataclass(frozen=True)
class _Pass:
    """What is left of one part of a batch after its backward pass; on the device until the step ends."""

    rows: int  # before `prepare`, which may add views of the same rows
    values: Float[Tensor, " values"]  # the weighted sum, then each term
    correct: Tensor | None


class Watched:
    """The taps of all terms, each distinct one watched once."""

    def __init__(self, terms: Mapping[str, Term]):
        self.keys = {name: dict(term.taps) for name, term in terms.items()}
        distinct = dict.fromkeys(tap for taps in self.keys.values() for tap in taps.values())
        self.taps: dict[str, Tap] = {str(i): tap for i, tap in enumerate(distinct)}
        self.names = {tap: name for name, tap in self.taps.items()}

    def watching(self, model: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
        """Watch one forward pass; no hook is placed when no term wants to see anything."""
        return watch(model, self.taps, grad=True) if self.taps else nullcontext({})

    def of(self, term: str, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What one term asked for, under its own keys."""
        return {key: seen[self.names[tap]] for key, tap in self.keys[term].items()}


class Update:
    """Makes optimizer steps: `update(parts, plan, epoch=, step=)`.

    Args:
        weights: By term, its weight in every epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        terms: Mapping[str, Term],
        *,
        weights: Mapping[str, Sequence[float]],
        crew: Processes,
        seed: int,
        prepare: Prepare | None,
        clip: float | None,
        precision: str,
    ):
        self.model, self.optimizer, self.terms, self.weights = model, optimizer, terms, weights
        self.crew, self.seed, self.prepare, self.clip, self.precision = crew, seed, prepare, clip, precision
        self.params = [cast("Tensor", p) for group in optimizer.param_groups for p in group["params"]]
        own = {id(p) for p in model.parameters()}
        # Parameters of other networks, such as a term's generator.
        self.extra = [p for p in self.params if id(p) not in own]
        self.watched = Watched(terms)
        with self.watched.watching(model):
            pass  # a layer that is not there is named now
        # Accelerate keeps one precision for the life of the process; one call must not fix it for the next.
        self.dtype = AUTOCAST.get(precision)
        self.scaler = torch.amp.GradScaler(crew.device.type, enabled=precision == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        return torch.autocast(self.crew.device.type, self.dtype, enabled=self.dtype is not None)

    def __call__(self, parts: Sequence[Batch], plan: Plan, *, epoch: int, step: int) -> Outcome:
        """One step over this process's parts of a batch."""
        self.optimizer.zero_grad()
        planned, iteration = plan.rows(step), epoch * plan.count + step
        keys = [(epoch, step, number * plan.world + plan.rank) for number in range(len(parts))]
        looked = self._look(parts, keys, iteration=iteration)

        def backward(number: int) -> tuple[Step, _Pass]:
            batch, rows = looked[number], len(parts[number].index)
            if batch is None:
                batch = self._ready(parts[number], keys[number])
            else:
                seed_generators(derive(self.seed, "fit", *keys[number]), self.crew.device)
            return self._backward(batch, keys[number], iteration=iteration, rows=rows, share=rows / planned)

        passes = [backward(number)[1] for number in range(len(parts) - 1)]
        last, done = backward(len(parts) - 1)
        means, rows = self._agree([*passes, done], planned, last)
        return Outcome(last, means, rows, stepped=self._descend())

    def _ready(self, batch: Batch, key: tuple[int, int, int]) -> Batch:
        """One part as the model shall see it, with the random numbers of this step from here on."""
        seed_generators(derive(self.seed, "fit", *key), self.crew.device)
        batch = batch.to(self.crew.device)
        return (
            batch
            if self.prepare is None
            else self.prepare(self.model, batch, rng(self.seed, "prepare", *key))
        )

    def _look(
        self, parts: Sequence[Batch], keys: Sequence[tuple[int, int, int]], *, iteration: int
    ) -> Sequence[Batch | None]:
        """Show all parts of a batch to the terms that must see it whole; the prepared parts, None where none must.

        A second forward pass with the random numbers and buffers of the one that trains, so that it leaves no trace.
        """
        if len(parts) < 2:
            return [None]
        looking = {name: term for name, term in self.terms.items() if isinstance(term, Looks)}
        if not looking:
            return [None] * len(parts)
        before = {name: value.detach().clone() for name, value in self.model.named_buffers()}
        ready: list[Batch] = []
        for part, key in zip(parts, keys, strict=True):
            batch = self._ready(part, key)
            seed_generators(derive(self.seed, "fit", *key), self.crew.device)
            with torch.no_grad(), self.watched.watching(self.model) as watching, self.autocast():
                output = self.model(batch.inputs)
                for name, term in looking.items():
                    step = Step(self.model, batch, output, key[0], iteration, rng(self.seed, "step", *key))
                    term.look(step, self.watched.of(name, watching))
            ready.append(batch)
        with torch.no_grad():
            for name, value in self.model.named_buffers():
                value.copy_(before[name])
        return ready

    def _backward(
        self, batch: Batch, key: tuple[int, int, int], *, iteration: int, rows: int, share: float
    ) -> tuple[Step, _Pass]:
        """Forward and backward over one prepared part; its gradients count by its share of the batch."""
        epoch = key[0]
        # Hooks stay on for the backward pass: activation checkpointing runs layers again there.
        with self.watched.watching(self.model) as watching:
            with self.autocast():
                output = self.model(batch.inputs)
                seen = {name: self.watched.of(name, watching) for name in self.terms}
                step = Step(self.model, batch, output, epoch, iteration, rng(self.seed, "step", *key))
                values = [self._value(name, step, seen[name]) for name in self.terms]
            total = torch.stack(
                [self.weights[name][epoch] * v for name, v in zip(self.terms, values, strict=True)]
            ).sum()
            if not total.requires_grad:
                raise ConfigError(
                    "no term depends on a parameter that requires a gradient; nothing can be trained"
                )
            self.scaler.scale(total * share).backward()
        correct = count_correct(output, batch)
        if correct is not None and len(batch.index) != rows:  # several views of a row share its one vote
            correct = correct * (rows / len(batch.index))
        return step, _Pass(rows, torch.stack([total, *values]).detach(), correct)

    def _value(self, name: str, step: Step, seen: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        value: Any = self.terms[name](step, seen)  # a user's term may return anything
        if isinstance(value, Tensor) and not value.ndim:
            return full_precision(value)
        came = (
            f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        )
        raise ConfigError(
            f"the term {name!r} must return a scalar tensor, came {came}; reduce it by its mean"
        )

    def _agree(self, passes: Sequence[_Pass], planned: int, step: Step) -> tuple[dict[str, float], int]:
        """Sum gradients and losses over the processes; refuse a loss that is no number."""
        rows = torch.tensor([p.rows for p in passes], dtype=torch.float64)
        values = torch.stack([p.values.cpu().double() for p in passes])
        hits = [math.nan if p.correct is None else float(p.correct) for p in passes]
        facts = [float(rows.sum()), sum(hits), *(rows @ values).tolist()]
        total, correct, *sums = self.crew.sum_gradients_(self.params, facts)
        losses = {name: value / total for name, value in zip(["loss", *self.terms], sums, strict=True)}
        if bad := [name for name in (*self.terms, "loss") if not math.isfinite(losses[name])]:
            raise NumericError(
                f"the term {bad[0]!r} is {losses[bad[0]]} at epoch {step.epoch}, iteration {step.iteration} "
                f"(all: {losses}); the weights are those before this step. Try a lower learning rate, clip=, "
                "or a smaller weight of that term"
            )
        if total != planned:  # unreadable images were left out
            for p in self.params:
                if p.grad is not None:
                    p.grad.mul_(planned / total)
        return {**losses, "accuracy": correct / total}, int(total)

    def _descend(self) -> bool:
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.params, self.clip)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before


def count_correct(output: Any, batch: Batch) -> Tensor | None:
    """How many rows of the batch are classified as labelled, on the device; None without labels or logits."""
    try:
        logits = logits_of(output)
    except ConfigError:
        return None
    if batch.targets is None or len(batch.targets) != len(logits):
        return None
    return (logits.detach().argmax(1) == batch.targets).sum()


@torch.no_grad()
def evaluate(update: Update, source: Source, *, batch_size: int) -> dict[str, float]:
    """Cross-entropy (nats) and accuracy on a labelled source, in eval mode, over all processes."""
    crew = update.crew
    sums = torch.zeros(3, dtype=torch.float64)
    with modes(update.model, training=False), update.autocast():
        for batch in source.batches(batch_size, shard=(crew.rank, crew.world)):
            batch = batch.to(crew.device)
            if batch.targets is None:
                raise DataError(f"the validation source {source.name!r} has no labels to compare with")
            logits = full_precision(logits_of(update.model(batch.inputs)))
            if source.class_map is not None:
                logits = source.class_map.from_logits(logits).log()
            loss = F.cross_entropy(logits, batch.targets, reduction="sum")
            correct = (logits.argmax(1) == batch.targets).sum()
            sums += torch.tensor([float(loss), float(correct), len(batch.index)], dtype=torch.float64)
    shared = sums.to(crew.device) if crew.world > 1 else sums
    crew.sum_([shared])
    loss, correct, n = shared.tolist()
    return {"validation_loss": loss / n, "validation_accuracy": correct / n}


@contextmanager
def modes(model: nn.Module, *, training: bool) -> Generator[None]:
    """Train or eval mode for a while; then every module has its own mode back."""
    before = {module: module.training for _, module in walk(model)}
    # Setting an attribute of a module takes microseconds, so only where it changes something.
    if any(was != training for was in before.values()):
        model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            if module.training != was:
                module.training = was
