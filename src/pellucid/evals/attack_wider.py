"""The wider set of attacks, through the adversarial-robustness-toolbox (extra `attacks`).

Carlini & Wagner and DeepFool look for the smallest change, Square needs no gradient, AutoAttack combines several. Use
them to doubt a robustness that PGD found. Images already misclassified are left alone, and every success is confirmed
by a forward pass of the model itself.
"""

import dataclasses as dc
import importlib
import importlib.util
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError
from pellucid.attack.ascent import attack_mode, check_attack, check_images, check_logits
from pellucid.attack.ball import L2, Ball, Linf
from pellucid.rng import derive
from pellucid.train import logits_of


@dc.dataclass(frozen=True)
class Fooled:
    """Attacked images, whether each is misclassified, and how far it moved: largest change of a pixel, L2 length.

    An image that withstood the attack, or was wrong before it, is returned as it was: distance 0.
    """

    inputs: Float[Tensor, "batch ..."]
    reached: Bool[Tensor, " batch"]
    linf: Float[Tensor, " batch"]
    l2: Float[Tensor, " batch"]


def carlini_wagner(
    model: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    targets: Int[Tensor, " batch"],
    *,
    steps: int = 20,
    searches: int = 9,
    first_weight: float = 1.0,
    rate: float = 0.01,
    confidence: float = 0.0,
    seed: int = 0,
) -> Fooled:
    """Smallest L2 change by gradient descent on ||delta||^2 + c * margin, in a variable that keeps pixels in [0, 1].

    c starts at `first_weight` and is doubled or bisected in `searches` rounds; too small a c finds nothing. Dear: a
    step is a line search of several forward passes. Pixels at exactly 0 or 1 hardly move in that variable, so on
    images that are mostly black or white (MNIST) it misses what `pellucid.attack.minimal_l2` finds.

    References: Carlini & Wagner, "Towards evaluating the robustness of neural networks", 2017, section V.
    """

    def attack(estimator: Any) -> Any:
        return _art("attacks.evasion").CarliniL2Method(
            estimator, confidence=confidence, learning_rate=rate, binary_search_steps=searches,
            initial_const=first_weight, max_iter=steps,
            batch_size=len(inputs), verbose=False,
        )  # fmt: skip

    return _run(model, inputs, targets, attack, seed=seed)


def deepfool(
    model: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    targets: Int[Tensor, " batch"],
    *,
    steps: int = 50,
    nearest_classes: int = 10,
    seed: int = 0,
) -> Fooled:
    """Smallest L2 change by stepping across the linearised boundary to the nearest of the likeliest classes.

    References: Moosavi-Dezfooli et al., "DeepFool", CVPR 2016, algorithm 2.
    """

    def attack(estimator: Any) -> Any:
        return _art("attacks.evasion").DeepFool(
            estimator, max_iter=steps, nb_grads=nearest_classes, batch_size=len(inputs), verbose=False
        )

    return _run(model, inputs, targets, attack, seed=seed)


def square(
    model: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    targets: Int[Tensor, " batch"],
    *,
    ball: Ball,
    queries: int = 1000,
    restarts: int = 1,
    seed: int = 0,
) -> Fooled:
    """Random search with squares of one colour, without any gradient: what it breaks, no masking can hide.

    References: Andriushchenko et al., "Square attack", ECCV 2020.
    """
    norm = _norm(ball, inputs)

    def attack(estimator: Any) -> Any:
        return _art("attacks.evasion").SquareAttack(
            estimator, norm=norm, eps=ball.radius, max_iter=queries, nb_restarts=restarts, batch_size=len(inputs),
            verbose=False,
        )  # fmt: skip

    return _run(model, inputs, targets, attack, seed=seed)


def auto_attack(
    model: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    targets: Int[Tensor, " batch"],
    *,
    ball: Ball,
    seed: int = 0,
) -> Fooled:
    """APGD on the cross-entropy, APGD on the difference of logits ratio, DeepFool and Square, each on what is left.

    References: Croce & Hein, "Reliable evaluation of adversarial robustness", ICML 2020.
    """
    norm = _norm(ball, inputs)

    def attack(estimator: Any) -> Any:
        art = _art("attacks.evasion")
        common = {"batch_size": len(inputs), "verbose": False}
        gradient = [
            art.AutoProjectedGradientDescent(
                estimator, norm=norm, eps=ball.radius, eps_step=ball.radius / 4, loss_type=loss, **common
            )
            for loss in ("cross_entropy", "difference_logits_ratio")
        ]
        others = [
            art.DeepFool(estimator, max_iter=50, **common),
            art.SquareAttack(estimator, norm=norm, eps=ball.radius, max_iter=1000, **common),
        ]
        return art.AutoAttack(
            estimator, norm=norm, eps=ball.radius, eps_step=ball.radius / 4, attacks=[*gradient, *others],
            batch_size=len(inputs),
        )  # fmt: skip

    return _run(model, inputs, targets, attack, seed=seed)


class _View(nn.Module):
    """The user's model without its parameters or mode: the toolbox zeroes gradients and switches modes on what it gets."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.inner = (model,)

    def forward(self, inputs: Tensor) -> Tensor:
        return logits_of(self.inner[0](inputs))


def _run(
    model: nn.Module, inputs: Tensor, targets: Tensor, attack: Callable[[Any], Any], *, seed: int
) -> Fooled:
    check_images(inputs)
    if targets.shape != (len(inputs),):
        raise DataError(
            f"targets must hold one class for each of the {len(inputs)} images, got {tuple(targets.shape)}"
        )
    if inputs.device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"the toolbox runs on cpu and cuda, not on {inputs.device.type}: move model and images"
        )
    found = inputs.detach().clone()
    with attack_mode(model), _own_randomness(seed):
        with torch.no_grad():
            logits = logits_of(model(found))
        check_logits(logits)
        right = logits.argmax(1) == targets
        if bool(right.any()):
            runner = attack(_estimator(model, found, logits.shape[1]))
            moved = runner.generate(x=found[right].cpu().numpy(), y=targets[right].cpu().numpy())
            found[right] = torch.from_numpy(moved).to(found).clamp_(0, 1)
        with torch.no_grad():
            reached = logits_of(model(found)).argmax(1) != targets
    held = right & ~reached
    found[held] = inputs.detach()[held]
    delta = found - inputs.detach()
    return Fooled(found, reached, Linf(1.0).length(delta), L2(0.0).length(delta))


def _estimator(model: nn.Module, inputs: Tensor, classes: int) -> Any:
    return _art("estimators.classification").PyTorchClassifier(
        _View(model), loss=nn.CrossEntropyLoss(), input_shape=tuple(inputs.shape[1:]), nb_classes=classes,
        clip_values=(0.0, 1.0), device_type="gpu" if inputs.device.type == "cuda" else "cpu",
    )  # fmt: skip


def _art(part: str) -> Any:
    if importlib.util.find_spec("art") is None:
        raise ConfigError(
            "this attack runs on the adversarial-robustness-toolbox, which is not installed: pip install 'pellucid[attacks]'"
        )
    return importlib.import_module(f"art.{part}")


def _norm(ball: Ball, inputs: Tensor) -> float | int:
    check_attack(inputs, ball=ball, steps=1, restarts=1)
    if isinstance(ball, Linf):
        return float("inf")
    if isinstance(ball, L2):
        return 2
    raise ConfigError(f"this attack knows the balls Linf and L2, got {type(ball).__name__}")


@contextmanager
def _own_randomness(seed: int) -> Generator[None]:
    """The toolbox draws from the global generators: seed them for a while, then put them back."""
    before = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "art"))
        np.random.seed(derive(seed, "art") % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)
