"""A state dict into a model: key by key, whole or not at all."""

import collections
import dataclasses as dc
import itertools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pellucid._checks import WeightsError
from pellucid.taps.find import canonical, unwrap
from pellucid.weights.reading import StateDict

# Counters and tables that follow from the architecture or were left by tools; no answer of the network needs
# them.
_SPARE = (
    "num_batches_tracked",
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
    "position_ids",
    "n_averaged",
    "total_ops",
    "total_params",
)
_HALF = (torch.float16, torch.bfloat16)
_SHOWN = 20  # keys in an error message


@dc.dataclass(frozen=True)
class WeightsReport:
    """What `apply_weights` did.

    Args:
        matched: the model's keys that were loaded.
        missing: the model's keys that kept their value: batch counters, or weights tied to a loaded one.
        unexpected: keys of the checkpoint without use: counters and tables that nothing computes with.
        prefix: what was taken off the checkpoint's keys; added: what was put before them.
        upcast: whether half-precision weights were widened to the model's float32.
        notes: the same in sentences a person can read on a page; empty when everything fitted as it was.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    prefix: str
    added: str
    upcast: bool
    notes: tuple[str, ...]


def apply_weights(model: nn.Module, state: Mapping[str, Tensor]) -> WeightsReport:
    """Load a state dict into a model whole, or not at all; values are cast to the model's own types.

    Keys are compared without wrapper parts (`_orig_mod.`, `_fsdp_wrapped_module.`). A leading part
    (`module.`, `model.`, `backbone.`) that most keys share is taken off, or the model's own put on, where
    more keys match so.

    Raises:
        WeightsError: a key missing, unexpected, or of another shape or kind of number; the model is then
            untouched.
    """
    root = unwrap(model)
    own = _own_tensors(root)
    names, prefix, added = _rename(list(state), set(own))
    given = {name: state[key] for key, name in names.items()}
    missing, tolerated = _missing(own, set(given))
    unexpected = [name for name in given if name not in own and not _is_spare(name)]
    other = [
        f"{name}: {fault}" for name in own if name in given and (fault := _misfit(own[name], given[name]))
    ]
    if missing or unexpected or other:
        faults = {
            "missing": [f"{name} {list(own[name].shape)}" for name in missing],
            "unexpected": [f"{name} {list(given[name].shape)}" for name in unexpected],
            "other shape": other,
        }
        raise WeightsError(_mismatch(type(root).__name__, faults, state))
    keys = {canonical(key): key for key in root.state_dict()}
    root.load_state_dict({keys[name]: value for name, value in given.items() if name in own}, strict=False)
    matched = [name for name in own if name in given]
    upcast = any(given[name].dtype in _HALF and own[name].dtype not in _HALF for name in matched)
    narrowed = any(given[name].dtype.itemsize > own[name].dtype.itemsize for name in matched)
    spare = [name for name in given if name not in own]
    return WeightsReport(
        matched=tuple(matched),
        missing=tuple(tolerated),
        unexpected=tuple(spare),
        prefix=prefix,
        added=added,
        upcast=upcast,
        notes=tuple(
            _notes(state, prefix, added, upcast=upcast, narrowed=narrowed, kept=tolerated, spare=spare)
        ),
    )


def _own_tensors(root: nn.Module) -> dict[str, Tensor]:
    own = {canonical(key): value for key, value in root.state_dict().items() if isinstance(value, Tensor)}
    lazy = [name for name, value in own.items() if torch.nn.parameter.is_lazy(value)]
    if lazy:
        raise WeightsError(f"{lazy[0]!r} has no shape yet: run the model once before loading weights into it")
    return own


def _rename(keys: Sequence[str], own: set[str]) -> tuple[dict[str, str], str, str]:
    """{key: name in the model}, what was taken off the keys, and what was put before them.

    Of all the ways to take leading parts off and put the model's own on, the one that matches most keys; of
    equal ones the least change.
    """
    plain = {key: canonical(key) for key in keys}
    off = _leading([name for name in plain.values() if not _is_spare(name)], share=0.5)
    ways = [(prefix, added) for prefix in off for added in _leading(list(own), share=1.0)]
    score = {way: sum(way[1] + name.removeprefix(way[0]) in own for name in plain.values()) for way in ways}
    prefix, added = max(ways, key=lambda way: (score[way], -len(way[0]) - len(way[1])))
    names = {key: added + name.removeprefix(prefix) for key, name in plain.items()}
    if len(set(names.values())) < len(names):
        raise WeightsError("the checkpoint holds the same key twice, with and without a wrapper's prefix")
    return names, prefix, added


def _leading(names: Sequence[str], *, share: float) -> list[str]:
    """The dotted beginnings ("", "a.", "a.b.") that at least this share of the names has."""
    counts = collections.Counter(
        name[: dot.end()] for name in names for dot in itertools.islice(re.finditer(r"\.", name), 4)
    )
    return ["", *(start for start, count in counts.items() if count >= share * len(names))]


def _is_spare(name: str) -> bool:
    return name.rpartition(".")[2] in _SPARE


def _missing(own: Mapping[str, Tensor], given: set[str]) -> tuple[list[str], list[str]]:
    """The model's keys that are not given: those it cannot do without, and those it can."""
    loaded = {
        (value.data_ptr(), value.shape) for name, value in own.items() if name in given and value.numel()
    }
    absent = [name for name in own if name not in given]
    tied = {name for name in absent if (own[name].data_ptr(), own[name].shape) in loaded}
    spare = [name for name in absent if name in tied or name.rpartition(".")[2] == "num_batches_tracked"]
    return [name for name in absent if name not in spare], spare


def _misfit(own: Tensor, given: Tensor) -> str | None:
    if own.shape != given.shape:
        return f"the model has shape {list(own.shape)}, the checkpoint {list(given.shape)}"
    kinds = [(value.is_floating_point(), value.is_complex()) for value in (own, given)]
    return None if kinds[0] == kinds[1] else f"the model has {own.dtype}, the checkpoint {given.dtype}"


def _mismatch(model: str, faults: Mapping[str, Sequence[str]], state: Mapping[str, Tensor]) -> str:
    counts = ", ".join(f"{len(keys)} {kind}" for kind, keys in faults.items())
    lines = [f"the checkpoint does not fit {model}: keys {counts}; nothing was loaded"]
    shown = _SHOWN // sum(bool(keys) for keys in faults.values())
    for kind, keys in faults.items():
        lines += [f"  {kind}: {key}" for key in keys[:shown]]
        lines += [f"  {kind}: and {len(keys) - shown} more"] if len(keys) > shown else []
    if isinstance(state, StateDict) and state.others:
        lines.append(f"the file holds weights under {list(state.others)} too: load_weights(path, key=...)")
    lines.append(
        "build the model the checkpoint was made from: same architecture, sizes and number of classes"
    )
    return "\n".join(lines)


def _notes(
    state: Mapping[str, Tensor],
    prefix: str,
    added: str,
    *,
    upcast: bool,
    narrowed: bool,
    kept: Sequence[str],
    spare: Sequence[str],
) -> list[str]:
    place, others = (state.place, state.others) if isinstance(state, StateDict) else ("", ())
    said = [
        (place, f"Weights taken from {place!r} in the file."),
        (others, f"The file holds weights under {', '.join(map(repr, others))} as well; they were not used."),
        (prefix, f"{prefix!r} was taken off the keys."),
        (added, f"{added!r} was put before the keys."),
        (upcast, "Half-precision weights were widened to the model's precision."),
        (narrowed, "Weights were rounded to the model's lower precision."),
        (kept, f"{len(kept)} batch counters or tied weights are not in the file and kept their value."),
        (
            spare,
            f"The model has no use for {len(spare)} of the file's entries, such as {next(iter(spare), '')!r}.",
        ),
    ]
    return [sentence for condition, sentence in said if condition]
