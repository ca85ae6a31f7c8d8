"""Adversaries against a stand-in for people: identical to the network, as different as possible to a perceptual metric.

The weighted form of the released code adds a metric to the loss; at its official weight it leaves the constraint, so
that what it finds are no IRIs any more (the validity gates say so). The constrained form stays inside it:

    maximise D(x, target) - slope max(rho(x) - tau, 0),  keep the iterate of largest D among those with rho <= tau

What it finds must be judged by a metric it did not attack: the gap between the two is metric gaming, not invariance.
"""

import dataclasses as dc
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pellucid._checks import ConfigError, DataError
from pellucid.methods.invert.descent import Loss, Preset, descend
from pellucid.methods.invert.iris import Extra
from pellucid.methods.invert.representation import Representation, check_goals, relative_distance

Metric = Callable[[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]], Float[Tensor, " rows"]]
"""A perceptual distance, lower = more alike, differentiable in its first argument."""


@runtime_checkable
class Anchored(Protocol):
    """A metric that can keep what it makes of fixed images, so that each step computes only the image that moves."""

    def towards(self, targets: Float[Tensor, "rows ..."]) -> Extra: ...


GENTLE = Preset(steps=200, eta=0.1, halve_every=100)
"""Small steps, halved once."""
SLOPE = 50.0
INSIDE = 1 - 1e-5
"""Chosen rows lie strictly inside, so that rounding in the recomputation cannot put one outside."""


def to_fixed(metric: Metric, targets: Float[Tensor, "rows ..."]) -> Extra:
    """D(x, target) by rows, with what the metric makes of the targets kept where it can be (`Anchored`)."""
    if isinstance(metric, Anchored):
        return metric.towards(targets)
    return lambda images, rows: metric(images, targets[rows.to(targets.device)])


def weighted_adversary(metric: Metric, targets: Float[Tensor, "rows ..."], *, weight: float = 10.0) -> Extra:
    """- weight D(x, target), to be added to rho: the official form, which abandons the constraint at weight 10."""
    distance = to_fixed(metric, targets)
    return lambda images, rows: -weight * distance(images, rows)


def towards_start(metric: Metric, start: Float[Tensor, "rows ..."], *, weight: float = 10.0) -> Extra:
    """+ weight D(x, start): the second official variant, which pulls the result to where the search began."""
    distance = to_fixed(metric, start.clamp(0, 1))
    return lambda images, rows: weight * distance(images, rows)


def balanced_weight(rho: Float[Tensor, " rows"], distance: Float[Tensor, " rows"]) -> float:
    """mean(rho) / mean(D) at the start, then kept: the weight of the official variant for large images."""
    scale = float(distance.mean())
    if not scale > 0:
        raise ConfigError(f"the mean distance at the start must be positive to balance it, got {scale}")
    return float(rho.mean()) / scale


@dc.dataclass(frozen=True)
class Adversarial:
    """Results of the constrained adversary at one tolerance.

    Attributes:
        tolerance: tau; every feasible row has rho <= tau.
        images: in [0, 1]; an infeasible row keeps its warm start.
        distance: D of the attacked metric to the target; at least that of the warm start.
        rho: relative distance, recomputed.
        feasible: rows whose warm start satisfied the constraint; the others were not attacked and cost nothing.
    """

    tolerance: float
    images: Float[Tensor, "rows ..."]
    distance: Float[Tensor, " rows"]
    rho: Float[Tensor, " rows"]
    feasible: Bool[Tensor, " rows"]


def constrained_adversary(
    representation: Representation,
    targets: Float[Tensor, "rows ..."],
    warm: Float[Tensor, "rows ..."],
    *,
    metric: Metric,
    tolerance: float,
    preset: Preset = GENTLE,
    slope: float = SLOPE,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Adversarial:
    """From regulariser-free IRIs, the images most different to `metric` that the layer still cannot tell apart.

    Args:
        warm: one IRI for each target, in [0, 1].
        tolerance: tau > 0.

    Raises:
        ConfigError: a tolerance that is not positive.
        DataError: shapes that differ, or a warm start outside [0, 1].
        NumericError: NaN in the representation, the metric or a gradient.

    References: specification of the inversion, section 4.3.
    """
    if not tolerance > 0:
        raise ConfigError(f"tolerance must be positive, got {tolerance}")
    if targets.shape != warm.shape:
        raise DataError(f"one warm start for each target: {tuple(targets.shape)} and {tuple(warm.shape)}")
    if not bool(((warm >= 0) & (warm <= 1)).all()):
        raise DataError("warm starts are results of a search, in [0, 1]; these are not")
    goals = representation.values(targets, batch_size=batch_size)
    check_goals(goals, representation.layer)
    before = relative_distance(representation.values(warm, batch_size=batch_size), goals)
    feasible, images = before <= tolerance * INSIDE, warm.clone()
    if bool(feasible.any()):
        loss = _loss(
            representation,
            goals[feasible],
            to_fixed(metric, targets[feasible]),
            tolerance=tolerance,
            slope=slope,
        )
        preset = dc.replace(preset, tolerance=0.0)  # there is no distance that is enough
        with representation.open():
            found = descend(loss, warm[feasible], preset=preset, batch_size=batch_size, progress=progress)
        images[feasible] = found.images
    with torch.no_grad():
        parts = zip(images.split(batch_size), targets.split(batch_size), strict=True)
        distance = torch.cat([metric(a, b) for a, b in parts])
    rho = relative_distance(representation.values(images, batch_size=batch_size), goals)
    return Adversarial(tolerance, images, distance, rho, feasible)


def _loss(
    representation: Representation,
    goals: Float[Tensor, "rows features"],
    distance: Extra,
    *,
    tolerance: float,
    slope: float,
) -> Loss:
    """What is descended, and what iterates are compared by: -D within the constraint, infinite outside."""

    def loss(images: Tensor, rows: Tensor, _step: int) -> tuple[Tensor, Tensor]:
        rho = relative_distance(representation(images), goals[rows.to(goals.device)])
        far = distance(images, rows)
        chosen = torch.where(rho.detach() <= tolerance * INSIDE, -far.detach(), float("inf"))
        return slope * (rho - tolerance).clamp_min(0) - far, chosen

    return loss


def adversarial_curve(
    representation: Representation,
    targets: Float[Tensor, "rows ..."],
    warm: Float[Tensor, "rows ..."],
    *,
    metric: Metric,
    tolerances: Sequence[float] = (0.05, 0.1, 0.2),
    preset: Preset = GENTLE,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[Adversarial]:
    """The constrained adversary at growing tolerances, each begun from the last one's results.

    A larger tolerance therefore never finds a smaller distance, and alignment judged by the attacked metric cannot
    rise along the curve A(tau). Rows that become feasible at a larger tolerance begin from their IRI.
    """
    if list(tolerances) != sorted(set(tolerances)) or not tolerances:
        raise ConfigError(f"tolerances must grow strictly, got {list(tolerances)}")
    found: list[Adversarial] = []
    at = warm
    for tolerance in tolerances:
        found.append(
            constrained_adversary(
                representation, targets, at, metric=metric, tolerance=tolerance, preset=preset,
                batch_size=batch_size, progress=progress,
            )
        )  # fmt: skip
        at = found[-1].images
    return found
