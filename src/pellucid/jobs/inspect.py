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
    from pellucid.jobs.standing import nothing_left_behind

    check_one_of(request.negative, NEGATIVE, "--negative")
    check_run_folder(out)
    device = open_device(request.device)
    opened = open_network(request.model, request.weights, normalize=request.normalize)
    source, total = open_data(request)
    with nothing_left_behind(out):
        return inspect_model(
            opened.model, source, out, request=request, model_facts=opened.facts, device=device, total=total
        )


def inspect_model(
    model: "nn.Module",
    source: "Source",
    out: Path,
    *,
    request: Request,
    model_facts: Mapping[str, Any],
    device: "torch.device",
    job: str = "inspect",
    total: int | None = None,
) -> Path:
    """Record the layers of an opened model over an opened source and write the run and its pages.

    A run that is complete for the same model, weights, layers, preprocessing, data and version is not computed again;
    one that was interrupted goes on where its pass was saved.

    Args:
        job: the command whose run this is; `demo` and `train` have made theirs already.
        total: how many examples the data has, where `source` is a part of them.
    """
    from pellucid.jobs.standing import check_same, open_run, space_needed
    from pellucid.jobs.tapping import decision_tap, tapped_layers
    from pellucid.jobs.unit_pass import SHOWN, record_layers, write_tables
    from pellucid.report import write_report
    from pellucid.store import check_writable

    if len(source) == 0:
        raise DataError(f"{source.name} has no examples")
    model.to(device)
    infos = tapped_layers(model, source, request.layers, device=device)
    decisions = decision_tap(model, source, device=device)
    check_writable(out, needed=space_needed(infos, len(source), shown=SHOWN))
    units = sum(info.units for info in infos)
    say(f"{len(infos)} layers, {units:,} units, {len(source):,} examples of {source.name}")
    inputs = what_it_depends_on(request, source, infos, model_facts, model=model)
    recipe = dc.asdict(request)
    facts = {"recipe": recipe, "seed": request.seed, "inputs": inputs}
    run = open_run(out, job, facts)
    if "units" in run.table_names():
        if job == "inspect":
            check_same(run, recipe, inputs)
        if run.has("units", inputs=inputs):
            say("the run is complete; its pages are written again from its tables")
            return write_report(run)
    if job == "inspect":
        run.annotate(facts)  # an attempt that failed before may have been another one
    recording = record_layers(
        model, source, infos, decisions[0], request=request, run=run, inputs=inputs, device=device
    )
    write_tables(
        run, recording, infos, source=source, request=request, model_facts=model_facts, inputs=inputs,
        total=total or len(source), accuracy_why=decisions[1],
    )  # fmt: skip
    return write_report(run)


def what_it_depends_on(
    request: Request,
    source: "Source",
    infos: Sequence["LayerInfo"],
    model_facts: Mapping[str, Any],
    *,
    model: "nn.Module",
) -> dict[str, str]:
    """Hashes of everything that changes the result; a stored result with others is stale."""
    from pellucid import __version__
    from pellucid.jobs.standing import model_code
    from pellucid.methods.selectivity import VERSION
    from pellucid.store import digest

    preprocessing = [request.size, request.fit, model_facts["normalize"]]
    settings = [
        request.top, request.negative, request.count_non_finite, request.skip_unreadable, request.seed,
    ]  # fmt: skip
    return {
        "model": model_code(model, request.model, infos),
        "weights": model_facts["weights_hash"],
        "layers": digest([info.name for info in infos]),
        "preprocessing": digest(preprocessing),
        "data": source.fingerprint(),
        "settings": digest(settings),
        "version": f"{__version__}/selectivity-{VERSION}",
    }
