"""The top of the front page: what was run, on what, and what was left out."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pellucid.html import count, missing, percent
from pellucid.report.contents import Contents
from pellucid.report.templates import render

MOST_SKIPPED = 200


def header(contents: Contents) -> Markup:
    """The run header, with the untrained banner above everything where there are no weights."""
    facts = contents.run.header
    return render(
        "header.html",
        {
            "title": contents.title,
            "untrained": not contents.model.get("trained", True),
            "upcast": bool(contents.model.get("upcast", False)),
            "lede": _lede(contents),
            "when": _when(str(facts.get("created", ""))),
            "groups": [
                ("Network", _network(contents.model)),
                ("Data", _data(contents.data)),
                ("Run", _run(facts)),
            ],
            "skipped": list(contents.data.get("skipped", ()))[:MOST_SKIPPED],
            "n_skipped": len(contents.data.get("skipped", ())),
        },
    )


def normalisation(value: Any) -> str:
    """The normalisation of the model's input in words."""
    if not value:
        return "none: the network sees pixels in [0, 1]"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return str(value)


def _lede(contents: Contents) -> str:
    layers, units = len(contents.layers), len(contents.units.get("unit", ()))
    n, classes = contents.data.get("n"), len(contents.classes)
    parts = [f"{count(units)} units in {count(layers)} layers"] if layers else []
    if n:
        of = f" of {count(classes)} classes" if classes else " without labels"
        parts.append(f"{'recorded on ' if parts else ''}{count(int(n))} images{of}")
    words = f"{', '.join(parts)}." if parts else ""
    accuracy = contents.accuracy
    if accuracy:
        right = percent(accuracy.get("accuracy"), accuracy.get("lo"), accuracy.get("hi"))
        words += f" The network classifies {right} of them correctly."
    return words


def _network(model: Mapping[str, Any]) -> list[tuple[str, Any]]:
    weights = model.get("weights")
    return [
        ("model", _code(model.get("spec") or model.get("name"))),
        (
            "parameters",
            count(int(model["parameters"]))
            if model.get("parameters") is not None
            else missing("not counted"),
        ),
        ("weights", weights or missing("none given" if not model.get("trained") else "trained in this run")),
        ("weights hash", _hash(model.get("weights_hash"))),
        ("normalisation", normalisation(model.get("normalize"))),
        *[("note", str(note)) for note in model.get("notes", ())],
    ]


def _data(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    size = data.get("size")
    rows: list[tuple[str, Any]] = [
        ("data", _code(data.get("spec") or data.get("name"))),
        ("split", data.get("split") or missing("not split")),
        ("images", count(int(data["n"])) if data.get("n") is not None else missing("not counted")),
        ("classes", count(int(data["classes"])) if data.get("classes") else missing("no labels")),
        ("fingerprint", _hash(data.get("fingerprint"))),
    ]
    if size:
        rows.append(("size", f"{_times(size)} px" + (f", {data['fit']}" if data.get("fit") else "")))
    return rows


def _run(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    versions = facts.get("versions", {})
    main = [f"{name} {versions[name]}" for name in ("pellucid", "torch", "python") if name in versions]
    rows: list[tuple[str, Any]] = [
        ("job", facts.get("job") or facts.get("command")),
        ("seed", facts.get("seed", facts.get("seeds"))),
        ("versions", ", ".join(main)),
        ("device", facts.get("device")),
        ("took", f"{facts['seconds']:,.0f} s" if isinstance(facts.get("seconds"), int | float) else None),
    ]
    return [(name, _plain(value)) for name, value in rows if value not in (None, "")]


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(_plain(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _times(size: Any) -> str:
    return (
        " × ".join(map(str, size)) if isinstance(size, Sequence) and not isinstance(size, str) else str(size)
    )


def _code(text: Any) -> Markup:
    return Markup("<code>{}</code>").format(text) if text else missing("not said")


def _hash(value: Any) -> Markup:
    """The head of a hash; the whole of it is in the provenance at the foot of the page."""
    return (
        Markup('<code title="{}">{}</code>').format(value, str(value)[:12])
        if value
        else missing("not hashed")
    )


def _when(text: str) -> str:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
