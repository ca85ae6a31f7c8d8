"""One cell of the decoding study: train (or fetch) the networks of one method and measure them."""

import dataclasses as dc
from pathlib import Path

import torch
from decode_data import images_of, open_data
from decode_measures import BATCH, Subject, attacks, detectors, measures, share
from decode_nets import Kept
from decode_setup import (
    COMPOSED,
    DECNN,
    DEEPER,
    DROPOUT,
    ENSEMBLE,
    MC_DROPOUT,
    REDECNN,
    STANDARD,
    Setup,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from pellucid.data import Source
from pellucid.methods.decode import Decodable, Ensemble, McDropout, SelfComposition, choose_paths, trace
from pellucid.sweep import Cell

SHOWN = 6
"""Pictures of right, and of wrong, predictions that are kept for the page."""


def run_cell(cell: Cell, scratch: Path, *, setup: Setup, folder: Path) -> dict[str, float]:
    """Everything about one method and replicate. `folder` holds the networks that cells share."""
    kept, method, data = Kept(setup, folder), str(cell.settings["method"]), open_data(setup)
    subject = subject_of(kept, method, cell.seed)
    found = {"train_seconds": seconds(kept, method, cell.seed)}
    found |= measures(subject, setup, data, folder=folder, seed=cell.seed)
    found |= attacks(attacked(subject, setup), setup, data, seed=cell.seed)
    if method in (STANDARD, REDECNN):
        found |= detectors(subject, setup, data, residuals=method == STANDARD, seed=cell.seed)
    if method in COMPOSED:
        frozen = kept.frozen(method, cell.seed)
        assert frozen is not None and subject.decodable is not None
        found |= agreement(
            subject.decodable, frozen, data.test.take(range(min(setup.outside, len(data.test))))
        )
    if method in (DECNN, REDECNN) and subject.decodable is not None and cell.replicate == 0:
        images, targets = images_of(data.test.take(range(min(1000, len(data.test))))), data.test.targets
        assert targets is not None
        save_file(
            pictures(subject.decodable, images, targets[: len(images)]), scratch / "pictures.safetensors"
        )
    # Plain network, no mistake, no image of a set: what cannot be measured is left out, not 0.
    return {name: value for name, value in found.items() if value == value}


def subject_of(kept: Kept, method: str, seed: int) -> Subject:
    """The networks of a method, trained if they are not yet."""
    setup = kept.setup
    if method == ENSEMBLE:
        models = [kept.network(STANDARD, member) for member in kept.member_seeds(seed)]
        return Subject(Ensemble(models), models[0], mean=True)
    if method == MC_DROPOUT:
        model = kept.network(DROPOUT, seed)
        return Subject(McDropout(model, n=setup.masks, seed=seed), model, mean=True)
    model = kept.network(method, seed)
    if not isinstance(model, Decodable):
        return Subject(model, model)
    if method == DEEPER:
        paths = choose_paths(model.layers, 2, at_most=setup.paths, seed=seed)
        return Subject(SelfComposition(model, paths), model.model, model)
    return Subject(model, model.model, model)


def attacked(subject: Subject, setup: Setup) -> Subject:
    """The method as it is attacked: of paths of length 2 only a few, each of which costs the attacker a pass."""
    if not isinstance(subject.model, SelfComposition):
        return subject
    few = subject.model.paths[: setup.attacked_paths]
    return dc.replace(subject, model=SelfComposition(subject.model.decodable, few))


def seconds(kept: Kept, method: str, seed: int) -> float:
    """What training the method took, all its networks; not that of a frozen model it learns from."""
    if method == ENSEMBLE:
        return sum(kept.seconds(STANDARD, member) for member in kept.member_seeds(seed))
    return kept.seconds(DROPOUT if method == MC_DROPOUT else method, seed)


@torch.no_grad()
def agreement(made: Decodable, frozen: nn.Module, source: Source) -> dict[str, float]:
    """How good the frozen model is, and how often it says of decodings what the classifier says."""
    same, apart, right = 0.0, 0.0, 0.0
    for batch in source.batches(BATCH):
        right += float((frozen(batch.inputs).argmax(1) == batch.targets).sum())
        decoded = made.decodings(batch.inputs).flatten(0, 1)
        theirs, ours = frozen(decoded).double().log_softmax(1), made(decoded).double().log_softmax(1)
        same += share(theirs.argmax(1) == ours.argmax(1)) * len(batch)
        apart += float((theirs.exp() * (theirs - ours)).sum(1).mean()) * len(batch)
    n = len(source)
    return {"frozen_accuracy": right / n, "agree": same / n, "kl": apart / n}


def pictures(made: Decodable, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Inputs and their decodings, of the first right and the first wrong predictions, with the labels given to each."""
    with torch.no_grad():
        wrong = torch.cat([made(part).argmax(1) for part in images.split(BATCH)]) != targets
    found: dict[str, Tensor] = {}
    for name, chosen in (("right", ~wrong), ("wrong", wrong)):
        places = chosen.nonzero().flatten()[:SHOWN]
        if not len(places):
            continue
        one = trace(made, images[places], targets[places])
        found |= {
            f"{name}.images": torch.cat([one.inputs[None], one.decodings]).contiguous(), f"{name}.labels": one.labels,
            f"{name}.predicted": one.predicted, f"{name}.targets": targets[places],
        }  # fmt: skip
    return found
