"""The margin control: would the robustness survive if the logits' scale were taken away?

A training penalty can raise or lower the scale of the logits. Cross-entropy then saturates (or not), gradient attacks
weaken (or not), and a difference between two networks looks like robustness. A claim of robustness has to hold for
three numbers at once: accuracy under the ordinary attack, accuracy under the attack on scale-free logits, and the
length of the smallest fooling change relative to the image.
"""

import dataclasses as dc
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.attack.ball import Ball, Linf
from pellucid.attack.losses import normalized_cross_entropy
from pellucid.attack.minimal import minimal_l2
from pellucid.data import Source
from pellucid.evals._accuracy import class_logits, labelled, model_device
from pellucid.evals.attack.curve import attack_curve

VERSION = "1"


@dc.dataclass(frozen=True)
class MarginControl:
    """The three numbers of the control.

    `plain`, `normalized`: accuracy at `radii` under PGD on the cross-entropy and on the cross-entropy of logits of
    unit spread. `worst`: right under both. `relative`: ||smallest fooling change||_2 / ||image||_2 for each image, 0
    where it was wrong from the start, infinite where none was found; `quartiles` of it over images right from the start.
    """

    ball: str
    radii: tuple[float, ...]
    n: int
    plain: tuple[float, ...]
    normalized: tuple[float, ...]
    worst: tuple[float, ...]
    index: Int[Tensor, " n"]
    distance: Float[Tensor, " n"]
    relative: Float[Tensor, " n"]
    quartiles: tuple[float, float, float]
    not_found: int
    problems: tuple[str, ...]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each radius, for a table."""
        return {
            "radius": list(self.radii),
            "plain": list(self.plain),
            "normalized": list(self.normalized),
            "worst": list(self.worst),
        }


def margin_control(
    model: nn.Module,
    source: Source,
    radii: Sequence[float],
    *,
    ball: Callable[[float], Ball] = Linf,
    steps: int = 20,
    distance_steps: int = 100,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> MarginControl:
    """Measure robustness three ways that a change of logit scale cannot move together.

    The second attack raises CE((z - mean z) / std z), which no factor on the logits z can change; the distances come
    from `minimal_l2`. Problems found by the checks of either curve are listed.

    Raises: as `attack_curve`.
    """
    device = model_device(model) if device is None else torch.device(device)
    curve = functools.partial(
        attack_curve,
        model,
        source,
        radii,
        ball=ball,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    plain, normalized = curve(), curve(loss=normalized_cross_entropy)
    view = class_logits(model, source)
    lengths: list[Tensor] = []
    sizes: list[Tensor] = []
    for batch, targets in labelled(source, batch_size, device):
        lengths.append(minimal_l2(view, batch.inputs, targets, steps=distance_steps).distance.cpu())
        sizes.append(torch.linalg.vector_norm(batch.inputs.flatten(1), dim=1).cpu())
    distance = torch.cat(lengths).double()
    relative = distance / torch.cat(sizes).double().clamp_min(1e-12)
    both = plain.fooled | normalized.fooled
    return MarginControl(
        ball=plain.ball, radii=plain.radii, n=plain.n, plain=plain.accuracy, normalized=normalized.accuracy,
        worst=tuple(float(v) for v in (~both).double().mean(1)), index=plain.index, distance=distance,
        relative=relative, quartiles=_quartiles(relative[~plain.fooled[0]]), not_found=int(distance.isinf().sum()),
        problems=tuple(dict.fromkeys(plain.problems + normalized.problems)),
    )  # fmt: skip


def _quartiles(values: Float[Tensor, " n"]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, each an observed value (infinite counts as large); NaN for none."""
    if len(values) == 0:
        return float("nan"), float("nan"), float("nan")
    ranked = values.sort().values
    low, middle, high = (float(ranked[int(q * (len(ranked) - 1))]) for q in (0.25, 0.5, 0.75))
    return low, middle, high
