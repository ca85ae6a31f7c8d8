"""Attack any differentiable objective: raise a detector's score, hide from it, fool two networks at once."""

import dataclasses as dc
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid._checks import ConfigError, NumericError
from pellucid.attack.ascent import (
    as_index,
    attack_mode,
    check_attack,
    gradient_step,
    input_gradient,
    random_start,
)
from pellucid.attack.ball import Ball
from pellucid.attack.classifier import masked_message

Objective = Callable[[nn.Module, Float[Tensor, "batch ..."]], Float[Tensor, " batch"]]


@dc.dataclass(frozen=True)
class Maximized:
    """For each image the visited point of highest score, that score, and the clean image's score."""

    inputs: Float[Tensor, "batch ..."]
    score: Float[Tensor, " batch"]
    clean_score: Float[Tensor, " batch"]


def maximize(
    model: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    objective: Objective,
    *,
    ball: Ball,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    index: Int[Tensor, " batch"] | None = None,
    seed: int = 0,
) -> Maximized:
    """Raise `objective(model, x)`, one score for each image, by projected gradient ascent inside the ball.

    Returns the best point visited, the clean image included, so a score never falls. To lower a score, negate it.
    The objective always gets the whole batch in its order, so it may close over targets or other models; those other
    models are the caller's to put into evaluation mode.

    Raises: as `pgd`; `ConfigError` when the objective does not return one score for each image.
    References: Carlini & Wagner, "Adversarial examples are not easily detected", 2017 (attack the detector itself).
    """
    check_attack(inputs, ball=ball, steps=steps, restarts=restarts)
    index = as_index(index, len(inputs))
    size = ball.radius / 4 if step_size is None else step_size
    clean = inputs.detach()
    with attack_mode(model):
        with torch.no_grad():
            clean_score = _scores(objective, model, clean)
        best, best_score, moved = clean.clone(), clean_score.clone(), False
        for restart in range(restarts):
            x = random_start(clean, index, ball=ball, seed=seed, restart=restart)
            for _ in range(steps):
                x = x.detach().requires_grad_()
                score = _scores(objective, model, x)
                gradient, norm = input_gradient(score, x)
                moved = moved or bool(norm.any())
                x = x.detach()
                _keep(best, best_score, x, score.detach())
                x = gradient_step(x, clean, gradient, ball=ball, size=size)
            with torch.no_grad():
                _keep(best, best_score, x, _scores(objective, model, x))
    if not moved:
        raise NumericError(masked_message(len(inputs)))
    return Maximized(best, best_score, clean_score)


def _keep(best: Tensor, best_score: Tensor, x: Tensor, score: Tensor) -> None:
    better = score > best_score
    best[better], best_score[better] = x[better], score[better]


def _scores(objective: Objective, model: nn.Module, x: Tensor) -> Tensor:
    score = objective(model, x)
    if score.shape != (len(x),):
        raise ConfigError(
            f"the objective must return one score for each of {len(x)} images, got shape {tuple(score.shape)}"
        )
    if not bool(score.detach().isfinite().all()):
        raise NumericError("the objective returns NaN or infinity; no attack can be trusted here")
    return score
