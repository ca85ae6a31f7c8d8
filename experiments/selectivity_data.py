"""Data of the selectivity study: what is trained on, what is measured on, and its corrupted images, made once.

Real data is found through PELLUCID_DATA alone. The test split chooses nothing: every setting was fixed beforehand.
"""

import dataclasses as dc
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pellucid.data import Source, open_source
from pellucid.evals.corrupt import corrupt
from pellucid.evals.corrupt.severities import TYPES
from pellucid.rng import rng
from pellucid.sweep.locks import held

SEVERITIES = (1, 3, 5)


@dc.dataclass(frozen=True)
class Data:
    """One data set: what is trained on, what is measured on, the first of it for dear measures, its corruptions."""

    train: Source
    test: Source
    corrupted: Mapping[tuple[str, int], Tensor]  # (type, severity) -> bytes of `corrupted_of`, image by image
    corrupted_of: Source


def scratch_root() -> Path:
    """Where caches, claims and unfinished trainings lie: PELLUCID_SCRATCH, or the system's temporary folder."""
    return Path(os.environ.get("PELLUCID_SCRATCH") or tempfile.gettempdir()) / "pellucid-selectivity"


def data_root() -> Path:
    """The staged data; exits with what to do without it."""
    root = os.environ.get("PELLUCID_DATA")
    if not root or not Path(root).is_dir():
        raise SystemExit("set PELLUCID_DATA to the folder that holds cifar10/, FashionMNIST/ and frost/")
    return Path(root)


@cache
def in_memory(dataset: str, split: str) -> Source:
    """A split, decoded once a process, as bytes."""
    root = data_root() if dataset != "digits" else Path()
    spec = {
        "cifar10": f"cifar10:{root / 'cifar10'}?images=jpeg",
        "fashion-mnist": f"fashion-mnist:{root}",
        "digits": "digits",
    }[dataset]
    return open_source(spec, split=split)


def open_data(dataset: str, *, train: int, corrupted: int, replicate: int, seed: int) -> Data:
    """The data of one cell. Digits are split anew in each replicate (600 / 1,197); the others have a fixed part."""
    if dataset == "digits":
        whole = in_memory("digits", "all")
        inside, outside = digits_split(replicate, train, seed=seed)
        found = corrupted_images(dataset, len(whole))
        kept = {key: images[outside[:corrupted]] for key, images in found.items()}
        return Data(whole.take(inside), whole.take(outside), kept, whole.take(outside[:corrupted]))
    source, test = in_memory(dataset, "train"), in_memory(dataset, "test")
    chosen = torch.randperm(len(source), generator=rng(0, "training part", dataset))[:train].sort().values
    probe = test.take(torch.arange(corrupted))
    return Data(source.take(chosen), test, corrupted_images(dataset, corrupted), probe)


def digits_split(replicate: int, train: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Places of the digits that a replicate trains on, and of the others in rising order."""
    order = torch.randperm(1797, generator=rng(seed, "digits split", replicate))
    return order[:train], order[train:].sort().values


def digits_test_places(replicate: int) -> Tensor:
    """Which digits a replicate's kept responses are of."""
    return digits_split(replicate, 600)[1]


@cache
def corrupted_images(dataset: str, n: int) -> dict[tuple[str, int], Tensor]:
    """Every corruption of the first n images, as bytes, kept in the scratch folder for all processes."""
    folder = scratch_root() / "corrupted"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{dataset}-{n}.npz"
    frost = None if dataset == "digits" and not os.environ.get("PELLUCID_DATA") else data_root() / "frost"
    with held(file.with_suffix(".lock")):
        if not file.exists():
            batch = next(in_memory(dataset, "all" if dataset == "digits" else "test").batches(n))
            made = {
                f"{name}:{severity}": _bytes(
                    corrupt(batch.inputs, name, severity, index=torch.arange(n), frost_textures=frost)
                )
                for name in TYPES
                if name != "frost" or frost is not None
                for severity in SEVERITIES
            }
            part = file.with_suffix(".part.npz")
            np.savez(part, **made)
            part.replace(file)
    with np.load(file) as kept:
        return {(k.split(":")[0], int(k.split(":")[1])): torch.from_numpy(kept[k]) for k in kept.files}


def _bytes(images: Tensor) -> np.ndarray:
    return (images * 255).round().to(torch.uint8).numpy()
