"""The page and figures of `robustness.py`, from `cells.csv` alone."""

import csv
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np

ACCENT, SECOND, GREY = "#1a5fb4", "#b34700", "#59606b"
STATED = {"robust MNIST": (0.9820, 0.954), "robust Fashion-MNIST": (0.7827, 0.687)}
STATED_CLEAN = {
    "ResNet-20, JPEG test": 0.810,
    "ResNet-32, JPEG test": 0.826,
    "ResNet-20, lossless": 0.998,
    "ResNet-32, lossless": 1.0,
}
Row = Mapping[str, float]
Cells = Mapping[str, Mapping[str, Row]]


def write_page(table: Path, folder: Path) -> None:
    """`index.md`, `attacks.svg` and `corruptions.svg` from the finished cells; parts that are not there are left out."""
    cells = read(table)
    figures = [
        name
        for name, draw in (("attacks", attacks_figure), ("corruptions", corruptions_figure))
        if draw(cells, folder)
    ]
    parts = [
        "# Robustness of published networks",
        about(cells),
        accuracy_table(cells),
        *([f"![Accuracy against the radius]({name}.svg)" for name in figures if name == "attacks"]),
        attack_table(cells),
        margin_table(cells),
        *([f"![Accuracy under each corruption]({name}.svg)" for name in figures if name == "corruptions"]),
        corruption_table(cells),
        how(cells),
    ]
    (folder / "index.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def read(table: Path) -> Cells:
    """network -> part -> measures, of the cells that are done."""
    found: dict[str, dict[str, Row]] = {}
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["status"] == "done":
                skip = ("cell", "network", "part", "replicate", "seed", "status", "error")
                values = {k: float(v) for k, v in row.items() if v and k not in skip}
                found.setdefault(row["network"], {})[row["part"]] = values
    return found


def radii(row: Row, what: str = "pgd") -> list[float]:
    return sorted(
        float(k.split(":")[1]) for k in row if k.startswith(f"{what}:") and " " not in k.split(":")[1]
    )


def at(row: Row, what: str, radius: float) -> float:
    return row[f"{what}:{radius:.6g}"]


def percent(value: float, low: float = float("nan"), high: float = float("nan")) -> str:
    text = f"{100 * value:.1f}"
    return text if np.isnan(low) else f"{text} [{100 * low:.1f}, {100 * high:.1f}]"


def shown(radius: float) -> str:
    """8/255 where it was meant so, else the number."""
    levels = radius * 255
    meant = round(radius, 3) != radius and abs(levels * 4 - round(levels * 4)) < 1e-3
    return f"{round(levels * 4) / 4:g}/255" if meant else f"{radius:g}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    line = "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"
    return "\n".join(["| " + " | ".join(header) + " |", line, *("| " + " | ".join(r) + " |" for r in rows)])


def about(cells: Cells) -> str:
    text = (
        "Two residual networks for CIFAR-10 as they were published, and two small networks that were trained to be provably "
        "robust at a radius of 0.1. The residual networks are judged on the test images, of which only lossy JPEG files are at "
        "hand (they cost ten points; the published accuracy is 91.8 % and 92.8 %), and on 4,000 lossless images that they were "
        "trained on. All intervals are 95 %, over images, in percent; another training run of the same recipe would differ by more."
    )
    stated = []
    for name, (_, pgd) in STATED.items():
        if "attack" in cells.get(name, {}):
            found = at(cells[name]["attack"], "pgd", 0.1)
            stated.append(f"{name} {percent(found)} % (stated {percent(pgd)} %)")
    if stated:
        text += (
            "\n\nThe accuracies that were stated for the robust networks, under 40 steps of PGD at radius 0.1 on the first 1,000 test "
            f"images, are found again: {'; '.join(stated)}."
        )
    return text


def accuracy_table(cells: Cells) -> str:
    rows = []
    for name, parts in cells.items():
        clean, corrupted = parts.get("clean"), parts.get("corruptions")
        stated = STATED_CLEAN.get(name) or STATED.get(name, (float("nan"),))[0]
        rows.append(
            [
                name,
                "" if clean is None else percent(clean["accuracy"], clean["low"], clean["high"]),
                percent(stated),
                ""
                if corrupted is None
                else percent(corrupted["accuracy"], corrupted["low"], corrupted["high"]),
                ""
                if corrupted is None
                else percent(corrupted["mean"], corrupted["mean low"], corrupted["mean high"]),
                ""
                if corrupted is None
                else percent(corrupted["relative"], corrupted["relative low"], corrupted["relative high"]),
            ]
        )
    header = [
        "network", "clean, all images", "stated", "clean, the corrupted images", "corrupted, mean", "corrupted / clean",
    ]  # fmt: skip
    return "## Clean and corrupted\n\n" + markdown(header, rows)


def attack_table(cells: Cells) -> str:
    rows = []
    for name, parts in cells.items():
        row = parts.get("attack")
        if row is None:
            continue
        for r in radii(row):
            key = f"{r:.6g}"
            rows.append(
                [
                    name if r == 0 else "",
                    shown(r),
                    percent(row[f"pgd:{key}"], row[f"pgd:{key} low"], row[f"pgd:{key} high"]),
                    percent(row[f"fgsm:{key}"]),
                    f"{percent(row[f'again:{key}'])} → {percent(row[f'more steps:{key}'])}",
                    percent(row[f"transfer:{key}"]) if f"transfer:{key}" in row else "",
                ]
            )
    if not rows:
        return ""
    attacked = {name: parts["attack"] for name, parts in cells.items() if "attack" in parts}
    failed = [name for name, row in attacked.items() if row["problems"]]
    verdict = (
        "The attack passes its checks on every network."
        if not failed
        else f"**A check failed on {', '.join(failed)}**, so that curve has no verdict."
    )
    text = "; ".join(
        f"{name}: {row['n']:.0f} images, PGD-{row['steps']:.0f}, mean gradient norm {row['gradient norm']:.2g} "
        f"(zero on {percent(row['zero gradient'])} %), right with the whole pixel range to move in {percent(row['whole'])} %"
        for name, row in attacked.items()
    )
    header = [
        "network",
        "radius (L-inf)",
        "PGD",
        "FGSM",
        "first images, twice the steps",
        "images made for its sibling",
    ]
    return f"## Attacked\n\n{markdown(header, rows)}\n\n{verdict} {text}."


def margin_table(cells: Cells) -> str:
    rows = []
    for name, parts in cells.items():
        row = parts.get("margin")
        if row is None:
            continue
        for r in radii(row, "plain"):
            if r:
                rows.append(
                    [name, shown(r), *(percent(at(row, what, r)) for what in ("plain", "normalized", "worst")),
                     percent(row["relative median"], row["relative q1"], row["relative q3"])]
                )  # fmt: skip
    header = [
        "network", "radius", "PGD", "PGD on logits of unit spread", "right under both",
        "smallest change / image, % of L2 length [quartiles]",
    ]  # fmt: skip
    text = (
        "Margin control, first 100 images: would robustness survive if the logits' scale were taken away?\n\n"
    )
    return text + markdown(header, rows) if rows else ""


def corruption_table(cells: Cells) -> str:
    there = {name: parts["corruptions"] for name, parts in cells.items() if "corruptions" in parts}
    if not there:
        return ""
    types = types_of(next(iter(there.values())))
    rows = []
    for t in types:
        rows.append(
            [t.replace("_", " "), *(percent(float(np.mean(series(row, t)[1][1:]))) for row in there.values())]
        )
    first = next(iter(there.values()))
    header = ["corruption", *there]
    return (
        f"Mean accuracy over severities {', '.join(f'{s:g}' for s in series(first, types[0])[0][1:])}, in percent, "
        f"{first['n']:.0f} images:\n\n{markdown(header, rows)}"
    )


def types_of(row: Row) -> list[str]:
    names = dict.fromkeys(k.split(":")[0] for k in row if ":" in k)
    return sorted(names, key=lambda t: float(np.mean(series(row, t)[1][1:])))


def series(row: Row, kind: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Severity (0: clean), accuracy, low, high of one corruption."""
    keys = sorted(k for k in row if k.startswith(f"{kind}:") and " " not in k)
    x = [0.0, *(float(k.split(":")[1]) for k in keys)]
    return (
        x,
        [row["accuracy"], *(row[k] for k in keys)],
        [row["low"], *(row[f"{k} low"] for k in keys)],
        [row["high"], *(row[f"{k} high"] for k in keys)],
    )


def how(cells: Cells) -> str:
    seconds = sum(row["seconds"] for parts in cells.values() for row in parts.values())
    n = sum(len(parts) for parts in cells.values())
    return (
        "## How\n\n`PELLUCID_DATA=FOLDER python experiments/robustness.py`; every number is in [cells.csv](cells.csv). "
        f"{n} of {6 * 4} cells, {seconds / 60:.0f} minutes in all on {processor()}, processes of one thread each, on a machine "
        "shared with other work. Corruptions as in Hendrycks and Dietterich (ICLR 2019), attacks as in Madry et al. (ICLR 2018), "
        "step a quarter of the radius; see [attacks](../../attacks.md) and [corruptions](../../corruptions.md)."
    )


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (li.split(":", 1)[1].strip() for li in lines if li.startswith("model name")), platform.processor()
    )


# -- figures ---------------------------------------------------------------------------------------------------------


def attacks_figure(cells: Cells, folder: Path) -> bool:
    """One panel for each pair of networks: PGD with its band, FGSM hollow."""
    groups = [
        ("on CIFAR-10 JPEG test images", "JPEG"),
        ("on CIFAR-10 training images", "lossless"),
        ("where trained to be robust", "robust"),
    ]
    there = [
        (title, found)
        for title, word in groups
        if (found := {n: p["attack"] for n, p in cells.items() if word in n and "attack" in p})
    ]
    if not there:
        return False
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(there), figsize=(max(6.5, 4.2 * len(there)), 3.4), squeeze=False, sharey=True
    )
    for axis, (title, found) in zip(axes[0], there, strict=True):
        small = max(radii(next(iter(found.values())))) < 0.05
        for (name, row), colour in zip(found.items(), (ACCENT, SECOND), strict=False):
            scale = 255 if small else 1
            x = np.array(radii(row)) * scale
            y, low, high, one = (
                [100 * row[key.format(f"{r:.6g}")] for r in radii(row)]
                for key in ("pgd:{}", "pgd:{} low", "pgd:{} high", "fgsm:{}")
            )
            axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axis.plot(x, y, "o-", color=colour, markersize=4, linewidth=1.4)
            axis.plot(x, one, "o", markerfacecolor="none", color=colour, markersize=5)
            short = name.split(",")[0].replace("robust ", "")
            offset = (-30, -18) if colour != ACCENT else (6, -14) if y[1] > 90 else (8, 6)
            axis.annotate(short, (x[1], y[1]), offset, textcoords="offset points", color=colour)
        axis.set_title(title.removeprefix("on ").removeprefix("where "), loc="left", fontsize=10)
        axis.set_xlabel("radius, grey levels of 255" if small else "radius, share of the pixel range")
        tidy(axis)
    axes[0][0].set_ylabel("accuracy, %")
    lost = [f"{shown(radius)} {title}" for title, found in there if (radius := half(found)) is not None]
    figure.suptitle(
        f"Half of the right answers are lost by radius {'; '.join(lost)}\n(hollow: FGSM)",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    save(figure, folder / "attacks.svg")
    return True


def half(found: Mapping[str, Row]) -> float | None:
    """The smallest radius of all at which every one of these networks has lost half of its right answers."""
    each = [
        next((r for r in radii(row) if at(row, "pgd", r) <= row["accuracy"] / 2), None)
        for row in found.values()
    ]
    return None if None in each else max(each)


def corruptions_figure(cells: Cells, folder: Path) -> bool:
    """Small multiples, one a corruption, a line for each of the residual networks."""
    there = {n: p["corruptions"] for n, p in cells.items() if "corruptions" in p and "ResNet" in n}
    there = there or {n: p["corruptions"] for n, p in cells.items() if "corruptions" in p}
    if not there:
        return False
    plt = pyplot()
    types = types_of(next(iter(there.values())))
    figure, axes = plt.subplots(3, 5, figsize=(12.5, 6.8), sharex=True, sharey=True)
    looks = [(ACCENT, "-"), (SECOND, "-"), (ACCENT, "--"), (SECOND, "--")]
    for axis, kind in zip(axes.flat, types, strict=False):
        for row, (colour, style) in zip(there.values(), looks, strict=False):
            x, y, low, high = (np.array(v) for v in series(row, kind))
            axis.fill_between(x, 100 * low, 100 * high, color=colour, alpha=0.15, linewidth=0)
            axis.plot(x, 100 * y, style, color=colour, marker="o", markersize=3, linewidth=1.2)
        axis.set_title(kind.replace("_", " "), loc="left", fontsize=9)
        tidy(axis)
    for axis in axes[-1]:
        axis.set_xlabel("severity (0: clean)")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy, %")
    keys = ", ".join(
        f"{name} {'blue' if colour == ACCENT else 'orange'}{' dashed' if style == '--' else ''}"
        for name, (colour, style) in zip(there, looks, strict=False)
    )
    figure.suptitle(
        f"{types[0].replace('_', ' ').capitalize()} costs most, {types[-1].replace('_', ' ')} least ({keys})",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    save(figure, folder / "corruptions.svg")
    return True


def pyplot():
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "pellucid", "font.size": 9, "font.family": "sans-serif"}
    )
    return plt


def tidy(axis) -> None:
    axis.set_ylim(0, 103)
    axis.grid(axis="y", color="#dfe2e6", linewidth=0.7)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(length=0, colors=GREY)


def save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
