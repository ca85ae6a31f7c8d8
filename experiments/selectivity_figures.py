"""The figures of the selectivity study: blue below, grey at, red above alpha = 0; points are networks, bars 95 % intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from scipy import stats
from selectivity_claims import Cells

Rows = Sequence[Mapping[str, str]]
SHORT = {"cifar10": "CIFAR-10", "fashion-mnist": "Fashion-MNIST", "digits": "digits"}
GREY = "#6b6b6b"
STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 10, "axes.titlelocation": "left", "figure.facecolor": "white",
    "svg.hashsalt": "pellucid",
}  # fmt: skip


def colour(alpha: float) -> str:
    if alpha == 0:
        return GREY
    depth = 0.45 + 0.5 * min(abs(alpha), 20) ** 0.5 / 20**0.5
    return mpl.colors.to_hex(plt.get_cmap("Blues" if alpha < 0 else "Reds")(depth))


def draw_all(tables: Mapping[str, Rows], out: Path) -> list[tuple[str, str]]:
    """Write every figure that the cells allow; (caption, file name) of each."""
    if not tables:
        return []
    found: list[tuple[str, str]] = []
    plots: list[tuple[str, str, Callable[[Axes, str, Cells], None]]] = [
        ("accuracy_selectivity", "Accuracy against selectivity", against_selectivity),
        ("accuracy_alpha", "Accuracy against alpha, class arm and permuted-label arm", against_alpha),
        ("index_layer", "Selectivity by layer", by_layer("si_cf.", "cross-fitted index")),
        ("corruption_severity", "Accuracy under corruption by severity", corruption_by_severity),
        ("attack_radius", "Accuracy under attack (PGD-20) by radius", attack_by_radius),
        ("dimension_layer", "Dimension of the responses by layer", by_layer("dim_95.", "directions with 95 % of variance")),
        ("dimension_attack", "Dimension of what an attack changes, by layer", by_layer("delta_attack_dim_95.", "directions of the change")),
        (
            "dimension_corruption", "Dimension of what corruption changes, by layer",
            by_layer("delta_corruption_dim_95.", "directions of the change"),
        ),
        ("gradient_layer", "Variability of units' gradients over images", by_layer("gradient_cv_images.", "coefficient of variation")),
    ]  # fmt: skip
    with mpl.rc_context(STYLE):
        for name, caption, plot in plots:
            figure, axes = plt.subplots(
                1, len(tables), figsize=(1 + 4.2 * len(tables), 3.6), squeeze=False, layout="constrained"
            )
            for ax, (dataset, rows) in zip(axes[0], tables.items(), strict=True):
                plot(ax, dataset, Cells(rows))
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
            found.append((caption, f"{name}.svg"))
    return found


def alphas(cells: Cells, arm: str = "class") -> list[float]:
    return sorted({a for name, a, _ in cells.rows if name == arm})


def values(cells: Cells, arm: str, alpha: float, column: str) -> np.ndarray:
    there = sorted(r for name, a, r in cells.rows if (name, a) == (arm, alpha))
    found = [cells.rows[arm, alpha, r].get(column, "") for r in there]
    return np.array([float(v) for v in found if v != ""])


def reach(found: np.ndarray) -> float:
    if len(found) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(found) - 1)) * float(found.std(ddof=1)) / math.sqrt(len(found))


def against_selectivity(ax: Axes, dataset: str, cells: Cells) -> None:
    for alpha in alphas(cells):
        x, y = values(cells, "class", alpha, "si"), 100 * values(cells, "class", alpha, "accuracy")
        ax.plot(x, y, "o", ms=4, alpha=0.6, color=colour(alpha), mec="none")
        ax.errorbar(x.mean(), y.mean(), xerr=reach(x), yerr=reach(y), color=colour(alpha), lw=1.5)
        ax.annotate(
            f"{alpha:g}", (x.mean(), y.mean()), textcoords="offset points", xytext=(5, 5), color=colour(alpha)
        )
    base = 100 * values(cells, "class", 0.0, "accuracy")
    if len(base):
        ax.axhline(base.mean(), ls="--", lw=1, color=GREY)
    ax.set(
        xlabel="selectivity index (mean over layers)",
        ylabel="test accuracy, %",
        title=f"{SHORT[dataset]}: {summary(cells)}",
    )


def summary(cells: Cells) -> str:
    """What alpha = -5 and 5 do to accuracy, in words with numbers."""
    parts = []
    for alpha in (-5.0, 5.0):
        both = [
            r
            for name, a, r in cells.rows
            if (name, a) == ("class", alpha) and ("class", 0.0, r) in cells.rows
        ]
        if both:
            gap = 100 * (
                cells.column("class", alpha, "accuracy", both) - cells.column("class", 0.0, "accuracy", both)
            )
            parts.append(f"{gap.mean():+.1f} pp at alpha {alpha:g}")
    return ", ".join(parts) or "no pair with a baseline yet"


def against_alpha(ax: Axes, dataset: str, cells: Cells) -> None:
    for arm, mark, shade in (("class", "o", None), ("permuted", "s", "#b8860b")):
        doses = alphas(cells, arm)
        if not doses:
            continue
        rows = [100 * values(cells, arm, a, "accuracy") for a in doses]
        for a, row in zip(doses, rows, strict=True):
            ax.plot([a] * len(row), row, mark, ms=3, alpha=0.5, color=shade or colour(a), mec="none")
        means = [row.mean() for row in rows]
        ax.errorbar(doses, means, yerr=[reach(row) for row in rows], color=shade or GREY, lw=1, capsize=2)
        ax.annotate(
            arm, (doses[-1], means[-1]), textcoords="offset points", xytext=(6, 0), color=shade or GREY
        )
    ax.set_xscale("symlog", linthresh=1)
    ax.set(xlabel="alpha", ylabel="test accuracy, %", title=SHORT[dataset])


def by_layer(prefix: str, label: str) -> Callable[[Axes, str, Cells], None]:
    """A plot of one measure against depth, a line an alpha."""

    def plot(ax: Axes, dataset: str, cells: Cells) -> None:
        first = next(iter(cells.rows.values()))
        layers = [key.removeprefix(prefix) for key in first if key.startswith(prefix)]
        for alpha in (a for a in alphas(cells) if abs(a) in (0, 1, 2, 5)):
            rows = [values(cells, "class", alpha, prefix + layer) for layer in layers]
            rows = [row if len(row) else np.array([math.nan]) for row in rows]
            line(ax, range(len(layers)), rows, alpha)
        ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right", fontsize=8)
        ax.set(ylabel=label, title=SHORT[dataset])

    return plot


def corruption_by_severity(ax: Axes, dataset: str, cells: Cells) -> None:
    for alpha in (a for a in alphas(cells) if abs(a) in (0, 1, 2, 5)):
        columns = ["corruption_clean", *(f"corruption_severity.{s}" for s in (1, 3, 5))]
        line(ax, [0, 1, 3, 5], [100 * values(cells, "class", alpha, c) for c in columns], alpha)
    ax.set(xlabel="severity (0: clean)", ylabel="accuracy, %, mean of 15 types", title=SHORT[dataset])


def attack_by_radius(ax: Axes, dataset: str, cells: Cells) -> None:
    first = next(iter(cells.rows.values()))
    columns = [key for key in first if key.startswith("pgd.")]
    radii = [float(key.removeprefix("pgd.")) for key in columns]
    for alpha in (a for a in alphas(cells) if abs(a) in (0, 1, 2, 5)):
        # Named at the smallest radius, where the lines are furthest apart: all of them end at 0.
        line(ax, radii, [100 * values(cells, "class", alpha, c) for c in columns], alpha, named_at=1)
    ax.set(xlabel="radius, of pixels in [0, 1]", ylabel="accuracy, %", title=SHORT[dataset])


def line(
    ax: Axes, x: Sequence[float], rows: Sequence[np.ndarray], alpha: float, *, named_at: int = -1
) -> None:
    """Means with an interval band, named at one of its points."""
    means = np.array([row.mean() for row in rows])
    half = np.array([reach(row) for row in rows])
    ax.plot(x, means, "-o", ms=3, color=colour(alpha), lw=1.3)
    ax.fill_between(x, means - half, means + half, color=colour(alpha), alpha=0.15, lw=0)
    ax.annotate(
        f"{alpha:g}",
        (x[named_at], means[named_at]),
        textcoords="offset points",
        xytext=(6, -3),
        color=colour(alpha),
    )
