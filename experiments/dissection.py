"""Do competing units keep a network's accuracy, and can they be described in words?

    python experiments/dissection.py --preset smoke                 some minutes: does everything run?
    python experiments/dissection.py --minutes 60                   go on with the default preset for an hour
    python experiments/dissection.py --part shapes --part planted   only these parts, which need no data
    python experiments/dissection.py --net vit --units 24           only these cells of it
    python experiments/dissection.py --status                       what is done, what is left
    python experiments/dissection.py --page                         write the page from whatever is there

PELLUCID_DATA names the folder with the real data. Every cell runs on one thread and appends one row to
docs/results/dissection/PART/cells.csv; any number of processes, and any later call, go on from there. Claims, unfinished
trainings and locks lie in PELLUCID_SCRATCH (default: the system's temporary folder).
"""

import argparse
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from dissection_claims import register_all
from dissection_data import scratch_root
from dissection_setup import BLOCKS, PARTS, SMALL, TRAINED, cells_of, planted_setup, pretrained_setup, setups
from mirrored import Sweep, compute, default_out

from pellucid.sweep import Cell, Value, Work


def work_of(preset: str, part: str, out: Path) -> Work:
    """What computes a cell of a part."""
    if part in TRAINED:
        from dissection_cell import run_cell

        return functools.partial(run_cell, setup=setups(preset)[part])
    if part == "planted":
        from dissection_describe import run_planted

        return functools.partial(run_planted, setup=planted_setup(preset))
    from dissection_pretrained import run_pretrained

    return functools.partial(run_pretrained, setup=pretrained_setup(preset), tables=out / part)


def sweep_of(preset: str, part: str, out: Path) -> Sweep:
    folder, results = scratch_root() / preset / part, out / part / "cells.csv"
    work = work_of(preset, part, out)
    return Sweep(part, cells_of(preset, part), work, folder=folder, results=results, leftover="")


def asked_for(cells: Sequence[Cell], settings: Mapping[str, Sequence[Value]]) -> list[Cell]:
    """The cells that the command line asks for."""
    return [
        cell for cell in cells if all(cell.settings.get(name) in values for name, values in settings.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=[*BLOCKS], default="default")
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--net", action="append", choices=[*SMALL], help="only cells of this network")
    parser.add_argument(
        "--units", action="append", type=int, help="only cells of this block size, 1 for ReLU"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--retry-failed", action="store_true", help="compute failed cells again")
    parser.add_argument("--out", type=Path, help="default: docs/results/dissection")
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out = chosen.out or default_out("dissection", chosen.preset, scratch_root())
    if chosen.page:
        from dissection_page import write_page

        print(write_page(out, preset=chosen.preset))
        return
    sweeps = [sweep_of(chosen.preset, part, out) for part in chosen.part or PARTS]
    if not chosen.status:
        torch.set_num_threads(1)
        if chosen.preset == "default":
            register_all(out)  # before any cell of it is computed
        asked = {"net": chosen.net, "units": chosen.units}
        settings = {name: values for name, values in asked.items() if values}
        cells = {sweep: asked_for(sweep.cells, settings) for sweep in sweeps}
        compute(cells, minutes=chosen.minutes, retry=chosen.retry_failed)
    for sweep in sweeps:
        print(sweep.name, sweep.state())


if __name__ == "__main__":
    main()
