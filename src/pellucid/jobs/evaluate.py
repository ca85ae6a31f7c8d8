"""`pellucid evaluate`: accuracy of a run's network, or of any checkpoint, under corruption and under attack."""

import dataclasses as dc
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid._checks import ConfigError, DataError
from pellucid.jobs.evaluate_asked import Questions
from pellucid.jobs.inspect import Request
from pellucid.jobs.progress import say

if TYPE_CHECKING:
    import torch

    from pellucid.data import Source
    from pellucid.jobs.robustness import Plan
    from pellucid.jobs.subject import Subject
    from pellucid.store import Run

RADII = "1/255,2/255,4/255,8/255,16/255,32/255,64/255"
RADII_L2 = "0.25,0.5,1,2,4"


@dc.dataclass(frozen=True)
class Evaluation:
    """What `pellucid evaluate` was asked to measure, as its options say it."""

    attacks: str = "pgd"
    radii: str = RADII
    radii_l2: str = RADII_L2
    steps: int = 20
    restarts: int = 1
    margin: int = 100
    corruptions: str = "all"
    severities: str = "1,2,3,4,5"
    frost: Path | None = None
    images: int = 500
    seed: int = 0
    batch_size: int = 64
    device: str | None = None
    again: bool = False
    questions: Questions = dc.field(default_factory=Questions)


def evaluate_run(
    path: Path, asked: Evaluation, *, weights: Path | None = None, data: str | None = None
) -> Path:
    """Evaluate the network of a run of train, inspect or demo, in its own folder; the path of its page.

    Args:
        weights, data: where they lie now, if they were moved since the run was made.
    """
    from pellucid.jobs.opening import check_run_folder, open_device
    from pellucid.jobs.subject import subject_of_run
    from pellucid.store import Run

    run = Run.open(path)
    check_run_folder(path)
    plan = plan_of(asked)
    device = open_device(asked.device)
    return evaluate(run, subject_of_run(run, weights=weights, data=data), plan, asked=asked, device=device)


def evaluate_checkpoint(request: Request, out: Path, asked: Evaluation) -> Path:
    """Evaluate the network that the options name, into a run folder of its own; the path of its page."""
    from pellucid.jobs.opening import check_run_folder, open_device
    from pellucid.jobs.subject import subject_of_options
    from pellucid.store import Run

    check_run_folder(out)
    plan = plan_of(asked)
    device = open_device(asked.device)
    subject = subject_of_options(request)
    if (out / "run.json").exists():
        run = Run.open(out)
    else:
        run = Run.create(out, {"job": "evaluate", "recipe": dc.asdict(request), "seed": asked.seed})
    return evaluate(run, subject, plan, asked=asked, device=device)


def evaluate(
    run: "Run", subject: "Subject", plan: "Plan", *, asked: Evaluation, device: "torch.device"
) -> Path:
    """Measure what is not measured yet and write the page again.

    A corruption or radius that is finished for the same weights, preprocessing, images, settings and version is not
    computed again; one computed from something else is a `StaleResultError`, or replaced with `again`.
    """
    from pellucid.jobs.evaluate_asked import open_questions
    from pellucid.jobs.robustness import Bench, check_plan, measure_attacks, measure_corruptions, versions
    from pellucid.report import write_report
    from pellucid.store import digest

    images = chosen_images(subject.source, asked.images, seed=asked.seed)
    inputs = {
        "weights": subject.facts["weights_hash"],
        "preprocessing": digest([*subject.looks, subject.facts["normalize"]]),
        "data": images.fingerprint(),
        "version": versions(),
    }
    subject.model.to(device)
    if subject.decodable is not None:
        subject.decodable.to(device).eval()
    bench = Bench(run, subject.model, images, device, inputs, asked.again)
    check_plan(plan, bench)
    opened = open_questions(asked.questions, run, subject, images, seed=asked.seed)
    say(f"{len(images):,} images of {images.name} ({device})")
    if not run.has("model"):
        save_facts(run, subject, measured=len(images))
    if plan.corruptions:
        measure_corruptions(plan, bench)
    if plan.attacks:
        measure_attacks(plan, bench)
    if asked.questions.any:
        from pellucid.jobs.evaluate_more import measure_more

        measure_more(
            asked.questions, opened, bench, batch_size=asked.batch_size, seed=asked.seed, steps=asked.steps
        )
    return write_report(run)


def plan_of(asked: Evaluation) -> "Plan":
    """The options as a plan; fails on what is wrong with them before anything is opened."""
    from pellucid.jobs.robustness import Plan, check_names

    for name, low in (("steps", 1), ("restarts", 1), ("margin", 0), ("images", 0), ("batch_size", 1)):
        if getattr(asked, name) < low:
            raise ConfigError(
                f"--{name.replace('_', '-')} must be at least {low}, got {getattr(asked, name)}"
            )
    plan = Plan(
        attacks=words(asked.attacks), radii=radii(asked.radii, "--radii"),
        radii_l2=radii(asked.radii_l2, "--radii-l2"), steps=asked.steps, restarts=asked.restarts, margin=asked.margin,
        corruptions=words(asked.corruptions), severities=whole(asked.severities, "--severities"), frost=asked.frost,
        seed=asked.seed, batch_size=asked.batch_size,
    )  # fmt: skip
    check_names(plan, others=asked.questions.any)
    return plan


def words(text: str) -> tuple[str, ...]:
    """`"a, b"` is ("a", "b"); `none` is nothing."""
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    return () if found == ("none",) else found


def whole(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers, separated by commas, in rising order."""
    try:
        return tuple(sorted({int(word) for word in words(text)}))
    except ValueError:
        raise ConfigError(f"{option} takes whole numbers separated by commas, got {text!r}") from None


def radii(text: str, option: str) -> tuple[float, ...]:
    """`"1/255, 0.1"` as numbers in rising order, without 0, which is always measured.

    Raises:
        ConfigError: something that is no number, or is below 0.
    """
    found: set[float] = set()
    for word in words(text):
        over, slash, under = word.partition("/")
        try:
            value = float(over) / float(under) if slash else float(over)
        except (ValueError, ZeroDivisionError):
            raise ConfigError(
                f"{option} takes numbers such as 0.1 or 8/255 separated by commas, got {word!r}"
            ) from None
        if not value >= 0:
            raise ConfigError(f"{option}: a radius is a number from 0 up, got {word!r}")
        found.add(value)
    return tuple(sorted(found - {0.0}))


def chosen_images(source: "Source", n: int, *, seed: int) -> "Source":
    """`n` of the images, drawn with `seed`; all of them for 0, or where there are no more."""
    import torch

    from pellucid.rng import rng

    if len(source) == 0:
        raise DataError(f"{source.name} has no examples")
    if n == 0 or n >= len(source):
        return source
    order = torch.randperm(len(source), generator=rng(seed, "evaluate"))
    return source.take(order[:n].sort().values)


def save_facts(run: "Run", subject: "Subject", *, measured: int) -> None:
    """What the page says about network and data, where no other job has written it."""
    source = subject.source
    run.save("model", subject.facts)
    run.save("classes", {"classes": list(source.classes)})
    run.save(
        "data",
        {
            "spec": subject.spec, "name": source.name, "n": measured, "total": len(source), "classes": len(source.classes),
            "fingerprint": source.fingerprint(), "split": subject.split, "size": subject.looks[0],
            "fit": subject.looks[1], "labelled": bool(source.classes), "skipped": [list(entry) for entry in source.skipped],
        },
    )  # fmt: skip
