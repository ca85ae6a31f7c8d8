"""The engine of every attack: gradients to the input alone, on a model that is left exactly as it was.

    x <- clip_[0,1]( clean + project( x + step * direction(grad score(x)) - clean ) )

The model runs in evaluation mode with frozen parameters, so batch-norm statistics, `.grad` and the mode of every
module are what they were before, also after an error. Start noise belongs to (seed, restart, index of the image):
an image is attacked in the same way whatever batch it comes in.
"""

import dataclasses as dc
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.attack.ball import Ball, check_fits
from pellucid.rng import rng

# (points, which rows of the batch they are) -> (score to raise, whether the point is already a success)
Value = Callable[
    [Float[Tensor, "active ..."], Int[Tensor, " active"]],
    tuple[Float[Tensor, " active"], Bool[Tensor, " active"]],
]


@dc.dataclass(frozen=True)
class Climb:
    """Where one run of projected ascent ended; `steepest` is the largest gradient norm (L2) met on the way."""

    inputs: Float[Tensor, "batch ..."]
    score: Float[Tensor, " batch"]
    reached: Bool[Tensor, " batch"]
    steepest: Float[Tensor, " batch"]


@contextmanager
def attack_mode(model: nn.Module) -> Generator[None]:
    """Evaluation mode, parameters frozen, gradients on; undone on the way out."""
    training = [module for module in model.modules() if module.training]
    learning = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in learning:
        p.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for p in learning:
            p.requires_grad_(True)
        for module in training:
            module.training = True


def gradient_step(
    x: Float[Tensor, "batch ..."],
    clean: Float[Tensor, "batch ..."],
    gradient: Float[Tensor, "batch ..."],
    *,
    ball: Ball,
    size: float,
) -> Float[Tensor, "batch ..."]:
    """One step along the gradient, back into the ball around `clean`, back into [0, 1]."""
    delta = ball.direction(gradient).mul_(size).add_(x).sub_(clean)
    return ball.project(delta).add_(clean).clamp_(0, 1)


def input_gradient(
    score: Float[Tensor, " batch"], x: Float[Tensor, "batch ..."]
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
    """Gradient of each image's score to that image, and its L2 norm; `NumericError` where there is none."""
    if not score.requires_grad:
        raise NumericError(
            "the score does not depend on the input through autograd, so there is no gradient to follow: look for "
            "detach(), .data, no_grad(), numpy or argmax in the forward pass, or use an attack without gradients"
        )
    (gradient,) = torch.autograd.grad(score.sum(), x)
    norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    if not bool(norm.isfinite().all()):
        bad = torch.nonzero(~norm.isfinite()).flatten().tolist()
        raise NumericError(
            f"the gradient to the input is NaN or infinite for {len(bad)} of {len(norm)} images (first: place {bad[0]} "
            "of the attacked batch): look for 0/0, sqrt(0) or log(0) in the forward pass; no attack can be trusted here"
        )
    return gradient, norm


def climb(
    value: Value,
    clean: Float[Tensor, "batch ..."],
    start: Float[Tensor, "batch ..."],
    *,
    ball: Ball,
    steps: int,
    step_size: float,
    early_stop: bool,
) -> Climb:
    """Projected ascent from `start`. With `early_stop` an image leaves at the first point that succeeds."""
    n = len(clean)
    found = start.clone()
    reached = torch.zeros(n, dtype=torch.bool, device=clean.device)
    score = clean.new_zeros(n)
    steepest = clean.new_zeros(n)
    rows = torch.arange(n, device=clean.device)
    x = start
    for _ in range(steps):
        x = x.detach().requires_grad_()
        now, done = value(x, rows)
        gradient, norm = input_gradient(now, x)
        x = x.detach()
        steepest[rows] = torch.maximum(steepest[rows], norm)
        if early_stop and bool(done.any()):
            left = rows[done]
            found[left], score[left], reached[left] = x[done], now.detach()[done], True
            rows, x, gradient = rows[~done], x[~done], gradient[~done]
            if len(rows) == 0:
                break
        x = gradient_step(x, clean[rows] if len(rows) < n else clean, gradient, ball=ball, size=step_size)
    if len(rows) > 0:
        with torch.no_grad():
            score[rows], reached[rows] = value(x, rows)
        found[rows] = x
    return Climb(found, score, reached, steepest)


def random_start(
    inputs: Float[Tensor, "batch ..."], index: Int[Tensor, " batch"], *, ball: Ball, seed: int, restart: int
) -> Float[Tensor, "batch ..."]:
    """A uniform point of each image's ball, cut to [0, 1], keyed by (seed, restart, index)."""
    shape = inputs.shape[1:]
    draws = [ball.noise(shape, rng(seed, "attack", restart, i)) for i in index.tolist()]
    return (inputs + torch.stack(draws).to(inputs)).clamp_(0, 1)


def check_attack(inputs: Float[Tensor, "batch ..."], *, ball: Ball, steps: int, restarts: int) -> None:
    """Everything about an attack that can be wrong before the model runs."""
    if steps < 1 or restarts < 1:
        raise ConfigError(f"steps and restarts must be at least 1, got {steps} and {restarts}")
    check_images(inputs)
    check_fits(ball, inputs)


def check_images(inputs: Shaped[Tensor, "batch ..."]) -> None:
    """Raise `DataError` unless images are finite floats in [0, 1]."""
    if not inputs.is_floating_point():
        raise DataError(f"images must be floats in [0, 1], got {inputs.dtype}; divide 8-bit images by 255")
    if inputs.numel() == 0:
        raise DataError(f"no image to attack: inputs have shape {tuple(inputs.shape)}")
    low, high = (float(v) for v in torch.aminmax(inputs.detach()))
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"images must lie in [0, 1], these lie in [{low:g}, {high:g}]: pass raw pixels / 255 and let the model "
            "normalise (pellucid.normalize puts mean and std in front of its first layer)"
        )


def check_logits(logits: Shaped[Tensor, "rows classes"]) -> None:
    """Raise unless logits have two or more classes, are finite, and are no table of probabilities."""
    if logits.shape[1] < 2:
        raise ConfigError(
            "the model returns one number an image; attacks need logits of at least two classes"
        )
    values = logits.detach()
    if not bool(values.isfinite().all()):
        raise NumericError("the model returns NaN or infinite logits; no attack can be trusted here")
    if bool((values >= 0).all()) and bool((values.sum(1) - 1).abs().max() < 1e-4):
        raise ConfigError(
            "the model returns probabilities (every row is >= 0 and sums to 1); attacks need logits, because a softmax "
            "under the cross-entropy's own softmax hides the gradient: drop the model's last softmax"
        )


def as_index(index: Int[Tensor, " batch"] | Sequence[int] | None, n: int) -> Int[Tensor, " batch"]:
    """The given index on the CPU, or 0..n-1."""
    found = torch.arange(n) if index is None else torch.as_tensor(index).cpu()
    if found.shape != (n,):
        raise DataError(
            f"index must name one sample for each of the {n} images, got shape {tuple(found.shape)}"
        )
    return found
