"""The three findings of the article as claims that can fail, metric by metric, registered before any cell was run.

1. Conclusions depend on the search: a natural-image prior flatters a network, an adversary makes any look misaligned.
2. Networks are to be compared on regulariser-free results: a prior hides what tells networks apart.
3. Architecture, training loss and augmentation all matter; residual contrastive networks with adversarial views do best.

Each claim says in `measure.args` which cells decide: `treated` and `control` are sums of signed columns, each (sign,
architecture, paradigm, regulariser, column). Replicates are trained networks, paired by seed.
"""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from invariance_setup import ADVERSARY, FREE, HUMAN, L2_TRAINED, MOVED_SIMCLR, ON_JPEG, SIMCLR, STANDARD

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

Row = Mapping[str, str]
Column = tuple[str, str, str, str]
"""architecture, paradigm, regulariser, column of cells.csv."""
PAIRS = "pairs of replicates"
REPLICATES = 3
TEN = "ten points of 2AFC alignment are a tenth of its range, and half of what members of the committee differ by at a warning"
METRICS = ("ssim", "lab", "gradient", "laplacian", "trunks")
LARGEST = "0.2"
TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


@dc.dataclass(frozen=True)
class Finding:
    """One sentence with the columns that decide, METRIC standing for each metric."""

    number: int
    dataset: str
    statement: str
    treated: tuple[Column, ...]
    control: tuple[Column, ...]
    direction: Any = "up"


def findings() -> list[Finding]:
    """What the article finds, as sentences about our networks."""
    found: list[Finding] = []
    for dataset in ("mnist", "fashion-mnist"):
        for net in ("robust_small", "resnet8"):
            found += _of_network(dataset, net)
        found += [
            Finding(
                3, dataset, "With adversarial views in SimCLR, the residual network is better aligned than the plain one",
                (_free("resnet8", MOVED_SIMCLR),), (_free("robust_small", MOVED_SIMCLR),),
            ),
            Finding(
                3, dataset, "The residual network is better aligned after SimCLR with adversarial views than after supervised adversarial training",
                (_free("resnet8", MOVED_SIMCLR),), (_free("resnet8", L2_TRAINED),),
            ),
        ]  # fmt: skip
    found += [
        _opposed("cifar10", "resnet20"),
        Finding(
            3, "cifar10", "Adversarial fine-tuning aligns ResNet-20 better than its published start",
            (_free("resnet20", L2_TRAINED),), (_free("resnet20", ON_JPEG),),
        ),
    ]  # fmt: skip
    return found


def _free(architecture: str, paradigm: str) -> Column:
    return (architecture, paradigm, FREE, "afc.METRIC")


def _opposed(dataset: str, net: str) -> Finding:
    return Finding(
        1, dataset, f"An adversary within rho <= {LARGEST} makes the adversarially trained {net} look misaligned to metrics it did not attack",
        ((net, L2_TRAINED, ADVERSARY, f"afc_at_{LARGEST}.METRIC"),), ((net, L2_TRAINED, ADVERSARY, "afc_at_free.METRIC"),), "down",
    )  # fmt: skip


def _of_network(dataset: str, net: str) -> list[Finding]:
    prior = {name: (net, name, HUMAN, "afc.METRIC") for name in (STANDARD, L2_TRAINED)}
    return [
        Finding(
            1, dataset, f"A natural-image prior makes the standard {net} look better aligned than it is",
            (prior[STANDARD],), (_free(net, STANDARD),),
        ),
        _opposed(dataset, net),
        Finding(
            2, dataset, f"The prior shrinks the gap between the adversarially trained and the standard {net}",
            (_free(net, L2_TRAINED), prior[STANDARD]), (_free(net, STANDARD), prior[L2_TRAINED]),
        ),
        Finding(
            3, dataset, f"Adversarial training aligns {net} better than standard training",
            (_free(net, L2_TRAINED),), (_free(net, STANDARD),),
        ),
        Finding(
            3, dataset, f"Adversarial views align {net} better than SimCLR without them",
            (_free(net, MOVED_SIMCLR),), (_free(net, SIMCLR),),
        ),
    ]  # fmt: skip


def claims() -> list[tuple[Finding, str, Claim]]:
    """Every finding with every metric."""
    return [(finding, metric, build(finding, metric)) for finding in findings() for metric in METRICS]


def build(finding: Finding, metric: str) -> Claim:
    """One finding, judged by one metric ("trunks": the mean of the self-trained trunks that were not attacked)."""
    title = TITLES[finding.dataset]
    judge = "the mean of self-trained trunks" if metric == "trunks" else metric
    args = {"treated": _columns(finding.treated, metric), "control": _columns(finding.control, metric)}
    return Claim(
        f"{finding.statement}: {title}, 2AFC by {judge}",
        10.0,
        "exceeds",
        scope=Scope("recipe", f"default preset of the invariance study on {title}"),
        reason=TEN,
        effect="alignment, treated minus control",
        unit="pp",
        direction=finding.direction,
        intervention="none",
        nulls=(NullPlan(PAIRS, worlds=2 * REPLICATES * (REPLICATES - 1), form="prediction"),),
        measure=MeasurePlan("", args),
        data=DataPlan(finding.dataset, confirmation="targets, default preset"),
        analysis=Analysis(models=REPLICATES),
    )


def _columns(columns: Sequence[Column], metric: str) -> list[list[str]]:
    return [[*place, name.replace("METRIC", metric)] for *place, name in columns]


@dc.dataclass(frozen=True)
class Decided:
    """A claim with its verdict, or why there is none."""

    finding: Finding
    metric: str
    claim: Claim
    verdict: Verdict | None
    why: str = ""


class Cells:
    """Finished inversion cells of one data set."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {
            (row["architecture"], row["paradigm"], row["regulariser"], int(row["replicate"])): row
            for row in rows
            if row["status"] == "done"
        }

    def value(self, column: Sequence[str], replicate: int) -> float | None:
        """One number; a network of which there is one serves every replicate."""
        *place, name = column
        row = self.rows.get((place[0], place[1], place[2], 0 if place[1] == ON_JPEG else replicate))
        text = None if row is None else row.get(name)
        return float(text) if text else None

    def arm(self, columns: Sequence[Sequence[str]], replicates: int = REPLICATES) -> np.ndarray | None:
        """Sum of the columns by replicate; None while one is missing."""
        found = [[self.value(column, r) for column in columns] for r in range(replicates)]
        if any(value is None for row in found for value in row):
            return None
        return np.array([sum(v for v in row if v is not None) for row in found])


def register_all(ledger: Ledger) -> None:
    """Write every claim into the ledger; those that stand there already are left as they are."""
    for _, _, claim in claims():
        register(claim, ledger, source="experiments/invariance_claims.py")


def decide(finding: Finding, metric: str, claim: Claim, *, cells: Cells, ledger: Ledger) -> Decided:
    """The verdict of a claim, recorded in the ledger, once every replicate is there; before that, none."""
    args = claim.measure.args
    treated, control = cells.arm(args["treated"]), cells.arm(args["control"])
    if treated is None or control is None:
        return Decided(finding, metric, claim, None, "waits for its cells")
    receipt = register(claim, ledger)
    if not ledger.about(claim.sha256, "opened"):  # once, also where no verdict is possible
        ConfirmationSplit(claim.data.key, lambda: None, ledger).open(claim.sha256)
    pairs = np.concatenate([_pairs(treated), _pairs(control)])
    try:
        verdict = check(claim, treated, control, nulls={PAIRS: pairs}, registration=receipt)
    except DataError as error:
        alike = np.array_equal(treated, control)  # every network of both arms at 0 or at 100 %
        why = f"both arms {treated.mean():.0f} %" if alike else str(error)
        if not ledger.about(claim.sha256, "abandoned"):
            ledger.abandon(claim.sha256, reason=why)
        return Decided(finding, metric, claim, None, f"cannot be judged: {why}")
    return Decided(finding, metric, claim, verdict)


def _pairs(arm: np.ndarray) -> np.ndarray:
    """Differences between replicates of one arm: what no difference of recipe looks like."""
    return (arm[:, None] - arm[None, :])[~np.eye(len(arm), dtype=bool)]


def ledger_at(out: Path) -> Ledger:
    out.mkdir(parents=True, exist_ok=True)
    return Ledger(out / "claims.jsonl")
