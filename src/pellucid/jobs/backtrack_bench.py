"""What `backtrack` and `edit` work on: a run or a checkpoint, opened, with some of its images."""

import dataclasses as dc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid._checks import ConfigError, DataError, StaleResultError
from pellucid.jobs.evaluate import chosen_images, save_facts
from pellucid.jobs.inspect import Request

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pellucid.data import Source
    from pellucid.jobs.subject import Subject
    from pellucid.store import Run


@dc.dataclass(frozen=True)
class Opening:
    """Where the network and the images come from: a run, or the options of a command and a folder to write."""

    run: Path | None = None
    request: Request | None = None
    out: Path | None = None
    weights: Path | None = None
    data: str | None = None


@dc.dataclass(frozen=True)
class Bench:
    """An opened network, the images it is looked at with, and the run that results go to."""

    run: "Run"
    subject: "Subject"
    source: "Source"
    images: "Tensor"
    device: "torch.device"
    inputs: dict[str, str]


def opening_of_options(
    run: Path | None,
    *,
    model: str | None,
    weights: Path | None,
    data: str | None,
    out: Path | None,
    split: str,
    size: str | None,
    fit: str,
    normalize: str,
    class_map: Path | None,
    labels: Path | None,
    skip_unreadable: bool,
    seed: int,
) -> Opening:
    """What the options name: a run, whose weights and data may have moved, or a network with images and a folder.

    Raises:
        ConfigError: neither, or both, or an option that the run was made with and that would change nothing now.
    """
    if run is not None and model is None and out is None:
        asked = {
            "--split": split != "test", "--size": size is not None, "--fit": fit != "crop", "--normalize": normalize != "none",
            "--class-map": class_map is not None, "--labels": labels is not None, "--skip-unreadable": skip_unreadable,
        }  # fmt: skip
        if given := [name for name, there in asked.items() if there]:
            raise ConfigError(
                f"not with a run: {', '.join(given)}; its images are made ready as they were for it, so leave that out or use "
                "--model, --data and --out"
            )
        return Opening(run=run, weights=weights, data=data)
    if run is not None or model is None or data is None or out is None:
        raise ConfigError("name a run, or a network and images with --model, --data and --out, but not both")
    request = Request(
        model=model, weights=weights, data=data, split=split, size=size, fit=fit, normalize=normalize,
        class_map=class_map, labels=labels, skip_unreadable=skip_unreadable, seed=seed,
    )  # fmt: skip
    return Opening(request=request, out=out)


def open_bench(opening: Opening, *, job: str, images: int, seed: int, device: str | None) -> Bench:
    """Open everything, check that it can be worked on, and make the run folder where there is none.

    Raises:
        ConfigError: neither a run nor a network with a folder; a folder that cannot be written.
        DataError: the data are no images.
        StaleResultError: the folder is a run of another network or other images.
    """
    import torch

    from pellucid.jobs.opening import check_run_folder, open_device
    from pellucid.jobs.subject import subject_of_options, subject_of_run
    from pellucid.store import Run

    chosen_device = open_device(device)
    if opening.run is not None:
        run = Run.open(opening.run)
        check_run_folder(opening.run)
        subject = subject_of_run(run, weights=opening.weights, data=opening.data)
    elif opening.request is not None and opening.out is not None:
        check_run_folder(opening.out)
        subject = subject_of_options(opening.request)
        run = _run_of(opening.out, subject, opening.request, job=job)
    else:
        raise ConfigError("name a run, or a network and images with --model, --data and --out")
    source = chosen_images(subject.source, images, seed=seed)
    pictures = torch.cat([batch.inputs for batch in source.batches(256)])
    if pictures.ndim != 4:
        raise DataError(f"{source.name}: expected images, but an example is {tuple(pictures.shape[1:])}")
    subject.model.to(chosen_device).eval()
    if not run.has("model"):
        save_facts(run, subject, measured=len(subject.source))
    return Bench(run, subject, source, pictures.to(chosen_device), chosen_device, _inputs(subject, source))


def names_of(source: "Source", count: int) -> list[str]:
    """What pages call the first images: their file names where there are some."""
    if source.names is not None:
        return [str(name) for name in source.names[:count]]
    return [f"image {i}" for i in range(min(count, len(source)))]


def class_name(classes: Sequence[str], number: int) -> str:
    """A class in words; its number where the network has more outputs than the data has classes."""
    return classes[number] if number < len(classes) else f"output {number}"


def finished(run: "Run", name: str, inputs: dict[str, str], *, again: bool) -> bool:
    """Whether a result with these inputs is there; with `again`, an older one is replaced and never stands in the way."""
    if again:
        return False
    try:
        return run.has(name, inputs=inputs)
    except StaleResultError as error:
        raise StaleResultError(f"{error}; or replace it with --again") from None


def _run_of(out: Path, subject: "Subject", request: Request, *, job: str) -> "Run":
    from pellucid.store import Run

    if not (out / "run.json").exists():
        return Run.create(out, {"job": job, "recipe": dc.asdict(request), "seed": request.seed})
    run = Run.open(out)
    for facts, key, now in (
        ("model", "weights_hash", subject.facts["weights_hash"]),
        ("data", "fingerprint", subject.source.fingerprint()),
    ):
        if run.has(facts) and run.facts(facts).get(key) != now:
            raise StaleResultError(f"{out} is a run of another {facts}: choose another --out")
    return run


def _inputs(subject: "Subject", source: "Source") -> dict[str, str]:
    from pellucid import __version__
    from pellucid.store import digest

    facts: dict[str, Any] = dict(subject.facts)
    return {
        "weights": facts["weights_hash"],
        "preprocessing": digest([*subject.looks, facts["normalize"]]),
        "data": source.fingerprint(),
        "version": __version__,
    }
