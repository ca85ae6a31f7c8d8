"""The network of `pellucid demo`, which `pellucid evaluate` builds again."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def demo_network(seed: int) -> "nn.Module":
    """The untrained network of the demo; its initial weights depend on `seed` alone."""
    from pellucid.train import seeded
    from pellucid.zoo import conv_net

    with seeded(seed):
        return conv_net(in_channels=1, classes=10)
