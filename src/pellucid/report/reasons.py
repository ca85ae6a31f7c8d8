"""Why a layer has no selectivity: a few words for a cell, a sentence for who asks."""

import dataclasses as dc
import re

import numpy as np

from pellucid.report.contents import Contents, Layer

LONGEST = 40
ON_THE_COMMAND_LINE = {"rectify": "rectify", "absolute": "abs", "shift_min": "shift-min"}


@dc.dataclass(frozen=True)
class Reason:
    """Why there is no index. Both say the same where a few words are enough."""

    short: str
    sentence: str


def reason(contents: Contents, layer: Layer) -> Reason | None:
    """Why a layer has no cross-fitted index, None where it has one."""
    if layer.get("si_cf") is not None:
        return None
    if not contents.labelled:
        return Reason("no labels", "the data has no labels")
    if layer.why:
        sentence = _as_options(layer.why)
        return Reason(_shortened(sentence), sentence)
    if len(contents.classes) < 2 or _classes_seen(contents, layer) < 2:
        return Reason("needs at least 2 classes", "the index needs images of at least 2 classes")
    if layer.get("units") and layer.get("dead") == layer.get("units"):
        return Reason("every unit is dead", "every unit is dead")
    if layer.get("si") is not None:
        return Reason(
            "too few images a class", "too few images a class to choose on some and judge on others"
        )
    return Reason("not computed", "not computed")


def reasons(contents: Contents) -> dict[str, Reason]:
    """The reason of each layer that has no index, by the name of the layer."""
    found = {layer.name: reason(contents, layer) for layer in contents.layers}
    return {name: why for name, why in found.items() if why is not None}


def _classes_seen(contents: Contents, layer: Layer) -> int:
    means = contents.class_means.get(layer.name)
    return len(contents.classes) if means is None else int(np.isfinite(means).any(1).sum())


def _as_options(sentence: str) -> str:
    """Python's `negative=absolute` as the command line has it."""
    return re.sub(
        r"negative=(rectify|absolute|shift_min)",
        lambda found: f"--negative {ON_THE_COMMAND_LINE[found[1]]}",
        sentence,
    )


def _shortened(sentence: str) -> str:
    if len(sentence) <= LONGEST:
        return sentence
    return "negative class means" if "--negative" in sentence else "not computed"
