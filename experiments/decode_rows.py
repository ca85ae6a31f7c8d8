"""Finished cells of one part as arrays by replicate, and how their means are written."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

Row = Mapping[str, str]


def setting_of(row: Row) -> str:
    """What a cell is about: its method, or its case and arm."""
    return row["method"] if row.get("method") else f"{row['case']} {row['arm']}"


class Cells:
    """The done cells of a part by setting and replicate."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {(setting_of(row), int(row["replicate"])): row for row in rows if row["status"] == "done"}

    @property
    def settings(self) -> list[str]:
        """Settings with a cell, in the order of the table."""
        return list(dict.fromkeys(setting for setting, _ in self.rows))

    def replicates(self, *columns: tuple[str, str]) -> list[int]:
        """The replicates that have a number in all of these (setting, column)."""
        known = sorted({replicate for _, replicate in self.rows})
        return [
            r for r in known if all(self.rows.get((setting, r), {}).get(name) for setting, name in columns)
        ]

    def column(self, setting: str, name: str, replicates: Sequence[int] | None = None) -> np.ndarray:
        """One number a replicate; those without it are left out unless they are asked for."""
        there = self.replicates((setting, name)) if replicates is None else replicates
        return np.array([float(self.rows[setting, r][name]) for r in there])

    def difference(self, setting: str, other: str, name: str) -> np.ndarray:
        """`setting` minus `other`, paired by replicate."""
        there = self.replicates((setting, name), (other, name))
        return self.column(setting, name, there) - self.column(other, name, there)

    def named(self, prefix: str) -> list[str]:
        """What columns `prefix.NAME` are about, in the order of the table."""
        found = [
            key.removeprefix(prefix)
            for row in self.rows.values()
            for key, v in row.items()
            if v and key.startswith(prefix)
        ]
        return list(dict.fromkeys(found))


def reach(values: np.ndarray) -> float:
    """Half the width of the 95 % Student interval; 0 for one value."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))


def interval(values: np.ndarray, digits: int, *, sign: bool = False) -> str:
    """Mean ± half of the 95 % Student interval, the bare mean of one value, or a dash."""
    if not len(values):
        return "-"
    shown = f"+.{digits}f" if sign else f".{digits}f"
    if len(values) < 2:
        return f"{values.mean():{shown}}"
    return f"{values.mean():{shown}} ± {reach(values):.{digits}f}"
