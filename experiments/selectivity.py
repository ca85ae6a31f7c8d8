"""Does class selectivity matter? Penalise or reward it during training, and measure what changes.

    python experiments/selectivity.py --preset smoke                  a minute or two: does everything run?
    python experiments/selectivity.py --minutes 60                    go on with the default preset for an hour
    python experiments/selectivity.py --dataset cifar10 --arm class   only these cells
    python experiments/selectivity.py --status                        what is done, what is left
    python experiments/selectivity.py --page                          write the page from whatever is there

PELLUCID_DATA names the folder with the real data (digits need none). Every cell trains one network on one thread and
appends one row to docs/results/selectivity/DATASET/cells.csv; any number of processes, and any later call, go on from
there. Claims, unfinished trainings and caches lie in PELLUCID_SCRATCH (default: the system's temporary folder).
"""

import argparse
import csv
import functools
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from selectivity_cell import run_cell
from selectivity_data import scratch_root
from selectivity_setup import ARMS, setups

from pellucid.sweep import Cell, SweepState, grid, run_cells, sweep_state
from pellucid.sweep.locks import held

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
CORE = (-5.0, 0.0, 5.0)
SEED = 0
STARTED = time.monotonic()

Arms = dict[str, tuple[float, ...]]
FULL_RANGE = (-20.0, -10.0, -5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
CONTROLS: Arms = {
    "permuted": (-5.0, -2.0, 2.0, 5.0),
    "activation": (-5.0, 5.0),
    "leaky": CORE,
    "first third": (-5.0, 5.0),
    "middle third": (-5.0, 5.0),
    "last third": (-5.0, 5.0),
    "twice the epochs": CORE,
    "lr / 3": CORE,
    "lr x 3": CORE,
    "weight decay / 4": (0.0,),
    "weight decay x 4": (0.0,),
    "label smoothing": (0.0,),
    "corrupted training": (0.0,),
    "adversarial training": (0.0,),
}
DESIGNS: dict[str, dict[str, tuple[int, Arms]]] = {  # preset -> data set -> (replicates, alphas by arm)
    "smoke": {name: (1, {"class": (0.0, 5.0), "permuted": (5.0,)}) for name in ("digits", "cifar10", "fashion-mnist")},
    "default": {
        "digits": (6, {"class": FULL_RANGE, **CONTROLS}),
        "cifar10": (5, {"class": (-5.0, -2.0, -1.0, 0.0, 1.0, 2.0, 5.0), "permuted": (-5.0, -2.0, 2.0, 5.0)}),
        "fashion-mnist": (5, {"class": CORE}),
    },
    "full": {
        "digits": (20, {"class": FULL_RANGE, **CONTROLS}),
        "cifar10": (20, {"class": FULL_RANGE, **CONTROLS}),
        "fashion-mnist": (20, {"class": FULL_RANGE, "permuted": (-5.0, -2.0, 2.0, 5.0)}),
    },
}  # fmt: skip


class Enough(Exception):
    """One cell is done: time for another data set."""


def cells_of(replicates: int, arms: Arms) -> list[Cell]:
    """The cells of a data set, the most telling ones of every replicate first."""
    found = [
        cell
        for arm, alphas in arms.items()
        for cell in grid({"arm": [arm], "alpha": list(alphas)}, replicates=replicates, seed=SEED)
    ]
    return sorted(found, key=lambda cell: (not is_core(cell), cell.replicate))


def is_core(cell: Cell) -> bool:
    """Alphas -5, 0, 5 and their permuted-label twins: enough for a verdict."""
    return cell.settings["arm"] in ("class", "permuted") and cell.settings["alpha"] in CORE


class Sweep:
    """The cells of one data set, computed in the scratch folder and mirrored to the results."""

    def __init__(self, preset: str, dataset: str, out: Path) -> None:
        replicates, arms = DESIGNS[preset][dataset]
        self.dataset, self.setup = dataset, setups(preset)[dataset]
        self.cells = cells_of(replicates, arms)
        self.results = out / dataset / "cells.csv"
        self.folder = scratch_root() / preset / dataset
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table = self.folder / "cells.csv"
        self.pull()

    def pull(self) -> None:
        """Take over what the results have and the scratch folder lacks: another clone's cells."""
        with held(self.table.with_suffix(".lock")):
            if not self.results.exists() or len(rows(self.table)) >= len(rows(self.results)):
                return
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

    def chosen(self, arms: Sequence[str] | None, core: bool) -> list[Cell]:
        return [
            cell
            for cell in self.cells
            if (not arms or cell.settings["arm"] in arms) and (is_core(cell) or not core)
        ]

    def one(self, cells: Sequence[Cell], *, retry: bool) -> bool:
        """Compute one of these cells; False when none is left that nobody else is computing."""
        done = done_names(self.table, failed=not retry)
        left = [cell for cell in cells if cell.name not in done]
        # Finished cells are named too, so that the table is known to be this grid's.
        known = [cell for cell in self.cells if cell.name in done]

        def stop(_done: int, _all: int) -> None:
            raise Enough

        work = functools.partial(run_cell, setup=self.setup)
        try:
            if left:
                run_cells([*known, *left], work, self.folder, retry_failed=retry, progress=stop)
        except Enough:
            self.push()
            self.clean()
            return True
        return False

    def clean(self) -> None:
        """Checkpoints of finished trainings are not needed any more; responses stay for the CCA."""
        for name in done_names(self.table, failed=False):
            shutil.rmtree(self.folder / "scratch" / name / "training", ignore_errors=True)

    def state(self) -> SweepState:
        return sweep_state(self.cells, self.folder)


def rows(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def done_names(table: Path, *, failed: bool) -> set[str]:
    """Cells with a row; failed ones count if asked."""
    return {row["cell"] for row in rows(table) if failed or row["status"] == "done"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=[*DESIGNS], default="default")
    parser.add_argument("--dataset", action="append", choices=["digits", "cifar10", "fashion-mnist"])
    parser.add_argument("--arm", action="append", choices=[*ARMS])
    parser.add_argument("--core", action="store_true", help="only alphas -5, 0, 5 and their permuted twins")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--retry-failed", action="store_true", help="compute failed cells again")
    parser.add_argument("--out", type=Path, help="default: docs/results/selectivity")
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out = chosen.out or default_out(chosen.preset)
    if chosen.page:
        from selectivity_page import write_page

        grids = {name: cells_of(*design) for name, design in DESIGNS[chosen.preset].items()}
        print(write_page(out, preset=chosen.preset, grids=grids))
        return
    sweeps = [Sweep(chosen.preset, name, out) for name in chosen.dataset or DESIGNS[chosen.preset]]
    if not chosen.status:
        torch.set_num_threads(1)
        passes = (True,) if chosen.core else (True, False)
        for core in passes:
            compute(sweeps, chosen.arm, core=core, minutes=chosen.minutes, retry=chosen.retry_failed)
    for sweep in sweeps:
        print(sweep.dataset, sweep.state())


def default_out(preset: str) -> Path:
    """The default preset is the documented result; a smoke run leaves nothing behind in the documents."""
    if preset == "smoke":
        return scratch_root() / "smoke-results"
    return RESULTS / ("selectivity" if preset == "default" else "selectivity_full")


def compute(
    sweeps: Sequence[Sweep], arms: Sequence[str] | None, *, core: bool, minutes: float, retry: bool
) -> None:
    """One cell of every data set in turn, until all are done or the next one would outlast the minutes."""
    longest, left = {sweep.dataset: 0.0 for sweep in sweeps}, list(sweeps)
    while left:
        for sweep in list(left):
            began = time.monotonic()
            fits = began - STARTED + longest[sweep.dataset] <= 60 * minutes
            if not fits or not sweep.one(sweep.chosen(arms, core), retry=retry):
                left.remove(sweep)
            longest[sweep.dataset] = max(longest[sweep.dataset], time.monotonic() - began)


if __name__ == "__main__":
    main()
