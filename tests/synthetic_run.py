"""A run folder made of nothing: the tables of a job, with planted structure, for tests and measurements of pages."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pellucid.html import Place, sprite_sheets
from pellucid.store import Run

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def make_run(
    path: Path,
    *,
    units: Sequence[int] = (16, 24, 40, 56, 64),
    images: int = 300,
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    labelled: bool = True,
    trained: bool = True,
    layer_names: Sequence[str] | None = None,
    thumb: int = 16,
    top: int = 8,
) -> Run:
    """Layers of `units` units each, more class-selective with depth; a few dead; `images` thumbnails."""
    rng = np.random.default_rng(seed)
    names = list(layer_names or [f"features.{i}.relu" for i in range(len(units))])
    run = Run.create(
        path, {"command": "inspect", "seed": seed, "recipe": {"model": "nets:small", "data": "digits"}}
    )
    targets = rng.integers(0, len(classes), images)
    _facts(run, names, units, images, classes, labelled=labelled, trained=trained)
    worlds = [_layer(rng, n, len(classes), depth=(i + 1) / len(units)) for i, n in enumerate(units)]
    run.save("class_means", {n: w["means"] for n, w in zip(names, worlds, strict=True)} if labelled else {})
    _unit_table(run, names, worlds, classes, labelled)
    _layer_table(run, names, worlds, images, labelled)
    _pictures(run, rng, names, worlds, targets, classes, labelled=labelled, side=thumb, top=top)
    return run


def _facts(run: Run, names, units, images, classes, *, labelled: bool, trained: bool) -> None:
    run.save("model", {
        "spec": "nets:small", "name": "SmallConvNet", "parameters": 61_706, "trained": trained, "upcast": False,
        "weights": "best.safetensors" if trained else None, "weights_hash": "3f9a" * 16,
        "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, "notes": [],
    })  # fmt: skip
    run.save("data", {
        "spec": "digits", "name": "digits", "n": images, "classes": len(classes) if labelled else 0, "split": "test",
        "fingerprint": "b07c" * 16, "size": [16, 16], "fit": "crop", "labelled": labelled,
        "skipped": [["broken/003.png", "truncated file"], ["broken/004.png", "no image"]],
    })  # fmt: skip
    run.save("classes", {"classes": list(classes) if labelled else []})
    if labelled:
        by_class = {c: 0.85 + 0.012 * i for i, c in enumerate(classes[:12])} if len(classes) <= 12 else {}
        run.save("accuracy", {"accuracy": 0.913, "lo": 0.881, "hi": 0.941, "n": images, "by_class": by_class})


def _layer(rng: np.random.Generator, units: int, classes: int, *, depth: float) -> dict[str, np.ndarray]:
    base = rng.gamma(4.0, 0.25, (1, units)) * (1.2 - depth)
    bumps = rng.gamma(0.6, 1.0, (classes, units)) * depth
    means = base + bumps + 0.05 * rng.random((classes, units))
    dead = rng.random(units) < 0.04 + 0.08 * (1 - depth)
    dead[0] = False
    means[:, dead] = 0.0
    best = means.argmax(0)
    high = means.max(0)
    rest = (means.sum(0) - high) / (classes - 1)
    off = means - means.min(0)
    with np.errstate(invalid="ignore"):
        si = (high - rest) / (high + rest)
        si_off = (off.max(0) - (off.sum(0) - off.max(0)) / (classes - 1)) / (
            off.max(0) + (off.sum(0) - off.max(0)) / (classes - 1)
        )
    width = 0.02 + 0.04 * rng.random(units)
    cross = si - 0.03 + 0.02 * rng.standard_normal(units)
    return {
        "means": means, "dead": dead, "best": best, "si": si, "si_lo": si - width, "si_hi": si + width,
        "si_cf": cross, "si_cf_lo": cross - 1.2 * width, "si_cf_hi": cross + 1.2 * width, "si_perm": np.where(dead, np.nan, 0.06 + 0.02 * rng.random(units)),
        "si_off": si_off, "d_prime": np.where(dead, np.nan, 4 * si), "eta2": np.where(dead, np.nan, si**2),
        "mean": means.mean(0), "std": means.mean(0) * 0.7, "max": means.max(0) * 4,
        "activity": np.where(dead, 0.0, np.clip(1.1 - depth * rng.random(units), 0, 1)),
    }  # fmt: skip


def _unit_table(run: Run, names, worlds, classes, labelled: bool) -> None:
    columns: dict[str, list] = {"layer": [], "unit": []}
    keys = (
        "si",
        "si_lo",
        "si_hi",
        "si_cf",
        "si_cf_lo",
        "si_cf_hi",
        "si_perm",
        "si_off",
        "d_prime",
        "eta2",
        "dead",
        "mean",
        "std",
        "max",
        "activity",
    )
    measured = keys[:10]
    for name, world in zip(names, worlds, strict=True):
        n = len(world["dead"])
        columns["layer"] += [name] * n
        columns["unit"] += range(n)
        for key in keys:
            values = np.full(n, np.nan) if key in measured and not labelled else world[key]
            columns.setdefault(key, []).extend(values.tolist())
        top = [
            None if d or not labelled else classes[b]
            for b, d in zip(world["best"], world["dead"], strict=True)
        ]
        columns.setdefault("top_class", []).extend(top)
    run.save_table("units", columns)


def _layer_table(run: Run, names, worlds, images: int, labelled: bool) -> None:
    columns: dict[str, list] = {}

    def add(**row) -> None:
        for key, value in row.items():
            columns.setdefault(key, []).append(value)

    for i, (name, world) in enumerate(zip(names, worlds, strict=True)):
        n, dead = len(world["dead"]), int(world["dead"].sum())
        si, cf = (float(np.nanmean(world[k])) if labelled else float("nan") for k in ("si", "si_cf"))
        perm, off = (float(np.nanmean(world[k])) if labelled else float("nan") for k in ("si_perm", "si_off"))
        active = float(world["activity"].mean())
        add(layer=name, type="ReLU", shape=f"{n}x{16 >> min(i, 3)}x{16 >> min(i, 3)}", units=n, unit_axis=1, n=images,
            dead=dead, dead_fraction=dead / n, si=si, si_lo=si - 0.02, si_hi=si + 0.02, si_cf=cf, si_cf_lo=cf - 0.025,
            si_cf_hi=cf + 0.025, si_perm=perm, si_off=off, activity=active, activity_lo=active - 0.01,
            activity_hi=active + 0.01, dim_90=max(1, n // 5), dim_95=max(1, n // 3), dim_99=max(2, n // 2), pr=n / 8.0)  # fmt: skip
    run.save_table("layers", columns)


def _pictures(run: Run, rng, names, worlds, targets, classes, *, labelled: bool, side: int, top: int) -> None:
    tiles = [_picture(rng, int(t), side) for t in targets]
    by_class = [np.flatnonzero(targets == c) for c in range(len(classes))]
    rows: dict[str, list] = {
        k: [] for k in ("layer", "unit", "rank", "index", "value", "row", "col", "rows", "cols")
    }
    used: set[int] = set()
    for depth, (name, world) in enumerate(zip(names, worlds, strict=True)):
        grid = -1 if depth == len(names) - 1 else max(1, side >> min(depth, 3))
        for unit, dead in enumerate(world["dead"].tolist()):
            if dead:
                continue
            pool = by_class[int(world["best"][unit])]
            chosen = rng.choice(
                pool if len(pool) >= top else len(targets), min(top, len(targets)), replace=False
            )
            for rank, index in enumerate(chosen.tolist()):
                place = rng.integers(0, grid, 2).tolist() if grid > 0 else (-1, -1)
                value = float(world["max"][unit] * (1 - 0.04 * rank))
                for key, item in zip(rows, (name, unit, rank, index, value, *place, grid, grid), strict=True):
                    rows[key].append(item)
                used.add(index)
    run.save_table("top", rows)
    shown = sorted(used)
    sheets, places = sprite_sheets([tiles[i] for i in shown])
    for number, sheet in enumerate(sheets):
        run.save_image("thumbs", str(number), sheet)
    label = [classes[int(targets[i])] if labelled else "" for i in shown]
    run.save_table("examples", {
        "index": shown, "name": [f"image {i}" for i in shown], "target": label, "predicted": label,
        **{k: [getattr(p, a) for p in places] for k, a in zip(("sheet", "x", "y", "w", "h"), ("sheet", "x", "y", "w", "h"), strict=True)},
    })  # fmt: skip


def _picture(rng: np.random.Generator, target: int, side: int) -> np.ndarray:
    """A coloured disc or square on a gradient; colour and form tell the class."""
    y, x = np.mgrid[0:side, 0:side] / side
    hue = np.array([0.5 + 0.5 * np.cos(2 * np.pi * (target / 10 + k / 3)) for k in range(3)])
    centre = 0.3 + 0.4 * rng.random(2)
    distance = (
        np.maximum(abs(x - centre[0]), abs(y - centre[1]))
        if target % 2
        else np.hypot(x - centre[0], y - centre[1])
    )
    ground = (0.25 + 0.3 * rng.random()) * (0.6 + 0.4 * (x * rng.random() + y * rng.random()))
    image = np.where((distance < 0.18 + 0.1 * rng.random())[..., None], hue, ground[..., None])
    noisy = image + 0.03 * rng.standard_normal(image.shape)
    return (255 * np.clip(noisy, 0, 1)).astype(np.uint8)


__all__ = ["CLASSES", "Place", "make_run"]
