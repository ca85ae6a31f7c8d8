"""One training of the dissection study: a network with ReLU or with competing units, and everything measured of it."""

import copy
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from dissection_data import Data, open_data
from dissection_describe import describe
from dissection_setup import Net, Setup
from selectivity_cell import flip_and_shift
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from pellucid import LWTA, kl_taps, swap_activations
from pellucid.data import Source
from pellucid.evals.sparsity import DENSE_EPS, sparsity
from pellucid.methods.lwta import draw_logits
from pellucid.preprocess import normalize
from pellucid.record import record
from pellucid.stats import Moments
from pellucid.sweep import Cell
from pellucid.train import CrossEntropy, fit, logits_of, seeded

CLIP = 5.0
BATCH = 250
SETTLING = 2_000  # training images


def run_cell(cell: Cell, scratch: Path, *, setup: Setup) -> dict[str, float]:
    """Train and measure one cell; the training resumes in `scratch`."""
    data, units = open_data(setup), int(cell.settings["units"])
    net = setup.nets[str(cell.settings["net"])]
    began = time.process_time()
    model, found = train(net, units, setup, source=data.train, seed=cell.seed, scratch=scratch)
    trained = time.process_time()
    found |= measure(model, data, setup, units=units, seed=cell.seed)
    found |= {"train_cpu": trained - began, "measure_cpu": time.process_time() - trained}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def build(net: Net, units: int, setup: Setup, seed: int) -> nn.Module:
    """The network at its start: weights depend on the replicate alone, so ReLU and competing networks are pairs."""
    with seeded(seed, "weights"):
        model = net.build(setup.channels, setup.classes)
    if units > 1:
        side = 28 if setup.dataset == "fashion-mnist" else 32
        images = torch.zeros(1, setup.channels, side, side)
        swap_activations(model, nn.ReLU, lambda: LWTA(units), inputs=images)
    elif not net.transformer:
        model.to(memory_format=torch.channels_last)  # a third faster with ReLU, no faster with competition
    normalize(model, *setup.mean_std)
    return model


def train(
    net: Net, units: int, setup: Setup, *, source: Source, seed: int, scratch: Path
) -> tuple[nn.Module, dict[str, float]]:
    """Train a network. The divergence of winners has weight 0, as in the released runs, and is measured later."""
    model = build(net, units, setup, seed)
    start = untrained(model, open_data(setup), setup) if units == 1 and setup.dataset == "shapes" else {}
    optimizer, schedule = optimizer_of(net, model, setup)
    history = fit(
        model, source, optimizer, {"task": CrossEntropy()}, epochs=setup.epochs, batch_size=setup.batch_size,
        seed=seed, prepare=flip_and_shift if setup.augment else None, schedule=schedule,
        schedule_by="step" if net.transformer else "epoch", clip=CLIP, checkpoint=scratch / "training",
        device="cpu",
    )  # fmt: skip
    last = history.last
    return model, {"train_cross_entropy": last["task"], "train_accuracy": last["accuracy"], **start}


def untrained(model: nn.Module, data: Data, setup: Setup) -> dict[str, float]:
    """What descriptions of the initial weights are worth: much in an image is plain to any filter."""
    assert data.probe is not None and data.held is not None
    found = describe(model, data.probe, data.held, listed=setup.listed)
    kept = (
        "quality",
        "ceiling",
        "described",
        "right",
        "auroc",
        "auprc",
        "simulated",
        "quality_by_correlation",
        "right_by_correlation",
    )
    return {f"untrained_{name}": found[name] for name in kept if name in found}


def optimizer_of(net: Net, model: nn.Module, setup: Setup) -> tuple[Optimizer, LRScheduler]:
    """SGD with a cosine for residual networks, AdamW with one warmed-up cycle for transformers."""
    if not net.transformer:
        sgd = SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
        return sgd, CosineAnnealingLR(sgd, setup.epochs)
    adam = AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    steps = setup.epochs * -(-setup.train // setup.batch_size)
    return adam, OneCycleLR(adam, 2e-3, total_steps=steps + 1, pct_start=0.1)


def measure(model: nn.Module, data: Data, setup: Setup, *, units: int, seed: int) -> dict[str, float]:
    """Accuracy by every way of deciding, sparsity by layer, and the quality of descriptions where truth is known."""
    found = accuracies(model, data.test, units=units, seed=seed)
    few = data.test.take(torch.arange(min(setup.sparse, len(data.test))))
    found |= shares(model, few, units=units)
    if units > 1:
        found |= settled(model, data)
    if data.probe is not None and data.held is not None:
        found |= describe(model, data.probe, data.held, listed=setup.listed)
    return found


@torch.no_grad()
def accuracies(model: nn.Module, test: Source, *, units: int, seed: int) -> dict[str, float]:
    """Accuracy by the strongest unit (`accuracy`), by one draw, and by the mean logits of six (`accuracy_six`).

    A network without competition has one way of deciding. `changed`: predictions that differ between two single draws.
    """
    model.eval()
    hits: dict[str, list[Tensor]] = {"accuracy": [], "accuracy_one": [], "accuracy_six": [], "changed": []}
    for batch in test.batches(BATCH):
        assert batch.targets is not None
        hits["accuracy"].append(logits_of(model(batch.inputs)).argmax(1) == batch.targets)
        if units > 1:
            draws = draw_logits(model, batch.inputs, samples=6, seed=seed + batch.number)
            said = draws.argmax(2)
            hits["accuracy_one"].append((said == batch.targets).double().mean(0))
            hits["accuracy_six"].append(draws.mean(0).argmax(1) == batch.targets)
            hits["changed"].append(said[0] != said[1])
    found = {name: float(torch.cat(parts).double().mean()) for name, parts in hits.items() if parts}
    return {"accuracy_one": found["accuracy"], "accuracy_six": found["accuracy"], "changed": 0.0, **found}


@torch.no_grad()
def settled(model: nn.Module, data: Data) -> dict[str, float]:
    """Accuracy by the strongest unit once batch norms have seen that mode: in training they saw draws."""
    other = copy.deepcopy(model).eval()
    norms = [module for module in other.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return {}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for batch in data.train.take(torch.arange(min(SETTLING, len(data.train)))).batches(BATCH):
        other(batch.inputs)
    other.eval()
    hits = [logits_of(other(b.inputs)).argmax(1) == b.targets for b in data.test.batches(BATCH)]
    return {"accuracy_settled": float(torch.cat(hits).double().mean())}


def shares(model: nn.Module, few: Source, *, units: int) -> dict[str, float]:
    """Shares of units that are on, by layer: `active` as the network has them (exact zeros of competing layers,
    1e-4 elsewhere), `active_eps` above 1e-4 everywhere, so that both kinds are counted alike."""
    found: dict[str, float] = {}
    layers = sparsity(model, few, batch_size=128)
    alike = layers if units == 1 else sparsity(model, few, eps=DENSE_EPS, batch_size=128)
    for exact, coarse in zip(layers, alike, strict=True):
        row = {
            "active": exact.active, "active_eps": coarse.active, "image_active": exact.image_active,
            "usage": exact.usage_entropy, "dead": exact.dead / exact.units, "hoyer": exact.hoyer,
            "top_energy": exact.top_energy, "layer_units": exact.units, "layer_positions": exact.positions,
        }  # fmt: skip
        found |= {f"{name}.{exact.layer}": float(value) for name, value in row.items()}
    for name in ("active", "active_eps", "image_active", "usage", "dead", "hoyer"):
        values = [value for key, value in found.items() if key.startswith(f"{name}.") and value == value]
        if values:
            found |= {
                f"{name}_mean": sum(values) / len(values),
                f"{name}_low": min(values),
                f"{name}_high": max(values),
            }
    return found | (divergences(model, few) if units > 1 else {})


def divergences(model: nn.Module, few: Source) -> dict[str, float]:
    """KL of winners from uniform by layer, in nats, in [0, log U]."""
    taps = kl_taps(model, next(few.batches(1)).inputs)
    stats: Mapping[str, Any] = {name: {"kl": Moments()} for name in taps}
    seen = record(model, few, taps, stats, batch_size=128)
    found = {name.partition(".kl")[0]: float(seen[name]["kl"].mean.mean()) for name in taps}
    mean = sum(found.values()) / len(found)
    return {f"kl.{name}": value for name, value in found.items()} | {"kl_mean": mean}
