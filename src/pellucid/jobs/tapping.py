"""What of a model a pass looks at: its layers, and the output that its decisions are read from. Fails before the pass."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from pellucid._checks import DataError, PellucidError
from pellucid.jobs.progress import say

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pellucid.data import Source
    from pellucid.taps import LayerInfo, Tap


def tapped_layers(
    model: "nn.Module", source: "Source", patterns: Sequence[str], *, device: "torch.device"
) -> list["LayerInfo"]:
    """The layers to record, each call of a layer that runs several times on its own.

    Raises:
        LayerNotFound: a name or glob that fits no layer.
        DataError: a layer that was named but gives no units, or images that the model cannot take.
    """
    from pellucid.taps import activation_layers, find_layers, layers

    names = find_layers(model, patterns) if patterns else activation_layers(model)
    if not names:
        raise DataError(
            f"{type(model).__name__} has no activation modules to tap by default; name layers with --layers "
            "(`pellucid layers` lists them)"
        )
    images = first_images(source).to(device)
    with taking(images, "--size, ?channels=rgb or ?channels=grey after the data spec, or another model"):
        rows = layers(model, images)
    found: list[LayerInfo] = []
    without: list[str] = []
    for name in names:
        mine = [row for row in rows if name in (row.name, row.name.partition("#")[0]) and row.units > 0]
        found += [row for row in mine if row not in found]
        if not mine:
            without.append(name)
    if named := [name for name in without if name in patterns]:
        raise DataError(
            f"layers {named} have no units: they never run, or their output is not one tensor of units"
        )
    if not found:
        raise DataError(f"none of the layers {without} has units; `pellucid layers` lists those that do")
    if without:
        say(f"left out, because they never run or give no tensor of units: {', '.join(without)}")
    return sorted(found, key=rows.index)


def first_images(source: "Source") -> "Tensor":
    """The first two images that can be read."""
    first = next(source.batches(2), None)
    if first is None:
        raise DataError(f"none of the first examples of {source.name} can be read")
    return first.inputs


@contextmanager
def taking(images: "Tensor", advice: str) -> Generator[None]:
    """Errors of a model's first forward pass become a sentence about the shape it was given."""
    try:
        yield
    except PellucidError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        shape = "x".join(str(size) for size in images.shape[1:])
        raise DataError(
            f"the model cannot take inputs of {shape}: {type(error).__name__}: {' '.join(str(error).split())}. Try {advice}"
        ) from error


def decision_tap(model: "nn.Module", source: "Source", *, device: "torch.device") -> tuple["Tap | None", str]:
    """The tap that gives logits, one for each class of the data; or None and the reason why there is none.

    Raises:
        DataError: a class map that names outputs the model does not have.
    """
    import torch

    from pellucid.taps import Tap

    with torch.inference_mode():
        output: Any = model.eval()(first_images(source).to(device))
    tap, logits = Tap(""), output
    if isinstance(output, Mapping):
        tap, logits = Tap("", item="logits"), cast("Mapping[str, Any]", output).get("logits")
    elif isinstance(output, tuple | list) and output:
        tap, logits = Tap("", item=0), cast("Sequence[Any]", output)[0]
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        return None, "the model's output holds no logits (batch, classes)"
    outputs = logits.shape[1]
    if source.class_map is not None:
        widest = max(max(entry) for entry in source.class_map.outputs)
        if widest >= outputs:
            raise DataError(
                f"the class map names output {widest}, but the model has {outputs} outputs (0 to {outputs - 1})"
            )
    elif source.classes and outputs != len(source.classes):
        return None, (
            f"the model has {outputs} outputs and the data {len(source.classes)} classes; --class-map says which output "
            "means which class"
        )
    return tap, ""
