"""Compute the cells of a sweep, whole ones only, together with any number of other processes."""

import dataclasses as dc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pellucid._checks import ConfigError
from pellucid.sweep.cells import LEADING, Cell, Value
from pellucid.sweep.locks import claimed, is_claimed
from pellucid.sweep.table import append_cell, statuses

log = logging.getLogger(__name__)

Work = Callable[[Cell, Path], Mapping[str, float]]


@dc.dataclass(frozen=True)
class SweepState:
    """Where a sweep stands: cells done, failed, claimed by somebody, still to do; and what this call finished."""

    done: int
    failed: int
    claimed: int
    left: int
    finished_here: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.failed == self.claimed == self.left == 0


def run_cells(
    cells: Sequence[Cell],
    work: Work,
    folder: Path,
    *,
    minutes: float | int | None = None,
    retry_failed: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SweepState:
    """Compute cells until all are done, claimed by others, or the minutes are up; whole cells only.

    Args:
        work: `work(cell, scratch) -> {measure: number}`; `scratch` is the cell's own folder, which survives a kill, so
            that a long cell can resume itself.
        folder: holds `cells.csv` and `claims/`; may be shared by processes and machines.
        minutes: no cell is started when the longest cell so far would not fit in what is left.
        retry_failed: compute cells again whose row says `failed`.

    Raises:
        DataError: `cells.csv` belongs to another grid (other factors or other seeds).
    """
    if not cells:
        raise ConfigError("a sweep needs at least one cell")
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "cells.csv"
    started, longest = time.monotonic(), 0.0
    mine: list[str] = []
    for cell in cells:
        status = statuses(table, cells)
        if cell.name in status and not (
            retry_failed and status[cell.name] == "failed" and cell.name not in mine
        ):
            continue
        if minutes is not None and time.monotonic() - started + longest > 60 * minutes:
            break
        with claimed(folder / "claims" / f"{cell.name}.lock") as got:
            # Somebody may have finished it between the look at the table and the claim.
            if not got or statuses(table, cells).get(cell.name) == "done":
                continue
            began = time.monotonic()
            append_cell(table, cells, _row(cell, work, folder))
            longest = max(longest, time.monotonic() - began)
            mine.append(cell.name)
        if progress is not None:
            progress(len(statuses(table, cells)), len(cells))
    return sweep_state(cells, folder, finished_here=mine)


def sweep_state(cells: Sequence[Cell], folder: Path, *, finished_here: Sequence[str] = ()) -> SweepState:
    """Count the cells of a sweep by state; reads files only."""
    status = statuses(folder / "cells.csv", cells)
    done = sum(s == "done" for s in status.values())
    failed = sum(s == "failed" for s in status.values())
    open_cells = [cell.name for cell in cells if cell.name not in status]
    claimed = sum(is_claimed(folder / "claims" / f"{name}.lock") for name in open_cells)
    return SweepState(done, failed, claimed, len(open_cells) - claimed, tuple(finished_here))


def _row(cell: Cell, work: Work, folder: Path) -> dict[str, Value]:
    """The finished row of a cell. A cell that raises becomes a `failed` row with its reason; the sweep goes on."""
    scratch = folder / "scratch" / cell.name
    scratch.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    row: dict[str, Value] = {
        "cell": cell.name,
        "replicate": cell.replicate,
        "seed": cell.seed,
        **cell.settings,
    }
    try:
        measures = {name: float(value) for name, value in work(cell, scratch).items()}
        clash = set(measures) & (set(row) | set(LEADING))
        if clash:
            raise ConfigError(
                f"measures cannot be called {sorted(clash)}: those are factors or columns of the table"
            )
        row |= {"status": "done", **measures}
    except Exception as error:
        log.exception("cell %s failed", cell.name)
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return row | {"seconds": round(time.monotonic() - began, 2)}
