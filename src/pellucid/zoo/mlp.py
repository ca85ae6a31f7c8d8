"""A multilayer perceptron over flattened images."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from pellucid._checks import ConfigError


def mlp(
    *,
    image_size: int | Sequence[int] = 28,
    in_channels: int = 1,
    classes: int = 10,
    hidden: Sequence[int] = (256, 256),
    dropout: float = 0.0,
) -> nn.Sequential:
    """Linear layers with ReLU between: `flatten`, then `linear1`, `relu1`, ..., and `linear` for the logits.

    Args:
        image_size: Side of a square image, or (height, width).
        hidden: Units of each hidden layer; hidden layer i is read at `relu{i}`.
        dropout: Chance of zeroing a unit after each ReLU while training; 0 leaves those modules out.

    Raises:
        ConfigError: A size is below 1.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    sizes = [in_channels * math.prod(sides), *hidden]
    if min(*sizes, classes) < 1:
        raise ConfigError(f"expected sizes of at least 1, got inputs and hidden {sizes}, classes {classes}")
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (before, after) in enumerate(pairwise(sizes), start=1):
        parts[f"linear{i}"] = nn.Linear(before, after)
        parts[f"relu{i}"] = nn.ReLU()
        if dropout:
            parts[f"dropout{i}"] = nn.Dropout(dropout)
    parts["linear"] = nn.Linear(sizes[-1], classes)
    return nn.Sequential(parts)
