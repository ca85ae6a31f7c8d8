"""The tables of one part of the decoding study, as Markdown, from whatever cells there are."""

from collections.abc import Sequence

import numpy as np
from decode_data import CIFAR, INVERTED, NEAR, NOISE, OTHER, PAIRS
from decode_paper import FIGURES
from decode_rows import Cells, interval
from decode_setup import (
    COMPAS,
    COMPOSED,
    DECODABLE,
    DETECTORS,
    FAIR_ARMS,
    MC_DROPOUT,
    METHODS,
    PLANTED,
    REDECNN,
    STANDARD,
    Setup,
)

SETS = {
    OTHER: "the other data set",
    CIFAR: "CIFAR-10, grey",
    NOISE: "noise",
    INVERTED: "inverted",
    PAIRS: "pairs (near)",
}
SCORES = {
    "vote_entropy": "votes", "mean_entropy": "mean entropy", "mutual_information": "mutual information", "base_msp": "largest probability",
    "base_entropy": "entropy of one", "base_energy": "energy of one", "residual": "residual, last layer", "residual_mean": "residual, mean",
    "flip_rate": "flips",
}  # fmt: skip
PAPER_NAMES = {
    "accuracy": "accuracy, %", "miss.vote_entropy": "mistakes, AUROC by votes", "ood.other.vote_entropy": "the other data set, AUROC by votes",
    "fgsm.vote_entropy": "FGSM, AUROC by votes", "corrupt.vote_entropy": "corruptions, AUROC by votes, mean over types",
    "corrupt_sd.vote_entropy": "corruptions, AUROC by votes, deviation over types", "ece": "ECE, %",
}  # fmt: skip
PERCENT = ("accuracy", "ece")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "---:") -> str:
    """A Markdown table, numbers to the right; nothing without rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(head)} |", "|---|" + f"{align}|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def methods_of(cells: Cells) -> list[str]:
    return [method for method in METHODS if method in cells.settings]


def mean(cells: Cells, method: str, column: str, digits: int = 3, factor: float = 1.0) -> str:
    values = factor * cells.column(method, column)
    return f"{values.mean():.{digits}f}" if len(values) else "-"


def section(part: str, title: str, cells: Cells, setup: Setup) -> list[str]:
    """Everything about one network on one data set."""
    found = [
        beside_paper(part, cells),
        accuracy(cells),
        mistakes(cells),
        outside(cells),
        usual_detectors(cells),
        attacks(cells, setup),
        corruptions(cells),
        decodings(cells, setup),
        composition(cells),
    ]
    return [f"## {title}\n", *found, f"[Every number of every cell]({part}/cells.csv).\n"]


def beside_paper(part: str, cells: Cells) -> str:
    """The paper's figures, ours and the difference."""
    rows: list[list[str]] = []
    for (method, column), theirs in FIGURES.get(part, {}).items():
        factor, digits = (100.0, 2) if column in PERCENT else (1.0, 3)
        values = factor * cells.column(method, column)
        if len(values):
            rows.append([f"{PAPER_NAMES[column]}: {method}", f"{theirs:.{digits}f}", interval(values, digits), f"{values.mean() - theirs:+.{digits}f}"])  # fmt: skip
    order = list(PAPER_NAMES.values())
    rows.sort(key=lambda row: order.index(row[0].rsplit(": ", 1)[0]))
    made = table(["measure", "paper", "ours", "difference"], rows)
    return f"### Beside the paper\n\n{made}" if made else ""


def accuracy(cells: Cells) -> str:
    """Accuracy, paired difference to the plain network, calibration, and what training took."""
    rows: list[list[str]] = []
    for method in methods_of(cells):
        gap = 100 * cells.difference(method, STANDARD, "accuracy")
        rows.append([
            method, interval(100 * cells.column(method, "accuracy"), 2), "" if method == STANDARD else interval(gap, 2, sign=True),
            *(mean(cells, method, f"accuracy.{name}", 2, 100) for name in ("base", "mean", "vote")),
            interval(100 * cells.column(method, "ece"), 2), mean(cells, method, "ece_null.base", 2, 100),
            *(mean(cells, method, f"ece.{name}", 2, 100) for name in ("base", "mean", "vote")),
            interval(100 * cells.column(method, "ece.scaled"), 2), mean(cells, method, "temperature", 2),
            mean(cells, method, "nll.base", 3), mean(cells, method, "train_seconds", 0),
        ])  # fmt: skip
    head = [
        "method", "accuracy, %", "minus plain, pp", "base", "mean", "vote", "ECE, %", "ECE if perfect", "ECE base", "ECE mean", "ECE vote",
        "ECE scaled", "T", "NLL base", "training, s",
    ]  # fmt: skip
    return f"### Accuracy and calibration\n\n{table(head, rows)}"


def scores_there(cells: Cells, prefix: str) -> list[str]:
    return [name for name in SCORES if any(len(cells.column(m, prefix + name)) for m in methods_of(cells))]


def mistakes(cells: Cells) -> str:
    """AUROC of wrong against right answers, AURC and AUGRC, by score."""
    names = scores_there(cells, "miss.")
    rows = [
        [
            method,
            *(
                f"{interval(cells.column(method, f'miss.{name}'), 3)}<br>{mean(cells, method, f'aurc.{name}', 1, 1000)} / "
                f"{mean(cells, method, f'augrc.{name}', 1, 1000)}" if len(cells.column(method, f"miss.{name}")) else "-"
                for name in names
            ),
            mean(cells, method, "zero.vote_entropy", 0, 100),
        ]
        for method in methods_of(cells)
    ]  # fmt: skip
    about = (
        "AUROC of wrong against right answers; below it AURC / AUGRC in thousandths, which also count how many answers are wrong. Last: images "
        "whose votes all agree, so that their entropy is exactly 0.\n"
    )
    return f"### Mistakes\n\n{about}\n{table(['method', *(SCORES[name] for name in names), 'votes all agree, %'], rows)}"


def outside(cells: Cells) -> str:
    """AUROC of each outside set, a row a method and score."""
    sets = [key for key in SETS if cells.named(f"ood.{key}.")]
    rows: list[list[str]] = []
    for method in methods_of(cells):
        for name in SCORES:
            if method == MC_DROPOUT and name.startswith("base"):
                continue  # those of dropout, which is the same network
            if any(len(cells.column(method, f"ood.{key}.{name}")) for key in sets):
                rows.append(
                    [f"{method}: {SCORES[name]}", *(cell_of(cells, method, key, name) for key in sets)]
                )
    about = "AUROC against all test images, and in brackets FPR at 95 % found, %.\n"
    return f"### Outside data\n\n{about}\n{table(['method and score', *(SETS[key] for key in sets)], rows)}"


def cell_of(cells: Cells, method: str, key: str, name: str) -> str:
    values = cells.column(method, f"ood.{key}.{name}")
    if not len(values):
        return "-"
    return f"{interval(values, 3)} ({mean(cells, method, f'fpr.{key}.{name}', 0, 100)})"


def usual_detectors(cells: Cells) -> str:
    """Detectors of pytorch-ood on the plain network and on the classifier of ReDecNN; residuals of the images alone."""
    sets = [key for key in SETS if cells.named(f"ood.{key}.")]
    rows: list[list[str]] = []
    for method in (STANDARD, REDECNN):
        for name in (*DETECTORS, "pca", "autoencoder"):
            if any(len(cells.column(method, f"ood.{key}.{name}")) for key in sets):
                owner = "images alone" if name in ("pca", "autoencoder") else method
                rows.append([f"{owner}: {name.replace('_', ' ')}", *(interval(cells.column(method, f"ood.{key}.{name}"), 3) for key in sets)])  # fmt: skip
    made = table(["detector", *(SETS[key] for key in sets)], rows)
    about = "Usual detectors as their authors set them, AUROC; nothing is chosen on an outside set.\n"
    return f"### Usual detectors\n\n{about}\n{made}" if made else ""


def attacks(cells: Cells, setup: Setup) -> str:
    """AUROC of attacked images by score, and what passes unseen, the adaptive attack among it."""
    names = scores_there(cells, "fgsm.")
    rows = [
        [
            method, mean(cells, method, "fooled.fgsm", 0, 100), mean(cells, method, "fooled.pgd", 0, 100),
            *(
                f"{interval(cells.column(method, f'fgsm.{name}'), 3)}<br>{mean(cells, method, f'pgd.{name}')}"
                if len(cells.column(method, f"fgsm.{name}")) else "-"
                for name in names
            ),
        ]
        for method in methods_of(cells)
    ]  # fmt: skip
    unseen: list[list[str]] = []
    for method in methods_of(cells):
        for name in SCORES:
            if len(cells.column(method, f"undetected.fgsm.{name}")):
                row = [
                    interval(100 * cells.column(method, f"undetected.{a}.{name}"), 1)
                    for a in ("fgsm", "pgd", "adaptive")
                ]
                auc = [mean(cells, method, f"watched.{a}.{name}") for a in ("fgsm", "pgd", "adaptive")]
                unseen.append([f"{method}: {SCORES[name]}", *row, *auc])
    head = ["method", "fooled by FGSM, %", "by PGD, %", *(SCORES[name] for name in names)]
    return "\n".join([
        "### Attacks\n",
        f"Radius {setup.radius:g} (L-infinity), images that are rightly classified: AUROC of FGSM images, below it of PGD images ({setup.steps} steps).\n",
        table(head, rows),
        f"Share of {setup.adapted} images that fool the classifier and stay below the threshold of 5 % false alarms, %. The adaptive attack knows the score",
        f"and lowers it, in {4 * setup.steps} steps.\n",
        table(["method and score watched", "FGSM", "PGD", "adaptive", "AUROC FGSM", "PGD", "adaptive"], unseen),
    ])  # fmt: skip


def corruptions(cells: Cells) -> str:
    """Mean and deviation over types of corruption, by score."""
    names = scores_there(cells, "corrupt.")
    rows = [
        [
            method, mean(cells, method, "corrupt_accuracy", 1, 100),
            *(
                f"{interval(cells.column(method, f'corrupt.{name}'), 3)}<br>({mean(cells, method, f'corrupt_sd.{name}')})"
                if len(cells.column(method, f"corrupt.{name}")) else "-"
                for name in names
            ),
        ]
        for method in methods_of(cells)
    ]  # fmt: skip
    about = (
        "AUROC of corrupted against clean test images, mean over types, below it the deviation over types.\n"
    )
    return f"### Corruptions\n\n{about}\n{table(['method', 'accuracy, %', *(SCORES[name] for name in names)], rows)}"


def decodings(cells: Cells, setup: Setup) -> str:
    """By layer: error, labels kept, and what wrong answers decode to."""
    rows: list[list[str]] = []
    for method in (m for m in DECODABLE if m in cells.settings):
        for layer in setup.layers:
            shares = [
                mean(cells, method, f"{name}.{layer}", 1, 100)
                for name in ("right", "kept", "wrong_label", "true_label")
            ]
            rows.append([method, layer, mean(cells, method, f"residual.{layer}", 4), *shares])
    head = ["method", "layer", "error of decodings", "classified rightly, %", "as before, %", "mistakes: the wrong class, %", "the true class, %"]  # fmt: skip
    made = table(head, rows)
    about = (
        "Mean squared error of decodings, and what the classifier says of them; the last two columns are about images it answers wrongly. What a "
        "decoding shows is a statement about classifier and generator together.\n"
    )
    return f"### Decodings by layer\n\n{about}\n{made}" if made else ""


def composition(cells: Cells) -> str:
    """What agreeing with a frozen model does, paired by seed."""
    rows: list[list[str]] = []
    for method in (m for m in COMPOSED if m in cells.settings):
        gaps = [
            interval(factor * cells.difference(method, REDECNN, column), digits, sign=True)
            for column, factor, digits in (
                ("accuracy", 100.0, 2), ("miss.vote_entropy", 1.0, 3), ("miss.mean_entropy", 1.0, 3), ("ood.other.vote_entropy", 1.0, 3),
                ("ood.other.mean_entropy", 1.0, 3), ("corrupt.vote_entropy", 1.0, 3), ("ece", 100.0, 2),
            )
        ]  # fmt: skip
        rows.append([method, mean(cells, method, "frozen_accuracy", 1, 100), mean(cells, method, "agree", 1, 100), mean(cells, method, "kl", 2), *gaps])  # fmt: skip
    head = [
        "method", "accuracy of the frozen model, %", "agree on decodings, %", "KL(m, f)", "accuracy, pp", "mistakes, votes", "mistakes, mean entropy",
        "other set, votes", "other set, mean entropy", "corruptions, votes", "ECE, pp",
    ]  # fmt: skip
    made = table(head, rows)
    return f"### Composition: differences to ReDecNN, paired by seed\n\n{made}" if made else ""


def fairness(cells: Cells) -> list[str]:
    """Both cases: each group, gaps beside those of shuffled groups, and what can still be read where."""
    found = ["## Fairness\n"]
    for case, title in (
        (COMPAS, "COMPAS: two-year recidivism, two groups"),
        (PLANTED, "Digits with a planted column"),
    ):
        arms = [arm for arm in FAIR_ARMS if f"{case} {arm}" in cells.settings]
        if not arms:
            continue
        groups = [
            name
            for name in cells.named("f1.")
            if any(len(cells.column(f"{case} {arm}", f"f1.{name}")) for arm in arms)
        ]
        found += [
            f"### {title}\n",
            group_table(cells, case, arms, groups),
            gap_table(cells, case, arms),
            leak_table(cells, case, arms),
        ]
    return [*found, "[Every number of every cell](fairness/cells.csv).\n"] if len(found) > 1 else []


def group_table(cells: Cells, case: str, arms: Sequence[str], groups: Sequence[str]) -> str:
    rows: list[list[str]] = []
    for arm in arms:
        setting = f"{case} {arm}"
        shown = [" / ".join(mean(cells, setting, f"{metric}.{group}", 1, 100) for group in groups) for metric in ("accuracy", "f1", "ap", "ece", "tpr", "fpr")]  # fmt: skip
        extra = (
            [interval(100 * cells.column(setting, f"accuracy.{name}"), 1) for name in ("agree", "conflict")]
            if case == PLANTED
            else []
        )
        rows.append([arm, interval(100 * cells.column(setting, "accuracy"), 1), *shown, *extra])
    head = [
        "arm",
        "accuracy, %",
        *(f"{name} ({' / '.join(groups)})" for name in ("accuracy", "F1", "AP", "ECE", "TPR", "FPR")),
    ]
    head += ["attribute with the class", "against it"] if case == PLANTED else []
    return table(head, rows)


def gap_table(cells: Cells, case: str, arms: Sequence[str]) -> str:
    metrics = {
        "accuracy": "accuracy",
        "f1": "F1",
        "ap": "AP",
        "ece": "ECE",
        "selection_rate": "selection rate",
        "tpr": "TPR",
        "fpr": "FPR",
    }
    rows: list[list[str]] = []
    for arm in arms:
        setting = f"{case} {arm}"
        gaps = [f"{interval(100 * cells.column(setting, f'gap.{name}'), 1)} ({mean(cells, setting, f'gap_shuffled_high.{name}', 1, 100)})" for name in metrics]  # fmt: skip
        rows.append([arm, *gaps, interval(100 * cells.column(setting, "odds"), 1)])
    head = ["arm", *(f"gap in {name}, pp" for name in metrics.values()), "equalised odds, pp"]
    return (
        "In brackets what shuffled groups show at most (97.5 %): a smaller gap is no sign of a difference.\n\n"
        + table(head, rows)
    )


def leak_table(cells: Cells, case: str, arms: Sequence[str]) -> str:
    rows: list[list[str]] = []
    for arm in arms:
        setting = f"{case} {arm}"
        probes = [interval(100 * cells.column(setting, f"probe.{what}.{place}"), 1) for place in ("first", "last") for what in ("activation", "decoding")]  # fmt: skip
        dealt = [mean(cells, setting, f"probe_shuffled.{place}", 1, 100) for place in ("first", "last")]
        sure = [interval(cells.column(setting, f"confidence.{place}"), 2) for place in ("first", "last")]
        rows.append([arm, *sure, *probes, " / ".join(dealt), mean(cells, setting, "chance", 1, 100)])
    head = [
        "arm", "confidence of the frozen model, first block", "last block", "fresh probe, first block, activations, %", "decodings, %",
        "last block, activations, %", "decodings, %", "probe of shuffled groups, first / last, %", "larger group, %",
    ]  # fmt: skip
    return table(head, rows)


def acceptance(cells: Cells) -> list[list[str]]:
    """Acceptance test T20 as rows: measure, bound, ours, whether it holds for the mean."""
    rows: list[list[str]] = []
    gap = 100 * cells.difference(REDECNN, STANDARD, "accuracy")
    if len(gap):
        rows.append(
            [
                "accuracy of ReDecNN minus plain, pp",
                "within 1",
                interval(gap, 2, sign=True),
                verdict(abs(gap.mean()) <= 1),
            ]
        )
    for column, what in (
        ("ood.other.vote_entropy", "the other data set, AUROC by votes"),
        ("miss.vote_entropy", "mistakes, AUROC by votes"),
    ):
        values = cells.column(REDECNN, column)
        if len(values):
            rows.append([what, "at least 0.75", interval(values, 3), verdict(values.mean() >= 0.75)])
    return rows


def verdict(holds: bool | np.bool_) -> str:
    return "holds" if holds else "does not hold"


__all__ = ["NEAR", "acceptance", "fairness", "section", "table"]
