"""Accuracy under corruption: every type at every severity, their mean, and the mean relative to clean accuracy."""

import dataclasses as dc
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError, check_one_of
from pellucid.attack.ascent import attack_mode
from pellucid.data import Source
from pellucid.evals._accuracy import class_logits, labelled, model_device
from pellucid.evals.classify import wilson
from pellucid.evals.corrupt.corrupting import corrupt
from pellucid.evals.corrupt.files import corruption_file, corruption_files
from pellucid.evals.corrupt.needs import NEED_KORNIA, kornia
from pellucid.evals.corrupt.severities import SEVERITIES, TYPES, level
from pellucid.evals.corrupt.weather import load_textures
from pellucid.train import logits_of


@dc.dataclass(frozen=True)
class CorruptionTable:
    """Accuracies as fractions in [0, 1] with 95 % intervals.

    `accuracy`, `low`, `high`: one row a type, one column a severity (Wilson). `mean`: over all types and severities;
    `relative`: mean / clean, so that a gap in clean accuracy is not read as a gap in robustness; their intervals come
    from the spread over images, since the same images are in every cell. `clean` and `relative` are NaN where there
    are no clean images. `correct[t, s, i]`: image `index[i]` was right; `clean_correct[i]`: it was so untouched.
    `skipped`: (type, reason).
    """

    types: tuple[str, ...]
    severities: tuple[int, ...]
    n: int
    clean: float
    clean_interval: tuple[float, float]
    accuracy: Float[Tensor, "types severities"]
    low: Float[Tensor, "types severities"]
    high: Float[Tensor, "types severities"]
    mean: float
    mean_interval: tuple[float, float]
    relative: float
    relative_interval: tuple[float, float]
    by_type: tuple[float, ...]
    index: Int[Tensor, " n"]
    correct: Bool[Tensor, "types severities n"]
    clean_correct: Bool[Tensor, " n"] | None
    skipped: tuple[tuple[str, str], ...]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each type and severity, for a table."""
        cells = [(t, s) for t in range(len(self.types)) for s in range(len(self.severities))]
        return {
            "type": [self.types[t] for t, _ in cells],
            "severity": [self.severities[s] for _, s in cells],
            "accuracy": [float(self.accuracy[c]) for c in cells],
            "low": [float(self.low[c]) for c in cells],
            "high": [float(self.high[c]) for c in cells],
            "n": [self.n] * len(cells),
        }


def corrupted_accuracy(
    model: nn.Module,
    source: Source,
    types: Sequence[str] = TYPES,
    severities: Sequence[int] = SEVERITIES,
    *,
    frost_textures: str | Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CorruptionTable:
    """Accuracy on clean images and on every corruption of them.

    C = mean over types and severities of accuracy. The images are read once and corrupted batch by batch. `frost`
    is left out, and listed as skipped, where no folder of textures is given.

    Raises:
        ConfigError: an unknown type or severity, nothing left to measure, kornia missing.
        DataError: a source without labels, images outside [0, 1] or below 8 px.
    """
    kept, left_out = _what_to_run(types, severities, frost_textures)
    device = model_device(model) if device is None else torch.device(device)
    view = class_logits(model, source).to(device)
    clean: list[Tensor] = []
    cells: list[Tensor] = []
    index: list[Tensor] = []
    seen = 0
    with attack_mode(view), torch.no_grad():
        for batch, targets in labelled(source, batch_size, device):

            def right(images: Tensor, targets: Tensor = targets) -> Tensor:
                return (logits_of(view(images)).argmax(1) == targets).cpu()

            clean.append(right(batch.inputs))
            row = [
                right(
                    corrupt(batch.inputs, t, s, index=batch.index, seed=seed, frost_textures=frost_textures)
                )
                for t in kept
                for s in severities
            ]
            cells.append(torch.stack(row).view(len(kept), len(severities), -1))
            index.append(batch.index)
            seen += len(targets)
            if progress is not None:
                progress(seen, len(source))
    if not clean:
        raise DataError(f"source {source.name!r} has no images")
    return _table(
        kept, severities, torch.cat(cells, 2), torch.cat(clean), index=torch.cat(index), skipped=left_out
    )


def corrupted_file_accuracy(
    model: nn.Module,
    folder: str | Path,
    types: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    *,
    clean: Source | None = None,
    classes: Sequence[str] = (),
    batch_size: int = 64,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CorruptionTable:
    """The same table from files in the layout of CIFAR-10-C (see `corruption_file`).

    Args:
        types: default every file of the folder, also beyond the standard fifteen; standard ones that are missing
            are listed as skipped.
        clean: the uncorrupted images in the same order, for `relative`.
    """
    there = corruption_files(folder)
    kept = tuple(there if types is None else types)
    left_out = (
        tuple((t, f"no {t}.npy in the folder") for t in TYPES if t not in there) if types is None else ()
    )
    device = model_device(model) if device is None else torch.device(device)
    view = model.to(device)
    cells: list[Tensor] = []
    for done, t in enumerate(kept, 1):
        sources = [corruption_file(folder, t, s, classes=classes) for s in severities]
        cells.append(torch.stack([_right(view, source, batch_size, device) for source in sources]))
        if progress is not None:
            progress(done, len(kept))
    correct = torch.stack(cells)
    untouched = None if clean is None else _right(view, clean, batch_size, device)
    if untouched is not None and len(untouched) != correct.shape[2]:
        raise DataError(
            f"{len(untouched)} clean images cannot be compared with {correct.shape[2]} corrupted ones"
        )
    index = torch.arange(correct.shape[2])
    return _table(kept, severities, correct, untouched, index=index, skipped=left_out)


def joined(tables: Sequence[CorruptionTable]) -> CorruptionTable:
    """One table of several that were measured on the same images at the same severities, type after type.

    Raises:
        DataError: other images or severities, or a type twice.
    """
    if not tables:
        raise DataError("no table to join")
    first = tables[0]
    for table in tables[1:]:
        if table.severities != first.severities or not torch.equal(table.index, first.index):
            raise DataError("tables of other images or other severities do not make one table")
    types = [t for table in tables for t in table.types]
    if len(set(types)) < len(types):
        raise DataError(f"a type is in two of the tables: {types}")
    return _table(
        types,
        first.severities,
        torch.cat([table.correct for table in tables]),
        first.clean_correct,
        index=first.index,
        skipped=tuple(dict.fromkeys(entry for table in tables for entry in table.skipped)),
    )


def _right(model: nn.Module, source: Source, batch_size: int, device: torch.device) -> Bool[Tensor, " n"]:
    with attack_mode(model), torch.no_grad():
        found = [
            (logits_of(model(batch.inputs)).argmax(1) == targets).cpu()
            for batch, targets in labelled(source, batch_size, device)
        ]
    return torch.cat(found)


def _what_to_run(
    types: Sequence[str], severities: Sequence[int], frost_textures: str | Path | None
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Types to run and types to skip; everything that could fail later fails here."""
    for t in types:
        check_one_of(t, TYPES, "corruption")
        for s in severities:
            level(t, s, 32)
    skipped = tuple(
        (t, "no folder of frost textures was given") for t in types if t == "frost" and not frost_textures
    )
    kept = tuple(t for t in types if (t, "no folder of frost textures was given") not in skipped)
    if not kept or not severities:
        raise ConfigError(
            f"nothing to measure: types {list(types)}, severities {list(severities)}, skipped {skipped}"
        )
    if "frost" in kept and frost_textures is not None:
        load_textures(Path(frost_textures), 3, 0.2, (8, 8))
    if NEED_KORNIA & set(kept):
        kornia()
    return kept, skipped


def _table(
    types: Sequence[str],
    severities: Sequence[int],
    correct: Bool[Tensor, "types severities n"],
    clean: Bool[Tensor, " n"] | None,
    *,
    index: Int[Tensor, " n"],
    skipped: tuple[tuple[str, str], ...],
) -> CorruptionTable:
    n = correct.shape[2]
    bounds = torch.tensor([[wilson(int(c.sum()), n) for c in row] for row in correct], dtype=torch.float64)
    by_image = correct.double().mean((0, 1))
    mean, mean_interval = _ratio(by_image, torch.ones(n, dtype=torch.float64))
    none = (math.nan, math.nan)
    relative = (math.nan, none) if clean is None else _ratio(by_image, clean.double())
    accuracy = correct.double().mean(2)
    return CorruptionTable(
        types=tuple(types), severities=tuple(severities), n=n,
        clean=math.nan if clean is None else float(clean.double().mean()),
        clean_interval=none if clean is None else wilson(int(clean.sum()), n),
        accuracy=accuracy, low=bounds[..., 0], high=bounds[..., 1], mean=mean, mean_interval=mean_interval,
        relative=relative[0], relative_interval=relative[1], by_type=tuple(float(v) for v in accuracy.mean(1)),
        index=index, correct=correct, clean_correct=clean, skipped=skipped,
    )  # fmt: skip


def _ratio(top: Float[Tensor, " n"], bottom: Float[Tensor, " n"]) -> tuple[float, tuple[float, float]]:
    """mean(top) / mean(bottom) over the same images, with the 95 % interval of the delta method."""
    n, base = len(top), float(bottom.mean())
    if base == 0:
        return math.nan, (math.nan, math.nan)
    ratio = float(top.mean()) / base
    spread = float((top - ratio * bottom).square().sum()) / max(n - 1, 1)
    half = 1.959964 * math.sqrt(spread / n) / base
    return ratio, (max(0.0, ratio - half), ratio + half)
