"""Draw the scenes of `shapes`: anti-aliased signed distances, all images of a block at once.

Per pixel only +, -, *, /, sqrt, floor, min and max are used, which IEEE arithmetic rounds the same everywhere, so an
image does not depend on how many others are drawn with it.
"""

import dataclasses as dc
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

Plane = Float[Tensor, "n height width"]

COLOURS = {  # names and sRGB in [0, 1], far apart from one another and from the backgrounds
    "red": (0.86, 0.13, 0.13),
    "orange": (1.0, 0.55, 0.0),
    "yellow": (0.98, 0.90, 0.15),
    "green": (0.13, 0.62, 0.20),
    "cyan": (0.10, 0.80, 0.85),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.50, 0.15, 0.65),
    "pink": (1.0, 0.55, 0.75),
}
SHADE = 0.38  # the second tone of a texture is the colour times this
PERIOD = {"striped": 0.125, "dotted": 0.125, "checked": 0.15}  # fraction of the image side
DOT = 0.036  # radius, fraction of the image side

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
TEXTURES = ("solid", "striped", "dotted", "checked")
BACKGROUNDS = ("white", "grey", "black", "gradient", "noisy")
PLAIN = (0.95, 0.5, 0.05)  # grey level of the first three


@dc.dataclass(frozen=True)
class Scene:
    """What n images show. Codes index the tuples above; lengths are fractions of the image side."""

    shape: Int[Tensor, " n"]
    colour: Int[Tensor, " n"]
    texture: Int[Tensor, " n"]
    background: Int[Tensor, " n"]
    x: Float[Tensor, " n"]
    y: Float[Tensor, " n"]  # from the top
    radius: Float[Tensor, " n"]
    turn: Float[Tensor, " n"]  # degrees, clockwise
    tint: Float[Tensor, "n 3"]  # added to the colour
    phase: Float[Tensor, "n 2"]  # where the texture begins, in periods
    light: Float[Tensor, "n 4"]  # grey level of the background, its slope across and down, noise amplitude
    key: Int64[Tensor, " n"]  # for the pixels of a noisy background

    def part(self, chosen: slice | Tensor) -> "Scene":
        """The scenes at `chosen`."""
        return Scene(*(getattr(self, field.name)[chosen] for field in dc.fields(self)))

    def __len__(self) -> int:
        return len(self.shape)


def draw(scene: Scene, side: int) -> UInt8[Tensor, "n 3 side side"]:
    """Draw each scene as a `side` x `side` image."""
    return (paint(scene, side) * 255 + 0.5).to(torch.uint8)


def paint(scene: Scene, side: int) -> Float[Tensor, "n 3 side side"]:
    """The images as float32 in [0, 1], before rounding to bytes."""
    u, v = _object_frame(scene, side)
    cover = coverage(scene, side, frame=(u, v)).unsqueeze(1)
    tone = (SHADE + (1 - SHADE) * _texture(scene, u, v, side)).unsqueeze(1)
    base = torch.tensor(list(COLOURS.values()))[scene.colour] + scene.tint
    paint = base.clamp(0, 1)[:, :, None, None] * tone
    ground = _background(scene, side).unsqueeze(1)
    return ground + (paint - ground) * cover


def coverage(scene: Scene, side: int, *, frame: tuple[Plane, Plane] | None = None) -> Plane:
    """How much of each pixel the object covers, in [0, 1]: the true mask of the object."""
    u, v = frame if frame is not None else _object_frame(scene, side)
    radius = scene.radius.view(-1, 1, 1)
    distance = torch.empty_like(u)
    for code, name in enumerate(SHAPES):
        rows = (scene.shape == code).nonzero().flatten()
        if len(rows):
            distance[rows] = DISTANCES[name](u[rows] / radius[rows], v[rows] / radius[rows])
    return _inside(distance * radius * side)


def _inside(pixels: Plane) -> Plane:
    """Coverage of a pixel whose centre lies `pixels` outside an edge."""
    return (0.5 - pixels).clamp(0, 1)


def _grid(side: int) -> tuple[Tensor, Tensor]:
    centres = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    return centres.view(1, 1, -1), centres.view(1, -1, 1)


def _object_frame(scene: Scene, side: int) -> tuple[Plane, Plane]:
    """Pixel centres relative to the object's centre and upright axis; v points up, lengths in image sides."""
    across, down = _grid(side)
    turn = np.deg2rad(scene.turn.numpy().astype(np.float64))
    cos, sin = (torch.from_numpy(f(turn).astype(np.float32)).view(-1, 1, 1) for f in (np.cos, np.sin))
    dx, dy = across - scene.x.view(-1, 1, 1), scene.y.view(-1, 1, 1) - down
    return dx * cos - dy * sin, dx * sin + dy * cos


def _wave(t: Plane, period: float, side: int) -> Plane:
    """1 on every other half period of t, 0 between, with edges one pixel wide."""
    across = t / period
    return _inside(((across - across.floor() - 0.5).abs() - 0.25) * (period * side))


def _texture(scene: Scene, u: Plane, v: Plane, side: int) -> Plane:
    """1 where the plain colour shows, 0 where the darker tone does."""
    found = torch.ones_like(u)
    for code, name in enumerate(TEXTURES[1:], start=1):
        rows = (scene.texture == code).nonzero().flatten()
        if not len(rows):
            continue
        period, phase = PERIOD[name], scene.phase[rows]
        a, b = (t[rows] + phase[:, k].view(-1, 1, 1) * period for k, t in ((0, u), (1, v)))
        if name == "striped":
            found[rows] = _wave(b, period, side)
        elif name == "checked":
            p, q = _wave(a, period, side), _wave(b, period, side)
            found[rows] = p + q - 2 * p * q
        else:
            du, dv = ((t / period - (t / period).floor() - 0.5) * period for t in (a, b))
            found[rows] = 1 - _inside(((du * du + dv * dv).sqrt() - DOT) * side)
    return found


def _background(scene: Scene, side: int) -> Plane:
    """Grey level, the same for the three channels."""
    across, down = _grid(side)
    level, slope_x, slope_y, noise = (column.view(-1, 1, 1) for column in scene.light.unbind(1))
    ground = level + slope_x * (across - 0.5) + slope_y * (down - 0.5)
    rows = (scene.background == BACKGROUNDS.index("noisy")).nonzero().flatten()
    if len(rows):
        cells = uniform(scene.key[rows], side * side).view(-1, side, side)
        ground[rows] += noise[rows] * (cells - 0.5)
    return ground.clamp(0, 1)


def uniform(key: Int64[Tensor, " n"], count: int) -> Float[Tensor, "n count"]:
    """`count` numbers in [0, 1) for each key, by key alone: SplitMix64 (Steele, Lea & Flood 2014) on key + counter."""
    step = np.uint64(0x9E3779B97F4A7C15)
    z = key.numpy().astype(np.uint64)[:, None] + step * np.arange(1, count + 1, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


# --- distances to each shape's edge, negative inside; the shape fits into the unit circle, y points up


def _circle(x: Plane, y: Plane) -> Plane:
    return (x * x + y * y).sqrt() - 0.9


def _square(x: Plane, y: Plane) -> Plane:
    return torch.maximum(x.abs(), y.abs()) - 0.71


def _triangle(x: Plane, y: Plane) -> Plane:
    """Three half planes at 0.5 from the centre: corners on the unit circle."""
    return torch.maximum(-y, 0.8660254 * x.abs() + 0.5 * y) - 0.5


def _star(x: Plane, y: Plane) -> Plane:
    """Five lines through every second corner: inside are the points on the inner side of at least four of them."""
    first = torch.full_like(x, -torch.inf)
    second = first.clone()
    for k in range(5):
        angle = np.pi / 2 + 2 * np.pi * k / 5
        d = float(np.float32(np.cos(angle))) * x + float(np.float32(np.sin(angle))) * y
        second = torch.maximum(second, torch.minimum(first, d))
        first = torch.maximum(first, d)
    return second - 0.309017  # cos(72 degrees)


def _cross(x: Plane, y: Plane) -> Plane:
    a, b = x.abs(), y.abs()
    return torch.minimum(torch.maximum(a - 0.92, b - 0.3), torch.maximum(a - 0.3, b - 0.92))


def _ring(x: Plane, y: Plane) -> Plane:
    return ((x * x + y * y).sqrt() - 0.7).abs() - 0.22


def _heart(x: Plane, y: Plane) -> Plane:
    """A square on its corner, with a half disc on each upper side."""
    a, above = x.abs(), y + 0.16
    half = 0.54  # of the square's side, and the radius of the discs
    middle = half * 0.70710678  # of an upper side
    square = (a + above.abs()) * 0.70710678 - half
    disc = ((a - middle) ** 2 + (above - middle) ** 2).sqrt() - half
    return torch.minimum(square, disc)


def _crescent(x: Plane, y: Plane) -> Plane:
    bite = ((x - 0.45) ** 2 + (y - 0.2) ** 2).sqrt() - 0.68
    return torch.maximum((x * x + y * y).sqrt() - 0.92, -bite)


DISTANCES: dict[str, Callable[[Plane, Plane], Plane]] = dict(
    zip(SHAPES, (_circle, _square, _triangle, _star, _cross, _ring, _heart, _crescent), strict=True)
)
