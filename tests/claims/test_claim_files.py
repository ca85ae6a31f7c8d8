"""Claim files, the three commands behind `pellucid claim`, cards and the calibration table."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pellucid._checks import ConfigError
from pellucid.claims import (
    Analysis,
    Claim,
    Ledger,
    Scope,
    calibrate,
    card_html,
    card_page,
    check,
    load_claim,
    without_numbers,
    write_card,
)
from pellucid.claims.calibrate import CalibrationRow
from pellucid.claims.worlds import WorldType, world_types
from pellucid.jobs.claim import check_file, register_file, show_ledger

CLAIM = """
[claim]
statement = "Ablating unit 3 lowers accuracy on sevens by more than 5 points"
scope = "recipe: small net on digits"
kind = "exceeds"
delta = 5
reason = "half of the seven-nine confusions"
effect = "accuracy drop"
unit = "pp"
intervention = "activation edit"
manipulation = "unit 3 is silent"
positive_control = "ablating the whole layer"

[measure]
use = "measures_for_claims:drop"
args = { unit = 3 }

[data]
spec = "digits"
exploration = "train"
confirmation = "test"

[[nulls]]
name = "random units"
worlds = 19
use = "measures_for_claims:random_unit"

[analysis]
models = 6
sd = 2
"""

MEASURES = """
import numpy as np
from pellucid.claims import Measured

SPLITS = []

def drop(seed, split, unit):
    SPLITS.append(split)
    base = np.array([90.0, 91.0, 90.5, 92.0, 89.5, 91.5])
    effect = np.array([12.0, 11.0, 13.0, 12.5, 11.5, 12.0])
    return Measured(base, base - effect, positive_control=(base, base - 60 - effect), manipulation=True)

def random_unit(seed, split):
    return np.random.default_rng(seed).normal()

def wrong(seed, split):
    return 3.0
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "measures_for_claims.py").write_text(MEASURES)
    (tmp_path / "claim.toml").write_text(CLAIM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "measures_for_claims", raising=False)
    yield tmp_path
    sys.modules.pop("measures_for_claims", None)


# reading


def test_a_claim_file_is_the_claim_in_python(home: Path) -> None:
    claim = load_claim("claim.toml")
    assert claim.scope == Scope("recipe", "small net on digits")
    assert claim.analysis == Analysis(models=6, sd=2.0)
    assert (claim.delta, claim.data.key) == (5.0, "digits:test")
    table = CLAIM.replace('scope = "recipe: small net on digits"', "").replace(
        "[measure]", '[claim.scope]\nlevel = "recipe"\nsubject = "small net on digits"\n[measure]'
    )
    Path("table.toml").write_text(table)
    assert load_claim("table.toml").sha256 == claim.sha256


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("statement =", "statment =", r"\[claim\]: unknown key 'statment'; nearest: \['statement'"),
        ("[analysis]", "[analisys]", "unknown key 'analisys'; nearest: ['analysis'"),
        ("models = 6", "modells = 6", "[analysis]: unknown key 'modells'; nearest: ['models'"),
        ("worlds = 19", "world = 19", "[[nulls]]: unknown key 'world'; nearest: ['worlds'"),
        ("delta = 5", 'delta = "5"', "[claim] delta must be a number, got '5'"),
        ("models = 6", "models = 6.5", "[analysis] models must be a whole number, got 6.5"),
        ("models = 6", "models = true", "[analysis] models must be a whole number, got True"),
        ('kind = "exceeds"', 'kind = "exceed"', "nearest: 'exceeds'"),
        ('kind = "exceeds"\n', "", "[claim] needs ['kind']"),
        ("delta = 5", "delta = 0", "delta=0 is refused"),
        ("models = 6", "models = 2", "needs analysis.models >= 3"),
        ('"recipe: small', '"recipes: small', "nearest: 'recipe'"),
        ("args = { unit = 3 }", "args = 3", "[measure] args must be a table"),
        ("[[nulls]]", "[nulls]", "[[nulls]] must be a list"),
        ("sd = 2", "doses = 3", "[analysis] doses must be a list"),
        ("[claim]", "[claim", "is not TOML"),
        ('unit = "pp"', 'unit = "pp"\ndata = 3', "unknown key 'data'"),
    ],
)
def test_mistakes_in_a_file_are_named(home: Path, old: str, new: str, message: str) -> None:
    Path("bad.toml").write_text(CLAIM.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_claim("bad.toml")
    assert message.replace("\\", "") in str(caught.value)


def test_a_file_that_is_not_there(home: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the claim file"):
        load_claim("none.toml")
    Path("empty.toml").write_text("")
    with pytest.raises(ConfigError, match=r"has no \[claim\] table"):
        load_claim("empty.toml")


# register, check, ledger


def test_from_file_to_confirmatory_verdict(home: Path) -> None:
    registration = register_file("claim.toml")
    assert registration.ledger == Path("claims.jsonl")
    found = check_file("claim.toml")
    assert found.verdict.headline == "supported (rung 4, confirmatory)", str(found.verdict)
    assert found.exit_code == 0
    assert sys.modules["measures_for_claims"].SPLITS == ["test"]
    assert (found.page.name, found.data.name) == ("claim.card.html", "claim.card.json")
    assert json.loads(found.data.read_text())["headline"] == found.verdict.headline
    again = check_file("claim.toml")
    assert again.verdict == found.verdict
    view = show_ledger()
    assert [row.verdict for row in view.rows] == ["supported (rung 4, confirmatory)"]
    assert (view.tally.ratio, view.problems) == (1.0, ())
    assert view.rows[0].source == "claim.toml"


def test_without_registration_only_exploration_data_are_used(home: Path) -> None:
    found = check_file("claim.toml", out=home / "cards" / "first")
    assert found.verdict.headline == "supported (rung 2, exploratory)"
    assert sys.modules["measures_for_claims"].SPLITS == ["train"]
    assert found.page == home / "cards" / "first.html"
    with pytest.raises(ConfigError, match="there is no ledger"):
        show_ledger()


def test_an_edited_file_is_invalid_and_opens_nothing(home: Path) -> None:
    register_file("claim.toml")
    Path("claim.toml").write_text(CLAIM.replace("delta = 5", "delta = 3"))
    found = check_file("claim.toml")
    assert (found.verdict.outcome, found.exit_code) == ("invalid", 3)
    assert "delta changed after registration" in found.verdict.reasons[0]
    assert "measures_for_claims" not in sys.modules or sys.modules["measures_for_claims"].SPLITS == []
    assert not Ledger("claims.jsonl").about(load_claim("claim.toml").sha256, "opened")
    assert "delta changed after registration" in found.page.read_text()


def test_changed_measure_code_is_a_deviation(home: Path) -> None:
    register_file("claim.toml")
    Path("measures_for_claims.py").write_text(MEASURES + "\n# improved\n")
    found = check_file("claim.toml").verdict
    assert found.headline == "supported (rung 2, exploratory)"
    assert (
        "the code of measures_for_claims:drop, measures_for_claims:random_unit changed" in found.deviations[0]
    )


def test_other_data_than_registered(home: Path) -> None:
    Path("claim.toml").write_text(CLAIM.replace('spec = "digits"', 'spec = "digits"\nfingerprint = "aaaa"'))
    Path("measures_for_claims.py").write_text(
        MEASURES.replace("manipulation=True", "manipulation=True, fingerprint='b'")
    )
    register_file("claim.toml")
    found = check_file("claim.toml").verdict
    assert found.outcome == "invalid"
    assert "the data are not the registered ones" in found.reasons[0]


def test_mistakes_in_what_a_file_names(home: Path) -> None:
    for old, new, message in (
        (":drop", ":dorp", "nearest"),
        (":drop", ":wrong", "must return pellucid.claims.Measured, got float"),
        ('use = "measures_for_claims:drop"', "", "names no measure"),
    ):
        text = CLAIM.replace(old, new, 1)
        Path("bad.toml").write_text(text if new != ":wrong" else text.replace("args = { unit = 3 }", ""))
        with pytest.raises(ConfigError, match=message):
            check_file("bad.toml")


# cards


def some_verdict(**changes: Any) -> Any:
    plain: dict[str, Any] = {
        "scope": Scope("recipe", "<net> & co"),
        "analysis": Analysis(models=6),
        "unit": "pp",
    }
    claim = Claim("<script>alert(1)</script> raises accuracy", 1.0, changes.pop("kind", "exceeds"), **plain)
    values = np.array([3.0, 3.2, 2.8, 3.1, 2.9, 3.0])
    worlds = np.random.default_rng(0).normal(size=20)
    return check(claim, values, nulls={"permuted <labels>": worlds}, **changes)


@pytest.mark.parametrize("kind", ["exceeds", "equivalent"])
def test_card_shows_what_it_must_and_escapes(kind: str) -> None:
    found = some_verdict(kind=kind, positive_control=True)
    html = card_html(found)
    assert "<script>" not in html
    assert "&lt;net&gt; &amp; co" in html
    for text in (
        found.headline,
        "Scope",
        "Rung",
        "90% interval",
        "Replicates",
        "Smallest effect that counts",
        "Power, stated before",
        "What would have refuted it",
        "Null worlds",
        "permuted &lt;labels&gt;",
        "Controls",
        "Warnings",
    ):
        assert text in html, text
    svgs = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(svgs) == 2  # the verdict's shape, and the effect with its null strip
    for svg in svgs:
        ElementTree.fromstring(svg)
    assert svgs[1].count("<circle") == 1 + 6 + 20


def test_card_never_says_supported_without_its_rung() -> None:
    text = re.sub(r"<[^>]+>", " ", card_page(some_verdict()))
    for match in re.finditer("supported", text):
        assert text[match.end() : match.end() + 6] == " (rung"


def test_cards_of_all_outcomes_are_told_apart_by_shape(tmp_path: Path) -> None:
    shapes: set[str] = set()
    verdicts = {
        "supported": some_verdict(),
        "invalid": some_verdict(positive_control=False),
        "refuted": some_verdict(kind="equivalent"),
    }
    for outcome, verdict in verdicts.items():
        assert verdict.outcome == outcome
        shapes.add(re.findall(r"<svg.*?</svg>", card_html(verdict), re.S)[0])
    assert len(shapes) == 3
    blank = without_numbers(verdicts["supported"].claim, ("the ledger was tampered with",))
    page, data = write_card(blank, tmp_path / "deep" / "card")
    assert "none were measured" in page.read_text()
    assert json.loads(data.read_text())["effect"] is None


def test_a_card_of_many_images_stays_small() -> None:
    claim = Claim("x", 0.1, "exceeds", scope=Scope("checkpoint", "ab"))
    found = check(claim, np.random.default_rng(1).normal(1, 1, size=50_000))
    assert len(card_html(found)) < 60_000
    assert len(found.to_dict()["values"]) == 50_000


# calibration


def test_calibration_table_reads_and_repeats() -> None:
    kinds = tuple(
        kind for kind in world_types() if kind.name in ("exceeds, 3 models", "beats 19 twins (rank)")
    )
    one, again = calibrate(worlds=25, types=kinds), calibrate(worlds=25, types=kinds)
    assert one == again
    assert one.ok
    assert one.text().splitlines()[0].startswith("claim type")
    assert "exceeds, 3 models" in one.html()
    with pytest.raises(ConfigError, match="at least 20 worlds"):
        calibrate(worlds=5)


def test_a_broken_claim_type_fails_the_table() -> None:
    """A one-sided z where a t is due: too often supported, and the repeat does not save it."""

    def anti_conservative(planted: bool, seed: int) -> Any:
        class Verdict:
            outcome = (
                "supported" if planted or np.random.default_rng(seed % 2**32).random() < 0.15 else "refuted"
            )

        return Verdict()

    found = calibrate(types=(WorldType("broken", 0.9, anti_conservative),))
    assert not found.ok
    assert found.rows[0].worlds == 1000
    assert "NO" in found.text()
    assert CalibrationRow("x", 200, 0.05, 0.08, 0.7, 0.9, 0.86).ok is False


@pytest.mark.slow
def test_self_calibration_of_all_claim_types() -> None:
    """In a process of its own, as a user runs it: without the type checks of the tests."""
    code = (
        "import time; from pellucid.claims import calibrate; found = calibrate(); "
        "print(found.text()); print(len(found.rows), found.ok, time.process_time() < 120)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=280
    )
    assert done.stdout.splitlines()[-1] == "15 True True", done.stdout
