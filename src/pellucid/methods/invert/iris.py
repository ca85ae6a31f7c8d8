"""Identically represented inputs (IRIs): images that a layer cannot tell from a target, found from noise."""

import dataclasses as dc
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid._checks import DataError
from pellucid.methods.invert.descent import FAST, Loss, Preset, State, descend
from pellucid.methods.invert.priors import FREE, Prior
from pellucid.methods.invert.representation import (
    Representation,
    check_goals,
    into_range,
    relative_distance,
)
from pellucid.rng import rng

VERSION = "2"

# (images, which rows they are) -> what is added to each row's loss, such as the distance to its target
Extra = Callable[[Float[Tensor, "active ..."], Int[Tensor, " active"]], Float[Tensor, " active"]]


@dc.dataclass(frozen=True)
class Inverted:
    """What a search found, one row per (target, start).

    Attributes:
        images: the results, in [0, 1]: the iterate of least loss of each row.
        starts: the start images clamped to [0, 1], as they are shown and compared.
        rho: relative distance of the result to the target, recomputed through the model's own path.
        rho_start: the same of the start.
        rho_search: what the search itself measured at the result; NaN where a random transform or a weight stands
            between the two. V7 compares it with `rho`.
        losses, best_step, steps, flat: see `Descent`.
    """

    images: Float[Tensor, "rows ..."]
    starts: Float[Tensor, "rows ..."]
    rho: Float[Tensor, " rows"]
    rho_start: Float[Tensor, " rows"]
    rho_search: Float[Tensor, " rows"]
    losses: Float[Tensor, " rows"]
    best_step: Int[Tensor, " rows"]
    steps: Int[Tensor, " rows"]
    flat: Int[Tensor, " rows"]

    @property
    def moved(self) -> Bool[Tensor, " rows"]:
        """Rows whose gradient was not zero at every step."""
        return self.flat < self.steps.to(self.flat.device)


def invert(
    representation: Representation,
    targets: Float[Tensor, "rows ..."],
    start: Float[Tensor, "starts ..."],
    *,
    preset: Preset = FAST,
    prior: Prior = FREE,
    extra: Extra | None = None,
    batch_size: int = 64,
    seed: int = 0,
    keep: Callable[[State], None] | None = None,
    resume: Mapping[str, Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inverted:
    """For each row an image whose representation is that of its target, by descent from its start.

        minimise w rho(T(x)) + sum_j w_j R_j(x)   subject to x in [0, 1]

    Terms see images in [0, 1], as they are shown, also where the start lies outside. A search with an `extra` runs to its
    end whatever the preset's tolerance: a term below zero makes a small loss mean nothing.

    Args:
        representation: g; it is opened here.
        targets: images in [0, 1], one per row; repeat a target to search from several starts.
        start: one start per row (`starts`), pixels, also outside [0, 1].
        extra: a term that knows the rows, such as the weighted adversary's (`weighted_adversary`).
        seed: of the random transforms, which are drawn once per step for all rows.
        keep, resume, progress: see `descend`.

    Raises:
        DataError: targets outside [0, 1] or in half precision, shapes that differ, or a target equal to its start.
        NumericError: a target whose representation is zero or NaN; NaN met on the way.

    References: Nanda et al., AAAI 2023 (arXiv 2111.14726); specification of the inversion, sections 3 and 4.
    """
    _check(targets, start)
    goals = representation.values(targets, batch_size=batch_size)
    check_goals(goals, representation.layer)
    loss = _loss(representation, goals, prior=prior, extra=extra, seed=seed)
    with representation.open():
        found = descend(
            loss,
            prior.space.from_image(start),
            preset=preset if extra is None else dc.replace(preset, tolerance=0.0),
            space=prior.space,
            batch_size=batch_size,
            keep=keep,
            resume=resume,
            progress=progress,
        )
    shown = start.detach().clamp(0, 1)
    plain = prior.transform is None and not prior.terms and prior.weight == 1 and extra is None
    return Inverted(
        found.images,
        shown,
        relative_distance(representation.values(found.images, batch_size=batch_size), goals),
        relative_distance(representation.values(shown, batch_size=batch_size), goals),
        found.losses if plain else torch.full_like(found.losses, float("nan")),
        found.losses,
        found.best_step,
        found.steps,
        found.flat,
    )


def _loss(
    representation: Representation,
    goals: Float[Tensor, "rows features"],
    *,
    prior: Prior,
    extra: Extra | None,
    seed: int,
) -> Loss:
    def loss(images: Tensor, rows: Tensor, step: int) -> Tensor:
        seen = images if prior.transform is None else prior.transform(images, rng(seed, "transform", step))
        distance = prior.weight * relative_distance(representation(seen), goals[rows.to(goals.device)])
        if prior.terms:
            distance = distance + prior.of(into_range(images))
        return distance if extra is None else distance + extra(into_range(images), rows)

    return loss


def _check(targets: Tensor, start: Tensor) -> None:
    if targets.shape != start.shape or len(targets) == 0:
        raise DataError(
            f"one start image for each target is needed: targets {tuple(targets.shape)}, starts {tuple(start.shape)}"
        )
    if targets.dtype not in (torch.float32, torch.float64) or start.dtype != targets.dtype:
        raise DataError(
            f"targets and starts must both be float32 or float64, got {targets.dtype} and {start.dtype}: the last steps of a "
            "search are smaller than what half precision can tell apart"
        )
    low, high = float(targets.min()), float(targets.max())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"targets must lie in [0, 1], got {low:.3g} to {high:.3g}: normalising belongs to the model (pellucid.normalize)"
        )
    same = (targets == start.clamp(0, 1)).flatten(1).all(1)
    if bool(same.any()):
        raise DataError(
            f"target {int(same.nonzero()[0])} is equal to its start image, so nothing would be searched; use another start"
        )
