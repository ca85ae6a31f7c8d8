"""The one tensor in what a layer takes or gives, which may be a tuple or a dict."""

import copy
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from pellucid._checks import ConfigError


def pick(value: Any, item: int | str | None, what: str) -> Tensor:
    """`value` if it is a tensor; else its entry `item`, or its only tensor where `item` is left out.

    Raises:
        ConfigError: no tensor, several and no `item`, or no such entry; the message lists what is there.
    """
    if isinstance(value, Tensor):
        if item is not None:
            raise ConfigError(f"{what} is one tensor of shape {tuple(value.shape)}; leave item={item!r} out")
        return value
    key = only_tensor(value, what) if item is None else item
    entries = entries_of(value)
    if isinstance(key, int) and key < 0 and not isinstance(value, Mapping):
        key += len(entries)
    if not isinstance(entries.get(key), Tensor):
        raise ConfigError(f"{what} has no tensor at item={item!r}; it has {describe(value)}")
    return cast(Tensor, entries[key])


def only_tensor(value: Any, what: str) -> int | str:
    """The key of the only tensor in a tuple, list or mapping, where None and numbers do not count."""
    entries = entries_of(value)
    tensors = [key for key, entry in entries.items() if isinstance(entry, Tensor)]
    nested = any(isinstance(entry, tuple | list | Mapping) for entry in entries.values())
    if len(tensors) == 1 and not nested:
        return tensors[0]
    raise ConfigError(
        f"{what} is {describe(value)}; say which tensor with Tap(..., item=...)"
        if tensors
        else f"{what} is {describe(value)}, not a tensor; tap a layer inside or after it"
    )


def entries_of(value: Any) -> dict[int | str, Any]:
    """The entries of a tuple, list or mapping by position or key; nothing for anything else."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[int | str, Any]", value))
    return dict(enumerate(cast("tuple[Any, ...]", value))) if isinstance(value, tuple | list) else {}


def replace(value: Any, new: Tensor, what: str) -> Any:
    """`value` again with its only tensor replaced; the kind of tuple or mapping stays."""
    if isinstance(value, Tensor):
        return new
    key = only_tensor(value, what)
    if isinstance(value, Mapping):
        changed = copy.copy(cast("dict[int | str, Any]", value))
        changed[key] = new
        return changed
    entries = [new if place == key else entry for place, entry in entries_of(value).items()]
    make = getattr(type(value), "_make", type(value))  # a namedtuple takes its fields one by one
    return make(entries)


def describe(value: Any) -> str:
    """A tuple, list or mapping in a few words: its keys and the shapes of its tensors."""
    entries = entries_of(value)
    if not entries:
        return f"a {type(value).__name__}"
    inside = ", ".join(
        f"{key!r}: {tuple(entry.shape) if isinstance(entry, Tensor) else type(entry).__name__}"
        for key, entry in list(entries.items())[:8]
    )
    return f"a {type(value).__name__} of {{{inside}}}"
