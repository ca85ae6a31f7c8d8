"""The page of the invariance study: tables, figures and verdicts from whatever cells there are."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from invariance import FILES, PARTS, cells_of
from invariance_cell import picture_name
from invariance_claims import METRICS, TITLES, Cells, Decided, claims, decide, ledger_at, register_all
from invariance_figures import draw_all
from invariance_setup import ADVERSARY, FREE, HUMAN, PUBLISHED, Setup, designs, setups
from scipy import stats

from pellucid.claims import Ledger
from pellucid.sweep import read_cells

Row = Mapping[str, str]
NAMES = {**TITLES, "digits": "digits enlarged to 28 px"}
SPREAD, VALID = 2.0, 0.8
"""The comparison rule: medians of null-relative rho within a factor 2, at least 80 % valid items."""


def write_page(out: Path, *, preset: str, datasets: Sequence[str]) -> Path:
    """Write index.md and its figures from the cells in `out`; claims whose cells are complete get their verdict."""
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        (name, part): [r for r in read_cells(out / name / FILES[part]) if r["status"] == "done"]
        for name in datasets
        for part in PARTS
    }
    decided: list[Decided] = []
    ledger = ledger_at(out)
    if preset == "default":
        register_all(ledger)
        cells = {name: Cells(tables[name, "inversions"]) for name in datasets}
        decided = [
            decide(finding, metric, claim, cells=cells[finding.dataset], ledger=ledger)
            for finding, metric, claim in claims()
            if finding.dataset in cells
        ]
    inversions = {name: tables[name, "inversions"] for name in datasets if tables[name, "inversions"]}
    parts = [head(tables, datasets, preset), verdicts(decided, ledger)]
    parts += [f"![{caption}]({file})\n\n{caption}\n" for caption, file in draw_all(inversions, out)]
    for name in datasets:
        parts += section(name, tables[name, "networks"], tables[name, "inversions"], out)
    parts.append(about(setups(preset), preset))
    page = out / "index.md"
    page.write_text("\n".join(part for part in parts if part))
    return page


def head(tables: Mapping[tuple[str, str], Sequence[Row]], datasets: Sequence[str], preset: str) -> str:
    lines = [
        "# Do inputs a network cannot tell apart look alike?",
        "",
        "For a target image, search from noise for another that the penultimate layer represents (almost) identically, then ask",
        "perceptual metrics whether it looks like its target or like where the search began (2AFC), after Nanda et al., \"Do",
        "invariances in deep neural networks align with human perception?\" (AAAI 2023). A metric is a stand-in for people: noise-like",
        "results score about 0 %, not 50 %. Replicates are trained networks, paired by seed.",
        "",
        "| data | part | cells done | of | missing |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name in datasets:
        for part in PARTS:
            cells = cells_of(designs(preset)[name], part)
            done = {row["cell"] for row in tables[name, part]}
            left = [cell for cell in cells if cell.name not in done]
            which = sorted({str(cell.settings["paradigm"]) for cell in left})
            lines.append(
                f"| {NAMES[name]} | {part} | {len(cells) - len(left)} | {len(cells)} | {len(left)} "
                f"({', '.join(which) or 'none'}) |"
            )
    lines += [
        "",
        "`python experiments/invariance.py` goes on with what is missing, `--page` writes this page anew.",
        "",
    ]
    return "\n".join(lines)


def verdicts(decided: Sequence[Decided], ledger: Ledger) -> str:
    """One row a finding, one column a metric."""
    if not decided:
        return ""
    outcomes = Counter(d.verdict.outcome if d.verdict is not None else _open(d) for d in decided)
    tally = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common())
    lines = [
        "## The article's three findings as registered claims",
        "",
        "1. Conclusions depend on the search: a prior flatters, an adversary makes any network look misaligned.",
        "2. Networks are to be compared on regulariser-free results.",
        "3. Architecture, training loss and augmentation all matter.",
        "",
        f"{len(decided)} claims (a sentence and a metric each) were registered in [claims.jsonl](claims.jsonl) on",
        f"{ledger.entries()[0].time[:10]}, before any cell of the default preset: {tally}. A claim",
        "says that the difference exceeds 10 points; each stands alone at 5 % a side, without correction over claims or metrics.",
        "Entries: verdict, difference in points, 90 % interval over three trained networks. Where every network of both arms has",
        "the same number, nearly always 0 %, that metric can show no difference: no verdict, and the ledger has the claim as abandoned.",
        "",
        f"| finding | data | statement | {' | '.join(METRICS)} |",
        "|---|---|---|" + "---|" * len(METRICS),
    ]
    rows: dict[tuple[int, str, str], list[str]] = {}
    for one in sorted(decided, key=lambda d: d.finding.number):
        f = one.finding
        rows.setdefault((f.number, NAMES[f.dataset], f.statement), []).append(_verdict(one))
    lines += [f"| {n} | {data} | {text} | {' | '.join(found)} |" for (n, data, text), found in rows.items()]
    return "\n".join([*lines, ""])


def _verdict(one: Decided) -> str:
    v = one.verdict
    if v is None:
        return _open(one) if one.why.startswith("waits") else one.why.replace("|", "/")
    return f"**{v.outcome}** {v.effect:+.0f} [{v.lo:+.0f}, {v.hi:+.0f}]"


def _open(one: Decided) -> str:
    """What to call a claim without a verdict."""
    return "open" if one.why.startswith("waits") else "without a verdict"


def section(name: str, networks: Sequence[Row], rows: Sequence[Row], out: Path) -> list[str]:
    """Everything about one data set."""
    if not networks and not rows:
        return []
    found = [f"## {NAMES[name]}\n", training_table(networks), alignment_table(rows), priors_table(rows)]
    found += [adversary_table(rows), stir_table(rows), strips(name, rows, out)]
    links = [
        f"[{FILES[part]}]({name}/{FILES[part]})" for part in PARTS if (out / name / FILES[part]).exists()
    ]
    return [*found, f"Every number: {', '.join(links)}.\n"]


Key = tuple[str, str]


def grouped(rows: Sequence[Row], regulariser: str | None = None) -> dict[Key, list[Row]]:
    """Rows by architecture and paradigm, in the order they come, replicates together."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        if regulariser is None or row["regulariser"] == regulariser:
            found.setdefault((row["architecture"], row["paradigm"]), []).append(row)
    return dict(sorted(found.items()))


def values(rows: Sequence[Row], column: str) -> np.ndarray:
    return np.array([float(row[column]) for row in rows if row.get(column)])


def interval(found: np.ndarray, digits: int = 1) -> str:
    """Mean [95 % Student interval] over networks, or the bare value of one."""
    if not len(found):
        return "-"
    if len(found) < 2:
        return f"{found[0]:.{digits}f}"
    half = float(stats.t.ppf(0.975, len(found) - 1)) * found.std(ddof=1) / math.sqrt(len(found))
    return f"{found.mean():.{digits}f} ± {half:.{digits}f}"


def table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], note: str = "") -> str:
    if not lines:
        return ""
    text = [f"### {title}", ""] + ([note, ""] if note else [])
    text += [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines), ""])


def training_table(rows: Sequence[Row]) -> str:
    lines = [
        [
            *key,
            str(len(group)),
            *[interval(100 * values(group, c)) for c in ("accuracy", "attacked", "probe")],
        ]
        for key, group in grouped(rows).items()
    ]
    header = ["architecture", "paradigm", "n", "accuracy %", "under L2 attack %", "linear probe %"]
    note = "Mean ± half of a 95 % interval over trained networks. Contrastive networks have a linear readout for a classifier."
    return table("Networks trained here", header, lines, note)


def alignment_table(rows: Sequence[Row]) -> str:
    """Regulariser-free alignment, every member first, then the mean, and what speaks against comparing."""
    groups = grouped(rows, FREE)
    if not groups:
        return ""
    names = judges(rows)
    medians = {key: float(np.median(values(group, "null_relative"))) for key, group in groups.items()}
    least = min(medians.values())
    lines: list[list[str]] = []
    for key, group in groups.items():
        valid, rest = (float(values(group, name).mean()) for name in ("valid", "valid_but_rank"))
        flags = [] if valid >= VALID else ["few valid"] if rest < VALID else ["few valid: V3 alone"]
        flags += ["search worse"] if medians[key] > SPREAD * least else []
        scores = [interval(values(group, f"afc.{name}"), 0) for name in names]
        lines.append(
            [
                *key, str(len(group)), *scores, interval(values(group, "afc.mean"), 0),
                interval(values(group, "afc_valid_but_rank.ssim"), 0), interval(values(group, "cluster.mean"), 0),
                f"{np.median(values(group, 'rho')):.3f}", f"{medians[key]:.3f}", f"{100 * valid:.0f}", f"{100 * rest:.0f}",
                ", ".join(flags) or "-",
            ]
        )  # fmt: skip
    header = [
        "architecture", "paradigm", "n", *names, "mean of voters", "ssim, valid but V3", "clustering, mean", "rho",
        "rho / natural", "valid %", "but V3 %", "flags",
    ]  # fmt: skip
    note = (
        "2AFC in %, regulariser-free, mean ± half of a 95 % interval over networks (no interval for a single one: its Wilson "
        "interval over targets is in the CSV). *Valid* passes all seven gates; *but V3* all but the rank gate, which compares with the "
        "highest rank correlation of any natural pair and which sparse layers seldom pass. The untrained trunk is a control and does not vote. Rows flagged *few valid* (under "
        "80 % of items pass all gates) or *search worse* (null-relative rho over twice the best row's) are not comparable with the others."
    )
    return table("Alignment, regulariser-free", header, lines, note)


def judges(rows: Sequence[Row]) -> list[str]:
    """Members in the order of the columns, the control last."""
    columns = dict.fromkeys(c for row in rows for c in row if c.startswith("afc.") and row[c])
    names = [
        c.removeprefix("afc.") for c in columns if c not in ("afc.mean", "afc.disagreement", "afc.trunks")
    ]
    return sorted(names, key=lambda name: name.startswith("untrained"))


def priors_table(rows: Sequence[Row]) -> str:
    """The same networks under the human-leaning search, on the targets both have."""
    lines: list[list[str]] = []
    free = grouped(rows, FREE)
    for key, group in grouped(rows, HUMAN).items():
        before = free.get(key, [])
        pairs = [
            (column, name)
            for column, name in (("afc.mean", "mean"), ("afc.ssim", "ssim"), ("afc.trunks", "trunks"))
        ]
        cells = [f"{interval(values(before, c), 0)} to {interval(values(group, c), 0)}" for c, _ in pairs]
        rho = f"{np.median(values(before, 'rho')) if before else math.nan:.3f} to {np.median(values(group, 'rho')):.3f}"
        lines.append([*key, str(len(group)), *cells, rho])
    header = ["architecture", "paradigm", "n", "mean of voters", "ssim", "trunks", "median rho"]
    note = "2AFC in %: regulariser-free, then with the human-leaning composite (10 rho + TV + blur + L1)."
    return table("What a natural-image prior does", header, lines, note)


def adversary_table(rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    groups = grouped(rows, ADVERSARY)
    steps = list(
        dict.fromkeys(
            c.removeprefix("feasible.") for row in rows for c in row if c.startswith("feasible.") and row[c]
        )
    )
    for key, group in groups.items():
        for label in ("free", *steps):
            attacked = values(group, f"afc_at_{label}.self-trained 1")
            feasible = "-" if label == "free" else interval(100 * values(group, f"feasible.{label}"), 0)
            held = [
                interval(values(group, f"afc_at_{label}.{name}"), 0) for name in ("mean", "ssim", "trunks")
            ]
            lines.append([*key, str(len(group)), label, feasible, interval(attacked, 0), *held])
    header = [
        "architecture", "paradigm", "n", "rho at most", "feasible %", "attacked trunk", "held out: mean", "held out: ssim",
        "held out: trunks",
    ]  # fmt: skip
    note = (
        "2AFC in % of feasible items as the tolerance grows. The gap between the attacked trunk and the held-out metrics is metric "
        "gaming, not invariance."
    )
    return table("What an adversary within the invariance does", header, lines, note)


def stir_table(rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for key, group in grouped(rows, FREE).items():
        if not len(values(group, "stir.standard")):
            continue
        columns = ("stir.standard", "cka.standard", "stir.adversarial L2", "cka.adversarial L2")
        lines.append([*key, str(len(group)), *[interval(values(group, c), 2) for c in columns]])
    header = [
        "inverted network", "its paradigm", "n", "STIR to standard", "CKA to standard", "STIR to adversarial L2",
        "CKA to adversarial L2",
    ]  # fmt: skip
    note = (
        "How far the network of the same replicate trained in the named way shares the invariances of the inverted one; plain CKA "
        "beside it does not look at what networks ignore."
    )
    return table("Shared invariance (STIR)", header, lines, note)


def strips(name: str, rows: Sequence[Row], out: Path) -> str:
    """Pictures of replicate 0: targets, where the search began, results."""
    lines: list[str] = []
    for row in sorted(rows, key=lambda r: (r["regulariser"] != FREE, r["architecture"], r["paradigm"])):
        file = Path(name) / "pictures" / picture_name(row["cell"])
        if int(row["replicate"]) == 0 and (out / file).exists():
            what = f"{row['architecture']}, {row['paradigm']}, {row['regulariser']}"
            kind = (
                "targets, free results, then growing tolerance"
                if row["regulariser"] == ADVERSARY
                else "targets, starts, results"
            )
            lines.append(f"![{what}: rows are {kind}]({file.as_posix()})\n\n{what} ({kind})\n")
    return "\n".join(["### What the results look like", "", *lines]) if lines else ""


def about(known: Mapping[str, Setup], preset: str) -> str:
    any_setup, cifar = known["mnist"], known["cifar10"]

    def form(s: Setup) -> str:
        return (
            f"{s.targets} targets x {s.starts} starts x {s.preset.steps} steps (step {s.preset.eta:g}, halved every "
            f"{s.preset.halve_every})"
        )

    return f"""## How to read it

- Search, preset `{preset}`: {form(any_setup)} on 28-px images, {form(cifar)} on CIFAR-10; found images stop early, and the gates
  say whether that was enough. The human-leaning search has {any_setup.priored[0]} targets and
  {any_setup.priored[1]} start ({cifar.priored[0]} targets on CIFAR-10), the adversary {any_setup.opposed} targets and one start;
  `--preset full` has more of everything. The identity-backward ReLU is off everywhere.
- Targets are test images, as many of each class; the `{PUBLISHED}` CIFAR-10 networks are also asked about lossless images, which
  are **training images** of theirs. Networks fine-tuned here, and `published, JPEG targets`, get JPEG test images.
- Networks trained here see {any_setup.train:,} images, few epochs, small architectures: accuracies are below the best known, and the
  contrastive ones far below long trainings. The `{PUBLISHED}` robust_small networks are provably robust (Wong and Kolter, L-inf 0.1).
  Contrastive views are crops of at least 0.3 of the area without mirror; colour of grey images is brightness and contrast.
- No person was asked. Metrics judge 8-bit images; the trunks were trained on other images than the networks, where there are
  enough. Members that differ by more than 20 points are normal here: read the columns, not the mean alone.
"""
