"""The search of `pellucid invert`: set up, laid aside every few seconds, taken up again after a kill."""

import dataclasses as dc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid._checks import DataError, StaleResultError
from pellucid.jobs.progress import progress, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pellucid.evals.perceptual import Metric
    from pellucid.jobs.invert import Inversion
    from pellucid.jobs.invert_regulariser import Regulariser
    from pellucid.jobs.subject import Subject
    from pellucid.methods.invert import Inverted, Preset, Representation
    from pellucid.methods.invert.iris import Extra
    from pellucid.store import Run

STATE = "search.safetensors"
KEEP_EVERY = 10.0
"""Seconds between two copies of the search on disk."""


@dc.dataclass(frozen=True)
class Task:
    """Everything a search needs. Rows are (start, target), starts outside: row = start * n_targets + target."""

    representation: "Representation"
    layer: str
    targets: "Tensor"
    index: "Tensor"
    natural: "Tensor"
    regulariser: "Regulariser"
    preset: "Preset"
    metric: "Metric"
    subject: "Subject"

    @property
    def n_targets(self) -> int:
        return len(self.targets)


@dc.dataclass(frozen=True)
class Found:
    """Results of one method for every row; `tolerance` and `feasible` of the constrained adversary."""

    method: str
    inverted: "Inverted"
    tolerance: float | None = None
    feasible: "Tensor | None" = None


def set_task(subject: "Subject", asked: "Inversion", *, device: "torch.device") -> Task:
    """Choose targets and natural images, find the layer, and check that everything fits; fails before any search."""
    import torch

    from pellucid.evals.perceptual import WEIGHT_FREE
    from pellucid.jobs.invert import check_images
    from pellucid.jobs.invert_layer import layer_name, parse_layer
    from pellucid.jobs.invert_regulariser import parse_regulariser
    from pellucid.jobs.tapping import first_images, taking
    from pellucid.methods.invert import Representation
    from pellucid.methods.invert.representation import check_goals
    from pellucid.methods.invert.validity import check_natural

    source = subject.source
    first = first_images(source)
    check_images(tuple(first.shape[1:]), source.name)
    regulariser = parse_regulariser(asked.regulariser, height=first.shape[2], width=first.shape[3])
    metric = checked_metric(asked.against, WEIGHT_FREE)
    for each in WEIGHT_FREE.values():
        each(first, first)  # all of them are written for every item: images too small for one fail here
    advice = "--size, ?channels=rgb or ?channels=grey after the data spec, or another model"
    with taking(first, advice), torch.no_grad():
        subject.model(first.to(device))
    tap = parse_layer(subject.model, asked.layer, first.to(device))
    index, natural = draw(len(source), asked)
    g = Representation(subject.model, tap, identity_relus=asked.identity_relus)
    index, targets = readable_targets(subject, asked, index)
    targets = targets.to(device)
    check_goals(g.values(targets, batch_size=asked.batch_size), layer_name(tap))
    others = distinct(images_at(subject, natural)[1]).to(device)
    check_natural(g.values(others, batch_size=asked.batch_size))
    return Task(
        g, layer_name(tap), targets, index, others, regulariser, preset_of(asked), metric, subject
    )  # fmt: skip


def checked_metric(name: str, metrics: Mapping[str, "Metric"]) -> "Metric":
    """The metric that an adversary works against, by name."""
    from pellucid._checks import check_one_of

    check_one_of(name, tuple(metrics), "--against")
    return metrics[name]


def preset_of(asked: "Inversion") -> "Preset":
    """The named preset, its steps changed if asked; the halvings of `fast` keep their number."""
    from pellucid.methods.invert import FAST, OFFICIAL

    preset = OFFICIAL if asked.preset == "official" else FAST
    if asked.steps is None:
        return preset
    halve = None if preset.halve_every is None else max(1, asked.steps * preset.halve_every // preset.steps)
    return dc.replace(preset, steps=asked.steps, halve_every=halve)


def draw(n: int, asked: "Inversion") -> tuple["Tensor", "Tensor"]:
    """Positions of the targets and of the natural images, drawn with the seed; other images while there are enough."""
    from pellucid.jobs.invert import LEAST_NATURAL

    if n < max(asked.targets, LEAST_NATURAL):
        raise DataError(
            f"{asked.targets} targets and at least {LEAST_NATURAL} natural images to compare with were asked of {n} images; "
            "take more images, or fewer --targets"
        )
    order = drawn(n, asked)
    return order[: asked.targets].sort().values, order[-min(asked.natural, n) :].sort().values


def drawn(n: int, asked: "Inversion") -> "Tensor":
    """All positions in the order they are drawn in: targets from the front, natural images from the back."""
    import torch

    from pellucid.rng import rng

    return torch.randperm(n, generator=rng(asked.seed, "inversion targets"))


def images_at(subject: "Subject", index: "Tensor") -> tuple["Tensor", "Tensor"]:
    """The positions of these that can be read, and their images."""
    import torch

    batches = list(subject.source.take(index).batches(256))
    if not batches:
        return index[:0], torch.empty(0)
    kept = index[torch.cat([batch.index for batch in batches])]
    return kept, torch.cat([batch.inputs for batch in batches]).float()


def readable_targets(subject: "Subject", asked: "Inversion", index: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Positions and images of the targets; in place of those that cannot be read, where that is allowed, the next drawn.

    Raises:
        DataError: too few images can be read.
    """
    import torch

    kept, images = images_at(subject, index)
    rest = drawn(len(subject.source), asked)[asked.targets :]
    if (missing := len(index) - len(kept)) > 0:
        say(f"{missing} of the targets drawn cannot be read; the next ones drawn take their place")
    while len(kept) < len(index) and len(rest):
        lacking = len(index) - len(kept)
        more, others = images_at(subject, rest[:lacking])
        kept, images, rest = torch.cat([kept, more]), torch.cat([images, others]), rest[lacking:]
    if len(kept) < len(index):
        raise DataError(
            f"only {len(kept)} images can be read, and {len(index)} targets were asked for; use fewer --targets"
        )
    place = kept.argsort()
    return kept[place], images[place]


def distinct(images: "Tensor") -> "Tensor":
    """The images without exact copies: a pair of one image and itself would say that a distance of 0 is usual.

    Raises:
        DataError: too few are left to compare with.
    """
    import torch

    from pellucid.jobs.invert import LEAST_NATURAL

    seen: dict[bytes, int] = {}
    for i, image in enumerate(images):
        seen.setdefault(image.contiguous().numpy().tobytes(), i)
    if len(seen) < LEAST_NATURAL:
        raise DataError(
            f"only {len(seen)} of {len(images)} natural images differ from each other, and {LEAST_NATURAL} are needed to say "
            "what distance is nothing special; take other images, or more of them with --natural"
        )
    if len(seen) < len(images):
        say(f"left out of the natural images: {len(images) - len(seen)} exact copies of others")
    return images[torch.tensor([*seen.values()])]


def rows_of(task: Task, starts: int) -> "Tensor":
    """The target of each row, repeated for each start."""
    return task.targets.repeat(starts, 1, 1, 1)


def begun(task: Task, asked: "Inversion") -> "Tensor":
    """The start image of each row, keyed by seed, position of the target in the data, and start."""
    import torch

    from pellucid.methods.invert import starts

    drawn = [
        starts(task.targets.shape[1:], task.index.tolist(), start=k, seed=asked.seed)
        for k in range(asked.starts)
    ]
    return torch.cat(drawn).to(task.targets)


def search(task: Task, run: "Run", asked: "Inversion", *, inputs: Mapping[str, str]) -> list[Found]:
    """The results of every method that was asked for: one, or the regulariser-free ones and one per tolerance."""
    from pellucid.jobs.invert_clock import prediction
    from pellucid.methods.invert import invert

    targets, start = rows_of(task, asked.starts), begun(task, asked)
    batches = -(-len(targets) // asked.batch_size)
    shorter = "--preset fast" if asked.preset == "official" else "fewer --targets or --steps"
    file = run.path / STATE
    with (
        prediction(task.representation.model, task.preset.steps * batches, shorter=shorter),
        progress("updates") as report,
    ):
        plain = invert(
            task.representation, targets, start, preset=task.preset, prior=task.regulariser.prior,
            extra=_extra(task, targets, start), batch_size=asked.batch_size, seed=asked.seed,
            keep=keeper(file, inputs), resume=resumed(file, inputs, device=targets.device), progress=report,
        )  # fmt: skip
    if task.regulariser.adversary != "adversarial":
        return [Found(task.regulariser.name, plain)]
    return [Found("free", plain), *_worst(task, run, asked, plain, inputs=inputs)]


def _extra(task: Task, targets: "Tensor", start: "Tensor") -> "Extra | None":
    from pellucid.methods.invert import towards_start, weighted_adversary

    if task.regulariser.adversary == "weighted":
        return weighted_adversary(task.metric, targets, weight=task.regulariser.weight)
    if task.regulariser.adversary == "towards-start":
        return towards_start(task.metric, start, weight=task.regulariser.weight)
    return None


def _worst(
    task: Task, run: "Run", asked: "Inversion", plain: "Inverted", *, inputs: Mapping[str, str]
) -> list[Found]:
    """The constrained adversary at each tolerance, each begun from the last; a finished tolerance is found again."""
    import torch

    from pellucid.jobs.invert_clock import prediction
    from pellucid.methods.invert.adversary import GENTLE, constrained_adversary

    targets, at = rows_of(task, asked.starts), plain.images
    batches = -(-len(targets) // asked.batch_size)
    found: list[Found] = []
    for tolerance in asked.tolerances:
        name = f"adversary-{tolerance:g}"
        if not run.has(name, inputs=inputs):
            say(f"constrained adversary against {asked.against}, tau = {tolerance:g}")
            with (
                prediction(task.representation.model, GENTLE.steps * batches),
                progress("updates") as report,
            ):
                one = constrained_adversary(
                    task.representation, targets, at, metric=task.metric, tolerance=tolerance,
                    batch_size=asked.batch_size, progress=report,
                )  # fmt: skip
            say(
                f"{int(one.feasible.sum())} of {len(one.feasible)} images lay within it before; the others are left out"
            )
            run.save(
                name,
                {"images": one.images, "distance": one.distance, "rho": one.rho, "feasible": one.feasible},
                inputs=inputs,
            )
        kept = {key: torch.from_numpy(value).to(targets.device) for key, value in run.arrays(name).items()}
        at = kept["images"]
        found.append(
            Found(f"adversarial tau={tolerance:g}", attacked(plain, kept), tolerance, kept["feasible"].bool())
        )
    return found


def attacked(plain: "Inverted", kept: Mapping[str, "Tensor"]) -> "Inverted":
    """An adversary's images as results of a search, so that the same gates judge them."""
    from pellucid.methods.invert import Inverted

    rho = kept["rho"].to(plain.rho)
    return Inverted(
        kept["images"], plain.starts, rho, plain.rho_start, rho, -kept["distance"].to(plain.rho), plain.best_step,
        plain.steps, plain.flat,
    )  # fmt: skip


def keeper(file: Path, inputs: Mapping[str, str]) -> Callable[[Mapping[str, "Tensor"]], None]:
    """Writes the state of a search, at most every few seconds, whole or not at all."""
    from safetensors.torch import save

    from pellucid.store import write_bytes

    last = time.monotonic()

    def keep(state: Mapping[str, "Tensor"]) -> None:
        nonlocal last
        if time.monotonic() - last >= KEEP_EVERY or int(state["steps"].max()) < 0:
            tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            write_bytes(file, save(tensors, metadata=dict(inputs)))
            last = time.monotonic()

    return keep


def resumed(file: Path, inputs: Mapping[str, str], *, device: "torch.device") -> "dict[str, Tensor] | None":
    """The state that a killed search left, None where there is none.

    Raises:
        StaleResultError: it was left by a search of something else.
    """
    if not file.exists():
        return None
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        if (opened.metadata() or {}) != dict(inputs):
            raise StaleResultError(
                f"{file} was left by a search of something else; delete it, or choose another --out"
            )
        state = {key: opened.get_tensor(key).to(device) for key in opened.keys()}  # noqa: SIM118
    say("a search that was interrupted goes on")
    return state
