"""The figures of the Bort study: grey without the constraint, blue with it; points are networks, lines their means."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bort_measures import ALPHAS
from bort_rows import ARM_NAMES, Cells

from pellucid.report.dose_figures import canvas

SHORT = {"mnist": "MNIST", "cifar10": "CIFAR-10", "digits": "digits"}
COLOURS = {"plain": "#7a7a7a", "every 1": "#2166ac", "every 4": "#67a9cf"}
RIVALS = {"edit": "#2166ac", "blend": "#b8860b", "step": "#b2182b", "noise": "#7a7a7a"}
NAMES = {"edit": "edit", "blend": "blend with the exemplar", "step": "gradient step", "noise": "noise"}
SALIENCIES = ("random", "centre", "edges", "SAT", "gradient")
WAYS = {
    "": ("transpose", "o-"),
    "_pinv": ("pseudo-inverse", "^--"),
    "_search": ("search", "s:"),
}  # how an image is rebuilt: ending of the column, name, line
EDGE = 3  # each pixel becomes so many

Panel = tuple[str, Cells, str]  # title, cells, optimizer


def draw_all(tables: Mapping[str, Cells], out: Path) -> list[tuple[str, str]]:
    """Write every figure that the cells allow; (caption, file name) of each."""
    panels = [
        (f"{SHORT[name]}, {optimizer}", cells, optimizer)
        for name, cells in tables.items()
        for optimizer in sorted({arm[1] for arm in cells.arms if arm[0] == "plain"})
    ]
    if not panels:
        return []
    found: list[tuple[str, str]] = []
    for name, caption, plot in PLOTS:
        with canvas(len(panels), size=(0.6 + 3.2 * len(panels), 3.3)) as (figure, axes):
            for ax, panel in zip(axes, panels, strict=True):
                plot(ax, panel)
                ax.set_title(panel[0])
            known = dict(
                pair for ax in axes for pair in zip(*reversed(ax.get_legend_handles_labels()), strict=True)
            )
            figure.legend(
                known.values(),
                known.keys(),
                loc="outside lower center",
                ncols=len(known),
                frameon=False,
                fontsize=8,
            )
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
        found.append((caption, f"{name}.svg"))
    return found


def error_by_depth(ax: Any, panel: Panel) -> None:
    """Relative error of what is rebuilt from each activation."""
    _, cells, optimizer = panel
    layers = cells.named("error.")
    for arm, colour in COLOURS.items():
        key = ("plain", optimizer, arm)
        if key not in cells.arms:
            continue
        for suffix, (way, style) in WAYS.items():
            if suffix and arm == "every 4":
                continue
            means = [cells.column(key, f"error{suffix}.{name}").mean() for name in layers]
            label = f"{ARM_NAMES[arm]}: {way}"
            ax.plot(range(len(layers)), means, style, color=colour, ms=4, lw=1, label=label)
    ax.axhline(1, color="#7a7a7a", lw=0.5)
    logarithmic(ax)
    ax.set_xticks(range(len(layers)), layers)
    ax.set_ylabel("relative error")


def defect_by_layer(ax: Any, panel: Panel) -> None:
    """Defect of each matrix of the plain network after training, and before it."""
    _, cells, optimizer = panel
    layers = cells.named("defect.")
    for arm, colour in COLOURS.items():
        key = ("plain", optimizer, arm)
        if key not in cells.arms:
            continue
        for i, name in enumerate(layers):
            values = cells.column(key, f"defect.{name}")
            ax.plot(
                [i] * len(values), values, "o", color=colour, ms=4, label=ARM_NAMES[arm] if i == 0 else None
            )
            if arm == "plain":
                start = cells.column(key, f"defect_before.{name}").mean()
                ax.plot(
                    [i - 0.2, i + 0.2],
                    [start] * 2,
                    "-",
                    color="#7a7a7a",
                    label="at the start" if i == 0 else None,
                )
    logarithmic(ax)
    ax.set_xticks(range(len(layers)), layers)
    ax.set_ylabel("defect")


def deletion_by_map(ax: Any, panel: Panel) -> None:
    """Area under deletion: lower is better, and random order is what a map must beat."""
    _, cells, optimizer = panel
    for shift, arm in ((-0.12, "plain"), (0.12, "every 1")):
        key = ("plain", optimizer, arm)
        if key not in cells.arms:
            continue
        for i, name in enumerate(SALIENCIES):
            values = cells.column(key, f"deletion.{name}")
            ax.plot(
                [i + shift] * len(values),
                values,
                "o",
                color=COLOURS[arm],
                ms=4,
                label=ARM_NAMES[arm] if i == 0 else None,
            )
    ax.set_xticks(range(len(SALIENCIES)), SALIENCIES)
    ax.set_ylabel("area under deletion")


def edits_by_size(ax: Any, panel: Panel) -> None:
    """Share of images that reach the target class by the size of what was added, on the constrained network."""
    _, cells, optimizer = panel
    key = ("plain", optimizer, "every 1")
    if key not in cells.arms:
        return
    for name, colour in RIVALS.items():
        sizes = [cells.column(key, f"{name}_size.{alpha:g}").mean() for alpha in ALPHAS]
        shares = [100 * cells.column(key, f"{name}.{alpha:g}").mean() for alpha in ALPHAS]
        ax.plot(sizes, shares, "o-", color=colour, ms=4, lw=1, label=NAMES[name])
    ax.set_xlabel("size, relative to the image")
    ax.set_ylabel("reaches the target, %")


PLOTS: list[tuple[str, str, Callable[[Any, Panel], None]]] = [
    (
        "error_depth", "Relative error of images rebuilt from each activation, by the transpose, by each layer's pseudo-inverse, and by "
        "a search with gradients; 1 is what a black image gets", error_by_depth,
    ),
    ("defect_layer", "Defect of each matrix of the plain network after training, and at the start", defect_by_layer),
    ("deletion", "Area under deletion; a map that does not come out below random order shows nothing", deletion_by_map),
    ("edits", "How often edits reach their target, beside blending, one gradient step and noise of the same size", edits_by_size),
]  # fmt: skip


def logarithmic(ax: Any) -> None:
    """Powers of ten as plain numbers: the figures' text is left unparsed."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = ax.get_ylim()
    ax.yaxis.set_minor_formatter((lambda value, _: f"{value:.2g}") if high < 10 * low else (lambda *_: ""))


def pictures(dataset: str, cells: Cells, scratch: Path, out: Path) -> tuple[str, str] | None:
    """Images, and what backtracking makes of them, with the constraint and without; None where none was kept here."""
    from PIL import Image
    from safetensors.numpy import load_file

    strips: list[np.ndarray] = []
    shown: list[str] = []
    for arm in ("every 1", "plain"):
        row = cells.final.get((("plain", "adamw", arm), 0))
        file = scratch / row["cell"] / "pictures.safetensors" if row else None
        if file is None or not file.exists():
            continue
        kept = load_file(file)
        strips += [] if strips else [strip(kept["images"])]
        strips.append(strip(kept["rebuilt"]))
        shown.append("with the constraint" if arm != "plain" else "without")
    if not strips:
        return None
    sheet = np.concatenate(strips, 0)
    if sheet.shape[2] == 1:
        sheet = sheet.repeat(3, 2)
    Image.fromarray(sheet).save(out / f"pictures_{dataset}.png")
    names = ", then ".join(shown)
    return (
        f"{SHORT[dataset]}: test images, and below what backtracking makes of the last activation: {names} (AdamW, replicate 0; "
        "clipped to [0, 1])", f"pictures_{dataset}.png",
    )  # fmt: skip


def strip(images: np.ndarray) -> np.ndarray:
    """A row of images with gaps, as bytes of height x width x colours."""
    clean = np.nan_to_num(images).clip(0, 1)
    padded = np.pad(clean, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1.0)
    row = np.concatenate(list(padded), 2).transpose(1, 2, 0)
    return (255 * row).astype(np.uint8).repeat(EDGE, 0).repeat(EDGE, 1)
