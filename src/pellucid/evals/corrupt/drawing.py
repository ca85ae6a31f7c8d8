"""One stream of random numbers for each image, so that a corruption belongs to the image and not to its batch."""

import dataclasses as dc
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.rng import rng


@dc.dataclass(frozen=True)
class Draws:
    """CPU generators, one an image; every draw takes the next numbers of each."""

    generators: Sequence[torch.Generator]

    def normal(self, shape: Sequence[int]) -> Float[Tensor, "batch ..."]:
        """Standard normal numbers of this shape for each image."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators])

    def uniform(
        self, shape: Sequence[int], low: float = 0.0, high: float = 1.0
    ) -> Float[Tensor, "batch ..."]:
        """Uniform numbers in [low, high) of this shape for each image."""
        found = torch.stack([torch.rand(tuple(shape), generator=g) for g in self.generators])
        return found * (high - low) + low

    def integers(self, shape: Sequence[int], low: int, high: int) -> Int[Tensor, "batch ..."]:
        """Whole numbers low <= i < high of this shape for each image."""
        return torch.stack([torch.randint(low, high, tuple(shape), generator=g) for g in self.generators])


def draws_for(name: str, severity: int, index: Sequence[int], *, seed: int) -> Draws:
    """The streams of some images for one corruption, keyed by (seed, corruption, severity, index)."""
    return Draws([rng(seed, "corrupt", name, severity, i) for i in index])
