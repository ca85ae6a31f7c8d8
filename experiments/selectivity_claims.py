"""The findings of the article as claims that can fail, registered before the cells of the default preset were run.

Each claim says in `measure.args` which cells decide: `treated` and `control` are (arm, alpha), `measure` a column of
cells.csv (a list is averaged), `scale` a factor. Replicates are trained networks; arms are paired by replicate. The
digits had been measured by a prototype before, so their registrations are no blind predictions, and say so.
"""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
from pellucid.claims.check import without_numbers
from pellucid.claims.claim import Analysis

Row = Mapping[str, str]
PERMUTED, BASELINES = "permuted labels", "pairs of baselines"
RECIPES = {
    "cifar10": "ResNet-8 (8-16-32), 10,000 CIFAR-10 JPEG images, 15 epochs",
    "fashion-mnist": "ResNet-8 (8-16-32), 10,000 Fashion-MNIST images, 15 epochs",
    "digits": "three convolutions (16-32-64), 600 digits, 25 epochs",
}
REPLICATES = {"cifar10": 5, "fashion-mnist": 5, "digits": 6}
EARLY = {"cifar10": "layer1.0.relu2", "fashion-mnist": "layer1.0.relu2", "digits": "relu2"}
LAYERS = {
    "cifar10": [f"{stage}.0.relu{i}" for stage in ("layer1", "layer2", "layer3") for i in (1, 2)],
    "digits": ["relu1", "relu2", "relu3"],
}
DOSES = {
    "cifar10": (-5.0, -2.0, -1.0, 0.0, 1.0, 2.0, 5.0),
    "digits": (-5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0),
}
ONE_POINT = "one point of accuracy is half of the largest gain that the article reports"
TWO_POINTS = "two points are the spread between training runs that a practitioner would notice"


def claims() -> list[Claim]:
    """Every claim of the study."""
    found: list[Claim] = []
    for dataset in ("cifar10", "fashion-mnist", "digits"):
        found += accuracy_claims(dataset) + robustness_claims(dataset)
        if dataset in DOSES:
            found += dose_claims(dataset)
    return found + reverse_claims()


def accuracy_claims(dataset: str) -> list[Claim]:
    """Selectivity can be cut without loss; raising it costs accuracy, and because of the classes."""
    cut = [-5.0] if dataset == "fashion-mnist" else [-2.0, -5.0]
    found = [
        build(
            dataset, f"Training with alpha = {alpha:g} leaves accuracy unchanged", "equivalent", 1.0, ONE_POINT,
            measure="accuracy", treated=("class", alpha),
        )
        for alpha in cut
    ]  # fmt: skip
    found.append(
        build(
            dataset, "Training with alpha = 5 lowers accuracy", "exceeds", 1.0, ONE_POINT,
            measure="accuracy", treated=("class", 5.0), direction="down",
        )
    )  # fmt: skip
    if dataset != "fashion-mnist":
        found.append(
            build(
                dataset, "Training with alpha = 5 lowers accuracy because of the classes, not as any penalty would",
                "exceeds", 0.5, "half a point beyond the same penalty with permuted labels",
                measure="accuracy", treated=("class", 5.0), control=("permuted", 5.0), direction="down",
            )
        )  # fmt: skip
    return found


def robustness_claims(dataset: str) -> list[Claim]:
    """Less selective: more robust to corruption and less to attacks; more selective: the other way round."""
    found: list[Claim] = []
    for alpha, word in ((5.0, "Raising"), (-5.0, "Lowering")):
        up = alpha > 0
        for measure, what, direction in (
            ("corruption", "accuracy under corruption", "down" if up else "up"),
            (
                "corruption_relative",
                "accuracy under corruption relative to clean accuracy",
                "down" if up else "up",
            ),
            ("pgd", "accuracy under attack (PGD-20, mean of four radii)", "up" if up else "down"),
        ):
            verb = "raises" if direction == "up" else "lowers"
            found.append(
                build(
                    dataset, f"{word} selectivity (alpha = {alpha:g}) {verb} {what}", "exceeds", 2.0, TWO_POINTS,
                    measure=measure, treated=("class", alpha), direction=direction,
                )
            )  # fmt: skip
    return found


def dose_claims(dataset: str) -> list[Claim]:
    """Dimension falls and gradients vary more as selectivity rises."""
    early, cv = EARLY[dataset], [f"gradient_cv_images.{layer}" for layer in LAYERS[dataset]]
    reason = "a rank correlation of 0.5 over the doses is the least that one would call a trend"
    trends = (
        (f"dim_95.{early}", f"The dimension of layer {early} falls as alpha rises", "down"),
        (
            f"delta_attack_dim_95.{early}",
            f"An attack moves layer {early} in fewer directions as alpha rises",
            "down",
        ),
        (cv, "Gradients of units vary more over images as alpha rises", "up"),
    )
    return [
        build(
            dataset, statement, "ordered", 0.5, reason, measure=measure, treated=("class", 0.0), direction=direction,
            scale=1.0, unit="rank correlation",
        )
        for measure, statement, direction in trends
    ]  # fmt: skip


def reverse_claims() -> list[Claim]:
    """The link runs both ways: recipes that buy robustness move selectivity."""
    reason = "0.02 is a tenth of the index of an ordinary network"
    return [
        build(
            "digits", statement, "exceeds", 0.02, reason, measure="si_cf", treated=(arm, 0.0), direction=direction,
            scale=1.0, unit="index", null=BASELINES,
        )
        for arm, statement, direction in (
            ("corrupted training", "Training on corrupted images lowers selectivity", "down"),
            ("adversarial training", "Adversarial training raises selectivity", "up"),
        )
    ]  # fmt: skip


def build(
    dataset: str,
    statement: str,
    kind: Any,
    delta: float,
    reason: str,
    *,
    measure: str | list[str],
    treated: tuple[str, float],
    control: tuple[str, float] = ("class", 0.0),
    direction: Any = "up",
    scale: float = 100.0,
    unit: str = "pp",
    null: str = PERMUTED,
) -> Claim:
    """A claim about one recipe, its cells named in `measure.args`."""
    models = REPLICATES[dataset]
    chosen = BASELINES if dataset == "fashion-mnist" else null
    plans = {
        PERMUTED: NullPlan(PERMUTED, worlds=models, form="paired"),
        BASELINES: NullPlan(BASELINES, worlds=models * (models - 1), form="rank"),
    }
    seen = " (measured before by a prototype of this study)" if dataset == "digits" else ""
    args: dict[str, Any] = {
        "measure": measure, "treated": list(treated), "control": list(control), "scale": scale
    }  # fmt: skip
    return Claim(
        f"{statement}: {RECIPES[dataset]}",
        delta,
        kind,
        scope=Scope("recipe", RECIPES[dataset]),
        reason=reason + seen,
        effect="trend over alpha"
        if kind == "ordered"
        else f"{treated[0]} {treated[1]:g} minus {control[0]} {control[1]:g}",
        unit=unit,
        direction=direction,
        intervention="training-time",
        manipulation=""
        if dataset == "digits" and treated[1] == 0
        else "the cross-fitted index moves with alpha",
        nulls=(plans[chosen],) if kind == "exceeds" else (),
        measure=MeasurePlan("", args),
        data=DataPlan(dataset, confirmation="test images, default preset"),
        analysis=Analysis(models=models, doses=DOSES.get(dataset, ()) if kind == "ordered" else ()),
    )


@dc.dataclass(frozen=True)
class Decided:
    """A claim with its verdict, or with how many replicates there are so far."""

    claim: Claim
    verdict: Verdict | None
    there: int
    collapse: str = ""
    """What a training that broke down left undefined; such a claim gets no verdict but `invalid`."""


class Cells:
    """Finished cells of one data set by arm, alpha and replicate."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {
            (row["arm"], float(row["alpha"]), int(row["replicate"])): row
            for row in rows
            if row["status"] == "done"
        }

    def column(
        self, arm: str, alpha: float, measure: str | list[str], replicates: Sequence[int]
    ) -> np.ndarray:
        names = [measure] if isinstance(measure, str) else measure
        cells = [[self.rows[arm, alpha, r][name] for name in names] for r in replicates]
        return np.array([np.mean([float(cell) if cell else np.nan for cell in row]) for row in cells])

    def complete(self, wanted: Sequence[tuple[str, float]], replicates: int) -> list[int]:
        return [r for r in range(replicates) if all((arm, alpha, r) in self.rows for arm, alpha in wanted)]


def register_all(ledger: Ledger) -> None:
    """Write every claim into the ledger; those that stand there already are left as they are."""
    for claim in claims():
        register(claim, ledger, source="experiments/selectivity_claims.py")


def decide(claim: Claim, rows: Sequence[Row], ledger: Ledger) -> Decided:
    """The verdict of a claim, recorded in the ledger, once every replicate is there; before that, none."""
    cells, planned = Cells(rows), claim.analysis.models
    args = claim.measure.args
    treated, control = tuple(args["treated"]), tuple(args["control"])
    wanted = [("class", dose) for dose in claim.analysis.doses] or [treated, control, ("class", 0.0)]
    permuted = ("permuted", treated[1])
    if any(plan.name == PERMUTED for plan in claim.nulls):
        wanted.append(permuted)
    there = cells.complete(wanted, planned)
    if len(there) < planned:
        return Decided(claim, None, len(there))
    receipt = register(claim, ledger)
    if not ledger.about(claim.sha256, "opened"):
        ConfirmationSplit(claim.data.key, lambda: None, ledger).open(claim.sha256)
    arms = [*dict.fromkeys(wanted)]
    values = {which: cells.column(*which, args["measure"], there) * args["scale"] for which in arms}
    index = {which: cells.column(*which, "si_cf", there) for which in arms}
    if broken := undefined(values):
        why = f"the measure is undefined in {broken}: nothing comes back from a collapsed network"
        return Decided(claim, without_numbers(claim, (why,), registration=receipt.hash), len(there), why)
    broken = undefined({which: index[which] for which in moved_arms(claim)})
    why = f"the index is undefined in {broken}: whole layers are dead" if broken else ""
    if claim.kind == "ordered":
        stacked = np.stack([values[which] for which in moved_arms(claim)], 1)
        moved = False if broken else np.stack([index[which] for which in moved_arms(claim)], 1)
        verdict = check(claim, stacked, manipulation=moved, registration=receipt)
        return Decided(claim, verdict, len(there), why)
    moved = None
    if treated[1]:
        step = index[treated] - index["class", 0.0]
        moved = False if broken else step * (1 if treated[1] > 0 else -1)
    verdict = check(
        claim, values[treated], values[control], nulls=null_worlds(claim, values), manipulation=moved,
        registration=receipt,
    )  # fmt: skip
    return Decided(claim, verdict, len(there), why)


def moved_arms(claim: Claim) -> list[tuple[str, float]]:
    """The arms whose index says whether the knob turned; none for a claim whose treatment is no alpha."""
    doses = [("class", dose) for dose in claim.analysis.doses]
    treated = tuple(claim.measure.args["treated"])
    return doses or ([treated, ("class", 0.0)] if treated[1] else [])


def null_worlds(claim: Claim, values: Mapping[tuple[str, float], np.ndarray]) -> dict[str, Any]:
    """The permuted arm, and differences between replicates of the plain arm."""
    base = values["class", 0.0]
    pairs = (base[:, None] - base[None, :])[~np.eye(len(base), dtype=bool)]
    permuted = ("permuted", tuple(claim.measure.args["treated"])[1])
    return {plan.name: values[permuted] if plan.name == PERMUTED else pairs for plan in claim.nulls}


def undefined(columns: Mapping[tuple[str, float], np.ndarray]) -> str:
    """Which arms hold values that do not exist, and in how many of their networks; empty where none does."""
    return ", ".join(
        f"{np.isnan(values).sum()} of {len(values)} networks of {arm} alpha = {alpha:g}"
        for (arm, alpha), values in columns.items()
        if np.isnan(values).any()
    )


def ledger_at(out: Path) -> Ledger:
    return Ledger(out / "claims.jsonl")
