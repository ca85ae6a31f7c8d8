"""Assertions: what a decoding must or must not contain, enforced in training and checked at run time.

    training   J += weight * sum_d alpha^d mean dist(c(x^(d)), T)
    run time   example x fails at layer l when dist(c(g(h_l)), T) > tolerance

A satisfied assertion is a statement about decodings under one checker. It does not show that the activation lost what the
checker looks for: the generator can hide it from a frozen model. Probe activations and decodings afresh for that.

References: Wu, Goodman, Ermon, NeurIPS 2021, equation 8 for the protected attribute (with the argument order that has a
gradient); the general form is ours.
"""

import dataclasses as dc
import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid._checks import ConfigError, NumericError, check_range
from pellucid.data import Source
from pellucid.methods.decode.decoded import Decoded, decode_layers
from pellucid.methods.decode.model import Decodable, looking, row_parts
from pellucid.train import logits_of
from pellucid.train.update import modes

Distance = Callable[[Decoded], Float[Tensor, " rows"]]


@dc.dataclass(frozen=True)
class Assertion:
    """A claim about decodings: `distance` from what is allowed, 0 where it holds, with a gradient to the decoding.

    At run time `distance` sees rows and layers a few at a time, so each row's number must come from that row of `Decoded`.

    Args:
        tolerance: the largest distance that passes at run time; one number, or one by layer (`calibrated`).
        layers: the layers it is about, at run time; all by default.
        weight: in the training objective.
    """

    distance: Distance
    tolerance: float | Mapping[str, float] = 0.0
    _: dc.KW_ONLY
    layers: tuple[str, ...] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.weight, 0.0, math.inf, "weight")

    def __call__(self, decoded: Decoded) -> Float[Tensor, " rows"]:
        """The distance of each row: what training minimises."""
        return self.distance(decoded)

    def tolerances(self, layers: tuple[str, ...]) -> list[float]:
        """The tolerance at each of some layers."""
        if not isinstance(self.tolerance, Mapping):
            return [float(self.tolerance)] * len(layers)
        if missing := [name for name in layers if name not in self.tolerance]:
            raise ConfigError(f"the assertion has no tolerance for layers {missing}; calibrate it on them")
        return [float(self.tolerance[name]) for name in layers]


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no parameter with a gradient: how a checker must be. Gradients still pass through it."""
    return model.eval().requires_grad_(False)


def uniform_cross_entropy(logits: Float[Tensor, "rows classes"]) -> Float[Tensor, " rows"]:
    """CE(u, m) = -sum_k log m_k / K with u uniform, in nats: at least log K, where m is uniform.

    The paper prints the arguments the other way round, which is the constant log K and has no gradient.
    `methods.fair` has the same function: methods do not import each other, so either can be used without the other.
    """
    return -logits.log_softmax(-1).mean(-1)


def uniform(model: nn.Module, *, tolerance: float = 0.1, weight: float = 1.0) -> Assertion:
    """A frozen model can tell nothing from the decoding: dist = KL(u || m(x^(d))), in nats.

    Raises:
        ConfigError: the model is not frozen (`freeze`).
    """
    frozen = checker(model)

    def distance(decoded: Decoded) -> Tensor:
        logits = frozen(decoded.decoding)
        return uniform_cross_entropy(logits) - math.log(logits.shape[-1])

    return Assertion(distance, tolerance, weight=weight)


def agrees_with(model: nn.Module, *, tolerance: float = 0.1, weight: float = 1.0) -> Assertion:
    """The classifier says of the decoding what a frozen model of the same classes says: dist = KL(m || f), in nats."""
    frozen = checker(model)

    def distance(decoded: Decoded) -> Tensor:
        theirs, ours = frozen(decoded.decoding), decoded.logits
        if theirs.shape != ours.shape:
            raise ConfigError(
                f"the model to agree with gives {theirs.shape[-1]} classes, the classifier {ours.shape[-1]}"
            )
        log_m = theirs.log_softmax(-1)
        return (log_m.exp() * (log_m - ours.log_softmax(-1))).sum(-1)

    return Assertion(distance, tolerance, weight=weight)


def keeps_label(*, weight: float = 1.0) -> Assertion:
    """f(g(h_l)) has the label of f(x): dist = how far another class is ahead, in logits; 0 where none is."""

    def distance(decoded: Decoded) -> Tensor:
        label = decoded.base_logits.argmax(-1, keepdim=True)
        own = decoded.logits.gather(-1, label)
        others = decoded.logits.scatter(-1, label, -math.inf)
        return (others.amax(-1) - own.squeeze(-1)).clamp_min(0)

    return Assertion(distance, 0.0, weight=weight)


def residual_below(tolerance: float | Mapping[str, float] = math.inf, *, weight: float = 1.0) -> Assertion:
    """The decoding is the input: dist = R(x, g(h_l)). Let `calibrated` set the tolerance from held-out inputs."""
    return Assertion(lambda decoded: decoded.residual, tolerance, weight=weight)


def in_range(low: float, high: float, *, weight: float = 1.0) -> Assertion:
    """Every number of the decoding lies in [low, high]: dist = the largest excess, in the input's unit."""
    if not low <= high:
        raise ConfigError(f"in_range needs low <= high, got {low} and {high}")

    def distance(decoded: Decoded) -> Tensor:
        flat = decoded.decoding.flatten(1)
        return torch.maximum(low - flat, flat - high).amax(1).clamp_min(0)

    return Assertion(distance, 0.0, weight=weight)


def value_between(
    check: Callable[[Tensor], Tensor], low: float, high: float, *, tolerance: float = 0.0, weight: float = 1.0
) -> Assertion:
    """A checker of your own, decodings -> one number a row, stays in [low, high]: dist = how far it is outside.

    For anything else write `Assertion(distance, tolerance)` with a function of `Decoded`.
    """
    if not low <= high:
        raise ConfigError(f"value_between needs low <= high, got {low} and {high}")
    if isinstance(check, nn.Module):
        refuse_trainable(check)

    def distance(decoded: Decoded) -> Tensor:
        value = check(decoded.decoding)
        if value.shape != (len(decoded.raw),):
            raise ConfigError(
                f"the checker must give one number for each of {len(decoded.raw)} decodings, came {tuple(value.shape)}"
            )
        return torch.maximum(low - value, value - high).clamp_min(0)

    return Assertion(distance, tolerance, weight=weight)


def checker(model: nn.Module) -> Callable[[Tensor], Float[Tensor, "rows classes"]]:
    """Logits of a frozen model on decodings, in evaluation mode, gradients passing through; looked at on every call."""
    refuse_trainable(model)

    def logits(decodings: Tensor) -> Tensor:
        refuse_trainable(model)
        with modes(model, training=False):
            return logits_of(model(decodings))

    return logits


def refuse_trainable(model: nn.Module) -> None:
    """Raise unless no parameter asks for a gradient: a checker that learns along would agree to anything."""
    moving = [name for name, p in model.named_parameters() if p.requires_grad]
    if moving:
        raise ConfigError(
            f"the checker {type(model).__name__} is not frozen ({len(moving)} parameters ask for gradients, such as "
            f"{moving[0]!r}); give freeze(model)"
        )


@dc.dataclass(frozen=True)
class Checked:
    """An assertion on one batch: distances by layer and example, and the tolerances they were held to."""

    layers: tuple[str, ...]
    distance: Float[Tensor, "layers batch"]
    tolerances: tuple[float, ...]

    @property
    def tolerance(self) -> Float[Tensor, " layers"]:
        """The largest distance that passes at each layer."""
        return self.distance.new_tensor(self.tolerances)

    @property
    def margin(self) -> Float[Tensor, "layers batch"]:
        """Tolerance less distance: below 0 the assertion fails."""
        return self.tolerance[:, None] - self.distance

    @property
    def failed(self) -> Tensor:
        """(layers, batch): where the assertion fails."""
        return self.margin < 0

    @property
    def passed(self) -> Tensor:
        """(batch,): whether an example passes at every layer."""
        return ~self.failed.any(0)


def check_assertions(
    decodable: Decodable, inputs: Float[Tensor, "batch ..."], assertions: Mapping[str, Assertion]
) -> dict[str, Checked]:
    """Run-time check of a batch: every assertion at every one of its layers; decodings are made once for all.

    Raises:
        NumericError: a distance that is no number.
    """
    with looking(decodable, inputs):
        base, seen = decodable.read(inputs)
        return check_seen(decodable, inputs, assertions, base=base, seen=seen)


def check_seen(
    decodable: Decodable,
    inputs: Tensor,
    assertions: Mapping[str, Assertion],
    *,
    base: Tensor,
    seen: Mapping[str, Tensor],
) -> dict[str, Checked]:
    """The same from a forward pass that was made already, in evaluation mode.

    Rows and layers are checked a few at a time, while their decodings are in the caches; memory has a bound by that.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in assertions}
    for few in row_parts(inputs, seen.values()):
        some = {layer: seen[layer][few] for layer in decodable.layers}
        here = _distances(decodable, inputs[few], assertions, base=base[few], seen=some)
        for name, distance in here.items():
            parts[name].append(distance)
    found: dict[str, Checked] = {}
    for name, assertion in assertions.items():
        layers, distance = decodable.layers, torch.cat(parts[name], 1)
        if assertion.layers:
            layers = assertion.layers
            distance = distance[[decodable.decoder.place(layer) for layer in layers]]
        # One look at the sum tells of most batches that there is none.
        if math.isnan(float(distance.detach().sum())) and bool(distance.isnan().any()):
            raise NumericError(
                f"the assertion {name!r} gives NaN for {int(distance.isnan().any(0).sum())} examples"
            )
        found[name] = Checked(layers, distance, tuple(assertion.tolerances(layers)))
    return found


def _distances(
    decodable: Decodable,
    inputs: Tensor,
    assertions: Mapping[str, Assertion],
    *,
    base: Tensor,
    seen: Mapping[str, Tensor],
) -> dict[str, Float[Tensor, "layers rows"]]:
    """Each assertion's distance at every layer."""
    parts: dict[str, list[Tensor]] = {name: [] for name in assertions}
    model, decoder = decodable.model, decodable.decoder
    for group in decoder.groups(inputs):
        decoded, _ = decode_layers(model, decoder, inputs, seen, logits=base, targets=None, layers=group)
        for name, assertion in assertions.items():
            distance = assertion(decoded)
            if distance.shape != decoded.raw.shape[:1]:
                raise ConfigError(
                    f"the assertion {name!r} must return one distance for each of {len(decoded.raw)} decodings, came "
                    f"{tuple(distance.shape)}"
                )
            parts[name].append(distance.unflatten(0, (len(group), -1)))
        del decoded  # else it would lie in memory beside the next one
    return {name: torch.cat(distances) for name, distances in parts.items()}


def calibrated(
    assertion: Assertion,
    decodable: Decodable,
    source: Source,
    *,
    quantile: float = 0.99,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
) -> Assertion:
    """The assertion with a tolerance by layer: the `quantile` of its distance over held-out inputs.

    About (1 - quantile) of inputs like these will then fail at each layer, and somewhat more at any of them.

    Args:
        source: inputs that nothing was trained on.

    Raises:
        ConfigError: too few examples to know that quantile.
    """
    check_range(quantile, 0.0, 1.0, "quantile")
    if len(source) * (1 - quantile) < 1:
        raise ConfigError(
            f"{len(source)} held-out examples cannot give the {quantile:g} quantile: at least "
            f"{math.ceil(1 / max(1 - quantile, 1e-9))} are needed"
        )
    layers = assertion.layers or decodable.layers
    loose = dc.replace(assertion, tolerance=math.inf)
    parts = [
        check_assertions(decodable, batch.inputs.to(device), {"": loose})[""].distance.detach().cpu()
        for batch in source.batches(batch_size)
    ]
    tolerance = torch.cat(parts, 1).double().quantile(quantile, dim=1, interpolation="higher")
    return dc.replace(assertion, tolerance=dict(zip(layers, tolerance.tolist(), strict=True)))
