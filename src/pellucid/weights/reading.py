"""A state dict out of a file, without running the code that may be in it."""

import argparse
import os
import pathlib
import re
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pellucid._checks import WeightsError, nearest

# Where training scripts put a state dict, in the order of preference: what was trained before its running
# average, because only the first is always there. `load_weights(key=...)` chooses otherwise.
_PLACES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "params_ema",
)


class StateDict(dict[str, Tensor]):
    """Tensors by name, as `load_weights` found them in a file.

    Attributes:
        place: the keys that lead to them in the file, joined by " > "; "" where they lie at the top.
        others: keys beside that path that hold weights as well, such as a running average.
        ignored: other entries that were left out (epoch, optimizer, arguments).
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        place: str = "",
        others: Sequence[str] = (),
        ignored: Sequence[str] = (),
    ) -> None:
        super().__init__(tensors)
        self.place, self.others, self.ignored = place, tuple(others), tuple(ignored)


def load_weights(path: str | os.PathLike[str], *, key: str | None = None) -> StateDict:
    """The state dict in a safetensors file or a torch checkpoint, flat and on the CPU, with its own types.

    No code in the file runs. Beside tensors and plain containers a checkpoint may hold argparse namespaces,
    numpy numbers and arrays, paths and default dicts, which are ignored; any other class is refused by name.
    A state dict inside the file is found under "state_dict", "model_state_dict", "model_state", "model",
    "net", "network", "module", "weights", "params", and only then under an average: "ema", "model_ema",
    "state_dict_ema", "ema_state_dict", "params_ema"; else under the one key that holds tensors.

    Args:
        key: take the state dict under this key of the file instead.

    Raises:
        WeightsError: no such file, damaged, no checkpoint, code or classes inside, no tensors, no such key.
    """
    path = Path(path)
    content = _read(path)
    trail, others, ignored = [], list[str](), list[str]()
    if key is not None:
        content = _enter(content, key, path)
        trail.append(key)
    while (step := _next_step(content, path)) is not None:
        chosen, beside = step
        others += [name for name in beside if name in _PLACES]
        ignored += [name for name in content if name not in (chosen, *beside)]
        content, trail = content[chosen], [*trail, chosen]
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    odd = [name for name, value in tensors.items() if value.is_quantized or value.layout != torch.strided]
    if odd:
        raise WeightsError(f"{path.name} holds quantised or sparse weights ({odd[0]!r}): save them dense")
    ignored += [str(name) for name in content if name not in tensors]
    return StateDict(tensors, place=" > ".join(trail), others=others, ignored=ignored)


def _read(path: Path) -> Any:
    """Whatever the file holds, in containers and tensors."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(
            f"weights {str(path)!r}: the file {what}; give a safetensors file or a torch checkpoint"
        )
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise WeightsError(f"weights {str(path)!r} cannot be read: {error.strerror}") from error
    size = path.stat().st_size
    # A safetensors file begins with the length of its JSON header, 8 bytes little-endian, and the header
    # itself.
    tensors_only = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8
    if tensors_only or path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_checkpoint(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path.name} is damaged or no safetensors file: {error}") from error


def _read_checkpoint(path: Path) -> Any:
    try:
        # Warnings about old formats and sparse tensors say nothing that the error or the result does not.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged pickle or archive makes of the reader
        text = str(error)
        refused = re.search(r"GLOBAL (\S+)", text)
        if refused:
            raise WeightsError(
                f"{path.name} holds {refused[1]}, which cannot be loaded without running code from the file; "
                "if you trust the file, save its weights alone: "
                "torch.save(torch.load(FILE, weights_only=False)[...].state_dict(), NEW)"
            ) from error
        if "TorchScript" in text:
            raise WeightsError(
                f"{path.name} is a TorchScript archive; save its weights: "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
            ) from error
        _refuse_other_files(path, error)
        detail = (text.partition("WeightsUnpickler error:")[2] or text).strip().splitlines()
        reason = detail[0].partition(". ")[0][:120] if detail else type(error).__name__
        raise WeightsError(
            f"{path.name} ({path.stat().st_size:,} bytes) is no torch checkpoint or safetensors file, or it "
            f"is damaged or cut short: {reason}"
        ) from error


def _refuse_other_files(path: Path, error: Exception) -> None:
    """Say so where a file does not even begin as one that `torch.save` writes."""
    with path.open("rb") as file:
        head = file.read(40)
    if not head:
        raise WeightsError(f"{path.name} is empty (0 bytes); give a safetensors file or a torch checkpoint")
    # A zip archive, as since torch 1.6, a pickle of protocol 2 or later, as before, or part of a safetensors file.
    if head.startswith((b"PK", b"\x80")) or head[8:9] == b"{":
        return
    raise WeightsError(
        f"{path.name} ({path.stat().st_size:,} bytes) is not a checkpoint: it begins with {head[:20]!r}; expected a "
        "safetensors file, or a state dict or checkpoint as torch.save writes it"
    ) from error


def _harmless() -> list[Any]:
    """Classes without effects that training scripts leave in checkpoints, for torch's unpickler."""
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    kinds = [
        getattr(np.dtypes, name) for name in np.dtypes.__all__ if not name.startswith(("Object", "Void"))
    ]
    numpy: list[Any] = [np.ndarray, np.dtype, *kinds]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since numpy 2
        numpy += [(scalar, f"{module}.scalar"), (reconstruct, f"{module}._reconstruct")]
    paths = [
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for pure, name in ((pathlib.PurePosixPath, "PosixPath"), (pathlib.PureWindowsPath, "WindowsPath"))
    ]
    plain: list[Any] = [argparse.Namespace, types.SimpleNamespace, dict, list, int, float]
    # The restricted unpickler fills plain dicts only, so a defaultdict becomes one.
    plain.append((_empty_dict, "collections.defaultdict"))
    return [*plain, *paths, pathlib.PurePosixPath, pathlib.PureWindowsPath, *numpy]


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _enter(content: Any, key: str, path: Path) -> Any:
    if not isinstance(content, Mapping) or key not in content:
        keys = (
            [str(name) for name in cast("Mapping[Any, Any]", content)] if isinstance(content, Mapping) else []
        )
        raise WeightsError(f"{path.name} has no key {key!r}; nearest: {nearest(key, keys)}")
    return cast("Mapping[str, Any]", content)[key]


def _next_step(content: Any, path: Path) -> tuple[str, list[str]] | None:
    """The key to look under next and those beside it with tensors; None where the tensors lie here."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path.name} holds a {type(content).__name__}, not weights by name")
    entries = cast("Mapping[Any, Any]", content)
    inside = [str(name) for name, value in entries.items() if isinstance(name, str) and _holds_tensors(value)]
    known = [name for name in _PLACES if name in inside]
    here = [value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)]
    if known:
        return known[0], [name for name in inside if name != known[0]]
    if any(value.ndim for value in here) or (here and not inside):
        return None
    if len(inside) == 1:
        return inside[0], []
    found = f"weights under several keys, {inside}; choose with key=..." if inside else "no tensors by name"
    raise WeightsError(f"{path.name} holds {found}")


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    if not isinstance(value, Mapping) or not depth:
        return False
    entries = cast("Mapping[Any, Any]", value).items()
    return any(
        isinstance(k, str) and (isinstance(v, Tensor) or _holds_tensors(v, depth - 1)) for k, v in entries
    )
