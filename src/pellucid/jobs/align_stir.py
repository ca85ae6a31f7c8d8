"""STIR between the networks of a comparison, from the images that their runs have found already."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pellucid._checks import ConfigError, StaleResultError

if TYPE_CHECKING:
    import torch

    from pellucid.jobs.align_runs import Entry
    from pellucid.methods.invert import Representation


def shared(entries: Sequence["Entry"], *, device: "torch.device") -> dict[str, list[Any]]:
    """A row for each ordered pair: STIR(second | first), mean over starts, and plain CKA of the two.

    Raises:
        StaleResultError: a network that is not the one that was inverted.
    """
    from pellucid.evals.alignment import results_of
    from pellucid.evals.cka import linear_cka
    from pellucid.jobs.align_runs import items_of

    opened = [_representation(entry, device) for entry in entries]
    items = [items_of(entry, entry.rows()) for entry in entries]
    targets = items[0].targets.to(device)
    values = [g.values(targets) for g in opened]
    rows: dict[str, list[Any]] = {
        key: []
        for key in ("first", "second", "stir", "stir_low", "stir_high", "cka", "rho", "starts", "images")
    }
    for i, entry in enumerate(entries):
        for j, other in enumerate(entries):
            found = [results_of(items[i], k).to(device) for k in sorted(set(items[i].start.tolist()))]
            scores = [linear_cka(values[j], opened[j].values(images)) for images in found]
            row = (
                entry.key, other.key, sum(scores) / len(scores), min(scores), max(scores),
                linear_cka(values[i], values[j]), entry.facts["methods"][0]["rho"], len(scores), len(targets),
            )  # fmt: skip
            for key, value in zip(rows, row, strict=True):
                rows[key].append(value)
    return rows


def check_stir(entries: Sequence["Entry"]) -> None:
    """Raise `ConfigError` for a run whose images lean on a prior, or that does not say where its network is."""
    for entry in entries:
        if entry.method != "free":
            raise ConfigError(
                f"STIR is defined for regulariser-free images, and {entry.key} has {entry.method!r}; leave --stir out"
            )
        if "opened" not in entry.run.header:
            raise ConfigError(f"{entry.key} does not say where its network is; leave --stir out")


def _representation(entry: "Entry", device: "torch.device") -> "Representation":
    from pellucid.jobs.invert import asking_of, subject_of
    from pellucid.jobs.invert_layer import parse_layer
    from pellucid.jobs.tapping import first_images
    from pellucid.methods.invert import Representation

    subject = subject_of(asking_of(entry.run.header["opened"]))
    if subject.facts["weights_hash"] != entry.run.facts("model")["weights_hash"]:
        raise StaleResultError(f"the weights of {entry.key} have changed since it was inverted")
    model = subject.model.to(device).eval()
    tap = parse_layer(model, entry.facts["layer"], first_images(subject.source).to(device))
    return Representation(model, tap, identity_relus=entry.facts["identity_relus"])
