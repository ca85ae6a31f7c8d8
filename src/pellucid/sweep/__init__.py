"""Grids of independent cells that any number of processes, machines and sittings fill together.

A cell is one setting of the factors and one replicate. Its result is one row of `cells.csv`, appended when the cell is
done; a cell that is being computed is claimed by a lock file beside the table. Killing a process loses the cell it was
in and nothing else: its claim ends with it. Replicate r has the same seed at every setting, so differences between
settings are paired by replicate.
"""

from pellucid.sweep.cells import Cell, Value, grid
from pellucid.sweep.run import SweepState, Work, run_cells, sweep_state
from pellucid.sweep.summary import Summary, paired, summarise
from pellucid.sweep.table import read_cells, tidy

__all__ = [
    "Cell",
    "Summary",
    "SweepState",
    "Value",
    "Work",
    "grid",
    "paired",
    "read_cells",
    "run_cells",
    "summarise",
    "sweep_state",
    "tidy",
]
