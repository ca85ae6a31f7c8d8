"""Data and judges of the invariance study: training images, targets, natural images, and the committee of metrics.

Real data is found through PELLUCID_DATA alone. Targets are test images, a tenth of each class; pretrained CIFAR-10
networks are asked about lossless images, which they were trained on, and about JPEG test images.
"""

import os
import tempfile
from collections.abc import Collection
from functools import cache
from pathlib import Path

import torch
from invariance_setup import PUBLISHED, Setup
from torch import Tensor
from torch.nn import functional as F

from pellucid.data import Source, open_source
from pellucid.evals.alignment_committee import Member
from pellucid.evals.perceptual import WEIGHT_FREE, DeepDistance, check_axioms
from pellucid.evals.trunk import members_of, refuse_tested, self_trained, untrained
from pellucid.rng import rng
from pellucid.sweep.locks import held

ATTACKED = "self-trained 1"
"""The member that the constrained adversary works against; the others are held out."""


def scratch_root() -> Path:
    """Where networks, claims and unfinished work lie: PELLUCID_SCRATCH, or the system's temporary folder."""
    return Path(os.environ.get("PELLUCID_SCRATCH") or tempfile.gettempdir()) / "pellucid-invariance"


def data_root() -> Path:
    """The staged data; exits with what to do without it."""
    root = os.environ.get("PELLUCID_DATA")
    if not root or not Path(root).is_dir():
        raise SystemExit(
            "set PELLUCID_DATA to the folder that holds MNIST/, FashionMNIST/, cifar10/ and weights/"
        )
    return Path(root)


@cache
def in_memory(dataset: str, split: str, images: str = "jpeg") -> Source:
    """A split, decoded once a process."""
    if dataset == "digits":
        return open_source("digits", split=split).map(_enlarged, "28 px")  # pyright: ignore[reportArgumentType]
    root = data_root()
    spec = f"cifar10:{root / 'cifar10'}?images={images}" if dataset == "cifar10" else f"{dataset}:{root}"
    return open_source(spec, split=split)  # pyright: ignore[reportArgumentType]  # "train" or "test"


def _enlarged(image: Tensor) -> Tensor:
    return F.interpolate(image[None], size=28, mode="bilinear")[0]


def training_images(setup: Setup) -> Source:
    """A fixed part of the training split."""
    return in_memory(setup.dataset, "train").take(_order(setup)[: setup.train])


def trunk_images(setup: Setup) -> Source:
    """Other training images than the networks', where there are enough: for the judges."""
    order, wanted = _order(setup), setup.trunk[0]
    places = order[setup.train : setup.train + wanted]
    return in_memory(setup.dataset, "train").take(places if len(places) == wanted else order[-wanted:])


def _order(setup: Setup) -> Tensor:
    n = len(in_memory(setup.dataset, "train"))
    return torch.randperm(n, generator=rng(0, "training part", setup.dataset))


def test_images(setup: Setup, paradigm: str) -> Source:
    """What a network is asked about."""
    if setup.dataset == "cifar10" and paradigm == PUBLISHED:
        return in_memory("cifar10", "train", "lossless")
    return in_memory(setup.dataset, "test")


def targets_of(setup: Setup, paradigm: str) -> Source:
    """The first images of each class, as many of each."""
    source = test_images(setup, paradigm)
    labels = source.targets
    assert labels is not None
    each = -(-setup.targets // len(source.classes))
    places = torch.cat([(labels == c).nonzero()[:each, 0] for c in range(len(source.classes))])
    return source.take(places.sort().values[: setup.targets])


def natural_of(setup: Setup, paradigm: str) -> Tensor:
    """Images that are no targets, from the end of the split."""
    source = test_images(setup, paradigm)
    return next(source.take(range(len(source) - setup.natural, len(source))).batches(setup.natural)).inputs


def members(setup: Setup, folder: Path, *, tested: Collection[str]) -> tuple[list[Member], list[str]]:
    """Who judges: metrics without weights, three trunks trained on other images, an untrained one as control.

    A member that breaks an axiom on this data is left out, and named in the second list. They are the same for every cell
    of a data set, and made once a process.
    """
    found, refused = _members(setup, folder)
    for member in found:
        if isinstance(member.metric, DeepDistance):
            refuse_tested(member.metric.trunk, tested)
    return found, refused


_made: dict[Path, tuple[list[Member], list[str]]] = {}


def _members(setup: Setup, folder: Path) -> tuple[list[Member], list[str]]:
    if folder in _made:
        return _made[folder]
    source = trunk_images(setup)
    with held(folder / "trunks.lock"):
        trunks = self_trained(
            source, epochs=setup.trunk[1], seed=1, checkpoint=folder / "trunks", device="cpu"
        )
    found = [Member(name, metric, "weight-free") for name, metric in WEIGHT_FREE.items()]
    found += members_of(trunks)
    control = untrained(source, seed=1)
    found.append(Member(control.name, control, control.rung, control=True, fingerprint=control.fingerprint))
    shown = next(source.batches(8)).inputs
    refused = [member.name for member in found if check_axioms(member.metric, shown).failed]
    _made[folder] = [member for member in found if member.name not in refused], refused
    return _made[folder]
