"""CSV columns, natural order, and codes for text."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid._checks import DataError

_DIGITS = re.compile(r"(\d+)")


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sort key that puts `img2` before `img10`; upper and lower case sort together."""
    parts: list[str | int] = list(_DIGITS.split(text.casefold()))
    parts[1::2] = [int(part) for part in parts[1::2]]  # every second part is a run of digits
    return parts, text


def encode(values: Iterable[str]) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Codes 0, 1, ... for text, numbered in natural order, and what each code stands for."""
    values = list(values)
    names = tuple(sorted(set(values), key=natural_key))
    code = {name: i for i, name in enumerate(names)}
    return torch.tensor([code[value] for value in values], dtype=torch.int64), names


def numbers(values: Sequence[str]) -> list[float] | None:
    """The values as numbers if all of them are (empty ones become NaN), else None. All empty: None."""
    try:
        found = [float(value) if value else float("nan") for value in values]
    except ValueError:
        return None
    return found if any(values) else None


def read_csv(path: str | Path, what: str) -> dict[str, list[str]]:
    """Columns of a CSV file as lists of stripped text. A repeated header gets `.1`, `.2`, ... as in pandas."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"no {what} at {path}; expected a CSV file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{what} {path} is not a CSV file in UTF-8: {error}") from error
    if not rows or not any(rows[0]):
        raise DataError(f"{what} {path} is empty; expected a header line and rows")
    header = _unique([name.strip() for name in rows[0]])
    body = [(line, row) for line, row in enumerate(rows[1:], start=2) if row]
    for line, row in body:
        if len(row) != len(header):
            raise DataError(f"{what} {path}: row {line} has {len(row)} fields, the header has {len(header)}")
    if not body:
        raise DataError(f"{what} {path} has a header but no rows")
    return {name: [row[k].strip() for _, row in body] for k, name in enumerate(header)}


def _unique(header: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    found: list[str] = []
    for name in header:
        count = seen.get(name, 0)
        found.append(f"{name}.{count}" if count else name)
        seen[name] = count + 1
    return found
