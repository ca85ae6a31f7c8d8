"""The dissection study runs end to end on `shapes`, goes on where it stopped, decides its claims and writes its page."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def claims_of_the_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.setenv("PELLUCID_SCRATCH", str(tmp_path / "scratch"))
    return importlib.import_module("dissection_claims")


def rows_of(*, lost: float, quality: float) -> list[dict[str, str]]:
    """Three pairs of networks; competing ones lose so many points and describe so much better."""
    found: list[dict[str, str]] = []
    for replicate, base in enumerate((0.80, 0.81, 0.805)):
        wobble = 0.001 * (replicate - 1) ** 2
        for units in (1, 2, 4, 8):
            row = {
                "accuracy_six": base - (units > 1) * (lost + wobble),
                "active_eps_mean": 0.5 + wobble if units == 1 else 1 / units - 1e-6 * replicate,
                "quality": 0.3 + wobble * replicate + (units > 1) * quality,
            }
            names = {
                "net": "resnet",
                "units": str(units),
                "replicate": str(replicate),
                "status": "done",
            }
            found.append({**names, **{name: str(value) for name, value in row.items()}})
    return found


def outcomes(study: ModuleType, out: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    """Verdicts on U = 4 of the residual network on shapes, by measure and direction."""
    ledger = study.register_all(out)
    found: dict[str, str] = {}
    for claim in study.claims():
        args = claim.measure.args
        if (claim.data.spec, args["net"], args["units"]) == ("shapes", "resnet", 4):
            verdict = study.decide(claim, rows, ledger).verdict
            assert verdict is not None and verdict.label == "confirmatory"
            found[f"{args['measure']} {claim.kind}"] = verdict.outcome
    return found


def test_claims_cover_every_competing_network(claims_of_the_study: ModuleType) -> None:
    found = claims_of_the_study.claims()
    asked = {(c.data.spec, c.measure.args["net"], c.measure.args["units"]) for c in found}
    assert len(asked) == 8 + 4 + 4
    assert len(found) == 3 * 16 + 8 and len({claim.sha256 for claim in found}) == len(found)
    assert sum("about 4 %" in claim.statement for claim in found) == 4


@pytest.mark.parametrize(
    ("lost", "quality", "accuracy", "described"),
    [(0.0, 0.01, "supported", "supported"), (0.06, -0.2, "refuted", "refuted")],
)
def test_claims_are_decided_by_the_cells(
    claims_of_the_study: ModuleType,
    tmp_path: Path,
    *,
    lost: float,
    quality: float,
    accuracy: str,
    described: str,
) -> None:
    found = outcomes(claims_of_the_study, tmp_path / "out", rows_of(lost=lost, quality=quality))
    assert found == {
        "accuracy_six exceeds": accuracy,
        "active_eps_mean equivalent": "supported",
        "active_eps_mean exceeds": "supported",
        "quality exceeds": described,
    }


def test_a_claim_waits_for_its_last_cell(claims_of_the_study: ModuleType, tmp_path: Path) -> None:
    rows = [row for row in rows_of(lost=0, quality=0) if (row["units"], row["replicate"]) != ("4", "2")]
    ledger = claims_of_the_study.register_all(tmp_path)
    first = next(
        c for c in claims_of_the_study.claims() if c.measure.args["units"] == 4 and "shift" in c.measure.args
    )
    decided = claims_of_the_study.decide(first, rows, ledger)
    assert decided.verdict is None and decided.there == 2
    assert decided.least == "> -2 pp"


def test_a_share_that_is_exact_by_construction_has_its_verdict(
    claims_of_the_study: ModuleType, tmp_path: Path
) -> None:
    rows = rows_of(lost=0, quality=0)
    for row in rows:
        if row["units"] == "4":
            row["active_eps_mean"] = str(0.25 - 1e-10)
    assert outcomes(claims_of_the_study, tmp_path / "out", rows)["active_eps_mean equivalent"] == "supported"


def study(out: Path, *options: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PELLUCID_DATA"}
    env |= {"PELLUCID_SCRATCH": str(out / "scratch"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "experiments" / "dissection.py"), "--preset", "smoke"]
    done = subprocess.run(
        [*command, "--out", str(out / "results"), *options],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def planted_concepts_are_found(table: Path) -> None:
    """Units made to follow one concept each are called that, offset or sparse alike; noise gets no label."""
    with table.open(newline="") as file:
        low = next(row for row in csv.DictReader(file) if row["noise"] == "0.5")
    for kind in ("noisy", "offset", "sparse"):
        assert float(low[f"recovered.{kind}.soft_wpmi"]) >= 0.99
    assert float(low["accepted.random.soft_wpmi"]) <= 2 / 37


@pytest.mark.slow
def test_the_study_runs_and_goes_on(tmp_path: Path) -> None:
    assert "planted SweepState(done=2" in study(tmp_path, "--part", "planted")
    assert "shapes SweepState(done=4" in study(tmp_path, "--part", "shapes", "--part", "planted")
    table = tmp_path / "results" / "shapes" / "cells.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["net"], row["units"], row["status"]) for row in rows} == {
        ("resnet", "1", "done"),
        ("resnet", "4", "done"),
        ("resnet-24", "24", "done"),
        ("vit", "24", "done"),
    }
    wanted = ("accuracy", "accuracy_six", "active_mean", "quality", "ceiling", "described", "head_top1_all")
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in wanted)
    by_units = {row["units"]: row for row in rows if row["net"] != "vit"}
    assert float(by_units["4"]["active.relu"]) == 0.25
    assert abs(float(by_units["24"]["active.layer3.0.relu2"]) - 1 / 24) < 1e-7
    before = table.read_text()
    assert "left=0" in study(tmp_path, "--part", "shapes")
    assert table.read_text() == before
    planted_concepts_are_found(tmp_path / "results" / "planted" / "cells.csv")
    study(tmp_path, "--page")
    page = (tmp_path / "results" / "index.md").read_text()
    assert "| shapes | 4 | 4 |" in page and "| cifar10 | 0 | 3 |" in page
    assert "4.17 to 4.17" in page and "What the shares are shares of" in page
    for figure in ("accuracy", "active", "descriptions", "planted"):
        assert (tmp_path / "results" / f"{figure}.svg").stat().st_size > 2000


def test_real_parts_say_what_they_need(
    claims_of_the_study: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PELLUCID_DATA", raising=False)
    with pytest.raises(SystemExit, match="set PELLUCID_DATA to the folder"):
        importlib.import_module("dissection_data").data_root()
