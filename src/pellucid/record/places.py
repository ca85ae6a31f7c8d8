"""What runs inside a hook: the mean of each map and, for the samples that make a top list, the place of its maximum.

Searching every map for its maximum costs more than everything else together, and nearly all of it is thrown away: a
place is looked up only for the (sample, unit) pairs that enter the list as it stands.
"""

from collections.abc import Callable
from math import gcd, isqrt

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from pellucid._checks import DataError
from pellucid.taps import unit_axis_of, unit_mean

# A class token, a distillation token or four registers may stand before the patches of a transformer.
MOST_PREFIX_TOKENS = 5

Enters = Callable[[Float[Tensor, "batch units"]], Bool[Tensor, "batch units"]]


class PlaceReader:
    """A `Tap.reduce`: the mean response, and beside it `places` (row by row in `grid`) of the batch just read.

    Args:
        enters: which responses make the top lists as they stand.
    """

    def __init__(self, layer: str, *, unit_axis: int | None, enters: Enters) -> None:
        self.layer = layer
        self.unit_axis = unit_axis
        self.enters = enters
        self.image: tuple[int, int] | None = None  # size of the inputs of this batch, set before the forward
        self.grid: tuple[int, int] | None = None
        self.places: Int64[Tensor, "batch units"] | None = None

    def __call__(self, activations: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch units"]:
        values = unit_mean(activations, self.unit_axis)
        found = maps_of(activations, unit_axis=self.unit_axis, image=self.image)
        if found is None:
            self.places = None
            return values
        maps, grid = found
        if self.grid is not None and grid != self.grid:
            raise DataError(
                f"the map of layer {self.layer!r} was {self.grid} and is now {grid}: "
                "places need inputs of one size; give the source a size, or record with places=False"
            )
        self.grid = grid
        self.places = self._find(maps, values)
        return values

    def _find(
        self, maps: Float[Tensor, "batch units places"], values: Float[Tensor, "batch units"]
    ) -> Int64[Tensor, "batch units"]:
        if not maps.is_cpu:
            # On an accelerator, waiting for the answer of `enters` costs more than searching all maps.
            return maps.argmax(2)
        wanted = self.enters(values)
        rows, units = wanted.nonzero(as_tuple=True)
        if 2 * len(rows) > wanted.numel():
            return maps.argmax(2)
        places = torch.full(wanted.shape, -1)
        if len(rows):
            places[rows, units] = maps[rows, units].argmax(1)
        return places


def maps_of(
    activations: Shaped[Tensor, "batch ..."], *, unit_axis: int | None, image: tuple[int, int] | None
) -> tuple[Float[Tensor, "batch units places"], tuple[int, int]] | None:
    """The activation as one flat map for each sample and unit, with its (rows, columns); None without a map.

    Four axes are a map. Three are tokens, which form a map only if they are the patches of the input image: see
    `token_grid`; tokens before the patches are left out.
    """
    axis = unit_axis_of(activations.ndim, unit_axis)
    if activations.ndim == 4:
        maps = activations.movedim(axis, 1)
        return maps.flatten(2), (maps.shape[2], maps.shape[3])
    if activations.ndim == 3 and image is not None:
        tokens = activations.movedim(axis, 2)
        grid = token_grid(tokens.shape[1], image=image)
        if grid is not None:
            return tokens[:, tokens.shape[1] - grid[0] * grid[1] :].transpose(1, 2), grid
    return None


def token_grid(tokens: int, *, image: tuple[int, int]) -> tuple[int, int] | None:
    """(rows, columns) of the patches among `tokens`: a grid in the proportions of the image, at the end of them.

    With as few tokens before the patches as possible, and at most 5; None where there is no such grid.
    """
    shared = gcd(*image)
    if shared == 0:
        return None
    rows, columns = image[0] // shared, image[1] // shared
    for prefix in range(min(MOST_PREFIX_TOKENS, tokens - 1) + 1):
        scale = isqrt((tokens - prefix) // (rows * columns))
        if scale and scale * scale * rows * columns == tokens - prefix:
            return rows * scale, columns * scale
    return None
