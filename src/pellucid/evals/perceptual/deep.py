"""LPIPS: distances between the channel-normalised activations of a trunk network, stage by stage.

    D(a, b) = sum over stages of mean over places of sum over channels w_c ( a_c / ||a|| - b_c / ||b|| )^2

with w the non-negative head fitted to human judgements ("calibrated"), or 1 ("baseline"). The trunk and the head are the
user's own files or modules; none is downloaded.

References: Zhang et al., CVPR 2018, section 3; the preprocessing and the stages are those of the released code.
"""

import dataclasses as dc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid._checks import ConfigError, WeightsError
from pellucid.attack.ascent import attack_mode
from pellucid.taps import Tap, keep, watch
from pellucid.weights import load_weights, weights_hash

Images = Float[Tensor, "rows channels height width"]
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10


@dc.dataclass(frozen=True)
class DeepDistance:
    """A callable LPIPS-form distance; `rung` says where its parts come from, `fingerprint` which weights they are."""

    name: str
    trunk: nn.Module
    stages: tuple[str, ...]
    heads: tuple[Tensor, ...] | None
    rung: str
    fingerprint: str
    preprocess: bool = True
    """Shift and scale as the released code does; False for a trunk trained on images in [0, 1] as they are."""

    def __call__(self, first: Images, second: Images) -> Float[Tensor, " rows"]:
        """D of each pair, differentiable in both images; images in [0, 1]."""
        return self._weighed(self.parts(first, second))

    def parts(self, first: Images, second: Images) -> list[Float[Tensor, "rows _"]]:
        """By stage, what each channel adds to D before it is weighed: the mean over places of its squared difference."""
        return _apart(self.units(first), self.units(second))

    def units(self, images: Images) -> list[Float[Tensor, "rows _ ..."]]:
        """Activations of every stage, of unit length over channels at each place; with a graph where `images` has one."""
        graph = images.requires_grad and torch.is_grad_enabled()
        taps = {name: Tap(name, reduce=keep) for name in self.stages}
        with attack_mode(self.trunk), torch.set_grad_enabled(graph):
            with watch(self.trunk, taps, grad=graph, stop=True) as seen:
                self.trunk(self._prepared(images))
            maps = [seen[name] for name in self.stages]
            return [v / (torch.linalg.vector_norm(v, dim=1, keepdim=True) + EPS) for v in maps]

    def towards(
        self, targets: Images
    ) -> Callable[[Float[Tensor, "rows ..."], Int[Tensor, " rows"]], Float[Tensor, " rows"]]:
        """D to fixed images, by rows; what the trunk makes of them is computed once while the same rows are asked for.

        An adversary asks for the same rows at every step, so that a step costs one pass of the trunk in place of two.
        """
        kept: list[tuple[Tensor, list[Tensor]]] = []

        def distance(images: Images, rows: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
            if not kept or not torch.equal(kept[0][0], rows):
                with torch.no_grad():
                    kept[:] = [(rows.clone(), self.units(targets[rows.to(targets.device)]))]
            return self._weighed(_apart(self.units(images), kept[0][1]))

        return distance

    def _weighed(self, stages: Sequence[Float[Tensor, "rows _"]]) -> Float[Tensor, " rows"]:
        total = stages[0].new_zeros(len(stages[0]))
        for number, parts in enumerate(stages):
            weighed = parts if self.heads is None else parts * self.heads[number].to(parts)
            total = total + weighed.sum(1)
        return total

    def _prepared(self, images: Images) -> Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1) if self._wants_colour() else images
        if not self.preprocess:
            return images
        return (2 * images - 1 - images.new_tensor(SHIFT).view(1, -1, 1, 1)) / images.new_tensor(SCALE).view(
            1, -1, 1, 1
        )

    def _wants_colour(self) -> bool:
        first = next((m for m in self.trunk.modules() if isinstance(m, nn.Conv2d)), None)
        return self.preprocess or (first is not None and first.in_channels == 3)


def _apart(
    first: Sequence[Float[Tensor, "rows _ ..."]], second: Sequence[Float[Tensor, "rows _ ..."]]
) -> list[Float[Tensor, "rows _"]]:
    return [(a - b).square().flatten(2).mean(2) for a, b in zip(first, second, strict=True)]


def load_heads(path: Path | str) -> tuple[Tensor, ...]:
    """The linear heads of an LPIPS release file (`lin0.model.1.weight`, ...), in order.

    Raises:
        WeightsError: no such entries, or a negative weight: such a head is untrained and gives no distance.
    """
    state = load_weights(Path(path))
    found = sorted(
        (name for name in state if name.startswith("lin")), key=lambda name: int(name[3:].split(".")[0])
    )
    if not found:
        raise WeightsError(
            f"{path} holds no LPIPS heads (lin0.model.1.weight, ...); it has {list(state)[:5]}"
        )
    heads = tuple(state[name].flatten() for name in found)
    for name, head in zip(found, heads, strict=True):
        if float(head.min()) < 0:
            raise WeightsError(
                f"{path}: head {name} has negative weights, so it is not calibrated and gives no distance"
            )
    return heads


def lpips_distance(
    trunk: nn.Module,
    stages: Sequence[str],
    *,
    heads: Sequence[Tensor] | None,
    name: str,
    rung: str,
    preprocess: bool = True,
) -> DeepDistance:
    """LPIPS from a trunk, the names of its stages, and heads (None: baseline, weights of 1).

    Args:
        rung: where the parts come from: "user files", "self-trained trunk", "untrained trunk", "study-calibrated head".

    Raises:
        ConfigError: not one head per stage.
        WeightsError: a negative head.
    """
    if not stages or (heads is not None and len(heads) != len(stages)):
        raise ConfigError(
            f"one head for each stage is needed: {len(stages)} stages, {0 if heads is None else len(heads)} heads"
        )
    chosen = None if heads is None else tuple(head.detach().flatten() for head in heads)
    for stage, head in zip(stages, chosen or (), strict=False):
        if float(head.min()) < 0:
            raise WeightsError(f"the head of stage {stage!r} has negative weights, so it gives no distance")
    return DeepDistance(
        name, trunk, tuple(stages), chosen, rung, _fingerprint(trunk, stages, chosen), preprocess
    )


def _fingerprint(trunk: nn.Module, stages: Sequence[str], heads: Sequence[Tensor] | None) -> str:
    import hashlib

    state: Mapping[int, Tensor] = dict(enumerate(heads or ()))
    parts = [weights_hash(trunk), *stages, *(state[i].cpu().numpy().tobytes().hex() for i in state)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
