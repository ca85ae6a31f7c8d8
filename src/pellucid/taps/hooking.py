"""The rules that watch, edit and layers share: one forward at a time, calls counted, hooks off at the end."""

import contextlib
import dataclasses as dc
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pellucid._checks import ConfigError, LayerNotFound
from pellucid.taps.find import unwrap


@dc.dataclass(slots=True, eq=False)
class Site:
    """One hooked layer: how often it ran in the present forward, and whether its calls were told apart."""

    layer: str
    named: bool
    runs: int = 0

    def calls(self) -> str:
        """The names of the calls so far, for a message."""
        shown = [repr(f"{self.layer}#{call}") for call in range(min(self.runs, 8))]
        return ", ".join(shown) + (", ..." if self.runs > 8 else "")


class Forward:
    """Follows the calls of one model, one at a time: whether it runs now, and how often each site ran in it.

    `start()` is called as the model begins to run, `finish(output)` when it has run well, `fail()` when it or
    a check raised.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self.root = unwrap(model)
        self.name = type(self.root).__name__
        self.sites = sites
        self.running = False
        self.started = 0
        self.start: Callable[[], None] = _nothing
        self.finish: Callable[[Any], None] = _nothing
        self.fail: Callable[[], None] = _nothing
        self._thread = 0
        self._pending = False

    def begin(self, module: nn.Module, _args: Any) -> None:
        """Pre-hook of the model: count from zero, or refuse a call beside another one."""
        if getattr(module, "_is_replica", False):
            raise ConfigError(
                f"{self.name} runs as DataParallel replicas on several devices, whose activations meet in no "
                "fixed order; call the module inside it, or use DistributedDataParallel"
            )
        thread = threading.get_ident()
        if self.running and thread != self._thread:
            raise ConfigError(
                f"two threads call {self.name} inside one watch or edit block, which follows one forward at "
                "a time; give each thread a copy of the model and a block of its own"
            )
        self.running, self._pending, self._thread = True, True, thread
        self.started += 1
        for site in self.sites:
            site.runs = 0
        self.start()

    def end(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Last hook of the model: a layer that ran several times must have been told apart by call."""
        self.running = False
        for site in self.sites:
            if site.runs > 1 and not site.named:
                raise LayerNotFound(
                    f"layer {site.layer!r} runs {site.runs} times in one forward of {self.name}; "
                    f"say which: {site.calls()}"
                )
        self.finish(output)
        self._pending = False

    def always(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Runs after `end`, and also when the forward raised."""
        if self._pending:
            self.running = self._pending = False
            self.fail()

    def release(self) -> None:
        """Let go of whom this called: the two would keep each other alive, and what was read, until Python collects."""
        self.start = self.finish = self.fail = _nothing


def _nothing(*_: Any) -> None:
    pass


def _untraced(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook, kept from being traced by a compiled copy of the model; never imports dynamo for it."""
    compilable = "torch._dynamo" in sys.modules
    return cast("Callable[..., None]", torch.compiler.disable(hook)) if compilable else hook


@contextlib.contextmanager
def follow(forward: Forward, attach: Callable[[], Iterable[RemovableHandle]]) -> Generator[None, None, None]:
    """Hook the model and, through `attach`, its sites; hooks come off however the block ends."""
    root = forward.root
    handles: list[RemovableHandle] = []
    try:
        handles.append(root.register_forward_pre_hook(_untraced(forward.begin), prepend=True))
        for handle in attach():  # one by one: what is placed before an error comes off too
            handles.append(handle)
        # After the sites' hooks: a tap on the model itself must have read before the calls are checked.
        handles.append(root.register_forward_hook(_untraced(forward.end)))
        handles.append(root.register_forward_hook(_untraced(forward.always), always_call=True))
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()
        forward.release()
