"""The networks of the invariance study: published ones are loaded, the others trained once and kept in the scratch folder."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from invariance_data import data_root, in_memory, training_images
from invariance_setup import ARCHITECTURES, CONTRASTIVE, ON_JPEG, PUBLISHED, Setup, paradigm
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from pellucid.attack import L2, Prepare
from pellucid.data import Batch, Source
from pellucid.evals.attack import attack_curve
from pellucid.evals.classify import accuracy
from pellucid.evals.probe import linear_probe
from pellucid.methods.invert import Representation
from pellucid.methods.paradigms import linear_readout
from pellucid.preprocess import normalize
from pellucid.sweep import Cell
from pellucid.sweep.locks import held
from pellucid.train import fit, seeded
from pellucid.weights import apply_weights, load_weights
from pellucid.zoo import CIFAR_RESNET_MEAN, CIFAR_RESNET_STD

FILES = {
    ("mnist", "robust_small"): "weights/robust_small/mnist.pth",
    ("fashion-mnist", "robust_small"): "weights/robust_small/fashion_mnist.pth",
    ("cifar10", "resnet20"): "weights/cifar10_resnet/resnet20-12fca82f.th",
    ("cifar10", "resnet32"): "weights/cifar10_resnet/resnet32-d509ac18.th",
}


def built(setup: Setup, architecture: str, seed: int) -> nn.Module:
    """A network at its start: the published weights on CIFAR-10, else first weights that the seed gives.

    Channels last, which takes a quarter off a step of a narrow residual network; numbers differ by rounding alone.
    """
    with seeded(seed, "weights"):
        model = ARCHITECTURES[architecture].build().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]  # torch's stub lacks it
    if setup.dataset == "cifar10":
        apply_weights(model, load_weights(data_root() / FILES["cifar10", architecture]))
        normalize(model, CIFAR_RESNET_MEAN, CIFAR_RESNET_STD)
    return model


def network(
    setup: Setup, architecture: str, name: str, *, replicate: int, seed: int, folder: Path
) -> nn.Module:
    """A network of the grid, in evaluation mode: from the scratch folder, or trained now and put there."""
    model = built(setup, architecture, seed)
    if name in (PUBLISHED, ON_JPEG):
        if setup.dataset != "cifar10":
            apply_weights(model, load_weights(data_root() / FILES[setup.dataset, architecture]))
        return model.eval()
    kept = folder / "weights" / f"{architecture} {name} {replicate}.safetensors".replace(" ", "_")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with held(kept.with_suffix(".lock")):
        if not kept.exists():
            train(model, setup, architecture, name, seed=seed, checkpoint=kept.with_suffix(""))
            part = kept.with_suffix(".part")
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, part)
            part.replace(kept)
    model.load_state_dict(load_file(kept))
    return model.eval()


def folded(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, each batch norm folded into the convolution before it: the same function, a third cheaper.

    Searches and attacks use it. Gates are decided by the network itself, so that V7 would show a copy that differs.
    """
    found = copy.deepcopy(model).eval()
    for module in [*found.modules()]:
        parts = dict(module.named_children())
        for name, part in parts.items():
            before = parts.get(name.replace("bn", "conv"))
            if isinstance(part, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                setattr(module, name.replace("bn", "conv"), fuse_conv_bn_eval(before, part))
                setattr(module, name, nn.Identity())
    return found.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]  # torch's stub lacks it


def on_copy(prepare: Prepare | None) -> Prepare | None:
    """The same preparation with attacks on the folded copy: an attack sees the network in evaluation mode anyway."""
    if prepare is None:
        return None

    def prepared(model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        return prepare(folded(model), batch, generator)

    return prepared


def train(
    model: nn.Module, setup: Setup, architecture: str, name: str, *, seed: int, checkpoint: Path
) -> None:
    """Train in place by the network's paradigm; without labels, a linear readout then takes the classifier's place."""
    how, normed = paradigm(setup, architecture, name, seed=seed), architecture != "robust_small"
    source, epochs = training_images(setup), setup.epochs[name]
    tuning = setup.dataset == "cifar10"
    parameters = how.parameters(model)
    optimizer = SGD(parameters, 0.01, 0.9, weight_decay=5e-4) if tuning else AdamW(parameters, 2e-3)
    fit(
        model, source, optimizer, how.terms, prepare=on_copy(how.prepare) if normed else how.prepare, epochs=epochs,
        batch_size=setup.batch_size,
        seed=seed, schedule=CosineAnnealingLR(optimizer, epochs), clip=5.0, checkpoint=checkpoint, device="cpu",
    )  # fmt: skip
    if name in CONTRASTIVE:
        arch = ARCHITECTURES[architecture]
        features, targets = features_of(model, architecture, source)
        head = linear_readout(features, targets, classes=len(source.classes))
        model.get_submodule(arch.head).load_state_dict(head.state_dict())


def features_of(model: nn.Module, architecture: str, source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels of all images of a source."""
    g, targets = Representation(model, ARCHITECTURES[architecture].features), source.targets
    assert targets is not None
    return torch.cat([g.values(batch.inputs, batch_size=250) for batch in source.batches(250)]), targets


def run_training(cell: Cell, scratch: Path, *, setup: Setup, folder: Path) -> Mapping[str, float]:  # noqa: ARG001
    """A training cell: the network is trained and kept; its accuracy, clean and attacked, and that of a linear probe."""
    architecture, name = str(cell.settings["architecture"]), str(cell.settings["paradigm"])
    model = network(setup, architecture, name, replicate=cell.replicate, seed=cell.seed, folder=folder)
    test = in_memory(setup.dataset, "test")
    few = test.take(range(min(setup.test, len(test))))
    clean = accuracy(model, few, batch_size=250, device="cpu")
    curve = attack_curve(
        model, few.take(range(setup.attacked)), [setup.radius], ball=L2, steps=10, checked=20, batch_size=100
    )
    inside = training_images(setup).take(range(min(setup.probed, setup.train)))
    x, y = features_of(model, architecture, inside)
    a, b = features_of(model, architecture, few)
    probe = linear_probe(x, y, a, b, seed=0, strengths=(0.01,), draws=200)
    return {
        "accuracy": clean.accuracy, "accuracy_low": clean.lo, "accuracy_high": clean.hi, "attacked": curve.accuracy[-1],
        "probe": probe.score, "probe_low": probe.lo, "probe_high": probe.hi,
    }  # fmt: skip
