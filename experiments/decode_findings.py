"""The paper's findings about decodable networks as sentences that can fail, and what overturns them.

Where a finding rests on the entropy of votes, a second sentence says that a stronger score overturns it, for votes give a baseline
nearly no way to be uncertain; a third gives both methods the stronger score.
"""

import dataclasses as dc
from typing import Any

from decode_setup import (
    BOUND,
    COMPAS,
    DECNN,
    ENSEMBLE,
    FREE,
    LINEAR,
    MC_DROPOUT,
    PLANTED,
    REDECNN,
    STANDARD,
    STRONG,
    STRONGER,
)

PARTS = {
    "mnist": "perceptron of 8 x 128, 12,000 MNIST images, 10 epochs",
    "fashion-mnist": "perceptron of 8 x 128, 12,000 Fashion-MNIST images, 10 epochs",
    "fashion-residual": "ResNet-8 (8-16-32), 10,000 Fashion-MNIST images, 6 epochs",
    "fairness": "",
}
CASES = {
    COMPAS: "perceptron of 4 x 32, COMPAS table without race, two groups",
    PLANTED: "perceptron of 4 x 128, 4,000 MNIST images, digits below 5 or not, a bright column that goes with the class in 90 %",
}
VOTE, MEAN = "vote_entropy", "mean_entropy"
Column = tuple[str, str]

SMALL = "0.02 of AUROC is what another seed or data order can give"
CLEAR = "0.05 of AUROC is the least that would make one choose another method; the paper's differences are 0.1 to 0.3"


@dc.dataclass(frozen=True)
class Finding:
    """One sentence with the columns that decide.

    Args:
        about: the heading under which the page puts it.
        level: what `treated` is held against where there is no control.
        null: a column of the treated setting, by replicate, where the claim cannot be true.
        premise: a column that must be above another for the claim to be about what it says; else it is invalid.
        late: it came up after test images had been seen, so it is explored, not registered.
        says: the paper's figures, or where else it comes from.
    """

    part: str
    about: str
    statement: str
    treated: Column
    control: Column | None
    delta: float
    reason: str
    says: str
    kind: Any = "exceeds"
    direction: Any = "up"
    unit: str = "AUROC"
    scale: float = 1.0
    level: float | None = None
    null: str = ""
    intervention: Any = "training-time"
    premise: tuple[Column, Column] | None = None
    late: bool = False


def findings() -> list[Finding]:
    """Everything that the study is to decide."""
    found: list[Finding] = []
    for part in ("mnist", "fashion-mnist", "fashion-residual"):
        found += [
            *accuracy(part),
            *mistakes(part),
            *far(part),
            *dropout(part),
            *attacked(part),
            *corrupted(part),
        ]
        found += [*calibrated(part), *traced(part)]
    return [
        *found,
        *composed("mnist"),
        *fair(),
        *stronger(
            "mnist", STRONGER, "Composition with a residual network that beats the plain one", late=True
        ),
    ]


def accuracy(part: str) -> list[Finding]:
    says = {
        "mnist": "97.1 plain, 97.8 DecNN, 97.5 ReDecNN", "fashion-mnist": "87.7 plain, 88.8 DecNN, 88.1 ReDecNN",
    }.get(part, "not in the paper")  # fmt: skip
    reason = "one point is the bound of the acceptance test, and what one would give for a readable network"
    return [
        Finding(
            part, "accuracy", f"{method} is as accurate as the plain network, within one point", (method, "accuracy"),
            (STANDARD, "accuracy"), 1.0, reason, says, kind="equivalent", unit="pp", scale=100.0,
        )
        for method in (DECNN, REDECNN)
    ]  # fmt: skip


def votes_and_scores(part: str, about: str, what: str, column: str, says: str) -> list[Finding]:
    """A finding by votes; what a stronger score of the baseline makes of it; and both with the stronger score."""
    vote, mean = f"{column}.{VOTE}", f"{column}.{MEAN}"
    return [
        Finding(
            part, about, f"By the entropy of votes, ReDecNN tells {what} better than an ensemble of three", (REDECNN, vote),
            (ENSEMBLE, vote), 0.05, CLEAR, says,
        ),
        Finding(
            part, about, f"Overturned by a stronger score: the same ensemble, by its mean entropy, tells {what} better than ReDecNN by votes",
            (ENSEMBLE, mean), (REDECNN, vote), 0.02, SMALL, "not in the paper, which gives votes alone",
        ),
        Finding(
            part, about, f"By mean entropy for both, ReDecNN still tells {what} better than the ensemble", (REDECNN, mean),
            (ENSEMBLE, mean), 0.02, SMALL, "not in the paper",
        ),
    ]  # fmt: skip


def reaches(part: str, about: str, what: str, column: str, says: str) -> Finding:
    """Acceptance test T20: an AUROC of at least 0.75."""
    return Finding(
        part, about, f"By the entropy of votes, ReDecNN tells {what} with an AUROC above 0.75", (REDECNN, f"{column}.{VOTE}"), None,
        0.25, "0.75 is the bound of the acceptance test, half of the way from chance to certainty", says, level=0.5,
        null=f"{column.split('.')[0]}_shuffled.{VOTE}", intervention="none", unit="AUROC above 0.5",
    )  # fmt: skip


def mistakes(part: str) -> list[Finding]:
    says = {"mnist": "0.869 against 0.531", "fashion-mnist": "0.795 against 0.559"}.get(
        part, "not in the paper"
    )
    what = "wrong answers from right ones"
    return [
        reaches(part, "mistakes", what, "miss", says),
        *votes_and_scores(part, "mistakes", what, "miss", says),
        Finding(
            part, "mistakes", f"Overturned by a stronger score: the plain network's largest probability tells {what} better than ReDecNN by votes",
            (STANDARD, "miss.base_msp"), (REDECNN, f"miss.{VOTE}"), 0.02, SMALL, "not in the paper",
        ),
    ]  # fmt: skip


def far(part: str) -> list[Finding]:
    other = "Fashion-MNIST" if part == "mnist" else "MNIST"
    says = {"mnist": "0.812 against 0.534", "fashion-mnist": "0.793 against 0.501"}.get(
        part, "not in the paper"
    )
    what = f"{other} from its own test images"
    return [
        reaches(part, "outside data", what, "ood.other", says),
        *votes_and_scores(part, "outside data", what, "ood.other", says),
        Finding(
            part, "outside data", f"Overturned without a classifier: the residual of a small autoencoder of the images tells {what} better "
            "than ReDecNN by votes", (STANDARD, "ood.other.autoencoder"), (REDECNN, f"ood.other.{VOTE}"), 0.02, SMALL,
            "not in the paper",
        ),
    ]  # fmt: skip


def dropout(part: str) -> list[Finding]:
    says = {"mnist": "91.3 against 97.5; 0.888 against 0.812", "fashion-mnist": "78.6 against 88.1; 0.864 against 0.793"}.get(part, "not in the paper")  # fmt: skip
    return [
        Finding(
            part, "MC-dropout", "MC-dropout is less accurate than ReDecNN by more than two points", (MC_DROPOUT, "accuracy"),
            (REDECNN, "accuracy"), 2.0, "the paper's differences are 6 to 10 points; two would still decide between them", says,
            direction="down", unit="pp", scale=100.0,
        ),
        Finding(
            part, "MC-dropout", "By the entropy of votes, MC-dropout tells the other data set better than ReDecNN",
            (MC_DROPOUT, f"ood.other.{VOTE}"), (REDECNN, f"ood.other.{VOTE}"), 0.02, SMALL, says,
        ),
    ]  # fmt: skip


def attacked(part: str) -> list[Finding]:
    says = {"mnist": "0.787 against 0.540", "fashion-mnist": "0.711 against 0.589"}.get(
        part, "not in the paper"
    )
    return [
        *votes_and_scores(part, "attacks", "FGSM images from clean ones", "fgsm", says),
        Finding(
            part, "attacks", "An attack that also lowers the mean entropy of ReDecNN passes unseen more often than FGSM",
            (REDECNN, f"undetected.adaptive.{MEAN}"), (REDECNN, f"undetected.fgsm.{MEAN}"), 10.0,
            "one image in ten is far above what a threshold moves by", "not in the paper, which has FGSM alone", unit="pp",
            scale=100.0, intervention="input edit",
        ),
    ]  # fmt: skip


def corrupted(part: str) -> list[Finding]:
    says = {"mnist": "0.727 against 0.566", "fashion-mnist": "0.676 against 0.606"}.get(
        part, "not in the paper"
    )
    return votes_and_scores(
        part, "corruptions", "corrupted images from clean ones (mean over 14 types)", "corrupt", says
    )


def calibrated(part: str) -> list[Finding]:
    says = {"mnist": "0.33 against 1.18", "fashion-mnist": "0.21 against 0.56"}.get(part, "not in the paper")
    reason = "a quarter of a percentage point is half of the paper's smaller difference"
    return [
        Finding(
            part, "calibration", "ReDecNN has a smaller calibration error than the plain network", (REDECNN, "ece"), (STANDARD, "ece"), 0.25,
            reason, says, direction="down", unit="pp of ECE", scale=100.0,
        ),
        Finding(
            part, "calibration", "Overturned by temperature scaling: the plain network, scaled on validation images, has a smaller "
            "calibration error than ReDecNN", (STANDARD, "ece.scaled"), (REDECNN, "ece"), 0.25, reason, "not in the paper",
            direction="down", unit="pp of ECE", scale=100.0,
        ),
    ]  # fmt: skip


def traced(part: str) -> list[Finding]:
    last = "layer3" if part == "fashion-residual" else "block8"
    found = [
        Finding(
            part, "traces", "In DecNN, the last layer's decoding of a wrongly answered image is classified as the wrong class more often "
            "than as the true one", (DECNN, f"wrong_label.{last}"), (DECNN, f"true_label.{last}"), 20.0,
            "twenty points are what makes a strip of pictures worth reading", "shown on examples", unit="pp of mistakes", scale=100.0,
            intervention="none",
        ),
    ]  # fmt: skip
    if part == "fashion-residual":
        return found
    return [
        *found,
        Finding(
            part, "traces", "In DecNN, decodings lose more in the last two layers than in the six before", (DECNN, "residual_late"),
            (DECNN, "residual_early"), 0.5, "0.0005 is about a twentieth of the error of a decoding", "said of the examples",
            unit="1e-3 of mean squared error", scale=1000.0, intervention="none",
        ),
    ]  # fmt: skip


def composed(part: str) -> list[Finding]:
    """What agreeing with a frozen linear, or a stronger, model on decodings does."""
    about, weak, one = (
        "composition",
        "Composition with a linear model",
        "0.01 of AUROC is a third of the paper's gain",
    )
    return [
        Finding(
            part, about, f"{weak} helps the entropy of votes to tell wrong answers", (LINEAR, f"miss.{VOTE}"), (REDECNN, f"miss.{VOTE}"),
            0.01, one, "0.904 against 0.869",
        ),
        Finding(
            part, about, f"{weak} helps the entropy of votes to tell Fashion-MNIST", (LINEAR, f"ood.other.{VOTE}"),
            (REDECNN, f"ood.other.{VOTE}"), 0.01, one, "0.845 against 0.812",
        ),
        *stronger(part, STRONG, "Composition with a stronger model"),
    ]  # fmt: skip


def stronger(part: str, method: str, strong: str, *, late: bool = False) -> list[Finding]:
    """What agreeing with a model does that is itself more accurate than the plain network."""
    about, premise = "composition", ((method, "frozen_accuracy"), (STANDARD, "accuracy"))
    return [
        Finding(
            part, about, f"{strong} raises accuracy", (method, "accuracy"), (REDECNN, "accuracy"), 0.3,
            "0.3 points are a third of the paper's gain", "98.30 against 97.50", unit="pp", scale=100.0, premise=premise, late=late,
        ),
        Finding(
            part, about, f"{strong} makes the entropy of votes worse at telling wrong answers", (method, f"miss.{VOTE}"),
            (REDECNN, f"miss.{VOTE}"), 0.02, SMALL, "0.742 against 0.869", direction="down", premise=premise, late=late,
        ),
        Finding(
            part, about, f"{strong} makes the entropy of votes worse at telling Fashion-MNIST", (method, f"ood.other.{VOTE}"),
            (REDECNN, f"ood.other.{VOTE}"), 0.02, SMALL, "0.650 against 0.812", direction="down", premise=premise, late=late,
        ),
    ]  # fmt: skip


def fair() -> list[Finding]:
    """The constraint on a protected attribute, weight 4; settings are case and arm."""
    compas, planted = (lambda arm: f"{COMPAS} {arm}"), (lambda arm: f"{PLANTED} {arm}")
    part, about = "fairness", "fairness"
    gap = "two points are a quarter of the gap that the paper closes"
    return [
        Finding(
            part, about, "The constraint narrows the gap in F1 between the two groups", (compas(BOUND), "gap.f1"),
            (compas(FREE), "gap.f1"), 2.0, gap, "6.5 to 2.7 points (CelebA)", direction="down", unit="pp", scale=100.0,
        ),
        Finding(
            part, about, "The constraint narrows the gap in average precision between the two groups", (compas(BOUND), "gap.ap"),
            (compas(FREE), "gap.ap"), 2.0, gap, "7.9 to 1.1 points (CelebA)", direction="down", unit="pp", scale=100.0,
        ),
        Finding(
            part, about, "The constraint leaves the frozen model at a loss: its confidence on decodings of the last layer falls by more than 0.2",
            (planted(BOUND), "confidence.last"), (planted(FREE), "confidence.last"), 0.2,
            "0.2 is two fifths of the way from certainty to a guess", "what the constraint asks for", direction="down", unit="confidence",
        ),
        Finding(
            part, about, "Overturned by a fresh probe: under the constraint the attribute can still be read off the last layer's activations",
            (planted(BOUND), "probe.activation.last"), (planted(BOUND), "probe_shuffled.last"), 10.0,
            "ten points above chance are more than an attribute that is gone would leave", "not in the paper, which has group metrics alone",
            unit="pp of accuracy", scale=100.0, intervention="none",
        ),
        Finding(
            part, about, "The constraint raises accuracy on the images whose attribute goes against their class", (planted(BOUND), "accuracy.conflict"),
            (planted(FREE), "accuracy.conflict"), 2.0, "two points are above what two seeds differ by", "not in the paper", unit="pp", scale=100.0,
        ),
    ]  # fmt: skip
