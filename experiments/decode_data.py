"""Data of the decoding study: training, validation and test images, what is outside of them, and corrupted ones.

Real data is found through PELLUCID_DATA alone; digits need none.
"""

import dataclasses as dc
import os
import tempfile
from functools import cache
from pathlib import Path

import torch
from decode_setup import Setup
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid.data import Source, array_source, open_source
from pellucid.evals.corrupt import corrupt
from pellucid.rng import rng
from pellucid.sweep.locks import held

OTHER, CIFAR, NOISE, INVERTED, PAIRS = "other", "cifar", "noise", "inverted", "pairs"
NEAR = (PAIRS,)


@dc.dataclass(frozen=True)
class Data:
    """One data set: the training part, the validation part beside it, and the first test images."""

    train: Source
    validation: Source
    test: Source


def scratch_root() -> Path:
    """Where unfinished trainings, weights and pictures lie: PELLUCID_SCRATCH, or the system's temporary folder."""
    return Path(os.environ.get("PELLUCID_SCRATCH") or tempfile.gettempdir()) / "pellucid-decode"


def data_root() -> Path:
    """The staged data; exits with what to do without it."""
    root = os.environ.get("PELLUCID_DATA")
    if not root or not Path(root).is_dir():
        raise SystemExit(
            "set PELLUCID_DATA to the folder that holds MNIST/, FashionMNIST/ and compas/, or try --preset smoke"
        )
    return Path(root)


@cache
def in_memory(data: str, split: str) -> Source:
    """A split, decoded once a process."""
    if data == "digits":
        return open_source("digits", split=split)
    if data == CIFAR:
        spec = f"cifar10:{data_root() / 'cifar-10-batches-py'}"
        return open_source(spec, split=split, size=28, channels="grey")
    return open_source(f"{data}:{data_root()}", split=split)


def open_data(setup: Setup) -> Data:
    """The parts are drawn once for a data set: replicates differ by initial weights and order alone."""
    whole, test = in_memory(setup.data, "train"), in_memory(setup.data, "test")
    order = torch.randperm(len(whole), generator=rng(0, "training part", setup.data))
    validation, train = order[: setup.validation], order[setup.validation :][: setup.train]
    return Data(
        whole.take(train.sort().values), whole.take(validation.sort().values), test.take(range(min(setup.test, len(test))))
    )  # fmt: skip


def images_of(source: Source) -> Tensor:
    """All images of a source as one tensor."""
    return torch.cat([batch.inputs for batch in source.batches(1000)])


@cache
def outside_sets(setup: Setup) -> dict[str, Source]:
    """What networks are told from, by name; nothing is chosen or fitted on any of these.

    `pairs`, the mean of two test images of different classes, is near; the others are far.
    """
    test = open_data(setup).test
    n = min(setup.outside, len(test))
    images, targets = images_of(test), test.targets
    assert targets is not None
    noise = torch.rand((n, *images.shape[1:]), generator=rng(0, "noise"))
    order = torch.randperm(len(images), generator=rng(0, "pairs"))
    partner = order.roll(1)
    apart = targets[order] != targets[partner]
    pairs = ((images[order] + images[partner]) / 2)[apart][:n]
    found = {NOISE: noise, INVERTED: 1 - images[:n], PAIRS: pairs}
    if setup.data != "digits":
        found = {OTHER: in_memory(setup.other, "test"), CIFAR: in_memory(CIFAR, "test"), **found}
    return {
        name: (array_source(part, name=name) if isinstance(part, Tensor) else part.take(range(min(n, len(part)))))
        for name, part in found.items()
    }  # fmt: skip


def corrupted_images(setup: Setup, folder: Path) -> dict[str, Tensor]:
    """The first test images under every corruption; computed once and kept in the folder."""
    file = folder / f"corrupted_{setup.severity}_{setup.corrupted}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with held(file.with_suffix(".lock")):
        if not file.exists():
            clean = images_of(open_data(setup).test.take(range(setup.corrupted)))
            made = {name: corrupt(clean, name, setup.severity).contiguous() for name in setup.corruptions}
            save_file(made, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
    return load_file(file)
