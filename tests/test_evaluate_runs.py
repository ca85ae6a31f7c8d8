"""`pellucid evaluate RUN RUN --out FOLDER`: means over trainings with their interval, and what it refuses."""

import csv
import math
import shutil
import sys
from pathlib import Path

import pytest

from pellucid._checks import ConfigError, DataError
from pellucid.cli import main
from pellucid.jobs.evaluate import Evaluation, evaluate_run
from pellucid.jobs.evaluate_asked import Questions
from pellucid.jobs.evaluate_runs import evaluate_runs, over_runs
from pellucid.jobs.train import train_recipe
from pellucid.store import Run

RECIPE = """
[data]
spec = "digits"
[model]
spec = "pellucid.zoo:mlp"
arguments = { image_size = 8, hidden = [16] }
[optimizer]
name = "SGD"
lr = 0.1
[train]
epochs = 1
batch_size = 100
seed = SEED
"""
ASKED = Evaluation(
    attacks="pgd", radii="0.05", steps=2, margin=0, corruptions="gaussian_noise,contrast", severities="3", images=120,
    device="cpu", questions=Questions(calibration=True, ood=("shapes",), detectors="msp"),
)  # fmt: skip
STUDENT_2 = 4.302652729911275
"""The 97.5 % point of Student's t with 2 degrees of freedom, from a printed table."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed (extra `ood`)")
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        (folder / "recipe.toml").write_text(RECIPE.replace("SEED", str(seed)))
        train_recipe(folder / "recipe.toml", folder / f"run{seed}", device="cpu")
    return [folder / f"run{seed}" for seed in range(3)]


@pytest.mark.slow
def test_three_trainings_together(trained: list[Path], tmp_path: Path) -> None:
    page = evaluate_runs(trained, tmp_path / "all", ASKED)
    with (tmp_path / "all" / "over_runs.csv").open(newline="") as file:
        rows = {(row["part"], row["case"], row["measure"]): row for row in csv.DictReader(file)}
    runs = [Run.open(path) for path in trained]
    eces = [run.facts("confidence")["kinds"]["base"]["ece"] for run in runs]
    accuracies = [float(run.table("corruptions")["accuracy"][1]) for run in runs]
    kind = str(runs[0].table("corruptions")["type"][1])
    for key, values in {
        ("Calibration", "base", "ece"): eces, ("Under corruption", f"{kind}, 3", "accuracy"): accuracies,
    }.items():  # fmt: skip
        mean = sum(values) / 3
        half = STUDENT_2 * math.sqrt(sum((v - mean) ** 2 for v in values) / 2 / 3)
        found = rows[key]
        assert [float(found[name]) for name in ("mean", "lo", "hi")] == pytest.approx(
            [mean, mean - half, mean + half]
        )
        assert found["runs"] == "3" and len(found["values"].split()) == 3
    assert ("Outside data noticed", "far, shapes, msp", "auroc") in rows
    assert ("Mistakes noticed", "msp", "augrc") in rows
    text = page.read_text()
    assert "3 runs together" in text and "over_runs.csv" in text and "gaussian_noise" in text
    adequate = [bool(run.table("attacks")["adequate"].all()) for run in runs]
    assert text.count("attack pgd left out, a check of it failed") == adequate.count(False)
    assert (("Under attack", "pgd, 0.05", "accuracy") in rows) == any(adequate)
    before = page.read_bytes()
    assert evaluate_runs(trained, tmp_path / "all", ASKED).read_bytes() == before


@pytest.mark.slow
def test_runs_that_cannot_stand_together(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = trained
    with pytest.raises(ConfigError, match="is named twice"):
        evaluate_runs([first, first], tmp_path / "all", ASKED)
    with pytest.raises(ConfigError, match="is one of the runs"):
        evaluate_runs([first, second], second, ASKED)
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    with pytest.raises(DataError, match="hold the same weights: one training counted twice"):
        evaluate_runs([first, copy], tmp_path / "all", ASKED)
    other = Path(shutil.copytree(second, tmp_path / "other"))
    for path, images in ((copy, 40), (other, 50)):
        asked = Evaluation(
            attacks="none", corruptions="contrast", severities="3", images=images, device="cpu", again=True
        )
        evaluate_run(path, asked)
    Run.create(tmp_path / "mixed", {"job": "evaluate-runs"})
    with pytest.raises(DataError, match="were not evaluated on the same images"):
        over_runs([copy, other], tmp_path / "mixed")
    monkeypatch.setattr(sys, "argv", ["pellucid", "evaluate", str(first), str(second)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and "several runs and --out" in capsys.readouterr().err
