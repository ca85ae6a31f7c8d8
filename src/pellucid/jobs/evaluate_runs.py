"""`pellucid evaluate RUN RUN ... --out FOLDER`: several trainings, and every measure with its interval over them."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid._checks import ConfigError, DataError
from pellucid.jobs.evaluate import Evaluation, evaluate_run
from pellucid.jobs.progress import say

if TYPE_CHECKING:
    from pellucid.store import Run
    from pellucid.sweep import Summary

Found = tuple[str, str, str, float]
"""Part of the evaluation, what it is about, measure, value."""

TABLES = {
    "corruptions": ("Under corruption", ("type", "severity"), ("accuracy",)),
    "attacks": ("Under attack", ("attack", "radius"), ("accuracy",)),
    "outside": (
        "Outside data noticed",
        ("kind", "outside", "detector"),
        ("auroc", "fpr95", "aupr_out", "aupr_in"),
    ),
    "watched": ("Attacks noticed", ("score", "attack", "radius"), ("auroc", "undetected")),
    "groups": ("Groups", ("name",), ("accuracy", "selection_rate", "tpr", "fpr", "ece")),
}
"""Tables of an evaluated run: heading, the columns that say what a row is about, the columns that were measured."""

CALIBRATION = ("accuracy", "ece", "ece_adaptive", "ece_classwise", "brier", "nll")
FAILURES = ("auroc", "fpr95", "aurc", "augrc")


def evaluate_runs(paths: Sequence[Path], out: Path, asked: Evaluation) -> Path:
    """Evaluate each run in its own folder, then write what they have in common into `out`; the path of its page.

    A measure is the mean over runs with its two-sided 95 % Student interval, so runs should be trainings that differ in
    their seed alone. What a run lacks, such as an attack that its checks did not pass, is left out of that mean, and the
    number of runs stands beside it.

    Raises:
        ConfigError: the same folder twice, or `out` is one of the runs or holds something else.
        DataError: two runs hold the same weights (a replicate counted twice), or were measured on different images.
    """
    check_paths(paths, out)
    for path in paths:
        say(f"run {path}")
        evaluate_run(path, asked)
    return over_runs(paths, out)


def check_paths(paths: Sequence[Path], out: Path) -> None:
    """Several different run folders, and a folder for the result that is none of them; before anything is measured."""
    from pellucid.jobs.opening import check_run_folder
    from pellucid.jobs.standing import open_run
    from pellucid.store import Run

    places = [path.resolve() for path in paths]
    if len(set(places)) < len(places):
        twice = next(path for path in places if places.count(path) > 1)
        raise ConfigError(f"{twice} is named twice; a run counts once")
    if out.resolve() in places:
        raise ConfigError(f"--out {out} is one of the runs; name another folder for what they have in common")
    check_distinct([Run.open(path) for path in paths])
    check_run_folder(out)
    open_run(out, "evaluate-runs", {"runs": [str(path) for path in paths]})


def check_distinct(runs: Sequence["Run"]) -> None:
    """Two copies of one network would make the interval too narrow."""
    seen: dict[str, Path] = {}
    for run in runs:
        weights = str(run.facts("model")["weights_hash"])
        if weights in seen:
            raise DataError(
                f"{seen[weights]} and {run.path} hold the same weights: one training counted twice; leave one out"
            )
        seen[weights] = run.path


def over_runs(paths: Sequence[Path], out: Path) -> Path:
    """The measures of evaluated runs over runs: table `over_runs`, `over_runs.csv` and the page."""
    from pellucid.report.runs_page import Measured, runs_page
    from pellucid.store import Run, write_bytes
    from pellucid.sweep import summarise

    runs = [Run.open(path) for path in paths]
    check_same_images(runs)
    rows = [(r, *found) for r, run in enumerate(runs) for found in measured(run)]
    if not rows:
        raise DataError(
            "nothing was measured on these runs: ask for corruptions, attacks, --calibration, --ood ..."
        )
    names = ("replicate", "part", "case", "measure", "value")
    long: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    summaries = [(m, s) for m in dict.fromkeys(long["measure"]) for s in summarise(long, m)]
    record = Run.open(out)
    record.save_table("over_runs", columns := _columns(summaries), inputs={})
    write_bytes(out / "over_runs.csv", _csv(columns))
    shown = [
        Measured(str(s.settings["part"]), str(s.settings["case"]), m, s.mean, s.low, s.high, s.values)
        for m, s in summaries
    ]
    notes = [note for run in runs for note in left_out(run)]
    for note in notes:
        say(note)
    return runs_page(out, [str(path) for path in paths], shown, notes=notes)


def check_same_images(runs: Sequence["Run"]) -> None:
    """Differences between runs are differences between trainings only where the images are the same."""
    seen = {run.path: evaluated_on(run) for run in runs}
    first, *others = seen
    for path in others:
        if seen[path] != seen[first]:
            raise DataError(
                f"{first} and {path} were not evaluated on the same images; the runs of one interval need the same data, "
                "--images and --seed"
            )


def evaluated_on(run: "Run") -> str:
    """Fingerprint of the images that a run was evaluated on last."""
    from pellucid.store.tables import stored_inputs

    tables = [
        run.path / "tables" / f"{name}.parquet" for name in (*TABLES, "reliability") if name != "groups"
    ]
    return " ".join(sorted({stored_inputs(file)["data"] for file in tables if file.exists()}))


def measured(run: "Run") -> Iterator[Found]:
    """Every number of an evaluated run that can be averaged over runs."""
    for name, (part, about, measures) in TABLES.items():
        if not run.has(name):
            continue
        table = {key: values.tolist() for key, values in run.table(name).items()}
        for i in range(len(table[about[0]])):
            if name == "attacks" and not table["adequate"][i]:
                continue  # the page of the run says which check failed
            case = ", ".join(_text(table[key][i]) for key in about)
            for measure in measures:
                value = float(table[measure][i])
                if math.isfinite(value):
                    yield part, case, measure, value
    if run.has("confidence"):
        yield from _confidence(run.facts("confidence"))


def left_out(run: "Run") -> list[str]:
    """What a run measured and does not believe itself."""
    if not run.has("attacks"):
        return []
    table = run.table("attacks")
    names = dict.fromkeys(str(name) for name in table["attack"][~table["adequate"].astype(bool)])
    return [
        f"{run.path}: attack {name} left out, a check of it failed; the run's page says which"
        for name in names
    ]


def _confidence(facts: dict[str, Any]) -> Iterator[Found]:
    for kind, found in facts["kinds"].items():
        for measure in CALIBRATION:
            yield "Calibration", kind, measure, float(found[measure])
    for row in facts["failures"]:
        for measure in FAILURES:
            yield "Mistakes noticed", str(row["score"]), measure, float(row[measure])


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _columns(summaries: Sequence[tuple[str, "Summary"]]) -> dict[str, list[Any]]:
    return {
        "part": [str(s.settings["part"]) for _, s in summaries],
        "case": [str(s.settings["case"]) for _, s in summaries],
        "measure": [measure for measure, _ in summaries],
        "runs": [s.n for _, s in summaries],
        "mean": [s.mean for _, s in summaries],
        "lo": [s.low for _, s in summaries],
        "hi": [s.high for _, s in summaries],
        "values": [" ".join(f"{v:.6g}" for v in s.values) for _, s in summaries],
    }


def _csv(columns: dict[str, list[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode("utf-8", "backslashreplace")
