"""The page of the decoding study: verdicts, tables and figures from whatever cells there are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from decode_claims import Decided, decide, ledger_at, register_all
from decode_data import scratch_root
from decode_figures import draw_all, strips
from decode_findings import findings
from decode_rows import Cells
from decode_setup import FairSetup, Setup, fair_setup, setups
from decode_tables import acceptance, fairness, section, table
from decode_words import ABOUT, HEAD, NOT_RUN

from pellucid.claims import Ledger
from pellucid.sweep import Cell, read_cells

TITLES = {
    "mnist": "MNIST, perceptron of eight layers", "fashion-mnist": "Fashion-MNIST, perceptron of eight layers",
    "fashion-residual": "Fashion-MNIST, small residual network", "fairness": "Fairness", "digits": "Digits, smoke run",
}  # fmt: skip
FAIRNESS = "fairness"
HEADINGS = ("part", "cells done", "of", "missing", "seconds a cell (mean, longest)")
CLAIMS = ("claim", "in the paper", "bound", "verdict", "effect", "90 % interval", "why")


def write_page(out: Path, *, preset: str, grids: Mapping[str, Sequence[Cell]]) -> Path:
    """Write index.md and its figures from the cells in `out`; claims whose cells are complete get their verdict."""
    out.mkdir(parents=True, exist_ok=True)
    rows = {
        part: [row for row in read_cells(out / part / "cells.csv") if row["status"] == "done"]
        for part in grids
    }
    tables = {part: Cells(found) for part, found in rows.items()}
    ledger = ledger_at(out)
    decided: list[Decided] = []
    if preset == "default":
        register_all(ledger)
        decided = [decide(finding, tables[finding.part], ledger) for finding in findings()]
    figures = draw_all(tables, out)
    for part, cells in tables.items():
        if part != FAIRNESS:
            figures += strips(part, cells, scratch_root() / preset / part / "scratch", out)
    parts = [HEAD, status(rows, grids, preset), accepted(tables), verdicts(decided, ledger)]
    parts += [f"![{caption}]({file})\n\n{caption}.\n" for caption, file in figures]
    for part, setup in setups(preset).items():
        if tables[part].rows:
            parts += section(part, TITLES[part], tables[part], setup)
    parts += [*fairness(tables[FAIRNESS]), ABOUT, sizes(setups(preset), fair_setup(preset), preset), NOT_RUN]
    page = out / "index.md"
    page.write_text("\n".join(part for part in parts if part))
    return page


def status(
    rows: Mapping[str, Sequence[Mapping[str, str]]], grids: Mapping[str, Sequence[Cell]], preset: str
) -> str:
    """What is done and what is left, by part."""
    lines: list[list[str]] = []
    for part, cells in grids.items():
        done = {row["cell"] for row in rows[part]}
        left = [c for c in cells if c.name not in done]
        names = sorted({" ".join(map(str, c.settings.values())) for c in left})
        spent = [float(row["seconds"]) for row in rows[part]]
        took = f"{np.mean(spent):.0f}, {max(spent):.0f}" if spent else "-"
        lines.append(
            [TITLES[part], str(len(cells) - len(left)), str(len(cells)), ", ".join(names) or "none", took]
        )
    option = "" if preset == "default" else f" --preset {preset}"
    note = f"`python experiments/decode.py{option}` goes on with what is missing, `--page` writes this page anew.\n"
    if preset == "default" and not any(rows.values()):
        note = f"**No cell of this study has been run yet.** Below are the claims it will decide.\n\n{note}"
    return f"{table(HEADINGS, lines, align='---')}\n{note}"


def accepted(tables: Mapping[str, Cells]) -> str:
    """Acceptance test T20, on the two networks that the paper has."""
    rows = [
        [TITLES[part], *row] for part in ("mnist", "fashion-mnist") if part in tables for row in acceptance(tables[part])
    ]  # fmt: skip
    made = table(["network", "measure", "bound", "ours", "T20"], rows)
    return f"## Acceptance\n\n{made}" if made else ""


def verdicts(decided: Sequence[Decided], ledger: Ledger) -> str:
    """Every registered claim with its verdict, or why it has none, by part."""
    if not decided:
        return ""
    judged = [one for one in decided if one.verdict is not None]
    supported = sum(one.verdict is not None and one.verdict.outcome == "supported" for one in judged)
    late = [one for one in decided if one.finding.late]
    lines = [
        "## The paper's findings as registered claims",
        "",
        f"{len(decided) - len(late)} claims were registered in [claims.jsonl](claims.jsonl) on {ledger.entries()[0].time[:10]}, before any cell was computed.",
        f"{len(late)} more, about composition with a residual network that beats the plain one, are exploratory: the frozen network that was meant to be",
        "stronger turned out weaker than the perceptron, when test images had been seen. The three claims about that one had verdicts, which stay in the",
        "ledger; with the premise checked they are invalid.",
        f"{len(judged)} are decided, {supported} of them supported. Where a finding rests on votes, a second claim says that a stronger score overturns it, and a third",
        "gives both methods the stronger score. Each stands alone at 5 % a side over three networks; there is no correction over claims.",
        "",
    ]  # fmt: skip
    for part in dict.fromkeys(one.finding.part for one in decided):
        rows = [row_of(one) for one in decided if one.finding.part == part]
        lines += [f"### Claims: {TITLES[part]}", "", table(CLAIMS, rows, align="---")]
    return "\n".join(lines)


def row_of(one: Decided) -> list[str]:
    claim, verdict, finding = one.claim, one.verdict, one.finding
    bound = (
        f"within ±{claim.delta:g} {claim.unit}"
        if claim.kind == "equivalent"
        else f"{claim.sign * claim.delta:+g} {claim.unit}"
    )
    head = [f"{finding.about}: {finding.statement}", finding.says, bound]
    if verdict is None:
        return [*head, one.why.replace("|", "/"), "", "", ""]
    why = "; ".join(verdict.reasons).replace("|", "/")
    outcome = f"**{verdict.outcome}** (rung {verdict.rung}, {verdict.label})"
    return [*head, outcome, f"{verdict.effect:+.3g}", f"[{verdict.lo:+.3g}, {verdict.hi:+.3g}]", why]


def sizes(known: Mapping[str, Setup], fair: FairSetup, preset: str) -> str:
    lines = [f"Sizes of preset `{preset}`:", ""]
    for part, one in known.items():
        lines.append(
            f"- {TITLES[part]}: {one.train:,} training images, {one.epochs} epoch{'s' if one.epochs > 1 else ''} in batches of {one.batch_size}; {one.test:,} test "
            f"images, {one.outside:,} of each outside set, {one.corrupted} for each corruption, {one.attacked} attacked, {one.adapted} by the adaptive attack; "
            f"masks of MC-dropout: {one.masks}."
        )
    cases = ", ".join(
        f"{case}: {fair.depth} blocks of {fair.width[case]}, {fair.epochs[case]} epochs"
        for case in fair.cases
    )
    return "\n".join([*lines, f"- Fairness: {cases}; {fair.images:,} images with a planted column, in {100 * fair.agree:.0f} % of them with the class.", ""])  # fmt: skip
