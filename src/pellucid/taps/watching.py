"""Read activations while a model runs: `Tap` says where and how, `watch` fills a dict at each forward."""

import contextlib
import dataclasses as dc
import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from pellucid._checks import ConfigError, LayerNotFound, check_one_of
from pellucid.taps.find import get_layer, named_layers, split_call
from pellucid.taps.hookable import check_reachable, hookable, is_sharded, runs_once
from pellucid.taps.hooking import Forward, Site, follow
from pellucid.taps.reducing import unit_mean
from pellucid.taps.values import pick


@dc.dataclass(frozen=True)
class Tap:
    """Where and how to read one activation.

    Args:
        layer: a `named_modules()` name; "" is the model itself, whose output is the logits; "relu#1" the
            second time `relu` runs in a forward.
        reduce: from the activation to what is kept, run inside the hook; None is `unit_mean`, `keep` the
            whole map.
        side: what the layer gives ("out") or takes ("in").
        call: the same as the number after "#" in `layer`.
        unit_axis: where the default reduction finds units (`unit_axis_of`).
        item: which entry of a tuple (its position) or dict (its key), where a layer gives or takes several
            tensors.
    """

    layer: str
    reduce: Callable[[Tensor], Tensor] | None = None
    side: Literal["in", "out"] = "out"
    call: int | None = None
    unit_axis: int | None = None
    item: int | str | None = None

    def __post_init__(self) -> None:
        check_one_of(self.side, ("in", "out"), "Tap.side")
        marked = split_call(self.layer)[1]
        if self.call is not None and (self.call < 0 or marked not in (None, self.call)):
            raise ConfigError(
                f"Tap({self.layer!r}, call={self.call}): call counts from 0 and must agree with '#'"
            )

    @property
    def place(self) -> tuple[str, int | None]:
        """The layer's name without a call mark, and the call, however it was given."""
        layer, call = split_call(self.layer)
        return layer, self.call if call is None else call


class Seen(dict[str, Tensor]):
    """What the taps read in the latest forward, under the taps' own keys.

    Emptied when the next forward begins and when one fails. Reading a tap that did not fire raises
    `LayerNotFound` and says why; `key in seen` asks first. `forwards` counts the forwards begun.
    """

    def __init__(self, model: str, taps: Mapping[str, Tap], sites: Mapping[str, Site]) -> None:
        super().__init__()
        self.forwards = 0
        self._model, self._taps, self._sites = model, dict(taps), dict(sites)

    def __missing__(self, key: str) -> Tensor:
        raise LayerNotFound(self._why(key))

    def _why(self, key: str) -> str:
        if key not in self._taps:
            return f"no tap {key!r}; taps: {list(self._taps)}"
        if not self.forwards:
            return (
                f"tap {key!r} has read nothing: no call of {self._model} began inside the watch block; call "
                "the object that is watched, model(inputs), not model.forward or a part of it"
            )
        site, call = self._sites[key], self._taps[key].place[1]
        if site.runs and call is not None:
            return (
                f"layer {site.layer!r} has no call {call} in the last forward of {self._model}; it ran "
                f"{site.runs} times: {site.calls()}"
            )
        return (
            f"layer {site.layer!r} did not run in the last forward of {self._model}, so tap {key!r} has read "
            "nothing: a branch not taken, weights used without calling the layer, a compiled copy of the "
            "model, or a forward that failed or was stopped by another tap"
        )


class _Stop(BaseException):
    """Ends a forward once every tap has read. Not an Exception: no handler inside a model may swallow it."""

    def __init__(self, watcher: "_Watcher") -> None:
        super().__init__()
        self.watcher = watcher


Read = Callable[[Any], Tensor]
Look = Callable[[nn.Module, Any, Any], None]


class _Watcher:
    """The hooks of one watch block and what they share."""

    def __init__(self, model: nn.Module, taps: Mapping[str, Tap], *, grad: bool, stop: bool) -> None:
        self.grad, self.stop = grad, stop
        self.named = named = named_layers(model)
        self.modules: dict[tuple[str, str], nn.Module] = {}
        self.sites: dict[tuple[str, str], Site] = {}
        self.readers: dict[tuple[str, str], dict[int, list[tuple[str, Read]]]] = {}
        by_key: dict[str, Site] = {}
        for key, tap in taps.items():
            layer, call = tap.place
            layer, module = get_layer(model, layer, named)
            check_reachable(layer, named)
            where = (layer, tap.side)
            self.modules[where] = module
            site = by_key[key] = self.sites.setdefault(where, Site(layer, named=True))
            site.named &= call is not None
            calls = self.readers.setdefault(where, {})
            calls.setdefault(call or 0, []).append((key, _reader(tap, layer, grad=grad)))
        self.forward = Forward(model, list(self.sites.values()))
        self.seen = Seen(self.forward.name, taps, by_key)
        self.forward.start, self.forward.finish, self.forward.fail = self.start, self.finish, self.seen.clear
        self.waiting = self.taps = len(taps)
        # A layer that may run again must be seen to run once before a forward may be cut short after it.
        self.stopping = stop and all(
            site.named or runs_once(site.layer, named) for site in self.sites.values()
        )

    def start(self) -> None:
        self.seen.clear()
        self.seen.forwards += 1
        self.waiting = self.taps

    def finish(self, _output: Any) -> None:
        self.stopping = self.stop

    def attach(self) -> Iterator[RemovableHandle]:
        """Hook every tapped layer; yields the handles."""
        for where, module in self.modules.items():
            look = self._look(where)
            if where[1] == "out":
                yield module.register_forward_hook(look)
            else:
                hook = functools.partial(_see_input, look)
                yield module.register_forward_pre_hook(hook, with_kwargs=True)

    def _look(self, where: tuple[str, str]) -> Look:
        """The hook at `where`: count the call, read the value for its taps, stop."""
        forward, seen, site, readers = self.forward, self.seen, self.sites[where], self.readers[where]
        inside = self.modules[where] is not forward.root  # the model's own hooks run outside its forward

        def look(_module: nn.Module, _args: Any, value: Any) -> None:
            if not forward.running:
                # Activation checkpointing runs the layer again in the backward pass and must find the same
                # graph.
                for _, read in readers.get(0, ()) if self.grad else ():
                    read(value)
                return
            call = site.runs
            site.runs = call + 1
            for key, read in readers.get(call, ()):
                seen[key] = read(value)
                self.waiting -= 1
            if self.stopping and not self.waiting and inside:
                raise _Stop(self)

        return look

    @contextlib.contextmanager
    def cut_short(self) -> Generator[None, None, None]:
        """Let the model's forward return None as soon as every tap has read."""
        root = self.forward.root
        before, own = root.forward, "forward" in vars(root)

        @functools.wraps(before)
        def forward(*args: Any, **kwargs: Any) -> Any:
            try:
                output = before(*args, **kwargs) if self.waiting or not self.stopping else None
            except _Stop as stop:
                if stop.watcher is not self:
                    raise
                return None
            return output if self.waiting else None

        root.forward = forward
        try:
            yield
        finally:
            if own:
                root.forward = before
            else:
                del root.forward


def _see_input(look: Look, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    look(module, args, args[0] if len(args) == 1 and not kwargs else dict(enumerate(args)) | kwargs)


def _reader(tap: Tap, layer: str, *, grad: bool) -> Read:
    """From what a layer gives or takes to what `seen` keeps: reduced, and out of reach of in-place layers."""
    item, reduce, unit_axis = tap.item, tap.reduce, tap.unit_axis
    what = f"the {'output' if tap.side == 'out' else 'input'} of layer {layer!r}"

    def read(value: Any) -> Tensor:
        activation = value if item is None and isinstance(value, Tensor) else pick(value, item, what)
        if not grad:
            activation = activation.detach()
        if reduce is None:
            try:
                return unit_mean(activation, unit_axis)
            except ConfigError as error:
                raise ConfigError(f"{what}, of shape {tuple(activation.shape)}: {error}") from error
        try:
            # With a graph, a reduce may save its input, which a layer after it may overwrite: it gets a copy.
            result: Any = reduce(activation.clone() if grad else activation)
        except Exception as error:
            error.add_note(f"while a tap reduced {what}, of shape {tuple(activation.shape)}")
            raise
        if not isinstance(result, Tensor):
            raise ConfigError(f"a tap's reduce must return a tensor, got {type(result).__name__} for {what}")
        return result if grad else _own(result, activation)

    return read


def _own(result: Tensor, activation: Tensor) -> Tensor:
    """`result` detached, copied where it is a view of the activation."""
    result = result.detach()
    shared = result.untyped_storage().data_ptr() == activation.untyped_storage().data_ptr()
    return result.clone() if shared else result


@contextlib.contextmanager
def watch(
    model: nn.Module, taps: Mapping[str, Tap], *, grad: bool = False, stop: bool = False
) -> Generator[Seen, None, None]:
    """Read activations in every call of `model` inside the block; what a tap read stands under its key.

    The values are copies in the activation's own type: a layer that works in place afterwards does not reach
    them. Where the model is edited too (`edit`), taps see the edited activations, whichever block is outside.
    Mode, RNG, parameters and the model's output stay as they are, and hooks come off at the end, also after
    an error.

    Args:
        grad: keep the graph, so that a loss on what was seen has gradients; else the values are detached.
        stop: compute nothing behind the last tap to read. The model's call then returns None, unless its
            output is tapped (hooks of your own on the model itself get None too). A tap without `call` on a
            layer without weights, outside plain `nn.Sequential`, makes the first forward run to its end, to
            see that the layer runs only once; a layer with weights is taken to run once.

    Raises:
        LayerNotFound: on entry, no such layer; in the forward, a layer that runs several times without
            `call`; on reading, a tap that did not fire.
        ConfigError: a layer or wrapper that hooks cannot reach, an activation that the tap cannot read.
    """
    if stop:
        _refuse_stop(model, taps, grad=grad)
    watcher = _Watcher(model, taps, grad=grad, stop=stop)
    with contextlib.ExitStack() as stack:
        stack.enter_context(hookable(model, watcher.named, [layer for layer, _ in watcher.sites]))
        if stop:
            stack.enter_context(watcher.cut_short())
        stack.enter_context(follow(watcher.forward, watcher.attach))
        yield watcher.seen


def _refuse_stop(model: nn.Module, taps: Mapping[str, Tap], *, grad: bool) -> None:
    if not taps:
        raise ConfigError("stop=True needs at least one tap to stop behind")
    if is_sharded(model) or (grad and isinstance(model, DistributedDataParallel)):
        raise ConfigError(
            f"a {type(model).__name__} must finish its forward to keep its processes in step, so stop=True "
            "cannot cut it short; leave stop out, or watch the module inside DistributedDataParallel"
        )
