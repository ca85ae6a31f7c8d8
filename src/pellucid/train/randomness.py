"""Models draw from torch's global generators (first weights, dropout): seed them, then put them back."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from pellucid.rng import derive, kept_generators


@contextmanager
def seeded(seed: int, *key: int | str | float, device: torch.device | str = "cpu") -> Generator[None]:
    """Inside, the global generators of CPU and `device` start from (seed, key); outside nothing changes.

    `with seeded(3): model = resnet20()` gives the same initial weights on every machine.
    """
    with kept_generators(torch.device(device)):
        seed_generators(derive(seed, *key), torch.device(device))
        yield


def seed_generators(value: int, device: torch.device) -> None:
    """Seed the generators of CPU and `device`, no other: `torch.manual_seed` would reach every device."""
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
