"""Self-calibration: how often the engine says `supported` in worlds where that is wrong, and where it is right.

The table ships with the engine and stands at the head of a report: 200 null worlds for each claim type must give false
support in at most alpha + 2 standard errors, and planted worlds must meet the power that was stated.

A procedure that is exactly right misses such a bound once in forty rows. A row that misses is therefore repeated on five
times as many fresh worlds, and those alone decide; the table says how many worlds each row rests on.
"""

import dataclasses as dc
import math
from collections.abc import Callable

from markupsafe import Markup

from pellucid._checks import ConfigError
from pellucid.claims.worlds import WorldType, world_types
from pellucid.html import number, table
from pellucid.rng import derive

ALPHA = 0.05

REPEAT = 5
"""How many times more worlds a row gets that missed a bound."""


@dc.dataclass(frozen=True)
class CalibrationRow:
    """One claim type: false support with its bound, power as observed and as stated with its bound."""

    claim_type: str
    worlds: int
    false_supported: float
    false_bound: float
    power: float
    stated_power: float
    power_bound: float

    @property
    def ok(self) -> bool:
        """Within both bounds."""
        return self.false_supported <= self.false_bound and self.power >= self.power_bound


@dc.dataclass(frozen=True)
class Calibration:
    """The table of all claim types, for a seed."""

    rows: tuple[CalibrationRow, ...]
    worlds: int
    seed: int

    @property
    def ok(self) -> bool:
        """Every row within its bounds."""
        return all(row.ok for row in self.rows)

    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text: type, worlds, false support, its bound, power, stated power, whether within bounds."""
        return [
            (
                row.claim_type,
                f"{row.worlds}",
                f"{row.false_supported:.3f}",
                f"{row.false_bound:.3f}",
                f"{row.power:.3f}",
                number(row.stated_power, 3),
                "yes" if row.ok else "NO",
            )
            for row in self.rows
        ]

    def text(self) -> str:
        """The table as plain text."""
        lines = [HEADER, *self.cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def html(self) -> Markup:
        """The table as an HTML fragment for the head of a report."""
        caption = f"Self-calibration: {self.worlds} null and {self.worlds} planted worlds per claim type, seed {self.seed}"
        return table(HEADER, self.cells(), caption=caption, numeric=(1, 2, 3, 4, 5))


HEADER = ("claim type", "worlds", "false supported", "at most", "power", "stated", "within bounds")


def calibrate(
    *,
    worlds: int = 200,
    seed: int = 0,
    types: tuple[WorldType, ...] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Run every claim type in `worlds` null and as many planted worlds. Takes well under a minute on one thread.

    Args:
        progress: called with the name of each claim type before it runs.
    """
    if worlds < 20:
        raise ConfigError(f"a rate of 0.05 needs at least 20 worlds to show, got {worlds}")
    rows: list[CalibrationRow] = []
    for kind in types or world_types():
        if progress is not None:
            progress(kind.name)
        row = _row(kind, worlds, derive(seed, "first"))
        rows.append(row if row.ok else _row(kind, REPEAT * worlds, derive(seed, "again")))
    return Calibration(tuple(rows), worlds, seed)


def _row(kind: WorldType, worlds: int, seed: int) -> CalibrationRow:
    def share(planted: bool) -> float:
        found = (kind.run(planted, derive(seed, kind.name, str(planted), i)) for i in range(worlds))
        return sum(verdict.outcome == "supported" for verdict in found) / worlds

    stated = kind.stated
    return CalibrationRow(
        claim_type=kind.name,
        worlds=worlds,
        false_supported=share(False),
        false_bound=ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / worlds),
        power=share(True),
        stated_power=stated,
        power_bound=stated - 2 * math.sqrt(stated * (1 - stated) / worlds),
    )
