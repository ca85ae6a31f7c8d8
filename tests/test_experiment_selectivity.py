"""The selectivity study runs end to end on digits, goes on where it stopped, and writes its page."""

import csv
from pathlib import Path

import pytest

from studies import run_study

ROOT = Path(__file__).parents[1]


def study(out: Path, *options: str) -> str:
    return run_study("selectivity", out, *options)


@pytest.mark.slow
def test_the_study_runs_and_goes_on(tmp_path: Path) -> None:
    assert "done=1" in study(tmp_path, "--arm", "permuted")
    assert "done=3" in study(tmp_path)
    table = tmp_path / "results" / "digits" / "cells.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["arm"], row["alpha"], row["status"]) for row in rows} == {
        ("class", "0.0", "done"),
        ("class", "5.0", "done"),
        ("permuted", "5.0", "done"),
    }
    wanted = (
        "accuracy",
        "si_cf",
        "si_off.relu2",
        "dim_95.relu2",
        "corruption_severity.3",
        "pgd.0.1000",
        "probe.relu3",
    )
    assert all(float(row[name]) >= 0 for row in rows for name in wanted)
    before = table.read_text()
    study(tmp_path)
    assert table.read_text() == before
    assert (tmp_path / "scratch" / "pellucid-selectivity" / "smoke" / "digits" / "scratch").is_dir()
    study(tmp_path, "--page")
    page = (tmp_path / "results" / "index.md").read_text()
    assert "| 3 | 3 | 0 (none) |" in page and "+" in page
    assert (tmp_path / "results" / "accuracy_selectivity.svg").stat().st_size > 2000


def test_a_training_that_collapsed_gives_no_verdict(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from selectivity_claims import claims, decide, ledger_at, register_all

    def rows(index: str, attacked: str) -> list[dict[str, str]]:
        """Six replicates, in which alpha = 5 costs accuracy; two of those networks may have died."""
        return [
            {"arm": arm, "alpha": str(alpha), "replicate": str(r), "status": "done", "accuracy": f"{at + r / 1000}"}
            | {"si_cf": index if dead else f"{0.4 + at / 10 + r / 1000}", "pgd": attacked if dead else f"{at / 2}"}
            for arm, alpha, at in (("class", 0.0, 0.98), ("class", 5.0, 0.9), ("permuted", 5.0, 0.97))
            for r in range(6)
            for dead in [(arm, alpha) == ("class", 5.0) and r < 2]
        ]  # fmt: skip

    ledger = ledger_at(tmp_path)
    register_all(ledger)
    of_digits = {c.measure.args["measure"]: c for c in claims() if c.data.spec == "digits" and c.direction != "up"
                 and c.measure.args["treated"] == ["class", 5.0] and c.measure.args["control"] == ["class", 0.0]}  # fmt: skip
    lowers = of_digits["accuracy"]
    dead = decide(lowers, rows("", ""), ledger)
    assert dead.verdict is not None and dead.verdict.outcome == "invalid"
    assert (
        dead.collapse == "the index is undefined in 2 of 6 networks of class alpha = 5: whole layers are dead"
    )
    attacked = next(c for c in claims() if c.data.spec == "digits" and c.measure.args["measure"] == "pgd"
                    and c.measure.args["treated"] == ["class", 5.0])  # fmt: skip
    nothing = decide(attacked, rows("", ""), ledger)
    assert nothing.verdict is not None and nothing.verdict.outcome == "invalid" and nothing.verdict.n == {}
    assert "undefined in 2 of 6 networks" in nothing.collapse
    entries = len(ledger.entries())
    decide(attacked, rows("", ""), ledger)
    assert len(ledger.entries()) == entries, "looking again opens nothing again"
