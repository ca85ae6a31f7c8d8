"""A fixed split for data that comes in one piece."""

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.rng import derive


def held_out(targets: Int[Tensor, " n"], count: int) -> Int[Tensor, " count"]:
    """Positions of a stratified test set of `count` examples, in rising order; no seed enters.

    Each class gives `count` * n_c / n examples, rounded by largest remainders (ties to the lower class). Within a
    class those go whose positions come first when sorted by SHA-256, so neighbours in the file are not drawn together.
    """
    classes, sizes = targets.unique(return_counts=True)
    share = sizes.double() * count / len(targets)
    quota = share.floor().long()
    order = (share - quota).sort(descending=True, stable=True).indices
    quota[order[: count - int(quota.sum())]] += 1
    chosen: list[int] = []
    for target, n in zip(classes.tolist(), quota.tolist(), strict=True):
        places: list[int] = (targets == target).nonzero().flatten().tolist()
        chosen += sorted(places, key=lambda i: derive(0, "held_out", i))[:n]
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def others(n: int, chosen: Int[Tensor, " count"]) -> Int[Tensor, " rest"]:
    """The positions 0 to n - 1 that are not `chosen`, in rising order."""
    rest = torch.ones(n, dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero().flatten()
