"""What is measured of a trained classifier, whatever its method: mistakes, outside sets, corruptions, attacks, calibration.

Columns end in what they are about: `miss.SCORE` (AUROC of wrong against right answers), `ood.SET.SCORE`, `fpr.SET.SCORE`,
`corrupt.SCORE` (mean over corruptions), `fgsm.SCORE`, `undetected.ATTACK.SCORE`, `ece.PROBABILITY`, `kept.LAYER`.
"""

import dataclasses as dc
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from decode_data import NEAR, OTHER, Data, corrupted_images, images_of, outside_sets
from decode_setup import Setup
from torch import Tensor, nn

from pellucid.attack import Linf, fgsm, pgd
from pellucid.evals.calibration import calibration
from pellucid.evals.calibration_scaling import fit_temperature
from pellucid.evals.detection import auroc, detection
from pellucid.evals.detection_attacked import detect_attacks
from pellucid.evals.misclassification import misclassification
from pellucid.evals.ood import detect_ood
from pellucid.evals.ood_residual import autoencoder_residual, pca_residual
from pellucid.methods.decode import (
    MEMBER_SCORES,
    SCORES,
    Decodable,
    Ensemble,
    Many,
    SelfComposition,
    mean_entropy,
)
from pellucid.methods.decode.decoded import decode_layers
from pellucid.methods.decode.model import looking
from pellucid.methods.decode.scores import entropy
from pellucid.rng import rng
from pellucid.train import logits_of

BATCH = 250
VOTE = "vote_entropy"
CORRUPTED_SCORES = ("vote_entropy", "mean_entropy", "base_msp", "residual_mean")
"""Scores whose AUROC is kept for each type of corruption; of the others the mean over types."""


@dc.dataclass(frozen=True)
class Subject:
    """A trained method. `model` gives logits, and members where it has them; `classifier` is what detectors read.

    `mean`: its answer is that of the members' mean probability; otherwise that of the plain classifier.
    """

    model: nn.Module
    classifier: nn.Module
    decodable: Decodable | None = None
    mean: bool = False


@dc.dataclass(frozen=True)
class Outputs:
    """What a method says of some images: logits of the classifier, of members, of decodings of each layer."""

    base: Tensor
    members: Tensor | None = None
    reruns: Tensor | None = None
    residual: Tensor | None = None

    def probs(self) -> dict[str, Tensor]:
        """Probabilities by name: of the plain classifier, the members' mean, their votes."""
        found = {"base": self.base.double().softmax(-1)}
        if self.members is not None:
            votes = nn.functional.one_hot(self.members.argmax(-1), self.members.shape[-1])
            found |= {"mean": self.members.double().softmax(-1).mean(0), "vote": votes.double().mean(0)}
        return found

    def scores(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """Every score that can be had, larger = more suspicious.

        Args:
            averaged: the logits are logarithms of a mean probability, whose energy is 0 by construction.
        """
        base = self.base.double()
        probs = base.softmax(-1)
        found = {"base_msp": 1 - probs.amax(-1), "base_entropy": entropy(probs)}
        found |= {} if averaged else {"base_energy": -base.logsumexp(-1)}
        if self.members is not None:
            found |= {name: score(self.members) for name, score in MEMBER_SCORES.items()}
        if self.residual is not None and self.reruns is not None:
            moved = self.reruns.argmax(-1) != base.argmax(-1)
            found |= {
                "residual": self.residual[-1],
                "residual_mean": self.residual.mean(0),
                "flip_rate": moved.double().mean(0),
            }
        return found


def read(subject: Subject, images: Tensor) -> Outputs:
    """A method on many images, a batch at a time."""
    parts = [read_batch(subject, part) for part in images.split(BATCH)]

    def joined(name: str, dim: int) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values, dim)

    base = joined("base", 0)
    assert base is not None
    return Outputs(base, joined("members", 1), joined("reruns", 1), joined("residual", 1))


@torch.no_grad()
def read_batch(subject: Subject, images: Tensor) -> Outputs:
    model, made = subject.model, subject.decodable
    if made is None:
        members = model.members(images) if isinstance(model, Many) else None
        return Outputs(logits_of(model(images)), members)
    with looking(made, images):
        base, seen = made.read(images)
        decoded, _ = decode_layers(made.model, made.decoder, images, seen, logits=base, targets=None)
        layers = (len(made.layers), -1)
        reruns, residual = decoded.logits.unflatten(0, layers), decoded.residual.unflatten(0, layers)
    members = model.members(images) if isinstance(model, SelfComposition) else reruns
    return Outputs(base, members, reruns, residual)


def measures(subject: Subject, setup: Setup, data: Data, *, folder: Path, seed: int) -> dict[str, float]:
    """Everything about a trained classifier that needs no attack; `folder` holds what cells share."""
    images, targets = images_of(data.test), data.test.targets
    assert targets is not None
    test = read(subject, images)
    scores = test.scores(averaged=averaged(subject))
    said = answer(test, subject).argmax(-1)
    found = {f"accuracy.{name}": share(p.argmax(-1) == targets) for name, p in test.probs().items()}
    found["accuracy"] = share(said == targets)
    found |= mistakes(scores, said != targets, seed=seed)
    found |= calibrations(subject, test, targets, data)
    found |= outside(subject, scores, setup, seed=seed)
    found |= corruptions(subject, scores, targets, corrupted_images(setup, folder))
    found |= decodings(test, targets, setup)
    return found


def averaged(subject: Subject) -> bool:
    """Whether the model's logits are those of a mean probability."""
    return isinstance(subject.model, Ensemble)


def answer(found: Outputs, subject: Subject) -> Tensor:
    """The probabilities that the method's answer comes from."""
    return found.probs()["mean" if subject.mean else "base"]


def share(true: Tensor) -> float:
    return float(true.double().mean())


def mistakes(scores: Mapping[str, Tensor], wrong: Tensor, *, seed: int) -> dict[str, float]:
    """AUROC of wrong against right answers, AURC and AUGRC; and what votes show of answers that are wrong at random."""
    found: dict[str, float] = {"wrong": float(wrong.sum())}
    for name, score in scores.items():
        one = misclassification(score, wrong, draws=0, what=name)
        found |= {
            f"miss.{name}": one.detection.auroc,
            f"aurc.{name}": one.selective.aurc,
            f"augrc.{name}": one.selective.augrc,
        }
    if VOTE in scores:
        mixed = wrong[torch.randperm(len(wrong), generator=rng(seed, "shuffled"))]
        found[f"miss_shuffled.{VOTE}"] = auroc(scores[VOTE][~mixed], scores[VOTE][mixed])
        found[f"zero.{VOTE}"] = share(scores[VOTE] == 0)
    return found


def calibrations(subject: Subject, test: Outputs, targets: Tensor, data: Data) -> dict[str, float]:
    """ECE (15 bins of equal width), adaptive ECE, NLL and Brier of each probability, and after temperature scaling.

    The temperature is fitted on validation images, for the probability that the method answers by.
    """
    held, labels = read(subject, images_of(data.validation)), data.validation.targets
    assert labels is not None
    fitted = fit_temperature(answer(held, subject).log().clamp_min(-700.0), labels)
    probs = test.probs() | {"scaled": fitted.probs(answer(test, subject).log().clamp_min(-700.0))}
    found = {
        "temperature": fitted.temperature,
        "validation": share(answer(held, subject).argmax(-1) == labels),
    }
    for name, p in probs.items():
        one = calibration(p, targets, draws=20)
        found |= {
            f"ece.{name}": one.ece, f"ece_null.{name}": one.ece_null, f"ece_adaptive.{name}": one.ece_adaptive,
            f"brier.{name}": one.brier,
        }  # fmt: skip
        found |= {f"nll.{name}": one.nll} if name != "vote" else {}
    found["ece"] = found["ece.mean" if subject.mean else "ece.base"]
    return found


def outside(subject: Subject, inside: Mapping[str, Tensor], setup: Setup, *, seed: int) -> dict[str, float]:
    """AUROC and FPR at 95 % found of every outside set against the test images."""
    found: dict[str, float] = {}
    for key, source in outside_sets(setup).items():
        scores = read(subject, images_of(source)).scores(averaged=averaged(subject))
        for name, score in scores.items():
            one = detection(inside[name], score, draws=0, what=f"{name} on {key}")
            found |= {f"ood.{key}.{name}": one.auroc, f"fpr.{key}.{name}": one.fpr95}
        if key == OTHER and VOTE in scores:
            both = torch.cat([inside[VOTE], scores[VOTE]])
            mixed = both[torch.randperm(len(both), generator=rng(seed, "shuffled outside"))]
            found[f"ood_shuffled.{VOTE}"] = auroc(mixed[: len(inside[VOTE])], mixed[len(inside[VOTE]) :])
    return found


def detectors(subject: Subject, setup: Setup, data: Data, *, residuals: bool, seed: int) -> dict[str, float]:
    """Usual detectors on the plain classifier, where pytorch-ood is installed; and residuals of the images alone."""
    some = data.test.take(range(min(setup.outside, len(data.test))))
    sets = outside_sets(setup)
    found: dict[str, float] = {}
    if importlib.util.find_spec("pytorch_ood") is not None:
        table = detect_ood(
            subject.classifier, some, {k: v for k, v in sets.items() if k not in NEAR}, near={k: sets[k] for k in NEAR},
            fit_on=data.train, only=setup.detectors, batch_size=BATCH, device="cpu", draws=0, seed=seed,
        )  # fmt: skip
        found |= {f"ood.{row.outside}.{row.detector}": row.found.auroc for row in table.rows}
    if not residuals:
        return found
    images = images_of(some)
    fitted = {
        "pca": pca_residual(data.train, seed=seed),
        "autoencoder": autoencoder_residual(data.train, epochs=setup.autoencoder, seed=seed),
    }
    with torch.no_grad():
        for name, score in fitted.items():
            inside = score(subject.model, images)
            for key, source in sets.items():
                found[f"ood.{key}.{name}"] = auroc(inside, score(subject.model, images_of(source)))
    return found


def corruptions(
    subject: Subject, clean: Mapping[str, Tensor], targets: Tensor, changed: Mapping[str, Tensor]
) -> dict[str, float]:
    """AUROC of corrupted against clean test images and accuracy on them, by type and over types."""
    by_score: dict[str, list[float]] = {}
    right: list[float] = []
    found: dict[str, float] = {}
    for kind, images in changed.items():
        outputs = read(subject, images)
        right.append(share(answer(outputs, subject).argmax(-1) == targets[: len(images)]))
        for name, score in outputs.scores(averaged=averaged(subject)).items():
            by_score.setdefault(name, []).append(auroc(clean[name], score))
            if name in CORRUPTED_SCORES:
                found[f"corrupt_{kind}.{name}"] = by_score[name][-1]
        found[f"corrupt_accuracy.{kind}"] = right[-1]
    for name, values in by_score.items():
        spread = torch.tensor(values, dtype=torch.float64)
        found |= {
            f"corrupt.{name}": float(spread.mean()),
            f"corrupt_sd.{name}": float(spread.std(unbiased=False)),
        }
    return found | {"corrupt_accuracy": sum(right) / len(right)}


def attacks(subject: Subject, setup: Setup, data: Data, *, seed: int) -> dict[str, float]:
    """FGSM and PGD seen by every score, and for some scores an attack that lowers it as well.

    The images are those of the first test images that are classified rightly, clean and attacked.
    """
    some = data.test.take(range(setup.attacked))
    images, targets = images_of(some), some.targets
    assert targets is not None
    with torch.no_grad():
        right = logits_of(subject.model(images)).argmax(1) == targets
    images, targets = images[right], targets[right]
    clean = read(subject, images).scores(averaged=averaged(subject))
    ball = Linf(setup.radius)
    found: dict[str, float] = {}
    moved = {
        "fgsm": fgsm(subject.model, images, targets, ball=ball, early_stop=False),
        "pgd": pgd(subject.model, images, targets, ball=ball, steps=setup.steps, early_stop=False, seed=seed),
    }
    for attack, one in moved.items():
        outputs = read(subject, one.inputs)
        for name, score in outputs.scores(averaged=averaged(subject)).items():
            found[f"{attack}.{name}"] = auroc(clean[name], score)
        found[f"fooled.{attack}"] = share(outputs.base.argmax(1) != targets)
    return found | adaptive(subject, setup, data, seed=seed)


def adaptive(subject: Subject, setup: Setup, data: Data, *, seed: int) -> dict[str, float]:
    """What passes unseen at 5 % false alarms: FGSM, PGD, and the attack on classifier and score at once."""
    some = data.test.take(range(setup.adapted))
    watching = {"base_entropy": SCORES["base_entropy"]}
    if isinstance(subject.model, Many) or subject.decodable is not None:
        watching = {"mean_entropy": mean_entropy}
    if subject.decodable is not None:
        watching["residual_mean"] = SCORES["residual_mean"]
    found: dict[str, float] = {}
    for one in detect_attacks(
        subject.model, some, watching, ball=Linf, radii=[setup.radius], steps=setup.steps, batch_size=125, device="cpu",
        draws=0, seed=seed,
    ):  # fmt: skip
        found[f"undetected.{one.attack}.{one.score}"] = one.undetected
        found[f"watched.{one.attack}.{one.score}"] = one.all_images.auroc
    return found


def decodings(test: Outputs, targets: Tensor, setup: Setup) -> dict[str, float]:
    """By layer: error of decodings, share that is still classified rightly or as before; and what mistakes decode to."""
    if test.reruns is None or test.residual is None:
        return {}
    said, again = test.base.argmax(-1), test.reruns.argmax(-1)
    wrong = said != targets
    found: dict[str, float] = {}
    for i, layer in enumerate(setup.layers):
        found |= {
            f"residual.{layer}": float(test.residual[i].double().mean()), f"kept.{layer}": share(again[i] == said),
            f"right.{layer}": share(again[i] == targets), f"wrong_label.{layer}": share(again[i][wrong] == said[wrong]),
            f"true_label.{layer}": share(again[i][wrong] == targets[wrong]),
        }  # fmt: skip
    first, before, last = (found[f"residual.{setup.layers[i]}"] for i in (0, -3, -1))
    return found | {"residual_late": last - before, "residual_early": before - first}
