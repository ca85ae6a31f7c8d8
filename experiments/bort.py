"""Bounded, orthogonal weights: what do they cost, and what do they buy? Train with and without, and measure.

    python experiments/bort.py --preset smoke                    a few minutes: does everything run?
    python experiments/bort.py --minutes 60                      go on with the default preset for an hour
    python experiments/bort.py --dataset mnist --net plain       only these cells
    python experiments/bort.py --status                          what is done, what is left
    python experiments/bort.py --page                            write the page from whatever is there

PELLUCID_DATA names the folder with the real data. Every cell trains one network on one thread and appends one row to
docs/results/bort/DATASET/cells.csv; any number of processes, and any later call, go on from there. The tuning cells of an
arm come first: a final cell waits until they are all done and takes the setting that came out best. Unfinished
trainings and pictures lie in PELLUCID_SCRATCH (default: the system's temporary folder). Claims are registered in
docs/results/bort/claims.jsonl before the first cell.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from bort_cell import FINAL, TUNED, TUNING, run_cell
from bort_claims import REPLICATES, ledger_at, register_all
from bort_data import scratch_root
from bort_setup import ARMS, GRIDS, setups
from mirrored import Sweep, compute, default_out

from pellucid.sweep import Cell, grid

SEED, TUNING_SEED = 0, 1  # no final network has a seed that settings were chosen on
SETTINGS = {"smoke": 2, "default": 6, "full": 6}  # settings that each arm is tuned over
REPEATS = {"smoke": 1, "default": REPLICATES, "full": 5}
LEFT_OUT = {"default": {("cifar10", "plain", "every 4")}}  # what 100 minutes on two cores have no room for


def cells_of(preset: str, dataset: str) -> list[Cell]:
    """The cells of a data set: tuning first, then replicate by replicate; the plain network before the others."""
    arms = [
        {"net": [net], "optimizer": [optimizer], "arm": [arm]}
        for net in setups(preset)[dataset].nets
        for optimizer in (GRIDS if net == "plain" else ["adamw"])
        for arm in ARMS
        if (dataset, net, arm) not in LEFT_OUT.get(preset, set())
    ]
    settings = list(range(SETTINGS[preset]))
    tuning = [
        cell
        for arm in arms
        for cell in grid({"phase": [TUNING], **arm, "setting": settings}, replicates=1, seed=TUNING_SEED)
    ]
    final = [
        cell
        for arm in arms
        for cell in grid({"phase": [FINAL], **arm, "setting": [TUNED]}, replicates=REPEATS[preset], seed=SEED)
    ]
    return tuning + sorted(final, key=lambda cell: (cell.settings["net"] != "plain", cell.replicate))


def needs(cell: Cell, cells: Sequence[Cell]) -> list[Cell]:
    """The tuning cells that a final cell takes its setting from."""
    if cell.settings["phase"] == TUNING:
        return []
    same = ("net", "optimizer", "arm")
    return [
        other
        for other in cells
        if other.settings["phase"] == TUNING
        and all(other.settings[key] == cell.settings[key] for key in same)
    ]


def sweep_of(preset: str, dataset: str, out: Path) -> Sweep:
    """The cells of one data set; a final cell needs the tuning cells of its arm."""
    cells, setup = cells_of(preset, dataset), setups(preset)[dataset]
    folder = scratch_root() / preset / dataset

    def work(cell: Cell, scratch: Path) -> dict[str, float]:
        return run_cell(cell, scratch, setup=setup, table=folder / "cells.csv", settings=SETTINGS[preset])

    needed = {cell.name: {other.name for other in needs(cell, cells)} for cell in cells}
    return Sweep(dataset, cells, work, folder=folder, results=out / dataset / "cells.csv", needed=needed)


def asked_for(
    cells: Sequence[Cell], nets: Sequence[str] | None, optimizers: Sequence[str] | None
) -> list[Cell]:
    """The cells that the command line asks for."""
    return [
        cell
        for cell in cells
        if (not nets or cell.settings["net"] in nets)
        and (not optimizers or cell.settings["optimizer"] in optimizers)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=[*SETTINGS], default="default")
    parser.add_argument("--dataset", action="append", choices=["mnist", "cifar10", "digits"])
    parser.add_argument("--net", action="append", choices=["plain", "residual", "vit"])
    parser.add_argument("--optimizer", action="append", choices=[*GRIDS])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--retry-failed", action="store_true", help="compute failed cells again")
    parser.add_argument("--out", type=Path, help="default: docs/results/bort")
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out, known = chosen.out or default_out("bort", chosen.preset, scratch_root()), setups(chosen.preset)
    if unknown := set(chosen.dataset or ()) - set(known):
        parser.error(f"{sorted(unknown)} is for trying out: --preset smoke")
    if chosen.page:
        from bort_page import write_page

        print(
            write_page(
                out, preset=chosen.preset, grids={name: cells_of(chosen.preset, name) for name in known}
            )
        )
        return
    if chosen.preset == "default" and not chosen.status:
        register_all(ledger_at(out))
    sweeps = [sweep_of(chosen.preset, name, out) for name in chosen.dataset or known]
    if not chosen.status:
        torch.set_num_threads(1)
        compute(
            {sweep: asked_for(sweep.cells, chosen.net, chosen.optimizer) for sweep in sweeps},
            minutes=chosen.minutes, retry=chosen.retry_failed,
        )  # fmt: skip
    for sweep in sweeps:
        print(sweep.name, sweep.state())


if __name__ == "__main__":
    main()
