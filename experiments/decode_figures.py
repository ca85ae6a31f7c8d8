"""The figures of the decoding study: points are networks, one colour a score; and strips of decodings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from decode_rows import Cells
from decode_setup import DECNN, DECODABLE, METHODS, REDECNN

from pellucid.report.dose_figures import canvas

SHORT = {
    "mnist": "MNIST, perceptron", "fashion-mnist": "Fashion-MNIST, perceptron", "fashion-residual": "Fashion-MNIST, residual", "digits": "digits",
}  # fmt: skip
COLOURS = {
    "vote_entropy": "#d55e00", "mean_entropy": "#0072b2", "base_msp": "#7a7a7a", "residual_mean": "#009e73",
}  # fmt: skip
NAMES = {
    "vote_entropy": "votes",
    "mean_entropy": "mean entropy",
    "base_msp": "largest probability of one",
    "residual_mean": "residual",
}
TASKS = {"miss.": "mistakes", "ood.other.": "the other data set", "fgsm.": "FGSM", "corrupt.": "corruptions"}
EDGE = 2  # each pixel becomes so many


def draw_all(tables: Mapping[str, Cells], out: Path) -> list[tuple[str, str]]:
    """Write every figure that the cells allow; (caption, file name) of each."""
    shown = {part: cells for part, cells in tables.items() if part in SHORT and cells.rows}
    if not shown:
        return []
    return [*(by_score(part, cells, out) for part, cells in shown.items()), by_layer(shown, out)]


def by_score(part: str, cells: Cells, out: Path) -> tuple[str, str]:
    """AUROC of each task by method: what votes say, and what stronger scores say of the same networks."""
    file = f"scores_{part}.svg"
    methods = [method for method in METHODS if method in cells.settings]
    with canvas(len(TASKS), size=(2 + 2.3 * len(TASKS), 1.2 + 0.35 * len(methods))) as (figure, axes):
        for ax, (prefix, task) in zip(axes, TASKS.items(), strict=True):
            panel(ax, cells, methods, prefix)
            ax.set_title(task)
            ax.set_yticks(range(len(methods)), methods if ax is axes[0] else [""] * len(methods))
        handles = [
            axes[0].plot([], [], "o", color=colour, label=NAMES[name])[0] for name, colour in COLOURS.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.savefig(out / file, metadata={"Date": None})
    caption = (
        f"{SHORT[part]}: AUROC by method and score, a point a network, 0.5 is chance. Votes are what the paper compares by; the others "
        "are scores of the same networks"
    )
    return caption, file


def panel(ax: Any, cells: Cells, methods: list[str], prefix: str) -> None:
    for shift, (name, colour) in enumerate(COLOURS.items()):
        for place, method in enumerate(methods):
            values = cells.column(method, prefix + name)
            ax.plot(values, np.full(len(values), place + 0.15 * (1.5 - shift)), "o", color=colour, ms=4)
    ax.axvline(0.5, color="#7a7a7a", lw=0.5)
    ax.set_xlim(0, 1.02)
    ax.invert_yaxis()


def by_layer(tables: Mapping[str, Cells], out: Path) -> tuple[str, str]:
    """Share of decodings that are classified as the input was, by layer."""
    file = "layers.svg"
    colours = dict(
        zip(DECODABLE, ("#7a7a7a", "#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7"), strict=True)
    )
    with canvas(len(tables), size=(1 + 3.4 * len(tables), 3.3)) as (figure, axes):
        for ax, (part, cells) in zip(axes, tables.items(), strict=True):
            layers = cells.named("kept.")
            for method in (m for m in DECODABLE if m in cells.settings):
                means = [100 * cells.column(method, f"kept.{layer}").mean() for layer in layers]
                ax.plot(range(len(layers)), means, "o-", color=colours[method], ms=4, lw=1, label=method)
            ax.set_xticks(range(len(layers)), [layer.lstrip("blockayer") for layer in layers])
            ax.set_xlabel("layer")
            ax.set_ylabel("label kept, %")
            ax.set_title(SHORT[part])
        known = {
            label: handle
            for ax in axes
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        if known:
            figure.legend(
                known.values(),
                known.keys(),
                loc="outside lower center",
                ncols=min(len(known), 2 * len(tables)),
                frameon=False,
            )
        figure.savefig(out / file, metadata={"Date": None})
    return (
        "Share of decodings that the classifier takes for what it took the input for, mean over networks, by layer",
        file,
    )


def strips(part: str, cells: Cells, scratch: Path, out: Path) -> list[tuple[str, str]]:
    """Inputs and their decodings by layer, of right and wrong predictions; none where no pictures were kept here."""
    from PIL import Image
    from safetensors.numpy import load_file

    found: list[tuple[str, str]] = []
    for method in (DECNN, REDECNN):
        row = cells.rows.get((method, 0))
        file = scratch / row["cell"] / "pictures.safetensors" if row else None
        if file is None or not file.exists():
            continue
        kept = load_file(file)
        rows = [sheet(kept[f"{name}.images"]) for name in ("right", "wrong") if f"{name}.images" in kept]
        joined = np.concatenate(
            [part for one in rows for part in (one, np.full((EDGE * 4, one.shape[1]), 255, np.uint8))][:-1]
        )
        name = f"pictures_{part}_{method.lower()}.png"
        Image.fromarray(joined).save(out / name)
        labels = "; ".join(
            f"{t} taken for {p}"
            for t, p in zip(kept.get("wrong.targets", []), kept.get("wrong.predicted", []), strict=True)
        )
        found.append((f"{SHORT[part]}, {method}: test images at the left, then their decodings layer by layer; above, the first right answers, below, the first wrong ones ({labels})", name))  # fmt: skip
    return found


def sheet(images: np.ndarray) -> np.ndarray:
    """(input and layers) x examples of images as bytes: a row an example."""
    clean = np.nan_to_num(images[:, :, 0]).clip(0, 1)
    padded = np.pad(clean, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1.0)
    rows = [np.concatenate(list(padded[:, i]), 1) for i in range(padded.shape[1])]
    grey = (255 * np.concatenate(rows, 0)).astype(np.uint8)
    return grey.repeat(EDGE, 0).repeat(EDGE, 1)
