"""What to look at first: layers that stand out, and the clearest units."""

import numpy as np
from markupsafe import Markup

from pellucid.report.cards import Cards, ranked
from pellucid.report.contents import Contents, shown_name
from pellucid.report.findings import selective_units, worth_a_look
from pellucid.report.templates import render

CARDS = 6
PER_LAYER = 2


def first(contents: Contents) -> Markup:
    """Sentences about layers, then the cards of the most selective units, at most two a layer."""
    if not contents.layers or not len(contents.units.get("unit", ())):
        return Markup("")
    looks = [
        (shown_name(layer.name), f"pages/{layer.page}.html", why) for why, layer in worth_a_look(contents)
    ]
    layer_of = {row: layer for layer in contents.layers for row in layer.units.tolist()}
    cards = [Cards(contents, layer_of[row], "").card(row) for row in clearest(contents)]
    known = np.isfinite(contents.column("si_cf")).any()
    return render("first.html", {"looks": looks, "cards": cards, "selective": known})


def clearest(contents: Contents) -> list[int]:
    """Rows of the units to show first: by cross-fitted index, above permuted labels, from several layers."""
    everything = np.concatenate([layer.units for layer in contents.layers])
    if np.isfinite(contents.column("si_cf")).any():
        everything = everything[selective_units(contents, everything)]
    else:
        everything = everything[contents.column("dead", everything) == 0]
    taken: dict[str, int] = {}
    chosen: list[int] = []
    names = contents.units["layer"]
    for row in ranked(contents, everything).tolist():
        name = str(names[row])
        if taken.get(name, 0) < PER_LAYER:
            taken[name] = taken.get(name, 0) + 1
            chosen.append(row)
        if len(chosen) == CARDS:
            break
    return chosen
