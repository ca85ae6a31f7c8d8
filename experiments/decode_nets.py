"""The networks of the decoding study: built, trained by their method, and kept in the scratch folder.

A kept network is trained once, by whichever cell needs it first: MC-dropout reads the network of dropout, an ensemble that of the
standard cell and its own others, composition the frozen one that it learns from.
"""

import dataclasses as dc
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from decode_data import open_data
from decode_setup import (
    ALPHA,
    BETA,
    DECNN,
    DECODABLE,
    DEEPER,
    DROPOUT,
    DROPPED,
    LINEAR,
    MEMBERS,
    STANDARD,
    STRONG,
    STRONGER,
    Recipe,
    Setup,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from pellucid import zoo
from pellucid.data import Source
from pellucid.methods.decode import (
    Composition,
    Decodable,
    DecodeTerm,
    RecursiveTerm,
    WarmUp,
    conv_generator,
    example_activations,
    freeze,
    linear_adapters,
    make_decodable,
)
from pellucid.preprocess import normalize
from pellucid.rng import derive
from pellucid.sweep.locks import held
from pellucid.train import CrossEntropy, Term, fit, seeded

FROZEN_LINEAR = "linear"
FROZEN_RESIDUAL = {STRONG: "residual", STRONGER: "stronger residual"}
"""Folders of the residual networks that composition learns from."""
GRID = 7
MEAN_STD = {"mnist": ((0.1307,), (0.3081,)), "fashion-mnist": ((0.286,), (0.353,)), "digits": ((0.305,), (0.376,))}  # fmt: skip


def mlp(
    inputs: int, *, depth: int, width: int, classes: int = 10, dropout: float = 0.0, first: nn.Module | None = None
) -> nn.Sequential:  # fmt: skip
    """`depth` blocks of a linear layer, layer norm and ReLU, each read at `block{i}`; dropout ends a block."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(first=first or nn.Flatten())
    for i in range(depth):
        block = [nn.Linear(width if i else inputs, width), nn.LayerNorm(width), nn.ReLU()]
        parts[f"block{i + 1}"] = nn.Sequential(*block, *([nn.Dropout(dropout)] if dropout else []))
    parts["linear"] = nn.Linear(width, classes)
    return nn.Sequential(parts)


def residual(data: str, dropout: float = 0.0) -> nn.Module:
    """ResNet-8 of 8-16-32 channels; dropout drops channels behind every stage."""
    model = zoo.resnet(8, widths=(8, 16, 32), in_channels=1)
    if dropout:
        for stage in (model.layer1, model.layer2, model.layer3):
            stage.append(nn.Dropout2d(dropout))
    normalize(model, *MEAN_STD[data])
    return model


def built(setup: Setup, method: str, seed: int) -> nn.Module:
    """The classifier at its start, which depends on the seed alone, so that methods are paired by it."""
    side = 8 if setup.data == "digits" else 28
    dropout = DROPPED if method == DROPOUT else 0.0
    with seeded(seed, "weights"):
        if method == FROZEN_LINEAR:
            return nn.Sequential(nn.Flatten(), nn.Linear(side * side, 10))
        if setup.residual:
            return residual(setup.data, dropout)
        return mlp(side * side, depth=setup.depth, width=setup.width, dropout=dropout)


def decodable(setup: Setup, model: nn.Module, inputs: Tensor, *, seed: int) -> Decodable:
    """The classifier with one generator for all its blocks: linear layers, or convolutions for a residual network."""
    if not setup.residual:
        return make_decodable(model, setup.layers, inputs, seed=seed)
    activations = example_activations(model, setup.layers, inputs)
    grid = min(GRID, inputs.shape[2])
    with seeded(seed, "generator"):
        adapters = linear_adapters(activations, (setup.code, grid, grid))
        generator = conv_generator((setup.code, grid, grid), tuple(inputs.shape[1:]), width=8)
    return Decodable(model, setup.layers, generator, adapters=adapters)


def start(setup: Setup, method: str, inputs: Tensor, seed: int) -> nn.Module:
    """What a method trains: a classifier, or one with its generator."""
    model = built(setup, method, seed)
    return decodable(setup, model, inputs, seed=seed) if method in DECODABLE else model


def term_of(setup: Setup, method: str, made: Decodable, frozen: nn.Module | None) -> Term:
    """The loss term of a decodable method."""
    if method == DECNN:
        return DecodeTerm(made, beta=BETA)
    if method == DEEPER:
        return RecursiveTerm(made, depth=2, alpha=WarmUp(max(1, setup.epochs // 3), ALPHA), beta=BETA)
    demands = {} if frozen is None else {"agree": Composition(freeze(frozen))}
    return RecursiveTerm(made, depth=1, alpha=ALPHA, beta=BETA, demands=demands)


@dc.dataclass(frozen=True)
class Kept:
    """Trained networks of one part by method and seed, in a folder that any process may fill."""

    setup: Setup
    folder: Path

    def network(self, method: str, seed: int) -> nn.Module:
        """A trained network in evaluation mode; a `Decodable` where the method makes one."""
        inputs = next(open_data(self.setup).train.batches(2)).inputs
        model = start(self.setup, method, inputs, seed)
        file = self.file(method, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        with held(file.with_suffix(".lock")):
            if not file.exists():
                seconds = self.train(model, method, seed, checkpoint=file.with_suffix(""))
                tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
                save_file(tensors, file.with_suffix(".part"), {"seconds": f"{seconds:.1f}"})
                file.with_suffix(".part").replace(file)
                shutil.rmtree(file.with_suffix(""), ignore_errors=True)
        model.load_state_dict(load_file(file))
        return model.eval()

    @staticmethod
    def member_seeds(seed: int) -> list[int]:
        """Of an ensemble: the seed of the standard network first, then others."""
        return [seed, *(derive(seed, "member", number) for number in range(1, MEMBERS))]

    def file(self, method: str, seed: int) -> Path:
        return self.folder / "weights" / f"{method} {seed}.safetensors".replace(" ", "_")

    def seconds(self, method: str, seed: int) -> float:
        """What the training took, whoever did it."""
        with safe_open(self.file(method, seed), "pt") as file:
            return float(file.metadata()["seconds"])

    def frozen(self, method: str, seed: int) -> nn.Module | None:
        """The model that composition learns from: linear, or a residual network, on the same images."""
        if method == LINEAR:
            return self.network(FROZEN_LINEAR, seed)
        if folder := FROZEN_RESIDUAL.get(method):
            epochs = self.setup.frozen_epochs if method == STRONG else self.setup.stronger_epochs
            strong = dc.replace(self.setup, residual=True, epochs=epochs)
            return Kept(strong, self.folder / folder).network(STANDARD, seed)
        return None

    def train(self, model: nn.Module, method: str, seed: int, *, checkpoint: Path) -> float:
        """Train in place; seconds of training. Resumes from the checkpoint."""
        source = open_data(self.setup).train
        terms: dict[str, Term] = {}
        parameters = list(model.parameters())
        if isinstance(model, Decodable):
            terms["decode"] = term_of(self.setup, method, model, self.frozen(method, seed))
            model = model.model
        recipe = self.setup.recipe
        return train(
            model, source, recipe, terms=terms, parameters=parameters, seed=seed, checkpoint=checkpoint
        )


def train(
    model: nn.Module,
    source: Source,
    recipe: Recipe,
    *,
    terms: Mapping[str, Term] | None = None,
    weights: Mapping[str, float] | None = None,
    parameters: Sequence[nn.Parameter] = (),
    seed: int,
    checkpoint: Path | None = None,
) -> float:
    """Train a classifier in place by a recipe, with cross-entropy and these terms; seconds it took.

    Args:
        parameters: what is trained; by default those of the classifier.
    """
    optimizer = Adam(parameters or list(model.parameters()), recipe.lr)
    history = fit(
        model, source, optimizer, {"task": CrossEntropy(), **(terms or {})}, weights=weights, epochs=recipe.epochs,
        batch_size=recipe.batch_size, seed=seed, schedule=CosineAnnealingLR(optimizer, recipe.epochs), clip=5.0,
        checkpoint=checkpoint, device="cpu",
    )  # fmt: skip
    return float(history["seconds"].sum())
