"""`pellucid align`: do the images that networks cannot tell from their targets look like them? Several networks compared."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid._checks import ConfigError
from pellucid.jobs.align_metrics import Judges, Ladder
from pellucid.jobs.align_runs import Entry
from pellucid.jobs.progress import progress, say

if TYPE_CHECKING:
    from pellucid.evals.alignment_committee import Judgement
    from pellucid.store import Run

JOB = "align"
FACTS = "aligned"
TRIPLES = 200


@dc.dataclass(frozen=True)
class Alignment:
    """What `pellucid align` was asked for; kept in the run as its recipe."""

    runs: tuple[Path, ...]
    names: tuple[str, ...] = ()
    ladder: Ladder = dc.field(default_factory=Ladder)
    triples: int = TRIPLES
    stir: bool = False
    batch_size: int = 64
    device: str | None = None
    seed: int = 0


@dc.dataclass(frozen=True)
class Judged:
    """One run under every metric; `curves` by tolerance of its constrained adversary."""

    entry: Entry
    judgements: tuple["Judgement", ...]
    curves: Mapping[float, tuple["Judgement", ...]]


def run_align(asked: Alignment, out: Path) -> Path:
    """Do everything that `pellucid align` does; the path of the page.

    A comparison that is complete for the same runs, metrics and settings is not computed again.
    """
    from pellucid.jobs.align_metrics import check_ladder
    from pellucid.jobs.align_runs import flags, read_runs
    from pellucid.jobs.align_stir import check_stir
    from pellucid.jobs.opening import check_run_folder
    from pellucid.jobs.standing import nothing_left_behind

    check_ladder(asked.ladder)
    if asked.triples < 1:
        raise ConfigError(f"--triples must be at least 1, got {asked.triples}")
    entries = read_runs(asked.runs, asked.names)
    if asked.stir:
        check_stir(entries)
    check_run_folder(out)
    for flag in (flagged := flags(entries)):
        say(f"caution: {flag}")
    with nothing_left_behind(out):
        return _align(asked, entries, flagged, out)


def _align(asked: Alignment, entries: Sequence[Entry], flagged: Sequence[str], out: Path) -> Path:
    from pellucid.jobs.align_metrics import judges
    from pellucid.jobs.align_tables import print_summary, save_tables
    from pellucid.jobs.standing import check_same, open_run
    from pellucid.report import write_report

    inputs, recipe = depends_on(asked, entries), _plain(dc.asdict(asked))
    run = open_run(out, JOB, {"recipe": recipe, "seed": asked.seed, "inputs": inputs})
    if run.header.get("inputs") != inputs:
        check_same(run, recipe, inputs)
    if run.has(FACTS, inputs=inputs):
        say("the comparison is complete; its pages are written again from its tables")
        return write_report(run)
    panel = judges(asked.ladder, entries, out, seed=asked.seed)
    judged = judge_all(entries, panel, asked)
    _save_facts(run, entries)
    save_tables(run, judged, panel, asked, flagged=flagged, inputs=inputs)
    print_summary(run)
    return write_report(run)


def judge_all(entries: Sequence[Entry], panel: Judges, asked: Alignment) -> list[Judged]:
    """Every metric on every run."""
    found: list[Judged] = []
    with progress("metrics and runs") as report:
        for number, entry in enumerate(entries):
            found.append(judge_one(entry, panel, asked))
            report(number + 1, len(entries))
    return found


def judge_one(entry: Entry, panel: Judges, asked: Alignment) -> Judged:
    """The compared method of one run for every subset of its items, and its adversary at every tolerance."""
    import torch

    from pellucid.evals.alignment_committee import judge, subsets_of
    from pellucid.jobs.align_runs import items_of, validity_of

    rows = entry.rows()
    items, subsets = items_of(entry, rows), subsets_of(validity_of(entry, rows))
    hit = entry.facts["against"] if not entry.tolerances else ""
    judgements = tuple(
        judge(
            dc.replace(member, attacked=member.name == hit), items, subsets, count=asked.triples,
            batch_size=asked.batch_size, seed=asked.seed,
        )
        for member in panel.members
    )  # fmt: skip
    curves: dict[float, tuple[Judgement, ...]] = {}
    for tolerance in entry.tolerances:
        rows = entry.rows(tolerance)
        worst = items_of(entry, rows)
        feasible = {"feasible": torch.from_numpy(entry.table["feasible"][rows].astype(bool))}
        curves[tolerance] = tuple(
            judge(
                dc.replace(member, attacked=member.name == entry.facts["against"]), worst, feasible, count=1,
                batch_size=asked.batch_size, seed=asked.seed,
            )
            for member in panel.members
        )  # fmt: skip
    return Judged(entry, judgements, curves)


def depends_on(asked: Alignment, entries: Sequence[Entry]) -> dict[str, str]:
    """Hashes of everything that changes the result; files of the ladder by their bytes."""
    import hashlib

    from pellucid import __version__
    from pellucid.evals.alignment import VERSION
    from pellucid.store import digest

    files = {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name in ("trunk_weights", "heads", "answers")
        if (file := getattr(asked.ladder, name)) is not None
    }
    settings = {
        k: v for k, v in _plain(dc.asdict(asked)).items() if k not in ("runs", "device", "batch_size")
    }
    return {
        "runs": digest([[entry.key, entry.run.header.get("inputs", {})] for entry in entries]),
        "metrics": digest([settings.pop("ladder"), files]),
        "settings": digest(settings),
        "version": f"{__version__}/align-{VERSION}",
    }


def _plain(tree: Any) -> Any:
    """Paths as text."""
    if isinstance(tree, Path):
        return str(tree)
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _save_facts(run: "Run", entries: Sequence[Entry]) -> None:
    """What the header of the page says: which networks, which images."""
    labels = list(dict.fromkeys(entry.label for entry in entries))
    models = [entry.run.facts("model") for entry in entries]
    data = entries[0].run.facts("data")
    names = ", ".join(labels[:-1]) + (" and " if len(labels) > 1 else "") + labels[-1]
    run.save(
        "model",
        {
            "name": names, "spec": ", ".join(dict.fromkeys(str(m.get("spec")) for m in models)),
            "parameters": models[0].get("parameters"), "weights": f"of {len(entries)} inversion runs",
            "weights_hash": None, "trained": True, "upcast": False, "normalize": models[0].get("normalize"),
            "notes": [
                f"{e.key}: {e.run.path}, weights {str(m.get('weights_hash'))[:12]}"
                for e, m in zip(entries, models, strict=True)
            ],
        },
    )  # fmt: skip
    run.save("classes", {"classes": entries[0].run.facts("classes")["classes"]})
    run.save(
        "data",
        {**data, "n": entries[0].facts["targets"], "total": data["n"], "limit": entries[0].facts["targets"]},
    )  # fmt: skip
