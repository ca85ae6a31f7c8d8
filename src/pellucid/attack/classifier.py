"""FGSM, BIM and PGD on a classifier that returns logits, untargeted or towards a goal class, in any ball."""

import dataclasses as dc
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid._checks import DataError, NumericError
from pellucid.attack.ascent import (
    Climb,
    Value,
    as_index,
    attack_mode,
    check_attack,
    check_logits,
    climb,
    random_start,
)
from pellucid.attack.ball import Ball
from pellucid.attack.losses import cross_entropy
from pellucid.train import logits_of

Loss = Callable[[Float[Tensor, "batch classes"], Int[Tensor, " batch"]], Float[Tensor, " batch"]]


@dc.dataclass(frozen=True)
class Attacked:
    """Attacked images and what became of them.

    `reached`: the image is misclassified (or classified as its goal). `score`: the loss there (minus the loss, with
    goals). `steepest`: the largest L2 norm of the loss's gradient met on the way; 0 means the attack could not move.
    """

    inputs: Float[Tensor, "batch ..."]
    reached: Bool[Tensor, " batch"]
    score: Float[Tensor, " batch"]
    steepest: Float[Tensor, " batch"]


def fgsm(
    model: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    targets: Int[Tensor, " batch"],
    *,
    ball: Ball,
    goals: Int[Tensor, " batch"] | None = None,
    loss: Loss = cross_entropy,
    early_stop: bool = True,
) -> Attacked:
    """One step of length `radius` from the image itself: x + radius * direction(grad loss). See `pgd` for the rest.

    References: Goodfellow et al., "Explaining and harnessing adversarial examples", ICLR 2015, section 4.
    """
    plan = Plan(ball, steps=1, step_size=ball.radius, noisy=False, loss=loss, early_stop=early_stop)
    return refuse_masked(run_plan(model, inputs, targets, plan=plan, goals=goals))


def bim(
    model: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    targets: Int[Tensor, " batch"],
    *,
    ball: Ball,
    steps: int = 20,
    step_size: float | None = None,
    goals: Int[Tensor, " batch"] | None = None,
    loss: Loss = cross_entropy,
    early_stop: bool = True,
) -> Attacked:
    """`pgd` from the image itself, without noise, so without restarts.

    References: Kurakin et al., "Adversarial examples in the physical world", ICLR 2017 workshop, section 2.2.
    """
    plan = Plan(ball, steps=steps, step_size=step_size, noisy=False, loss=loss, early_stop=early_stop)
    return refuse_masked(run_plan(model, inputs, targets, plan=plan, goals=goals))


def pgd(
    model: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    targets: Int[Tensor, " batch"],
    *,
    ball: Ball,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    goals: Int[Tensor, " batch"] | None = None,
    loss: Loss = cross_entropy,
    early_stop: bool = True,
    index: Int[Tensor, " batch"] | None = None,
    seed: int = 0,
) -> Attacked:
    """Projected gradient ascent on the loss from a random point of the ball.

    x <- clip_[0,1](clean + project(x + step * direction(grad loss(x)) - clean))

    An image leaves at its first point that is misclassified; the others go on, so an attack on a weak network costs
    little. The model runs in evaluation mode, frozen, and is left as it was.

    Args:
        ball: `Linf(radius)` or `L2(radius)`, radius in pixel range.
        step_size: in pixel range; default radius / 4.
        restarts: random starts; images that withstood one go into the next. An image that withstands them all keeps
            the end point of highest loss.
        goals: classes to be taken for, one an image; without them any class but the target counts.
        early_stop: False runs every step for every image and returns the last points (parity with other libraries,
            adversarial training, images for transfer).
        index: sample numbers that key the start noise; default 0..n-1. With them an image is attacked in the same
            way in any batch.

    Raises:
        ConfigError: a radius outside the pixel range, a model that returns probabilities or no logits.
        DataError: images that are no floats in [0, 1].
        NumericError: no gradient, a NaN gradient, or a gradient that is zero for every image (masking).

    References: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, section 2.1.
    """
    plan = Plan(ball, steps, step_size, restarts, True, loss, early_stop)
    return refuse_masked(run_plan(model, inputs, targets, plan=plan, goals=goals, index=index, seed=seed))


@dc.dataclass(frozen=True)
class Plan:
    """Everything about an attack that does not depend on the images."""

    ball: Ball
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    noisy: bool = True
    loss: Loss = cross_entropy
    early_stop: bool = True


def run_plan(
    model: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    targets: Int[Tensor, " batch"],
    *,
    plan: Plan,
    goals: Int[Tensor, " batch"] | None = None,
    index: Int[Tensor, " batch"] | None = None,
    seed: int = 0,
) -> Attacked:
    """Run a plan; a gradient that is zero everywhere is left for the caller to judge (see `refuse_masked`)."""
    check_attack(inputs, ball=plan.ball, steps=plan.steps, restarts=plan.restarts)
    _check_targets(inputs, targets, goals)
    index = as_index(index, len(inputs))
    clean = inputs.detach()
    with attack_mode(model):
        value = _value(model, targets, goals, plan.loss)
        best = _one_start(value, clean, index, plan=plan, seed=seed, restart=0)
        for restart in range(1, plan.restarts):
            again = torch.nonzero(~best.reached).flatten()
            if len(again) == 0:
                break
            part = _value(model, targets[again], None if goals is None else goals[again], plan.loss)
            new = _one_start(part, clean[again], index[again.cpu()], plan=plan, seed=seed, restart=restart)
            best = _merge(best, new, again)
    return Attacked(best.inputs, best.reached, best.score, best.steepest)


def refuse_masked(attacked: Attacked) -> Attacked:
    """Raise `NumericError` when no image could be moved at all, instead of calling the model robust."""
    if not bool(attacked.reached.all()) and not bool(attacked.steepest.any()):
        raise NumericError(masked_message(len(attacked.reached)))
    return attacked


def masked_message(n: int) -> str:
    """What a gradient of exactly zero on `n` images means and what to try."""
    return (
        f"the gradient of the loss to the input is exactly zero for all {n} images, so the attack cannot move: the model "
        "masks its gradient (rounding or a hard threshold in the forward pass, dead or saturated activations, logits so "
        "large that the softmax is exactly one). This says nothing about robustness, so there is no verdict. Try "
        "loss=margin, an attack without gradients (pellucid.evals.attack_wider.square), or transfer from another model"
    )


def _value(model: nn.Module, targets: Tensor, goals: Tensor | None, loss: Loss) -> Value:
    wanted = targets if goals is None else goals
    sign = 1 if goals is None else -1

    def value(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(model(x))
        check_logits(logits)
        mine = wanted[rows]
        hit = logits.argmax(1) == mine
        return sign * loss(logits, mine), ~hit if goals is None else hit

    return value


def _one_start(value: Value, clean: Tensor, index: Tensor, *, plan: Plan, seed: int, restart: int) -> Climb:
    ball = plan.ball
    start = random_start(clean, index, ball=ball, seed=seed, restart=restart) if plan.noisy else clean
    size = ball.radius / 4 if plan.step_size is None else plan.step_size
    return climb(value, clean, start, ball=ball, steps=plan.steps, step_size=size, early_stop=plan.early_stop)


def _merge(old: Climb, new: Climb, rows: Tensor) -> Climb:
    """Put the rows of `new` that succeed, or climb higher, over those of `old`, none of which succeeded."""
    better = new.reached | (new.score > old.score[rows])
    chosen = rows[better]
    inputs, score, reached, steepest = (t.clone() for t in (old.inputs, old.score, old.reached, old.steepest))
    inputs[chosen], score[chosen], reached[chosen] = (
        new.inputs[better],
        new.score[better],
        new.reached[better],
    )
    steepest[rows] = torch.maximum(steepest[rows], new.steepest)
    return Climb(inputs, score, reached, steepest)


def _check_targets(inputs: Tensor, targets: Tensor, goals: Tensor | None) -> None:
    for what, labels in (("targets", targets), ("goals", goals)):
        if labels is not None and labels.shape != (len(inputs),):
            raise DataError(
                f"{what} must hold one class for each of the {len(inputs)} images, got {tuple(labels.shape)}"
            )
