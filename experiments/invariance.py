"""Do inputs a network cannot tell apart look alike? Standard, robust and contrastive networks compared on real images.

    python experiments/invariance.py --preset smoke                   some minutes: does everything run?
    python experiments/invariance.py --minutes 60                     go on with the default preset for an hour
    python experiments/invariance.py --dataset mnist --part networks  only these cells
    python experiments/invariance.py --status                         what is done, what is left
    python experiments/invariance.py --page                           write the page from whatever is there

PELLUCID_DATA names the folder with the real data (digits need none). A cell trains one network, or inverts one network with
one regulariser, on one thread, and appends one row to docs/results/invariance/DATASET/networks.csv or cells.csv; any number
of processes, and any later call, go on from there. Networks, claims and unfinished work lie in PELLUCID_SCRATCH (default: the
system's temporary folder); a network that is not there is trained again.
"""

import argparse
import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from invariance_cell import run_inversion
from invariance_claims import ledger_at, register_all
from invariance_data import scratch_root
from invariance_nets import run_training
from invariance_setup import ON_JPEG, PUBLISHED, REGULARISERS, Entry, Setup, designs, setups
from mirrored import Sweep, compute, default_out

from pellucid.rng import derive
from pellucid.sweep import Cell

PARTS = ("networks", "inversions")
FILES = {"networks": "networks.csv", "inversions": "cells.csv"}


def seed_of(replicate: int) -> int:
    """The same for every network of a replicate, so that arms are paired."""
    return derive(0, "invariance", replicate) >> 32


def cells_of(entries: Sequence[Entry], part: str) -> list[Cell]:
    """The cells of one part of a data set, replicate by replicate: an unfinished study is a balanced one."""
    found: list[Cell] = []
    for replicate in range(max(entry.replicates for entry in entries)):
        for entry in (e for e in entries if replicate < e.replicates):
            settings = {"architecture": entry.architecture, "paradigm": entry.paradigm}
            if part == "networks":
                if entry.paradigm not in (PUBLISHED, ON_JPEG):
                    found.append(Cell(settings, replicate, seed_of(replicate)))
            else:
                found += [
                    Cell({**settings, "regulariser": r}, replicate, seed_of(replicate))
                    for r in entry.regularisers
                ]
    return found


def sweep_of(preset: str, dataset: str, part: str, out: Path) -> Sweep:
    """The cells of one part of one data set. Nothing is thrown away: inversions need the networks."""
    home = scratch_root() / preset / dataset
    return Sweep(
        f"{dataset} {part}",
        cells_of(designs(preset)[dataset], part),
        work_of(part, setups(preset)[dataset], home, out / dataset / "pictures"),
        folder=home / part,
        results=out / dataset / FILES[part],
        leftover=None,
    )


def asked_for(cells: Sequence[Cell], asked: argparse.Namespace) -> list[Cell]:
    """The cells that the command line asks for."""
    wanted = {key: getattr(asked, key) for key in ("architecture", "paradigm", "regulariser")}
    return [
        cell
        for cell in cells
        if all(not names or cell.settings.get(key, names[0]) in names for key, names in wanted.items())
    ]


def work_of(part: str, setup: Setup, home: Path, pictures: Path) -> Callable[..., dict[str, float]]:
    if part == "networks":
        return functools.partial(run_training, setup=setup, folder=home)
    return functools.partial(run_inversion, setup=setup, folder=home, pictures=pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=["smoke", "default", "full"], default="default")
    parser.add_argument("--dataset", action="append", choices=["digits", "mnist", "fashion-mnist", "cifar10"])
    parser.add_argument("--part", action="append", choices=[*PARTS])
    parser.add_argument("--architecture", action="append")
    parser.add_argument("--paradigm", action="append")
    parser.add_argument("--regulariser", action="append", choices=[*REGULARISERS])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--retry-failed", action="store_true", help="compute failed cells again")
    parser.add_argument("--out", type=Path, help="default: docs/results/invariance")
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out = asked.out or default_out("invariance", asked.preset, scratch_root())
    datasets = asked.dataset or [*designs(asked.preset)]
    if asked.page:
        from invariance_page import write_page

        print(write_page(out, preset=asked.preset, datasets=datasets))
        return
    parts = [[sweep_of(asked.preset, name, part, out) for name in datasets] for part in asked.part or PARTS]
    if not asked.status:
        if asked.preset == "default":
            register_all(ledger_at(out))  # before any cell
        torch.set_num_threads(1)
        for sweeps in parts:
            chosen = {sweep: asked_for(sweep.cells, asked) for sweep in sweeps}
            compute(chosen, minutes=asked.minutes, retry=asked.retry_failed)
    for sweep in (one for sweeps in parts for one in sweeps):
        print(sweep.name, sweep.state())


if __name__ == "__main__":
    main()
