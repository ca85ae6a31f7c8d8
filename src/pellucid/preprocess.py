"""What happens to images before the network: resizing, which the data does, and normalising, which the model does."""

import dataclasses as dc
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pellucid._checks import ConfigError, DataError, check_one_of

NAMED = {  # mean / standard deviation of the training pixels, as used by the usual pretrained weights
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "half": ((0.5,), (0.5,)),  # [0, 1] to [-1, 1], any number of channels
}

Size = int | tuple[int, int]


@dc.dataclass(frozen=True)
class Preprocessing:
    """How images are made ready: `size` (height, width) or None for as they are, `fit`, then (x - mean) / std."""

    size: tuple[int, int] | None = None
    fit: Literal["crop", "stretch"] = "crop"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_one_of(self.fit, ("crop", "stretch"), "fit")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean and std are given together or not at all")
        if self.mean is not None and self.std is not None:
            _check_mean_std(self.mean, self.std)

    def describe(self) -> dict[str, Any]:
        """The four settings as JSON-ready values, for run folders and pages."""
        return {
            "size": None if self.size is None else list(self.size),
            "fit": self.fit,
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
        }


def normalize(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> RemovableHandle:
    """Let `model` take images in [0, 1]: its input becomes (x - mean) / std, channel by channel.

    A forward pre-hook does it, so layer names and state-dict keys stay as they are; undo with `handle.remove()`.
    The arithmetic is in the input's own precision, on its device, outside autocast. One value serves any number of
    channels.

    Args:
        mean: of each input channel (axis 1), in [0, 1] pixel units.
        std: likewise; above 0.

    Raises:
        ConfigError: `mean` and `std` of unequal length, or a std that is not above 0.
        DataError: at the forward pass, an input with another number of channels, or no floating-point tensor.
    """
    mean, std = tuple(float(value) for value in mean), tuple(float(value) for value in std)
    _check_mean_std(mean, std)

    def pre_hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        if args:
            return (_normalized(args[0], mean, std, module), *args[1:]), kwargs
        if len(kwargs) == 1:
            key, x = next(iter(kwargs.items()))
            return args, {key: _normalized(x, mean, std, module)}
        raise DataError(f"normalize: {type(module).__name__} got no positional input; pass the images first")

    return model.register_forward_pre_hook(pre_hook, with_kwargs=True)


def _normalized(x: Any, mean: tuple[float, ...], std: tuple[float, ...], module: nn.Module) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        came = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise DataError(
            f"normalize: {type(module).__name__} expects floating images (batch, channels, ...), got {came}"
        )
    if len(mean) not in (1, x.shape[1]):
        raise DataError(
            f"normalize has {len(mean)} channels but the input has {x.shape[1]} (shape {tuple(x.shape)}); "
            "give one mean and std a channel, or open the data with channels='rgb' or 'grey'"
        )
    shape = (-1, *(1 for _ in range(x.ndim - 2)))
    return (x - x.new_tensor(mean).view(shape)) / x.new_tensor(std).view(shape)


def parse_normalize(text: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Read `MEAN/STD` (`0.485,0.456,0.406/0.229,0.224,0.225`), `imagenet`, `cifar10`, `half`, or `none` (None).

    `half` is 0.5/0.5, which takes [0, 1] to [-1, 1].
    """
    text = text.strip().lower()
    if text == "none":
        return None
    if text in NAMED:
        return NAMED[text]
    mean, slash, std = text.partition("/")
    try:
        if not slash:
            raise ValueError
        found = tuple(float(part) for part in mean.split(",")), tuple(float(part) for part in std.split(","))
    except ValueError:
        raise ConfigError(
            f"normalize must be MEAN/STD such as 0.5/0.5 or 0.485,0.456,0.406/0.229,0.224,0.225, "
            f"or one of {[*NAMED, 'none']}; got {text!r}"
        ) from None
    _check_mean_std(*found)
    return found


def parse_size(text: str | Size | None) -> tuple[int, int] | None:
    """Read `224` or `224x160` (height x width) as (height, width); None and pairs of numbers pass through."""
    if text is None:
        return None
    if isinstance(text, str):
        found = re.fullmatch(r"\s*(\d+)(?:\s*[x×]\s*(\d+))?\s*", text.lower())
        if not found:
            raise ConfigError(f"size must be a number or HEIGHTxWIDTH such as 224 or 224x160, got {text!r}")
        height, width = int(found[1]), int(found[2] or found[1])
    else:
        height, width = (text, text) if isinstance(text, int) else text
    if not (1 <= height <= 8192 and 1 <= width <= 8192):
        raise ConfigError(f"size must lie in 1 to 8192 pixels a side, got {height}x{width}")
    return height, width


def _check_mean_std(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    if not mean or len(mean) != len(std):
        raise ConfigError(f"normalize needs as many means as stds, got {len(mean)} and {len(std)}")
    if not all(torch.isfinite(torch.tensor([*mean, *std]))) or min(std) <= 0:
        raise ConfigError(f"normalize needs finite means and stds above 0, got {list(mean)} / {list(std)}")
