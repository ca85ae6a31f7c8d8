"""One cell of the Bort study: train one network and return numbers.

A tuning cell tries one setting on few images and gives the accuracy on the validation part. A final cell takes the
setting that came out best among the tuning cells of its arm, trains on everything, and measures.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from bort_data import Data, open_data
from bort_measures import accuracy, defects, measures
from bort_setup import ARMS, GRIDS, Choice, Net, Setup
from bort_sparse import sparse_gradient
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from pellucid._checks import ConfigError, NumericError
from pellucid.data import Source
from pellucid.methods.bort import Orthogonality, constrain, matrices, orthogonality
from pellucid.preprocess import normalize
from pellucid.sweep import Cell, read_cells
from pellucid.train import CrossEntropy, fit, seeded

TUNING, FINAL, TUNED = "tuning", "final", "tuned"


def run_cell(cell: Cell, scratch: Path, *, setup: Setup, table: Path, settings: int) -> dict[str, float]:
    """Train and measure one cell. `table` holds the tuning cells, `settings` is how many each arm has."""
    data, net = open_data(setup), setup.nets[str(cell.settings["net"])]
    if cell.settings["phase"] == TUNING:
        choice = GRIDS[str(cell.settings["optimizer"])].choices(str(cell.settings["arm"]))[
            int(cell.settings["setting"])
        ]
        return described(choice) | tune(cell, scratch, setup, net=net, choice=choice, data=data)
    choice = best_choice(table, cell, settings=settings)
    model, before, seconds = train(
        cell, scratch, setup, net=net, choice=choice, source=data.train, epochs=setup.epochs
    )
    found = described(choice) | {"train_seconds": seconds} | defects(before, pulled(model, net))
    return found | measures(model, data.test, setup, layer=net.layer, seed=cell.seed, scratch=scratch)


def described(choice: Choice) -> dict[str, float]:
    return {"lr": choice.lr, "weight_decay": choice.weight_decay, "strength": choice.strength}


def tune(
    cell: Cell, scratch: Path, setup: Setup, *, net: Net, choice: Choice, data: Data
) -> dict[str, float]:
    """Accuracy on the validation part after a short training; 0 where it diverged."""
    images, epochs = net.tuned_on
    part = data.train.take(torch.arange(min(images, len(data.train))))
    try:
        model, before, _ = train(cell, scratch, setup, net=net, choice=choice, source=part, epochs=epochs)
    except NumericError:
        return {"validation": 0.0, "diverged": 1.0}
    found, _ = accuracy(model, data.validation)
    return {"validation": found} | defects(before, pulled(model, net))


def best_choice(table: Path, cell: Cell, *, settings: int) -> Choice:
    """The setting of this arm with the best validation accuracy, the first of equals.

    Raises:
        ConfigError: a tuning cell of the arm is missing.
    """
    arm = {key: str(cell.settings[key]) for key in ("net", "optimizer", "arm")}
    tried = {
        int(row["setting"]): float(row["validation"])
        for row in read_cells(table)
        if row["phase"] == TUNING and row["status"] == "done" and all(row[k] == v for k, v in arm.items())
    }
    if len(tried) < settings:
        raise ConfigError(
            f"{arm} has {len(tried)} of {settings} tuning cells: a final cell takes its setting from all of them"
        )
    best = max(sorted(tried), key=lambda setting: tried[setting])
    return GRIDS[arm["optimizer"]].choices(arm["arm"])[best]


def build_model(net: Net, seed: int) -> nn.Module:
    """The network at its start, which depends on the seed alone, so arms are paired by it."""
    with seeded(seed, "weights"):
        model = net.build()
    if net.mean_std is not None:
        normalize(model, *net.mean_std)
    return model


def train(
    cell: Cell, scratch: Path, setup: Setup, *, net: Net, choice: Choice, source: Source, epochs: int
) -> tuple[nn.Module, Mapping[str, Orthogonality], float]:
    """The trained network, the state of its matrices before, and the seconds it took. Resumes in `scratch`."""
    model = build_model(net, cell.seed)
    before = pulled(model, net)
    model.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    optimizer = optimizer_of(str(cell.settings["optimizer"]), model, choice)
    if every := ARMS[str(cell.settings["arm"])]:
        constrain(optimizer, chosen(model, net), strength=choice.strength, every=every)
    steps = epochs * math.ceil(len(source) / setup.batch_size)
    with sparse_gradient(model, net.sparse):
        history = fit(
            model,
            source,
            optimizer,
            {"task": CrossEntropy()},
            epochs=epochs,
            batch_size=setup.batch_size,
            seed=cell.seed,
            schedule=CosineAnnealingLR(optimizer, steps),
            schedule_by="step",
            checkpoint=scratch / "training",
            device="cpu",
        )
    return model.to(memory_format=torch.contiguous_format), before, float(history["seconds"].sum())


def optimizer_of(name: str, model: nn.Module, choice: Choice) -> Optimizer:
    if name == "adamw":
        return AdamW(model.parameters(), choice.lr, weight_decay=choice.weight_decay)
    return SGD(model.parameters(), choice.lr, 0.9, weight_decay=choice.weight_decay)


def chosen(model: nn.Module, net: Net):
    """The matrices that the constraint pulls: all but the head."""
    return matrices(model, blocks=net.blocks or None)


def pulled(model: nn.Module, net: Net) -> dict[str, Orthogonality]:
    return orthogonality(chosen(model, net))
