"""Change activations while a model runs: `edit`, and ready-made changes to ablate, clamp and patch."""

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pellucid._checks import ConfigError, LayerNotFound
from pellucid.rng import rng
from pellucid.taps.find import get_layer, named_layers, split_call
from pellucid.taps.hookable import check_reachable, hookable
from pellucid.taps.hooking import Forward, Site, follow
from pellucid.taps.reducing import unit_axis_of
from pellucid.taps.values import pick, replace

Change = Callable[[Tensor], Tensor]
Units = Sequence[int] | Int[Tensor, " chosen"] | None
Select = Callable[[Tensor], Tensor]


class _Editor:
    """The hooks of one edit block and what they share."""

    def __init__(self, model: nn.Module, changes: Mapping[str, Change]) -> None:
        self.named = named = named_layers(model)
        self.modules: dict[str, nn.Module] = {}
        self.sites: dict[str, Site] = {}
        self.changes: dict[str, dict[int | None, Change]] = {}
        for name, change in changes.items():
            layer, call = split_call(name)
            layer, module = get_layer(model, layer, named)
            check_reachable(layer, named)
            self.modules[layer] = module
            self.sites.setdefault(layer, Site(layer, named=True)).named &= call is not None
            calls = self.changes.setdefault(layer, {})
            if call in calls or (calls and None in (call, *calls)):
                raise ConfigError(f"two changes for layer {layer!r}: put them into one function")
            calls[call] = change
        self.forward = Forward(model, list(self.sites.values()))
        self.forward.finish = self.finish

    def attach(self) -> Iterator[RemovableHandle]:
        """Hook every changed layer before anything that reads it; yields the handles."""
        for layer, module in self.modules.items():
            hook = functools.partial(self._apply, self.sites[layer], self.changes[layer])
            yield module.register_forward_hook(hook, prepend=True)

    def _apply(
        self, site: Site, changes: Mapping[int | None, Change], _module: nn.Module, _args: Any, output: Any
    ) -> Any:
        if site.named and not self.forward.running:
            raise ConfigError(
                f"layer {site.layer!r} ran outside a call of {self.forward.name} (activation checkpointing, "
                "or a part called by itself), where calls cannot be told apart; edit it without a call mark"
            )
        call = site.runs
        site.runs = call + 1
        change = changes.get(None, changes.get(call))
        return output if change is None else _changed(output, change, f"the output of layer {site.layer!r}")

    def finish(self, output: Any) -> None:
        """A change that was not applied is an error: what follows would be read as its effect."""
        if output is None:  # stopped short by a watch block, perhaps before the layer
            return
        for layer, changes in self.changes.items():
            runs = self.sites[layer].runs
            missed = [call for call in changes if runs <= (call or 0)]
            if missed:
                name = layer if missed[0] is None else f"{layer}#{missed[0]}"
                raise LayerNotFound(
                    f"the change at {name!r} was not applied: the layer ran {runs} times in this forward of "
                    f"{self.forward.name} (a branch not taken, or weights used without calling the layer)"
                )


def _changed(output: Any, change: Change, what: str) -> Any:
    before = pick(output, None, what)
    try:
        after: Any = change(before)
    except ConfigError as error:
        raise ConfigError(f"{what}, of shape {tuple(before.shape)}: {error}") from error
    if not isinstance(after, Tensor) or after.shape != before.shape:
        came = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
        raise ConfigError(
            f"a change must return a tensor of shape {tuple(before.shape)} for {what}, got {came}"
        )
    return replace(output, after, what)


@contextlib.contextmanager
def edit(model: nn.Module, changes: Mapping[str, Change]) -> Generator[None, None, None]:
    """Replace what layers give, in every call of `model` inside the block: {layer: change}.

    A change takes the layer's output (its only tensor, where that is a tuple or dict) and returns a new one
    of the same shape, which a layer behind it may overwrite; gradients pass through it. "relu#1" changes the
    second call alone. Taps see the edited activations. Of two edit blocks that change one layer, the inner
    acts first. Hooks come off at the end, also after an error.

    Raises:
        LayerNotFound: no such layer; in the forward, a layer that runs several times without a call mark, or
            a change that was not applied.
        ConfigError: a layer that hooks cannot reach, an output without one tensor, a result of another shape.

    Warns:
        UserWarning: the block ended and the model never ran in it.
    """
    editor = _Editor(model, changes)
    with hookable(model, editor.named, list(editor.sites)), follow(editor.forward, editor.attach):
        yield
        if changes and not editor.forward.started:
            warnings.warn(
                f"nothing was edited: {editor.forward.name} was not called inside the edit block",
                stacklevel=3,
            )


def ablate(units: Units = None, *, unit_axis: int | None = None) -> Change:
    """Set units to zero, all of them without `units`: a[b, u, ...] = 0."""
    return _rewrite(units, unit_axis, lambda activation, select: torch.zeros_like(select(activation)))


def set_mean(
    units: Units, means: Sequence[float] | Float[Tensor, " chosen"], *, unit_axis: int | None = None
) -> Change:
    """Set each unit to a constant, usually its mean over a data set: a[b, u, ...] = means[u].

    Args:
        means: one number for each of `units`, in their order.
    """
    values = torch.as_tensor(means)

    def fill(activation: Tensor, select: Select) -> Tensor:
        chosen, axis = select(activation), unit_axis_of(activation.ndim, unit_axis)
        if values.shape != chosen.shape[axis : axis + 1]:
            raise ConfigError(
                f"needs one mean for each of {chosen.shape[axis]} units, got shape {list(values.shape)}"
            )
        return (
            values.to(chosen).reshape([-1 if i == axis else 1 for i in range(chosen.ndim)]).expand_as(chosen)
        )

    return _rewrite(units, unit_axis, fill)


def clamp_units(
    units: Units, low: float | None = None, high: float | None = None, *, unit_axis: int | None = None
) -> Change:
    """Keep units within bounds: a[b, u, ...] = min(max(a[b, u, ...], low), high); None is no bound."""
    if (low is None and high is None) or (low is not None and high is not None and not low <= high):
        raise ConfigError(f"clamp_units needs low <= high, at least one of them, got low={low}, high={high}")
    return _rewrite(units, unit_axis, lambda activation, select: select(activation).clamp(low, high))


def patch(units: Units, from_: Shaped[Tensor, "batch ..."], *, unit_axis: int | None = None) -> Change:
    """Give units the activations they had on another input: a[b, u, ...] = from_[b, u, ...].

    Args:
        from_: the layer's whole activation on the other input (`Tap(layer, reduce=keep)`), for as many
            samples as the batch has or for one, which then serves them all.
    """

    def fill(activation: Tensor, select: Select) -> Tensor:
        _check_source(from_, activation)
        if len(from_) not in (1, len(activation)):
            raise ConfigError(
                f"from_ must hold 1 or {len(activation)} samples, as the batch does, got {len(from_)}"
            )
        return select(from_.to(activation)).expand_as(select(activation))

    return _rewrite(units, unit_axis, fill)


def resample(
    units: Units, other: Shaped[Tensor, "donors ..."], *, seed: int = 0, unit_axis: int | None = None
) -> Change:
    """Give units the activations of random other samples: a[b, u, ...] = other[d(b), u, ...], d(b) uniform.

    All units of a sample come from one donor, so what they say together stays possible. The i-th forward
    draws from `rng(seed, "resample", i)`: the same seed and order of batches give the same donors.

    Args:
        other: the layer's whole activation on the donors, any number of them.
    """
    forwards = itertools.count()

    def fill(activation: Tensor, select: Select) -> Tensor:
        _check_source(other, activation)
        draw = rng(seed, "resample", next(forwards))
        donors = torch.randint(len(other), (len(activation),), generator=draw)
        return select(other)[donors.to(other.device)].to(activation)

    return _rewrite(units, unit_axis, fill)


def _rewrite(units: Units, unit_axis: int | None, fill: Callable[[Tensor, Select], Tensor]) -> Change:
    """The change that puts `fill(activation, select)` where `select` reads, never in place."""
    chosen = None if units is None else _index(units)

    def change(activation: Tensor) -> Tensor:
        axis = unit_axis_of(activation.ndim, unit_axis)
        if chosen is None:
            return fill(activation, lambda values: values).clone()  # a layer behind it may work in place
        if chosen.numel() and chosen.max() >= activation.shape[axis]:
            raise ConfigError(f"units must lie in 0..{activation.shape[axis] - 1}, got {int(chosen.max())}")
        index = chosen.to(activation.device)
        new = fill(activation, lambda values: values.index_select(axis, index.to(values.device)))
        return activation.index_copy(axis, index, new)

    return change


def _index(units: Sequence[int] | Tensor) -> Tensor:
    index = torch.as_tensor(units).cpu()
    if not index.numel():
        return torch.zeros(0, dtype=torch.int64)
    if index.ndim != 1 or index.dtype == torch.bool or index.is_floating_point() or index.min() < 0:
        raise ConfigError(f"units must be a list of positions from 0, got {units!r}")
    return index.long()


def _check_source(source: Tensor, activation: Tensor) -> None:
    if source.shape[1:] != activation.shape[1:] or not len(source):
        raise ConfigError(
            f"the other activations must have the layer's shape (n, *{tuple(activation.shape[1:])}), got "
            f"{tuple(source.shape)}; read them with Tap(layer, reduce=keep)"
        )
