"""Exceptions of the library and small checks on what a user passes.

Every error here is written for the person who reads it: what was expected, what came, what to try. The command
line prints the message and exits with 2; anything that is not a `PellucidError` keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence


class PellucidError(Exception):
    """Base of every error that the library raises on purpose."""


class LayerNotFound(PellucidError, LookupError):
    """No layer, or no call of a layer, answers to a name or glob."""


class DataError(PellucidError, ValueError):
    """A data set, an image or a batch is not what the caller said it is."""


class WeightsError(PellucidError, ValueError):
    """A checkpoint cannot be read safely, or does not fit the model."""


class ConfigError(PellucidError, ValueError):
    """An argument, option, recipe key or environment does not make sense."""


class NumericError(PellucidError, ArithmeticError):
    """NaN, infinity or another number that no statistic survives."""


class StaleResultError(PellucidError):
    """A stored result was computed under other weights, layers, preprocessing, data or code."""


class NotInvertible(PellucidError):
    """A layer has no inverse rule; the message names it."""


def nearest(name: str, names: Iterable[str], *, n: int = 3) -> list[str]:
    """The `n` entries of `names` most like `name`, best first; the first ones when nothing is alike."""
    names = list(names)
    found = difflib.get_close_matches(name, names, n=n, cutoff=0.4)
    return found or names[:n]


def check_range(value: float | int, low: float | int, high: float | int, what: str) -> None:
    """Raise `ConfigError` unless low <= value <= high (NaN fails)."""
    if not low <= value <= high:
        raise ConfigError(f"{what} must lie in [{low}, {high}], got {value}")


def check_one_of(value: str, allowed: Sequence[str], what: str) -> None:
    """Raise `ConfigError` with the nearest allowed word unless `value` is one of them."""
    if value not in allowed:
        hint = nearest(value, allowed, n=1)[0]
        raise ConfigError(f"{what} must be one of {list(allowed)}, got {value!r}; nearest: {hint!r}")
