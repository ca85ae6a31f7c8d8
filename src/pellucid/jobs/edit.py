"""`pellucid edit`: adversarial samples made of features of another class, beside blending and a gradient of equal size."""

import dataclasses as dc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid._checks import ConfigError, nearest
from pellucid.jobs.backtrack_bench import Bench, Opening, class_name, finished, names_of, open_bench
from pellucid.jobs.backtrack_pictures import Album, diverging, picture
from pellucid.jobs.progress import progress, say

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.methods.bort.edits import Plan

ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Strengths at which success is measured; the one asked for is added."""

POOL = 2000  # images among which exemplars are looked for


@dc.dataclass(frozen=True)
class Editing:
    """What `pellucid edit` was asked for, as its options say it."""

    towards: str = ""
    layer: str = ""
    alpha: float = 1.0
    channels: int = 32
    images: int = 64
    shown: int = 6
    contributions: int = 8
    seed: int = 0
    device: str | None = None
    again: bool = False


def run_edit(opening: Opening, asked: Editing) -> Path:
    """Edit images towards another class, measure what it takes, and write the page; its path.

    What is finished for the same network, images and settings is not computed again.
    """
    from pellucid.methods.bort.edits import VERSION, plan_edit
    from pellucid.report import write_report
    from pellucid.store import digest

    for name, low in (("images", 2), ("shown", 1), ("channels", 1), ("contributions", 1), ("alpha", 0)):
        if not getattr(asked, name) >= low:
            raise ConfigError(f"--{name} must be at least {low}, got {getattr(asked, name)}")
    bench = open_bench(opening, job="edit", images=asked.images, seed=asked.seed, device=asked.device)
    settings = {**dc.asdict(asked), "device": None, "again": None}
    inputs = {**bench.inputs, "settings": digest(settings), "method": f"edits-{VERSION}"}
    if not finished(bench.run, "edited", inputs, again=asked.again):
        layer = asked.layer or _deepest(bench)
        check_layer(bench, layer)
        cast = _cast(bench, asked)
        say(f"{len(cast.images):,} images of {bench.source.name} edited at {layer}")
        plan = plan_edit(
            bench.subject.model,
            cast.images,
            cast.exemplars,
            cast.targets,
            layer=layer,
            k=asked.channels,
            source=cast.sources,
        )
        _save(bench, cast, plan, asked, inputs=inputs)
    return write_report(bench.run)


@dc.dataclass(frozen=True)
class Cast:
    """Images that can be edited, the class of each, the one it is edited towards, and an image of that class."""

    images: "Tensor"
    exemplars: "Tensor"
    sources: "Tensor"
    targets: "Tensor"
    names: Sequence[str]
    left_out: int


def _cast(bench: Bench, asked: Editing) -> Cast:
    """Targets as asked, or the network's second guess; an exemplar is an image that the network takes for the target."""
    import torch

    from pellucid.methods.bort.edits import predict
    from pellucid.rng import rng
    from pellucid.train import logits_of

    model, images = bench.subject.model, bench.images
    with torch.no_grad():
        order = logits_of(model(images)).argsort(1, descending=True)
    sources = order[:, 0]
    targets = (
        order[:, 1] if not asked.towards else torch.full_like(sources, _class_number(bench, asked.towards))
    )
    pool = _pool(bench, asked)
    said = torch.cat([predict(model, part) for part in pool.split(256)])
    exemplars = images.clone()
    fits = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for i, (source, target) in enumerate(zip(sources.tolist(), targets.tolist(), strict=True)):
        found = (said == target).nonzero().flatten()
        if source != target and len(found) and bool(images[i].any()):  # nothing has a size relative to black
            pick = int(torch.randint(len(found), (), generator=rng(asked.seed, "exemplar", i)))
            exemplars[i], fits[i] = pool[found[pick]], True
    if not bool(fits.any()):
        raise ConfigError(
            "there is nothing to edit: every image is of the target class already, or black, or the network takes none of "
            f"{len(pool)} images for it; name another class with --towards, or give more images"
        )
    names = [
        name for name, fit in zip(names_of(bench.source, len(images)), fits.tolist(), strict=True) if fit
    ]
    return Cast(images[fits], exemplars[fits], sources[fits], targets[fits], names, int((~fits).sum()))


def _pool(bench: Bench, asked: Editing) -> "Tensor":
    import torch

    from pellucid.jobs.evaluate import chosen_images

    source = chosen_images(bench.subject.source, POOL, seed=asked.seed + 1)
    return torch.cat([batch.inputs for batch in source.batches(256)]).to(bench.device)


def _class_number(bench: Bench, text: str) -> int:
    classes = list(bench.subject.source.classes)
    if text in classes:
        return classes.index(text)
    if text.isdecimal() and (not classes or int(text) < len(classes)):
        return int(text)
    raise ConfigError(f"--towards names no class: {text!r}; nearest: {nearest(text, classes)}")


def _deepest(bench: Bench) -> str:
    from pellucid.methods.bort.backtrack import depths

    return depths(bench.subject.model, bench.images[:2])[-1]


def check_layer(bench: Bench, layer: str) -> None:
    """Raise, before exemplars are looked for, where the layer cannot be traced or the head does not read its channels."""
    from pellucid.methods.bort.backtrack import trace
    from pellucid.methods.bort.saliency import head_weights

    path = trace(bench.subject.model, bench.images[:2], layer)
    head_weights(bench.subject.model, path.features.shape[1])


def _save(bench: Bench, cast: Cast, plan: "Plan", asked: Editing, *, inputs: dict[str, str]) -> None:
    """Pictures, then the table over strengths, then the facts that say all of it is there."""
    table = _strengths(bench, cast, plan, asked)
    _album(bench, cast, plan, asked).save(bench.run, "edit_pictures", inputs=inputs)
    bench.run.save_table("edits", table, inputs=inputs)
    facts = {
        "layer": plan.path.layer, "alpha": asked.alpha, "channels": int(plan.put_in.shape[1]), "n": len(cast.images),
        "left_out": cast.left_out, "towards": asked.towards or None, "shown": min(asked.shown, len(cast.images)),
        "units": int(plan.change.shape[1]),
    }  # fmt: skip
    bench.run.save("edited", facts, inputs=inputs)


def _strengths(bench: Bench, cast: Cast, plan: "Plan", asked: Editing) -> dict[str, list[Any]]:
    """For each alpha: how many reach the target, how large the edit is, and what the baselines reach at that size."""
    from pellucid.evals.classify import wilson
    from pellucid.methods.bort.edits import apply_edit, predict, relative_size
    from pellucid.methods.bort.edits_baselines import blended, gradient_signed

    model, n = bench.subject.model, len(cast.images)
    rows: dict[str, list[Any]] = {}
    alphas = sorted({*ALPHAS, asked.alpha})
    with progress("strengths") as report:
        for done, alpha in enumerate(alphas, start=1):
            edited = apply_edit(model, plan, alpha=alpha)
            others = {
                "blend": blended(cast.images, cast.exemplars, edited.size),
                "gradient": gradient_signed(model, cast.images, cast.targets, edited.size),
            }
            row: dict[str, Any] = {"alpha": alpha, "n": n, "size": float(edited.size.mean())}
            hits = {"edit": int(edited.reached.sum())}
            for name, images in others.items():
                hits[name] = int((predict(model, images) == cast.targets).sum())
                row[f"{name}_size"] = float(relative_size(images - cast.images, cast.images).mean())
            for name, right in hits.items():
                low, high = wilson(right, n)
                row |= {name: right / n, f"{name}_lo": low, f"{name}_hi": high}
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
            report(done, len(alphas))
    return rows


def _album(bench: Bench, cast: Cast, plan: "Plan", asked: Editing) -> Album:
    """For each shown image: itself, the exemplar, the edit, what was added, each channel's part, and the baselines."""
    from pellucid.methods.bort.edits import apply_edit, contributions, predict
    from pellucid.methods.bort.edits_baselines import blended, gradient_signed

    model, classes = bench.subject.model, bench.subject.source.classes
    edited = apply_edit(model, plan, alpha=asked.alpha)
    blend = blended(cast.images, cast.exemplars, edited.size)
    push = gradient_signed(model, cast.images, cast.targets, edited.size)
    said = {"edit": edited.predicted, "blend": predict(model, blend), "gradient": predict(model, push)}
    album = Album()
    for i in range(min(asked.shown, len(cast.images))):
        source, target = (class_name(classes, int(c[i])) for c in (cast.sources, cast.targets))
        about = {
            "row": i,
            "name": cast.names[i],
            "source": source,
            "target": target,
            "size": float(edited.size[i]),
        }
        reach = float(edited.added[i].mean(0).abs().max())

        def add(
            kind: str, shown: Any, word: str = "", unit: int = -1, *, about: dict[str, Any] = about
        ) -> None:
            album.add(shown, kind=kind, said=word, unit=unit, **about)

        add("source", picture(cast.images[i]), source)
        add("exemplar", picture(cast.exemplars[i]), target)
        for kind, images in (("edit", edited.inputs), ("blend", blend), ("gradient", push)):
            add(kind, picture(images[i]), class_name(classes, int(said[kind][i])))
        add("added", diverging(edited.added[i], reach=reach))
        units, parts = contributions(plan, i, alpha=asked.alpha, most=asked.contributions)
        strongest = float(parts.mean(1).abs().max())
        for unit, part in zip(units, parts, strict=True):
            sign = "put in" if unit in plan.put_in[i].tolist() else "taken out"
            both = sign == "put in" and unit in plan.taken_out[i].tolist()
            add("part", diverging(part, reach=strongest), "exchanged" if both else sign, unit)
    return album
