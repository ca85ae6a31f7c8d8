"""The objectives, as terms for `fit` and as plain numbers for a loop of your own.

    decode     J = CE(y, f(x)) + beta mean_l R(x, g(h_l))                                                (DecodeTerm)
    recursive  J = CE(y, f(x)) + sum_d alpha^d [CE(y, f(x^(d))) + beta R(x, x^(d)) + sum_k w_k demand_k]  (RecursiveTerm)

The terms are everything but CE(y, f(x)), which is `CrossEntropy`, and their weight in `fit` stays 1. Nothing is detached:
R also shapes the classifier. R always compares with the original x.

References: Wu, Goodman, Ermon, NeurIPS 2021, equations 4, 5, 7 and 8. Defaults are ours: the paper's are not published.
"""

import dataclasses as dc
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid._checks import ConfigError, DataError, check_range
from pellucid.methods.decode.decoded import Decoded, Demand, decode_layers, unroll
from pellucid.methods.decode.likelihood import Reduce, mean_over_inputs
from pellucid.methods.decode.model import Decodable, Decoder
from pellucid.methods.decode.paths import Path, draw_path
from pellucid.methods.decode.stall import StallWatch
from pellucid.taps import Tap
from pellucid.train import Step, logits_of

ALPHA = 0.8
"""Discount of a step of self-composition."""

BETA = 10.0
"""Weight of the mean squared error; times the input's size where the loss is summed."""


@dc.dataclass(frozen=True)
class WarmUp:
    """alpha rising evenly to its value over the first `epochs` epochs; a third of a training is usual."""

    epochs: int
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        check_range(self.alpha, 0.0, 1.0, "alpha")
        if self.epochs < 1:
            raise ConfigError(f"a warm-up takes at least 1 epoch, got {self.epochs}")

    def __call__(self, epoch: int) -> float:
        """The discount in an epoch, counted from 0."""
        return self.alpha * min(1.0, (epoch + 1) / self.epochs)


def decode_losses(
    decodable: Decodable, inputs: Float[Tensor, "batch ..."], seen: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, ""]]:
    """R(x, g(h_l)) by layer, the mean over batch and dimensions, unweighted, with gradients.

    Args:
        seen: the activations, from `watch(model, decodable.taps, grad=True)` around your own forward pass.
    """
    raw, _ = decodable.decoder.raw({name: seen[name] for name in decodable.layers}, inputs)
    by_layer = decodable.decoder.residual(inputs, raw).unflatten(0, (len(decodable.layers), -1)).mean(1)
    return dict(zip(decodable.layers, by_layer.unbind(), strict=True))


def recursive_losses(
    decodable: Decodable,
    inputs: Float[Tensor, "batch ..."],
    targets: Int[Tensor, " batch"] | None,
    seen: Mapping[str, Tensor],
    *,
    logits: Float[Tensor, "batch classes"],
    path: Path,
    demands: Mapping[str, Demand] | None = None,
) -> list[dict[str, Float[Tensor, ""]]]:
    """For each depth d = 1, 2, ... of a path: `classify`, `decode` and each demand by name, unweighted means.

    The objective is sum over d of alpha^d (classify + beta * decode + ...). `classify` is left out without targets.
    """
    steps = unroll(
        decodable.model, decodable.decoder, inputs, path, first=seen[path[0]], logits=logits, targets=targets
    )
    return [_terms(decoded, mean_over_inputs, demands or {}) for decoded, _ in steps]


def _terms(decoded: Decoded, reduce: Reduce, demands: Mapping[str, Demand]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if decoded.targets is not None:
        found["classify"] = F.cross_entropy(decoded.logits, decoded.targets)
    found["decode"] = _reconstruction(decoded, reduce)
    return found | {name: demanded(name, demand, decoded) for name, demand in demands.items()}


def _reconstruction(decoded: Decoded, reduce: Reduce) -> Tensor:
    """The mean over rows of R, reduced over dimensions as asked."""
    if reduce is mean_over_inputs:
        return decoded.residual.mean()
    decoded.decoder.residual(decoded.inputs[:1], decoded.raw[:1])  # says what does not fit
    return reduce(decoded.decoder.likelihood.loss(decoded.inputs, decoded.raw)).mean()


def demanded(name: str, demand: Demand, decoded: Decoded) -> Float[Tensor, ""]:
    """The mean of one demand over rows; refuses one that no gradient passes through."""
    value = demand(decoded)
    if value.shape != (len(decoded.raw),):
        raise ConfigError(
            f"the demand {name!r} must return one number for each of {len(decoded.raw)} rows, came "
            f"{tuple(value.shape)}"
        )
    if torch.is_grad_enabled() and decoded.decoding.requires_grad and not value.requires_grad:
        raise ConfigError(
            f"no gradient path from {name!r} to the decoding: its model must be frozen (freeze), but run without no_grad, "
            "detach or argmax"
        )
    return value.mean()


class DecodeTerm(nn.Module):
    """beta * mean over layers of R(x, g(h_l)): the term of DecNN, for `fit` on the classifier; its weight stays 1.

    With a frozen classifier only the generator is trained (`fit_generator` does that). Holds the decoder, so that `fit`
    moves it to the device and keeps it in checkpoints; its parameters belong in the optimizer.

    Args:
        beta: weight of R. The effective weight on the mean squared error is `effective_weight(inputs)`.
        reduce: over dimensions: `mean_over_inputs`, or `sum_over_inputs`, under which beta counts as many times more.
        demands: assertions or compositions on every layer's decoding, with their own weights; the mean over layers.
        patience: optimizer steps after which classification must have got somewhere, else a warning; 0 never warns.

    Raises:
        DataError: inputs that the likelihood cannot decode, with their range.
        ConfigError: shapes that do not fit.

    Warns:
        UserWarning: the classifier's cross-entropy is above half of log K after `patience` steps: beta is too large.
    """

    def __init__(
        self,
        decodable: Decodable,
        *,
        beta: float = BETA,
        reduce: Reduce = mean_over_inputs,
        demands: Mapping[str, Demand] | None = None,
        patience: int = 500,
    ):
        super().__init__()
        check_range(beta, 0.0, float("inf"), "beta")
        self.decoder, self.beta, self.reduce, self.demands = (
            decodable.decoder,
            beta,
            reduce,
            dict(demands or {}),
        )
        self.stall = StallWatch(patience, "beta")
        self._seen: dict[str, Tensor] = {}

    @property
    def taps(self) -> Mapping[str, Tap]:
        return self.decoder.taps

    def effective_weight(self, inputs: Float[Tensor, "batch ..."]) -> float:
        """beta in units of the mean over dimensions: beta itself for a mean, beta times their number for a sum."""
        return effective_weight(self.beta, self.reduce, self.decoder, inputs)

    def forward(self, step: Step, seen: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The term of one step."""
        _begin(self.decoder, self.stall, step)
        logits, targets = logits_of(step.output), step.batch.targets
        decoded, extra = decode_layers(
            step.model, self.decoder, step.batch.inputs, seen, logits=logits, targets=targets
        )
        value = self.beta * _reconstruction(decoded, self.reduce)
        for name, demand in self.demands.items():
            value = value + demand.weight * demanded(name, demand, decoded)
        by_layer = decoded.residual.detach().unflatten(0, (len(self.decoder.layers), -1)).mean(1)
        self._seen = dict(zip(self.decoder.layers, by_layer.unbind(), strict=True))
        return value if extra is None else value + extra

    @property
    def readings(self) -> dict[str, float]:
        """R by layer in the last step, mean over batch and dimensions."""
        return {name: float(value) for name, value in self._seen.items()}


class RecursiveTerm(nn.Module):
    """The terms of ReDecNN on decodings: sum_d alpha^d [CE(y, f(x^(d))) + beta R(x, x^(d)) + demands]; weight 1 in `fit`.

    One path is drawn at each step from the step's own stream and shared by the batch. Batch norm in the classifier sees
    decodings as it would see augmented inputs. alpha = 0 or depth = 0 give exactly 0.

    Args:
        depth: self-compositions, D. More than 1 only with a reason: it did not help in tests of the method.
        alpha: discount in [0, 1], or a function of the epoch such as `WarmUp(epochs)`.
        demands: assertions or compositions on x^(d), with their own weights.
        path: always this path of layer names, in place of a draw.

    Raises, Warns: as `DecodeTerm`; UserWarning for depth > 1 without a warm-up.
    """

    def __init__(
        self,
        decodable: Decodable,
        *,
        depth: int = 1,
        alpha: float | Callable[[int], float] = ALPHA,
        beta: float = BETA,
        reduce: Reduce = mean_over_inputs,
        demands: Mapping[str, Demand] | None = None,
        path: Sequence[str] | None = None,
        patience: int = 500,
    ):
        super().__init__()
        check_range(beta, 0.0, float("inf"), "beta")
        if depth < 0 or (path is not None and len(path) != depth):
            raise ConfigError(f"depth must be at least 0 and the length of the path, got {depth} and {path}")
        if not callable(alpha):
            check_range(alpha, 0.0, 1.0, "alpha")
            if depth > 1 and alpha > 0:
                warnings.warn(
                    f"depth {depth} without a warm-up may stall a deep plain network: alpha=WarmUp(a third of the epochs)",
                    stacklevel=2,
                )
        self.decoder, self.depth, self.alpha, self.beta = decodable.decoder, depth, alpha, beta
        self.reduce, self.demands = reduce, dict(demands or {})
        self.path = None if path is None else tuple(path)
        self.stall = StallWatch(patience, "beta, alpha or depth")
        self._seen: dict[str, Tensor] = {}

    @property
    def taps(self) -> Mapping[str, Tap]:
        return self.decoder.taps

    def effective_weight(self, inputs: Float[Tensor, "batch ..."]) -> float:
        """As `DecodeTerm.effective_weight`, before the discount."""
        return effective_weight(self.beta, self.reduce, self.decoder, inputs)

    def forward(self, step: Step, seen: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The term of one step."""
        alpha = self.alpha(step.epoch) if callable(self.alpha) else self.alpha
        inputs, targets = step.batch.inputs, step.batch.targets
        if not self.depth or not alpha:
            return inputs.new_zeros(())
        if targets is None:
            raise DataError("the recursive term classifies decodings and needs labels; this batch has none")
        _begin(self.decoder, self.stall, step)
        path = self.path or draw_path(self.decoder.layers, self.depth, step.rng)
        logits = logits_of(step.output)
        steps = unroll(
            step.model, self.decoder, inputs, path, first=seen[path[0]], logits=logits, targets=targets
        )
        total = inputs.new_zeros(())
        for depth, (decoded, extra) in enumerate(steps, start=1):
            terms = _terms(decoded, self.reduce, self.demands)
            total = total + alpha**depth * self._weighted(terms) + (0 if extra is None else extra)
            self._seen = {f"{name} {depth}": value.detach() for name, value in terms.items()}
        return total

    def _weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        value = terms["classify"] + self.beta * terms["decode"]
        for name, demand in self.demands.items():
            value = value + demand.weight * terms[name]
        return value

    @property
    def readings(self) -> dict[str, float]:
        """The unweighted terms of the last step at its deepest decoding, by name and depth."""
        return {name: float(value) for name, value in self._seen.items()}


def effective_weight(beta: float, reduce: Reduce, decoder: Decoder, inputs: Tensor) -> float:
    """beta times what `reduce` makes of a loss of 1 in every dimension."""
    with torch.no_grad():
        dims = decoder.likelihood.loss(inputs[:1], inputs[:1]).shape[1]
    return beta * float(reduce(torch.ones(1, dims)))


def _begin(decoder: Decoder, stall: StallWatch, step: Step) -> None:
    """What every step looks at first. On an accelerator looking waits for the device, so there inputs are checked once."""
    if step.iteration == 0 or step.batch.inputs.device.type == "cpu":
        decoder.likelihood.check(step.batch.inputs)
    joint = any(p.requires_grad for p in step.model.parameters())
    if torch.is_grad_enabled():
        decoder.remember(joint=joint)
    if joint:
        stall.look(step)
