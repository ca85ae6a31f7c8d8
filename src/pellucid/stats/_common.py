"""What the fitters share: the protocol, checks of what comes in, the fold of a sample, states cut by unit."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.data import Batch


@runtime_checkable
class Stat(Protocol):
    """A statistic whose memory does not grow with the data.

    `record` feeds any object with these five methods. `merge` must give the same result in any order and split.
    """

    def update(self, values: Float[Tensor, "batch units"], batch: Batch) -> None:
        """Take the responses of one batch."""
        ...

    def merge(self, other: Any) -> None:
        """Take what another fitter of the same settings has seen."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that was seen so far, as tensors; empty before the first batch."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`: what was seen before is replaced."""
        ...

    def result(self) -> Any:
        """A frozen dataclass of tensors."""
        ...


class PerUnit(Stat, Protocol):
    """A statistic that treats each unit by itself, so that many layers can share one update."""

    # For each tensor of the state the axis that runs over units, or None where all units share it.
    unit_axes: ClassVar[Mapping[str, int | None]]


Fitter = TypeVar("Fitter", bound=Stat)
PerUnitFitter = TypeVar("PerUnitFitter", bound=PerUnit)


def fold_of(index: Int[Tensor, " batch"], folds: int) -> Int[Tensor, " batch"]:
    """The fold of each sample, from its index in the source alone: splitmix64(index) mod folds.

    splitmix64 is z = index + 0x9E3779B97F4A7C15; z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9; z = (z ^ z >> 27) *
    0x94D049BB133111EB; z ^ z >> 31, all modulo 2^64; the top 53 bits are reduced modulo `folds`. The same sample
    is in the same fold in every pass, on every machine, whatever the batch size or the number of processes.

    References: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = index.to(torch.int64) + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 11) % folds


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _shift_right(z: Int[Tensor, " batch"], bits: int) -> Int[Tensor, " batch"]:
    # torch shifts int64 arithmetically; the mask clears the copies of the sign.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def find_non_finite(values: Float[Tensor, "batch units"]) -> tuple[int, int] | None:
    """(row, unit) of the first NaN or infinity, or None."""
    # A sum is one pass without a temporary; it is finite unless an entry is not, or the sum itself overflows.
    if bool(torch.isfinite(values.sum(dtype=torch.float64))):
        return None
    bad = torch.nonzero(~torch.isfinite(values))
    return (int(bad[0, 0]), int(bad[0, 1])) if len(bad) else None


def take(
    values: Float[Tensor, "batch units"], batch: Batch, *, units: int | None
) -> Float64[Tensor, "batch units"]:
    """The responses as float64 on the CPU, after checking that they fit the batch and the units seen before."""
    if values.shape[0] != len(batch.index):
        raise DataError(
            f"one row of responses for each sample expected: {len(batch.index)} samples, {values.shape[0]} rows"
        )
    if units is not None and values.shape[1] != units:
        raise DataError(
            f"this statistic has seen {units} units and now got {values.shape[1]}: use a new one for each layer"
        )
    values = values.detach().to("cpu", torch.float64)
    if (bad := find_non_finite(values)) is not None:
        row, unit = bad
        raise NumericError(
            f"the response of unit {unit} to sample {int(batch.index[row])} is {float(values[row, unit])}; "
            f"look at that sample and at the layers before, or leave such samples out"
        )
    return values


def take_targets(batch: Batch, *, classes: int) -> Int[Tensor, " batch"]:
    """The labels on the CPU, all in [0, classes)."""
    if batch.targets is None:
        raise DataError(
            "a statistic by class needs labels, and this batch has none: "
            "give the source labels or leave the statistic out"
        )
    targets = batch.targets.to("cpu", torch.int64)
    outside = torch.nonzero((targets < 0) | (targets >= classes)).flatten()
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"sample {int(batch.index[row])} has label {int(targets[row])}, outside 0..{classes - 1}: "
            f"is `classes={classes}` the number of classes of this source?"
        )
    return targets


def same_kind(mine: Fitter, other: Stat, *, settings: Sequence[str]) -> Fitter:
    """`other`, after checking that it is the same kind of fitter with the same settings; else `ConfigError`."""
    if not isinstance(other, type(mine)):
        raise ConfigError(f"only fitters of one kind merge: {type(mine).__name__} and {type(other).__name__}")
    for name in settings:
        if getattr(mine, name) != getattr(other, name):
            raise ConfigError(
                f"{type(mine).__name__}s merge only with the same {name}: "
                f"{getattr(mine, name)!r} and {getattr(other, name)!r}"
            )
    return other


def check_units(mine: int, other: int) -> None:
    """Raise `DataError` unless two fitters have seen layers of one width."""
    if mine != other:
        raise DataError(
            f"these statistics are of {mine} and of {other} units: they belong to different layers"
        )


def check_state(
    kind: str, state: Mapping[str, Tensor], expected: Mapping[str, tuple[int | None, ...]]
) -> None:
    """Raise `ConfigError` unless `state` has the expected tensors; None stands for an axis of any length."""
    if set(state) != set(expected):
        raise ConfigError(f"a state of {kind} has {sorted(expected)}, got {sorted(state)}")
    for name, shape in expected.items():
        came = tuple(state[name].shape)
        if len(came) != len(shape) or any(w is not None and w != c for w, c in zip(shape, came, strict=True)):
            wanted = tuple("any" if w is None else w for w in shape)
            raise ConfigError(
                f"{name!r} in a state of {kind} has shape {wanted}, got {came}: other settings?"
            )


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later updates do not change, dense so that safetensors can write them."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def need_samples(seen: bool, kind: str) -> None:
    """Raise `DataError` when a result is asked of a fitter that has seen nothing."""
    if not seen:
        raise DataError(f"{kind} has seen no sample: update it before asking for its result")


def split_units(stat: PerUnitFitter, widths: Sequence[int]) -> list[PerUnitFitter]:
    """One fitter for each run of `widths` units, together what `stat` has seen."""
    state = stat.state()
    parts: list[PerUnitFitter] = []
    start = 0
    for width in widths:
        part = copy.copy(stat)
        part.load_state({k: _cut(v, stat.unit_axes[k], start, width) for k, v in state.items()})
        parts.append(part)
        start += width
    return parts


def _cut(tensor: Tensor, axis: int | None, start: int, width: int) -> Tensor:
    return tensor if axis is None else tensor.narrow(axis, start, width)
