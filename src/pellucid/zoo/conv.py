"""A plain convolutional network: no branches, so that every layer sees only the one before it."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from pellucid._checks import ConfigError


def conv_net(
    *,
    in_channels: int = 1,
    classes: int = 10,
    widths: Sequence[int] = (16, 32, 64),
    pool_after: Sequence[int] = (2,),
    batch_norm: bool = True,
    dropout: float = 0.0,
) -> nn.Sequential:
    """3x3 convolutions with batch norm and ReLU, global average, one linear layer; for any image size.

    Block i is `conv{i}`, `bn{i}`, `relu{i}` and, where asked, a 2x2 max-pool `pool{i}`; then `average`,
    `flatten` and `linear`, which gives the logits. The defaults are the network of the digits study: 16-32-64
    channels and one pool after the second block.

    Args:
        widths: Channels of each block.
        pool_after: Blocks, counted from 1, that end with a pool.
        dropout: Chance of zeroing a feature before the linear layer while training; 0 leaves the module out.

    Raises:
        ConfigError: No block, or a pool after a block that is not there.
    """
    if not widths or min(*widths, in_channels, classes) < 1:
        raise ConfigError(
            f"expected at least one block and sizes of at least 1, got widths {tuple(widths)}, "
            f"in_channels {in_channels}, classes {classes}"
        )
    if stray := sorted(set(pool_after) - set(range(1, len(widths) + 1))):
        raise ConfigError(f"pool_after names blocks 1 to {len(widths)}, got {stray}")
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (before, after) in enumerate(pairwise((in_channels, *widths)), start=1):
        parts[f"conv{i}"] = nn.Conv2d(before, after, 3, padding=1, bias=not batch_norm)
        if batch_norm:
            parts[f"bn{i}"] = nn.BatchNorm2d(after)
        parts[f"relu{i}"] = nn.ReLU()
        if i in pool_after:
            parts[f"pool{i}"] = nn.MaxPool2d(2)
    parts["average"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    if dropout:
        parts["dropout"] = nn.Dropout(dropout)
    parts["linear"] = nn.Linear(widths[-1], classes)
    return nn.Sequential(parts)
