"""`Decodable`: a classifier with one generator that turns its activations back into inputs.

    x -> h_1 -> ... -> h_L -> logits,      decode(h_l) = g(A_l h_l), an input-like thing

Wrapping changes nothing in the classifier: activations are read by taps, `forward` is the classifier's own. The
generator, the adapters and the likelihood are one module, the `Decoder`, which the loss terms train.

References: Wu, Goodman, Ermon, NeurIPS 2021, section 3.
"""

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pellucid._checks import ConfigError, LayerNotFound, NumericError, nearest
from pellucid.methods.decode.adapters import linear_adapters
from pellucid.methods.decode.generators import conv_generator, grid_for, mlp_generator
from pellucid.methods.decode.likelihood import (
    Likelihood,
    SquaredError,
    UnitImages,
    mean_over_inputs,
)
from pellucid.taps import Tap, find_layers, keep, watch
from pellucid.train import logits_of, seeded
from pellucid.train.update import modes

VERSION = "1"
"""Changes when results would; kept with every stored result."""

AT_ONCE = 2**18
"""Numbers of input space that one call draws or classifies on a CPU: beyond, tensors fall out of its caches, and the
allocator asks the system for their memory again and again."""

HISTORY = (
    "untrained generator",
    "generator trained post hoc, classifier frozen",
    "trained with the classifier",
)


class Decoder(nn.Module):
    """Everything between activations and decodings: adapters, generator, likelihood, and which layers are read.

    Args:
        taps: the layers, by the name under which they are decoded, first to last.
        adapters: one module a tap, in their order; none where all activations are alike.
    """

    history: Tensor
    names: Tensor

    def __init__(
        self,
        taps: Mapping[str, Tap],
        generator: nn.Module,
        *,
        likelihood: Likelihood,
        adapters: Sequence[nn.Module] = (),
    ):
        super().__init__()
        if not taps:
            raise ConfigError("a decoder needs at least one tap: name the layers to decode")
        if adapters and len(adapters) != len(taps):
            raise ConfigError(f"{len(taps)} taps need as many adapters, or none; got {len(adapters)}")
        self.taps, self.likelihood = dict(taps), likelihood
        self.adapters = nn.ModuleList(adapters)
        self.generator = generator
        self.register_buffer("history", torch.zeros((), dtype=torch.uint8))
        # Kept with the weights: a generator of other layers of the same widths would load and decode nonsense.
        self.register_buffer("names", names_tensor(tuple(taps)))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the decoded layers, first to last."""
        return tuple(self.taps)

    @property
    def trained(self) -> str:
        """How the generator came to be, in words for a page: untrained, post hoc, or with the classifier."""
        return HISTORY[int(self.history)]

    def remember(self, *, joint: bool) -> None:
        """Note that the generator was trained, beside a frozen classifier or with it."""
        self.history.clamp_(min=2 if joint else 1)

    def place(self, layer: str) -> int:
        """The position of a layer; `LayerNotFound` with the nearest names."""
        if layer not in self.taps:
            raise LayerNotFound(f"no decoded layer {layer!r}; nearest: {nearest(layer, self.taps)}")
        return self.layers.index(layer)

    def code(self, activation: Tensor, layer: str) -> Tensor:
        """What the generator gets of one layer's activation."""
        place = self.place(layer)
        return self.adapters[place](activation) if self.adapters else activation

    def raw(
        self, activations: Mapping[str, Tensor], inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Raw numbers for all given layers, (layers * batch, ...), layer by layer, by one call of the generator.

        The second is what the generator returned beside them, a scalar to add to the loss (a VAE's KL), or None.

        Args:
            inputs: what is decoded. On a CPU, calls then stay within `AT_ONCE` numbers, a few whole layers each.
        """
        codes = {name: self.code(activation, name) for name, activation in activations.items()}
        if len({code.shape[1:] for code in codes.values()}) > 1:
            shapes = {name: tuple(code.shape[1:]) for name, code in codes.items()}
            raise ConfigError(
                f"one generator needs codes of one shape, but these layers give {shapes}; add adapters "
                "(linear_adapters, padded_adapters), or let make_decodable choose"
            )
        parts = list(codes.values())
        size = len(parts) if inputs is None else at_once(inputs, len(parts))
        drawn = [self._draw(parts[i : i + size]) for i in range(0, len(parts), size)]
        if inputs is not None:
            check_shape(drawn[0][0], inputs)
        if len(drawn) == 1:
            return drawn[0]
        raw = torch.cat([values for values, _ in drawn])
        extras = [len(values) * extra for values, extra in drawn if extra is not None]
        return raw, torch.stack(extras).sum() / len(raw) if extras else None

    def groups(self, inputs: Tensor) -> list[tuple[str, ...]]:
        """The layers in turn, as many together as one call of the generator takes."""
        size = at_once(inputs, len(self.layers))
        return [self.layers[i : i + size] for i in range(0, len(self.layers), size)]

    def _draw(self, codes: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """One call of the generator."""
        joined = codes[0] if len(codes) == 1 else torch.cat(list(codes))
        found: Any = self.generator(joined)
        extra: Any = None
        if isinstance(found, tuple) and len(cast("tuple[Any, ...]", found)) == 2:
            found, extra = cast("tuple[Any, Any]", found)
        if not isinstance(found, Tensor) or len(found) != len(joined):
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"the generator must return one decoding for each of {len(joined)} codes (or that and a scalar loss), came {came}"
            )
        return found, extra

    def residual(self, inputs: Tensor, raw: Tensor) -> Float[Tensor, " rows"]:
        """R(x, r): the mean over dimensions of the likelihood's loss, one number a row, layer by layer."""
        check_shape(raw, inputs)
        own = self.likelihood
        # A subclass may have a loss of its own, of which this would be the mean no more.
        if isinstance(own, SquaredError) and type(own).loss is SquaredError.loss and in_one_pass(inputs, raw):
            return own.mean_loss(inputs, raw.unflatten(0, (-1, len(inputs))))
        # A layer at a time: inputs repeated over layers would be copied, and fall out of the caches.
        rows = [mean_over_inputs(self.likelihood.loss(inputs, part)) for part in raw.split(len(inputs))]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


def at_once(inputs: Tensor, layers: int) -> int:
    """How many of some layers one call of the generator draws: all, or on a CPU as many as `AT_ONCE` numbers allow."""
    if inputs.device.type != "cpu":
        return layers
    return min(layers, max(1, AT_ONCE // max(inputs.numel(), 1)))


def row_parts(inputs: Tensor, seen: Iterable[Tensor]) -> list[slice]:
    """Equal parts of a batch: one, or on a CPU as many as bring a layer's decodings within `AT_ONCE` numbers.

    Only where rows are independent of each other (evaluation mode) and activations have one a row.
    """
    rows = inputs.shape[0]
    if inputs.device.type != "cpu" or inputs.numel() <= AT_ONCE or any(h.shape[0] != rows for h in seen):
        return [slice(None)]
    parts = -(-rows // max(1, AT_ONCE * rows // inputs.numel()))
    size = -(-rows // parts)
    return [slice(i, i + size) for i in range(0, rows, size)]


def in_one_pass(inputs: Tensor, raw: Tensor) -> bool:
    """Whether residuals need no graph and no mixing of precisions."""
    graph = torch.is_grad_enabled() and (inputs.requires_grad or raw.requires_grad)
    return not graph and raw.dtype == inputs.dtype and len(inputs) > 0


def check_shape(raw: Tensor, inputs: Tensor) -> None:
    """Raise `ConfigError` unless what the generator gives is shaped like the inputs."""
    if inputs.shape[1:] != raw.shape[1:] or raw.shape[0] % max(inputs.shape[0], 1):
        raise ConfigError(
            f"the generator gives decodings of shape {tuple(raw.shape[1:])}, the inputs are {tuple(inputs.shape[1:])}; "
            "the two must be the same"
        )


class Decodable(nn.Module):
    """A classifier whose activations turn back into inputs. `forward` gives the classifier's logits, bit for bit.

    Train the classifier itself, `fit(model, ...)`, with a `DecodeTerm` or `RecursiveTerm` made from this.

    Args:
        model: any classifier; it is held, not copied, and not changed.
        taps: layer names (whole activations are read), or taps by a name of your own; first to last.
        generator: codes -> raw numbers of the input's shape (`mlp_generator`, `conv_generator`, or yours).
        adapters: one module a tap, where layers differ in shape (`linear_adapters`).

    Raises:
        LayerNotFound: a layer that is not there.
        ConfigError: no taps, or another number of adapters.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Mapping[str, Tap] | Sequence[str],
        generator: nn.Module,
        *,
        likelihood: Likelihood | None = None,
        adapters: Sequence[nn.Module] = (),
    ):
        super().__init__()
        self.model = model
        self.decoder = Decoder(
            decode_taps(model, taps), generator, likelihood=likelihood or UnitImages(), adapters=adapters
        )

    @property
    def taps(self) -> dict[str, Tap]:
        """The decoded layers' taps, for `watch` or `fit` on the classifier."""
        return self.decoder.taps

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the decoded layers, first to last."""
        return self.decoder.layers

    @property
    def likelihood(self) -> Likelihood:
        """How decodings are compared with inputs."""
        return self.decoder.likelihood

    def forward(self, inputs: Float[Tensor, "batch ..."]) -> Any:
        """The classifier's own output."""
        return self.model(inputs)

    def activations(self, inputs: Float[Tensor, "batch ..."]) -> dict[str, Tensor]:
        """h_l by layer, in evaluation mode; with a graph where the inputs require one."""
        with looking(self, inputs):
            return self.read(inputs)[1]

    def decode(self, activation: Float[Tensor, "batch ..."], layer: str) -> Float[Tensor, "batch ..."]:
        """g(h_l): what one layer's activations decode to, in evaluation mode."""
        with looking(self, activation):
            return self.likelihood.decoding(self.decoder.raw({layer: activation})[0])

    def decodings(self, inputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "layers batch ..."]:
        """g(h_l(x)) of every layer, by one call of the generator, in evaluation mode."""
        with looking(self, inputs):
            raw = self.decoder.raw(self.read(inputs)[1], inputs)[0]
            return self.likelihood.decoding(raw).unflatten(0, (len(self.layers), -1))

    def read(
        self, inputs: Tensor, layers: Sequence[str] | None = None
    ) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
        """Logits and the activations of some layers (all by default) from one forward pass in the present mode."""
        return read(self.model, inputs, {name: self.taps[name] for name in layers or self.layers})

    def check(self, inputs: Float[Tensor, "batch ..."]) -> None:
        """Raise before long work where inputs, layers, adapters, generator and likelihood do not fit together."""
        self.likelihood.check(inputs)
        with torch.no_grad(), modes(self, training=False):
            logits, seen = self.read(inputs)
            raw = self.decoder.raw(seen, inputs)[0]
            residual = self.decoder.residual(inputs, raw)
        check_finite(logits, residual)


def check_finite(logits: Float[Tensor, "batch classes"], residual: Float[Tensor, " rows"]) -> None:
    """Raise `NumericError` where classifier or decodings give NaN or infinity, which every share and mean would hide."""
    for what, rows in (
        ("the classifier's logits", logits.isfinite().all(1)),
        ("decoding errors", residual.isfinite()),
    ):
        if not bool(rows.all()):
            example = int((~rows).nonzero()[0]) % len(logits)
            raise NumericError(
                f"{what} are NaN or infinite for {int((~rows).sum())} of {len(rows)} rows, first for example {example}; look at "
                "the weights and activations"
            )


def read(
    model: nn.Module, inputs: Tensor, taps: Mapping[str, Tap]
) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
    """Logits and what `taps` see of one forward pass, with gradients where they are enabled."""
    with watch(model, taps, grad=torch.is_grad_enabled()) as seen:
        logits = logits_of(model(inputs))
        return logits, {name: seen[name] for name in taps}


def classify(model: nn.Module, inputs: Tensor) -> Float[Tensor, "rows classes"]:
    """Logits of many decodings: one pass; on a CPU in evaluation mode, where rows are independent, in parts that fit."""
    rows = max(1, AT_ONCE // max(inputs[0].numel(), 1)) if len(inputs) else 1
    if model.training or inputs.device.type != "cpu" or rows >= len(inputs):
        return logits_of(model(inputs))
    return torch.cat([logits_of(model(part)) for part in inputs.split(rows)])


@contextmanager
def looking(model: nn.Module, inputs: Tensor) -> Generator[None]:
    """Evaluation mode, and no graph unless the inputs ask for one; modes are given back, also after an error."""
    with (
        modes(model, training=False),
        torch.set_grad_enabled(torch.is_grad_enabled() and inputs.requires_grad),
    ):
        yield


def repeat_rows(values: Tensor, rows: int) -> Tensor:
    """The batch again and again until there are `rows` of it: rows lie layer by layer."""
    times = rows // max(len(values), 1)
    return values if times == 1 else values.repeat(times, *[1] * (values.ndim - 1))


def names_tensor(layers: Sequence[str]) -> UInt8[Tensor, " bytes"]:
    """Layer names as bytes of JSON, for a state dict."""
    return torch.tensor(list(json.dumps(list(layers)).encode()), dtype=torch.uint8)


def names_of(tensor: UInt8[Tensor, " bytes"]) -> list[str]:
    """The inverse of `names_tensor`."""
    return list(json.loads(bytes(tensor.tolist())))


def decode_taps(model: nn.Module, taps: Mapping[str, Tap] | Sequence[str]) -> dict[str, Tap]:
    """Taps of whole activations for layer names; taps given as such stay as they are. Names are looked up now."""
    if isinstance(taps, str):
        raise ConfigError(f"expected a list of layer names, got the text {taps!r}")
    named = taps if isinstance(taps, Mapping) else {name: Tap(name, reduce=keep) for name in taps}
    for tap in named.values():
        find_layers(model, [tap.layer])
    return dict(named)


def example_activations(
    model: nn.Module, taps: Mapping[str, Tap] | Sequence[str], inputs: Float[Tensor, "batch ..."]
) -> dict[str, Tensor]:
    """The activations of a few inputs, for their shapes."""
    with torch.no_grad(), modes(model, training=False):
        return read(model, inputs, decode_taps(model, taps))[1]


def make_decodable(
    model: nn.Module,
    layers: Mapping[str, Tap] | Sequence[str],
    inputs: Float[Tensor, "batch ..."],
    *,
    likelihood: Likelihood | None = None,
    width: int = 128,
    seed: int = 0,
) -> Decodable:
    """A `Decodable` with a ready-made generator and adapters that fit the layers and the inputs.

    Vectors of equal width go straight into code -> 256 -> input. Where any layer is a map or tokens and inputs are
    images, every layer is brought to a grid of `width // 2` channels and a convolutional generator draws the image;
    otherwise a linear adapter a layer gives `width` numbers.

    Args:
        inputs: a few, for shapes, and to check that all fits together.
        seed: of the generator's first weights.

    Raises:
        ConfigError, DataError, LayerNotFound: what does not fit, before any training.
    """
    activations = example_activations(model, layers, inputs)
    shapes = [tuple(activation.shape[1:]) for activation in activations.values()]
    shape = tuple(inputs.shape[1:])
    with seeded(seed, "generator"):
        adapters: list[nn.Module] = []
        if len(set(shapes)) == 1 and len(shapes[0]) == 1:
            generator: nn.Module = mlp_generator(shapes[0][0], shape)
        elif len(shape) == 3 and any(len(size) > 1 for size in shapes):
            code = (max(width // 2, 1), grid_for(shape[1]), grid_for(shape[2]))
            adapters = linear_adapters(activations, code)
            generator = conv_generator(code, shape)
        else:
            adapters = linear_adapters(activations, (width,))
            generator = mlp_generator(width, shape)
    found = Decodable(model, layers, generator, likelihood=likelihood, adapters=adapters)
    found.decoder.to(inputs.device)
    found.check(inputs)
    return found
