"""Accuracy under attack against the radius, with the checks that say whether the attack deserves belief."""

import dataclasses as dc
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.attack.ascent import attack_mode, check_images, check_logits, input_gradient
from pellucid.attack.ball import Ball, Linf, check_fits
from pellucid.attack.classifier import Loss, Plan, masked_message, run_plan
from pellucid.attack.losses import cross_entropy
from pellucid.data import Batch, Source
from pellucid.evals._accuracy import class_logits, labelled, model_device
from pellucid.evals.attack.adequacy import Numbers, notes, problems
from pellucid.evals.classify import wilson
from pellucid.train import logits_of

VERSION = "1"
ATTACK = ("ball", "n", "checked", "steps", "restarts", "seed")
"""What curves have in common that can be joined."""


@dc.dataclass(frozen=True)
class AttackCurve:
    """Accuracy (fraction of all images) at each radius, with 95 % Wilson intervals, and what speaks against it.

    `fooled[r, i]` tells whether image `index[i]` is wrong at radius r: misclassified from the start or by the attack.
    `fgsm`, `transfer`: accuracy under one step, and under images made for another model. `again`, `more_steps`, and
    `whole`: the first `checked` images under PGD, with twice the steps, and with the whole pixel range to move in.
    `gradient_norm`: mean L2 norm of the cross-entropy's gradient at the clean image; `zero_gradient`: the fraction
    of images where it is exactly 0. `problems` are checks that failed, `notes` what to know about a sound curve.
    """

    ball: str
    radii: tuple[float, ...]
    n: int
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    fgsm: tuple[float, ...]
    transfer: tuple[float, ...] | None
    checked: int
    again: tuple[float, ...]
    more_steps: tuple[float, ...]
    whole: float
    chance: float
    gradient_norm: float
    zero_gradient: float
    steps: int
    restarts: int
    seed: int
    index: Int[Tensor, " n"]
    fooled: Bool[Tensor, "radii n"]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def adequate(self) -> bool:
        """True when every check passed: only then does the curve say something about robustness."""
        return not self.problems

    @property
    def clean(self) -> float:
        """Accuracy without attack."""
        return self.accuracy[0]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each radius, for a table."""
        rows = len(self.radii)
        return {
            "ball": [self.ball] * rows,
            "radius": list(self.radii),
            "accuracy": list(self.accuracy),
            "low": list(self.low),
            "high": list(self.high),
            "n": [self.n] * rows,
            "fgsm": list(self.fgsm),
            "transfer": [float("nan")] * rows if self.transfer is None else list(self.transfer),
            "more_steps": list(self.more_steps),
        }


def attack_curve(
    model: nn.Module,
    source: Source,
    radii: Sequence[float],
    *,
    ball: Callable[[float], Ball] = Linf,
    steps: int = 20,
    restarts: int = 1,
    loss: Loss = cross_entropy,
    surrogate: nn.Module | None = None,
    checked: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AttackCurve:
    """Attack every image of a source at every radius and count what stays right.

    accuracy(r) = fraction of images that are right and stay right under PGD in the ball of radius r. Radius 0 is
    always part of the curve. Start noise is keyed by (seed, image), so batch size and order do not matter.

    Args:
        radii: in pixel range, any order; 8 / 255, not 8.
        ball: `Linf` or `L2`.
        surrogate: another model of the same task; images made for it must not fool `model` better than its own.
        checked: how many images (the first ones) the two dear checks use: twice the steps, whole pixel range.
        progress: called with (passes over the source done, passes in all).

    Raises:
        ConfigError: a radius outside the pixel range, a model that returns probabilities or no logits.
        DataError: a source without labels, images outside [0, 1].
        NumericError: no gradient, NaN, or a gradient that is zero for every image: no curve, hence no verdict.

    References: Madry et al., ICLR 2018; Carlini et al., "On evaluating adversarial robustness", 2019.
    """
    device = model_device(model) if device is None else torch.device(device)
    view = class_logits(model, source).to(device)
    maker = None if surrogate is None else class_logits(surrogate, source).to(device)
    balls = [ball(r) for r in _sorted_radii(radii)]
    widest = ball(_check_first(source, balls))
    plans = [_plan(b, steps, restarts, loss) for b in balls]
    clean = clean_pass(view, source, batch_size=batch_size, device=device)
    few = source.take(range(min(checked, len(source))))
    tick = _ticker(progress, len(plans) * (3 if maker is None else 4) + 1)

    def fallen(
        plan: Plan, on: Source, *, seed: int = seed, maker: nn.Module | None = None
    ) -> Bool[Tensor, " n"]:
        found = [
            _fallen(view, batch, targets, clean, plan=plan, seed=seed, maker=maker)
            for batch, targets in labelled(on, batch_size, device)
        ]
        tick()
        return torch.cat(found)

    pgd = torch.stack([fallen(plan, source) for plan in plans])
    fgsm = torch.stack([fallen(_one_step(plan), source) for plan in plans])
    # Another seed: with the same one the first half of the longer climb would be the shorter climb itself.
    more = torch.stack([fallen(dc.replace(p, steps=2 * p.steps), few, seed=seed + 1) for p in plans])
    whole = fallen(_plan(widest, steps, restarts, loss), few)[None]
    transfer = None if maker is None else torch.stack([fallen(plan, source, maker=maker) for plan in plans])
    return _curve(clean, plans, pgd, fgsm=fgsm, more=more, whole=whole, transfer=transfer, seed=seed)


@dc.dataclass(frozen=True)
class Clean:
    """The pass without attack: what is right, the L2 norm of each image's gradient, sample numbers, classes."""

    right: Bool[Tensor, " n"]
    gradient: Float[Tensor, " n"]
    index: Int[Tensor, " n"]
    classes: int

    @functools.cached_property
    def place(self) -> dict[int, int]:
        """Where in this pass a sample number stands."""
        return {number: at for at, number in enumerate(self.index.tolist())}


def clean_pass(model: nn.Module, source: Source, *, batch_size: int, device: torch.device) -> Clean:
    """Predict every image and take the gradient of its cross-entropy; `NumericError` when that is zero everywhere."""
    right: list[Tensor] = []
    norms: list[Tensor] = []
    index: list[Tensor] = []
    classes = 0
    with attack_mode(model):
        for batch, targets in labelled(source, batch_size, device):
            x = batch.inputs.requires_grad_()
            logits = logits_of(model(x))
            check_logits(logits)
            classes = logits.shape[1]
            norms.append(input_gradient(cross_entropy(logits, targets), x)[1].cpu())
            right.append((logits.argmax(1) == targets).cpu())
            index.append(batch.index)
    found = Clean(torch.cat(right), torch.cat(norms), torch.cat(index), classes)
    if not bool(found.gradient.any()):
        raise NumericError(masked_message(len(found.gradient)))
    return found


def _fallen(
    model: nn.Module,
    batch: Batch,
    targets: Tensor,
    clean: Clean,
    *,
    plan: Plan,
    seed: int,
    maker: nn.Module | None,
) -> Bool[Tensor, " batch"]:
    """Which images of a batch are wrong under the attack; those wrong from the start are not attacked."""
    right = clean.right[[clean.place[i] for i in batch.index.tolist()]]
    fallen = ~right
    rows = torch.nonzero(right).flatten()
    if len(rows) == 0:
        return fallen
    here = rows.to(batch.inputs.device)
    inputs, targets, index = batch.inputs[here], targets[here], batch.index[rows]
    if maker is None:
        reached = run_plan(model, inputs, targets, plan=plan, index=index, seed=seed).reached
    else:
        made = run_plan(
            maker, inputs, targets, plan=dc.replace(plan, early_stop=False), index=index, seed=seed
        )
        with attack_mode(model), torch.no_grad():
            reached = logits_of(model(made.inputs)).argmax(1) != targets
    fallen[rows] = reached.cpu()
    return fallen


def _curve(
    clean: Clean,
    plans: Sequence[Plan],
    pgd: Tensor,
    *,
    fgsm: Tensor,
    more: Tensor,
    whole: Tensor,
    transfer: Tensor | None,
    seed: int,
) -> AttackCurve:
    n, checked = len(clean.right), more.shape[1]
    intervals = [wilson(int((~fallen).sum()), n) for fallen in pgd]
    numbers = Numbers(
        n=n, checked=checked, chance=1 / clean.classes, clean=float(clean.right.double().mean()),
        radii=tuple(plan.ball.radius for plan in plans), accuracy=_rates(pgd), fgsm=_rates(fgsm),
        again=_rates(pgd[:, :checked]), more_steps=_rates(more), whole=_rates(whole)[0],
        transfer=None if transfer is None else _rates(transfer),
        zero_gradient=float((clean.gradient == 0).double().mean()),
    )  # fmt: skip
    return AttackCurve(
        ball=plans[-1].ball.name, radii=numbers.radii, n=n, accuracy=numbers.accuracy,
        low=tuple(low for low, _ in intervals), high=tuple(high for _, high in intervals), fgsm=numbers.fgsm,
        transfer=numbers.transfer, checked=checked, again=numbers.again, more_steps=numbers.more_steps,
        whole=numbers.whole, chance=numbers.chance, gradient_norm=float(clean.gradient.double().mean()),
        zero_gradient=numbers.zero_gradient, steps=plans[-1].steps, restarts=plans[-1].restarts, seed=seed,
        index=clean.index, fooled=pgd, problems=problems(numbers), notes=notes(numbers),
    )  # fmt: skip


def joined(curves: Sequence[AttackCurve]) -> AttackCurve:
    """One curve of several that differ in their radii alone; the checks are made again over all radii.

    Raises:
        DataError: curves of other images, or of another attack.
    """
    if not curves:
        raise DataError("no curve to join")
    first = curves[0]
    for other in curves[1:]:
        if not torch.equal(other.index, first.index) or any(
            getattr(other, name) != getattr(first, name) for name in ATTACK
        ):
            raise DataError(f"curves of other images or of another attack ({ATTACK}) do not make one curve")
    at = {r: (curve, i) for curve in curves for i, r in enumerate(curve.radii)}
    radii = tuple(sorted(at))

    def column(name: str) -> tuple[float, ...]:
        return tuple(getattr(at[r][0], name)[at[r][1]] for r in radii)

    transfer = column("transfer") if all(curve.transfer is not None for curve in curves) else None
    values = {name: column(name) for name in ("accuracy", "low", "high", "fgsm", "again", "more_steps")}
    numbers = Numbers(
        n=first.n, checked=first.checked, chance=first.chance, clean=first.clean, radii=radii,
        accuracy=values["accuracy"], fgsm=values["fgsm"], again=values["again"], more_steps=values["more_steps"],
        whole=first.whole, transfer=transfer, zero_gradient=first.zero_gradient,
    )  # fmt: skip
    return dc.replace(
        first, radii=radii, accuracy=values["accuracy"], low=values["low"], high=values["high"], fgsm=values["fgsm"],
        again=values["again"], more_steps=values["more_steps"], transfer=transfer,
        fooled=torch.stack([at[r][0].fooled[at[r][1]] for r in radii]),
        problems=problems(numbers), notes=notes(numbers),
    )  # fmt: skip


def _rates(fallen: Bool[Tensor, "rows n"]) -> tuple[float, ...]:
    return tuple(float(v) for v in (~fallen).double().mean(1))


def _plan(ball: Ball, steps: int, restarts: int, loss: Loss) -> Plan:
    # In a ball of radius 0 there is nowhere to go: one look at the image itself.
    return (
        Plan(ball, 1, noisy=False, loss=loss)
        if ball.radius == 0
        else Plan(ball, steps, restarts=restarts, loss=loss)
    )


def _one_step(plan: Plan) -> Plan:
    return Plan(plan.ball, 1, plan.ball.radius, noisy=False, loss=plan.loss)


def _sorted_radii(radii: Sequence[float]) -> list[float]:
    if not any(r > 0 for r in radii):
        raise ConfigError(f"an attack curve needs a radius above 0, got {list(radii)}")
    return sorted({0.0, *(float(r) for r in radii)})


def _check_first(source: Source, balls: Sequence[Ball]) -> float:
    """Find wrong radii and pixels on one image, before the work starts; the radius of the whole pixel range."""
    if len(source) == 0:
        raise DataError(f"source {source.name!r} has no images to attack")
    inputs = next(iter(source.batches(1))).inputs
    check_images(inputs)
    for ball in balls:
        check_fits(ball, inputs)
    return float(balls[0].length(torch.ones((1, *inputs.shape[1:]))))


def _ticker(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick
