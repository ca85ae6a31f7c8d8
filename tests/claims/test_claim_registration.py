"""The ledger, registration, the gate of the confirmation split, amendments, blinding."""

import dataclasses as dc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid._checks import ConfigError, DataError
from pellucid.claims import (
    Analysis,
    Claim,
    ConfirmationSplit,
    DataPlan,
    Ledger,
    NullPlan,
    Registration,
    Scope,
    Verdict,
    amend,
    blind,
    check,
    nested,
    register,
    unblind,
)

VALUES = np.array([3.1, 2.9, 3.3, 3.0, 2.7, 3.2])
WORLDS = np.random.default_rng(0).normal(size=19)


def plan(**changes: Any) -> Claim:
    plain: dict[str, Any] = {
        "statement": "The effect is more than 1 pp",
        "delta": 1.0,
        "kind": "exceeds",
        "scope": Scope("recipe", "small net"),
        "reason": "worth a retraining",
        "unit": "pp",
        "intervention": "training-time",
        "positive_control": "planted drop",
        "manipulation": "SI moves",
        "nulls": (NullPlan("untrained", worlds=19),),
        "data": DataPlan("digits", "train", "test"),
        "analysis": Analysis(models=6, sd=0.5),
    }
    return Claim(**{**plain, **changes})


def run(claim: Claim, registration: Registration | None, values: Any = VALUES, **changes: Any) -> Verdict:
    plain: dict[str, Any] = {
        "nulls": {"untrained": WORLDS},
        "positive_control": (VALUES + 5, None),
        "manipulation": np.array([0.30, 0.31, 0.29, 0.30, 0.32, 0.28]),
        "registration": registration,
    }
    return check(claim, values, **{**plain, **changes})


def opened(claim: Claim, ledger: Path) -> Registration:
    registration = register(claim, ledger)
    ConfirmationSplit(claim.data.key, lambda: None, ledger).open(registration.hash)
    return registration


# what a registration buys


def test_confirmatory_verdict_reaches_its_rung(tmp_path: Path) -> None:
    found = run(plan(), opened(plan(), tmp_path))
    assert found.headline == "supported (rung 5, confirmatory)"
    assert found.deviations == ()
    without = run(plan(), None)
    assert without.headline == "supported (rung 2, exploratory)"


@pytest.mark.parametrize(
    ("changes", "given", "rung"),
    [
        ({}, {}, 5),
        ({"intervention": "activation edit"}, {}, 4),
        ({"intervention": "activation edit", "prediction": "loss rises by 0.2"}, {}, 5),
        ({"intervention": "input edit", "prediction": "it drops"}, {}, 4),
        ({"intervention": "none", "manipulation": ""}, {"manipulation": None}, 3),
        ({"manipulation": ""}, {"manipulation": None}, 3),
        ({"scope": Scope("family", "three nets")}, {}, 6),
        ({"data": DataPlan("digits", "train", "test", examples="chosen")}, {}, 1),
    ],
)
def test_rungs(tmp_path: Path, changes: dict[str, Any], given: dict[str, Any], rung: int) -> None:
    claim = plan(**changes)
    assert run(claim, opened(claim, tmp_path), **given).rung == rung


def test_equivalence_stands_on_rung_3_only_with_a_planted_effect(tmp_path: Path) -> None:
    claim = plan(kind="equivalent", nulls=(), intervention="none", manipulation="", positive_control="")
    values = VALUES - VALUES.mean()
    given: dict[str, Any] = {"nulls": None, "manipulation": None}
    first = run(claim, opened(claim, tmp_path / "a"), values, positive_control=None, **given)
    assert (first.outcome, first.rung) == ("supported", 2)
    second = run(claim, opened(claim, tmp_path / "b"), values, **given)
    assert (second.outcome, second.rung) == ("supported", 3)


def test_registering_asks_for_a_whole_plan(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one line why delta"):
        register(plan(reason=""), tmp_path)
    with pytest.raises(ConfigError, match=r"set data\.confirmation"):
        register(plan(data=DataPlan("digits", "train")), tmp_path)
    with pytest.raises(ConfigError, match="names at least one null"):
        register(plan(nulls=()), tmp_path)
    with pytest.raises(ConfigError, match="are both 'test'"):
        register(plan(data=DataPlan("digits", "test", "test")), tmp_path)
    with pytest.raises(ConfigError, match=r"analysis\.alpha"):
        plan(analysis=Analysis(alpha=0.5, models=6))
    assert not Ledger(tmp_path).path.exists()


def test_registering_twice_is_one_registration(tmp_path: Path) -> None:
    first, second = register(plan(), tmp_path), register(plan(), tmp_path)
    assert first == second
    assert len(Ledger(tmp_path).entries()) == 1
    body = Ledger(tmp_path).entries()[0].body
    assert body["power"]["value"] > 0.9
    assert {"python", "numpy", "pellucid"} <= set(body["versions"])
    assert "Refuted if" in body["falsifier"]


# what makes a verdict invalid


def test_claim_edited_after_registration(tmp_path: Path) -> None:
    registration = opened(plan(), tmp_path)
    found = run(dc.replace(plan(), delta=0.5), registration)
    assert (found.outcome, found.rung) == ("invalid", 0)
    assert "delta changed after registration (hash mismatch)" in found.reasons[0]
    nested_change = dc.replace(plan(), analysis=Analysis(models=6, sd=0.5, alpha=0.1))
    assert "analysis.alpha changed" in run(nested_change, registration).reasons[0]


def test_registration_edited_in_the_ledger(tmp_path: Path) -> None:
    registration = opened(plan(), tmp_path)
    path = Ledger(tmp_path).path
    path.write_text(path.read_text().replace('"delta":1.0', '"delta":0.5'))
    found = run(dc.replace(plan(), delta=0.5), registration)
    assert found.outcome == "invalid"
    assert "the ledger was tampered with: line 1 was edited" in found.reasons[0]


def test_hash_that_was_never_registered(tmp_path: Path) -> None:
    opened(plan(), tmp_path)
    made_up = Registration(plan(delta=2.0).sha256, Ledger(tmp_path).path, 1, "")
    assert "is not in the ledger" in run(plan(delta=2.0), made_up).reasons[0]


def test_confirmation_split_opened_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = ConfirmationSplit(plan().data.key, lambda: "data", tmp_path)
    assert split.open_without_claim(reason="a first look") == "data"
    registration = register(plan(), tmp_path)
    assert "before this registration" in caplog.text
    found = run(plan(), registration)
    assert found.outcome == "invalid"
    assert "opened in line 1, before registration in line 2" in found.reasons[0]


def test_split_opened_for_another_claim_is_opened_early_for_a_later_one(tmp_path: Path) -> None:
    opened(plan(), tmp_path)
    later = register(plan(delta=2.0), tmp_path)
    assert run(plan(delta=2.0), later).outcome == "invalid"
    other_split = plan(delta=2.0, data=DataPlan("digits", "train", "rest"))
    assert run(other_split, opened(other_split, tmp_path)).outcome == "supported"


def test_gate_opens_for_a_registered_hash_only(tmp_path: Path) -> None:
    calls: list[int] = []
    split = ConfirmationSplit("digits:test", lambda: calls.append(1), tmp_path)
    with pytest.raises(ConfigError, match="register the claim first"):
        split.open(plan().sha256)
    registration = register(plan(), tmp_path)
    with pytest.raises(ConfigError, match="was registered for split 'digits:test', not 'digits:other'"):
        ConfirmationSplit("digits:other", lambda: None, tmp_path).open(registration.hash)
    assert not calls
    split.open(registration.hash)
    assert calls == [1]
    run(plan(), registration)
    with pytest.raises(ConfigError, match="a split is opened once for a claim"):
        split.open(registration.hash)


# deviations


def test_deviations_cap_the_rung(tmp_path: Path) -> None:
    registration = register(plan(), tmp_path / "unopened")
    found = run(plan(), registration)
    assert found.headline == "supported (rung 2, exploratory)"
    assert found.deviations == ("the confirmation split was not opened through the ledger",)
    for absent, word in (
        ({"manipulation": None}, "registered manipulation check was not run"),
        ({"positive_control": None}, "registered positive control was not run"),
    ):
        found = run(plan(), opened(plan(), tmp_path / word[:22].replace(" ", "")), **absent)
        assert (found.outcome, found.rung) == ("supported", 2)
        assert word in found.deviations[0]
    fewer = run(plan(), opened(plan(), tmp_path / "fewer"), VALUES[:5])
    assert fewer.deviations == ("5 models came for the 6 registered",)
    worlds = plan(nulls=(NullPlan("untrained", worlds=40),))
    short = run(worlds, opened(worlds, tmp_path / "worlds"))
    assert "19 worlds came for the 40 registered" in short.deviations[0]


def test_the_same_numbers_again_are_a_reproduction_and_others_a_deviation(tmp_path: Path) -> None:
    registration = opened(plan(), tmp_path)
    first, again = run(plan(), registration), run(plan(), registration)
    assert first == again
    assert len(Ledger(tmp_path).about(registration.hash, "checked")) == 1
    other = run(plan(), registration, VALUES + 0.1)
    assert other.label == "exploratory"
    assert (
        "a verdict on other numbers, null worlds or another seed was recorded before (line 3)"
        in other.deviations[0]
    )


def test_another_seed_or_other_worlds_cannot_shop_for_a_verdict(tmp_path: Path) -> None:
    registration = opened(plan(), tmp_path)
    assert run(plan(), registration).label == "confirmatory"
    for changes in (
        {"seed": 1},
        {"nulls": {"untrained": WORLDS - 1}},
        {"positive_control": (VALUES - 9, None)},
    ):
        assert run(plan(), registration, **changes).label == "exploratory"


def test_the_first_confirmatory_verdict_stands_in_the_ledger(tmp_path: Path) -> None:
    registration = opened(plan(), tmp_path)
    assert run(plan(), registration, VALUES - 4).outcome == "refuted"
    assert run(plan(), registration).outcome == "supported"
    (row,), tally = Ledger(tmp_path).rows(), Ledger(tmp_path).tally()
    assert row.status == "refuted" and "confirmatory" in row.verdict
    assert (tally.refuted, tally.supported) == (1, 0)


def test_a_null_that_is_the_effect_itself_is_refused() -> None:
    with pytest.raises(DataError, match="is no null"):
        check(plan(), VALUES + 90, np.full(6, 90.0), nulls={"untrained": VALUES})
    images = [np.array([v - 0.1, v + 0.1]) for v in VALUES]
    nested_plan = plan(
        nulls=(NullPlan("untrained", form="paired"),), analysis=Analysis(models=6, images=2, sd=0.5)
    )
    with pytest.raises(DataError, match="is no null"):
        check(nested_plan, nested(images), nulls={"untrained": nested(images)})


def test_amendments(tmp_path: Path) -> None:
    registration = register(plan(), tmp_path)
    changed = plan(delta=2.0)
    amended = amend(registration, changed, reason="pilot was smaller")
    ConfirmationSplit(changed.data.key, lambda: None, tmp_path).open(amended.hash)
    found = run(changed, amended)
    assert found.label == "confirmatory"
    assert found.amendments == ("line 2: pilot was smaller",)
    late = plan(delta=2.5)
    too_late = run(late, amend(amended, late, reason="looked better"), VALUES + 1)
    assert too_late.label == "exploratory"
    assert any("after the confirmation split was opened" in line for line in too_late.deviations)
    with pytest.raises(ConfigError, match="needs a reason"):
        amend(registration, plan(delta=3.0), reason=" ")
    with pytest.raises(ConfigError, match="no field differs"):
        amend(registration, plan(), reason="none")
    assert len(Ledger(tmp_path).rows()) == 1


# the ledger


def filled(path: Path, lines: int = 5) -> Ledger:
    book = Ledger(path)
    for i in range(lines):
        book.append("looked", f"{i:064x}", {"n": i, "evalue": 1.0 + i})
    return book


def edit(lines: list[str]) -> list[str]:
    return [*lines[:2], lines[2].replace('"n":2', '"n":3'), *lines[3:]]


TAMPERING: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "edited": (edit, "line 3 was edited"),
    "deleted": (lambda lines: lines[:2] + lines[3:], "line 3 does not follow line 2"),
    "first deleted": (lambda lines: lines[1:], "line 1 does not follow line 0"),
    "reordered": (
        lambda lines: [*lines[:1], lines[2], lines[1], *lines[3:]],
        "line 2 does not follow line 1",
    ),
    "doubled": (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4 does not follow line 3"),
    "cut at the end": (lambda lines: lines[:-1], "lines were cut or added"),
    "emptied": (lambda lines: [], "is empty or gone"),
    "garbled": (lambda lines: [*lines[:2], lines[2][:40], *lines[3:]], "line 3 of"),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_found(tmp_path: Path, how: str) -> None:
    book = filled(tmp_path)
    assert book.verify() == []
    change, message = TAMPERING[how]
    book.path.write_text("".join(f"{line}\n" for line in change(book.path.read_text().splitlines())))
    assert message in book.verify()[0]
    with pytest.raises(ConfigError, match=r"nothing was added|is not a ledger line"):
        book.append("looked", "0" * 64, {})


def test_a_rehashed_edit_breaks_the_chain(tmp_path: Path) -> None:
    """Someone who repairs the hash of the line that was edited still breaks the next line's link."""
    from pellucid.claims.ledger import _digest

    book = filled(tmp_path)
    lines = book.path.read_text().splitlines()
    entry = json.loads(lines[2])
    entry["body"]["n"] = 99
    entry["hash"] = _digest({k: v for k, v in entry.items() if k != "hash"})
    lines[2] = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    book.path.write_text("\n".join(lines) + "\n")
    assert book.verify() == ["line 4 does not follow line 3: a line was deleted, added or moved"]


def test_missing_head_is_told(tmp_path: Path) -> None:
    book = filled(tmp_path)
    book.head.unlink()
    assert "head is missing" in book.verify()[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, place: int, change: int) -> None:
    book = filled(tmp_path_factory.mktemp("ledger"), 3)
    data = bytearray(book.path.read_bytes())
    place %= len(data)
    data[place] ^= change
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    if bytes(data).split() == book.path.read_bytes().split():
        return  # only white space between lines changed
    book.path.write_bytes(bytes(data))
    assert book.verify()


def test_ledger_lists_every_claim_and_its_fate(tmp_path: Path) -> None:
    claims = [plan(delta=d) for d in (1.0, 2.9, 5.0, 6.0, 7.0)]
    registrations = [register(claim, tmp_path) for claim in claims]
    book = Ledger(tmp_path)
    for claim, registration in zip(claims[:4], registrations[:4], strict=True):
        ConfirmationSplit(claim.data.key, lambda: None, tmp_path).open(registration.hash)
        run(claim, registration, positive_control=(VALUES + 9, None) if claim.delta < 6 else False)
    book.abandon(registrations[4].hash, reason="the data were lost")
    assert [row.status for row in book.rows()] == [
        "supported",
        "inconclusive",
        "refuted",
        "invalid",
        "abandoned",
    ]
    assert book.rows()[0].verdict == "supported (rung 5, confirmatory)"
    tally = book.tally()
    assert (tally.registered, tally.supported, tally.abandoned, tally.open) == (5, 1, 1, 0)
    assert tally.ratio == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="nothing to abandon"):
        book.abandon("f" * 64, reason="x")
    assert book.look(registrations[0].hash, n=3, evalue=2.0).event == "looked"


def test_a_ledger_that_cannot_be_listed_says_why(tmp_path: Path) -> None:
    register(plan(), tmp_path)
    book = Ledger(tmp_path)
    book.path.write_text(book.path.read_text().replace('"statement"', '"sentence"'))
    with pytest.raises(ConfigError, match="cannot be listed: line 1 was edited"):
        book.rows()


def test_lock_of_a_dead_writer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.claims import ledger

    monkeypatch.setattr(ledger, "LOCK_SECONDS", 0.05)
    book = filled(tmp_path, 1)
    book.path.with_name(book.path.name + ".lock").touch()
    with pytest.raises(ConfigError, match="remove the file if none is running"):
        book.append("looked", "0" * 64, {})


def test_blind_names(tmp_path: Path) -> None:
    mapping = blind(["class arm", "permuted arm", "baseline"], tmp_path, "c" * 64, seed=4)
    assert sorted(mapping.values()) == ["arm A", "arm B", "arm C"]
    with pytest.raises(ConfigError, match="not the mapping that was sealed"):
        unblind({**mapping, "baseline": "arm Z"}, tmp_path, "c" * 64, seed=4)
    assert unblind(mapping, tmp_path, "c" * 64, seed=4).body["mapping"] == mapping
