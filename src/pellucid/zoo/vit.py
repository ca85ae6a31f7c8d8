"""A small vision transformer in which everything has a name, the attention maps included.

It is written with plain modules because PyTorch's own encoder layer may take a fused path that calls no
hooks.

References:
    Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; the pre-norm block, with the mean over
        tokens in
    place of a class token, so that tokens are exactly the places of the image.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid._checks import ConfigError


class _Attention(nn.Module):
    """Softmax attention over tokens; `softmax` gives the maps (batch, heads, tokens, tokens)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * key.shape[-1] ** -0.5
        return self.proj((self.softmax(scores) @ value).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    """`fc1`, `act`, `fc2` at every token."""

    def __init__(self, dim: int, hidden: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = activation()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return self.fc2(self.act(self.fc1(x)))


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, dim: int, heads: int, hidden: int, activation: Callable[[], nn.Module], dropout: float
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = _Attention(dim, heads)
        self.drop1 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim, hidden, activation)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.drop1(self.attn(self.norm1(x)))
        return x + self.drop2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """`patches`, learned `positions`, `blocks`, `norm`, token mean, `head`. Build it with `vit`."""

    def __init__(self, patches: nn.Conv2d, tokens: int, blocks: list[nn.Module], classes: int):
        super().__init__()
        dim = patches.out_channels
        self.patches = patches
        self.positions = nn.Parameter(torch.zeros(1, tokens, dim))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


def vit(
    *,
    image_size: int = 32,
    patch: int = 4,
    in_channels: int = 3,
    classes: int = 10,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: int = 2,
    dropout: float = 0.0,
    activation: Callable[[], nn.Module] = nn.GELU,
) -> ViT:
    """A pre-norm transformer over square patches of a square image.

    Token t is the patch at row t // side, column t % side, with side = image_size / patch. The hidden units
    of block i are read at `blocks.{i}.mlp.act`, its attention maps at `blocks.{i}.attn.softmax`.

    Args:
        dim: Features of a token, a multiple of `heads`.
        mlp_ratio: Hidden units of a block in multiples of `dim`.
        activation: Builds the activation of each block, e.g. `nn.ReLU` where units must not respond below
            zero.

    Raises:
        ConfigError: The image is not whole patches, `dim` not whole heads, or a size below 1.
    """
    sizes = {"patch": patch, "in_channels": in_channels, "classes": classes, "dim": dim, "depth": depth}
    for name, size in {**sizes, "heads": heads, "mlp_ratio": mlp_ratio, "image_size": image_size}.items():
        if size < 1:
            raise ConfigError(f"expected {name} of at least 1, got {size}")
    if image_size % patch or dim % heads:
        raise ConfigError(
            f"expected image_size a multiple of patch and dim of heads, got image_size {image_size}, "
            f"patch {patch}, dim {dim}, heads {heads}"
        )
    blocks: list[nn.Module] = [_Block(dim, heads, mlp_ratio * dim, activation, dropout) for _ in range(depth)]
    return ViT(nn.Conv2d(in_channels, dim, patch, stride=patch), (image_size // patch) ** 2, blocks, classes)
