"""The page of several evaluated runs: every measure as its mean over runs, with the interval over them."""

import dataclasses as dc
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from pellucid.html import interval, number, table
from pellucid.report.templates import render
from pellucid.store import write_bytes

STATIC = Path(__file__).parent / "static"
NAMES = {
    "auroc": "AUROC", "fpr95": "FPR at 95 % TPR", "aupr_out": "AUPR, outside", "aupr_in": "AUPR, inside", "aurc": "AURC",
    "augrc": "AUGRC", "ece": "ECE", "ece_adaptive": "ECE, adaptive", "ece_classwise": "ECE, by class", "brier": "Brier",
    "nll": "NLL", "tpr": "TPR", "fpr": "FPR",
}  # fmt: skip


@dc.dataclass(frozen=True)
class Measured:
    """One measure of one case over the runs that have it; `low`, `high` are NaN where only one has."""

    part: str
    case: str
    measure: str
    mean: float
    low: float
    high: float
    values: tuple[float, ...]


def runs_page(
    folder: Path, runs: Sequence[str], found: Sequence[Measured], *, notes: Sequence[str] = ()
) -> Path:
    """Write `index.html` beside `over_runs.csv`; the path of the page. Numbers, no figures: cases are many.

    Args:
        notes: what was left out, and why.
    """
    for file in sorted(STATIC.iterdir()):
        write_bytes(folder / "pages" / "assets" / file.name, file.read_bytes())
    parts = dict.fromkeys(one.part for one in found)
    shown = [(part, part_table([one for one in found if one.part == part], len(runs))) for part in parts]
    fewer = sum(len(one.values) < len(runs) for one in found)
    page = render("runs.html", {"runs": runs, "parts": shown, "fewer": fewer, "notes": notes})
    write_bytes(folder / "index.html", str(page).encode("utf-8", "backslashreplace"))
    return folder / "index.html"


def part_table(found: Sequence[Measured], runs: int) -> Markup:
    """One row a case, one column a measure; where a run lacks a value the number of those that have it is said."""
    measures = list(dict.fromkeys(one.measure for one in found))
    by_case: dict[str, dict[str, Measured]] = {}
    for one in found:
        by_case.setdefault(one.case, {})[one.measure] = one
    rows = [
        [case, *(_cell(cells.get(measure), runs) for measure in measures)] for case, cells in by_case.items()
    ]
    header = ["", *(NAMES.get(measure, measure.replace("_", " ")) for measure in measures)]
    return table(header, rows, numeric=range(1, len(header)))


def _cell(one: Measured | None, runs: int) -> str:
    if one is None:
        return "–"
    text = interval(one.mean, one.low, one.high) if len(one.values) > 1 else number(one.mean)
    return text if len(one.values) == runs else f"{text} ({len(one.values)} of {runs} runs)"
