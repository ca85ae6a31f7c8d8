"""What drives a unit most: the same search, maximising one unit's response (feature visualisation)."""

import dataclasses as dc
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid._checks import ConfigError
from pellucid.attack.ascent import attack_mode
from pellucid.methods.invert.descent import FAST, Descent, Preset, descend
from pellucid.methods.invert.priors import FREE, Prior
from pellucid.methods.invert.representation import into_range
from pellucid.rng import rng
from pellucid.taps import Tap, watch


def maximise_units(
    model: nn.Module,
    tap: Tap | str,
    units: Sequence[int],
    start: Float[Tensor, "rows ..."],
    *,
    preset: Preset = FAST,
    prior: Prior = FREE,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Descent:
    """One image per unit that raises its response as far as the search gets; `losses` are minus the response plus priors.

        minimise  - w r_u(T(x)) + sum_j w_j R_j(x)   subject to x in [0, 1]

    Such an image shows what a unit responds to at most, not what it usually responds to: read it beside its top images.

    Args:
        tap: where the unit is; its reduction makes the response (default: the spatial mean).
        units: one for each row of `start`.

    Raises:
        ConfigError: a unit that the layer lacks, or not one unit per row.
    """
    if len(units) != len(start):
        raise ConfigError(f"one start image for each unit is needed: {len(units)} units, {len(start)} images")
    tap = Tap(tap) if isinstance(tap, str) else tap
    preset = dc.replace(preset, tolerance=0.0)  # a response has no value that is enough
    chosen = torch.tensor(list(units), device=start.device)
    with attack_mode(model), watch(model, {"unit": tap}, grad=True, stop=True) as seen:

        def loss(images: Tensor, rows: Tensor, step: int) -> Tensor:
            moved = (
                images if prior.transform is None else prior.transform(images, rng(seed, "transform", step))
            )
            model(into_range(moved))
            found = seen["unit"]
            wanted = chosen[rows.to(chosen.device)]
            if int(wanted.max()) >= found.shape[1] or int(wanted.min()) < 0:
                raise ConfigError(
                    f"layer {tap.layer!r} has units 0 to {found.shape[1] - 1}, got {sorted(set(wanted.tolist()))}"
                )
            return prior.of(into_range(images)) - prior.weight * found.gather(1, wanted[:, None])[:, 0]

        first = prior.space.from_image(start)
        return descend(
            loss, first, preset=preset, space=prior.space, batch_size=batch_size, progress=progress
        )
