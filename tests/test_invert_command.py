"""`pellucid invert`: what a run holds, resuming, refusing; on networks whose representation is known by construction."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pellucid._checks import ConfigError, DataError, LayerNotFound, NumericError, StaleResultError
from pellucid.cli import main
from pellucid.data import open_source
from pellucid.jobs import invert as invert_job
from pellucid.jobs import invert_search
from pellucid.jobs.inspect import Request
from pellucid.jobs.invert import Asking, Inversion, asking_of, opened_as, run_invert, subject_of
from pellucid.jobs.invert_clock import duration, fitting_threads, flops, prediction
from pellucid.jobs.invert_layer import layer_name, parse_layer
from pellucid.jobs.invert_regulariser import parse_regulariser
from pellucid.report import write_report
from pellucid.store import Run

NETS = """
import torch
from torch import nn
from pellucid.train import seeded

class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Identity()
    def forward(self, x):
        return self.features(0 * x.flatten(1)[:, :10] + torch.arange(1.0, 11.0))

class Dead(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.ReLU()
        self.head = nn.Linear(64, 10)
    def forward(self, x):
        return self.head(self.features(-1 - x.flatten(1)))

class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Identity()
    def forward(self, x):
        return self.features(x.flatten(1).detach())

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Identity()
    def forward(self, x):
        flat = x.flatten(1)
        return self.features((flat - flat.detach()).sqrt() + 1 + flat)

def whole():
    with seeded(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def coarse():
    with seeded(0):
        return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))

def normed():
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10))
    return net.train()

def small_too():
    return nn.Sequential(nn.Flatten(), nn.Identity())

def headless():
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
"""
SMALL = Inversion(targets=5, starts=2, steps=80, natural=30, batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("invert")
    (folder / "invnets.py").write_text(NETS)
    return folder


@pytest.fixture(autouse=True)
def importable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))


def asking(net: str = "whole", **changes: object) -> Asking:
    return Asking(request=Request(**{"model": f"invnets:{net}", "data": "digits", **changes}))


def small(**changes: object) -> Inversion:
    return Inversion(**{**vars(SMALL), **changes})


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The identity, inverted, then attacked."""
    sys.path.insert(0, str(place))
    out = tmp_path_factory.mktemp("done") / "run"
    try:
        run_invert(asking(), small(regulariser="adversarial", tolerances=(0.1, 0.2)), out)
    finally:
        sys.path.remove(str(place))
    return Run.open(out)


def pixels(run: Run, name: str) -> torch.Tensor:
    with Image.open(run.path / "images" / "inversion" / name) as image:
        assert image.mode == "L" and image.size == (8, 8), "native size"
        return torch.from_numpy(np.asarray(image).copy()).float() / 255


def test_A1_the_identity_is_inverted_to_the_bytes_of_the_target(done: Run) -> None:
    table = done.table("inversions")
    free = table["method"] == "free"
    assert free.sum() == 10 and table["rho"][free].max() < 0.02 and set(table["tier"][free]) == {"tight"}
    assert table["valid"][free].all()
    for i in np.flatnonzero(free):
        target, found = pixels(done, table["target_image"][i]), pixels(done, table["found_image"][i])
        assert float((target - found).abs().max()) <= 2 / 255
    assert (table["ssim_target"][free] < table["ssim_start"][free]).all()


def test_rho_of_the_bytes_is_that_of_the_png_people_see(done: Run) -> None:
    table = done.table("inversions")
    for i in range(len(table["item"])):
        target = open_source("digits", split="test")[int(table["target"][i])][0].flatten()
        found = pixels(done, table["found_image"][i]).flatten()
        rho = float((found - target).norm() / target.norm())
        assert table["rho_bytes"][i] == pytest.approx(rho, abs=1e-5)


def test_rows_hold_what_a_study_reads(done: Run) -> None:
    table = done.table("inversions")
    assert len(set(table["item"])) == len(table["item"]) == 30
    assert set(table["layer"]) == {"1:in"} and set(table["start"].tolist()) == {0, 1}
    source = open_source("digits", split="test")
    assert source.targets is not None
    assert table["target_class"].tolist() == [source.classes[int(source.targets[i])] for i in table["target"]]
    for name in ("v1", "v2", "v3", "v4", "v5", "v6", "v7", "valid", "feasible"):
        assert table[name].dtype == bool
    for name in ("target_image", "start_image", "found_image"):
        assert all((done.path / "images" / "inversion" / file).is_file() for file in table[name])
    first = pixels(done, f"start-{table['target'][0]}-0.png")
    second = pixels(done, f"start-{table['target'][0]}-1.png")
    assert not torch.equal(first, second)


def test_a_study_is_built_from_it(done: Run) -> None:
    items = pytest.importorskip("pellucid.study.items")
    images: dict[str, bytes] = {}
    found = items.read_run(done.path, name="one", images=images)
    assert len(found) == 30 and {i.method for i in found} == {
        "free",
        "adversarial tau=0.1",
        "adversarial tau=0.2",
    }
    assert set(found[0].gates) >= {"v1", "v7", "valid"} and "ssim" in found[0].distances and images


def test_the_constrained_adversary_stays_within_its_tolerance(done: Run) -> None:
    table = done.table("inversions")
    free = table["method"] == "free"
    for tau in (0.1, 0.2):
        rows = table["tolerance"] == tau
        assert rows.sum() == 10 and (table["rho"][rows & table["feasible"]] <= tau).all()
        assert (table["lab_target"][rows] >= table["lab_target"][free] - 1e-3).all()
        assert table["item"][rows].tolist() == [f"{item}-tau{tau:g}" for item in table["item"][free]]
    facts = done.facts("inverted")
    assert facts["against"] == "lab" and [m["tolerance"] for m in facts["methods"]] == [None, 0.1, 0.2]
    assert facts["null"]["pairs"] == 30 * 29 and facts["preset"]["halve_every"] == 8


def test_the_page_shows_every_target_with_its_badge(done: Run) -> None:
    front, sheet = (
        (done.path / "index.html").read_text(),
        (done.path / "pages" / "inversion.html").read_text(),
    )
    assert "The network cannot tell them apart" in front and "The worst that is allowed" in front
    assert "untrained" in front.lower()
    assert sheet.count('class="pair"') == 5 and sheet.count("found-") == 30
    assert 'width="96" height="96"' in sheet and "../images/inversion/target-" in sheet
    assert '<span class="word">tight</span>' in sheet and "worst, tau 0.2" in sheet
    assert "Reading the numbers" not in front, "no numbers about units are on this page"
    with (done.path / "pages" / "inversions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 30


def test_pages_are_written_again_without_model_or_images(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (done.path / "pages" / "inversion.html").read_text()
    write_report(done)
    assert (done.path / "pages" / "inversion.html").read_text() == before


def test_a_complete_run_is_not_computed_again_and_another_is_refused(
    done: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(invert_search, "search", never)
    asked = small(regulariser="adversarial", tolerances=(0.1, 0.2))
    assert run_invert(asking(), asked, done.path) == done.path / "index.html"
    with pytest.raises(StaleResultError, match=r"--regulariser adversarial then, free now"):
        run_invert(asking(), small(tolerances=(0.1, 0.2)), done.path)
    with pytest.raises(StaleResultError, match="the model, the weights"):
        run_invert(asking("coarse"), asked, done.path)


@pytest.mark.slow
@pytest.mark.parametrize("regulariser", ["free+transforms", "adversarial"])
def test_A9_a_killed_search_goes_on_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], regulariser: str
) -> None:
    asked = small(regulariser=regulariser, steps=120, tolerances=(0.2,))
    run_invert(asking("coarse"), asked, tmp_path / "plain")
    monkeypatch.setattr(invert_search, "KEEP_EVERY", 0.0)
    inner, kept = invert_search.keeper, []

    def killing(file: Path, inputs: dict[str, str]) -> object:
        keep = inner(file, inputs)

        def killed(state: dict[str, torch.Tensor]) -> None:
            keep(state)
            kept.append(1)
            if len(kept) == 4:
                raise KeyboardInterrupt

        return killed

    monkeypatch.setattr(invert_search, "keeper", killing)
    with pytest.raises(KeyboardInterrupt):
        run_invert(asking("coarse"), asked, tmp_path / "killed")
    assert (tmp_path / "killed" / "search.safetensors").exists()
    with pytest.raises(StaleResultError, match="computed from something else"):
        run_invert(asking("coarse"), small(regulariser=regulariser, steps=121), tmp_path / "killed")
    capsys.readouterr()
    run_invert(asking("coarse"), asked, tmp_path / "killed")
    assert "a search that was interrupted goes on" in capsys.readouterr().err
    assert not (tmp_path / "killed" / "search.safetensors").exists()
    first, second = Run.open(tmp_path / "plain"), Run.open(tmp_path / "killed")
    one, other = first.table("inversions"), second.table("inversions")
    assert all(np.array_equal(one[k], other[k], equal_nan=one[k].dtype.kind == "f") for k in one)
    names = [f.name for f in first.image_files("inversion")]
    assert len(names) > 10
    for name in names:
        assert torch.equal(pixels(first, name), pixels(second, name))


def test_a_network_left_in_training_mode_is_inverted_in_evaluation_mode(tmp_path: Path) -> None:
    import invnets

    net = invnets.normed()
    assert net.training
    run_invert(asking("normed"), small(steps=20), tmp_path / "run")
    table = Run.open(tmp_path / "run").table("inversions")
    assert table["v7"].all(), "the same image has the same representation whatever it is batched with"


def test_A3_a_constant_representation_is_written_as_invalid(tmp_path: Path) -> None:
    run_invert(asking("Constant"), small(layer="features", steps=10), tmp_path / "run")
    table = Run.open(tmp_path / "run").table("inversions")
    assert not table["valid"].any() and not table["v1"].any() and not table["v6"].any()
    page = (tmp_path / "run" / "index.html").read_text()
    assert "Many are not what they claim" in page and '<span class="word">tight</span>' not in page


@pytest.mark.parametrize(
    ("net", "changes", "error", "message"),
    [
        ("whole", {"layer": "nothing"}, LayerNotFound, "no layer"),
        ("headless", {}, ConfigError, "no linear layer"),
        ("Dead", {"layer": "features"}, NumericError, "the layer is dead"),
        ("Cut", {"layer": "features"}, NumericError, "path to the input"),
        ("Broken", {"layer": "features"}, NumericError, "NaN or infinite"),
        ("whole", {"targets": 900}, DataError, "900 targets"),
        ("whole", {"targets": 0}, ConfigError, "--targets must be at least 1"),
        ("whole", {"starts": 0}, ConfigError, "--starts must be at least 1"),
        ("whole", {"natural": 3}, ConfigError, "--natural must be at least 20"),
        ("whole", {"steps": 0}, ConfigError, "--steps must be at least 1"),
        ("whole", {"preset": "slow"}, ConfigError, "--preset must be one of"),
        ("whole", {"regulariser": "tv"}, ConfigError, "needs a weight"),
        ("whole", {"tolerances": (0.2, 0.1)}, ConfigError, "--tolerances must be positive and grow"),
        ("whole", {"against": "lpips"}, ConfigError, "--against must be one of"),
        ("whole", {"identity_relus": ("1",)}, LayerNotFound, r"must name nn\.ReLU"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_leaves_nothing(
    tmp_path: Path, net: str, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_invert(asking(net), small(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failure_after_the_search_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full when results are written costs the results, not the search."""

    def full(*_: object) -> None:
        raise ConfigError("no room to write")

    asked, folder = small(steps=20), "pellucid.jobs.invert_tables.save_images"
    with monkeypatch.context() as broken:
        broken.setattr(folder, full)
        with pytest.raises(ConfigError, match="no room"):
            run_invert(asking(), asked, tmp_path / "run")
    assert (tmp_path / "run" / "search.safetensors").exists()
    capsys.readouterr()
    run_invert(asking(), asked, tmp_path / "run")
    assert "a search that was interrupted goes on" in capsys.readouterr().err
    run_invert(asking(), asked, tmp_path / "plain")
    first, second = (Run.open(tmp_path / name).table("inversions") for name in ("run", "plain"))
    assert first["rho"].tolist() == second["rho"].tolist()


def test_images_that_cannot_serve_fail_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invert_search, "search", None)
    with monkeypatch.context() as broken, pytest.raises(NumericError, match="natural images is NaN"):
        third = torch.tensor([2])
        broken.setattr(invert_search, "distinct", lambda images: images.index_fill(0, third, float("nan")))
        run_invert(asking(), SMALL, tmp_path / "run")
    with pytest.raises(DataError, match="at least 5 pixels"):
        run_invert(asking("small_too", size="4"), small(layer="1"), tmp_path / "run")
    images = torch.rand(30, 1, 8, 8)
    images[19:] = images[0]
    with pytest.raises(DataError, match="only 19 of 30 natural images differ"):
        invert_search.distinct(images)
    images = torch.rand(25, 1, 8, 8)
    assert torch.equal(invert_search.distinct(torch.cat([images, images[3:5]])), images)
    assert not (tmp_path / "run").exists()


def test_targets_that_cannot_be_read_are_replaced_by_the_next_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(24):
        Image.fromarray(np.full((8, 8), 10 * i, dtype=np.uint8)).save(pictures / f"{i:02}.png")
    asked = small(targets=5, natural=20)
    order = invert_search.drawn(24, asked).tolist()
    for i in (order[1], order[5]):  # a target, and the first of its replacements
        (pictures / f"{i:02}.png").write_bytes(b"no image")
    found = subject_of(asking(data=f"folder:{pictures}?channels=grey", skip_unreadable=True))
    index, _ = invert_search.draw(24, asked)
    kept, images = invert_search.readable_targets(found, asked, index)
    assert kept.tolist() == sorted([order[0], *order[2:5], order[6]])
    assert (images[:, 0, 0, 0] * 255).round().int().tolist() == [10 * i for i in kept.tolist()]
    assert "1 of the targets drawn cannot be read" in capsys.readouterr().err
    many = small(targets=23, natural=20)
    with pytest.raises(DataError, match="only 22 images can be read"):
        invert_search.readable_targets(found, many, invert_search.draw(24, many)[0])


def test_the_command_line_takes_a_run_or_a_network(
    place: Path,
    done: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["pellucid", "invert", *arguments])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    out = tmp_path / "run"
    common = ["--targets", "4", "--starts", "1", "--steps", "30", "--natural", "20", "--device", "cpu"]
    assert call("--model", "invnets:whole", "--data", "digits", "--out", str(out), *common) == 0
    assert capsys.readouterr().out.strip() == str(out.resolve() / "index.html")
    assert call("--out", str(tmp_path / "none")) == 2
    assert "name a run, or a network" in capsys.readouterr().err
    assert call(str(out), "--size", "16", "--out", str(tmp_path / "none")) == 2
    assert "a run has its own images" in capsys.readouterr().err
    assert call(str(out), "--model", "invnets:whole", "--out", str(tmp_path / "none")) == 2
    assert call("--model", "invnets:whole", "--data", "digits", "--tolerances", "a", "--out", str(out)) == 2
    assert "--tolerances takes numbers" in capsys.readouterr().err
    assert call(str(out), "--out", str(tmp_path / "other")) == 2, "an inversion holds no network to invert"


def test_what_was_opened_can_be_opened_again() -> None:
    asked = asking(weights=Path("/somewhere/net.safetensors"))
    again = asking_of(opened_as(asked))
    assert again.request == asked.request and again.run is None


def test_regularisers_by_their_words() -> None:
    def parse(text: str) -> object:
        return parse_regulariser(text, height=32, width=32)

    assert parse("tv:0.01").prior.terms[0][0] == 0.01 and parse("free").prior.terms == ()
    both = parse("human-leaning+transforms+fourier")
    assert both.prior.weight == 10 and both.prior.transform is not None and both.prior.space.name == "fourier"
    large = parse_regulariser("free+transforms", height=224, width=224).prior.transform
    assert large is not both.prior.transform
    assert (parse("weighted:3").adversary, parse("weighted:3").weight) == ("weighted", 3.0)
    assert parse("towards-start").weight == 10 and len(parse("tv-six").prior.terms) == 2
    for text, message in (
        ("none", "must be one of"),
        ("tv:-1", "positive number"),
        ("tv:x", "positive number"),
        ("free:2", "takes no weight"),
        ("free+blurs", "must be one of"),
        ("adversarial:3", "takes no"),
        ("weighted:3+transforms", "takes no"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            parse(text)


@pytest.mark.slow
def test_weighted_adversaries_push_away_from_the_target_or_pull_to_the_start(tmp_path: Path) -> None:
    table = {}
    for name in ("free", "weighted:1", "towards-start:1"):
        run_invert(asking("coarse"), small(regulariser=name, against="ssim"), tmp_path / name[:4])
        table[name] = Run.open(tmp_path / name[:4]).table("inversions")
    assert table["weighted:1"]["ssim_target"].mean() > table["free"]["ssim_target"].mean()
    assert table["towards-start:1"]["ssim_start"].mean() < table["free"]["ssim_start"].mean()
    assert "Searched with weighted:1" in (tmp_path / "weig" / "index.html").read_text()


def test_layers_by_name_side_and_place() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    images = torch.rand(2, 1, 8, 8)
    for text, name, side in (("penultimate", "5", "in"), ("1", "1", "out"), ("3:in", "3", "in")):
        tap = parse_layer(net, text, images)
        assert (tap.layer, tap.side) == (name, side)
    assert layer_name(parse_layer(net, "penultimate", images)) == "5:in"
    with pytest.raises(ConfigError, match="names one layer"):
        parse_layer(net, "*", images)


def test_the_time_is_predicted_after_some_steps() -> None:
    told: list[str] = []
    net = nn.Linear(4, 4)
    with prediction(net, 1000, shorter="--preset fast", tell=told.append):
        for _ in range(30):
            net(torch.rand(2, 4, requires_grad=True))
            with torch.no_grad():
                net(torch.rand(2, 4))
    assert len(told) == 1 and "by the first 24 steps" in told[0] and not net._forward_pre_hooks
    assert [duration(s) for s in (12, 600, 7200)] == ["12 s", "10 min", "2.0 h"]


def test_small_networks_get_one_thread_and_torch_its_own_back() -> None:
    net, image = nn.Linear(64, 10), torch.rand(1, 64)
    assert flops(net, image) == 2 * 64 * 10 and net.training
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with fitting_threads(net, image) as threads:
            assert threads == 1
        assert torch.get_num_threads() == 2
        with fitting_threads(nn.Linear(4096, 4096), torch.rand(1, 4096)) as threads:
            assert threads == 2
    finally:
        torch.set_num_threads(before)


def test_other_images_serve_as_natural_ones_while_there_are_enough() -> None:
    targets, natural = invert_search.draw(60, small(targets=20, natural=40))
    assert not set(targets.tolist()) & set(natural.tolist()) and len(natural) == 40
    again, _ = invert_search.draw(60, small(targets=20, natural=50))
    assert torch.equal(targets, again)
    assert invert_job.TABLE == "inversions"
