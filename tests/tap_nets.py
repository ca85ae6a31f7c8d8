"""Small networks with every habit that taps must cope with, and helpers to build and check them."""

import collections

import torch
from torch import Tensor, nn

from pellucid.rng import rng
from pellucid.taps.find import get_layer


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=rng(seed, "draw")).to(dtype)


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights from a local generator, so that no test touches the global one."""
    generator = rng(seed, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def built(make, *args) -> nn.Module:
    """`make(*args)` with seeded weights; torch's own initialisation draws from a borrowed generator."""
    with torch.random.fork_rng():
        return seeded(make(*args))


class Net(nn.Module):
    """Two convolutions, an in-place ReLU used twice, and a head."""

    def __init__(self, *, inplace: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        return self.head(x.mean((2, 3)))


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_always_called)
        for m in model.modules()
    ) + ("forward" in vars(model))


def find_module(model: nn.Module, name: str) -> nn.Module:
    return get_layer(model, name)[1]


class Wrapper(nn.Module):
    """What FSDP and activation checkpointing look like from outside."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)
        self.inner_name = name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.inner_name)(x)


class Pairs(nn.Module):
    """Layers that give tuples, dicts, named tuples, and take several tensors by position and by name."""

    Two = collections.namedtuple("Two", "a b")

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.one, self.named, self.mix = nn.LSTM(2, 3, batch_first=True), One(), Named(), Mix()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        states, _ = self.lstm(x)
        alone, _ = self.one(states)
        both = self.named(alone)
        return {"logits": self.mix(both.a, scale=both.b), "aux": alone}


class One(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + 1, None


class Named(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return Pairs.Two(x * 2, x * 3)


class Mix(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return x * scale


class Bomb(nn.Module):
    """Must not run."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("computed behind the last tap")
