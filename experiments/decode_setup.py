"""What is fixed in the study of decodable networks: data, networks, methods, sizes, and what each cell costs.

Nothing was tuned, on any split. Discount 0.8 and weight 10 of decoding are the method's defaults, dropout 0.2 and Adam with a
cosine are usual; epochs and sizes are what the time at hand allows. Every method shares the recipe of its network.

Cost of the default preset in CPU seconds (AMD EPYC, one thread, two busy cores shared with ten other processes). Measured: whole
cells on MNIST of a seed of no cell, plain 25 and ReDecNN 52; an epoch of the residual network 12 (plain), 19 (ReDecNN) or 25
(DecNN), and each measure on few images. Estimated from these: perceptron 25 to 75 a cell, with the residual network to learn
from 170; residual 60 to 290; fairness 8. In all about 5,200, so 45 minutes for two processes.
"""

import dataclasses as dc
from collections.abc import Mapping

from pellucid.evals.corrupt.corrupting import CORRUPTIONS

STANDARD, DROPOUT, MC_DROPOUT, ENSEMBLE = "standard", "dropout", "MC-dropout", "ensemble"
DECNN, REDECNN, DEEPER = "DecNN", "ReDecNN", "ReDecNN D=2"
LINEAR, STRONG, STRONGER = "ReDecNN + linear", "ReDecNN + residual", "ReDecNN + stronger residual"
COMPOSED = (LINEAR, STRONG, STRONGER)
DECODABLE = (DECNN, REDECNN, DEEPER, *COMPOSED)
METHODS = (STANDARD, DROPOUT, MC_DROPOUT, ENSEMBLE, *DECODABLE)
BASIC = (STANDARD, DROPOUT, MC_DROPOUT, ENSEMBLE, DECNN, REDECNN)

ALPHA, BETA, DROPPED = 0.8, 10.0, 0.2
MEMBERS = 3
"""Networks of an ensemble: the standard one of the same replicate, and others of starts of their own."""

DETECTORS = (
    "max_logit", "gen", "odin", "mahalanobis", "relative_mahalanobis", "knn", "vim", "react", "ash", "dice", "scale"
)  # fmt: skip

COMPAS, PLANTED = "compas", "planted"
FREE, WEAK, BOUND, REFITTED = (
    "ReDecNN",
    "constrained, weight 1",
    "constrained, weight 4",
    "weight 4, refitted",
)
FAIR_ARMS = (STANDARD, FREE, WEAK, BOUND, REFITTED)
STRENGTHS = {WEAK: 1.0, BOUND: 4.0, REFITTED: 4.0}


@dc.dataclass(frozen=True)
class Recipe:
    """Adam, its rate falling by a cosine over the epochs."""

    epochs: int
    batch_size: int
    lr: float


@dc.dataclass(frozen=True)
class Setup:
    """What is fixed for all cells of one network on one data set.

    Args:
        data: the images; `other` is the far set that the paper tells them from.
        residual: a small residual network in place of the multilayer perceptron of `depth` x `width` with layer norm.
        frozen_epochs: of the residual network that `STRONG` learns from. It was meant to be stronger than the perceptron; at
            4 epochs it is not. `stronger_epochs`: of the one of `STRONGER`, which came after that was seen.
        validation: training images, none of those trained on, for temperature scaling and the choice of epochs.
        test, outside: test images inside, and of each outside set.
        corrupted: test images for each corruption; `attacked` for each attack; `radius` of attacks, L-infinity.
        adapted: test images for the attack on classifier and score at once, in `steps` steps twice over.
        paths: paths of length 2 that vote; all at length 1. `attacked_paths`: those that vote under attack.
        masks: members of MC-dropout.
        detectors: of pytorch-ood, on the plain classifier. `autoencoder`: epochs of the residual baseline.
    """

    data: str
    other: str
    residual: bool = False
    methods: tuple[str, ...] = BASIC
    depth: int = 8
    width: int = 128
    code: int = 32
    train: int = 12_000
    epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-3
    frozen_epochs: int = 4
    stronger_epochs: int = 20
    validation: int = 2_000
    test: int = 10_000
    outside: int = 2_000
    corrupted: int = 500
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    severity: int = 5
    attacked: int = 500
    steps: int = 10
    radius: float = 0.1
    adapted: int = 500
    paths: int = 30
    attacked_paths: int = 8
    masks: int = 20
    detectors: tuple[str, ...] = DETECTORS
    autoencoder: int = 10

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.epochs, self.batch_size, self.lr)

    @property
    def layers(self) -> tuple[str, ...]:
        """The blocks that are decoded, first to last."""
        if self.residual:
            return ("layer1", "layer2", "layer3")
        return tuple(f"block{i}" for i in range(1, self.depth + 1))


@dc.dataclass(frozen=True)
class FairSetup:
    """Sizes of the two cases of fairness: the COMPAS table and images with a planted attribute."""

    cases: tuple[str, ...] = (COMPAS, PLANTED)
    planted_on: str = "mnist"
    images: int = 4_000
    test: int = 2_000
    agree: float = 0.9
    """Share of training images whose attribute goes with the class; half of the test images."""
    epochs: Mapping[str, int] = dc.field(default_factory=lambda: {COMPAS: 20, PLANTED: 10})
    depth: int = 4
    width: Mapping[str, int] = dc.field(default_factory=lambda: {COMPAS: 32, PLANTED: 128})
    batch_size: int = 64
    lr: float = 1e-3
    probed: int = 2_000
    draws: int = 200

    def recipe(self, case: str) -> Recipe:
        return Recipe(self.epochs[case], self.batch_size, self.lr)


REPLICATES = {"smoke": 1, "default": 3, "full": 5}
SEED = 0


def setups(preset: str) -> dict[str, Setup]:
    """The parts with images at a preset; digits are there for trying out without staged data."""
    if preset == "smoke":
        small = Setup(
            "digits", "inverted", methods=(*METHODS[:6], DEEPER, *COMPOSED), depth=3, width=32, code=8, train=600, epochs=1,
            stronger_epochs=2,
            validation=200, test=400, outside=100, corrupted=20, corruptions=("gaussian_noise", "contrast"), attacked=24,
            adapted=16, steps=2, paths=4, attacked_paths=2, masks=3, detectors=("knn",), autoencoder=2,
        )  # fmt: skip
        return {"digits": small}
    mnist = Setup("mnist", "fashion-mnist", methods=(*BASIC, DEEPER, *COMPOSED), radius=0.1)
    fashion = Setup("fashion-mnist", "mnist", methods=BASIC, radius=0.05)
    residual = Setup(
        "fashion-mnist", "mnist", residual=True, train=10_000, epochs=6, test=5_000, outside=1_000, adapted=200, masks=8, radius=0.05
    )  # fmt: skip
    found = {"mnist": mnist, "fashion-mnist": fashion, "fashion-residual": residual}
    if preset == "default":
        return found
    return {
        name: dc.replace(setup, train=58_000, epochs=2 * setup.epochs, frozen_epochs=10, methods=METHODS, test=10_000, outside=2_000, corrupted=2_000, attacked=1_000, adapted=1_000, steps=20)
        for name, setup in found.items()
    }  # fmt: skip


def fair_setup(preset: str) -> FairSetup:
    """The part about fairness at a preset."""
    if preset != "smoke":
        return FairSetup()
    return FairSetup(
        (PLANTED,), "digits", 400, 200, epochs={PLANTED: 2}, depth=2, width={PLANTED: 24}, draws=20
    )
