"""What a model has to name: one row for each call of each layer."""

import contextlib
import dataclasses as dc
import functools
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pellucid._checks import ConfigError
from pellucid.taps.find import first_names, named_layers
from pellucid.taps.hookable import check_reachable, hookable
from pellucid.taps.hooking import Forward, follow
from pellucid.taps.reducing import unit_axis_of
from pellucid.taps.values import pick


@dc.dataclass(frozen=True)
class LayerInfo:
    """One call of one layer in a forward.

    Args:
        name: what a `Tap` or `edit` takes: with "#call" where the layer runs several times; "" is the model.
        type: class of the layer.
        shape: of its output for one sample, without the batch axis; () where the output is not one tensor
            with a batch and a unit axis (then units is 0 and unit_axis None), or where the layer never ran.
        units: how many channels or features.
        unit_axis: the axis that the default reduction takes for units, counted with the batch as axis 0.
        calls: how often the layer runs in a forward; 0 for a layer that is never called.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    units: int
    unit_axis: int | None
    calls: int


def layers(model: nn.Module, inputs: Tensor | tuple[Any, ...]) -> list[LayerInfo]:
    """Every layer in model order with the shape of its output, from one forward in evaluation mode.

    Mode, RNG state and buffers are afterwards as before. A layer that runs n times has n rows. TorchScript
    layers take no hooks and count as never called.

    Args:
        inputs: a batch (one sample is enough), or a tuple of the model's positional arguments.
    """
    named = named_layers(model)
    check_reachable("", named)
    modules = first_names(named)
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in modules.values()}

    def look(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        shapes[name].append(_shape(output))

    def attach() -> Iterator[RemovableHandle]:
        for module, name in modules.items():
            if not isinstance(module, torch.jit.ScriptModule):
                yield module.register_forward_hook(functools.partial(look, name))

    with contextlib.ExitStack() as stack:
        stack.enter_context(hookable(model, named, shapes))
        stack.enter_context(_evaluation(list(modules)))
        stack.enter_context(follow(Forward(model, []), attach))
        model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return [
        row for module, name in modules.items() for row in _rows(name, type(module).__name__, shapes[name])
    ]


@contextlib.contextmanager
def _evaluation(modules: list[nn.Module]) -> Generator[None, None, None]:
    """No gradients, evaluation mode and a borrowed RNG state inside; each mode as it was afterwards."""
    modes = [(module, module.training) for module in modules]
    devices = {
        p.device for module in modules for p in module.parameters(recurse=False) if p.device.type == "cuda"
    }
    with torch.no_grad(), torch.random.fork_rng(devices=sorted(device.index for device in devices)):
        try:
            for module in modules:
                module.training = False
            yield
        finally:
            for module, training in modes:
                module.training = training


def _shape(output: Any) -> tuple[int, ...]:
    """Shape, batch included, of an output that is one tensor with batch and units; () for any other."""
    try:
        tensor = pick(output, None, "")
    except ConfigError:
        return ()
    return tuple(tensor.shape) if tensor.ndim > 1 else ()


def _rows(name: str, kind: str, shapes: list[tuple[int, ...]]) -> list[LayerInfo]:
    rows: list[LayerInfo] = []
    for call, shape in enumerate(shapes or [()]):
        axis = unit_axis_of(len(shape)) if shape else None
        rows.append(
            LayerInfo(
                name=f"{name}#{call}" if len(shapes) > 1 else name,
                type=kind,
                shape=shape[1:],
                units=shape[axis] if axis is not None else 0,
                unit_axis=axis,
                calls=len(shapes),
            )
        )
    return rows
