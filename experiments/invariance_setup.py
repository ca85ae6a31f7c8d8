"""What is fixed in the invariance study: data sets, networks and how each is trained, searches, presets.

Hyperparameters come from the method's specification and from the usual recipes; none was chosen on the test images, which
are the targets.
"""

import dataclasses as dc
import functools
from collections.abc import Callable, Mapping

from nets import robust_small
from torch import nn

from pellucid import zoo
from pellucid.attack import L2, Linf
from pellucid.methods.invert import FAST, Preset
from pellucid.methods.invert.adversary import GENTLE
from pellucid.methods.paradigms import (
    Paradigm,
    adversarial_training,
    mart,
    simclr,
    simclr_adversarial,
    standard,
    trades,
    without,
)
from pellucid.methods.paradigms.augment import Change, blur, colour_jitter, flip, grey, resized_crop, shift
from pellucid.taps import Tap

FREE, HUMAN, ADVERSARY = "free", "human-leaning", "adversary"
REGULARISERS = (FREE, HUMAN, ADVERSARY)
STANDARD, L2_TRAINED, LINF_TRAINED = "standard", "adversarial L2", "adversarial Linf"
TRADES, MART = "TRADES L2", "MART L2"
SIMCLR, PLAIN_SIMCLR, MOVED_SIMCLR = "SimCLR", "SimCLR without colour", "SimCLR + adversarial views"
PUBLISHED, ON_JPEG = "published", "published, JPEG targets"
CONTRASTIVE = (SIMCLR, PLAIN_SIMCLR, MOVED_SIMCLR)

# Digits and garments are told apart by what a mirror exchanges, so views are not mirrored; a part of at least 0.3 of the
# area (0.08 officially) still shows something at 28 pixels. Grey images know no hue: colour is brightness and contrast.
VIEWS: tuple[Change, ...] = (
    resized_crop(0.3), colour_jitter(0.8, 0.8, 0.8, 0.2, share=0.8), grey(0.2), blur(0.5)
)  # fmt: skip


@dc.dataclass(frozen=True)
class Architecture:
    """How a network is built, where its representation is, and how wide that is.

    `batch`: rows of a search that are computed together; small networks are faster with more.
    """

    build: Callable[[], nn.Module]
    features: Tap
    width: int
    head: str
    batch: int = 100


ARCHITECTURES: Mapping[str, Architecture] = {
    "robust_small": Architecture(robust_small, Tap("7", side="in"), 100, "7", batch=300),
    "resnet8": Architecture(
        functools.partial(zoo.resnet8, widths=(8, 16, 32), in_channels=1),
        Tap("linear", side="in"),
        32,
        "linear",
    ),
    "resnet20": Architecture(zoo.resnet20, Tap("linear", side="in"), 64, "linear"),
    "resnet32": Architecture(zoo.resnet32, Tap("linear", side="in"), 64, "linear"),
}


@dc.dataclass(frozen=True)
class Setup:
    """What is fixed for all cells of a data set at a preset."""

    dataset: str
    radius: float
    """L2 radius of adversarial training, in pixel range."""
    train: int = 10_000
    epochs: Mapping[str, int] = dc.field(default_factory=dict[str, int])
    batch_size: int = 100
    attack_steps: int = 5
    view_steps: int = 5
    test: int = 2_000
    attacked: int = 500
    probed: int = 2_000
    targets: int = 100
    starts: int = 3
    preset: Preset = FAST
    natural: int = 128
    priored: tuple[int, int] = (100, 1)
    """Targets and starts of the human-leaning search."""
    opposed: int = 20
    """Targets of the constrained adversary, one start each."""
    tolerances: tuple[float, ...] = (0.05, 0.1, 0.2)
    gentle: Preset = GENTLE
    trunk: tuple[int, int] = (2_000, 4)
    """Images and epochs of the self-trained trunks."""


@dc.dataclass(frozen=True)
class Entry:
    """A network of the grid: which searches it gets, and how many replicates."""

    architecture: str
    paradigm: str
    regularisers: tuple[str, ...] = (FREE,)
    replicates: int = 3


EPOCHS = {
    STANDARD: 5, L2_TRAINED: 4, LINF_TRAINED: 4, TRADES: 4, MART: 4, SIMCLR: 6, PLAIN_SIMCLR: 6, MOVED_SIMCLR: 4
}  # fmt: skip


def setups(preset: str) -> dict[str, Setup]:
    """Every data set at a preset. Digits, enlarged to 28 pixels, need no staged data and are for smoke runs."""
    found = {
        "mnist": Setup("mnist", 2.0, epochs=EPOCHS),
        "fashion-mnist": Setup("fashion-mnist", 1.5, epochs=EPOCHS),
        "cifar10": Setup(
            "cifar10", 0.5, epochs={L2_TRAINED: 2}, attack_steps=3, priored=(50, 1), test=1_000, attacked=200,
            probed=1_000,
        ),
    }  # fmt: skip
    if preset == "full":
        epochs = {name: 40 if name in CONTRASTIVE else 20 for name in EPOCHS}
        return {
            name: dc.replace(
                s, train=50_000, epochs=epochs, attack_steps=10, priored=(100, 3), opposed=100,
                test=10_000, attacked=1_000,
            )
            for name, s in found.items()
        }  # fmt: skip
    if preset == "smoke":
        found["digits"] = Setup("digits", 1.5)
        return {name: _tiny(s) for name, s in found.items()}
    return found


def _tiny(setup: Setup) -> Setup:
    return dc.replace(
        setup, train=200, epochs=dict.fromkeys(EPOCHS, 1), attack_steps=1, view_steps=1, test=60, attacked=20,
        probed=120, targets=12, starts=2, preset=Preset(steps=20, eta=1.0, halve_every=5), natural=24, priored=(6, 1),
        opposed=6, gentle=Preset(steps=6, eta=0.1), tolerances=(0.2, 0.9), trunk=(200, 2),
    )  # fmt: skip


def designs(preset: str) -> dict[str, list[Entry]]:
    """The networks of every data set, the most telling ones first."""
    replicates = {"smoke": 1, "default": 3, "full": 5}[preset]
    every = REGULARISERS
    rest = every if preset == "full" else (FREE,)
    grey: list[Entry] = []
    for architecture in ("robust_small", "resnet8"):
        grey += [Entry(architecture, name, every, replicates) for name in (STANDARD, L2_TRAINED)]
        grey += [Entry(architecture, name, rest, replicates) for name in (SIMCLR, MOVED_SIMCLR)]
    others = (PLAIN_SIMCLR, LINF_TRAINED, TRADES, MART)
    wide = [Entry("robust_small", name, rest, replicates) for name in others]
    if preset == "full":
        wide += [Entry("resnet8", name, rest, replicates) for name in others]
    staged = [Entry("robust_small", PUBLISHED, every, 1)]
    colour = [
        Entry("resnet20", PUBLISHED, every, 1),
        Entry("resnet20", ON_JPEG, (FREE,), 1),
        Entry("resnet20", L2_TRAINED, every, replicates),
        Entry("resnet32", PUBLISHED, every, 1),
    ]
    found = {"mnist": staged + grey + wide, "fashion-mnist": staged + grey + wide, "cifar10": colour}
    if preset == "smoke":
        found = {name: [dc.replace(e, regularisers=every) for e in rows] for name, rows in found.items()}
        chosen = (STANDARD, L2_TRAINED, MOVED_SIMCLR)
        found["digits"] = [
            e for e in found["mnist"] if e.architecture == "robust_small" and e.paradigm in chosen
        ]
    return found


def paradigm(setup: Setup, architecture: str, name: str, *, seed: int) -> Paradigm:
    """How a network of the grid is trained."""
    arch = ARCHITECTURES[architecture]
    ball, steps = L2(setup.radius), setup.attack_steps
    shared = (shift(4), flip()) if setup.dataset == "cifar10" else ()
    made: dict[str, Callable[[], Paradigm]] = {
        STANDARD: lambda: standard(shared),
        L2_TRAINED: lambda: adversarial_training(ball, steps=steps, changes=shared),
        LINF_TRAINED: lambda: adversarial_training(Linf(0.1), steps=steps, changes=shared),
        TRADES: lambda: trades(ball, steps=steps, changes=shared),
        MART: lambda: mart(ball, steps=steps, changes=shared),
        SIMCLR: lambda: simclr(arch.features, arch.width, VIEWS, seed=seed),
        PLAIN_SIMCLR: lambda: simclr(arch.features, arch.width, without(VIEWS), seed=seed),
        MOVED_SIMCLR: lambda: simclr_adversarial(
            arch.features, arch.width, VIEWS, steps=setup.view_steps, seed=seed
        ),
    }
    return made[name]()
