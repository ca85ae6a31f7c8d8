"""The network and the images that a finished run, or the options of a command, stand for."""

import dataclasses as dc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid._checks import ConfigError, StaleResultError
from pellucid.jobs.inspect import Request

if TYPE_CHECKING:
    from torch import nn

    from pellucid.data import Source
    from pellucid.jobs.opening import Opened
    from pellucid.methods.decode import Decodable
    from pellucid.store import Run


@dc.dataclass(frozen=True)
class Subject:
    """A network, its labelled images, and what a page says about both. `looks` is how images are made ready.

    `decodable` holds the network with its generator where there is one: a run of trace, or a builder that returns it.
    """

    model: "nn.Module"
    source: "Source"
    facts: Mapping[str, Any]
    looks: tuple[str | None, str]
    spec: str
    split: str
    decodable: "Decodable | None" = None


def subject_of_options(request: Request) -> Subject:
    """What `--model`, `--weights`, `--data` and the rest name."""
    from pellucid.jobs.opening import open_data, open_network

    opened = open_network(request.model, request.weights, normalize=request.normalize)
    source, _ = open_data(request)
    model, decodable = _taken_apart(opened)
    looks = (request.size, request.fit)
    return Subject(model, source, opened.facts, looks, request.data, request.split, decodable)


def _taken_apart(opened: "Opened") -> "tuple[nn.Module, Decodable | None]":
    """The classifier, and what decodes it where the builder returned both: a generator is no layer of a classifier."""
    from pellucid.jobs.evaluate_own import decodable_of

    found = decodable_of(opened.model, normalized=opened.facts["normalize"] is not None)
    return (opened.model, None) if found is None else (found.model, found)


def subject_of_run(run: "Run", *, weights: Path | None, data: str | None) -> Subject:
    """The network and the images of a run, rebuilt from its recipe.

    Args:
        weights, data: where they lie now, if they were moved since; they must be the same ones.

    Raises:
        ConfigError: a run that trained or inspected no network, or an unfinished one.
        StaleResultError: weights or images are not those of the run.
    """
    job = run.header.get("job")
    if job == "train":
        found = _trained(run, weights, data)
    elif job in ("inspect", "evaluate", "backtrack", "edit"):
        found = _inspected(run, weights, data)
    elif job == "demo":
        found = _demonstrated(run, weights, data)
    elif job == "trace":
        found = _traced(run, weights, data)
    else:
        raise ConfigError(
            f"{run.path} was made by {job!r}, which keeps no network to evaluate; expected a run of train, inspect, demo, "
            "trace, evaluate, backtrack or edit, or --model with --data and --out"
        )
    _same(run, found)
    return found


def _trained(run: "Run", weights: Path | None, data: str | None) -> Subject:
    from pellucid.data import open_source
    from pellucid.preprocess import parse_size
    from pellucid.recipe import Recipe
    from pellucid.recipe.build import build_model

    recipe = Recipe.model_validate(run.header["recipe"])
    part, classes = recipe.data, run.facts("classes")["classes"] if run.has("classes") else ()
    spec, split = data or part.test or part.spec, part.test_split
    if split == "none":
        if data is None:
            raise ConfigError(
                f"{run.path} was trained without test images; name images to evaluate it on with --data"
            )
        split = "test"
    source = open_source(
        spec, split=split, size=parse_size(part.size), fit=part.fit, channels=part.channels, class_map=part.class_map,
        labels=part.labels, skip_unreadable=part.skip_unreadable, seed=recipe.train.seed, workers=part.workers,
    )  # fmt: skip
    bare = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": None})})
    model = build_model(bare, classes=len(classes or source.classes) or None, images=source)
    size = None if part.size is None else str(part.size)
    return Subject(model, source, _own_weights(run, model, weights), (size, part.fit), spec, split)


def _demonstrated(run: "Run", weights: Path | None, data: str | None) -> Subject:
    from pellucid.data import open_source
    from pellucid.jobs.demo_network import demo_network

    model = demo_network(int(run.header.get("seed", 0)))
    source = open_source(data or "digits", split="test")
    return Subject(model, source, _own_weights(run, model, weights), (None, "crop"), "digits", "test")


def _inspected(run: "Run", weights: Path | None, data: str | None) -> Subject:
    return subject_of_options(Request(**_options(run, Request, weights, data)))


def _traced(run: "Run", weights: Path | None, data: str | None) -> Subject:
    """The network of a run of trace, with the generator that the run trained or was given."""
    import torch

    from pellucid.jobs.opening import open_data, open_network
    from pellucid.jobs.trace import GENERATOR, TraceRequest, open_decodable

    request, given = TraceRequest(**_options(run, TraceRequest, weights, data)), run.path / GENERATOR
    request = dc.replace(request, generator=given if given.exists() else request.generator)
    if request.generator is None:
        raise ConfigError(
            f"{run.path} has no {GENERATOR}: its training is not finished; run the command that made it again, then evaluate"
        )
    opened = open_network(request.model, request.weights, normalize=request.normalize)
    source, _ = open_data(request)
    decodable = open_decodable(request, opened, source, device=torch.device("cpu"))
    looks = (request.size, request.fit)
    return Subject(opened.model, source, opened.facts, looks, request.data, request.split, decodable)


def _options(run: "Run", kind: type[Any], weights: Path | None, data: str | None) -> dict[str, Any]:
    """The options that a run was made with, weights and data where they lie now, on any device."""
    fields = {field.name: run.header["recipe"].get(field.name, field.default) for field in dc.fields(kind)}
    for name in ("weights", "class_map", "labels", "generator"):
        if fields.get(name) is not None:
            fields[name] = Path(fields[name])
    fields["layers"] = tuple(fields["layers"])
    moved = {"weights": weights or fields["weights"], "data": data or fields["data"], "device": None}
    return {**fields, **moved}


def _own_weights(run: "Run", model: "nn.Module", weights: Path | None) -> Mapping[str, Any]:
    """Load the weights that the run trained; what its page says about the network."""
    from pellucid.jobs.train import WEIGHTS
    from pellucid.weights import apply_weights, load_weights, weights_hash

    file = weights or run.path / WEIGHTS
    if not file.exists():
        raise ConfigError(
            f"{run.path} has no {WEIGHTS}: its training is not finished; run the command that made it again, then evaluate"
        )
    apply_weights(model, load_weights(file))
    model.eval()
    facts = run.facts("model") if run.has("model") else {"normalize": None}
    return {**facts, "weights_hash": weights_hash(model)}


def _same(run: "Run", found: Subject) -> None:
    """A page that joins numbers of two networks, or of two sets of images, would be wrong without looking wrong."""
    if run.has("model") and run.facts("model")["weights_hash"] != found.facts["weights_hash"]:
        raise StaleResultError(
            f"the weights are not those that {run.path} was made with (its page names {run.facts('model')['weights']!r}): "
            "say where they lie now with --weights, or evaluate these with --model, --data and --out"
        )
    if run.has("data") and run.facts("data")["fingerprint"] != found.source.fingerprint():
        raise StaleResultError(
            f"{found.source.name} is not the data that {run.path} was made with: say where it lies now with --data, or "
            "evaluate on this data with --model, --data and --out"
        )
