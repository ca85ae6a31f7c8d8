"""Stop and go on: the state of a pass in one file, written whole or not at all."""

import dataclasses as dc
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pellucid._checks import ConfigError, StaleResultError
from pellucid.data import Source
from pellucid.record.board import Board, settings_of
from pellucid.record.ranks import Ranks
from pellucid.taps import Tap

FORMAT = "1"


@dc.dataclass
class Tally:
    """How far a pass has come, and what it left out."""

    next_batch: int = 0
    n: int = 0
    left_out: int = 0
    non_finite: dict[str, int] = dc.field(default_factory=dict[str, int])
    skipped: list[tuple[str, str]] = dc.field(default_factory=list[tuple[str, str]])


def identity(
    model: nn.Module,
    source: Source,
    board: Board,
    *,
    inputs: Mapping[str, str] | None,
    settings: Mapping[str, Any],
) -> dict[str, str]:
    """What a pass depends on, as words that a message can name. `inputs` stands for hashes of model and data."""
    from pellucid import __version__

    if inputs is None:
        from pellucid.weights import weights_hash

        inputs = {"model": f"{type(model).__qualname__} {weights_hash(model)}", "data": source.fingerprint()}
    stats = {tap: {name: settings_of(s) for name, s in chosen.items()} for tap, chosen in board.stats.items()}
    return {
        **inputs,
        "taps": json.dumps({name: _words(tap) for name, tap in board.taps.items()}),
        "statistics": json.dumps(stats),
        **{name: str(value) for name, value in settings.items()},
        "version of pellucid": __version__,
        "format": FORMAT,
    }


def _words(tap: Tap) -> list[Any]:
    reduce = (
        None if tap.reduce is None else getattr(tap.reduce, "__qualname__", type(tap.reduce).__qualname__)
    )
    return [tap.layer, reduce, tap.side, tap.call, tap.unit_axis, tap.item]


class Checkpoint:
    """The file in which one process keeps its share of a pass.

    With several processes each has a file of its own beside the named one: `NAME-0-of-4.safetensors`.
    """

    def __init__(self, path: Path, *, every: float, key: Mapping[str, str], ranks: Ranks) -> None:
        self.path = _own_path(path, ranks)
        self.every = every
        self.key = dict(key)
        self._saved = time.monotonic()
        for part in self.path.parent.glob(f".{self.path.name}.*.part"):
            part.unlink()  # half a file, left by a kill in the middle of writing
        others = {p.name for p in path.parent.glob(f"{path.stem}-*-of-*{path.suffix}")}
        others = {name for name in others if not name.endswith(f"-of-{ranks.world}{path.suffix}")}
        others |= {path.name} if ranks.world > 1 and path.exists() else set[str]()
        if others:
            raise StaleResultError(
                f"{sorted(others)} in {path.parent} belong to a pass with another number of processes than "
                f"{ranks.world}: go on with as many as before, or delete them"
            )

    def resume(self, board: Board) -> Tally:
        """Put the file's state into the board; a fresh tally where there is no file.

        Raises:
            StaleResultError: written for another model, data, taps, statistics or settings; the message says which.
            ConfigError: not a checkpoint.
        """
        if not self.path.exists():
            return Tally()
        states, facts = _read(self.path)
        if differing := [
            k for k in sorted({*facts["key"], *self.key}) if facts["key"].get(k) != self.key.get(k)
        ]:
            raise StaleResultError(
                f"the checkpoint {self.path} was written with another {', another '.join(differing)}: "
                "delete it to start again, or name another checkpoint"
            )
        board.set_shapes(facts["widths"], {tap: (rows, cols) for tap, (rows, cols) in facts["grids"].items()})
        board.load_states(states)
        skipped = [(name, reason) for name, reason in facts["tally"].pop("skipped")]
        return Tally(**facts["tally"], skipped=skipped)

    def due(self) -> bool:
        """Whether `every` seconds have gone by since the last time."""
        return time.monotonic() - self._saved >= self.every

    def save(self, board: Board, tally: Tally) -> None:
        """Write the state; on a full disk the old file stays and nothing is left of the new one (`ConfigError`)."""
        from safetensors.torch import save

        from pellucid.store import write_bytes

        facts = {"key": self.key, "tally": dc.asdict(tally), "widths": board.widths, "grids": board.grids()}
        states = {name: tensor.detach().cpu().contiguous() for name, tensor in board.states().items()}
        write_bytes(self.path, save(states, metadata={"pellucid.record": json.dumps(facts)}))
        self._saved = time.monotonic()


def _own_path(path: Path, ranks: Ranks) -> Path:
    if ranks.world == 1:
        return path
    return path.with_name(f"{path.stem}-{ranks.rank}-of-{ranks.world}{path.suffix}")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:  # pyright: ignore[reportArgumentType] - a Path is read as well
            facts = (file.metadata() or {}).get("pellucid.record")
            if facts is None:
                raise ConfigError(f"{path} is no checkpoint of record: name another file")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(facts)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"the checkpoint {path} cannot be read ({error}): delete it to start again"
        ) from error
