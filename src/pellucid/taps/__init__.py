"""Read and change activations of any `nn.Module` by layer name, through PyTorch's own hooks.

    with watch(model, {"late": Tap("layer3.2.conv2")}) as seen:
        model(images)
    seen["late"]                                   # (batch, units): the spatial mean, taken inside the hook

`find` names layers, `watching` reads them, `editing` changes them, `listing` shows what there is to name,
`reducing` holds the reductions, and `hooking` the rules that all of them share: one forward at a time, calls
of a layer counted, compiled graphs run eagerly, what cannot be hooked refused.
"""

from pellucid.taps.editing import ablate, clamp_units, edit, patch, resample, set_mean
from pellucid.taps.find import ACTIVATIONS, activation_layers, find_layers, unwrap
from pellucid.taps.listing import LayerInfo, layers
from pellucid.taps.reducing import keep, unit_axis_of, unit_mean
from pellucid.taps.watching import Seen, Tap, watch

__all__ = [
    "ACTIVATIONS",
    "LayerInfo",
    "Seen",
    "Tap",
    "ablate",
    "activation_layers",
    "clamp_units",
    "edit",
    "find_layers",
    "keep",
    "layers",
    "patch",
    "resample",
    "set_mean",
    "unit_axis_of",
    "unit_mean",
    "unwrap",
    "watch",
]
