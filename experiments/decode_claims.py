"""The findings as claims: registered before any cell was run, decided from the cells that they name.

Each finding of "Improving Compositionality of Neural Networks by Decoding Representations to Inputs" is a claim about our small
networks. Replicates are trained networks, paired by initial weights.

`measure.args` names cells and columns: `treated` and `control` are (setting, column), the setting being the method, or case and
arm in the part about fairness; `level` is a number in place of a control, `scale` a factor.
"""

import dataclasses as dc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from decode_data import scratch_root
from decode_findings import CASES, PARTS, Finding, findings
from decode_rows import Cells
from decode_setup import REPLICATES

from pellucid._checks import DataError
from pellucid.claims import (
    Claim,
    ConfirmationSplit,
    DataPlan,
    Ledger,
    MeasurePlan,
    NullPlan,
    Scope,
    Verdict,
    check,
    register,
)
from pellucid.claims.claim import Analysis
from pellucid.sweep.locks import held

PRESET = "default"
MODELS = REPLICATES[PRESET]
PREMISE = "the frozen network is more accurate than the plain one"
PAIRS, SHUFFLED = "pairs of trainings of one method", "labels dealt at random"


def build(finding: Finding) -> Claim:
    """A finding as a claim about one recipe, its cells named in `measure.args`."""
    subject = PARTS[finding.part] or CASES[finding.treated[0].split()[0]]
    args: dict[str, Any] = {"part": finding.part, "treated": list(finding.treated), "scale": finding.scale}
    args |= {"level": finding.level} if finding.control is None else {"control": list(finding.control)}
    args |= {"null": finding.null} if finding.null else {}
    if finding.kind == "equivalent":
        nulls: tuple[NullPlan, ...] = ()
    elif finding.null:
        nulls = (NullPlan(SHUFFLED, worlds=MODELS, form="paired"),)
    else:
        nulls = (NullPlan(PAIRS, worlds=2 * MODELS * (MODELS - 1), form="prediction"),)
    treated, control = finding.treated, finding.control
    return Claim(
        f"{finding.statement}: {subject}",
        finding.delta,
        finding.kind,
        scope=Scope("recipe", subject),
        reason=finding.reason,
        effect=f"{treated[1]} of {treated[0]} minus "
        + (f"{finding.level:g}" if control is None else f"{control[1]} of {control[0]}"),
        unit=finding.unit,
        direction=finding.direction,
        intervention=finding.intervention,
        manipulation=PREMISE if finding.late else "",
        nulls=nulls,
        measure=MeasurePlan("", args),
        data=DataPlan(finding.part, confirmation="test images, default preset"),
        analysis=Analysis(models=MODELS),
    )


@dc.dataclass(frozen=True)
class Decided:
    """A claim with its verdict, or why there is none."""

    finding: Finding
    claim: Claim
    verdict: Verdict | None
    why: str = ""


def ledger_at(out: Path) -> Ledger:
    out.mkdir(parents=True, exist_ok=True)
    return Ledger(out / "claims.jsonl")


def register_all(ledger: Ledger) -> None:
    """Write every claim but late ones into the ledger; those that stand there already are left as they are."""
    scratch_root().mkdir(parents=True, exist_ok=True)
    with held(scratch_root() / "claims.lock"):
        for finding in (one for one in findings() if not one.late):
            register(build(finding), ledger, source="experiments/decode_findings.py")


def decide(finding: Finding, cells: Cells, ledger: Ledger) -> Decided:
    """The verdict of a claim, recorded in the ledger, once every replicate is there; before that, none."""
    claim = build(finding)
    columns = [finding.treated, *([finding.control] if finding.control else [])]
    there = cells.replicates(*columns, *(finding.premise or ()))
    if len(there) < claim.analysis.models:
        return Decided(finding, claim, None, f"open: {len(there)} of {claim.analysis.models} networks")
    receipt = None if finding.late else register(claim, ledger)
    if receipt and not ledger.about(claim.sha256, "checked"):
        ConfirmationSplit(claim.data.key, lambda: None, ledger).open(claim.sha256)
    arms = [finding.scale * cells.column(*column, there) for column in columns]
    treated = arms[0] - finding.scale * (finding.level or 0.0)
    control = arms[1] if finding.control else None
    held = None
    if finding.premise:
        above, below = (cells.column(*column, there) for column in finding.premise)
        held = above - below
    try:
        nulls = nulls_of(finding, cells, there, treated=treated, control=control)
        verdict = check(claim, treated, control, nulls=nulls, manipulation=held, registration=receipt)
    except DataError as error:  # every network gave the same number
        return Decided(finding, claim, None, f"cannot be judged: {error}")
    return Decided(finding, claim, verdict)


def nulls_of(
    finding: Finding, cells: Cells, there: Sequence[int], *, treated: np.ndarray, control: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The null arm by replicate, or the differences between trainings of one method."""
    if finding.kind == "equivalent":
        return {}
    if finding.null:
        dealt = finding.scale * cells.column(finding.treated[0], finding.null, there)
        return {SHUFFLED: dealt - finding.scale * (finding.level or 0.0)}
    assert control is not None
    return {PAIRS: np.concatenate([pairs(treated), pairs(control)])}


def pairs(arm: np.ndarray) -> np.ndarray:
    """Differences between replicates of one arm: what no difference of method looks like."""
    return (arm[:, None] - arm[None, :])[~np.eye(len(arm), dtype=bool)]
