"""What is fixed in the study of Bort: networks, data, the settings that every arm is tuned over, and their cost.

Every arm is tuned over six settings: two learning rates, and three weight decays without the constraint or three
strengths with it. The constrained arms have no weight decay, which would move their target. The smallest strength spends
a pull budget of at least 5 in a whole training at the smaller learning rate; the largest keeps lr x strength x every
below 0.5.

Cost of a cell of the default preset in CPU seconds (AMD EPYC with AVX-512, one thread, both cores busy): CIFAR-10 plain 235 + 55 to
measure, tuning 23; residual 70, tuning 12; transformer 50, tuning 8. MNIST plain 55 + 25, tuning 12; residual 55, tuning 7. In all
about 8,000, so 67 minutes for two processes.
"""

import dataclasses as dc
import functools
from collections.abc import Callable, Mapping
from itertools import product

from torch import nn

from pellucid import zoo

ARMS: Mapping[str, int] = {"plain": 0, "every 1": 1, "every 4": 4}
"""Each matrix is pulled once in so many steps; 0 is never."""

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)


@dc.dataclass(frozen=True)
class Choice:
    """One setting of an arm."""

    lr: float
    weight_decay: float
    strength: float


@dc.dataclass(frozen=True)
class Grid:
    """The levels that arms of one optimizer are tuned over."""

    lrs: tuple[float, float]
    decays: tuple[float, float, float]
    strengths: tuple[float, float, float]

    def choices(self, arm: str) -> list[Choice]:
        if ARMS[arm]:
            return [Choice(lr, 0.0, strength) for lr, strength in product(self.lrs, self.strengths)]
        return [Choice(lr, decay, 0.0) for lr, decay in product(self.lrs, self.decays)]


GRIDS: Mapping[str, Grid] = {
    "adamw": Grid((1e-3, 3e-3), (0.0, 0.01, 0.1), (8.0, 16.0, 32.0)),
    "sgd": Grid((0.01, 0.05), (0.0, 5e-4, 5e-3), (0.7, 1.3, 2.4)),
}


@dc.dataclass(frozen=True)
class Net:
    """A network of the study and what its tuning may cost.

    Args:
        tuned_on: training images and epochs of a tuning cell.
        layer: the deepest layer that can be run backwards; "" where only accuracy and defect are measured.
        mean_std: what the network normalises by; the traceable ones take images as they are.
        blocks: matrices that one weight is cut into, by layer.
        sparse: the convolution whose gradient is zero almost everywhere, if leaving out the zeros pays (`bort_sparse`).
    """

    build: Callable[[], nn.Module]
    tuned_on: tuple[int, int]
    layer: str = ""
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    blocks: Mapping[str, int] = dc.field(default_factory=dict[str, int])
    sparse: str = ""


@dc.dataclass(frozen=True)
class Setup:
    """What is fixed for all cells of a data set.

    Args:
        validation: training images, none of those trained on, that settings are chosen by.
        test: test images for accuracy; `rebuilt`, `searched` (by gradients), `watched` (deletion and insertion) and
            `edited` are the first so many of them for each measure.
        stages: into how many steps the pixels are cut for deletion and insertion.
    """

    dataset: str
    nets: Mapping[str, Net]
    train: int
    epochs: int
    batch_size: int = 64
    validation: int = 2_000
    test: int = 10_000
    rebuilt: int = 200
    searched: int = 16
    search_steps: int = 100
    watched: int = 60
    stages: int = 28
    edited: int = 200


def setups(preset: str) -> dict[str, Setup]:
    """The data sets at a preset; digits are there for trying out without staged data."""
    found = {"mnist": mnist(preset == "full"), "cifar10": cifar(preset == "full")}
    if preset != "smoke":
        return found
    found = {"digits": digits(), **found}
    return {name: shrunk(setup) for name, setup in found.items()}


def mnist(full: bool) -> Setup:
    """MNIST, at its full size or at 10,000 training images."""
    scale = {"mean_std": (MNIST_MEAN, MNIST_STD)}
    nets = {
        "plain": Net(zoo.traceable_net, (4_000, 5), "act3"),
        "residual": Net(residual(8, (8, 16, 32), 1), (4_000, 3), **scale),
    }
    if full:
        nets = {
            "plain": Net(functools.partial(zoo.traceable_net, widths=(8, 24, 288)), (10_000, 10), "act3"),
            "residual": Net(residual(20, (16, 32, 64), 1), (10_000, 10), **scale),
        }
    return Setup("mnist", nets, 58_000 if full else 10_000, 30 if full else 10)


def cifar(full: bool) -> Setup:
    """CIFAR-10 from JPEG files, at its full size or at 10,000 training images."""
    scale = {"mean_std": (zoo.CIFAR_RESNET_MEAN, zoo.CIFAR_RESNET_STD)}
    cut = {"blocks.*.attn.qkv": 3}
    small = functools.partial(zoo.vit, patch=8, dim=64, depth=4)
    nets = {
        "plain": Net(zoo.traceable_cifar, (2_000, 4), "act3", sparse="conv3"),
        "residual": Net(residual(8, (8, 16, 32), 3), (4_000, 4), **scale),
        "vit": Net(small, (4_000, 4), blocks=cut, **scale),
    }
    if full:
        wide = functools.partial(zoo.traceable_net, in_channels=3, widths=(24, 64, 512))
        tiny = functools.partial(zoo.vit, patch=4, dim=192, depth=9, heads=3, mlp_ratio=4)
        nets = {
            "plain": Net(wide, (10_000, 10), "act3", sparse="conv3"),
            "residual": Net(residual(20, (16, 32, 64), 3), (10_000, 10), **scale),
            "vit": Net(tiny, (10_000, 10), blocks=cut, **scale),
        }
    return Setup(
        "cifar10", nets, 48_000 if full else 10_000, 30 if full else 10, rebuilt=64, watched=24, stages=32, edited=100
    )  # fmt: skip


def digits() -> Setup:
    """scikit-learn's digits, 8 x 8: they come with every installation."""
    net = functools.partial(zoo.traceable_net, widths=(9, 24, 144), kernels=(3, 2, 3))
    return Setup("digits", {"plain": Net(net, (300, 1), "act3")}, 900, 30, validation=200, test=600)


def residual(depth: int, widths: tuple[int, int, int], channels: int) -> Callable[[], nn.Module]:
    return functools.partial(zoo.resnet, depth, widths=widths, in_channels=channels)


def shrunk(setup: Setup) -> Setup:
    """Everything runs and nothing can be learnt from it: for the smoke preset."""
    nets = {name: dc.replace(net, tuned_on=(256, 1)) for name, net in setup.nets.items()}
    return dc.replace(
        setup, nets=nets, train=512, epochs=1, validation=100, test=300, rebuilt=8, searched=2, search_steps=5, watched=3,
        stages=8, edited=8,
    )  # fmt: skip
