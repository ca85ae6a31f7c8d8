"""The top of the front page: what was run, on what, and what was left out."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pellucid.html import count, counted, missing, percent
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
    parts = [f"{counted(units, 'unit')} in {counted(layers, 'layer')}"] if layers else []
    if n:
        of = f" of {counted(classes, 'class', 'classes')}" if classes else " without labels"
        total = _drawn_from(contents.data)
        images = f"{count(int(n))} of {counted(total, 'image')}" if total else counted(int(n), "image")
        parts.append(f"{'recorded on ' if parts else ''}{images}{of}{', drawn at random' if total else ''}")
    words = f"{', '.join(parts)}." if parts else ""
    accuracy = contents.accuracy
    if accuracy.get("accuracy") is not None:
        right = percent(accuracy.get("accuracy"), accuracy.get("lo"), accuracy.get("hi"))
        words += f" The network classifies {right} of them correctly."
    elif why := contents.data.get("accuracy_why"):
        words += f" Accuracy was not computed: {str(why).rstrip('.')}."
    return words


def _drawn_from(data: Mapping[str, Any]) -> int | None:
    """The number of images that those of the run were drawn from, None where all were asked for."""
    limit, total = data.get("limit"), data.get("total")
    return int(total) if limit is not None and total is not None and limit < total else None


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
        ("images", _images(data) if data.get("n") is not None else missing("not counted")),
        ("classes", count(int(data["classes"])) if data.get("classes") else missing("no labels")),
        ("fingerprint", _hash(data.get("fingerprint"))),
    ]
    if size:
        rows.append(("size", f"{_times(size)} px" + (f", {data['fit']}" if data.get("fit") else "")))
    return rows


def _images(data: Mapping[str, Any]) -> str:
    total = _drawn_from(data)
    return count(int(data["n"])) + (f" of {count(total)}, drawn at random" if total else "")


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
