"""How the network stands up to corruptions and attacks, where the run has tables of them, and whether to believe it."""

import dataclasses as dc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pellucid.html import Series, count, line_chart, number, percent
from pellucid.report.contents import Contents, Table
from pellucid.report.templates import render
from pellucid.report.trust import Check

NAMES = {
    "pgd": "PGD, L-inf",
    "pgd-margin": "PGD on the margin of logits, L-inf",
    "pgd-l2": "PGD, L2",
}
"""What pages call the attacks of `pellucid evaluate`; others keep their names."""

SIZES = {"linf": "largest change of a pixel in 0 to 1", "l2": "length of the change"}
DISAGREE = 0.02  # accuracy by which the two attacks of the margin control may differ before a reader is told


@dc.dataclass(frozen=True)
class Figure:
    """A chart under a title that says what it shows, and a line below."""

    title: str
    chart: Markup
    note: str = ""
    table: bool = False


def robustness(contents: Contents) -> Markup:
    """What is lost under corruption and attack, verdicts first; nothing where neither was measured."""
    run = contents.run
    names = run.table_names()
    attacks = run.table("attacks") if "attacks" in names and run.has("attacked") else {}
    corruptions = run.table("corruptions") if "corruptions" in names and run.has("corrupted") else {}
    if not attacks and not corruptions:
        return Markup("")
    corrupted = run.facts("corrupted") if corruptions else {}
    attacked = run.facts("attacked") if attacks else {}
    found = [*_average(corrupted), *_worst(attacked), *_skipped(corrupted)]
    return render(
        "robustness.html",
        {
            "checks": found,
            "curves": _curves(attacks, attacked),
            "types": list(_types(corruptions, corrupted)),
            "n_corrupted": corrupted.get("n"),
        },
    )


def _average(facts: Mapping[str, Any]) -> Iterator[Check]:
    if not facts:
        return
    types, severities = len(facts["types"]), len(facts["severities"])
    text = (
        f"{percent(facts['mean'], *facts['mean_interval'])} right over {count(types)} "
        f"{'type' if types == 1 else 'types'} at {count(severities)} "
        f"{'severity' if severities == 1 else 'severities'}, {percent(facts['clean'], *facts['clean_interval'])} on the same "
        f"{count(facts['n'])} images untouched. "
    )
    share, (low, high) = facts["relative"], facts["relative_interval"]
    text += f"What is left of clean accuracy: {percent(share, low, high)}."
    if types > 1:
        means = dict(zip(facts["types"], facts["by_type"], strict=True))
        least, most = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        text += f" Least under {_words(least)} ({percent(means[least])}), most under {_words(most)} ({percent(means[most])})."
    yield Check("note", "Corrupted images", text)


def _worst(facts: Mapping[str, Any]) -> Iterator[Check]:
    for name, about in facts.get("attacks", {}).items():
        title = NAMES.get(name, name)
        if about["problems"]:
            yield Check(
                "caution",
                f"{title}: no verdict",
                f"The attack failed its own checks, so the curve is no measure of robustness. {_sentences(about['problems'])}",
            )
        else:
            transfer = (
                "" if about["transfer"] is None else ", images made for another model fool it no better"
            )
            text = (
                f"Accuracy falls with the radius, {count(about['steps'])} steps are no weaker than one, twice as many find no "
                f"less{transfer}, and with the whole pixel range {percent(about['whole'])} of {count(about['checked'])} images "
                f"stay right (chance {percent(about['chance'])}). Mean gradient norm {number(about['gradient_norm'])}, zero on "
                f"{percent(about['zero_gradient'])} of the images."
            )
            yield Check("sound", f"{title}: the attack passes its checks", text)
        if about["notes"]:
            yield Check("note", f"{title}: an upper bound", _sentences(about["notes"]))
    if (control := facts.get("margin")) is not None:
        yield _margin(control)


def _margin(control: Mapping[str, Any]) -> Check:
    """Whether the attack on logits of unit scale finds what the ordinary one missed."""
    gaps = [plain - worst for plain, worst in zip(control["plain"], control["worst"], strict=True)]
    at = int(np.argmax(gaps))
    low, middle, high = control["quartiles"]
    text = (
        f"For half of the images it gets right no change was found that fools it ({count(control['n'])} images looked at). "
        if not np.isfinite(middle)
        else f"Smallest change found that fools it: {percent(middle)} of the image's length "
        f"(quartiles {percent(low)} and {percent(high)}; {count(control['n'])} images). "
    )
    if control["problems"]:
        text = f"{_sentences(control['problems'])} {text}"
    if gaps[at] > DISAGREE:
        return Check(
            "caution",
            "Margin control: the scale of the logits hides weakness",
            f"{text}With logits brought to one scale the attack finds more: {percent(control['worst'][at])} stay right "
            f"at radius {radius_text(control['radii'][at])}, not {percent(control['plain'][at])}.",
        )
    return Check(
        "caution" if control["problems"] else "sound",
        "Margin control",
        f"{text}With logits brought to one scale the attack finds nothing that the ordinary one missed.",
    )


def _skipped(facts: Mapping[str, Any]) -> Iterator[Check]:
    if skipped := facts.get("skipped"):
        reasons: dict[str, list[str]] = {}
        for name, reason in skipped:
            reasons.setdefault(reason, []).append(_words(name))
        text = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        yield Check("note", "Corruptions left out", f"{text}. The mean is over the others.")


def _curves(table: Table, attacked: Mapping[str, Any]) -> list[Figure]:
    """One chart an attack, then the margin control."""
    found = [_curve(table, name, about) for name, about in attacked.get("attacks", {}).items()]
    if (control := attacked.get("margin")) is not None:
        found.append(_margin_figure(control))
    return found


def _margin_figure(control: Mapping[str, Any]) -> Figure:
    series = [
        Series("one scale", control["normalized"], look="ring"),
        Series("as it is", control["plain"]),
    ]
    gap = max(p - w for p, w in zip(control["plain"], control["worst"], strict=True))
    title = "Brought to one scale, the logits " + (
        "give more away" if gap > DISAGREE else "give nothing more away"
    )
    chart = line_chart(
        control["radii"], series, label=f"Margin control. {title}.", x_label=f"radius ({SIZES[control['ball']]})",
        y_label="accuracy under attack", domain=(0.0, 1.0),
    )  # fmt: skip
    note = f"{count(control['n'])} images; the attack on the logits as they are and on logits of unit spread. In facts/attacked.json."
    return Figure(title, chart, note)


def _curve(table: Table, name: str, about: Mapping[str, Any]) -> Figure:
    rows = table["attack"] == name
    radius, accuracy, low, high, fgsm = (
        np.asarray(table[key][rows], float) for key in ("radius", "accuracy", "lo", "hi", "fgsm")
    )
    series = [Series("FGSM", fgsm, look="ring"), Series(f"PGD-{about['steps']}", accuracy, low, high)]
    if about["transfer"] is not None:
        series.insert(0, Series("transfer", np.asarray(table["transfer"][rows], float), look="ring"))
    title = attack_title(radius.tolist(), accuracy.tolist(), adequate=not about["problems"])
    label = f"{NAMES.get(name, name)}. {title}. " + "; ".join(
        f"radius {radius_text(r)}: {percent(a)}"
        for r, a in zip(radius.tolist(), accuracy.tolist(), strict=True)
    )
    chart = line_chart(
        radius, series, label=label, x_label=f"radius ({SIZES[about['ball']]})",
        y_label=f"accuracy under {NAMES.get(name, name)}", domain=(0.0, 1.0),
    )  # fmt: skip
    note = f"{count(about['n'])} images, band: 95 % interval over images. PGD takes {count(about['steps'])} steps, FGSM one."
    return Figure(title, chart, note, table=True)


def attack_title(radii: Sequence[float], accuracy: Sequence[float], *, adequate: bool) -> str:
    """What a curve says, in one sentence."""
    if not adequate:
        return "Accuracy under an attack that failed its checks"
    half = next((r for r, a in zip(radii, accuracy, strict=True) if a <= accuracy[0] / 2), None)
    if half is None:
        return f"{percent(accuracy[-1])} stay right at radius {radius_text(radii[-1])}"
    before = radii[radii.index(half) - 1]
    start = "already at" if before == 0 else f"between radius {radius_text(before)} and"
    return f"Half of the right answers are lost {start} {radius_text(half)}"


def radius_text(radius: float) -> str:
    """A radius as it was probably meant: 8/255 where it is a round number of grey levels, else a number."""
    levels = radius * 255
    if radius and round(radius, 3) != radius and abs(levels * 4 - round(levels * 4)) < 1e-6:
        return f"{levels:.4g}/255"
    return f"{radius:.4g}"


def _types(table: Table, facts: Mapping[str, Any]) -> Iterator[Figure]:
    """One small chart a type, from the clean images on, the most harmful type first."""
    if not table:
        return
    clean, (clean_low, clean_high) = facts["clean"], facts["clean_interval"]
    means = dict(zip(facts["types"], facts["by_type"], strict=True))
    for name in sorted(means, key=means.__getitem__):
        rows = table["type"] == name
        order = np.argsort(table["severity"][rows], kind="stable")
        severity, accuracy, low, high = (
            np.asarray(table[key][rows], float)[order] for key in ("severity", "accuracy", "lo", "hi")
        )
        series = Series(
            "", [clean, *accuracy.tolist()], [clean_low, *low.tolist()], [clean_high, *high.tolist()]
        )
        title = f"{_words(name)}: {percent(means[name])}"
        label = f"{_words(name)}, accuracy by severity: clean {percent(clean)}; " + "; ".join(
            f"{s:g} {percent(a)}" for s, a in zip(severity.tolist(), accuracy.tolist(), strict=True)
        )
        chart = line_chart(
            [0.0, *severity.tolist()], [series], label=label, x_label="severity (0: clean)", y_label="accuracy",
            domain=(0.0, 1.0),
        )  # fmt: skip
        yield Figure(title, chart)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _sentences(parts: Sequence[str]) -> str:
    return " ".join(f"{part[:1].upper()}{part[1:]}." for part in parts)
