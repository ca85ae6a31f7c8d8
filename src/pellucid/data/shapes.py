"""`shapes`: a generated world in which everything is known of every image."""

import dataclasses as dc
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pellucid._checks import ConfigError, check_one_of, check_range, nearest
from pellucid.data.examples import Gathered, as_float, feed
from pellucid.data.shapes_draw import (
    BACKGROUNDS,
    COLOURS,
    PLAIN,
    SHAPES,
    TEXTURES,
    Scene,
    coverage,
    draw,
    uniform,
)
from pellucid.data.source import Source
from pellucid.rng import derive

VERSION = 1  # of the drawing: part of the fingerprint
BLOCK = 128  # images drawn at a time; about 1 MB a plane at 48 px, which stays in cache
KEEP = 512 * 1024**2  # bytes: up to this much is kept once drawn, more is drawn again each time

PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
SIZES = {"small": (0.14, 0.16), "medium": (0.19, 0.21), "large": (0.25, 0.28)}  # radius over image side
FACTORS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "place": PLACES,
    "texture": TEXTURES,
    "background": BACKGROUNDS,
}
DRAWS = 24  # uniform numbers behind an image
Target = Literal["shape", "colour", "size", "place", "texture", "background"]


def shapes_source(
    length: int = 2000,
    *,
    split: Literal["train", "test"] = "test",
    size: int = 32,
    seed: int = 0,
    target: Target = "shape",
    fixed: Mapping[str, str] | None = None,
) -> Source:
    """One object a picture, 3 x `size` x `size`, with every factor known.

    Six factors are drawn independently and evenly: shape, colour, size, place, texture, background; `factors` holds
    their codes (names in `factor_names`) and the numbers x, y (centre, fractions of the side from the top left),
    radius (fraction of the side) and turn (degrees clockwise). `captions` say the six in words.

    Example i depends on (seed, split, i) alone: not on the length, nor on what else is drawn.

    Args:
        split: two endless streams that share no draw.
        size: pixels a side, 16 to 128.
        target: the factor that gives the classes.
        fixed: factors held at one value, e.g. `{"colour": "red"}`. All else of example i stays as it was, so two
            sources that differ in `fixed` alone are pairs that differ in one factor alone.
    """
    check_one_of(split, ("train", "test"), "split of shapes (two endless streams, there is no whole)")
    check_range(float(size), 16.0, 128.0, "size of shapes")
    check_range(float(length), 1.0, 1e7, "length of shapes")
    check_one_of(target, tuple(FACTORS), "target of shapes")
    world = _world(length, split, seed, dict(fixed or {}))
    examples = Shapes(world, size, target)
    return Source(
        "shapes",
        examples,
        FACTORS[target],
        {
            **world.codes,
            "x": world.scene.x,
            "y": world.scene.y,
            "radius": world.scene.radius,
            "turn": world.scene.turn,
        },
        Captions(world.codes),
        factor_names=FACTORS,
    )


@dc.dataclass(frozen=True)
class World:
    """The factors and scenes of a stretch of `shapes`, and the (seed, split, fixed) that make them."""

    codes: dict[str, Int[Tensor, " n"]]
    scene: Scene
    origin: str


class Shapes:
    """The examples of `shapes_source`: drawn when first asked for, then kept as bytes."""

    def __init__(self, world: World, size: int, target: str) -> None:
        self.world, self.size, self.target = world, size, target
        n = len(world.scene)
        keep = n * 3 * size * size <= KEEP
        self._kept = torch.empty((n, 3, size, size), dtype=torch.uint8) if keep else None
        self._drawn = torch.zeros(n, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.world.scene)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"shapes has {len(self)} examples, got {i}")
        return as_float(self.pixels(torch.tensor([i % len(self)]))[0]), int(self.labels()[i])

    def labels(self) -> Tensor:
        return self.world.codes[self.target]

    def pixels(self, index: Int[Tensor, " batch"]) -> UInt8[Tensor, "batch 3 side side"]:
        """The images at `index` as bytes."""
        if self._kept is None:
            return self._draw(index)
        fresh = index[~self._drawn[index]].unique()
        if len(fresh):
            self._kept[fresh] = self._draw(fresh)
            self._drawn[fresh] = True
        return self._kept.index_select(0, index)

    def masks(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch side side"]:
        """How much of each pixel the object covers, in [0, 1]."""
        return coverage(self.world.scene.part(index), self.size)

    def gather(self, index: Int[Tensor, " batch"], *, seed: int, epoch: int) -> Gathered:  # noqa: ARG002
        return Gathered(as_float(self.pixels(index)), self.labels()[index])

    def digest(self, index: Int[Tensor, " batch"]) -> str:
        """The recipe of the images, and a few of them, which tells when the drawing itself has changed."""
        sha = hashlib.sha256(json.dumps([VERSION, self.world.origin, self.size, self.target]).encode())
        feed(sha, index)
        feed(sha, self.pixels(index[:32]))
        return sha.hexdigest()

    def _draw(self, index: Tensor) -> Tensor:
        blocks = [draw(self.world.scene.part(part), self.size) for part in index.split(BLOCK)]
        return torch.cat(blocks) if blocks else torch.empty((0, 3, self.size, self.size), dtype=torch.uint8)


@dc.dataclass(frozen=True)
class Captions(Sequence[str]):
    """Captions made when asked for: "a small red striped circle at the top left on a grey background"."""

    codes: dict[str, Int[Tensor, " n"]]

    def __len__(self) -> int:
        return len(self.codes["shape"])

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        if isinstance(i, slice):
            return Captions({key: code[i] for key, code in self.codes.items()})
        return caption({key: FACTORS[key][int(code[i])] for key, code in self.codes.items()})


def caption(values: Mapping[str, str]) -> str:
    """The sentence for the six factors, e.g. "a large blue solid ring in the centre on a noisy background"."""
    place = "in the centre" if values["place"] == "centre" else f"at the {values['place']}"
    ground = f"{values['background']} background"
    return (
        f"a {values['size']} {values['colour']} {values['texture']} {values['shape']} {place} on a {ground}"
    )


def _world(length: int, split: str, seed: int, fixed: dict[str, str]) -> World:
    """Draw the factors: number k behind image i is draw k of SplitMix64 keyed by hash(seed, split) and i."""
    base = np.uint64(derive(seed, "shapes", split))
    with np.errstate(over="ignore"):  # wraps round on purpose
        keys = (base + np.arange(length, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)).astype(np.int64)
    key = torch.from_numpy(keys)
    draws = uniform(key, DRAWS)
    codes: dict[str, Tensor] = {}
    for k, (factor, names) in enumerate(FACTORS.items()):
        codes[factor] = (draws[:, k] * len(names)).long()
    for factor, value in fixed.items():
        check_one_of(factor, tuple(FACTORS), "fixed factor of shapes")
        if value not in FACTORS[factor]:
            raise ConfigError(
                f"{factor} of shapes cannot be {value!r}; nearest: {nearest(value, FACTORS[factor])}"
            )
        codes[factor] = torch.full_like(codes[factor], FACTORS[factor].index(value))
    origin = json.dumps([seed, split, sorted(fixed.items())])
    return World(codes, _scene(codes, draws[:, len(FACTORS) :], key), origin)


def _scene(codes: dict[str, Tensor], draws: Float[Tensor, "n draws"], key: Int[Tensor, " n"]) -> Scene:
    low, high = torch.tensor(list(SIZES.values())).unbind(1)
    radius = _between(low[codes["size"]], high[codes["size"]], draws[:, 0])
    x = _position(codes["place"] % 3, radius, draws[:, 1])
    y = _position(codes["place"] // 3, radius, draws[:, 2])
    background = codes["background"]
    slope = (background == BACKGROUNDS.index("gradient")) * 0.45
    level = torch.tensor([*PLAIN, 0.5, 0.5])[background] + (draws[:, 8] - 0.5) * 0.06
    signs = torch.where(draws[:, 9:11] < 0.5, -1.0, 1.0) * (0.4 + 0.6 * draws[:, 11:13])
    noise = torch.full_like(level, 0.55)
    return Scene(
        codes["shape"],
        codes["colour"],
        codes["texture"],
        background,
        x,
        y,
        radius,
        turn=(draws[:, 3] - 0.5) * 40,
        tint=(draws[:, 4:7] - 0.5) * 0.08,
        phase=draws[:, 13:15],
        light=torch.stack([level, slope * signs[:, 0], slope * signs[:, 1], noise], dim=1),
        key=key,
    )


def _between(low: Tensor, high: Tensor, u: Tensor) -> Tensor:
    return low + (high - low) * u


def _position(cell: Tensor, radius: Tensor, u: Tensor) -> Tensor:
    """A centre in the first, second or third of the side, such that the object stays in the picture."""
    low = torch.stack([radius + 0.01, torch.full_like(radius, 0.42), torch.full_like(radius, 0.68)])
    high = torch.stack([torch.full_like(radius, 0.32), torch.full_like(radius, 0.58), 0.99 - radius])
    rows = torch.arange(len(radius))
    return _between(low[cell, rows], high[cell, rows], u)
