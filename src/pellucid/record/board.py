"""The statistics of a pass, arranged so that layers of one kind share one update.

Statistics that treat each unit by itself (`unit_axes`) and have the same settings are one fitter over the units of all
their layers side by side: one update a batch in place of one for each layer. The pass never tells: what comes out is
cut by layer again. Everything else is updated by itself.
"""

import copy
import dataclasses as dc
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from pellucid._checks import ConfigError, DataError, NumericError, nearest
from pellucid.data import Batch
from pellucid.record.places import PlaceReader
from pellucid.record.ranks import Ranks
from pellucid.stats import (
    ClassMoments,
    Covariance,
    Moments,
    Quantiles,
    Rates,
    Stat,
    TopExamples,
)
from pellucid.stats._common import PerUnit, find_non_finite, split_units
from pellucid.taps import Tap

OURS = (ClassMoments, Covariance, Moments, Quantiles, Rates, TopExamples)


@dc.dataclass
class Group:
    """One fitter, and the (tap, statistic) pairs whose units it holds side by side."""

    fitter: Stat
    members: list[tuple[str, str]]
    starts: dict[str, int] = dc.field(
        default_factory=dict[str, int]
    )  # first unit of each tap, once widths are known

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps in the order of the units."""
        return tuple(tap for tap, _ in self.members)

    def start(self, tap: str, widths: Mapping[str, int]) -> int:
        """Where the units of a tap begin; 0 before the first batch, when no fitter has units yet."""
        if not self.starts and widths:
            self.starts = starts_of(self.taps, widths)
        return self.starts.get(tap, 0)


def starts_of(taps: Iterable[str], widths: Mapping[str, int]) -> dict[str, int]:
    """The first unit of each tap where they stand side by side."""
    starts: dict[str, int] = {}
    here = 0
    for tap in taps:
        starts.setdefault(tap, here)
        here += widths[tap]
    return starts


def settings_of(stat: Stat) -> str:
    """What kind of statistic this is and how it is set: its type, and the attributes it begins with."""
    kind = type(stat)
    words = ", ".join(f"{name}={_word(value)}" for name, value in sorted(vars(stat).items()))
    return f"{kind.__module__}.{kind.__qualname__}({words})"


def _word(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {weigh(value)}"
    return repr(value) if _is_plain(value) else type(value).__qualname__


def weigh(tensor: Tensor) -> str:
    """SHA-256 of type, shape and content."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(
        f"{tensor.dtype} {tuple(tensor.shape)}".encode() + flat.numpy().tobytes()
    ).hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in cast("tuple[Any, ...]", value))
    empty = isinstance(value, dict) and not value
    return empty or value is None or isinstance(value, bool | int | float | str)


def may_share(stat: Stat) -> bool:
    """Whether layers can share one such statistic: it treats units apart, and its settings can be compared."""
    return "unit_axes" in vars(type(stat)) and all(_is_plain(value) for value in vars(stat).values())


def check_stats(taps: Mapping[str, Tap], stats: Mapping[str, Mapping[str, Stat]]) -> None:
    """Raise `ConfigError` unless every tap has statistics, and every statistic a tap."""
    if not taps:
        raise ConfigError("record needs at least one tap: {'late': Tap('layer4.1.relu')}")
    for name in stats:
        if name not in taps:
            raise ConfigError(
                f"statistics are given for {name!r}, which is no tap; nearest: {nearest(name, taps)}"
            )
    for name in taps:
        if not stats.get(name):
            raise ConfigError(f"tap {name!r} has no statistic: give it one, or leave the tap out")
    for tap, chosen in stats.items():
        for name, stat in chosen.items():
            _check_stat(stat, f"{name!r} of tap {tap!r}")


def _check_stat(stat: Any, what: str) -> None:
    if isinstance(stat, type) or not isinstance(stat, Stat):
        raise ConfigError(
            f"statistic {what} is {stat!r}: expected an object with update, merge, state, load_state and result, "
            "such as Moments()"
        )
    if isinstance(stat, OURS) and stat.state():
        raise ConfigError(f"statistic {what} has seen samples already: give record a new one")


class Board:
    """All fitters of a pass. The ones given are copied, so one object may stand for many taps."""

    def __init__(
        self, taps: Mapping[str, Tap], stats: Mapping[str, Mapping[str, Stat]], *, places: bool
    ) -> None:
        check_stats(taps, stats)
        self.taps = taps
        self.stats = stats
        self.groups = self._arrange()
        self.widths: dict[str, int] = {}
        self.index = torch.zeros(0, dtype=torch.int64)
        self.readers = self._place_readers() if places else {}

    def _arrange(self) -> list[Group]:
        groups: list[Group] = []
        shared: dict[str, Group] = {}
        for tap in self.taps:
            for name, stat in self.stats[tap].items():
                group = Group(copy.deepcopy(stat), [(tap, name)])
                if not may_share(stat):
                    groups.append(group)
                elif (found := shared.setdefault(settings_of(stat), group)) is not group:
                    found.members.append((tap, name))
                else:
                    groups.append(group)
        return groups

    def _place_readers(self) -> dict[str, PlaceReader]:
        wanting: dict[str, list[Group]] = {}
        for group in self.groups:
            for tap in group.taps if isinstance(group.fitter, TopExamples) else ():
                if self.taps[tap].reduce is None:
                    wanting.setdefault(tap, []).append(group)
        return {tap: self._place_reader(tap, groups) for tap, groups in wanting.items()}

    def _place_reader(self, tap: str, groups: Sequence[Group]) -> PlaceReader:
        def enters(values: Float[Tensor, "batch units"]) -> Bool[Tensor, "batch units"]:
            wanted = torch.zeros(values.shape, dtype=torch.bool)
            exact = values.double()
            for group in groups:
                if isinstance(group.fitter, TopExamples):
                    wanted |= group.fitter.enters(exact, self.index, first=group.start(tap, self.widths))
            return wanted

        return PlaceReader(self.taps[tap].layer, unit_axis=self.taps[tap].unit_axis, enters=enters)

    def watched(self) -> dict[str, Tap]:
        """The taps to watch: those that keep places read them inside the hook."""
        return {
            name: dc.replace(tap, reduce=self.readers[name]) if name in self.readers else tap
            for name, tap in self.taps.items()
        }

    def expect(self, batch: Batch) -> None:
        """Tell the hooks which samples come next."""
        self.index = batch.index.cpu()
        image = (batch.inputs.shape[2], batch.inputs.shape[3]) if batch.inputs.ndim == 4 else None
        for reader in self.readers.values():
            reader.image = image

    def take(self, seen: Mapping[str, Tensor], batch: Batch) -> Float64[Tensor, "batch units"]:
        """The responses of all taps side by side, as float64 on the CPU."""
        for tap in self.taps:
            shape = tuple(seen[tap].shape)
            if len(shape) != 2 or shape[0] != len(batch.index):
                raise DataError(
                    f"tap {tap!r} must give one row of responses a sample, ({len(batch.index)}, units), got {shape}; "
                    "look at its reduce"
                )
            if self.widths.setdefault(tap, shape[1]) != shape[1]:
                raise DataError(f"tap {tap!r} gave {self.widths[tap]} units before and now {shape[1]}")
        return torch.cat([seen[tap] for tap in self.taps], dim=1).detach().to("cpu", torch.float64)

    def update(
        self,
        values: Float64[Tensor, "batch units"],
        batch: Batch,
        *,
        rows: Bool[Tensor, " all"] | None = None,
    ) -> None:
        """Feed every fitter; `rows` are those of the forward that are left, where some were left out."""
        starts = starts_of(self.taps, self.widths)
        cut: dict[tuple[str, ...], Tensor] = {tuple(self.taps): values}
        for group in self.groups:
            if group.taps not in cut:
                columns = [values[:, starts[t] : starts[t] + self.widths[t]] for t in group.taps]
                cut[group.taps] = torch.cat(columns, dim=1) if len(columns) > 1 else columns[0]
            if isinstance(group.fitter, TopExamples):
                group.fitter.update(cut[group.taps], batch, places=self._places(group, rows, len(values)))
            else:
                group.fitter.update(cut[group.taps], batch)

    def find_bad(self, values: Float64[Tensor, "batch units"]) -> dict[str, Bool[Tensor, " batch"]]:
        """For each tap with a NaN or infinity, which samples have one; usually empty, and then cheap."""
        if find_non_finite(values) is None:
            return {}
        bad = ~torch.isfinite(values)
        starts = starts_of(self.taps, self.widths)
        by_tap = {t: bad[:, starts[t] : starts[t] + w].any(1) for t, w in self.widths.items()}
        return {tap: rows for tap, rows in by_tap.items() if bool(rows.any())}

    def explain_bad(
        self, values: Float64[Tensor, "batch units"], batch: Batch, *, names: Sequence[str] | None
    ) -> NumericError:
        """The error that names layer, unit and sample of the first NaN or infinity; `names` are the source's own."""
        bad = self.find_bad(values)
        tap = next(t for t in self.taps if t in bad)
        start = starts_of(self.taps, self.widths)[tap]
        responses = values[:, start : start + self.widths[tap]]
        row, unit = (~torch.isfinite(responses)).nonzero()[0].tolist()
        layer, sample = self.taps[tap].layer, int(batch.index[row])
        where = f"layer {layer!r}" if layer else "the model's output"
        called = "" if names is None else f" ({names[sample]})"
        return NumericError(
            f"{where}: the response of unit {unit} to sample {sample}{called} is {float(responses[row, unit])}; "
            'look at that sample and at the layers before, or record with non_finite="count" (--count-non-finite on the command '
            "line) to leave such samples out and count them"
        )

    def _places(self, group: Group, rows: Bool[Tensor, " all"] | None, n: int) -> Tensor | None:
        found = [self.readers[t].places if t in self.readers else None for t in group.taps]
        if all(p is None for p in found):
            return None
        kept = [p if p is None or rows is None else p[rows.to(p.device)] for p in found]
        columns = [
            torch.full((n, self.widths[t]), -1) if p is None else p.cpu()
            for t, p in zip(group.taps, kept, strict=True)
        ]
        return torch.cat(columns, dim=1)

    # Stopping, going on, and putting the shares of several processes together.

    def grids(self) -> dict[str, tuple[int, int]]:
        """Size of the map of each tap that keeps places."""
        return {tap: reader.grid for tap, reader in self.readers.items() if reader.grid is not None}

    def set_shapes(self, widths: Mapping[str, int], grids: Mapping[str, tuple[int, int]]) -> None:
        """Take units and map sizes from a checkpoint or another process; `DataError` if they contradict."""
        for tap, width in widths.items():
            if self.widths.setdefault(tap, width) != width:
                raise DataError(f"tap {tap!r} has {self.widths[tap]} units here and {width} elsewhere")
        for tap, grid in grids.items():
            reader = self.readers[tap]
            if reader.grid is not None and reader.grid != grid:
                raise DataError(f"the map of tap {tap!r} is {reader.grid} here and {grid} elsewhere")
            reader.grid = grid

    def states(self) -> dict[str, Tensor]:
        """The states of all fitters under names of their own."""
        return {
            f"{i}.{name}": tensor
            for i, group in enumerate(self.groups)
            for name, tensor in group.fitter.state().items()
        }

    def load_states(self, states: Mapping[str, Tensor]) -> None:
        """The inverse of `states`."""
        for i, group in enumerate(self.groups):
            own = {k.removeprefix(f"{i}."): v for k, v in states.items() if k.startswith(f"{i}.")}
            group.fitter.load_state(own)

    def merge(self, ranks: Ranks) -> None:
        """Put the shares of all processes together, in the order of their ranks: the same numbers everywhere."""
        if ranks.world == 1:
            return
        for widths, grids in ranks.gather((self.widths, self.grids())):
            self.set_shapes(widths, grids)
        for group in self.groups:
            tap, name = group.members[0]
            whole = copy.deepcopy(self.stats[tap][name])
            for state in ranks.gather(group.fitter.state()):
                part = copy.deepcopy(self.stats[tap][name])
                part.load_state(state)
                whole.merge(part)
            group.fitter = whole

    def fitters(self) -> dict[str, dict[str, Stat]]:
        """The fitters by tap and name, as they were given."""
        found: dict[str, dict[str, Stat]] = {tap: {} for tap in self.taps}
        grids = self.grids()
        for group in self.groups:
            parts = [group.fitter]
            if len(group.members) > 1:
                shared = cast(PerUnit, group.fitter)
                parts = split_units(shared, [self.widths[t] for t in group.taps])
            for (tap, name), part in zip(group.members, parts, strict=True):
                if isinstance(part, TopExamples):
                    part.grid = grids.get(tap)
                found[tap][name] = part
        return {tap: {name: found[tap][name] for name in self.stats[tap]} for tap in self.taps}
