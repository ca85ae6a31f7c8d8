"""The metrics that judge: by name, from the user's files, trained here on the user's images, calibrated by a study.

The ladder of the specification (section 6). Which rung a metric stands on is printed and stored with every score.
"""

import csv
import dataclasses as dc
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid._checks import ConfigError, DataError, check_one_of
from pellucid.jobs.progress import progress, say

if TYPE_CHECKING:
    import torch

    from pellucid.data import Source
    from pellucid.evals.alignment_committee import Member
    from pellucid.jobs.align_runs import Entry

LEAST_TARGETS = 4
FREE_NAMES = ("ssim", "ms-ssim", "lab", "gradient", "laplacian")
WEIGHT_FREE_RUNG = "weight-free"


@dc.dataclass(frozen=True)
class Ladder:
    """Which metrics were asked for."""

    metrics: tuple[str, ...] = FREE_NAMES
    trunk: str | None = None
    trunk_weights: Path | None = None
    trunk_stages: tuple[str, ...] = ()
    heads: Path | None = None
    self_trained: int = 0
    trunk_data: str | None = None
    trunk_epochs: int = 10
    answers: Path | None = None


@dc.dataclass(frozen=True)
class Judges:
    """The members of the committee, and what is known of those with weights."""

    members: tuple["Member", ...]
    about: tuple[dict[str, Any], ...]


def check_ladder(ladder: Ladder) -> None:
    """Everything that can be known to be wrong before any work."""
    from pellucid.evals.trunk import REPLICATES

    if len(set(ladder.metrics)) != len(ladder.metrics):
        raise ConfigError(f"--metrics names one metric twice: {', '.join(ladder.metrics)}")
    for name in ladder.metrics:
        check_one_of(name, FREE_NAMES, "--metrics")
    if ladder.trunk is None and (ladder.trunk_weights or ladder.heads or ladder.trunk_stages):
        raise ConfigError("--trunk-weights, --trunk-stages and --heads belong to a --trunk; name it")
    if 0 < ladder.self_trained < REPLICATES:
        raise ConfigError(f"--self-trained trains at least {REPLICATES} trunks, got {ladder.self_trained}")
    if ladder.answers is not None and ladder.trunk is None and not ladder.self_trained:
        raise ConfigError(
            "--answers calibrates the head of a trunk; name one with --trunk, or add --self-trained 3"
        )
    if not ladder.metrics and ladder.trunk is None and not ladder.self_trained:
        raise ConfigError("no metric to judge by; name some with --metrics")
    for file in (ladder.trunk_weights, ladder.heads, ladder.answers):
        if file is not None and not file.is_file():
            raise ConfigError(f"{file} is no file")
    if ladder.answers is not None:
        read_answers(ladder.answers)


def check_members(members: Sequence["Member"], targets: "torch.Tensor") -> None:
    """Every metric must be a distance on the targets before it judges anything.

    Raises:
        ConfigError: fewer than four targets, or a metric that breaks an axiom, with the option that leaves it out.
    """
    from pellucid.evals.alignment_committee import AXIOM_IMAGES
    from pellucid.evals.perceptual import check_axioms

    if len(targets) < LEAST_TARGETS:
        raise ConfigError(
            f"metrics are tried on at least {LEAST_TARGETS} targets before they judge, and these runs have {len(targets)}; "
            "invert more with --targets"
        )
    for member in members:
        failed = check_axioms(member.metric, targets[:AXIOM_IMAGES]).failed
        if failed:
            advice = (
                f"leave it out: --metrics {','.join(name for name in FREE_NAMES if name != member.name)}"
                if member.rung == WEIGHT_FREE_RUNG
                else "LPIPS needs calibrated, non-negative heads or weights of 1, and a trunk that sees these images"
            )
            raise ConfigError(
                f"metric {member.name!r} is no perceptual distance on these targets: it breaks {', '.join(failed)}; {advice}"
            )


def judges(ladder: Ladder, entries: Sequence["Entry"], out: Path, *, seed: int) -> Judges:
    """Every metric that was asked for, in the order of the ladder; each rung is printed.

    Metrics that need no training are tried on the targets before any trunk is trained.
    """
    from pellucid.evals.alignment_committee import Member
    from pellucid.evals.perceptual import WEIGHT_FREE
    from pellucid.jobs.align_runs import items_of

    targets = items_of(entries[0], entries[0].rows()).targets
    members: list[Member] = []
    about: list[dict[str, Any]] = []
    if ladder.trunk is not None:
        made, known = _users(ladder, entries)
        members.append(made)
        about.append(known)
    members += [Member(name, WEIGHT_FREE[name], WEIGHT_FREE_RUNG) for name in ladder.metrics]
    about += [{} for _ in ladder.metrics]
    check_members(members, targets)
    before = len(members)
    if ladder.self_trained:
        for member, known in _self_trained(ladder, entries, out, seed=seed):
            members.append(member)
            about.append(known)
    if ladder.answers is not None:
        member, known = _calibrated(ladder, entries, members, seed=seed)
        members.append(member)
        about.append(known)
    check_members(members[before:], targets)
    for member in members:
        say(f"metric {member.name}: {member.rung}{', a control' if member.control else ''}")
    return Judges(tuple(members), tuple(about))


def tested(entries: Sequence["Entry"]) -> set[str]:
    """Hashes of the weight tensors of every network under test."""
    return {str(text) for entry in entries for text in entry.facts.get("tensors", ())}


def _users(ladder: Ladder, entries: Sequence["Entry"]) -> tuple["Member", dict[str, Any]]:
    """Rung 1, or a control where the trunk has no weights: the user's own trunk and heads."""
    from pellucid.evals.perceptual import load_heads
    from pellucid.evals.trunk import KNOWN_STAGES, user_trunk
    from pellucid.recipe import open_model
    from pellucid.weights import apply_weights, load_weights

    assert ladder.trunk is not None
    trunk = open_model(ladder.trunk)
    name = ladder.trunk.partition(":")[2]
    stages = ladder.trunk_stages or KNOWN_STAGES.get(name, ())
    if not stages:
        raise ConfigError(
            f"say which layers of {ladder.trunk} are the stages, with --trunk-stages; known are those of {list(KNOWN_STAGES)}"
        )
    if ladder.trunk_weights is not None:
        apply_weights(trunk, load_weights(ladder.trunk_weights))
    else:
        say(f"no --trunk-weights: {ladder.trunk} is untrained, so its column is a control and judges nothing")
    heads = None if ladder.heads is None else load_heads(ladder.heads)
    kind = "baseline" if heads is None else "calibrated"
    member = user_trunk(
        trunk, stages, heads=heads, trained=ladder.trunk_weights is not None, name=f"LPIPS {name}, {kind}",
        tested=tested(entries),
    )  # fmt: skip
    known = {"trunk": ladder.trunk, "stages": list(stages)}
    for key, file in (("trunk_sha256", ladder.trunk_weights), ("heads_sha256", ladder.heads)):
        known[key] = "" if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
    return member, known


def _self_trained(
    ladder: Ladder, entries: Sequence["Entry"], out: Path, *, seed: int
) -> list[tuple["Member", dict[str, Any]]]:
    """Rungs 3 and 4: trunks trained on the user's images, and one that is not trained, as a control."""
    from pellucid.evals.alignment_committee import Member
    from pellucid.evals.trunk import contrastive, members_of, self_trained, untrained

    source = _training_images(ladder, entries)
    labelled = source.targets is not None and len(source.classes) > 1
    how = "by their labels" if labelled else "by contrast, without labels"
    say(f"training {ladder.self_trained} small trunks on {len(source):,} images of {source.name}, {how}")
    with progress("training steps") as report:
        made = (self_trained if labelled else contrastive)(
            source, replicates=ladder.self_trained, epochs=ladder.trunk_epochs, tested=tested(entries), seed=seed,
            checkpoint=out / "training", progress=report,
        )  # fmt: skip
    known = {
        "data": source.fingerprint(), "epochs": ladder.trunk_epochs, "images": len(source), "trained": how,
    }  # fmt: skip
    found = [
        (m, {**known, "loss": t.loss, "replicate": t.replicate})
        for m, t in zip(members_of(made), made, strict=True)
    ]
    control = untrained(source, seed=seed)
    return [
        *found,
        (
            Member(control.name, control, control.rung, control=True, fingerprint=control.fingerprint),
            {"trained on": "nothing"},
        ),
    ]


def _training_images(ladder: Ladder, entries: Sequence["Entry"]) -> "Source":
    """The training part of the runs' data, with its labels where a file gave them, or what `--trunk-data` names."""
    from pellucid.data import open_source
    from pellucid.preprocess import parse_size

    data, request = entries[0].run.facts("data"), entries[0].run.header.get("opened", {}).get("request") or {}
    labels = None if ladder.trunk_data else request.get("labels")
    return open_source(
        ladder.trunk_data or str(data["spec"]),
        split="train",
        size=parse_size(data.get("size")),
        fit=data.get("fit") or "crop",
        labels=None if labels is None else Path(labels),
        skip_unreadable=bool(request.get("skip_unreadable", False)),
    )


def _calibrated(
    ladder: Ladder, entries: Sequence["Entry"], members: Sequence["Member"], *, seed: int
) -> tuple["Member", dict[str, Any]]:
    """Rung 5: a head fitted to people's answers about items of these runs."""
    import torch

    from pellucid.evals.alignment_committee import Member
    from pellucid.evals.heads import calibrate_heads
    from pellucid.evals.perceptual import DeepDistance
    from pellucid.jobs.align_runs import items_of

    base = next((m.metric for m in members if isinstance(m.metric, DeepDistance) and not m.control), None)
    if base is None:
        raise ConfigError(
            "--answers needs a trunk with weights: --trunk with --trunk-weights, or --self-trained 3"
        )
    assert ladder.answers is not None
    chose, counts = read_answers(ladder.answers)
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    ids: list[str] = []
    groups: list[int] = []
    for entry in entries:
        rows = np.array([r for r in entry.rows() if str(entry.table["item"][r]) in chose], dtype=int)
        if len(rows):
            items = items_of(entry, rows)
            parts.append((items.results, items.targets[items.target], items.starts))
            ids += [str(name) for name in entry.table["item"][rows]]
            groups += [int(i) for i in entry.table["target"][rows]]
    if not ids:
        raise DataError(f"{ladder.answers} has answers to none of the items of these runs")
    found = calibrate_heads(
        base, *(torch.cat(column) for column in zip(*parts, strict=True)),
        chose=np.array([chose[i] for i in ids]), answers=np.array([counts[i] for i in ids]), groups=np.array(groups),
        seed=seed,
    )  # fmt: skip
    known = {
        "agreement": found.agreement, "baseline": found.baseline, "ceiling": found.ceiling, "items": found.items,
        "answers": found.answers,
    }  # fmt: skip
    say(
        f"calibrated on {found.answers} answers to {found.items} items: agreement {found.agreement:.2f} on items left out "
        f"(weights of 1: {found.baseline:.2f}, ceiling {found.ceiling:.2f})"
    )
    metric: DeepDistance = found.metric
    return Member(metric.name, metric, metric.rung, fingerprint=metric.fingerprint), known


def read_answers(file: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Share of people who picked the target, and number of answers, by item.

    The CSV has a row for each answer with the columns `item` and `chose_target` (1 or 0); a run's name before the item,
    as "run:item", is taken off.

    Raises:
        DataError: columns that are missing, or an answer that is neither 0 nor 1.
    """
    seen: dict[str, list[int]] = {}
    with file.open(newline="", encoding="utf-8") as opened:
        rows = csv.DictReader(opened)
        if not {"item", "chose_target"} <= set(rows.fieldnames or ()):
            raise DataError(
                f"{file} needs the columns item and chose_target; it has {list(rows.fieldnames or ())}"
            )
        for number, row in enumerate(rows, start=2):
            answer = {"1": 1, "0": 0, "true": 1, "false": 0}.get(str(row["chose_target"]).strip().lower())
            if answer is None:
                raise DataError(f"{file}, line {number}: chose_target is 1 or 0, got {row['chose_target']!r}")
            seen.setdefault(str(row["item"]).rpartition(":")[2], []).append(answer)
    return {k: sum(v) / len(v) for k, v in seen.items()}, {k: len(v) for k, v in seen.items()}
