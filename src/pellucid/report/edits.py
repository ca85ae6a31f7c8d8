"""Edited images: what was put in and taken out, by which channels, and what blending and a gradient do at equal size."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pellucid.html import Series, count, line_chart, number, percent
from pellucid.report.backtrack_album import Shot, shots
from pellucid.report.contents import Contents, Table, shown_name
from pellucid.report.robustness import Figure
from pellucid.report.templates import render
from pellucid.report.trust import Check

HEADINGS = {
    "source": "image",
    "exemplar": "exemplar",
    "edit": "edited",
    "added": "what was added",
    "blend": "blended",
    "gradient": "gradient step",
}


def edits(contents: Contents) -> Markup:
    """Success by strength beside its baselines, then the edits themselves; nothing where `pellucid edit` did not run."""
    run = contents.run
    if "edits" not in run.table_names() or not run.has("edited"):
        return Markup("")
    facts, rows = run.facts("edited"), run.table("edits")
    return render(
        "edits.html",
        {
            "layer": shown_name(facts["layer"]),
            "alpha": f"{facts['alpha']:g}",
            "checks": list(_checks(facts, rows)),
            "figures": [_by_alpha(rows), _by_size(rows)],
            "edits": list(_edits(shots(contents, "edit_pictures"))),
        },
    )


def _checks(facts: Mapping[str, Any], rows: Table) -> Iterator[Check]:
    at = rows["alpha"].tolist().index(facts["alpha"])
    text = (
        f"At strength {facts['alpha']:g}, {_share(rows, 'edit', at)} of {count(facts['n'])} images are taken for the target, "
        f"changed by {percent(float(rows['size'][at]))} of their length. Blending with the exemplar at the same size reaches "
        f"{_share(rows, 'blend', at)}, one gradient step {_share(rows, 'gradient', at)}."
    )
    against = {_against(rows, name, at) for name in ("blend", "gradient")}
    words = "behind" if -1 in against else "ahead of" if against == {1} else "not clearly ahead of"
    yield Check(
        "sound" if words == "ahead of" else "note", f"At equal size the edit is {words} its baselines", text
    )
    half = next((a for a, share in zip(rows["alpha"], rows["edit"], strict=True) if share >= 0.5), None)
    if half is not None and half < 0.5:
        yield Check(
            "caution",
            "A small strength already does it",
            f"Half of the edits succeed at strength {float(half):g} or below, where most of what is added is amplified "
            "error: the weights are far from orthogonal, and the pictures below show that more than features.",
        )
    if facts["left_out"]:
        yield Check(
            "note",
            "Images left out",
            f"{count(facts['left_out'])} images: of the target class already, no image is taken for their target, or black throughout.",
        )


def _share(rows: Table, name: str, at: int) -> str:
    return percent(*(float(rows[key][at]) for key in (name, f"{name}_lo", f"{name}_hi")))


def _against(rows: Table, name: str, at: int) -> int:
    """1 where the edit's interval lies above the baseline's, -1 where below, 0 where they touch."""
    if rows["edit_lo"][at] > rows[f"{name}_hi"][at]:
        return 1
    return -1 if rows["edit_hi"][at] < rows[f"{name}_lo"][at] else 0


def _by_alpha(rows: Table) -> Figure:
    alpha, share = rows["alpha"].tolist(), rows["edit"].tolist()
    half = next((a for a, s in zip(alpha, share, strict=True) if s >= 0.5), None)
    title = (
        f"{percent(share[-1])} succeed at strength {alpha[-1]:g}"
        if half is None
        else f"Half of the edits succeed at strength {half:g}"
    )
    chart = line_chart(
        alpha, [Series("edit", share, rows["edit_lo"], rows["edit_hi"])],
        label=f"{title}. " + "; ".join(f"{a:g}: {percent(s)}" for a, s in zip(alpha, share, strict=True)),
        x_label="strength", y_label="share taken for the target", domain=(0.0, 1.0),
    )  # fmt: skip
    return Figure(
        title,
        chart,
        f"{count(int(rows['n'][0]))} images, band: 95 % interval over images. Strength 1 exchanges the features whole.",
    )


def _by_size(rows: Table) -> Figure:
    size = rows["size"].tolist()
    signs = [_against(rows, "blend", at) for at in range(len(size))]
    better, worse = signs.count(1), signs.count(-1)
    title = "At equal size the edit is no clear improvement on blending"
    if better != worse:
        verb, n = ("better", better) if better > worse else ("worse", worse)
        title = f"At equal size the edit does clearly {verb} than blending at {count(n)} of {count(len(size))} strengths"
    series = [
        Series("edit", rows["edit"], rows["edit_lo"], rows["edit_hi"]),
        Series("blend", rows["blend"], look="ring"),
        Series("gradient", rows["gradient"], look="dash"),
    ]
    words = "; ".join(
        f"size {number(s)}: edit {percent(e)}, blend {percent(b)}, gradient {percent(g)}"
        for s, e, b, g in zip(
            size, rows["edit"].tolist(), rows["blend"].tolist(), rows["gradient"].tolist(), strict=True
        )
    )
    chart = line_chart(
        size, series, label=f"{title}. {words}", x_label="mean size of the change, in lengths of the image",
        y_label="share taken for the target", domain=(0.0, 1.0),
    )  # fmt: skip
    return Figure(
        title,
        chart,
        "Each image is blended (rings), and pushed along its gradient (dashed), by as much as its edit changed it.",
    )


def _edits(pictures: Sequence[Shot]) -> Iterator[dict[str, Any]]:
    """One block an image: the strip of pictures and, below it, the channels' parts."""
    for row in sorted({int(shot.row["row"]) for shot in pictures}):
        mine = [shot for shot in pictures if shot.row["row"] == row]
        about = mine[0].row
        yield {
            "title": f"{about['name']}: {about['source']} to {about['target']}",
            "note": f"changed by {percent(float(about['size']))} of its length",
            "strip": [_captioned(shot) for kind in HEADINGS for shot in mine if shot.row["kind"] == kind],
            "parts": [_part(shot) for shot in mine if shot.row["kind"] == "part"],
        }


def _captioned(shot: Shot) -> tuple[Markup, str, str]:
    heading, said = HEADINGS[shot.row["kind"]], str(shot.row["said"] or "")
    what = {"source": "class", "exemplar": "class", "added": ""}.get(shot.row["kind"], "taken for")
    words = f"{what} {said}" if said else "red added, blue taken away"
    return shot.show(f"{shot.row['name']}, {heading}: {words}"), heading, words


def _part(shot: Shot) -> tuple[Markup, str, str]:
    unit = f"channel {shot.row['unit']}"
    return shot.show(f"what {unit} adds, {shot.row['said']}", side=64), unit, str(shot.row["said"])
