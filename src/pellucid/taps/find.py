"""Which layers a model has, and what a person may call them."""

import fnmatch
import re
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from pellucid._checks import LayerNotFound, nearest

# The attribute under which torch.compile, FSDP and activation checkpointing keep the module they wrap.
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_SPECIAL = re.compile("|".join(("parametrizations", *_WRAPPED)))

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Softsign,
    nn.Threshold,
    nn.GLU,
)
"""The element-wise nonlinearities of torch (and GLU): the layers that are looked at when nobody names any."""


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own network inside DataParallel, DDP, FSDP, `torch.compile` and other wrappers."""
    while (inner := _wrapped_by(model)) is not None:
        model = inner
    return model


def _wrapped_by(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.DataParallel | DistributedDataParallel | AveragedModel):
        return module.module
    return next((child for name, child in children(module) if name in _WRAPPED and child is not None), None)


def children(module: nn.Module) -> Iterable[tuple[str, nn.Module | None]]:
    """The places of a module's children, and who stands there; one that stands in two is given twice."""
    return module._modules.items()  # pyright: ignore[reportPrivateUsage]  # named_children() leaves the second out


def walk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """`named_modules(remove_duplicate=False)` without its nested generators: every block of hooks begins with this."""
    found: list[tuple[str, nn.Module]] = []
    _visit("", model, found)
    return found


def _visit(name: str, module: nn.Module, found: list[tuple[str, nn.Module]]) -> None:
    found.append((name, module))
    for own, child in children(module):
        if child is not None:
            _visit(f"{name}.{own}" if name else own, child, found)


def canonical(name: str) -> str:
    """A dotted name without the parts that wrappers put into it."""
    if not any(mark in name for mark in _WRAPPED):  # the usual case, quick: every block asks for every layer
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every name a layer answers to, in model order; a module registered under two names appears under both.

    Wrappers inside the model are seen through. Parametrizations compute weights, not activations: left out.
    """
    found: dict[str, nn.Module] = {}
    for name, module in walk(unwrap(model)):
        # Most names hold no such word, and many are looked at: one search tells.
        if _SPECIAL.search(name) is None:
            found[name] = module
        elif "parametrizations" not in name.split("."):
            found[canonical(name)] = module  # a wrapper comes before what it wraps, so the inside wins
    return found


def first_names(named: dict[str, nn.Module]) -> dict[nn.Module, str]:
    """Each module once, under the first of its names."""
    names: dict[nn.Module, str] = {}
    for name, module in named.items():
        names.setdefault(module, name)
    return names


def split_call(name: str) -> tuple[str, int | None]:
    """`"relu#1"` is the second call of `"relu"`; without a number, the call is left open."""
    layer, mark, call = name.rpartition("#")
    return (layer, int(call)) if mark and call.isdecimal() else (name, None)


def get_layer(
    model: nn.Module, name: str, named: dict[str, nn.Module] | None = None
) -> tuple[str, nn.Module]:
    """The layer that `name` means, and its name without wrapper parts.

    Raises:
        LayerNotFound: with the nearest names.
    """
    named = named_layers(model) if named is None else named
    plain = canonical(name)
    while plain not in named and plain.partition(".")[0] == "module":  # as named_modules() of DDP prints it
        plain = plain.partition(".")[2]
    if plain in named:
        return plain, named[plain]
    raise LayerNotFound(_not_found(model, name, named))


def _not_found(model: nn.Module, pattern: str, named: dict[str, nn.Module]) -> str:
    what = f"no layer matches {pattern!r}" if _is_glob(pattern) else f"no layer {pattern!r}"
    names = [name for name in first_names(named).values() if name]
    return f"{what} in {type(unwrap(model)).__name__}; nearest: {nearest(pattern, names)}"


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def find_layers(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The layers that names or globs mean, in model order, each once.

    A glob matches the whole dotted name, dots included (`layer3.*.conv2`, `*.relu`); "" is the model itself
    and matched by no glob. A call mark stays on: `*.relu#1` gives the second call of each. A module
    registered under several names is given under its first.

    Raises:
        LayerNotFound: a pattern that matches nothing, with the nearest names; no pattern at all.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not patterns:
        raise LayerNotFound(f"no layer named in {type(unwrap(model)).__name__}: give a name or a glob")
    named = named_layers(model)
    first = first_names(named)
    order = {name: place for place, name in enumerate(first.values())}
    chosen: set[tuple[int, int, str]] = set()
    for pattern in patterns:
        layer, call = split_call(pattern)
        names = [n for n in named if n and fnmatch.fnmatchcase(n, layer)] if _is_glob(layer) else [layer]
        if not names:
            raise LayerNotFound(_not_found(model, pattern, named))
        for name in names:
            known = first[get_layer(model, name, named)[1]]
            chosen.add((order[known], -1 if call is None else call, known))
    return [name if call < 0 else f"{name}#{call}" for _, call, name in sorted(chosen)]


def activation_layers(model: nn.Module, *, types: tuple[type[nn.Module], ...] = ACTIVATIONS) -> list[str]:
    """Names of all layers of the given types, in model order: what to look at when nobody chose.

    timm's own nonlinearities (`timm.layers.activations`) and modules that say `is_activation = True` of themselves
    count as well when `types` is left alone. One that runs several times in a forward is named once here;
    `layers(model, inputs)` has its calls.
    """
    by_default = types is ACTIVATIONS
    return [
        name
        for module, name in first_names(named_layers(model)).items()
        if isinstance(module, types) or (by_default and _says_so(module))
    ]


def _says_so(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.layers.activations") or (
        getattr(type(module), "is_activation", False) is True
    )
