"""Cells computed in a scratch folder by any number of processes, one at a time, and mirrored to a published table.

Every study of this folder is made of these: what differs between them is which cells there are and what computes one.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pellucid.sweep import Cell, SweepState, Work, read_cells, run_cells, sweep_state
from pellucid.sweep.locks import held, is_claimed

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
STARTED = time.monotonic()
PAUSE = 5.0
"""Seconds between looks at cells that another process computes and that others wait for."""


class Enough(Exception):
    """One cell is done: time for another part."""


def default_out(study: str, preset: str, scratch: Path) -> Path:
    """The default preset is the documented result; a smoke run leaves nothing behind in the documents."""
    if preset == "smoke":
        return scratch / "smoke-results"
    return RESULTS / (study if preset == "default" else f"{study}_full")


class Sweep:
    """Cells, what computes one, the scratch folder they are computed in, and the table that is published.

    Args:
        needed: for a cell's name, the names of cells that must be done before it; by default none.
        leftover: what of a finished cell's scratch folder is thrown away: "" all of it, a folder's name, None nothing.
    """

    def __init__(
        self,
        name: str,
        cells: Sequence[Cell],
        work: Work,
        *,
        folder: Path,
        results: Path,
        needed: Mapping[str, set[str]] | None = None,
        leftover: str | None = "training",
    ) -> None:
        self.name, self.cells, self.work, self.folder, self.results = name, cells, work, folder, results
        self.needed, self.leftover = needed or {}, leftover
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table = self.folder / "cells.csv"
        self.tried: set[str] = set()  # in this process: what fails each time is not retried for ever
        self.pull()

    def pull(self) -> None:
        """Take over what the results have and the scratch folder lacks: another clone's cells."""
        with held(self.table.with_suffix(".lock")):
            if len(read_cells(self.results)) > len(read_cells(self.table)):
                shutil.copyfile(self.results, self.table)

    def push(self) -> None:
        """Mirror the table to the results, whole or not at all."""
        with held(self.table.with_suffix(".lock")):
            if not self.table.exists():
                return
            self.results.parent.mkdir(parents=True, exist_ok=True)
            part = self.results.with_suffix(f".part{os.getpid()}")
            shutil.copyfile(self.table, part)
            part.replace(self.results)

    def names(self, *statuses: str) -> set[str]:
        """Cells with a row of these statuses (`done`, `failed`)."""
        return {row["cell"] for row in read_cells(self.table) if row["status"] in statuses}

    def one(self, cells: Sequence[Cell], *, retry: bool) -> bool:
        """Compute one of these cells; False when none can be started now. A failed one is retried once, if asked."""
        done, failed = self.names("done"), self.names("failed")
        ready = [
            c for c in cells if c.name not in done | self.tried and self.needed.get(c.name, set()) <= done
        ]
        fresh = [cell for cell in ready if cell.name not in failed]
        again = [cell for cell in ready if cell.name in failed] if retry else []
        return self.start(again, done, retry=True) or self.start(fresh, done | failed, retry=False)

    def start(self, left: Sequence[Cell], known: set[str], *, retry: bool) -> bool:
        """Compute the first of these cells that nobody else is computing."""

        def work(cell: Cell, scratch: Path) -> Mapping[str, float]:
            self.tried.add(cell.name)
            return self.work(cell, scratch)

        def stop(_done: int, _all: int) -> None:
            raise Enough

        # Cells of the table are named too, so that it is known to be this grid's.
        named = [cell for cell in self.cells if cell.name in known]
        try:
            if left:
                run_cells([*named, *left], work, self.folder, retry_failed=retry, progress=stop)
        except Enough:
            self.push()
            self.clean()
            return True
        return False

    def waiting(self, cells: Sequence[Cell]) -> bool:
        """Whether a cell is held up by one it needs that another process is computing."""
        seen = self.names("done", "failed")
        open_cells = {cell.name for cell in cells} - seen
        missing = {name for cell in open_cells for name in self.needed.get(cell, set())} - seen
        return any(is_claimed(self.folder / "claims" / f"{name}.lock") for name in missing)

    def clean(self) -> None:
        """Throw away what finished cells do not need any more, such as checkpoints of their training."""
        if self.leftover is not None:
            for name in self.names("done"):
                shutil.rmtree(self.folder / "scratch" / name / self.leftover, ignore_errors=True)

    def state(self) -> SweepState:
        return sweep_state(self.cells, self.folder)


def compute(chosen: Mapping[Sweep, Sequence[Cell]], *, minutes: float, retry: bool) -> None:
    """One cell of every sweep in turn, until all are done or the next one would outlast the minutes."""
    longest, left = dict.fromkeys(chosen, 0.0), list(chosen)
    while left:
        idle = True
        for sweep in list(left):
            began = time.monotonic()
            fits = began - STARTED + longest[sweep] <= 60 * minutes
            if fits and sweep.one(chosen[sweep], retry=retry):
                idle = False
            elif not fits or not sweep.waiting(chosen[sweep]):
                left.remove(sweep)
            longest[sweep] = max(longest[sweep], time.monotonic() - began)
        if left and idle:
            time.sleep(PAUSE)
