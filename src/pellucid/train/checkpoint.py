"""Checkpoints: a folder that appears whole or not at all, so that a killed training goes on exactly.

CHECKPOINT/e00003-s00000120/ holds `model.safetensors`, `rest.pt` (optimizer, schedule, terms; plain tensors
and numbers, read with `weights_only=True`) and `place.json` (position, running sums, finished epochs,
configuration). The newest folder is the checkpoint; older ones are removed once it is there. No random state
is kept: every step seeds its own.
"""

import dataclasses as dc
import hashlib
import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from pellucid._checks import StaleResultError
from pellucid.data import Source
from pellucid.store import write_bytes
from pellucid.train.history import Place
from pellucid.train.update import Update

VERSION = 1


@runtime_checkable
class Stateful(Protocol):
    """Anything that can be kept and put back: optimizers, schedules, scalers, modules."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class Checkpoint:
    """Where a training is kept; without a folder, nowhere.

    Args:
        folder: Holds the checkpoint and nothing else. The first process writes, all of them read.
        every: Seconds between checkpoints within an epoch.
    """

    def __init__(self, folder: Path | None, every: float, update: Update, schedule: LRScheduler | None):
        self.folder, self.every, self.update, self.schedule = folder, every, update, schedule
        self.config: dict[str, Any] = {}
        self._saved = time.monotonic()

    def open(self, sources: Sequence[Source | None], numbers: Mapping[str, Any]) -> Place:
        """Put the newest checkpoint back into the model and the rest; without one, the place is the start.

        Args:
            sources, numbers: what the training is beside the model, terms and optimizer, for a checkpoint to
                match.

        Raises:
            StaleResultError: The checkpoint belongs to another configuration; the message lists what differs.
            ConfigError: The folder cannot be written.
        """
        if self.folder is None:
            return Place()
        data = [None if source is None else source.fingerprint() for source in sources]
        self.config = {"data": data, **numbers, **describe_training(self.update, self.schedule)}
        if self.update.crew.rank == 0:
            write_bytes(self.folder / ".trial", b"")
            (self.folder / ".trial").unlink()
            for unfinished in self.folder.glob(".new-*/"):
                shutil.rmtree(unfinished, ignore_errors=True)
        found = self._found()
        return self._load(found[-1]) if found else Place()

    def save_if_due(self, place: Place) -> None:
        """Save when `every` seconds have gone since the last time."""
        if time.monotonic() - self._saved >= self.every:
            self.save(place)

    def save(self, place: Place) -> None:
        """Write all beside the last checkpoint, then let it take its place; on failure that one remains."""
        if self.folder is None or self.update.crew.rank:
            return
        final = self.folder / f"e{place.epoch:05d}-s{place.step:08d}"
        new = self.folder / f".new-{final.name}"
        shutil.rmtree(new, ignore_errors=True)
        try:
            self._write(new, place)
            new.rename(final)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        for old in self._found():
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
        self._saved = time.monotonic()

    def _write(self, new: Path, place: Place) -> None:
        from safetensors.torch import save

        state = self.update.model.state_dict()
        # Tied weights are one tensor under two keys, which safetensors wants as two.
        weights = {
            k: v.detach().cpu().clone().contiguous() for k, v in state.items() if isinstance(v, Tensor)
        }
        rest = {
            "model": {k: v for k, v in state.items() if k not in weights},
            "others": {name: other.state_dict() for name, other in self._stateful().items()},
            "extra": [p.detach().cpu() for p in self.update.extra],
        }
        others = io.BytesIO()
        torch.save(rest, others)
        text = json.dumps({"version": VERSION, "config": self.config, "place": dc.asdict(place)}, indent=1)
        write_bytes(new / "model.safetensors", save(weights))
        write_bytes(new / "rest.pt", others.getvalue())
        write_bytes(new / "place.json", text.encode())

    def _load(self, path: Path) -> Place:
        from safetensors.torch import load_file

        kept = json.loads((path / "place.json").read_text())
        _check_same(kept, self.config, path)
        rest = torch.load(path / "rest.pt", weights_only=True, map_location="cpu")
        self.update.model.load_state_dict({**load_file(path / "model.safetensors"), **rest["model"]})
        for name, other in self._stateful().items():
            other.load_state_dict(rest["others"][name])
        with torch.no_grad():
            for p, value in zip(self.update.extra, rest["extra"], strict=True):
                p.copy_(value)
        return Place(**kept["place"])

    def _stateful(self) -> dict[str, Stateful]:
        update = self.update
        others = {"optimizer": update.optimizer, "scaler": update.scaler, "schedule": self.schedule}
        others |= {"prepare": update.prepare, **{f"term {name}": term for name, term in update.terms.items()}}
        return {name: other for name, other in others.items() if isinstance(other, Stateful)}

    def _found(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob("e*-s*/"))


def describe(value: Any) -> Any:
    """JSON that stands for `value`; what is neither number, text nor a collection, by its type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return describe(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [describe(v) for v in cast("Sequence[Any]", value)]
    if dc.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dc.fields(value)}
        return {"is": _name(type(value)), **fields}
    return _name(value if hasattr(value, "__qualname__") else cast("type[Any]", type(value)))


def describe_training(update: Update, schedule: LRScheduler | None) -> dict[str, Any]:
    """What is trained and how; of the model the names, shapes and types of its tensors, not their values."""
    state = update.model.state_dict()
    shapes = [(k, tuple(v.shape), str(v.dtype)) for k, v in state.items() if isinstance(v, Tensor)]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in update.optimizer.param_groups]
    return {
        "model": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16],
        "optimizer": [_name(type(update.optimizer)), describe(groups)],
        "schedule": None if schedule is None else [_name(type(schedule)), describe(schedule.state_dict())],
        "terms": describe(update.terms),
        "weights": describe(update.weights),
        "prepare": describe(update.prepare),
        "seed": update.seed,
        "clip": update.clip,
        "precision": update.precision,
    }


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _check_same(kept: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    if kept.get("version") != VERSION:
        raise StaleResultError(f"{path} was written by another version; delete it or use another folder")
    was = cast("Mapping[str, Any]", kept["config"])
    changed = [
        f"{key} was {was.get(key)}, now {value}" for key, value in config.items() if was.get(key) != value
    ]
    if changed:
        raise StaleResultError(
            f"the checkpoint {path} belongs to another training: {'; '.join(changed)}. "
            "Go back to that configuration, delete the checkpoint or use another folder"
        )
