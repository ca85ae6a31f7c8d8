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
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from mirrored import Sweep, compute, default_out
from selectivity_cell import run_cell
from selectivity_data import scratch_root
from selectivity_setup import ARMS, setups

from pellucid.sweep import Cell, grid

CORE = (-5.0, 0.0, 5.0)
SEED = 0

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


def sweep_of(preset: str, dataset: str, out: Path) -> Sweep:
    """The cells of one data set; responses stay in the scratch folder for the CCA."""
    return Sweep(
        dataset,
        cells_of(*DESIGNS[preset][dataset]),
        functools.partial(run_cell, setup=setups(preset)[dataset]),
        folder=scratch_root() / preset / dataset,
        results=out / dataset / "cells.csv",
    )


def asked_for(cells: Sequence[Cell], arms: Sequence[str] | None, *, core: bool) -> list[Cell]:
    """The cells that the command line asks for."""
    return [
        cell for cell in cells if (not arms or cell.settings["arm"] in arms) and (is_core(cell) or not core)
    ]


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
    out = chosen.out or default_out("selectivity", chosen.preset, scratch_root())
    if chosen.page:
        from selectivity_page import write_page

        grids = {name: cells_of(*design) for name, design in DESIGNS[chosen.preset].items()}
        print(write_page(out, preset=chosen.preset, grids=grids))
        return
    sweeps = [sweep_of(chosen.preset, name, out) for name in chosen.dataset or DESIGNS[chosen.preset]]
    if not chosen.status:
        torch.set_num_threads(1)
        passes = (True,) if chosen.core else (True, False)
        for core in passes:
            cells = {sweep: asked_for(sweep.cells, chosen.arm, core=core) for sweep in sweeps}
            compute(cells, minutes=chosen.minutes, retry=chosen.retry_failed)
    for sweep in sweeps:
        print(sweep.name, sweep.state())


if __name__ == "__main__":
    main()
