"""Is there a unit for a class in ResNet-20? The measures behind the claims of `docs/tutorial_claim.md`.

    python claim_unit.py LAYER                     which unit looks like a detector, on the exploration split only
    pellucid claim register ../docs/results/claims/unit_detects.toml --ledger ../docs/results/claims/claims.jsonl
    pellucid claim check ../docs/results/claims/unit_detects.toml --ledger ../docs/results/claims/claims.jsonl

Run from this folder, with PELLUCID_DATA naming the folder of images and weights.
"""

import functools
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.claims import Measured
from pellucid.claims.auroc import auroc
from pellucid.data import Source, open_source
from pellucid.preprocess import normalize
from pellucid.rng import derive, rng
from pellucid.taps import Tap, ablate, edit, watch
from pellucid.train import seeded
from pellucid.weights import apply_weights, load_weights
from pellucid.zoo import CIFAR_RESNET_MEAN, CIFAR_RESNET_STD, resnet20

WEIGHTS = "weights/cifar10_resnet/resnet20-12fca82f.th"
EXPLORATION = "test[:5000]"
TWIN_IMAGES = 1000  # of each split, for each untrained twin
ELSEWHERE = 500  # images of other classes that an ablation is judged on
MATCHED = 39  # units of like norm, each ablated in place of the claimed one
PLANTED = 16  # units ablated together in the positive control


def detects(seed: int, split: str, *, layer: str, unit: int, concept: str) -> Measured:
    """AUROC of a unit's mean response for a class: images with it against images without.

    Nulls: permuted labels for this unit, and untrained twins that repeat the search for the best unit and class.
    Positive control: the network's own logit of the class.
    """
    images = part(split)
    responses, logits = forward(trained(), images, layer)
    present = is_(concept, images)
    values = responses[:, unit]
    return Measured(
        values[present],
        values[~present],
        nulls={
            "permuted labels": permuted(values, present, worlds=199, seed=seed),
            "untrained": twins(split, layer, worlds=20, seed=seed),
        },
        positive_control=(
            logits[present, images.classes.index(concept)],
            logits[~present, images.classes.index(concept)],
        ),
        notes=(
            f"{int(present.sum())} images of {concept}, {int((~present).sum())} of other classes, JPEG files",
        ),
    )


def needed(seed: int, split: str, *, layer: str, unit: int, concept: str) -> Measured:
    """Increase of the loss (nats) when the unit is set to zero: on images of the class against other images.

    Null: each of the units whose norm is nearest, ablated in its place. Positive control: the sixteen units that answer
    the class most, ablated together. Manipulation check: the unit was not at zero already on images of the class.
    """
    images = part(split)
    present = is_(concept, images)
    others = torch.from_numpy(np.flatnonzero(~present))
    others = others[torch.randperm(len(others), generator=rng(seed, "elsewhere"))[:ELSEWHERE]]
    on, off = images.take(torch.from_numpy(np.flatnonzero(present))), images.take(others)
    model = trained()
    responses, _ = forward(model, images, layer)
    before = losses(model, on), losses(model, off)

    def increase(units: list[int]) -> tuple[np.ndarray, np.ndarray]:
        with edit(model, {layer: ablate(units)}):
            return losses(model, on) - before[0], losses(model, off) - before[1]

    norms = np.sqrt((responses**2).mean(0))
    near = [int(u) for u in np.argsort(np.abs(norms - norms[unit]), kind="stable") if u != unit][:MATCHED]
    worlds = [on_.mean() - off_.mean() for on_, off_ in (increase([u]) for u in near)]
    lift = responses[present].mean(0) - responses[~present].mean(0)
    top = [int(u) for u in np.argsort(-lift, kind="stable")[:PLANTED]]
    return Measured(
        *increase([unit]),
        nulls={"units of like norm": np.array(worlds)},
        positive_control=increase(top),
        manipulation=responses[present, unit],
        notes=(f"{len(on)} images of {concept}, {len(off)} of other classes, JPEG files",),
    )


def explore(layer: str) -> None:
    """The unit and class with the highest AUROC on the exploration split, and the next ones."""
    images = part(EXPLORATION)
    responses, _ = forward(trained(), images, layer)
    found = areas(responses, images)
    for flat in np.argsort(-found, axis=None)[:5]:
        unit, concept = np.unravel_index(flat, found.shape)
        print(f"{layer}:{unit} {images.classes[concept]:<11} AUROC {found[unit, concept]:.3f}")


# -- the network, the images, what it answers ----------------------------------------------------------------------


@functools.cache
def trained() -> nn.Module:
    model = resnet20()
    apply_weights(model, load_weights(root() / WEIGHTS))
    normalize(model, CIFAR_RESNET_MEAN, CIFAR_RESNET_STD)
    return model.eval()


def untrained(seed: int, number: int) -> nn.Module:
    """A network of the same architecture with initial weights, its batch norms settled on the exploration images."""
    with seeded(derive(seed, "twin", number)):
        model = resnet20()
    normalize(model, CIFAR_RESNET_MEAN, CIFAR_RESNET_STD)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches, not one that forgets its zeros slowly
    model.train()
    with torch.no_grad():
        for batch in part(EXPLORATION).take(range(500)).batches(250):
            model(batch.inputs)
    return model.eval()


@functools.cache
def everything() -> Source:
    return open_source(f"cifar10:{root() / 'cifar10'}?images=jpeg", split="test")


@functools.cache
def part(split: str) -> Source:
    """`test[5000:]` is what it says."""
    found = re.fullmatch(r"test\[(\d*):(\d*)\]", split)
    if found is None:
        raise ValueError(f"a split is written test[START:STOP], got {split!r}")
    first, last = (int(text) if text else None for text in found.groups())
    return everything().take(range(len(everything()))[first:last])


def root() -> Path:
    if "PELLUCID_DATA" not in os.environ:
        sys.exit("PELLUCID_DATA is not set: it names the folder with the images and the weights")
    return Path(os.environ["PELLUCID_DATA"])


def is_(concept: str, images: Source) -> np.ndarray:
    return images.targets.numpy() == images.classes.index(concept)


def forward(model: nn.Module, images: Source, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean response of each unit of a layer, and the logits, by image."""
    responses: list[Tensor] = []
    logits: list[Tensor] = []
    with watch(model, {"here": Tap(layer)}) as seen, torch.no_grad():
        for batch in images.batches(250):
            logits.append(model(batch.inputs))
            responses.append(seen["here"])
    return torch.cat(responses).double().numpy(), torch.cat(logits).double().numpy()


def losses(model: nn.Module, images: Source) -> np.ndarray:
    with torch.no_grad():
        found = [F.cross_entropy(model(b.inputs), b.targets, reduction="none") for b in images.batches(250)]
    return torch.cat(found).double().numpy()


# -- nulls -----------------------------------------------------------------------------------------------------------


def areas(responses: np.ndarray, images: Source) -> np.ndarray:
    """AUROC of every unit for every class."""
    labels = np.stack([is_(concept, images) for concept in images.classes], 1)
    return np.array([[auroc(r[c], r[~c]) for c in labels.T] for r in responses.T])


def permuted(values: np.ndarray, present: np.ndarray, *, worlds: int, seed: int) -> np.ndarray:
    """AUROC - 1/2 of the unit for labels in random order."""
    random = np.random.default_rng(derive(seed, "permuted labels"))
    shuffled = (random.permutation(present) for _ in range(worlds))
    return np.array([auroc(values[p], values[~p]) - 0.5 for p in shuffled])


def twins(split: str, layer: str, *, worlds: int, seed: int) -> np.ndarray:
    """AUROC - 1/2 on `split` of the unit and class that stand out most on the exploration split, in untrained twins."""
    few, judged = part(EXPLORATION).take(range(TWIN_IMAGES)), part(split).take(range(TWIN_IMAGES))
    found: list[float] = []
    for number in range(worlds):
        model = untrained(seed, number)
        searched = areas(forward(model, few, layer)[0], few)
        unit, concept = np.unravel_index(int(searched.argmax()), searched.shape)
        values, there = forward(model, judged, layer)[0][:, unit], is_(judged.classes[concept], judged)
        found.append(auroc(values[there], values[~there]) - 0.5)
    return np.array(found)


if __name__ == "__main__":
    explore(sys.argv[1] if len(sys.argv) > 1 else "layer3.1.relu2")
