"""Open what a command names: a model with its weights and normalisation, a data source, a device, a run folder."""

import dataclasses as dc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pellucid.data import Source


@dc.dataclass(frozen=True)
class Opened:
    """A model ready to run on images in [0, 1], and what a page must say about it."""

    model: "nn.Module"
    facts: dict[str, Any]


def open_device(name: str | None) -> "torch.device":
    """The named device, or the accelerator where there is one; `ConfigError` lists what there is."""
    import torch
    from torch import nn

    from pellucid.record.ranks import choose_device

    if name is None:
        name = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    return choose_device(name, nn.Identity())


def open_network(spec: str, weights: Path | None, *, normalize: str, classes: int | None = None) -> Opened:
    """Build the model, load weights without executing code, and put its normalisation before its first layer."""
    from pellucid.preprocess import normalize as add_normalize
    from pellucid.preprocess import parse_normalize
    from pellucid.recipe import open_model
    from pellucid.weights import apply_weights, load_weights, weights_hash

    statistics = parse_normalize(normalize)
    model = open_model(spec, classes=classes)
    notes: list[str] = []
    upcast = False
    if weights is not None:
        report = apply_weights(model, load_weights(weights))
        notes += list(report.notes)
        upcast = report.upcast
    hashed = weights_hash(model)
    model.eval()
    if statistics is not None:
        add_normalize(model, *statistics)
    facts = {
        "spec": spec,
        "name": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": None if weights is None else weights.name,
        "weights_hash": hashed,
        "trained": weights is not None,
        "upcast": upcast,
        "normalize": None
        if statistics is None
        else {"mean": list(statistics[0]), "std": list(statistics[1])},
        "notes": notes,
    }
    return Opened(model, facts)


def check_run_folder(path: Path) -> None:
    """Fail before long work when the run folder cannot be written."""
    from pellucid.store import check_writable

    check_writable(path)


def open_data(request: "DataRequest") -> tuple["Source", int]:
    """The source that the options of a command name, and how many examples the whole of it has."""
    import torch

    from pellucid.data import open_source
    from pellucid.preprocess import parse_size
    from pellucid.rng import rng

    drawn = request.data.partition("?")[0] == "shapes"  # has as many examples as it is asked for
    source = open_source(
        request.data,
        split=request.split,
        size=parse_size(request.size),
        fit=request.fit,
        class_map=request.class_map,
        labels=request.labels,
        skip_unreadable=request.skip_unreadable,
        length=request.limit if drawn else None,
        seed=request.seed,
        workers=request.workers,
    )
    total = len(source)
    if request.limit is not None and request.limit < total:
        chosen = torch.randperm(total, generator=rng(request.seed, "limit"))[: request.limit]
        source = source.take(chosen.sort().values)
    return source, total


class DataRequest(Protocol):
    """The options that say which images, and how they are made ready."""

    @property
    def data(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def size(self) -> str | None: ...
    @property
    def fit(self) -> str: ...
    @property
    def class_map(self) -> Path | None: ...
    @property
    def labels(self) -> Path | None: ...
    @property
    def skip_unreadable(self) -> bool: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def workers(self) -> int: ...
