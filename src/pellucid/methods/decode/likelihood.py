"""What it costs to decode an input as something else: -log p(x | r) by the type of the data.

    R(x, raw) = reduce over dimensions of -log p(x_i | raw_i)

A likelihood owns three things that must fit together: which inputs are possible at all, the link from the generator's
raw numbers to an input (`decoding`), and the loss of each dimension. A generator whose own last layer already fits the
range of the data goes with `Plain`.

References: Wu, Goodman, Ermon, "Improving Compositionality of Neural Networks by Decoding Representations to Inputs",
NeurIPS 2021, equations 2 to 4 (fixed-variance Gaussian, so squared error); the others are the usual ones of their type.
"""

import dataclasses as dc
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.data import Source

Reduce = Callable[[Float[Tensor, "rows dims"]], Float[Tensor, " rows"]]
NOT_STANDARDISED = 50.0
"""A standardised column this many standard deviations from its mean was not standardised."""


@runtime_checkable
class Likelihood(Protocol):
    """How inputs of one type come out of a generator. Anything with these three methods will do."""

    def check(self, inputs: Float[Tensor, "rows ..."]) -> None:
        """Raise `DataError`, with the values, where inputs lie outside of what can be decoded."""
        ...

    def decoding(self, raw: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        """The expected input under the generator's raw numbers; what is shown, and fed back into the network."""
        ...

    def loss(
        self, inputs: Float[Tensor, "rows ..."], raw: Float[Tensor, "rows ..."]
    ) -> Float[Tensor, "rows dims"]:
        """-log p of each dimension of the input, up to a constant."""
        ...


def mean_over_inputs(loss: Float[Tensor, "rows dims"]) -> Float[Tensor, " rows"]:
    """The mean over dimensions: a weight then means the same for inputs of any size. The default."""
    return loss.mean(1)


def sum_over_inputs(loss: Float[Tensor, "rows dims"]) -> Float[Tensor, " rows"]:
    """The sum over dimensions, a true log-likelihood: the same weight counts as many times more as there are."""
    return loss.sum(1)


class SquaredError:
    """The part that likelihoods of fixed-variance Gaussians share: the loss of a dimension is (given - drawn)^2."""

    def drawn(self, raw: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """What is compared, of the generator's raw numbers."""
        return raw

    def given(self, inputs: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """What it is compared with, of the inputs."""
        return inputs

    def loss(
        self, inputs: Float[Tensor, "rows ..."], raw: Float[Tensor, "rows ..."]
    ) -> Float[Tensor, "rows dims"]:
        return F.mse_loss(self.drawn(raw), self.given(inputs), reduction="none").flatten(1)

    def mean_loss(
        self, inputs: Float[Tensor, "batch ..."], raw: Float[Tensor, "layers batch ..."]
    ) -> Float[Tensor, " rows"]:
        """mean_over_inputs(loss) of several layers, with fewer copies where there is no graph: the same numbers, sooner."""
        drawn, given = self.drawn(raw), self.given(inputs)
        if drawn.requires_grad or given.requires_grad:  # a likelihood with weights of its own
            return (drawn - given).square().flatten(2).mean(2).flatten()
        # In place where that is memory of our own: fresh pages for large temporaries cost more than the arithmetic.
        apart = drawn.untyped_storage().data_ptr() != raw.untyped_storage().data_ptr()
        error = drawn.sub_(given) if apart and drawn.dtype == given.dtype else drawn - given
        return error.square_().flatten(2).mean(2).flatten()


@dc.dataclass(frozen=True)
class UnitImages(SquaredError):
    """Images in [0, 1]: a sigmoid, then the squared error (x - r)^2 of each pixel."""

    def check(self, inputs: Float[Tensor, "rows ..."]) -> None:
        check_between(inputs, 0.0, 1.0, "UnitImages")

    def decoding(self, raw: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        return raw.sigmoid()

    def drawn(self, raw: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        return raw.sigmoid()


@dc.dataclass(frozen=True)
class BernoulliImages:
    """Images in [0, 1] as chances of ink: a sigmoid, then the cross-entropy of each pixel, in nats."""

    def check(self, inputs: Float[Tensor, "rows ..."]) -> None:
        check_between(inputs, 0.0, 1.0, "BernoulliImages")

    def decoding(self, raw: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        return raw.sigmoid()

    def loss(
        self, inputs: Float[Tensor, "rows ..."], raw: Float[Tensor, "rows ..."]
    ) -> Float[Tensor, "rows dims"]:
        return F.binary_cross_entropy_with_logits(raw, inputs, reduction="none").flatten(1)


@dc.dataclass(frozen=True)
class Plain(SquaredError):
    """The generator's numbers as they are, and the squared error: for a generator that ends in its own range.

    Args:
        low, high: where inputs, and what comes out, must lie; None is no bound.
    """

    low: float | None = None
    high: float | None = None

    def check(self, inputs: Float[Tensor, "rows ..."]) -> None:
        low = -torch.inf if self.low is None else self.low
        check_between(inputs, low, torch.inf if self.high is None else self.high, "Plain")

    def decoding(self, raw: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        return raw


@dc.dataclass(frozen=True)
class Spectrogram(SquaredError):
    """Log-mel maps (channels, mel, time) of any level: no link, squared error of each cell."""

    def check(self, inputs: Float[Tensor, "rows ..."]) -> None:
        check_between(inputs, -torch.inf, torch.inf, "Spectrogram")
        if inputs.ndim < 3:
            raise DataError(f"Spectrogram needs maps (rows, ..., mel, time), got shape {tuple(inputs.shape)}")

    def decoding(self, raw: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        return raw


@dc.dataclass(frozen=True)
class Standardised(SquaredError):
    """Numeric columns: squared error in units of their standard deviation.

    Args:
        mean, std: of each column, where the model does its own scaling and takes columns as they are; without them the
            inputs must be standardised already.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or any(not scale > 0 for scale in self.std):
            raise ConfigError(
                f"Standardised needs a mean and a deviation above 0 for each column, got {self.mean} and {self.std}"
            )

    def check(self, inputs: Float[Tensor, "rows ..."]) -> None:
        check_width(inputs, len(self.mean) or inputs.shape[-1], "Standardised")
        # With statistics of its own it scales by itself: a count of twenty where most are 0 is rare, not unscaled.
        most = torch.inf if self.mean else NOT_STANDARDISED
        check_between(self.given(inputs), -most, most, "Standardised (in deviations)")

    def decoding(self, raw: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        return raw * raw.new_tensor(self.std) + raw.new_tensor(self.mean) if self.mean else raw

    def given(self, inputs: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        if not self.mean:
            return inputs
        return (inputs - inputs.new_tensor(self.mean)) / inputs.new_tensor(self.std)


@dc.dataclass(frozen=True)
class Categorical:
    """One-hot fields side by side: a softmax in each field, then its cross-entropy in nats, one dimension a field.

    The decoding is the distribution itself, so that what is fed back is the expected one-hot and has a gradient.

    Args:
        fields: how many values each field has; the columns are as many as their sum.
    """

    fields: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.fields or min(self.fields) < 1:
            raise ConfigError(
                f"Categorical needs the number of values of each field, at least 1, got {self.fields}"
            )

    def check(self, inputs: Float[Tensor, "rows ..."]) -> None:
        check_width(inputs, sum(self.fields), "Categorical")
        check_between(inputs, 0.0, 1.0, "Categorical")
        totals = torch.stack([part.sum(1) for part in inputs.split(self.fields, 1)], 1)
        if bool((totals - 1).abs().gt(1e-4).any()):
            row, field = (int(i) for i in (totals - 1).abs().gt(1e-4).nonzero()[0])
            raise DataError(
                f"Categorical: field {field} of row {row} sums to {float(totals[row, field]):.4g}, expected one-hot columns "
                f"that sum to 1 in each of the fields {self.fields}"
            )

    def decoding(self, raw: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        return torch.cat([part.softmax(1) for part in raw.split(self.fields, 1)], 1)

    def loss(
        self, inputs: Float[Tensor, "rows ..."], raw: Float[Tensor, "rows ..."]
    ) -> Float[Tensor, "rows dims"]:
        parts = zip(inputs.split(self.fields, 1), raw.split(self.fields, 1), strict=True)
        return torch.stack([-(x * r.log_softmax(1)).sum(1) for x, r in parts], 1)


@dc.dataclass(frozen=True)
class Columns:
    """A table of several types: each likelihood takes its number of columns, from left to right."""

    parts: tuple[tuple[Likelihood, int], ...]

    def check(self, inputs: Float[Tensor, "rows ..."]) -> None:
        check_width(inputs, sum(self._widths), "Columns")
        for (part, _), columns in zip(self.parts, inputs.split(self._widths, 1), strict=True):
            part.check(columns)

    def decoding(self, raw: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        pieces = zip(self.parts, raw.split(self._widths, 1), strict=True)
        return torch.cat([part.decoding(columns) for (part, _), columns in pieces], 1)

    def loss(
        self, inputs: Float[Tensor, "rows ..."], raw: Float[Tensor, "rows ..."]
    ) -> Float[Tensor, "rows dims"]:
        pieces = zip(self.parts, inputs.split(self._widths, 1), raw.split(self._widths, 1), strict=True)
        return torch.cat([part.loss(x, r) for (part, _), x, r in pieces], 1)

    @property
    def _widths(self) -> list[int]:
        return [width for _, width in self.parts]


def table_likelihood(source: Source, *, batch_size: int = 1024) -> Columns:
    """The likelihood of a table opened from a CSV file: its `column=value` columns are fields, the others numbers.

    Mean and deviation of the numbers are those of `source`, so give it the training rows; a constant column gets
    deviation 1.

    Raises:
        DataError: the source has no named features.
    """
    if not source.features:
        raise DataError(
            f"{source.name!r} has no named columns; build the likelihood yourself from Standardised, Categorical and Columns"
        )
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for batch in source.batches(batch_size):
        x = batch.inputs.double()
        count, total, square = count + len(x), total + x.sum(0), square + x.square().sum(0)
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt()
    std[std < 1e-12] = 1.0
    parts: list[tuple[Likelihood, int]] = []
    for is_field, start, width in _runs(source.features):
        columns = slice(start, start + width)
        numbers = Standardised(tuple(mean[columns].tolist()), tuple(std[columns].tolist()))
        parts.append((Categorical((width,)) if is_field else numbers, width))
    return Columns(tuple(parts))


def _runs(features: Sequence[str]) -> list[tuple[bool, int, int]]:
    """(is a field, first column, width): neighbours of one field together, and numeric neighbours together."""
    found: list[tuple[bool, int, int]] = []
    last = None
    for i, name in enumerate(features):
        column, sign, _ = name.partition("=")
        key = column if sign else None
        if found and key == last:
            found[-1] = (bool(sign), found[-1][1], found[-1][2] + 1)
        else:
            found.append((bool(sign), i, 1))
        last = key
    return found


def check_between(inputs: Tensor, low: float, high: float, what: str) -> None:
    """Raise unless every number lies in [low, high]; NaN and infinity are named as such."""
    if not inputs.numel():
        raise DataError(f"{what}: no inputs to decode, shape {tuple(inputs.shape)}")
    least, most = (float(value) for value in inputs.detach().aminmax())
    if not (abs(least) < torch.inf and abs(most) < torch.inf):
        raise NumericError(
            f"{what}: the inputs hold NaN or infinite numbers, which nothing can be decoded to"
        )
    if least < low or most > high:
        raise DataError(
            f"{what} decodes inputs from {low:g} to {high:g}, but these run from {least:.4g} to {most:.4g}; scale them, or "
            "choose the likelihood of their type (Standardised for standardised columns, Plain for any range)"
        )


def check_width(inputs: Tensor, width: int, what: str) -> None:
    if inputs.ndim != 2 or inputs.shape[1] != width:
        raise DataError(f"{what} needs rows of {width} columns, got shape {tuple(inputs.shape)}")
