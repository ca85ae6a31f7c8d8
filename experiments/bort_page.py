"""The page of the Bort study: tables, figures and verdicts from whatever cells there are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bort_claims import Decided, claims, decide, ledger_at, register_all
from bort_data import scratch_root
from bort_figures import SALIENCIES, draw_all, pictures
from bort_measures import ALPHAS
from bort_rows import ARM_NAMES, Arm, Cells, geometric, interval
from bort_setup import GRIDS, Setup, setups

from pellucid.claims import Ledger
from pellucid.sweep import Cell, read_cells

TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10 (JPEG)", "digits": "scikit-learn digits"}


def write_page(out: Path, *, preset: str, grids: Mapping[str, Sequence[Cell]]) -> Path:
    """Write index.md and its figures from the cells in `out`; claims whose cells are complete get their verdict."""
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        name: [row for row in read_cells(out / name / "cells.csv") if row["status"] == "done"]
        for name in grids
    }
    ledger = ledger_at(out)
    decided: list[Decided] = []
    if preset == "default":
        register_all(ledger)
        decided = [decide(claim, tables[claim.data.spec], ledger) for claim in claims()]
    cells = {name: Cells(rows) for name, rows in tables.items()}
    cells = {name: one for name, one in cells.items() if one.final}
    figures = draw_all(cells, out)
    for name, one in cells.items():
        found = pictures(name, one, scratch_root() / preset / name / "scratch", out)
        figures += [found] if found else []
    parts = [
        head(tables, grids, preset),
        verdicts(decided, ledger),
        *(f"![{c}]({file})\n\n{c}\n" for c, file in figures),
    ]
    for name, one in cells.items():
        parts += [f"## {TITLES[name]}\n", accuracy(one), rebuilding(one), pointing(one), editing(one)]
        parts.append(f"[Every number of every cell]({name}/cells.csv).\n")
    parts += [tuning({name: Cells(rows) for name, rows in tables.items()}), about(setups(preset), preset)]
    page = out / "index.md"
    page.write_text("\n".join(part for part in parts if part))
    return page


def head(
    tables: Mapping[str, Sequence[Mapping[str, str]]], grids: Mapping[str, Sequence[Cell]], preset: str
) -> str:
    lines = [
        "# Bounded, orthogonal weights: what they cost and what they buy",
        "",
        'Networks trained with and without the constraint of "Bort" (Zhang et al., ICLR 2023), which pulls every weight matrix but the',
        "head's towards orthogonality at each optimizer step. Every arm was tuned over equally many settings by a validation part of the",
        "training images; the final networks, of other seeds, are paired by initial weights and data order. Intervals are 95 % Student",
        "intervals over networks.",
        "",
        "| data | tuning cells done | of | final cells done | of | missing |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, cells in grids.items():
        done = {row["cell"] for row in tables[name]}
        left = sorted({f"{c.settings['net']} {c.settings['optimizer']}" for c in cells if c.name not in done})
        counts = [
            f"{sum(c.name in done for c in cells if c.settings['phase'] == phase)} | {sum(c.settings['phase'] == phase for c in cells)}"
            for phase in ("tuning", "final")
        ]
        lines.append(f"| {TITLES[name]} | {' | '.join(counts)} | {', '.join(left) or 'none'} |")
    option = "" if preset == "default" else f" --preset {preset}"
    lines += [
        "",
        f"`python experiments/bort.py{option}` goes on with what is missing, `--page` writes this page anew.",
        "",
    ]
    return "\n".join(lines)


def accuracy(cells: Cells) -> str:
    """One row an arm: accuracy, its paired difference, and the proof that the constraint took effect."""
    lines = [
        "### Accuracy and defect",
        "",
        "| network | optimizer | pulled | lr | weight decay | strength | n | accuracy % | paired difference, pp | defect before | defect after | worst matrix | training seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for arm in cells.arms:
        n = len(cells.replicates(arm))
        chosen = [f"{cells.column(arm, name)[0]:g}" for name in ("lr", "weight_decay", "strength")]
        row = [
            *labels(arm), *chosen, str(n), interval(100 * cells.column(arm, "accuracy"), 2),
            "" if arm[2] == "plain" else interval(100 * cells.difference(arm, (*arm[:2], "plain"), "accuracy"), 2, sign=True),
            f"{cells.column(arm, 'defect_before').mean():.2f}", interval(cells.column(arm, "defect"), 3),
            f"{cells.column(arm, 'defect_worst').mean():.3f}", f"{cells.column(arm, 'train_seconds').mean():.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def rebuilding(cells: Cells) -> str:
    """By depth: the transpose, and the three things it is read beside."""
    arms = traced(cells)
    if not arms:
        return ""
    lines = [
        "### Images rebuilt from an activation",
        "",
        "Relative L2 error (1 is what a black image gets), mean over images, geometric mean over networks. The pseudo-inverse of each layer and",
        "a search by gradients need no constraint; the row without the constraint is the third baseline. Noise gain: how much of a disturbance of the",
        "last activation arrives in the image, in units of what was put in.",
        "",
        "| optimizer | pulled | from | error | cosine | error, pseudo-inverse | error, search | noise gain, transpose | noise gain, pseudo-inverse |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for arm in arms:
        layers = cells.named("error.")
        for layer in layers:
            calm = [
                geometric(cells.column(arm, name)) if layer == layers[-1] else ""
                for name in ("noise_gain", "noise_gain_pinv")
            ]
            row = [
                *labels(arm)[1:], layer, geometric(cells.column(arm, f"error.{layer}")), interval(cells.column(arm, f"cosine.{layer}"), 3),
                geometric(cells.column(arm, f"error_pinv.{layer}")), geometric(cells.column(arm, f"error_search.{layer}")), *calm,
            ]  # fmt: skip
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def pointing(cells: Cells) -> str:
    """Areas under deletion and insertion."""
    arms = traced(cells)
    if not arms:
        return ""
    lines = [
        "### Saliency",
        "",
        "Area under deletion (lower is better) / insertion (higher is better): probability of the class predicted at first, over that of",
        "the clean image. Random order is the mean of five orders; the last column is deletion of SAT minus random, paired by network.",
        "",
        f"| optimizer | pulled | {' | '.join(SALIENCIES)} | SAT minus random, deletion |",
        "|---|---|" + "---|" * (len(SALIENCIES) + 1),
    ]
    for arm in arms:
        row = list(labels(arm)[1:])
        for name in SALIENCIES:
            both = [cells.column(arm, f"{measure}.{name}") for measure in ("deletion", "insertion")]
            row.append(" / ".join(f"{one.mean():.3f}" if len(one) else "no map" for one in both))
        there = cells.replicates(arm, column="deletion.SAT")
        gap = cells.column(arm, "deletion.SAT", there) - cells.column(arm, "deletion.random", there)
        lines.append(f"| {' | '.join([*row, interval(gap, 3, sign=True)])} |")
    return "\n".join([*lines, ""])


def editing(cells: Cells) -> str:
    """Success at the size of the edit."""
    arms = traced(cells)
    if not arms:
        return ""
    lines = [
        "### Edits",
        "",
        "Share of images that reach the class they are edited towards; the others move as far as the edit did (a blend at most to the exemplar",
        "itself, whose size then stands in brackets).",
        "",
        "| optimizer | pulled | strength of the edit | relative size | edit % | blend % | gradient step % | noise % | edit minus blend, pp |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for arm in arms:
        for alpha in ALPHAS:
            size, other = (cells.column(arm, f"{name}_size.{alpha:g}").mean() for name in ("edit", "blend"))
            shares = [
                f"{100 * cells.column(arm, f'{name}.{alpha:g}').mean():.0f}"
                for name in ("edit", "blend", "step", "noise")
            ]
            shares[1] += f" ({other:.2f})" if other < 0.98 * size else ""
            gap = 100 * (cells.column(arm, f"edit.{alpha:g}") - cells.column(arm, f"blend.{alpha:g}"))
            row = [*labels(arm)[1:], f"{alpha:g}", f"{size:.2f}", *shares, interval(gap, 0, sign=True)]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def traced(cells: Cells) -> list[Arm]:
    """The arms of the network that can be run backwards."""
    return [arm for arm in cells.arms if arm[0] == "plain"]


def labels(arm: Arm) -> tuple[str, str, str]:
    return arm[0], arm[1], ARM_NAMES[arm[2]]


def tuning(tables: Mapping[str, Cells]) -> str:
    """What each arm was tuned over, and what came out."""
    lines = [
        "## Tuning",
        "",
        "Accuracy in % on validation images, none of them trained on and none a test image, after a short training of one seed that no final",
        "network has. In brackets: learning rate, then weight decay without the constraint or strength with it. 0 stands for a training that diverged.",
        "",
        "| data | network | optimizer | pulled | settings |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, cells in tables.items():
        for arm in sorted({arm for arm, _ in cells.tuning}):
            tried = {
                s: 100 * float(row["validation"]) for (a, s), row in sorted(cells.tuning.items()) if a == arm
            }
            best = max(tried, key=lambda s: tried[s])
            choices = GRIDS[arm[1]].choices(arm[2])
            shown = [
                f"{'**' if s == best else ''}{value:.1f}{'**' if s == best else ''} ({choices[s].lr:g}, "
                f"{choices[s].weight_decay if arm[2] == 'plain' else choices[s].strength:g})"
                for s, value in tried.items()
            ]  # fmt: skip
            lines.append(f"| {TITLES[name]} | {' | '.join(labels(arm))} | {'; '.join(shown)} |")
    return "\n".join([*lines, ""]) if len(lines) > 6 else ""


def verdicts(decided: Sequence[Decided], ledger: Ledger) -> str:
    """Every registered claim with its verdict, or how far it is."""
    if not decided:
        return ""
    done = [d for d in decided if d.verdict is not None]
    supported = sum(d.verdict is not None and d.verdict.outcome == "supported" for d in done)
    lines = [
        "## Claims",
        "",
        f"{len(decided)} claims were registered in [claims.jsonl](claims.jsonl) on {ledger.entries()[0].time[:10]}, before the first cell was",
        f"computed; {len(done)} are decided, {supported} of them supported. Each stands alone at 5 % a side, over three networks; there is no",
        "correction over claims. That accuracy does not fall is a claim of non-inferiority: supported when the whole interval lies above the",
        "bound.",
        "",
        "| claim | bound | verdict | effect | 90 % interval | why |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in decided:
        claim, verdict = one.claim, one.verdict
        shift = float(claim.measure.args.get("shift", 0.0))
        bound = f"{claim.sign * claim.delta - shift:+g} {claim.unit}"
        if verdict is None:
            lines.append(
                f"| {claim.statement} | {bound} | open: {one.there} of {claim.analysis.models} networks | | | |"
            )
            continue
        why = (
            "; ".join(verdict.reasons).replace("|", "/")
            if not shift or verdict.outcome == "inconclusive"
            else ""
        )
        lines.append(
            f"| {claim.statement} | {bound} | **{verdict.outcome}** (rung {verdict.rung}, {verdict.label}) | {verdict.effect - shift:+.3g} "
            f"| [{verdict.lo - shift:+.3g}, {verdict.hi - shift:+.3g}] | {why} |"
        )
    return "\n".join([*lines, ""])


def about(known: Mapping[str, Setup], preset: str) -> str:
    lines = ["## How to read it", "", f"- Preset `{preset}`:"]
    for name, setup in known.items():
        lines.append(
            f"    - {TITLES[name]}: {setup.train:,} training images, {setup.epochs} epoch{'s' if setup.epochs > 1 else ''}, batches of {setup.batch_size}, cosine "
            f"schedule; accuracy on {setup.test:,} test images, rebuilding on {setup.rebuilt} (search: {setup.searched}, "
            f"{setup.search_steps} steps), deletion and insertion on {setup.watched}, edits on {setup.edited}. Tuning on images x epochs: "
            + ", ".join(f"{net} {one.tuned_on[0]:,} x {one.tuned_on[1]}" for net, one in setup.nets.items())
            + f"; validated on {setup.validation:,}."
        )
    lines += [
        "- The plain network is convolutions with stride and leaky ReLU, then a global maximum and the head: 8-24-96 channels for MNIST,",
        "  24-64-256 for CIFAR-10 in the default preset. Residual network (ResNet-8, 8-16-32) and small transformer (4 blocks of 64, patches of 8",
        "  pixels, q, k and v pulled apart) cannot be run backwards; theirs are accuracy and defect, with AdamW.",
        "- In the plain CIFAR-10 network the global maximum passes one gradient a channel to the last convolution; its backward pass leaves out the",
        "  products with zero, which changes gradients by rounding alone (`experiments/bort_sparse.py`).",
        "- Tuning is short, so that each arm can have its six settings: it tells bad settings from good ones, not good ones from the best. It",
        "  chooses by accuracy alone, so nothing favours a strong constraint.",
        "- Constrained networks have no weight decay. The head is free. `every 4 steps` pulls each matrix a quarter as often and four times as far.",
        "- Not run in the default preset, for 100 minutes on two cores: the pull at every 4 steps for the plain network on CIFAR-10, more than",
        "  three networks an arm, the whole training sets, 30 epochs; `--preset full` has these, for other hardware. In no preset: the transformer on MNIST, and the",
        "  wide five-layer networks of the paper's authors (up to 4,608 channels).",
        "- After the claims were registered and before the first cell, one network was trained in part on CIFAR-10 to time it, with a seed of no cell; its measures were timed, not read.",
        "- Not measured at all: whether people find the edits more meaningful than blends, and anything at the scale of ImageNet, where the paper",
        "  reports its gains.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)
