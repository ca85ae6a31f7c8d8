"""`cells.csv`: one row a finished cell, appended under a lock, so that any clone can go on from it."""

import contextlib
import csv
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pellucid._checks import ConfigError, DataError
from pellucid.sweep.cells import Cell, Value
from pellucid.sweep.locks import held


def read_cells(table: Path) -> list[dict[str, str]]:
    """The rows of `cells.csv` as text; the last row of a cell counts, so a retried failure is replaced."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        rows = {row["cell"]: row for row in csv.DictReader(file) if row.get("cell")}
    return list(rows.values())


def statuses(table: Path, cells: Sequence[Cell]) -> dict[str, str]:
    known = {cell.name for cell in cells}
    rows = read_cells(table)
    strangers = [row["cell"] for row in rows if row["cell"] not in known]
    if strangers and len(strangers) == len(rows):
        raise DataError(
            f"{table} belongs to another grid (its first cell is {strangers[0]!r}, ours {cells[0].name!r}); "
            "choose another folder, or restore the factors, replicates and seed it was started with"
        )
    return {row["cell"]: row["status"] for row in rows if row["cell"] in known}


def append_cell(table: Path, cells: Sequence[Cell], row: Mapping[str, Value]) -> None:
    """Add a row under a lock. New measures widen the header, which rewrites the file once, atomically."""
    with held(table.with_suffix(".lock")):
        old: list[dict[str, str]] = []
        header: list[str] = []
        if table.exists():
            with table.open(newline="") as file:
                reader = csv.DictReader(file)
                header, old = list(reader.fieldnames or []), list(reader)
        factors = list(cells[0].settings)
        wanted = ["cell", *factors, "replicate", "seed", "status", "seconds"]
        columns = [*dict.fromkeys([*wanted, *header, *row])]
        if columns == header:
            with table.open("a", newline="") as file:
                csv.DictWriter(file, columns).writerow(row)
                file.flush()
                os.fsync(file.fileno())
            return
        part = table.with_suffix(f".part{os.getpid()}")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows([*old, row])
            file.flush()
            os.fsync(file.fileno())
        part.replace(table)


def tidy(table: Path, measures: Sequence[str] | None = None) -> dict[str, list[Value]]:
    """`cells.csv` in long form: one row a cell and measure, with the factors, `replicate`, `measure` and `value`.

    Failed cells and empty measures are left out; count them with `sweep_state`.
    """
    rows = [row for row in read_cells(table) if row["status"] == "done"]
    if not rows:
        raise DataError(f"{table} has no finished cell")
    columns = list(rows[0])
    after = columns.index("seconds") + 1
    factors = columns[1 : columns.index("replicate")]
    names = [c for c in columns[after:] if c != "error"] if measures is None else list(measures)
    unknown = [name for name in names if name not in columns]
    if unknown:
        raise ConfigError(f"{table} has no measure {unknown}; it has {columns[after:]}")
    out: dict[str, list[Value]] = {key: [] for key in [*factors, "replicate", "measure", "value"]}
    for row, name in itertools.product(rows, names):
        if row[name] == "":
            continue
        for factor in factors:
            out[factor].append(_parse(row[factor]))
        out["replicate"].append(int(row["replicate"]))
        out["measure"].append(name)
        out["value"].append(float(row[name]))
    return out


def _parse(text: str) -> Value:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
