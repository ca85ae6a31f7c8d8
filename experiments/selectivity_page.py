"""The page of the selectivity study: tables, figures and verdicts from whatever cells there are."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from selectivity_claims import Cells, Decided, claims, decide, ledger_at, register_all
from selectivity_data import digits_test_places, scratch_root
from selectivity_figures import draw_all

from pellucid._checks import DataError
from pellucid.claims import Ledger
from pellucid.evals.cca import pwcca
from pellucid.sweep import Cell, read_cells

TITLES = {
    "cifar10": "CIFAR-10 (JPEG), 10,000 training images, ResNet-8 (8-16-32), 15 epochs",
    "fashion-mnist": "Fashion-MNIST, 10,000 training images, ResNet-8 (8-16-32), 15 epochs",
    "digits": "scikit-learn digits, 600 training images a replicate, three convolutions (16-32-64), 25 epochs",
}
COLUMNS = (  # heading, column, factor, digits
    ("SI", "si", 1, 3),
    ("SI cross-fitted", "si_cf", 1, 3),
    ("SI permuted", "si_perm", 1, 3),
    ("SI offset-free", "si_off", 1, 3),
    ("d'", "d_prime", 1, 2),
    ("eta²", "eta2", 1, 2),
    ("any-basis T", "separability", 1, 2),
    ("resting", "resting", 1, 2),
    ("dead %", "dead", 100, 1),
    ("corrupted %", "corruption", 100, 1),
    ("FGSM %", "fgsm", 100, 1),
    ("PGD %", "pgd", 100, 1),
)


def write_page(out: Path, *, preset: str, grids: Mapping[str, Sequence[Cell]]) -> Path:
    """Write index.md and its figures from the cells in `out`; claims whose cells are complete get their verdict."""
    tables = {name: read_cells(out / name / "cells.csv") for name in grids}
    tables = {name: [row for row in rows if row["status"] == "done"] for name, rows in tables.items()}
    ledger = ledger_at(out)
    decided: list[Decided] = []
    if preset == "default":
        register_all(ledger)
        decided = [decide(claim, tables[claim.data.spec], ledger) for claim in claims()]
    figures = draw_all({name: rows for name, rows in tables.items() if rows}, out)
    parts = [head(tables, grids), *map("![{0[0]}]({0[1]})\n\n{0[0]}\n".format, figures)]
    parts += [table(name, rows) for name, rows in tables.items() if rows]
    parts += [controls(tables["digits"])] if tables.get("digits") else []
    parts += [rotation(tables, preset), verdicts(decided, ledger), about()]
    page = out / "index.md"
    page.write_text("\n".join(parts))
    return page


def head(tables: Mapping[str, Sequence[Mapping[str, str]]], grids: Mapping[str, Sequence[Cell]]) -> str:
    lines = [
        "# Does class selectivity matter?",
        "",
        "Networks trained with class selectivity pushed up (alpha > 0) or down (alpha < 0), after Leavitt and Morcos,",
        '"Selectivity considered harmful" (ICLR 2021) and its companions. Every point is one trained network; replicates are',
        "paired by initial weights and data order; intervals are 95 % Student intervals over replicates.",
        "",
        "| data | cells done | of | missing |",
        "|---|---|---|---|",
    ]
    for name, cells in grids.items():
        done = {row["cell"] for row in tables[name]}
        left = [cell for cell in cells if cell.name not in done]
        arms = sorted({str(cell.settings["arm"]) for cell in left})
        lines.append(
            f"| {TITLES[name]} | {len(cells) - len(left)} | {len(cells)} | {len(left)} ({', '.join(arms) or 'none'}) |"
        )
    lines += [
        "",
        "`python experiments/selectivity.py` goes on with what is missing, `--page` writes this page anew.",
        "",
    ]
    return "\n".join(lines)


def table(dataset: str, rows: Sequence[Mapping[str, str]]) -> str:
    """One row an alpha, class arm then permuted arm."""
    cells = Cells(rows)
    lines = [f"## {TITLES[dataset]}", ""]
    lines.append(
        "| arm | alpha | n | accuracy % | paired difference, pp | "
        + " | ".join(h for h, *_ in COLUMNS)
        + " |"
    )
    lines.append("|" + "---|" * (5 + len(COLUMNS)))
    for arm in ("class", "permuted"):
        for alpha in sorted({a for name, a, _ in cells.rows if name == arm}):
            there = [r for name, a, r in cells.rows if name == arm and a == alpha]
            accuracy = 100 * cells.column(arm, alpha, "accuracy", there)
            pairs = [r for r in there if ("class", 0.0, r) in cells.rows]
            difference = "-"
            if (arm, alpha) != ("class", 0.0) and pairs:
                values = cells.column(arm, alpha, "accuracy", pairs) - cells.column(
                    "class", 0.0, "accuracy", pairs
                )
                difference = interval(100 * values, 2, sign=True)
            numbers = [
                f"{factor * mean_of(cells, arm, alpha, column, there):.{digits}f}"
                for _, column, factor, digits in COLUMNS
            ]
            lines.append(
                f"| {arm} | {alpha:g} | {len(there)} | {accuracy.mean():.2f} | {difference} | {' | '.join(numbers)} |"
            )
    lines += ["", f"[Every number of every cell]({dataset}/cells.csv).", ""]
    return "\n".join(lines)


def controls(rows: Sequence[Mapping[str, str]]) -> str:
    """The other arms, on digits: accuracy and index against the same arm without penalty, or against the plain baseline."""
    cells = Cells(rows)
    arms = sorted({(arm, alpha) for arm, alpha, _ in cells.rows if arm not in ("class", "permuted")})
    if not arms:
        return ""
    lines = [
        "## Controls on digits",
        "",
        "Differences are to the same arm at alpha = 0 where there is one, else to the plain baseline, paired by replicate. These arms",
        "were not run on CIFAR-10 and Fashion-MNIST, which have the class arm and (CIFAR-10) the permuted arm only.",
        "",
        "| arm | alpha | n | accuracy % | difference, pp | SI cross-fitted | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, alpha in arms:
        there = [r for name, a, r in cells.rows if (name, a) == (arm, alpha)]
        base = arm if alpha and any((arm, 0.0, r) in cells.rows for r in there) else "class"
        pairs = [r for r in there if (base, 0.0, r) in cells.rows]
        row = [arm, f"{alpha:g}", str(len(there))]
        for column, factor, digits in (("accuracy", 100, 2), ("si_cf", 1, 3)):
            row.append(f"{factor * mean_of(cells, arm, alpha, column, there):.{digits}f}")
            gap = (
                cells.column(arm, alpha, column, pairs) - cells.column(base, 0.0, column, pairs)
                if pairs
                else np.zeros(0)
            )
            row.append(interval(factor * gap, digits, sign=True))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def rotation(tables: Mapping[str, Sequence[Mapping[str, str]]], preset: str) -> str:
    """Projection-weighted CCA distance to the paired baseline over that between baselines, from responses kept in scratch."""
    lines: list[str] = []
    for dataset, rows in tables.items():
        kept = Kept(scratch_root() / preset / dataset / "scratch", dataset, rows)
        for alpha in (-5.0, -2.0, 2.0, 5.0):
            for layer, (ratio, n) in kept.ratios(alpha).items():
                lines.append(f"| {dataset} | {alpha:g} | {layer} | {ratio:.2f} | {n} |")
    if not lines:
        return ""
    top = [
        "## Removed, or only turned?",
        "",
        "(1 - CCA to the baseline of the same start) / (1 - CCA between two baselines), projection-weighted: 0 is a mere rotation, 1 as far",
        "as another start. Few directions look close by themselves, so read it beside the dimension. Needs the responses that the machine",
        "which ran the cells keeps in its scratch folder.",
        "",
        "| data | alpha | layer | ratio | replicates |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*top, *lines, ""])


class Kept:
    """Responses that cells of the class arm left in the scratch folder, by alpha and replicate."""

    def __init__(self, folder: Path, dataset: str, rows: Sequence[Mapping[str, str]]) -> None:
        from safetensors.torch import load_file

        self.dataset = dataset
        self.found = {
            (float(row["alpha"]), int(row["replicate"])): load_file(
                folder / row["cell"] / "responses.safetensors"
            )
            for row in rows
            if row["arm"] == "class" and (folder / row["cell"] / "responses.safetensors").exists()
        }

    def ratios(self, alpha: float) -> dict[str, tuple[float, int]]:
        base = [r for a, r in self.found if a == 0]
        both = [r for r in base if (alpha, r) in self.found]
        if not both or len(base) < 2:
            return {}
        out: dict[str, tuple[float, int]] = {}
        for layer in self.found[0.0, base[0]]:
            moved = [self.distance(layer, (alpha, r), (0.0, r)) for r in both]
            between = [self.distance(layer, (0.0, r), (0.0, s)) for r in base for s in base if r != s]
            if all(math.isfinite(d) for d in moved + between):
                out[layer] = (float(np.mean(moved) / np.mean(between)), len(both))
        return out

    def distance(self, layer: str, one: tuple[float, int], other: tuple[float, int]) -> float:
        """1 - CCA over the images that both networks were measured on; NaN for a constant layer."""
        a, b = (self.found[key][layer].double() for key in (one, other))
        if self.dataset == "digits" and one[1] != other[1]:
            first, second = (digits_test_places(key[1]) for key in (one, other))
            a, b = a[torch.isin(first, second)], b[torch.isin(second, first)]
        try:
            return 1 - pwcca(a, b)
        except DataError:
            return math.nan


def verdicts(decided: Sequence[Decided], ledger: Ledger) -> str:
    """Every registered claim with its verdict, or how far it is."""
    if not decided:
        return ""
    done = [d for d in decided if d.verdict is not None]
    supported = sum(d.verdict is not None and d.verdict.outcome == "supported" for d in done)
    lines = [
        "## The article's findings as registered claims",
        "",
        f"{len(decided)} claims were registered in [claims.jsonl](claims.jsonl) on {ledger.entries()[0].time[:10]}, when the default preset",
        f"had just been started; {len(done)} are decided, {supported} of them supported. Each stands alone at 5 % a side; there is no",
        "correction over claims. The digits had been measured by a prototype before. A claim without a verdict",
        "waits for its last cells; the tables above show what there is.",
        "",
        "| claim | smallest effect | verdict | effect | 90 % interval | why |",
        "|---|---|---|---|---|---|",
    ]
    for one in decided:
        claim, verdict = one.claim, one.verdict
        delta = f"{claim.delta:g} {claim.unit}"
        if verdict is None:
            lines.append(
                f"| {claim.statement} | {delta} | open: {one.there} of {claim.analysis.models} replicates | | | |"
            )
            continue
        why = "; ".join(dict.fromkeys([*verdict.reasons, *filter(None, [one.collapse])])).replace("|", "/")
        measured = not math.isnan(verdict.effect)
        effect = f"{verdict.effect:.3g} | [{verdict.lo:.3g}, {verdict.hi:.3g}]" if measured else "- | -"
        level = f" (rung {verdict.rung}, {verdict.label})" if measured else ""
        lines.append(f"| {claim.statement} | {delta} | **{verdict.outcome}**{level} | {effect} | {why} |")
    return "\n".join([*lines, ""])


def about() -> str:
    return """## How to read it

- Conditions: test images never chose a setting. Gradient norms were clipped at 5 in every arm. Accuracy and selectivity are of the whole
  test split, corruption of 1,000 images (15 types, severities 1, 3, 5; made from JPEG images for CIFAR-10), attacks of 500 (PGD-20,
  step radius / 4, one start; mean over four radii in the tables), dimension of the change on 500.
- Selectivity falls at alpha < 0 by more than one route: look at the offset-free index (the resting level rises), at the permuted arm
  (any penalty on activations moves the index) and at any-basis separability (class information moves off the unit axes).
- Elsewhere: Badola et al. (MIWAI 2023) report no change of accuracy when selectivity is raised, with their own definition; Ranadive et al.
  (TMLR 2023) find early-phase selectivity critical on ImageNet. "Harmful" depends on the recipe.
"""


def mean_of(cells: Cells, arm: str, alpha: float, column: str, there: Sequence[int]) -> float:
    values = [cells.rows[arm, alpha, r].get(column) for r in there]
    known = [float(v) for v in values if v not in (None, "")]
    return sum(known) / len(known) if known else math.nan


def interval(values: np.ndarray, digits: int, *, sign: bool = False) -> str:
    """Mean [95 % Student interval], or the bare mean of one value."""
    if not len(values):
        return "-"
    shown = f"+.{digits}f" if sign else f".{digits}f"
    if len(values) < 2:
        return f"{values.mean():{shown}} (n = 1)"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():{shown}} [{values.mean() - half:{shown}}, {values.mean() + half:{shown}}]"
