"""The study of decodable networks runs end to end on digits, goes on where it stopped, writes its page, decides its claims."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pellucid.claims import Ledger, register

ROOT = Path(__file__).parents[1]
PARTS = (
    "decode", "decode_cell", "decode_claims", "decode_data", "decode_fair", "decode_figures", "decode_findings", "decode_measures", "decode_nets",
    "decode_page", "decode_paper", "decode_rows", "decode_setup", "decode_tables", "decode_words", "mirrored",
)  # fmt: skip


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Gives a module of the study by name; nothing of it stays on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.setenv("PELLUCID_SCRATCH", str(tmp_path / "scratch"))
    yield importlib.import_module
    for name in PARTS:
        sys.modules.pop(name, None)


def study(out: Path, *options: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PELLUCID_DATA"}
    env |= {"PELLUCID_SCRATCH": str(out / "scratch"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "experiments" / "decode.py"), "--preset", "smoke"]
    done = subprocess.run(
        [*command, "--out", str(out / "results"), *options],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_study_runs_and_goes_on(part, tmp_path: Path) -> None:
    assert "fairness SweepState(done=5" in study(tmp_path, "--part", "fairness")
    assert "digits SweepState(done=10" in study(tmp_path)
    tables = {}
    for name in ("digits", "fairness"):
        with (tmp_path / "results" / name / "cells.csv").open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
        assert all(row["status"] == "done" for row in tables[name]), [
            row.get("error") for row in tables[name]
        ]
    by = {row["method"]: row for row in tables["digits"]}
    wanted = "accuracy miss.vote_entropy augrc.mean_entropy ood.noise.vote_entropy ood.pairs.residual_mean fgsm.vote_entropy ece.scaled"
    wanted += " undetected.adaptive.mean_entropy corrupt.vote_entropy residual.block3 wrong_label.block1 train_seconds"
    for method in (
        "DecNN",
        "ReDecNN",
        "ReDecNN D=2",
        "ReDecNN + linear",
        "ReDecNN + residual",
        "ReDecNN + stronger residual",
    ):
        assert all(float(by[method][name]) >= 0 for name in wanted.split()), method
    assert by["standard"]["ood.noise.pca"] and by["standard"]["undetected.adaptive.base_entropy"]
    assert by["ensemble"]["miss.mean_entropy"] and not by["ensemble"]["miss.base_energy"]
    assert by["dropout"]["accuracy.base"] == by["MC-dropout"]["accuracy.base"], "one training serves both"
    assert float(by["ReDecNN + linear"]["kl"]) > 0 and by["ReDecNN + residual"]["frozen_accuracy"]
    assert by["ReDecNN + stronger residual"]["frozen_accuracy"] != by["ReDecNN + residual"]["frozen_accuracy"]
    arms = {row["arm"]: row for row in tables["fairness"]}
    assert all(float(row["probe.activation.last"]) > 0 and row["gap.accuracy"] for row in arms.values())
    assert arms["constrained, weight 4"]["confidence.last"] and not arms["standard"]["confidence.last"]
    assert not (tmp_path / "results" / "claims.jsonl").exists(), "a smoke run registers nothing"
    decode, writer = part("decode"), part("decode_page")
    grids = {name: decode.cells_of("smoke", name) for name in decode.parts_of("smoke")}
    page = writer.write_page(tmp_path / "results", preset="smoke", grids=grids).read_text()
    assert "| Digits, smoke run | 10 | 10 | none |" in page and "## Fairness" in page
    assert (tmp_path / "results" / "scores_digits.svg").stat().st_size > 2000
    assert (tmp_path / "results" / "pictures_digits_decnn.png").stat().st_size > 300


def test_the_default_grid_is_what_the_page_says(part) -> None:
    decode = part("decode")
    counts = {name: len(decode.cells_of("default", name)) for name in decode.parts_of("default")}
    assert counts == {"mnist": 30, "fashion-mnist": 18, "fashion-residual": 18, "fairness": 30}
    for name in counts:
        cells = decode.cells_of("default", name)
        assert len({cell.name for cell in cells}) == len(cells)
        assert [cell.replicate for cell in cells] == sorted(cell.replicate for cell in cells)


def test_every_claim_names_a_cell_and_is_registered_once(part, tmp_path: Path) -> None:
    decode, claims = part("decode"), part("decode_claims")
    settings = {
        name: {" ".join(map(str, cell.settings.values())) for cell in decode.cells_of("default", name)}
        for name in decode.parts_of("default")
    }
    found = claims.findings()
    for finding in found:
        columns = [finding.treated, *([finding.control] if finding.control else []), *(finding.premise or ())]
        named = [setting for setting, _ in columns]
        assert set(named) <= settings[finding.part], finding.statement
    ledger = Ledger(tmp_path / "claims.jsonl")
    claims.register_all(ledger)
    claims.register_all(ledger)
    hashes = {claims.build(finding).sha256 for finding in found}
    assert len(hashes) == len(found)
    hashes = {claims.build(finding).sha256 for finding in found if not finding.late}
    assert ledger.tally().registered == len(hashes)
    kept = {entry.claim for entry in Ledger(ROOT / "docs" / "results" / "decode" / "claims.jsonl").entries()}
    assert hashes <= kept, "a registered claim was changed: amend it in the ledger"


def rows_of(
    finding, treated: float, control: float, *, spread: float, gap: float = 0.0
) -> list[dict[str, str]]:
    """Three replicates of the cells that one finding compares, as text."""
    found: list[dict[str, str]] = []
    for r, wobble in enumerate((0.0, 0.4, -0.3)):
        values = {finding.treated: treated + spread * wobble}
        if finding.control:
            values[finding.control] = control - spread * wobble
        if finding.null:
            values[finding.treated[0], finding.null] = 0.5 + spread * wobble
        if finding.premise:
            above, below = finding.premise
            values |= {above: 0.96 + gap + spread * wobble / 10, below: 0.96}
        for (setting, column), value in values.items():
            row = next((x for x in found if x["method"] == setting and x["replicate"] == str(r)), None)
            if row is None:
                row = {"status": "done", "method": setting, "replicate": str(r)}
                found.append(row)
            row[column] = str(value)
    return found


@pytest.mark.parametrize(
    ("start", "treated", "control", "outcome"),
    [
        (
            "By the entropy of votes, ReDecNN tells wrong answers from right ones better",
            0.85,
            0.55,
            "supported",
        ),
        (
            "By the entropy of votes, ReDecNN tells wrong answers from right ones better",
            0.56,
            0.55,
            "refuted",
        ),
        ("By the entropy of votes, ReDecNN tells wrong answers from right ones with", 0.87, 0.0, "supported"),
        ("By the entropy of votes, ReDecNN tells wrong answers from right ones with", 0.60, 0.0, "refuted"),
        ("ReDecNN is as accurate", 0.962, 0.965, "supported"),
        ("ReDecNN is as accurate", 0.93, 0.965, "refuted"),
        ("MC-dropout is less accurate", 0.93, 0.965, "supported"),
    ],
)
def test_claims_are_decided_as_they_should(
    part, tmp_path: Path, start: str, treated: float, control: float, outcome: str
) -> None:
    claims, rows = part("decode_claims"), part("decode_rows")
    finding = next(
        one for one in claims.findings() if one.part == "mnist" and one.statement.startswith(start)
    )
    ledger = Ledger(tmp_path / "claims.jsonl")
    register(claims.build(finding), ledger)
    cells = rows_of(finding, treated, control, spread=0.002)
    early = claims.decide(finding, rows.Cells(cells[:-1]), ledger)
    assert early.verdict is None and "2 of 3" in early.why
    one = claims.decide(finding, rows.Cells(cells), ledger)
    assert one.verdict.outcome == outcome and one.verdict.label == "confirmatory"
    assert (
        claims.decide(finding, rows.Cells(cells), ledger).verdict.outcome == outcome and ledger.verify() == []
    )


@pytest.mark.parametrize(("gap", "outcome"), [(0.02, "supported"), (-0.02, "invalid")])
@pytest.mark.parametrize(
    "start", ["Composition with a stronger model", "Composition with a residual network"]
)
def test_composition_with_a_model_that_is_not_stronger_is_invalid(
    part, tmp_path: Path, start: str, gap: float, outcome: str
) -> None:
    claims, rows = part("decode_claims"), part("decode_rows")
    finding = next(one for one in claims.findings() if one.statement.startswith(f"{start} ") and one.premise)
    cells = rows.Cells(rows_of(finding, 0.97, 0.96, spread=0.0005, gap=gap))
    one = claims.decide(finding, cells, Ledger(tmp_path / "claims.jsonl"))
    assert one.verdict.outcome == outcome, one.verdict.reasons
    assert one.verdict.label == ("exploratory" if finding.late else "confirmatory") or gap < 0
    assert gap > 0 or "manipulation check" in "; ".join(one.verdict.reasons)


def test_networks_that_all_say_the_same_are_named_not_judged(part, tmp_path: Path) -> None:
    claims, rows = part("decode_claims"), part("decode_rows")
    finding = next(one for one in claims.findings() if one.about == "attacks" and one.part == "mnist")
    decided = claims.decide(
        finding, rows.Cells(rows_of(finding, 0.9, 0.5, spread=0.0)), Ledger(tmp_path / "claims.jsonl")
    )
    assert decided.verdict is None and decided.why.startswith("cannot be judged")


def test_a_page_without_cells_says_so(part, tmp_path: Path) -> None:
    decode, page = part("decode"), part("decode_page")
    grids = {name: decode.cells_of("default", name) for name in decode.parts_of("default")}
    text = page.write_page(tmp_path, preset="default", grids=grids).read_text()
    assert "No cell of this study has been run yet" in text and "open: 0 of 3 networks" in text
    assert "| MNIST, perceptron of eight layers | 0 | 30 |" in text


def test_training_validation_and_test_images_are_apart(part) -> None:
    setup, data = part("decode_setup"), part("decode_data")
    found = data.open_data(setup.setups("smoke")["digits"])
    keys = [
        {image.numpy().tobytes() for image in data.images_of(one)}
        for one in (found.train, found.validation, found.test)
    ]
    assert [len(one) for one in (found.train, found.validation, found.test)] == [600, 200, 400]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    sets = data.outside_sets(setup.setups("smoke")["digits"])
    assert all(len(one) == 100 for one in sets.values()) and set(sets) == {"noise", "inverted", "pairs"}


def test_the_planted_column_goes_with_the_class_as_often_as_asked(part) -> None:
    setup, fair = part("decode_setup"), part("decode_fair")
    case = fair.planted(setup.fair_setup("smoke"))
    for source, share in ((case.train, 0.9), (case.test, 0.5)):
        x, y, side = fair.rows_of(source)
        assert bool((x[side == 0][:, :, :, 0] == 1).all()) and bool((x[side == 1][:, :, :, -1] == 1).all())
        assert abs(float((side == y).double().mean()) - share) < 0.1


def test_scores_of_outputs_are_those_of_the_package(part) -> None:
    """One pass for all scores gives what each score gives on its own."""
    measures, nets, setups = part("decode_measures"), part("decode_nets"), part("decode_setup")
    from pellucid.methods.decode import SCORES, Ensemble

    setup = setups.setups("smoke")["digits"]
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = nets.start(setup, setups.REDECNN, x, 0).eval()
    found = measures.read(measures.Subject(made, made.model, made), x).scores()
    assert set(found) == set(SCORES)
    for name, score in SCORES.items():
        assert torch.allclose(found[name].double(), score(made, x).detach().double(), atol=1e-5), name
    pair = Ensemble([nets.built(setup, setups.STANDARD, seed).eval() for seed in (0, 1)])
    subject = measures.Subject(pair, pair.models[0], mean=True)
    scores = measures.read(subject, x).scores(averaged=measures.averaged(subject))
    assert "base_energy" not in scores
    assert torch.allclose(scores["base_entropy"], scores["mean_entropy"], atol=1e-5)


def test_residual_networks_are_decoded_by_blocks(part) -> None:
    nets, setups = part("decode_nets"), part("decode_setup")
    setup = setups.setups("default")["fashion-residual"]
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    made = nets.start(setup, setups.DECNN, x, 0)
    assert made.decodings(x).shape == (3, 2, 1, 28, 28)
    dropped = nets.built(setup, setups.DROPOUT, 0)
    assert sum(isinstance(module, torch.nn.Dropout2d) for module in dropped.modules()) == 3
    plain = nets.built(setup, setups.STANDARD, 0)
    pairs = zip(plain.parameters(), made.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "methods are paired by initial weights"


def test_intervals_of_a_column(part) -> None:
    rows = part("decode_rows")
    assert (
        rows.interval(np.array([1.0, 2.0, 3.0]), 2) == "2.00 ± 2.48" and rows.interval(np.zeros(0), 2) == "-"
    )
    cells = rows.Cells([
        {"status": "done", "method": m, "replicate": str(r), "a": str(v)} for m, r, v in (("x", 0, 1.0), ("x", 1, 3.0), ("y", 1, 1.0))
    ])  # fmt: skip
    assert cells.difference("x", "y", "a").tolist() == [2.0]
