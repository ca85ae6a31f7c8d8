"""`Decoded`: one set of decodings on the way through a loss or a check, with what was asked of it computed once."""

import dataclasses as dc
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.methods.decode.model import Decoder, classify, read, repeat_rows


@dc.dataclass(frozen=True)
class Decoded:
    """Decodings of one batch, rows layer by layer where there are several layers.

    Args:
        given: the batch that was given to the classifier; `inputs` has one a row.
        raw: the generator's numbers; `decoding` is the input they stand for.
        base: the classifier on the batch itself; `base_logits` has one a row.
        labels: of the batch, where known; `targets` has one a row.
        layers: the layers decoded, each with as many rows.
    """

    model: nn.Module
    decoder: Decoder
    given: Float[Tensor, "batch ..."]
    raw: Float[Tensor, "rows ..."]
    base: Float[Tensor, "batch classes"]
    labels: Int[Tensor, " batch"] | None
    layers: tuple[str, ...]

    @cached_property
    def inputs(self) -> Float[Tensor, "rows ..."]:
        """The input of each row, repeated layer by layer."""
        return repeat_rows(self.given, len(self.raw))

    @cached_property
    def base_logits(self) -> Float[Tensor, "rows classes"]:
        """The classifier on the input of each row."""
        return repeat_rows(self.base, len(self.raw))

    @cached_property
    def targets(self) -> Int[Tensor, " rows"] | None:
        """The label of each row's input."""
        return None if self.labels is None else repeat_rows(self.labels, len(self.raw))

    @cached_property
    def decoding(self) -> Float[Tensor, "rows ..."]:
        """x^(d), in input space."""
        return self.decoder.likelihood.decoding(self.raw)

    @cached_property
    def residual(self) -> Float[Tensor, " rows"]:
        """R(x, x^(d)), the mean over dimensions."""
        return self.decoder.residual(self.given, self.raw)

    @cached_property
    def logits(self) -> Float[Tensor, "rows classes"]:
        """The classifier run again, on the decodings."""
        return classify(self.model, self.decoding)


@runtime_checkable
class Demand(Protocol):
    """What a decoding should fulfil: a number for each row to be minimised, and its weight in the objective.

    `Assertion` and `Composition` are demands. The number must have a gradient to `decoded.decoding`.
    """

    @property
    def weight(self) -> float: ...

    def __call__(self, decoded: Decoded) -> Float[Tensor, " rows"]: ...


def decode_layers(
    model: nn.Module,
    decoder: Decoder,
    inputs: Tensor,
    seen: Mapping[str, Tensor],
    *,
    logits: Tensor,
    targets: Tensor | None,
    layers: tuple[str, ...] = (),
) -> tuple[Decoded, Tensor | None]:
    """Some layers (all by default) of one forward pass by one call of the generator, and what it returned beside them."""
    layers = layers or decoder.layers
    raw, extra = decoder.raw({name: seen[name] for name in layers}, inputs)
    return Decoded(model, decoder, inputs, raw, logits, targets, layers), extra


def unroll(
    model: nn.Module,
    decoder: Decoder,
    inputs: Tensor,
    path: Sequence[str],
    *,
    first: Tensor,
    logits: Tensor,
    targets: Tensor | None,
) -> Iterator[tuple[Decoded, Tensor | None]]:
    """x^(1), x^(2), ... along a path of layers, nothing detached: activation, decoding, classifier, activation, ...

    Args:
        first: the activation of the path's first layer on the inputs themselves.
    """
    activation = first
    for depth, layer in enumerate(path, start=1):
        raw, extra = decoder.raw({layer: activation})
        decoded = Decoded(model, decoder, inputs, raw, logits, targets, (layer,))
        if depth < len(path):
            onward = path[depth]
            again, seen = read(model, decoded.decoding, {onward: decoder.taps[onward]})
            vars(decoded)["logits"] = again  # this very pass; a second one would give the same
            activation = seen[onward]
        yield decoded, extra
