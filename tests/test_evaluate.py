"""`pellucid evaluate` on a small trained network: what it writes, that it resumes, what it refuses, and how it is shown."""

import dataclasses as dc
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pellucid._checks import ConfigError, DataError, PellucidError, StaleResultError
from pellucid.attack import Linf, pgd
from pellucid.cli import main
from pellucid.data import open_source
from pellucid.evals.corrupt import corrupt
from pellucid.jobs import robustness as parts
from pellucid.jobs.evaluate import Evaluation, chosen_images, evaluate_checkpoint, evaluate_run, radii
from pellucid.jobs.inspect import Request, run_inspect
from pellucid.jobs.subject import subject_of_run
from pellucid.jobs.train import train_recipe
from pellucid.report import write_report
from pellucid.report.robustness import attack_title, radius_text
from pellucid.store import Run

RECIPE = """
[data]
spec = "digits"
[model]
spec = "pellucid.zoo:mlp"
arguments = { image_size = 8, hidden = [32] }
[optimizer]
name = "SGD"
lr = 0.1
momentum = 0.9
[train]
epochs = 4
batch_size = 50
"""
SMALL = Evaluation(
    radii="0.1,0.3", radii_l2="1", steps=5, corruptions="gaussian_noise,contrast", severities="1,5", images=60,
    margin=10, batch_size=60, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `pellucid train`."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "recipe.toml").write_text(RECIPE)
    train_recipe(folder / "recipe.toml", folder / "run", device="cpu")
    return folder / "run"


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Run:
    """The same run, evaluated; tests that change it copy it."""
    folder = trained.with_name("evaluated")
    shutil.copytree(trained, folder)
    evaluate_run(folder, dc.replace(SMALL, attacks="pgd,pgd-l2"))
    return Run.open(folder)


@pytest.fixture
def copy(evaluated: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated.path, tmp_path / "run"))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Networks in a module and images in folders, as a user has them."""
    (tmp_path / "fewnets.py").write_text(
        "from torch import nn\n"
        "def plain(): return nn.Sequential(nn.Flatten(), nn.Linear(300, 2), nn.ReLU())\n"
        "def soft(): return nn.Sequential(nn.Flatten(), nn.Linear(300, 2), nn.Softmax(1))\n"
    )
    random = np.random.default_rng(0)
    for name in ("photos/red", "photos/blue", "loose"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(random.integers(0, 255, (10, 10, 3), dtype=np.uint8)).save(
                tmp_path / name / f"{i}.png"
            )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("fewnets", None)


# ---- what it measures


def test_the_tables_agree_with_a_loop(evaluated: Run) -> None:
    found = subject_of_run(evaluated, weights=None, data=None)
    images = chosen_images(found.source, 60, seed=0)
    assert len(images) == 60 and evaluated.facts("attacked")["n"] == 60
    batch = next(images.batches(60))

    def right(x: torch.Tensor) -> float:
        with torch.no_grad():
            return float((found.model(x).argmax(1) == batch.targets).double().mean())

    table = evaluated.table("corruptions")
    assert sorted(set(table["type"])) == ["contrast", "gaussian_noise"]
    rows = zip(table["type"].tolist(), table["severity"].tolist(), table["accuracy"].tolist(), strict=True)
    for kind, severity, accuracy in rows:
        assert accuracy == pytest.approx(right(corrupt(batch.inputs, kind, severity, index=batch.index)))
    facts = evaluated.facts("corrupted")
    assert facts["clean"] == pytest.approx(right(batch.inputs)) and facts["clean"] > 0.7
    assert facts["mean"] == pytest.approx(np.mean(table["accuracy"]))
    attacks = evaluated.table("attacks")
    assert attacks["attack"].tolist() == ["pgd"] * 3 + ["pgd-l2"] * 2
    assert attacks["radius"].tolist() == [0.0, 0.1, 0.3, 0.0, 1.0]
    assert attacks["accuracy"][0] == attacks["accuracy"][3] == pytest.approx(right(batch.inputs))
    made = pgd(found.model, batch.inputs, batch.targets, ball=Linf(0.1), steps=5, index=batch.index)
    assert attacks["accuracy"][1] == pytest.approx(right(made.inputs))


def test_one_call_and_part_by_part_are_the_same(evaluated: Run, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_run(folder, dc.replace(SMALL, radii="0.3", corruptions="contrast", margin=0))
    evaluate_run(folder, dc.replace(SMALL, attacks="pgd-l2", corruptions="none"))
    evaluate_run(folder, dc.replace(SMALL, radii="0.1", corruptions="gaussian_noise", margin=0))
    there = Run.open(folder)
    once, joined = evaluated.table("attacks"), there.table("attacks")
    order = np.lexsort((joined["radius"], joined["attack"]))
    for name in ("attack", "radius", "accuracy", "lo", "hi", "fgsm", "more_steps", "n"):
        assert once[name].tolist() == joined[name][order].tolist(), name
    assert there.facts("corrupted") == evaluated.facts("corrupted")
    assert there.facts("attacked")["attacks"] == evaluated.facts("attacked")["attacks"]


def test_it_goes_on_where_it_stopped(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    asked = dc.replace(SMALL, margin=0)
    done: list[Any] = []
    curve, table = parts.attack_curve, parts.corrupted_accuracy

    def stopping(model: Any, images: Any, at: Any, **options: Any) -> Any:
        if at == [0.3]:
            raise KeyboardInterrupt
        done.append(at)
        return curve(model, images, at, **options)

    monkeypatch.setattr(parts, "attack_curve", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(folder, asked)
    assert done == [[0.1]]
    monkeypatch.setattr(parts, "attack_curve", lambda *a, **k: (done.append(a[2]), curve(*a, **k))[1])
    monkeypatch.setattr(parts, "corrupted_accuracy", lambda *a, **k: (done.append(a[2]), table(*a, **k))[1])
    evaluate_run(folder, asked)
    assert done == [[0.1], [0.3]]
    evaluate_run(folder, asked)
    assert done == [[0.1], [0.3]], "a complete evaluation computes nothing"
    evaluate_run(folder, dc.replace(asked, again=True))
    assert done[2:] == [["gaussian_noise"], ["contrast"], [0.1], [0.3]]


def test_other_settings_are_refused_or_replace(copy: Path) -> None:
    with pytest.raises(StaleResultError, match=r"settings.*--again replaces what is there"):
        evaluate_run(copy, dc.replace(SMALL, steps=6, corruptions="none"))
    with pytest.raises(StaleResultError, match=r"data: .* there"):
        evaluate_run(copy, dc.replace(SMALL, images=50))
    evaluate_run(copy, dc.replace(SMALL, steps=6, corruptions="none", margin=0, again=True))
    assert set(Run.open(copy).table("attacks")["steps"].tolist()) == {6}


def test_types_that_cannot_be_measured_are_listed(trained: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = dc.replace(SMALL, attacks="none", corruptions="all", severities="1", images=4)
    monkeypatch.setattr(parts, "TYPES", ("frost", "defocus_blur", "brightness", "contrast"))
    page = evaluate_run(folder, asked)
    skipped = dict(map(tuple, Run.open(folder).facts("corrupted")["skipped"]))
    assert set(skipped) == {"frost", "defocus_blur", "brightness"}
    assert "kornia is not installed" in skipped["brightness"]
    text = page.read_text()
    assert "Corruptions left out" in text and "brightness, defocus blur: kornia is not installed" in text


# ---- what it refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radii": "0.1,8"}, "outside the pixel range .* write 8 / 255"),
        ({"radii": "8/0"}, "numbers such as 0.1 or 8/255 .* got '8/0'"),
        ({"radii": "-0.1"}, "a number from 0 up, got '-0.1'"),
        ({"radii": "0"}, "pgd needs radii"),
        ({"attacks": "pgd-l2", "radii_l2": "9"}, "l2 radius 9 is outside the pixel range"),
        ({"attacks": "pdg"}, "--attacks must be one of .* nearest: 'pgd'"),
        ({"attacks": "fgsm"}, "fgsm needs no name of its own"),
        ({"corruptions": "gausian_noise"}, "nearest: 'gaussian_noise'"),
        ({"corruptions": "frost"}, "pictures of frost: --frost FOLDER"),
        ({"frost": Path("nowhere")}, "nowhere is no folder"),
        ({"severities": "1,6"}, "whole numbers from 1 to 5, got 6"),
        ({"severities": "low"}, "whole numbers separated by commas, got 'low'"),
        ({"attacks": "none", "corruptions": "none"}, "nothing to measure"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_options_that_make_no_sense(trained: Path, change: dict[str, Any], message: str) -> None:
    before = sorted(p.name for p in (trained / "facts").iterdir())
    with pytest.raises(ConfigError, match=message):
        evaluate_run(trained, dc.replace(SMALL, **change))
    assert sorted(p.name for p in (trained / "facts").iterdir()) == before


def test_networks_and_images_that_cannot_be_judged(photos: Path) -> None:
    soft = Request(model="fewnets:soft", data="folder:photos")
    with pytest.raises(ConfigError, match="returns probabilities"):
        evaluate_checkpoint(soft, photos / "soft", SMALL)
    loose = Request(model="fewnets:plain", data="folder:loose")
    with pytest.raises(DataError, match="no labels, and accuracy under corruption or attack needs them"):
        evaluate_checkpoint(loose, photos / "loose-run", SMALL)
    dark = dc.replace(SMALL, corruptions="none", margin=0)
    with pytest.raises(PellucidError, match="zero"):  # a network that only answers 0 has no gradient
        model = nn.Sequential(nn.Flatten(), nn.Linear(300, 2), nn.ReLU())
        nn.init.constant_(model[1].weight, 0.0)
        nn.init.constant_(model[1].bias, -1.0)
        torch.save(model.state_dict(), photos / "dark.pt")
        request = Request(model="fewnets:plain", weights=Path("dark.pt"), data="folder:photos")
        evaluate_checkpoint(request, photos / "dark-run", dark)


def test_runs_that_cannot_be_rebuilt(trained: Path, tmp_path: Path, photos: Path) -> None:
    unfinished = Path(shutil.copytree(trained, tmp_path / "unfinished"))
    (unfinished / "weights.safetensors").unlink()
    with pytest.raises(ConfigError, match="its training is not finished"):
        evaluate_run(unfinished, SMALL)
    Run.create(tmp_path / "other", {"job": "sweep"})
    with pytest.raises(ConfigError, match="made by 'sweep', which keeps no network"):
        evaluate_run(tmp_path / "other", SMALL)
    request = Request(model="fewnets:plain", data="folder:photos", layers=("2",), device="cpu")
    run_inspect(request, photos / "inspected")
    evaluate = dc.replace(SMALL, attacks="none", severities="1", corruptions="contrast")
    assert evaluate_run(photos / "inspected", evaluate).exists()
    Image.new("RGB", (10, 10)).save(photos / "photos" / "red" / "new.png")
    with pytest.raises(StaleResultError, match="not the data"):
        evaluate_run(photos / "inspected", evaluate)


def test_a_run_or_a_network_but_not_both(photos: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["pellucid", "evaluate", "run", "--model", "fewnets:plain"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and "one of the three" in capsys.readouterr().err
    words = "--attacks none --corruptions contrast --severities 1 --device cpu --out mine"
    monkeypatch.setattr(
        sys,
        "argv",
        ["pellucid", "evaluate", "--model", "fewnets:plain", "--data", "folder:photos", *words.split()],
    )
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code in (0, None)
    assert capsys.readouterr().out.strip() == str(photos / "mine" / "index.html")
    assert Run.open(photos / "mine").table("corruptions")["n"].tolist() == [8]


def test_radii_are_read_as_they_are_written() -> None:
    assert radii("8/255, 0.1,0,8/255", "--radii") == (8 / 255, 0.1)


def test_images_are_drawn_by_seed_alone() -> None:
    source = open_source("digits")
    first, again, other = (chosen_images(source, 20, seed=s) for s in (1, 1, 2))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert chosen_images(source, 0, seed=0) is chosen_images(source, 10**6, seed=0) is source


# ---- how it is shown


def test_the_page_says_what_was_lost(evaluated: Run) -> None:
    text = (evaluated.path / "index.html").read_text()
    section = text[text.index('id="robustness"') :]
    for words in (
        "What is left of clean accuracy",
        "the attack passes its checks",
        "Margin control",
        "PGD, L2",
    ):
        assert words in section
    assert (evaluated.path / "pages" / "attacks.csv").exists()


def test_a_failed_check_takes_the_verdict_away(copy: Path) -> None:
    run = Run.open(copy)
    facts = run.facts("attacked")
    facts["attacks"]["pgd"]["problems"] = ["one step beats PGD at radius 0.1 & <more>"]
    facts["margin"]["worst"][1] = facts["margin"]["plain"][1] - 0.3
    run.save("attacked", facts)
    text = write_report(run).read_text()
    assert "PGD, L-inf: no verdict" in text and "One step beats PGD at radius 0.1 &amp; &lt;more&gt;" in text
    assert "Accuracy under an attack that failed its checks" in text
    assert "the scale of the logits hides weakness" in text


def test_titles_and_radii_in_words() -> None:
    radius = [0.0, 1 / 255, 2 / 255]
    assert attack_title(radius, [0.9, 0.5, 0.4], adequate=True).endswith("between radius 1/255 and 2/255")
    assert attack_title(radius, [0.9, 0.4, 0.1], adequate=True).endswith("already at 1/255")
    assert attack_title(radius, [0.9, 0.8, 0.7], adequate=True) == "70.0 % stay right at radius 2/255"
    assert [radius_text(r) for r in (0.5 / 255, 0.1, 0.2, 4.0)] == ["0.5/255", "0.1", "0.2", "4"]


@pytest.mark.browser
def test_the_section_fits_a_narrow_window(evaluated: Run, chromium: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 360, "height": 800})
        page.goto((evaluated.path / "index.html").as_uri())
        section = page.locator("#robustness")
        assert section.locator(".chart").count() == 5
        assert section.locator(".ring-out").first.is_visible()
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) == 0
        browser.close()


def test_a_page_without_units_opens(photos: Path) -> None:
    asked = dc.replace(SMALL, attacks="none", corruptions="contrast", severities="1")
    page = evaluate_checkpoint(Request(model="fewnets:plain", data="folder:photos"), photos / "mine", asked)
    text = page.read_text()
    assert "units.js" not in text and "8 images of 2 classes." in text


def test_only_parts_of_one_attack_or_image_set_are_joined(evaluated: Run) -> None:
    from pellucid.evals.attack.curve import AttackCurve
    from pellucid.evals.attack.curve import joined as joined_curves
    from pellucid.evals.corrupt import CorruptionTable
    from pellucid.evals.corrupt.table import joined as joined_tables

    first, second = (
        parts.rebuilt(AttackCurve, evaluated.load(f"attacked.{name}")) for name in ("pgd.0.1", "pgd-l2.1")
    )
    with pytest.raises(DataError, match="another attack"):
        joined_curves([first, second])
    table = parts.rebuilt(CorruptionTable, evaluated.load("corrupted.contrast"))
    with pytest.raises(DataError, match="in two of the tables"):
        joined_tables([table, table])
    with pytest.raises(DataError, match="other images or other severities"):
        joined_tables([table, dc.replace(table, severities=(1, 2))])
    for nothing in (joined_curves, joined_tables):
        with pytest.raises(DataError, match=r"no .* to join"):
            nothing([])
