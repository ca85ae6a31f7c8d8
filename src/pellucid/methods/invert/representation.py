"""What a network makes of an image at one layer: g(x), with clamping and preprocessing inside.

    g(x) = flatten( activation at the layer of model( clip(x, 0, 1) ) ),    normalising belongs to the model

One object is used for targets, for the search and for every check afterwards, so that no two parts can disagree about
preprocessing (the fault that makes "identically represented" inputs of some published code something else).
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid._checks import ConfigError, LayerNotFound, NumericError
from pellucid.attack.ascent import attack_mode
from pellucid.taps import Seen, Tap, find_layers, keep, watch

TINY = 1e-12
"""A target representation shorter than this has no relative distance."""


class Representation:
    """g of one layer of a model, differentiable to the image, computed no further than that layer.

        g = Representation(model, "layer4.1.relu")
        with g.open():
            goal = g(images).detach()

    Inside `open` the model is in evaluation mode with frozen parameters, and is put back afterwards.

    Args:
        layer: a `named_modules()` name or a `Tap`; its side, call and item are used, its reduction is not: the whole
            map is flattened.
        identity_relus: names or globs of `nn.ReLU` layers whose backward is replaced by the identity (forward as
            ever). The last ReLU before the representation gets it in the official code of some networks, and a target
            whose representation is dead has no other gradient. Off by default; whatever is chosen must be the same
            for every model that is compared.

    Raises:
        ConfigError: weights in half precision, which put a floor under every distance.
        LayerNotFound: an entry of `identity_relus` that is no ReLU.
    """

    def __init__(self, model: nn.Module, layer: str | Tap, *, identity_relus: Sequence[str] = ()) -> None:
        tap = layer if isinstance(layer, Tap) else Tap(layer)
        _refuse_half(model)
        self.model = model
        self.tap = Tap(tap.layer, reduce=keep, side=tap.side, call=tap.call, item=tap.item)
        self.layer = tap.layer
        self.relus = _relus(model, identity_relus)
        self._seen: Seen | None = None

    @contextmanager
    def open(self) -> Generator["Representation"]:
        """Attach the hooks; calls of this object work inside. Opened again inside, the same hooks serve."""
        if self._seen is not None:
            yield self
            return
        with ExitStack() as stack:
            stack.enter_context(attack_mode(self.model))
            for relu in self.relus:
                stack.enter_context(identity_backward(relu))
            taps = {"goal": self.tap}
            self._seen = stack.enter_context(watch(self.model, taps, grad=True, stop=True))
            try:
                yield self
            finally:
                self._seen = None

    def __call__(self, images: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """g(images), in the images' device; only inside `open`."""
        if self._seen is None:
            raise ConfigError(
                "a Representation is called inside `with g.open():`, where its hooks are attached"
            )
        self.model(into_range(images))
        return self._seen["goal"].flatten(1)

    @torch.no_grad()
    def values(
        self, images: Float[Tensor, "images ..."], *, batch_size: int = 64
    ) -> Float[Tensor, "images features"]:
        """g(images) without gradient, in batches; opens and closes by itself."""
        with self.open(), torch.no_grad():
            return torch.cat([self(part).clone() for part in images.split(batch_size)])


def into_range(images: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    """clip(x, 0, 1), with gradient 1 inside and on the bounds and 0 outside.

    Recent versions of `torch.clamp` give gradient 0 on the bounds too, where the projection puts most pixels: the
    search would never leave them.
    """
    inside = (images >= 0) & (images <= 1)
    return torch.where(inside, images, images.detach().clamp(0, 1))


def relative_distance(
    values: Float[Tensor, "batch features"], goals: Float[Tensor, "batch features"], *, eps: float = TINY
) -> Float[Tensor, " batch"]:
    """rho = ||g(x) - g(target)||_2 / ||g(target)||_2, one number per image, 0 = identically represented.

    References: specification of the inversion, sections 2 and 3; the norm of the released code of Nanda et al. (AAAI 2023).
    """
    return torch.linalg.vector_norm(values - goals, dim=1) / torch.linalg.vector_norm(goals, dim=1).clamp_min(
        eps
    )


def check_goals(goals: Float[Tensor, "targets features"], layer: str) -> None:
    """Refuse targets whose representation is NaN or zero: there a relative distance says nothing.

    Raises:
        NumericError: naming the layer and the first such target.
    """
    norms = torch.linalg.vector_norm(goals, dim=1)
    for bad, word, hint in (
        (~norms.isfinite(), "not finite", "look for NaN in the weights or inputs outside the model's range"),
        (norms <= TINY, "zero", "the layer is dead for it: take an earlier layer, or leave the target out"),
    ):
        if bool(bad.any()):
            places = torch.nonzero(bad).flatten().tolist()
            raise NumericError(
                f"the representation of {len(places)} of {len(norms)} targets at layer {layer!r} is {word} (first: target "
                f"{places[0]}), so no relative distance exists; {hint}"
            )


def _refuse_half(model: nn.Module) -> None:
    half = next((p for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        raise ConfigError(
            f"{type(model).__name__} has weights of {half.dtype}, whose rounding puts a floor under every distance; use "
            "model.float(), which holds the same weights"
        )


def _relus(model: nn.Module, patterns: Sequence[str]) -> list[nn.ReLU]:
    found: list[nn.ReLU] = []
    for name in find_layers(model, patterns) if patterns else []:
        module = model.get_submodule(name)
        if not isinstance(module, nn.ReLU):
            raise LayerNotFound(
                f"identity_relus must name nn.ReLU layers; {name!r} is a {type(module).__name__}, whose backward is left alone"
            )
        found.append(module)
    return found


class _IdentityBackward(torch.autograd.Function):
    """max(0, z) forward, the gradient unchanged backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:  # noqa: ARG004
        return z.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return gradients[0]


@contextmanager
def identity_backward(relu: nn.ReLU) -> Generator[None]:
    """While inside, this ReLU passes gradients as if it were not there; its output is what it always was."""
    kept: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append(args[0])
        return (args[0].clone(), *args[1:])  # an in-place ReLU must not overwrite what is kept

    def after(_module: nn.Module, _args: tuple[Any, ...], _output: Tensor) -> Tensor:
        return torch.as_tensor(_IdentityBackward.apply(kept.pop()))

    handles = [relu.register_forward_pre_hook(before), relu.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
