"""Rows of a CSV file as inputs of shape (features,)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pellucid._checks import DataError, check_one_of, nearest
from pellucid.data.arrays import array_source
from pellucid.data.columns import encode, numbers, read_csv
from pellucid.data.source import Source
from pellucid.data.split import held_out, others

MOST_VALUES = 50  # a text column with more different values is no category


def table_source(
    path: str | Path,
    *,
    target: str | None = None,
    group: str | None = None,
    columns: Sequence[str] = (),
    drop: Sequence[str] = (),
    split: Literal["train", "test", "all"] = "all",
) -> Source:
    """A CSV file as float32 inputs (batch, features), named in `Source.features`.

    Numeric columns enter as they are, unscaled (scaling belongs to the model); a text column of k different values
    enters as k columns of 0 and 1 called `column=value`, an empty field being a value of its own. A header that
    occurs twice gets `.1`. Target and group are coded in natural order and do not enter the inputs unless `columns`
    names them.

    Args:
        target: column of the classes (text or whole numbers); None: unlabelled.
        group: column of the groups, for measures of fairness; also the factor of that name.
        columns: which columns enter; empty: all but target, group and `drop`.
        split: `test` is a third, stratified by target and by no seed (`pellucid.data.split.held_out`); `train` the rest.

    Raises:
        DataError: no such file or column, empty numeric fields, text of more than 50 values, a target that is no class.
    """
    check_one_of(split, ("train", "test", "all"), "split")
    path = Path(path).expanduser()
    table = read_csv(path, "table")
    asked = [name for name in (target, group, *columns, *drop) if name is not None]
    for name in asked:
        if name not in table:
            raise DataError(f"table {path} has no column {name!r}; nearest: {nearest(name, table)}")
    chosen = list(columns) or [name for name in table if name not in (target, group, *drop)]
    if not chosen:
        raise DataError(f"table {path}: no columns are left for the inputs")
    inputs, features = _inputs(table, chosen, path)
    targets, classes = (None, ()) if target is None else _classes(table[target], target, path)
    groups, group_names = (None, ()) if group is None else encode(table[group])
    n = len(inputs)
    whole = Source(
        path.name,
        array_source(inputs, targets, classes=classes).examples,
        classes,
        {} if group is None or groups is None else {group: groups},
        names=[f"row {i + 1}" for i in range(n)],
        groups=groups,
        factor_names={} if group is None else {group: group_names},
        features=tuple(features),
    )
    if split == "all":
        return whole
    test = held_out(torch.zeros(n, dtype=torch.int64) if targets is None else targets, round(n / 3))
    return whole.take(test if split == "test" else others(n, test))


def _inputs(table: dict[str, list[str]], chosen: Sequence[str], path: Path) -> tuple[Tensor, list[str]]:
    values: list[np.ndarray] = []
    features: list[str] = []
    for name in chosen:
        found = numbers(table[name])
        if found is not None:
            empty = sum(not np.isfinite(value) for value in found)
            if empty:
                raise DataError(
                    f"table {path}: {empty} of {len(found)} fields of the numeric column {name!r} are empty or not finite; "
                    f"fill them in, or leave the column out (drop={name})"
                )
            values.append(np.asarray(found, dtype=np.float32))
            features.append(name)
            continue
        codes, names = encode(table[name])
        if len(names) > MOST_VALUES:
            raise DataError(
                f"table {path}: the text column {name!r} has {len(names)} different values, such as {names[-1]!r}; "
                f"leave it out (drop={name}) or name the columns to use (columns=...)"
            )
        values += [(codes == k).numpy().astype(np.float32) for k in range(len(names))]
        features += [f"{name}={value}" for value in names]
    return torch.from_numpy(np.stack(values, axis=1)), features


def _classes(values: list[str], target: str, path: Path) -> tuple[Tensor, tuple[str, ...]]:
    if not all(values):
        raise DataError(f"table {path}: target {target!r} is empty in row {values.index('') + 1} of the data")
    found = numbers(values)
    if found is not None and any(value != int(value) for value in found if np.isfinite(value)):
        raise DataError(
            f"table {path}: target {target!r} holds fractions; expected classes (text or whole numbers)"
        )
    targets, classes = encode(values)
    if len(classes) > max(MOST_VALUES, len(values) // 2):
        raise DataError(
            f"table {path}: target {target!r} has {len(classes)} different values in {len(values)} rows"
        )
    return targets, classes
