"""The findings of DISCOVER as claims that can fail, registered before the cells of the default preset were run.

Three for each data set, network and block size: accuracy is kept or improved, 1 in U units are on (about 4 % for U = 24),
fewer than with ReLU; on `shapes` a fourth: descriptions are no worse. Replicates are trained networks, paired by initial
weights and data order. "Kept" means: not lower by more than a margin. The control is therefore the ReLU network lowered by
twice the margin, which must be exceeded by the margin; pages show the plain difference.
"""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dissection_data import scratch_root
from dissection_setup import BLOCKS, REPLICATES, TRAINED, setups

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

Row = Mapping[str, str]
PRESET = "default"
MODELS = REPLICATES[PRESET]
STARTS = "two ReLU networks of different starts"
ACCURACY, ACTIVE, SPARSER, QUALITY = 2.0, 0.5, 10.0, 0.05
TITLES = {"shapes": "shapes", "cifar10": "CIFAR-10 (JPEG)", "fashion-mnist": "Fashion-MNIST"}


def claims() -> list[Claim]:
    """Every claim of the study."""
    found: list[Claim] = []
    for dataset in TRAINED:
        for net, blocks in BLOCKS[PRESET][dataset].items():
            for units in (u for u in blocks if u > 1):
                found += [accuracy_claim(dataset, net, units), *sparsity_claims(dataset, net, units)]
                if dataset == "shapes":
                    found.append(quality_claim(dataset, net, units))
    return found


def accuracy_claim(dataset: str, net: str, units: int) -> Claim:
    return build(
        dataset, net, units, "keeps or improves accuracy (mean logits of six draws)", ACCURACY, unit="pp", kept=True,
        measure="accuracy_six", scale=100.0,
        reason="two points are the spread between training runs that a practitioner would notice",
    )  # fmt: skip


def sparsity_claims(dataset: str, net: str, units: int) -> list[Claim]:
    """Mean over competing layers of the share of unit outputs above 1e-4 in size, counted alike in both networks."""
    about = "about 4 % of" if units == 24 else f"1 in {units}"
    common: dict[str, Any] = {"unit": "pp of unit outputs", "measure": "active_eps_mean", "scale": 100.0}
    return [
        build(
            dataset, net, units, f"leaves {about} unit outputs on", ACTIVE, **common, level=100.0 / units,
            reason="half a point is an eighth of the share that the article reports",
        ),
        build(
            dataset, net, units, "leaves fewer unit outputs on than ReLU", SPARSER, **common, direction="down",
            reason="ReLU leaves about half on; fewer than ten points less is no other way of reading a network",
        ),
    ]  # fmt: skip


def quality_claim(dataset: str, net: str, units: int) -> Claim:
    return build(
        dataset, net, units, "keeps or improves descriptions (held-out correlation of units with what they are called)",
        QUALITY, unit="correlation", kept=True, measure="quality", scale=1.0,
        reason="0.05 is about a tenth of the correlation of a unit with a label that fits",
    )  # fmt: skip


def build(
    dataset: str,
    net: str,
    units: int,
    what: str,
    delta: float,
    *,
    measure: str,
    scale: float,
    unit: str,
    reason: str,
    kept: bool = False,
    level: float | None = None,
    direction: Any = "up",
) -> Claim:
    """A claim about one recipe, its cells named in `measure.args`: against ReLU, or against a fixed `level`."""
    setup = setups(PRESET)[dataset]
    recipe = f"{setup.nets[net].text}, {setup.train:,} images of {TITLES[dataset]}, {setup.epochs} epochs"
    args: dict[str, Any] = {"measure": measure, "net": net, "units": units, "scale": scale}
    args |= {"shift": 2 * delta} if kept else {}
    args |= {"level": level} if level is not None else {}
    against = "ReLU" if level is None else f"{level:.4g} %"
    pairs = NullPlan(STARTS, worlds=MODELS * (MODELS - 1), form="prediction")
    return Claim(
        f"Competition in blocks of {units} {what}: {recipe}",
        delta,
        "exceeds" if level is None else "equivalent",
        scope=Scope("recipe", f"{recipe}, U = {units}"),
        reason=reason,
        effect=f"U = {units} minus {against}" + (f" lowered by {2 * delta:g}" if kept else ""),
        unit=unit,
        direction=direction,
        intervention="training-time",
        nulls=(pairs,) if level is None else (),
        measure=MeasurePlan("", args),
        data=DataPlan(dataset, confirmation="test images, default preset"),
        analysis=Analysis(models=MODELS),
    )


@dc.dataclass(frozen=True)
class Decided:
    """A claim with its verdict, or with how many replicates there are so far."""

    claim: Claim
    verdict: Verdict | None
    there: int

    def plain(self, value: float) -> float:
        """An effect or bound as the plain difference, without the shift of the control."""
        return value - float(self.claim.measure.args.get("shift", 0.0))

    @property
    def least(self) -> str:
        """The smallest plain effect that counts, in words."""
        claim = self.claim
        if "shift" in claim.measure.args:
            return f"> {-claim.delta:g} {claim.unit}"
        if claim.kind == "equivalent":
            return f"within ±{claim.delta:g} {claim.unit}"
        return f"< {-claim.delta:g} {claim.unit}"


class Cells:
    """Finished cells of one data set by network, block size and replicate."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {
            (row["net"], int(row["units"]), int(row["replicate"])): row
            for row in rows
            if row["status"] == "done"
        }

    def there(self, net: str, *units: int) -> list[int]:
        """Replicates that are there for all of these block sizes."""
        known = sorted({r for _, _, r in self.rows})
        return [r for r in known if all((net, u, r) in self.rows for u in units)]

    def column(self, net: str, units: int, measure: str, replicates: Sequence[int]) -> np.ndarray:
        """One value a replicate; NaN where a measure has no meaning."""
        values = [self.rows[net, units, r].get(measure) or "nan" for r in replicates]
        return np.array([float(value) for value in values])


def ledger_at(out: Path) -> Ledger:
    return Ledger(out / "claims.jsonl")


def register_all(out: Path) -> Ledger:
    """Write every claim into the ledger; those that stand there already are left as they are."""
    ledger = ledger_at(out)
    for folder in (out, scratch_root()):
        folder.mkdir(parents=True, exist_ok=True)
    with held(scratch_root() / "claims.lock"):
        for claim in claims():
            register(claim, ledger, source="experiments/dissection_claims.py")
    return ledger


def decide(claim: Claim, rows: Sequence[Row], ledger: Ledger) -> Decided:
    """The verdict of a claim, recorded in the ledger, once every replicate is there; before that, none."""
    cells, args = Cells(rows), claim.measure.args
    net, units, scale = args["net"], args["units"], args["scale"]
    there = cells.there(net, *((units,) if "level" in args else (1, units)))
    if len(there) < claim.analysis.models:
        return Decided(claim, None, len(there))
    receipt = register(claim, ledger)
    if not ledger.about(claim.sha256, "checked"):
        ConfirmationSplit(claim.data.key, lambda: None, ledger).open(claim.sha256)
    treated = scale * cells.column(net, units, args["measure"], there)
    if "level" in args:
        # Shares come from float32 sums: what is left below their resolution is no difference.
        away = np.round(treated - args["level"], 6)
        return Decided(claim, check(claim, away, registration=receipt), len(there))
    base = scale * cells.column(net, 1, args["measure"], there)
    pairs = (base[:, None] - base[None, :])[~np.eye(len(base), dtype=bool)]
    control = base - args.get("shift", 0.0)
    return Decided(
        claim, check(claim, treated, control, nulls={STARTS: pairs}, registration=receipt), len(there)
    )
