"""What people are shown: items and images of one or several inversion runs.

A run's table `inversions` has a row per item; its images lie in the run folder. The columns that are read:

    item                         id, unique within the run
    target, target_class         index of the target in the data, its class (may be missing: nothing is kept apart then)
    start                        number of the start image
    layer, method                where and how was inverted
    rho, tier, valid, v1 ... v7  validity, as far as there
    target_image, start_image, found_image
                                 files below the run folder, or below its images/inversion
    NAME_target, NAME_start      distances D(found, target) and D(found, start) under metric NAME
"""

import dataclasses as dc
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pellucid._checks import ConfigError, DataError, nearest
from pellucid.rng import stream
from pellucid.store import Run
from pellucid.study.design import Study
from pellucid.study.schedule import Item

TABLE = "inversions"
IMAGES = "inversion"
ROLES = ("found", "target", "start")
LONGEST_ID = 128
"""What databases of answers have room for."""
# Other names under which an inversion may have kept the same thing.
ALSO: dict[str, tuple[str, ...]] = {
    "item": ("id", "name"),
    "target": ("target_index", "index"),
    "target_class": ("class", "label", "class_name"),
    "start": ("start_number",),
    "method": ("regulariser", "prior"),
    "found_image": ("result_image", "image"),
}


@dc.dataclass(frozen=True)
class Stimulus:
    """One image as people see it: `sha256` of its PNG file is its name; `role` is "found", "target" or "start"."""

    sha256: str
    role: str
    width: int
    height: int


@dc.dataclass(frozen=True)
class StudyItem:
    """One thing to judge with all that is known of it; `item` is the part that the scheduler sees.

    Attributes:
        run, layer, method: what the cell is made of.
        start_number: which start image.
        rho: relative distance of the representations of what was found and the target.
        tier: tight, loose or failed; `gates` the validity gates by name.
        distances: by metric, (D(found, target), D(found, start)).
    """

    item: Item
    found: Stimulus
    target_image: Stimulus
    start: Stimulus
    run: str = ""
    layer: str = ""
    method: str = ""
    start_number: int = 0
    rho: float | int = float("nan")
    tier: str = ""
    gates: Mapping[str, bool] = dc.field(default_factory=dict[str, bool])
    distances: Mapping[str, tuple[float, float]] = dc.field(default_factory=dict[str, tuple[float, float]])

    @property
    def id(self) -> str:
        """Unique within the study."""
        return self.item.id

    @property
    def cell(self) -> str:
        """The condition."""
        return self.item.cell

    @property
    def target(self) -> str:
        """The target, the same text in every cell."""
        return self.item.target

    @property
    def stimuli(self) -> tuple[Stimulus, Stimulus, Stimulus]:
        """Found, target, start."""
        return self.found, self.target_image, self.start


@dc.dataclass(frozen=True)
class Pool:
    """Items with the PNG bytes of their images, by SHA-256."""

    items: tuple[StudyItem, ...]
    images: Mapping[str, bytes]


def build_pool(study: Study, *, base: Path | str = ".") -> Pool:
    """The items that a design asks for, from its runs (paths are relative to `base`).

    Items of equal `target` index and bytes in several runs are one target. Cells are named by what differs between them.

    Raises:
        ConfigError: a run that is none, or nothing left.
        DataError: a table without the needed columns, or images that cannot be read.
    """
    images: dict[str, bytes] = {}
    rows: list[StudyItem] = []
    names = _short_names(study.runs)
    for given, name in zip(study.runs, names, strict=True):
        rows += read_run(Path(base) / given, name=name, images=images)
    if long := [row.id for row in rows if len(row.id) > LONGEST_ID]:
        raise ConfigError(
            f"an item's id has at most {LONGEST_ID} characters, got {long[0]!r}; give the run a shorter name"
        )
    kept = [row for row in rows if _wanted(row, study)]
    if not kept:
        raise ConfigError(
            f"none of the {len(rows)} items of {list(study.runs)} has a tier of {list(study.material.tiers)}"
            f"{' and passes every gate' if study.material.valid_only else ''}; see [material]"
        )
    kept = _few_starts(_named_cells(kept, study), study.material.starts)
    kept = _few_targets(kept, study)
    _same_sizes(kept)
    used = {s.sha256 for item in kept for s in item.stimuli}
    return Pool(tuple(sorted(kept, key=lambda i: i.id)), {k: v for k, v in images.items() if k in used})


def read_run(path: Path | str, *, name: str, images: dict[str, bytes]) -> list[StudyItem]:
    """Every item of one inversion run; PNG bytes are added to `images`. Raises as `build_pool` does."""
    run = Run(path)
    if TABLE not in run.table_names():
        raise ConfigError(f"{path} has no table {TABLE!r}: it is no run of `pellucid invert`")
    table = run.table(TABLE)
    column = {
        wanted: _column(table, wanted, f"{path}/tables/{TABLE}") for wanted in ("item", "target", "layer")
    }
    column |= {f"{r}_image": _column(table, f"{r}_image", f"{path}/tables/{TABLE}") for r in ROLES}
    for wanted in ("target_class", "start", "method", "rho", "tier"):
        column[wanted] = _find(table, wanted)
    gates = [key for key in table if key == "valid" or (key[:1] == "v" and key[1:].isdecimal())]
    metrics = [k[:-7] for k in table if k.endswith("_target") and _numbers(table, k, f"{k[:-7]}_start")]
    found: list[StudyItem] = []
    for row in range(len(column["item"])):
        shown = {role: _stimulus(run, str(column[f"{role}_image"][row]), role, images) for role in ROLES}
        _same_size(shown, f"{path}: item {column['item'][row]}")
        # The bytes are part of what a target is: index 3 of two data sets is not one target.
        target = f"{_text(column['target'], row)}-{shown['target'].sha256[:8]}"
        distances = {m: (float(table[f"{m}_target"][row]), float(table[f"{m}_start"][row])) for m in metrics}
        found.append(
            StudyItem(
                Item(f"{name}:{column['item'][row]}", "", target, _text(column["target_class"], row)),
                shown["found"],
                shown["target"],
                shown["start"],
                run=name,
                layer=str(column["layer"][row]),
                method=_text(column["method"], row),
                start_number=int(column["start"][row]) if len(column["start"]) else 0,
                rho=float(column["rho"][row]) if len(column["rho"]) else float("nan"),
                tier=_text(column["tier"], row),
                gates={key: bool(table[key][row]) for key in gates if table[key][row] is not None},
                distances=distances or {"l2": _l2(shown, images)},
            )
        )
    return found


def _wanted(item: StudyItem, study: Study) -> bool:
    """Tier and gates as `[material]` asks; an item without a tier counts as tight, one without gates as valid."""
    passes = all(item.gates.values()) or not study.material.valid_only
    return passes and (item.tier or "tight") in study.material.tiers


def _named_cells(items: Sequence[StudyItem], study: Study) -> list[StudyItem]:
    """Cells named by those of run, layer, method that differ (all of what was asked for, where nothing does)."""
    asked = study.material.cells
    differ = [part for part in asked if len({getattr(item, part) for item in items}) > 1] or list(asked[:1])
    return [
        dc.replace(item, item=dc.replace(item.item, cell=" · ".join(getattr(item, part) for part in differ)))
        for item in items
    ]


def _few_starts(items: Sequence[StudyItem], n: int) -> list[StudyItem]:
    """The first `n` starts of each target in each cell."""
    groups: dict[tuple[str, str], list[StudyItem]] = {}
    for item in items:
        groups.setdefault((item.cell, item.target), []).append(item)
    return [i for group in groups.values() for i in sorted(group, key=lambda i: (i.start_number, i.id))[:n]]


def _few_targets(items: Sequence[StudyItem], study: Study) -> list[StudyItem]:
    cells = {item.cell for item in items}
    of: dict[str, set[str]] = {}
    for item in items:
        of.setdefault(item.target, set()).add(item.cell)
    targets = sorted(t for t, there in of.items() if there == cells or not study.material.shared_only)
    if not targets:
        raise ConfigError(
            f"no target has an item in each of the {len(cells)} cells {sorted(cells)}; set material.shared_only = false, "
            "or allow more tiers"
        )
    wanted = study.material.targets
    if wanted is not None and wanted > len(targets):
        raise ConfigError(f"material.targets asks for {wanted} targets and {len(targets)} can be used")
    order = stream(study.seed, "targets").permutation(len(targets))
    chosen = {targets[i] for i in order[:wanted]}
    return [item for item in items if item.target in chosen]


def _stimulus(run: Run, name: str, role: str, images: dict[str, bytes]) -> Stimulus:
    """Pixels only, in three channels, encoded here: what a file carries besides them could tell where it comes from."""
    from PIL import Image, UnidentifiedImageError

    file = next((f for f in (run.path / "images" / IMAGES / name, run.path / name) if f.is_file()), None)
    if file is None or run.path.resolve() not in file.resolve().parents:
        raise DataError(f"{run.path}: no image {name!r} in the run folder or its images/{IMAGES}")
    try:
        with Image.open(file) as opened:
            grey = opened.mode in ("1", "L", "I", "I;16")
            pixels = (opened.convert("L") if grey else opened).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{file} is no readable image: {error}") from error
    sink = io.BytesIO()
    pixels.save(sink, format="png")
    data = sink.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    images[sha256] = data
    return Stimulus(sha256, role, pixels.width, pixels.height)


def pixels_of(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a PNG, grey ones in three equal channels."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def _l2(shown: Mapping[str, Stimulus], images: Mapping[str, bytes]) -> tuple[float, float]:
    """Root mean square difference of pixels in [0, 1]: the one metric that needs nothing; used where a run names none."""
    found, target, start = (pixels_of(images[shown[role].sha256]).astype(float) / 255 for role in ROLES)
    return float(np.sqrt(((found - target) ** 2).mean())), float(np.sqrt(((found - start) ** 2).mean()))


def _same_size(shown: Mapping[str, Stimulus], what: str) -> None:
    sizes = {(s.width, s.height) for s in shown.values()}
    if len(sizes) > 1:
        raise DataError(
            f"{what}: the three images differ in size, {sorted(sizes)}, which would give the answer away"
        )
    if shown["target"].sha256 == shown["start"].sha256:
        raise DataError(f"{what}: target and start are the same image, so there is nothing to choose")


def _same_sizes(items: Sequence[StudyItem]) -> None:
    """A browser is told how large an image is; that must not tell it the condition."""
    sizes: dict[str, set[tuple[int, int]]] = {}
    for item in items:
        sizes.setdefault(item.cell, set()).add((item.found.width, item.found.height))
    if len({frozenset(there) for there in sizes.values()}) > 1:
        listed = {cell: sorted(there) for cell, there in sorted(sizes.items())}
        raise DataError(
            f"images of the conditions differ in size, {listed}, which would give the condition away; use runs with images "
            "of one size"
        )


def _find(table: Mapping[str, np.ndarray], wanted: str) -> np.ndarray:
    """The column of this name, or of another name for it; empty when there is none."""
    for name in (wanted, *ALSO.get(wanted, ())):
        if name in table:
            return table[name]
    return np.array([])


def _column(table: Mapping[str, np.ndarray], wanted: str, where: str) -> np.ndarray:
    values = _find(table, wanted)
    if len(values) == 0:
        raise DataError(f"{where} has no column {wanted!r}; nearest: {nearest(wanted, table)}")
    return values


def _text(values: np.ndarray, row: int) -> str:
    if len(values) == 0 or values[row] is None or values[row] != values[row]:
        return ""
    value = values[row]
    return (
        str(int(value))
        if isinstance(value, float | np.floating) and float(value).is_integer()
        else str(value)
    )


def _short_names(runs: Sequence[str]) -> list[str]:
    """Runs by their folder's name, with as many parents as make them differ."""
    for depth in range(1, 32):
        names = ["/".join(Path(run).parts[-depth:]) for run in runs]
        if len(set(names)) == len(runs):
            return names
    raise ConfigError(f"a run stands twice in runs: {list(runs)}")


def item_to_plain(item: StudyItem) -> dict[str, Any]:
    """The item as JSON values; NaN becomes null."""
    tree = dc.asdict(item)
    tree["rho"] = None if item.rho != item.rho else float(item.rho)
    tree["distances"] = {
        name: [None if d != d else d for d in pair] for name, pair in sorted(item.distances.items())
    }
    tree["gates"] = dict(sorted(item.gates.items()))
    return tree


def item_from_plain(tree: Mapping[str, Any]) -> StudyItem:
    """The inverse of `item_to_plain`."""
    nan = float("nan")
    given: dict[str, Any] = dict(tree)
    for name in ("found", "target_image", "start"):
        given[name] = Stimulus(**given[name])
    given["rho"] = nan if given["rho"] is None else float(given["rho"])
    given["distances"] = {
        name: (nan if a is None else float(a), nan if b is None else float(b))
        for name, (a, b) in given["distances"].items()
    }
    given["item"] = Item(**given["item"])
    return StudyItem(**given)


def _numbers(table: Mapping[str, np.ndarray], *columns: str) -> bool:
    return all(name in table and table[name].dtype.kind == "f" for name in columns)
