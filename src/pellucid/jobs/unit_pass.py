"""The one pass of `pellucid inspect`, and what of it goes into the run folder."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid._checks import StaleResultError
from pellucid.data import Batch, Source
from pellucid.evals.classify import wilson
from pellucid.jobs.inspect import Request
from pellucid.jobs.progress import progress, say
from pellucid.jobs.thumbs import save_thumbs
from pellucid.jobs.unit_tables import layer_table, measure_layers, top_table, unit_table
from pellucid.record import Recording, record
from pellucid.stats import ClassMoments, Covariance, Moments, Rates, Stat, TopExamples
from pellucid.store import Run
from pellucid.taps import LayerInfo, Tap

if TYPE_CHECKING:
    from pellucid.methods.selectivity.index import Policy

# A covariance is units x units in float64: 4,096 units are 134 MB a layer, and the page does not need more.
MOST_COVARIANCE_UNITS = 4096
SHOWN = 6  # top images on a unit's card; only these need thumbnails
PARTIAL = "recording.safetensors"  # the pass so far; gone once the tables are written
DECISIONS = "the model's decisions"  # key of the tap that gives logits; no layer is called like this


class Decisions:
    """A statistic of the model's output: the class that wins for each example. Four bytes an example, -1 unseen."""

    def __init__(self, source: Source) -> None:
        self.class_map = source.class_map
        self.decision = torch.full((len(source),), -1, dtype=torch.int32)

    def update(self, values: Float[Tensor, "batch outputs"], batch: Batch) -> None:
        scores = values if self.class_map is None else self.class_map.from_logits(values.float())
        self.decision[batch.index] = scores.argmax(1).cpu().int()

    def merge(self, other: "Decisions") -> None:
        self.decision = torch.maximum(self.decision, other.decision)

    def state(self) -> dict[str, Tensor]:
        return {"decision": self.decision.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.decision = state["decision"].clone()

    def result(self) -> Tensor:
        return self.decision.long()


def record_layers(
    model: nn.Module,
    source: Source,
    infos: Sequence[LayerInfo],
    decisions: Tap | None,
    *,
    request: Request,
    run: Run,
    inputs: Mapping[str, str],
    device: torch.device,
) -> Recording:
    """One pass over the source; its state is saved in the run every minute, and a killed pass goes on from there.

    Args:
        decisions: the tap of the model's logits; None where it has none that fit the data.
    """
    labelled = bool(source.classes)
    taps = {info.name: Tap(info.name) for info in infos}
    stats: dict[str, dict[str, Stat]] = {}
    for info in infos:
        stats[info.name] = {"moments": Moments(), "rates": Rates((0.0,)), "top": TopExamples(request.top)}
        if labelled:
            stats[info.name]["by_class"] = ClassMoments(len(source.classes))
        if info.units <= MOST_COVARIANCE_UNITS:
            stats[info.name]["covariance"] = Covariance()
    if decisions is not None:
        taps[DECISIONS] = decisions
        stats[DECISIONS] = {"decisions": Decisions(source)}

    # What only says how to go on after a bad sample may change between two attempts at the same pass.
    same_pass = {name: value for name, value in inputs.items() if name != "settings"}

    def attempt() -> Recording:
        with progress("images recorded") as report:
            return record(
                model,
                source,
                taps,
                stats,
                batch_size=request.batch_size,
                device=device,
                places=True,
                non_finite="count" if request.count_non_finite else "error",
                checkpoint=run.path / PARTIAL,
                inputs=same_pass,
                progress=report,
            )

    try:
        return attempt()
    except StaleResultError:
        say("the pass that was interrupted here had other settings; starting again")
        (run.path / PARTIAL).unlink()
        return attempt()


def write_tables(
    run: Run,
    recording: Recording,
    infos: Sequence[LayerInfo],
    *,
    source: Source,
    request: Request,
    model_facts: Mapping[str, Any],
    inputs: Mapping[str, str],
    total: int,
    accuracy_why: str,
) -> None:
    """Facts, tables, arrays and thumbnails; the units table last, because a run that has it is complete."""
    say("measuring and writing tables")
    measured = measure_layers(
        recording, infos, labelled=bool(source.classes), negative=policy(request.negative), seed=request.seed
    )
    decided = DECISIONS in recording
    unseen = torch.full((len(source),), -1)
    decisions = recording[DECISIONS]["decisions"] if decided else unseen
    run.save("model", model_facts, inputs=inputs)
    facts = data_facts(source, request, recording, fingerprint=inputs["data"])
    run.save("data", {**facts, "total": total, "accuracy_why": accuracy_why}, inputs=inputs)
    run.save("classes", {"classes": list(source.classes)}, inputs=inputs)
    if source.classes and (found := accuracy(source, decisions)):
        run.save("accuracy", found, inputs=inputs)
    top = top_table(measured)
    shown = dict.fromkeys(i for i, rank in zip(top["index"], top["rank"], strict=True) if rank < SHOWN)
    run.save_table("examples", example_table(run, source, list(shown), decisions), inputs=inputs)
    run.save_table("top", top, inputs=inputs)
    means = {layer.info.name: layer.stats["by_class"].mean for layer in measured if "by_class" in layer.stats}
    run.save("class_means", means, inputs=inputs)
    run.save_table("layers", layer_table(measured, recording.n), inputs=inputs)
    run.save_table("units", unit_table(measured, source.classes), inputs=inputs)
    (run.path / PARTIAL).unlink(missing_ok=True)


def policy(name: str) -> "Policy | None":
    """What to do with negative class means, by the name that the command line gives it."""
    from pellucid.methods.selectivity import absolute, rectify, shift_min

    return {"leave-out": None, "rectify": rectify, "abs": absolute, "shift-min": shift_min}[name]


def data_facts(source: Source, request: Request, recording: Recording, *, fingerprint: str) -> dict[str, Any]:
    """What a page says about the images; the fingerprint was taken before the pass, and reads every file."""
    return {
        "spec": request.data,
        "name": source.name,
        "n": recording.n,
        "classes": len(source.classes),
        "fingerprint": fingerprint,
        "split": request.split,
        "size": request.size,
        "fit": request.fit,
        "limit": request.limit,
        "labelled": bool(source.classes),
        "skipped": [list(entry) for entry in recording.skipped],
    }


def accuracy(source: Source, decisions: Tensor) -> dict[str, Any] | None:
    """Share of right decisions with its Wilson interval; None where nothing was decided or labelled."""
    targets = source.targets
    if targets is None:
        return None
    seen = decisions >= 0
    n, right = int(seen.sum()), int((decisions[seen] == targets[seen]).sum())
    if n == 0:
        return None
    low, high = wilson(right, n)
    return {"accuracy": right / n, "lo": low, "hi": high, "n": n}


def example_table(
    run: Run, source: Source, indices: Sequence[int], decisions: Tensor
) -> dict[str, list[Any]]:
    """One row for each example that some card shows: its name, its classes, and where its thumbnail lies."""
    thumbs = save_thumbs(run, source, indices)
    targets = source.targets
    names = source.class_map.names if source.class_map is not None else source.classes

    def called(target: int) -> str:
        return names[target] if 0 <= target < len(names) else ""

    def place(i: int, what: str) -> int:
        return getattr(thumbs[i], what) if i in thumbs else -1

    return {
        "index": list(indices),
        "name": [str(source.names[i]) if source.names is not None else f"{source.name} {i}" for i in indices],
        "target": [called(int(targets[i])) if targets is not None else "" for i in indices],
        "predicted": [called(int(decisions[i])) for i in indices],
        **{what: [place(i, what) for i in indices] for what in ("sheet", "x", "y", "w", "h")},
    }
