"""Concept labels of a source, from what is known of its examples."""

import torch
from jaxtyping import Bool
from torch import Tensor

from pellucid._checks import DataError
from pellucid.data.source import Source


def concepts(source: Source) -> tuple[tuple[str, ...], Bool[Tensor, "n concepts"]]:
    """Every value of every coded factor as a concept that each example has or has not.

    Names are `factor=value`, e.g. `colour=red`. Factors with names and boolean factors count; plain numbers do not.

    Raises:
        DataError: the source has no such factor.
    """
    names: list[str] = []
    columns: list[Tensor] = []
    for key, values in source.factors.items():
        if key in source.factor_names:
            for code, value in enumerate(source.factor_names[key]):
                names.append(f"{key}={value}")
                columns.append(values == code)
        elif values.dtype == torch.bool and values.ndim == 1:
            names.append(key)
            columns.append(values)
    if not columns:
        raise DataError(
            f"{source.name!r} has no concept labels: its factors are {list(source.factors)}; "
            "use shapes, or a labels file with text columns"
        )
    return tuple(names), torch.stack(columns, dim=1)
