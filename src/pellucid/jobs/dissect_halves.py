"""Pass 1 of `pellucid dissect`, kept in the run: images that descriptions are chosen on, and images that test them."""

import dataclasses as dc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from pellucid._checks import StaleResultError
from pellucid.data import Source
from pellucid.jobs.progress import progress, say
from pellucid.methods.dissect import VERSION, Collected, collect
from pellucid.methods.lwta import LWTA
from pellucid.rng import rng
from pellucid.store import Run, digest
from pellucid.taps import Tap
from pellucid.taps.find import get_layer, split_call

if TYPE_CHECKING:
    from pellucid.jobs.dissect import Prepared
    from pellucid.jobs.dissect_encoder import Sight

Found = TypeVar("Found")
FEWEST_HELD_OUT = 30  # images; fewer say nothing about a correlation


@dc.dataclass(frozen=True, eq=False)
class Halves:
    """Pass 1 over both parts. `index` says which images of the source are in each."""

    chosen_on: Collected
    held_out: Collected | None
    index: Mapping[str, Int64[Tensor, " images"]]
    sight: "Sight"


def collection_of(run: Run, source: Source, prepared: "Prepared") -> dict[str, str]:
    """Hashes of everything pass 1 depends on; those of the network are the run's own."""
    from pellucid import __version__
    from pellucid.jobs.dissect_encoder import fingerprint_of

    asked = prepared.asked
    header = run.header.get("inputs", {})
    known = {key: str(header[key]) for key in ("model", "preprocessing") if key in header}
    return {
        **known,
        "weights": str(run.facts("model")["weights_hash"]),
        "layers": digest(list(layer_names(run))),
        "data": str(run.facts("data")["fingerprint"]),
        "encoder": fingerprint_of(prepared.opened, prepared.concepts),
        "images": digest([len(source), asked.held_out, asked.seed, most_kept(source, prepared)]),
        "version": f"{__version__}/dissect-{VERSION}",
    }


def layer_names(run: Run) -> tuple[str, ...]:
    """The layers whose units the run holds, in its order."""
    return tuple(str(name) for name in run.table("layers")["layer"])


def most_kept(source: Source, prepared: "Prepared") -> tuple[int, bool]:
    """How many of each unit's strongest images pass 1 keeps, and whether it keeps all responses."""
    from pellucid.jobs.dissect import RANK_SHARE

    asked = prepared.asked
    share = int(RANK_SHARE * len(source)) + 1 if asked.similarity == "rank-reorder" else 0
    return max(asked.listed, 100, share), asked.similarity == "cosine-cubed"


def held_out_of(images: int, share: float) -> int:
    """How many images are held out; none where one of the parts would be too small."""
    held = round(images * share)
    return held if min(held, images - held) >= FEWEST_HELD_OUT else 0


def parts_of(source: Source, share: float, seed: int) -> dict[str, Int64[Tensor, " images"]]:
    """Two random parts of the images, in the order of the source; the second is empty where it would be too small."""
    n = len(source)
    held = held_out_of(n, share)
    if share and not held:
        say("too few images to hold some out: descriptions are not tested")
    order = torch.randperm(n, generator=rng(seed, "dissect", "held out"))
    return {"held_out": order[:held].sort().values, "chosen_on": order[held:].sort().values}


def collect_halves(
    run: Run, model: nn.Module, source: Source, *, prepared: "Prepared", inputs: Mapping[str, str]
) -> Halves:
    """Read both parts, or find them in the run; a killed pass goes on from where it was saved."""
    from pellucid.jobs.dissect_encoder import look_with

    asked = prepared.asked
    index = parts_of(source, asked.held_out, asked.seed)
    sight = look_with(
        prepared.opened, prepared.concepts, source, spec=prepared.spec, run=run,
        batch_size=asked.batch_size, again=asked.again,
    )  # fmt: skip

    def collected(part: str) -> Collected:
        return _collected(
            run, model, source, part=part, index=index[part], sight=sight, prepared=prepared, inputs=inputs
        )

    chosen_on = collected("chosen_on")
    return Halves(chosen_on, collected("held_out") if len(index["held_out"]) else None, index, sight)


def blocks_of(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """How many units of a layer compete for one place, of those layers whose units do; their winners are by argmax."""
    found = {name: get_layer(model, split_call(name)[0])[1] for name in names}
    return {name: layer.units for name, layer in found.items() if isinstance(layer, LWTA)}


def restarting(attempt: Callable[[], Found], partial: Path, *, again: bool) -> Found:
    """What `attempt` gives. A part of a pass over something else that a kill left behind is dropped where that was asked for.

    Raises:
        StaleResultError: there is such a part, and `again` was not given.
    """
    try:
        return attempt()
    except StaleResultError as error:
        if not again:
            raise StaleResultError(f"{error}; --again does that") from None
    say("the pass that was interrupted here read something else; starting again")
    partial.unlink(missing_ok=True)
    return attempt()


def _collected(
    run: Run,
    model: nn.Module,
    source: Source,
    *,
    part: str,
    index: Tensor,
    sight: "Sight",
    prepared: "Prepared",
    inputs: Mapping[str, str],
) -> Collected:
    name = f"dissection.{part}"
    try:
        if run.has(name, inputs=inputs):
            return Collected.from_dict(run.load(name))
    except StaleResultError as error:
        if not prepared.asked.again:
            raise StaleResultError(f"{error}; --again replaces what is there") from None
    images = sight.images[index] if isinstance(sight.images, Tensor) else sight.images
    keep, responses = most_kept(source, prepared)
    partial = run.path / f"{name}.safetensors"
    blocks = blocks_of(model, layer_names(run))

    def attempt() -> Collected:
        with progress(f"images read ({part.replace('_', ' ')})") as report:
            return collect(
                model, source.take(index), {layer: Tap(layer) for layer in layer_names(run)}, images,
                top_k=keep, keep_responses=responses, batch_size=prepared.asked.batch_size, device=prepared.device,
                checkpoint=partial, inputs=inputs, blocks=blocks, progress=report,
                facts={
                    "encoder": dict(sight.facts), "winners": "argmax" if blocks else None,
                    "pooling": "mean over places or tokens",
                },
            )  # fmt: skip

    found = restarting(attempt, partial, again=prepared.asked.again)
    found = dc.replace(found, encoder=str(sight.facts["name"]))
    run.save(name, found.to_dict(), inputs=inputs)
    partial.unlink(missing_ok=True)
    return found
