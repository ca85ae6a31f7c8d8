"""Trunks for LPIPS where no pretrained one can be had: trained on the user's own images, or not trained at all.

A small network trained on the user's images, several times from different weights, gives distances in the LPIPS form with
weights of 1: trained to classify them (`self_trained`), or by contrast where they have no labels (`contrastive`). It must
not be the network under test, nor one of its training runs: a network agrees with itself about what looks alike. An
untrained one is a control: what its column shows, architecture alone explains.

References: specification of the inversion, section 6, rungs 3 and 4.
"""

import dataclasses as dc
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid._checks import ConfigError
from pellucid.data import Source
from pellucid.evals.alignment_committee import Member
from pellucid.evals.perceptual import DeepDistance, lpips_distance
from pellucid.methods.paradigms import SIMCLR, Change, Paradigm, simclr, standard
from pellucid.taps import Tap
from pellucid.train import fit, seeded
from pellucid.zoo import conv_net

VERSION = "1"
WIDTHS = (16, 32, 64)
STAGES = ("relu1", "relu2", "relu3")
FEATURES = Tap("linear", side="in")
"""What is contrasted: the trunk's pooled features."""
LEAST_IMAGES = 8
REPLICATES = 3
"""At least so many trunks are trained: two of them can disagree by chance."""
SELF_TRAINED, UNTRAINED, USER_FILES = "self-trained trunk", "untrained trunk", "user files"
LEAST = 64
"""Weight tensors with fewer entries are not compared: biases of zero are alike in every network."""

KNOWN_STAGES: Mapping[str, tuple[str, ...]] = {
    "alexnet": ("features.1", "features.4", "features.7", "features.9", "features.11"),
    "vgg16": ("features.3", "features.8", "features.15", "features.22", "features.29"),
    "squeezenet1_1": tuple(f"features.{i}" for i in (1, 4, 7, 9, 10, 11, 12)),
}
"""Stages of the torchvision networks that the released heads were fitted to."""


@dc.dataclass(frozen=True)
class TrainedTrunk:
    """One replicate: its distance, and its loss on the training images in the last epoch, in nats."""

    metric: DeepDistance
    loss: float
    replicate: int


def self_trained(
    source: Source,
    *,
    replicates: int = REPLICATES,
    epochs: int = 10,
    batch_size: int = 64,
    tested: Collection[str] = (),
    seed: int = 0,
    checkpoint: Path | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TrainedTrunk]:
    """Train small networks (16-32-64) on labelled images and make a distance of each, with weights of 1.

    Args:
        source: the user's own images with labels, best other ones than the targets.
        tested: `tensor_hashes` of the networks under test.
        checkpoint: a folder to keep the trainings in, so that a killed one goes on.
        progress: called with steps done and steps in all, over all replicates.

    Raises:
        ConfigError: fewer than three replicates, images without labels or of one class, or a trunk under test.
    """
    if source.targets is None or len(source.classes) < 2:
        raise ConfigError(
            f"{source.name} has no labels of two classes to train a trunk on; train it by contrast (`contrastive`), or use a "
            "weight-free metric or a trunk of your own"
        )
    return _trained(
        source, lambda _: standard(), replicates=replicates, epochs=epochs, batch_size=batch_size, tested=tested,
        seed=seed, checkpoint=checkpoint, device=device, progress=progress,
    )  # fmt: skip


def contrastive(
    source: Source,
    *,
    changes: Sequence[Change] = SIMCLR,
    replicates: int = REPLICATES,
    epochs: int = 10,
    batch_size: int = 64,
    tested: Collection[str] = (),
    seed: int = 0,
    checkpoint: Path | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TrainedTrunk]:
    """As `self_trained`, without labels: two random views of an image shall be more alike than views of different images.

    The distances learn to overlook what `changes` change, so leave out what an onlooker would notice in your images.

    Args:
        changes: what the views are made by; by default those of SimCLR (crop, flip, colour, grey, blur).

    Raises:
        ConfigError: fewer than three replicates or eight images, or a trunk under test.

    References: Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020.
    """
    n = len(source)
    if n < LEAST_IMAGES:
        raise ConfigError(
            f"contrast needs at least {LEAST_IMAGES} images to tell apart, {source.name} has {n}; use a weight-free metric"
        )
    size = max(2, batch_size)
    while n % size == 1:  # a last batch of one image would have nothing to contrast with
        size += 1

    def how(replicate: int) -> Paradigm:
        return simclr(FEATURES, WIDTHS[-1], changes, out=WIDTHS[-1], seed=seed + replicate)

    return _trained(
        source, how, replicates=replicates, epochs=epochs, batch_size=size, tested=tested, seed=seed,
        checkpoint=checkpoint, device=device, progress=progress,
    )  # fmt: skip


def _trained(
    source: Source,
    paradigm: Callable[[int], Paradigm],
    *,
    replicates: int,
    epochs: int,
    batch_size: int,
    tested: Collection[str],
    seed: int,
    checkpoint: Path | None,
    device: torch.device | str | None,
    progress: Callable[[int, int], None] | None,
) -> list[TrainedTrunk]:
    """Replicates that differ in their first weights and their order of images."""
    if replicates < REPLICATES:
        raise ConfigError(
            f"train at least {REPLICATES} trunks, got {replicates}: metrics that differ only in their first weights "
            "disagree, and one of them alone would hide it"
        )
    found: list[TrainedTrunk] = []
    for replicate in range(replicates):

        def told(done: int, total: int, before: int = replicate) -> None:
            if progress is not None:
                progress(before * total + done, replicates * total)

        how = paradigm(replicate)
        trunk = small_trunk(_channels(source), max(2, len(source.classes)), seed=seed, replicate=replicate)
        history = fit(
            trunk, source, torch.optim.AdamW(how.parameters(trunk), lr=3e-3), how.terms, prepare=how.prepare,
            epochs=epochs, batch_size=batch_size, seed=seed + replicate,
            checkpoint=None if checkpoint is None else checkpoint / f"trunk-{replicate}", device=device, progress=told,
        )  # fmt: skip
        refuse_tested(trunk, tested)
        (term,) = how.terms
        kind = "self-trained" if how.labels else "contrastive"
        metric = _distance(trunk, SELF_TRAINED, f"{kind} {replicate + 1}")
        found.append(TrainedTrunk(metric, history.columns[term][-1], replicate))
    return found


def untrained(source: Source, *, seed: int = 0) -> DeepDistance:
    """The same trunk with its first weights: a control column, never a judge."""
    trunk = small_trunk(_channels(source), max(2, len(source.classes)), seed=seed, replicate=-1)
    return _distance(trunk, UNTRAINED, "untrained trunk")


def small_trunk(channels: int, classes: int, *, seed: int, replicate: int) -> nn.Module:
    """The network that is trained: three convolutions with batch norm, one pool."""
    with seeded(seed, "trunk", replicate):
        return conv_net(in_channels=channels, classes=classes, widths=WIDTHS, pool_after=(1, 2)).eval()


def _distance(trunk: nn.Module, rung: str, name: str) -> DeepDistance:
    # Trained on images in [0, 1] as they are, so that LPIPS' shift and scale would only move them away.
    return lpips_distance(trunk.eval(), STAGES, heads=None, name=name, rung=rung, preprocess=False)


def _channels(source: Source) -> int:
    return int(source[0][0].shape[0])


def user_trunk(
    trunk: nn.Module,
    stages: Sequence[str],
    *,
    heads: Sequence[Float[Tensor, " _"]] | None,
    trained: bool,
    name: str,
    tested: Collection[str] = (),
) -> Member:
    """The user's own trunk and heads as a member; a control where the trunk has no trained weights.

    Args:
        heads: from `load_heads`; None takes weights of 1 (baseline).
        trained: whether weights were loaded into the trunk.
        tested: `tensor_hashes` of the networks under test.

    Raises:
        ConfigError: the trunk shares weights with a network under test, or there is not one head per stage.
        WeightsError: a head with negative weights.
    """
    if trained:
        refuse_tested(trunk, tested)
    rung = USER_FILES if trained else UNTRAINED
    metric = lpips_distance(trunk.eval(), stages, heads=heads, name=name, rung=rung)
    return Member(name, metric, rung, control=not trained, fingerprint=metric.fingerprint)


def members_of(trunks: Sequence[TrainedTrunk]) -> list[Member]:
    """Each replicate as a member of the committee."""
    return [Member(t.metric.name, t.metric, t.metric.rung, fingerprint=t.metric.fingerprint) for t in trunks]


def tensor_hashes(model: nn.Module) -> list[str]:
    """A short SHA-256 of every parameter of at least 64 entries, in the order of the network.

    Two networks that share one share weights, whatever their layers are called: a trunk cut out of the network under test
    is found. One that was trained on from it is not.
    """
    return [
        hashlib.sha256(p.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
        for p in model.parameters()
        if p.numel() >= LEAST and bool((p != p.flatten()[0]).any())
    ]


def refuse_tested(trunk: nn.Module, tested: Collection[str]) -> None:
    """Raise `ConfigError` where a trunk holds weights of a network under test."""
    shared = set(tensor_hashes(trunk)) & set(tested)
    if shared:
        raise ConfigError(
            f"the trunk shares {len(shared)} weight tensors with a network under test: a network agrees with itself about "
            "what looks alike, so it cannot be its own judge; use another trunk, or a weight-free metric"
        )
