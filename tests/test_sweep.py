"""Cells are computed once, by any number of processes, and a kill loses only the cell it hit."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pellucid._checks import ConfigError, DataError
from pellucid.sweep import Cell, grid, paired, read_cells, run_cells, summarise, sweep_state, tidy

CELLS = grid({"alpha": [-1.0, 0.0, 1.0], "data": ["a", "b"]}, replicates=3, seed=7)


def work(cell: Cell, scratch: Path) -> dict[str, float]:
    noise = np.random.default_rng(cell.seed).normal()
    return {"accuracy": 90 + noise - abs(float(cell.settings["alpha"])), "si": float(cell.settings["alpha"])}


def test_the_grid_is_balanced_and_paired() -> None:
    assert len(CELLS) == 18
    assert [c.replicate for c in CELLS] == [0] * 6 + [1] * 6 + [2] * 6
    assert len({c.name for c in CELLS}) == 18
    for r in range(3):
        assert len({c.seed for c in CELLS if c.replicate == r}) == 1
    assert len({c.seed for c in CELLS}) == 3
    assert grid({"x": [1]}, replicates=1, seed=1)[0].seed != grid({"x": [1]}, replicates=1, seed=2)[0].seed


def test_cells_are_computed_once_and_read_back(tmp_path: Path) -> None:
    state = run_cells(CELLS, work, tmp_path)
    assert state.complete and state.done == 18 and len(state.finished_here) == 18

    def never(cell: Cell, scratch: Path) -> dict[str, float]:
        raise AssertionError("a finished cell was computed again")

    again = run_cells(CELLS, never, tmp_path)
    assert again.complete and again.finished_here == ()
    table = tidy(tmp_path / "cells.csv")
    assert set(table) == {"alpha", "data", "replicate", "measure", "value"}
    assert len(table["value"]) == 36 and set(table["alpha"]) == {-1.0, 0.0, 1.0}


def test_summaries_match_scipy_and_pairing_removes_the_replicate(tmp_path: Path) -> None:
    run_cells(CELLS, work, tmp_path)
    table = tidy(tmp_path / "cells.csv")
    for row in summarise(table, "accuracy", level=0.9):
        low, high = stats.t.interval(0.9, 2, np.mean(row.values), stats.sem(row.values))
        assert row.n == 3
        assert (row.low, row.high) == pytest.approx((low, high))
    differences = paired(table, "accuracy", baseline={"alpha": 0.0})
    # The planted effect is exactly -|alpha|, and the noise belongs to the replicate, so pairing removes it.
    assert len(differences) == 4
    for row in differences:
        assert row.mean == pytest.approx(-1.0) and row.high - row.low == pytest.approx(0, abs=1e-9)


def test_one_replicate_has_no_interval(tmp_path: Path) -> None:
    run_cells(grid({"alpha": [1.0], "data": ["a"]}, replicates=1), work, tmp_path)
    (row,) = summarise(tidy(tmp_path / "cells.csv"), "accuracy")
    assert math.isnan(row.low) and math.isnan(row.high) and not math.isnan(row.mean)


def test_a_failing_cell_is_a_row_with_its_reason_and_can_be_retried(tmp_path: Path) -> None:
    broken = {"now": True}

    def sometimes(cell: Cell, scratch: Path) -> dict[str, float]:
        if broken["now"] and cell.settings["alpha"] == 1.0:
            raise RuntimeError("collapsed, badly")
        return work(cell, scratch)

    state = run_cells(CELLS, sometimes, tmp_path)
    assert (state.done, state.failed, state.left) == (12, 6, 0)
    failed = [row for row in read_cells(tmp_path / "cells.csv") if row["status"] == "failed"]
    assert all(row["error"] == "RuntimeError: collapsed, badly" for row in failed)
    assert 1.0 not in tidy(tmp_path / "cells.csv")["alpha"]
    broken["now"] = False
    assert run_cells(CELLS, sometimes, tmp_path).failed == 6, "failures are not retried unasked"
    assert run_cells(CELLS, sometimes, tmp_path, retry_failed=True).complete


def test_a_measure_that_appears_late_widens_the_table(tmp_path: Path) -> None:
    def growing(cell: Cell, scratch: Path) -> dict[str, float]:
        return {"a": 1.0} if cell.replicate == 0 else {"a": 1.0, "b": 2.0}

    run_cells(grid({"x": [1, 2]}, replicates=2), growing, tmp_path)
    table = tidy(tmp_path / "cells.csv")
    assert list(table["measure"]).count("b") == 2
    assert set(table["x"]) == {1, 2}


def test_minutes_stop_before_a_cell_that_would_not_fit(tmp_path: Path) -> None:
    def slow(cell: Cell, scratch: Path) -> dict[str, float]:
        time.sleep(0.2)
        return {"a": 1.0}

    cells = grid({"x": [1, 2, 3, 4, 5, 6, 7, 8]}, replicates=1)
    state = run_cells(cells, slow, tmp_path, minutes=0.5 / 60)
    assert 1 <= state.done <= 3 and state.left == 8 - state.done
    assert run_cells(cells, slow, tmp_path).complete


SCRIPT = """
import sys, time, pathlib
from pellucid.sweep import grid, run_cells
cells = grid({"x": list(range(12))}, replicates=1)
folder = pathlib.Path(sys.argv[1])
def work(cell, scratch):
    (folder / "started").open("a").write(cell.name + "\\n")
    time.sleep(float(sys.argv[2]))
    return {"square": cell.settings["x"] ** 2}
run_cells(cells, work, folder)
"""


@pytest.mark.multiprocess
def test_processes_share_a_grid_without_doing_a_cell_twice(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "0.05"]
    for process in [subprocess.Popen(command) for _ in range(3)]:
        assert process.wait(timeout=60) == 0
    cells = grid({"x": list(range(12))}, replicates=1)
    assert sweep_state(cells, tmp_path).complete
    with (tmp_path / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["x"]) for row in rows) == list(range(12))
    assert len((tmp_path / "started").read_text().split()) == 12


@pytest.mark.multiprocess
def test_a_killed_process_gives_its_cell_back(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), "60"])
    cells = grid({"x": list(range(12))}, replicates=1)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sweep_state(cells, tmp_path).claimed == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    state = sweep_state(cells, tmp_path)
    assert (state.claimed, state.left) == (0, 12)
    assert run_cells(cells, lambda cell, _: {"square": 1.0}, tmp_path).complete


def test_bad_grids_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1 replicate"):
        grid({"x": [1]}, replicates=0)
    with pytest.raises(ConfigError, match="no levels"):
        grid({"x": []}, replicates=1)
    with pytest.raises(ConfigError, match="names a level twice"):
        grid({"x": [1, 1]}, replicates=1)
    with pytest.raises(ConfigError, match="cannot be called 'seed'"):
        grid({"seed": [1]}, replicates=1)
    with pytest.raises(ConfigError, match="at least one cell"):
        run_cells([], work, tmp_path)
    run_cells(CELLS, work, tmp_path)
    with pytest.raises(DataError, match="belongs to another grid"):
        run_cells(grid({"alpha": [5.0], "data": ["a"]}, replicates=1), work, tmp_path)
    table = tidy(tmp_path / "cells.csv")
    with pytest.raises(ConfigError, match="no measure 'f1'"):
        summarise(table, "f1")
    with pytest.raises(ConfigError, match="no factors"):
        paired(table, "si", baseline={"beta": 0})
    with pytest.raises(DataError, match="no finished cell has the baseline"):
        paired(table, "si", baseline={"alpha": 9.0})
    with pytest.raises(DataError, match="has no finished cell"):
        tidy(tmp_path / "elsewhere.csv")
