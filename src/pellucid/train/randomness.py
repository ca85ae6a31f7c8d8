"""Models draw from torch's global generators (first weights, dropout): seed them, then put them back."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch

from pellucid.rng import derive


@contextmanager
def seeded(seed: int, *key: int | str | float, device: torch.device | str = "cpu") -> Generator[None]:
    """Inside, the global generators of CPU and `device` start from (seed, key); outside nothing changes.

    `with seeded(3): model = resnet20()` gives the same initial weights on every machine.
    """
    with kept_generators(torch.device(device)):
        seed_generators(derive(seed, *key), torch.device(device))
        yield


@contextmanager
def kept_generators(device: torch.device) -> Generator[None]:
    """Put the global generators of the CPU and of `device` back as they were, also after an error."""
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        if device.type != "cpu":
            module = torch.get_device_module(device)
            stack.callback(module.set_rng_state, module.get_rng_state())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        yield


def seed_generators(value: int, device: torch.device) -> None:
    """Seed the generators of CPU and `device`, no other: `torch.manual_seed` would reach every device."""
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
