"""A result (a frozen dataclass, a mapping, nested) taken apart into JSON and arrays, and put together again.

JSON knows no NaN, no infinity and no array, so each is written as an object with one key that begins with `$`:
`{"$float": "nan"}` and `{"$array": "by_layer/conv1"}`, the latter a name in the safetensors file beside it.
"""

import dataclasses as dc
import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from pellucid._checks import ConfigError, DataError

Arrays = dict[str, np.ndarray]
# What safetensors stores and numpy reads back: booleans, integers, reals.
KINDS = "biuf"


def take_apart(result: Any, arrays: Arrays, at: str | None = None) -> Any:
    """The JSON form of `result`; every array that is not a single number goes to `arrays` under its path.

    Args:
        at: path of `result` inside the whole, its steps joined by "/" ("~1" stands for a "/" in a key, "~0" for "~").

    Raises:
        ConfigError: a value or key that has no place in a run folder; names where it is.
    """
    if dc.is_dataclass(result) and not isinstance(result, type):
        result = {field.name: getattr(result, field.name) for field in dc.fields(result)}
    if isinstance(result, Mapping):
        items = cast(Mapping[Any, Any], result).items()
        return {_key(key, at): take_apart(value, arrays, _below(at, key)) for key, value in items}
    if isinstance(result, list | tuple):
        values = cast(list[Any] | tuple[Any, ...], result)
        return [take_apart(value, arrays, _below(at, str(i))) for i, value in enumerate(values)]
    if result is None or isinstance(result, bool | int | str):
        return result
    if isinstance(result, float):
        return result if math.isfinite(result) else {"$float": str(result)}
    if isinstance(result, os.PathLike):
        return os.fspath(cast(os.PathLike[str], result))
    return _array(as_numpy(result, at or "result"), arrays, at)


def put_together(tree: Any, arrays: Mapping[str, np.ndarray] | None) -> Any:
    """The inverse of `take_apart`, mappings for dataclasses and lists for tuples.

    With `arrays` None, arrays are left out of mappings and are None in lists: what remains are the facts.
    """
    if isinstance(tree, dict):
        mapping = cast(dict[str, Any], tree)
        if "$float" in mapping:
            return float(mapping["$float"])
        if "$array" in mapping:
            return None if arrays is None else arrays[mapping["$array"]]
        kept = {k: v for k, v in mapping.items() if arrays is not None or not _is_array(v)}
        return {key: put_together(value, arrays) for key, value in kept.items()}
    if isinstance(tree, list):
        return [put_together(value, arrays) for value in cast(list[Any], tree)]
    return tree


def as_numpy(value: Any, what: str) -> np.ndarray:
    """A numpy array of a tensor (on any device), an array or a number of numpy's."""
    if hasattr(value, "detach"):  # a tensor, without importing torch
        try:
            value = value.detach().cpu().numpy()
        except TypeError as error:
            raise ConfigError(f"{what}: {error}; convert it first, with .float() for example") from None
    if not isinstance(value, np.ndarray | np.generic):
        raise ConfigError(
            f"{what}: a {type(value).__name__} has no place in a run folder; expected numbers, text, "
            "None, tensors, arrays, and lists, mappings and dataclasses of these"
        )
    return np.asarray(value)


def to_json(tree: Any) -> bytes:
    """Indented JSON with every character beyond ASCII escaped, so that any file name survives."""
    return (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode("ascii")


def from_json(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object, or `DataError` naming `what` and where the text breaks off."""
    try:
        tree = json.loads(data)
    except ValueError as error:
        raise DataError(f"{what} is damaged: {error}; delete it and compute it again") from None
    if not isinstance(tree, dict):
        raise DataError(f"{what} is damaged: expected a JSON object, got {type(tree).__name__}")
    return cast(dict[str, Any], tree)


def digest(value: Any) -> str:
    """SHA-256 of any value a run can keep; the same for the same content, whatever the order of keys.

    Use it for the entries of `inputs`: `digest(preprocessing.describe())`, `digest(["conv1", "conv2"])`.
    """
    arrays: Arrays = {}
    tree = take_apart(value, arrays)
    total = hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _array(array: np.ndarray, arrays: Arrays, at: str | None) -> Any:
    if array.dtype.kind == "U":
        return array.tolist()
    if array.dtype.kind not in KINDS:
        raise ConfigError(
            f"{at or 'result'}: arrays of {array.dtype} have no place in a run folder; expected numbers"
        )
    if array.ndim == 0:
        return take_apart(array.item(), arrays, at)
    # safetensors writes the buffer as it lies: a transposed or byte-swapped array would come back scrambled.
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    name = at or ""
    arrays[name] = np.ascontiguousarray(native)
    return {"$array": name}


def _key(key: Any, at: str | None) -> str:
    if not isinstance(key, str) or key.startswith("$"):
        raise ConfigError(f"{at or 'result'}: keys are text that does not begin with '$', got {key!r}")
    return key


def _below(at: str | None, key: Any) -> str:
    step = str(key).replace("~", "~0").replace("/", "~1")
    return step if at is None else f"{at}/{step}"


def _is_array(tree: Any) -> bool:
    return isinstance(tree, dict) and "$array" in tree
