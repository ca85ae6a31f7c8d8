"""Counter-based randomness: a stream of numbers belongs to a key, not to the order in which things run."""

import hashlib
import json
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *key: int | str | float) -> int:
    """A 63-bit integer that depends on (seed, key) alone: the head of SHA-256 over their JSON."""
    text = json.dumps([seed, *key], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def rng(seed: int, *key: int | str | float) -> "torch.Generator":
    """A fresh CPU generator for (seed, key). Draw on it, then move the draw to the device.

    Two calls with the same arguments give the same stream on every machine; the global generator is not touched.
    """
    import torch  # here, so that parts which never load torch can use `derive`

    generator = torch.Generator(device="cpu")
    generator.manual_seed(derive(seed, *key))
    return generator


def stream(seed: int, *key: int | str | float) -> np.random.Generator:
    """The same for numpy: a fresh generator for (seed, key)."""
    return np.random.default_rng(derive(seed, *key))


@contextmanager
def kept_generators(device: "torch.device") -> Generator[None]:
    """Put torch's global generators of the CPU and of `device` back as they were, also after an error.

    For code that is not ours, which draws from them: initial weights, dropout, a model that adds noise.
    """
    import torch

    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        if device.type != "cpu":
            module = torch.get_device_module(device)
            stack.callback(module.set_rng_state, module.get_rng_state())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        yield
