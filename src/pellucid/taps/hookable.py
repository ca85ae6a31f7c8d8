"""What stands between a hook and the layer it is on, and what is done about it."""

import contextlib
import warnings
from collections.abc import Generator, Iterable, Mapping

import torch
from torch import nn

from pellucid._checks import ConfigError
from pellucid.taps.find import unwrap, walk

# In evaluation mode these compute their children in one fused call that runs no child, hence no hook.
_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a layer of it went through `torch.compile` or `.compile()`."""
    return any(
        name.rpartition(".")[2] == "_orig_mod" or getattr(module, "_compiled_call_impl", None) is not None
        for name, module in walk(model)
    )


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP, of either generation, holds a part of the model."""
    return any(
        name.rpartition(".")[2] == "_fsdp_wrapped_module"
        or any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)
        for name, module in model.named_modules()
    )


def runs_once(name: str, named: Mapping[str, nn.Module]) -> bool:
    """Whether a layer can be taken to run once in a forward, before any forward was seen.

    The model itself, a layer with weights, and a layer that stands once in nested plain `nn.Sequential`s.
    """
    module = named[name]
    if not name or any(True for _ in module.parameters()):
        return True
    plain = all(type(parent).forward is nn.Sequential.forward for parent in _above(name, named))
    return plain and sum(module is other for other in named.values()) == 1


def check_reachable(name: str, named: Mapping[str, nn.Module]) -> None:
    """Refuse a layer whose hooks would never fire.

    Raises:
        ConfigError: TorchScript, or a layer that its parent never calls.
    """
    above = _above(name, named)
    if any(isinstance(module, torch.jit.ScriptModule) for module in (*above, named[name])):
        raise ConfigError(
            f"layer {name!r} is TorchScript, which takes no hooks; pass the nn.Module it was made from"
        )
    if above and isinstance(above[-1], nn.MultiheadAttention):
        raise ConfigError(
            f"layer {name!r} is never called: nn.MultiheadAttention uses its weights directly; name "
            f"{name.rpartition('.')[0]!r} itself, whose output is (attended, weights)"
        )


def _above(name: str, named: Mapping[str, nn.Module]) -> list[nn.Module]:
    parts = name.split(".") if name else []
    return [named[".".join(parts[:depth])] for depth in range(len(parts))]


@contextlib.contextmanager
def hookable(
    model: nn.Module, named: Mapping[str, nn.Module], names: Iterable[str]
) -> Generator[None, None, None]:
    """Make hooks on the layers called `names` fire inside the block.

    A compiled model runs uncompiled, with a warning: its graph was made without the hooks and would ignore
    them. The fused transformer path is off where a named layer lies inside it. Both are as before after the
    block.

    Raises:
        ConfigError: DataParallel over several devices.
    """
    owner = type(unwrap(model)).__name__
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise ConfigError(
            f"{owner} is in DataParallel over {len(model.device_ids)} devices, whose replicas run at once "
            "and meet in no fixed order; pass the module inside it, or use DistributedDataParallel"
        )
    with contextlib.ExitStack() as stack:
        if any(isinstance(module, _FUSED) for name in names for module in _above(name, named)):
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
        if is_compiled(model):
            warnings.warn(
                f"{owner} is compiled; inside this block it runs uncompiled, because a compiled graph "
                "ignores hooks added after it was made",
                stacklevel=5,
            )
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
