"""Decodable networks: what do they cost in accuracy, and what is their uncertainty worth beside that of others?

    python experiments/decode.py --preset smoke                  a minute, without data: does everything run?
    python experiments/decode.py --minutes 60                    go on with the default preset for an hour
    python experiments/decode.py --part mnist --part fairness    only these parts
    python experiments/decode.py --status                        what is done, what is left
    python experiments/decode.py --page                          write the page from whatever is there

PELLUCID_DATA names the folder with the real data. Every cell measures one method and replicate on one thread and appends
one row to docs/results/decode/PART/cells.csv; any number of processes, and any later call, go on from there. Networks that cells
share are trained once and kept in PELLUCID_SCRATCH (default: the system's temporary folder). Claims are registered in
docs/results/decode/claims.jsonl before the first cell.
"""

import argparse
import logging
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from decode_cell import run_cell
from decode_claims import ledger_at, register_all
from decode_data import scratch_root
from decode_fair import run_fair_cell
from decode_setup import FAIR_ARMS, REPLICATES, SEED, fair_setup, setups
from mirrored import Sweep, compute, default_out

from pellucid.sweep import Cell, grid

FAIRNESS = "fairness"


def cells_of(preset: str, part: str) -> list[Cell]:
    """The cells of a part, all methods of the first replicate first."""
    if part == FAIRNESS:
        factors = {"case": list(fair_setup(preset).cases), "arm": list(FAIR_ARMS)}
    else:
        factors = {"method": list(setups(preset)[part].methods)}
    return grid(factors, replicates=REPLICATES[preset], seed=SEED)


def parts_of(preset: str) -> list[str]:
    return [*setups(preset), FAIRNESS]


def sweep_of(preset: str, part: str, out: Path) -> Sweep:
    """The cells of one part; networks that they share lie in the part's scratch folder."""
    folder = scratch_root() / preset / part

    def work(cell: Cell, scratch: Path) -> dict[str, float]:
        if part == FAIRNESS:
            return run_fair_cell(cell, scratch, setup=fair_setup(preset))
        return run_cell(cell, scratch, setup=setups(preset)[part], folder=folder)

    return Sweep(part, cells_of(preset, part), work, folder=folder, results=out / part / "cells.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=[*REPLICATES], default="default")
    parser.add_argument(
        "--part", action="append", help="mnist, fashion-mnist, fashion-residual, fairness; default: all"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--retry-failed", action="store_true", help="compute failed cells again")
    parser.add_argument("--out", type=Path, help="default: docs/results/decode")
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out, known = chosen.out or default_out("decode", chosen.preset, scratch_root()), parts_of(chosen.preset)
    if unknown := set(chosen.part or ()) - set(known):
        parser.error(f"preset {chosen.preset} has the parts {known}, not {sorted(unknown)}")
    if chosen.page:
        from decode_page import write_page

        print(
            write_page(
                out, preset=chosen.preset, grids={part: cells_of(chosen.preset, part) for part in known}
            )
        )
        return
    if chosen.preset == "default" and not chosen.status:
        register_all(ledger_at(out))
    sweeps = [sweep_of(chosen.preset, part, out) for part in chosen.part or known]
    if not chosen.status:
        torch.set_num_threads(1)
        compute({sweep: sweep.cells for sweep in sweeps}, minutes=chosen.minutes, retry=chosen.retry_failed)
    for sweep in sweeps:
        print(sweep.name, sweep.state())


if __name__ == "__main__":
    main()
