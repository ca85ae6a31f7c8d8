"""`pellucid inspect`: one pass over the user's images through the user's network, and a page about its units."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid._checks import DataError, check_one_of
from pellucid.jobs.progress import say

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pellucid.data import Source
    from pellucid.store import Run
    from pellucid.taps import LayerInfo

NEGATIVE = ("leave-out", "rectify", "abs", "shift-min")


@dc.dataclass(frozen=True)
class Request:
    """What `pellucid inspect` was asked for; kept in the run as its recipe."""

    model: str
    data: str
    weights: Path | None = None
    layers: tuple[str, ...] = ()
    split: str = "test"
    size: str | None = None
    fit: str = "crop"
    normalize: str = "none"
    class_map: Path | None = None
    labels: Path | None = None
    limit: int | None = None
    top: int = 16
    negative: str = "leave-out"
    skip_unreadable: bool = False
    count_non_finite: bool = False
    batch_size: int = 64
    device: str | None = None
    seed: int = 0
    workers: int = 0


def run_inspect(request: Request, out: Path) -> Path:
    """Do everything that `pellucid inspect` does; the path of the page."""
    from pellucid.jobs.opening import check_run_folder, open_data, open_device, open_network

    check_one_of(request.negative, NEGATIVE, "--negative")
    check_run_folder(out)
    device = open_device(request.device)
    opened = open_network(request.model, request.weights, normalize=request.normalize)
    source = open_data(request)
    return inspect_model(opened.model, source, out, request=request, model_facts=opened.facts, device=device)


def inspect_model(
    model: "nn.Module",
    source: "Source",
    out: Path,
    *,
    request: Request,
    model_facts: Mapping[str, Any],
    device: "torch.device",
) -> Path:
    """Record the layers of an opened model over an opened source and write the run and its pages.

    A run that is complete for the same weights, layers, preprocessing, data and version is not computed again; one
    that was interrupted goes on where its pass was saved.
    """
    from pellucid.jobs.unit_pass import record_layers, write_tables
    from pellucid.report import write_report

    if len(source) == 0:
        raise DataError(f"{source.name} has no examples")
    model.to(device)
    infos = tapped_layers(model, source, request.layers, device=device)
    say(
        f"{len(infos)} layers, {sum(i.units for i in infos):,} units, {len(source):,} examples of {source.name}"
    )
    inputs = what_it_depends_on(request, source, infos, model_facts)
    run = open_run(out, request, inputs)
    if run.has("units", inputs=inputs):
        say("the run is complete; its pages are written again from its tables")
        return write_report(run)
    recording = record_layers(model, source, infos, request=request, run=run, inputs=inputs, device=device)
    write_tables(
        run, recording, infos, source=source, request=request, model_facts=model_facts, inputs=inputs
    )
    return write_report(run)


# -- which layers, and what the result depends on ------------------------------------------------------------------


def tapped_layers(
    model: "nn.Module", source: "Source", patterns: Sequence[str], *, device: "torch.device"
) -> list["LayerInfo"]:
    """The layers to record, each call of a layer that runs several times on its own; fails before the long pass."""
    from pellucid.taps import activation_layers, find_layers, layers

    names = find_layers(model, patterns) if patterns else activation_layers(model)
    if not names:
        raise DataError(
            f"{type(model).__name__} has no activation modules to tap by default; name layers with --layers "
            "(`pellucid layers` lists them)"
        )
    first = next(source.batches(2), None)
    if first is None:
        raise DataError(f"none of the first examples of {source.name} can be read")
    wanted = set(names)
    rows = layers(model, first.inputs.to(device))
    found = [row for row in rows if wanted & {row.name, row.name.partition("#")[0]} and row.units > 0]
    if not found:
        raise DataError(
            f"none of {sorted(wanted)} has units: each runs never, or its output is not one tensor of units"
        )
    return found


def what_it_depends_on(
    request: Request, source: "Source", infos: Sequence["LayerInfo"], model_facts: Mapping[str, Any]
) -> dict[str, str]:
    """Hashes of everything that changes the result; a stored result with others is stale."""
    from pellucid import __version__
    from pellucid.methods.selectivity import VERSION
    from pellucid.store import digest

    preprocessing = [request.size, request.fit, model_facts["normalize"]]
    settings = [
        request.top,
        request.negative,
        request.count_non_finite,
        request.skip_unreadable,
        request.seed,
    ]
    return {
        "weights": model_facts["weights_hash"],
        "layers": digest([info.name for info in infos]),
        "preprocessing": digest(preprocessing),
        "data": source.fingerprint(),
        "settings": digest(settings),
        "version": f"{__version__}/selectivity-{VERSION}",
    }


def open_run(out: Path, request: Request, inputs: Mapping[str, str]) -> "Run":
    """The run folder, made or found again."""
    from pellucid.store import Run

    if (out / "run.json").exists():
        return Run.open(out)
    facts = {"job": "inspect", "recipe": dc.asdict(request), "seed": request.seed, "inputs": dict(inputs)}
    return Run.create(out, facts)
