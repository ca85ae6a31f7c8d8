"""What is fixed in the selectivity study: the setup of each data set at each preset, and how arms depart from it.

Hyperparameters come from the method's specification and from the usual recipes; none was chosen on a test split.
"""

import dataclasses as dc
import functools
from collections.abc import Callable, Mapping

from torch import nn

from pellucid import zoo


@dc.dataclass(frozen=True)
class Setup:
    """What is fixed for all cells of a data set."""

    dataset: str
    build: Callable[[], nn.Module]
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None
    train: int
    epochs: int
    batch_size: int
    lr: float
    radii: tuple[float, ...]
    test: int = 10_000
    corrupted: int = 1_000
    attacked: int = 500
    margins: int = 128
    gradients: int = 100
    augment: bool = False
    probes: bool = False


@dc.dataclass(frozen=True)
class Arm:
    """How an arm departs from the setup; every arm but these is trained alike."""

    permuted: bool = False
    activation: bool = False
    leaky: bool = False
    only: int | None = None  # the penalty sits in this third of depth
    epochs: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    label_smoothing: float = 0.0
    prepare: str = ""


ARMS: Mapping[str, Arm] = {
    "class": Arm(),
    "permuted": Arm(permuted=True),
    "activation": Arm(activation=True),
    "leaky": Arm(leaky=True),
    "first third": Arm(only=0),
    "middle third": Arm(only=1),
    "last third": Arm(only=2),
    "twice the epochs": Arm(epochs=2),
    "lr / 3": Arm(lr=1 / 3),
    "lr x 3": Arm(lr=3),
    "weight decay / 4": Arm(weight_decay=0.25),
    "weight decay x 4": Arm(weight_decay=4),
    "label smoothing": Arm(label_smoothing=0.1),
    "corrupted training": Arm(prepare="corruption"),
    "adversarial training": Arm(prepare="attack"),
}


def setups(preset: str) -> dict[str, Setup]:
    """The three data sets at a preset. Hyperparameters come from the specification, none from a test split."""
    widths, depth, part, epochs = (16, 32, 64), 20, 50_000, 60
    if preset != "full":
        widths, depth, part, epochs = (8, 16, 32), 8, 10_000, 15
    net = functools.partial(zoo.resnet, depth, widths=widths)
    cifar = Setup(
        "cifar10", net, (zoo.CIFAR_RESNET_MEAN, zoo.CIFAR_RESNET_STD), part, epochs, 128, 0.1,
        (1 / 255, 2 / 255, 4 / 255, 8 / 255), augment=True,
    )  # fmt: skip
    fashion = Setup(
        "fashion-mnist", functools.partial(net, in_channels=1), ((0.286,), (0.353,)), part, epochs, 128, 0.1,
        (4 / 255, 8 / 255, 16 / 255, 32 / 255),
    )  # fmt: skip
    digits = Setup(
        "digits", zoo.conv_net, None, 600, 25, 100, 0.05, (0.05, 0.1, 0.2, 0.3), corrupted=1_197, probes=True
    )
    found = {setup.dataset: setup for setup in (cifar, fashion, digits)}
    if preset != "smoke":
        return found
    return {
        name: dc.replace(
            s, train=300, epochs=1, test=300, corrupted=200, attacked=40, margins=16, gradients=10
        )
        for name, s in found.items()
    }
