"""`pellucid align`: planted networks are ranked as they must be, with intervals, cautions and pages; what it refuses."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pellucid._checks import ConfigError, DataError, StaleResultError
from pellucid.cli import main
from pellucid.data import open_source
from pellucid.evals.alignment_committee import AFC, CLUSTER, HARD, MATCHED
from pellucid.evals.perceptual import WEIGHT_FREE
from pellucid.evals.trunk import STAGES, small_trunk
from pellucid.jobs.align import Alignment, run_align
from pellucid.jobs.align_metrics import FREE_NAMES, Ladder, read_answers
from pellucid.jobs.align_runs import read_runs
from pellucid.jobs.inspect import Request
from pellucid.jobs.invert import Asking, Inversion, run_invert
from pellucid.report import write_report
from pellucid.store import Run

NETS = """
from torch import nn
from pellucid.evals.trunk import small_trunk
from pellucid.train import seeded

def whole():
    with seeded(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def coarse():
    with seeded(0):
        return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 10))

def trunk():
    return small_trunk(3, 10, seed=7, replicate=0)
"""
SMALL = Inversion(targets=12, starts=2, steps=60, natural=30, device="cpu")
NASTY = "<b>low & 'x'"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inversions of the identity (with its worst case), of a network of four features, and of the identity again."""
    folder = tmp_path_factory.mktemp("align")
    (folder / "alignnets.py").write_text(NETS)
    sys.path.insert(0, str(folder))

    def made(name: str, net: str, **changes: object) -> None:
        request = Request(model=f"alignnets:{net}", data="digits")
        run_invert(Asking(request=request), Inversion(**{**vars(SMALL), **changes}), folder / name)

    try:
        made("whole", "whole", regulariser="adversarial", tolerances=(0.1, 0.3))
        made("coarse", "coarse")
        made("prior", "coarse", regulariser="tv:0.1")
        made("other", "whole", seed=1, steps=5)
    finally:
        sys.path.remove(str(folder))
    return folder


@pytest.fixture(autouse=True)
def importable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))


def asked(place: Path, *runs: str, **changes: object) -> Alignment:
    given = {"runs": tuple(place / run for run in runs), "triples": 30, "device": "cpu"}
    return Alignment(**{**given, **changes})


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("compared") / "run"
    sys.path.insert(0, str(place))
    try:
        run_align(asked(place, "whole", "coarse", names=("whole", NASTY), stir=True), out)
    finally:
        sys.path.remove(str(place))
    return Run.open(out)


def cell(run: Run, who: str, metric: str, measure: str = AFC, subset: str = "all") -> dict[str, float]:
    table = run.table("alignment")
    rows = (table["run"] == who) & (table["metric"] == metric) & (table["measure"] == measure)
    rows &= table["subset"] == subset
    assert rows.sum() == 1
    return {key: values[rows][0] for key, values in table.items()}


def test_A1_A3_what_keeps_everything_is_aligned_by_every_metric_and_what_keeps_four_numbers_is_not(
    done: Run,
) -> None:
    for metric in FREE_NAMES:
        for measure in (AFC, CLUSTER, MATCHED):
            assert cell(done, "whole", metric, measure)["percent"] == 100
        assert cell(done, NASTY, metric)["percent"] <= 10
    one = cell(done, "whole", "ssim")
    assert (one["items"], one["targets"], one["high"]) == (24, 12, 100) and 70 < one["low"] < 80
    assert one["start_sd"] == 0 and one["rung"] == "weight-free"
    assert set(done.table("alignment")["measure"]) == {AFC, CLUSTER, MATCHED, HARD}


def test_scores_are_published_by_subset_with_their_n(done: Run) -> None:
    table = done.table("alignment")
    assert set(table["subset"]) == {"all", "tight", "tight+loose", "valid"}
    assert cell(done, "whole", "ssim", subset="tight")["items"] == 24
    # Four features cannot be ranked better than natural pairs rank them: V3 fails, and nothing is scored as aligned.
    none = cell(done, NASTY, "ssim", subset="valid")
    assert none["items"] < 24
    if not none["items"]:
        assert np.isnan(none["percent"])
    assert any(NASTY in flag and "valid" in flag for flag in done.facts("aligned")["flags"])


def test_A7_the_worst_case_curve_falls_for_the_attacked_metric_and_counts_the_infeasible(done: Run) -> None:
    table = done.table("curves")
    assert set(table["tolerance"].tolist()) == {0.0, 0.1, 0.3} and set(table["run"]) == {"whole"}
    attacked = table["attacked"].astype(bool)
    assert set(table["metric"][attacked]) == {"lab"} and attacked.sum() == 3
    values = table["percent"][attacked]
    assert values[0] == 100 and (np.diff(values) <= 0).all()
    assert ((table["infeasible"] >= 0) & (table["infeasible"] <= 1)).all()


def test_A15_differences_are_paired_and_shared_invariance_has_a_direction(done: Run) -> None:
    table = done.table("differences")
    rows = (table["subset"] == "all") & (table["metric"] == "ssim")
    assert table["label"][rows].tolist() == [NASTY] and table["minus"][rows].tolist() == ["whole"]
    assert table["points"][rows][0] <= -90 and table["high"][rows][0] < 0
    stir = done.table("stir")
    pairs = dict(zip(zip(stir["first"], stir["second"], strict=True), stir["stir"], strict=True))
    assert pairs["whole", "whole"] > 0.98 and pairs[NASTY, NASTY] > 0.98
    assert pairs["whole", NASTY] > pairs[NASTY, "whole"] + 0.2, "what keeps more shares what keeps less"
    cka = dict(zip(zip(stir["first"], stir["second"], strict=True), stir["cka"], strict=True))
    assert cka["whole", NASTY] == pytest.approx(cka[NASTY, "whole"])


def test_items_carry_both_distances(done: Run) -> None:
    table, run = done.table("alignment_items"), done.table("alignment")
    assert len(table["item"]) == 2 * 24 * 5
    mine = (table["run"] == "whole") & (table["metric"] == "lab")
    assert (table["credit"][mine] == (table["to_target"][mine] < table["to_start"][mine])).all()
    assert 100 * table["credit"][mine].mean() == pytest.approx(cell(done, "whole", "lab")["percent"])
    assert len(run["run"]) == 2 * 5 * 4 * 4


def test_the_page_says_what_to_distrust_first_and_escapes_names(done: Run) -> None:
    page, sheet = (done.path / "index.html").read_text(), (done.path / "pages" / "alignment.html").read_text()
    assert "Not comparable as it stands" in page and "<b>low" not in page + sheet
    assert "A(tau) in numbers" in page and "lab, attacked" in page and "held out, mean of 4" in page
    assert "Invariance that networks share with each other" in page and "whole given" in page
    assert page.count('<div class="chart') == 5 + 1
    assert sheet.count("<tr>") == 13 and sheet.count('class="thumb"') == 12 * 4 and "../images/" in sheet
    assert "Few images a class" not in page
    with (done.path / "pages" / "alignment.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 160
    write_report(done)
    assert (done.path / "pages" / "alignment.html").read_text() == sheet


def test_a_complete_comparison_is_found_again_and_another_refused(
    place: Path, done: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pellucid.jobs.align.judge_all", None)
    same = asked(place, "whole", "coarse", names=("whole", NASTY), stir=True)
    assert run_align(same, done.path) == done.path / "index.html"
    assert "the comparison is complete" in capsys.readouterr().err
    with pytest.raises(StaleResultError, match="computed from something else"):
        run_align(asked(place, "whole", "coarse", names=("whole", NASTY), triples=31), done.path)


def test_runs_of_one_name_are_replicates(place: Path, tmp_path: Path) -> None:
    run_align(
        asked(place, "whole", "coarse", names=("net", "net"), ladder=Ladder(metrics=("ssim", "lab"))),
        tmp_path / "r",
    )
    run = Run.open(tmp_path / "r")
    table = run.table("replicates")
    rows = (table["measure"] == AFC) & (table["subset"] == "all") & (table["metric"] == "ssim")
    assert table["runs"][rows].tolist() == [2] and table["most"][rows][0] == 100
    low = cell(run, "net #2", "ssim")["percent"]
    assert table["mean"][rows][0] == pytest.approx((100 + low) / 2)
    assert table["sd"][rows][0] == pytest.approx((100 - low) / 2**0.5)
    assert "Spread over training runs" in (tmp_path / "r" / "index.html").read_text()
    assert "differences" not in run.table_names()


def test_other_methods_are_compared_with_a_caution(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_align(asked(place, "coarse", "prior", ladder=Ladder(metrics=("ssim",))), tmp_path / "r")
    said = capsys.readouterr().err
    assert "different regularisers (coarse: free; prior: tv:0.1)" in said
    run = Run.open(tmp_path / "r")
    assert cell(run, "prior", "ssim")["percent"] > cell(run, "coarse", "ssim")["percent"] + 30
    with pytest.raises(ConfigError, match="regulariser-free"):
        run_align(asked(place, "coarse", "prior", stir=True), tmp_path / "s")


@pytest.mark.slow
def test_the_ladder_trains_controls_and_calibrates(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Run.open(place / "whole").table("inversions")
    items = table["item"][np.isnan(table["tolerance"])]
    answers = tmp_path / "answers.csv"
    answers.write_text(
        "item,chose_target\n" + "".join(f"run:{item},{k % 4 != 3:d}\n" for item in items for k in range(3))
    )
    ladder = Ladder(metrics=("lab",), self_trained=3, trunk_epochs=1, answers=answers)
    run_align(asked(place, "whole", ladder=ladder), tmp_path / "r")
    run, said = Run.open(tmp_path / "r"), capsys.readouterr().err
    assert "metric untrained trunk: untrained trunk, a control" in said and "72 answers to 24 items" in said
    rungs = {m["name"]: (m["rung"], m["control"]) for m in run.facts("aligned")["metrics"]}
    assert rungs["self-trained 3"] == ("self-trained trunk", False)
    assert rungs["untrained trunk"] == ("untrained trunk", True)
    assert rungs["self-trained 1, calibrated"] == ("study-calibrated head", False)
    votes = run.table("committee")["members"]
    assert set(votes.tolist()) == {5}
    assert "study-calibrated head" in (tmp_path / "r" / "index.html").read_text()


def test_a_trunk_of_ones_own_is_hashed_and_an_untrained_one_is_a_control(place: Path, tmp_path: Path) -> None:
    save_file(small_trunk(3, 10, seed=8, replicate=0).state_dict(), tmp_path / "trunk.safetensors")
    torch.save(
        {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((16, 32, 64))},
        tmp_path / "h.pth",
    )
    ladder = Ladder(
        metrics=("ssim",), trunk="alignnets:trunk", trunk_weights=tmp_path / "trunk.safetensors", trunk_stages=STAGES,
        heads=tmp_path / "h.pth",
    )  # fmt: skip
    run_align(asked(place, "whole", ladder=ladder), tmp_path / "r")
    metric = Run.open(tmp_path / "r").facts("aligned")["metrics"][0]
    assert (
        metric["rung"] == "user files"
        and metric["name"] == "LPIPS trunk, calibrated"
        and not metric["control"]
    )
    assert len(metric["trunk_sha256"]) == len(metric["heads_sha256"]) == 64
    bare = Ladder(metrics=("ssim",), trunk="alignnets:trunk", trunk_stages=STAGES)
    run_align(asked(place, "whole", ladder=bare), tmp_path / "s")
    assert Run.open(tmp_path / "s").facts("aligned")["metrics"][0]["control"]
    signed = {f"lin{i}.model.1.weight": torch.randn(1, c, 1, 1) for i, c in enumerate((16, 32, 64))}
    torch.save(signed, tmp_path / "signed.pth")
    with pytest.raises(Exception, match="negative weights"):
        run_align(
            asked(place, "whole", ladder=Ladder(trunk="alignnets:trunk", trunk_stages=STAGES, heads=tmp_path / "signed.pth")),
            tmp_path / "t",
        )  # fmt: skip
    assert not (tmp_path / "t").exists()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Path:
    """A folder of images without labels, two of them exact copies, and a run on it."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photographs")
    digits = open_source("digits", split="test")
    (folder / "images").mkdir()
    for i in range(40):
        pixels = (digits[0 if i == 39 else i][0][0] * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{i:02}.png")
    sys.path.insert(0, str(place))
    try:
        request = Request(model="alignnets:whole", data=f"folder:{folder / 'images'}")
        run_invert(Asking(request=request), Inversion(**{**vars(SMALL), "natural": 40}), folder / "run")
    finally:
        sys.path.remove(str(place))
    return folder


def test_without_labels_trunks_are_trained_by_contrast_and_say_so(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder = Ladder(metrics=("ssim",), self_trained=3, trunk_epochs=1)
    run_align(asked(photographs, "run", ladder=ladder), tmp_path / "r")
    said = capsys.readouterr().err
    assert "on 40 images" in said and "by contrast, without labels" in said
    run = Run.open(tmp_path / "r")
    named = {m["name"]: m for m in run.facts("aligned")["metrics"]}
    assert named["contrastive 1"]["rung"] == "self-trained trunk" and not named["contrastive 1"]["control"]
    assert named["contrastive 3"]["trained"] == "by contrast, without labels"
    assert (
        cell(run, "run", "contrastive 2")["percent"] == 100 and HARD not in run.table("alignment")["measure"]
    )
    assert "by contrast, without labels" in (tmp_path / "r" / "index.html").read_text()


def test_exact_copies_are_no_natural_pairs(photographs: Path) -> None:
    null = Run.open(photographs / "run").facts("inverted")
    assert null["natural"] == 39 and null["null"]["minimum"] > 0 and null["null"]["rank_max"] < 1


def test_what_is_wrong_is_said_before_anything_is_trained_or_judged(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was done before bad input was found")

    monkeypatch.setattr("pellucid.evals.trunk.self_trained", never)
    monkeypatch.setattr("pellucid.jobs.align.judge_all", never)
    (tmp_path / "answers.csv").write_text("item,chose_target\na,perhaps\n")
    bad = Ladder(self_trained=3, answers=tmp_path / "answers.csv")
    with pytest.raises(DataError, match="line 2"):
        run_align(asked(place, "whole", ladder=bad), tmp_path / "r")
    with pytest.raises(ConfigError, match="regulariser-free"):
        run_align(asked(place, "coarse", "prior", stir=True), tmp_path / "r")
    with pytest.raises(ConfigError, match="one metric twice"):
        run_align(asked(place, "whole", ladder=Ladder(metrics=("lab", "lab"))), tmp_path / "r")
    monkeypatch.setitem(WEIGHT_FREE, "lab", lambda a, b: (a - b).flatten(1).sum(1))
    with pytest.raises(
        ConfigError, match=r"'lab' is no perceptual distance.*--metrics ssim,ms-ssim,gradient"
    ):
        run_align(asked(place, "whole", ladder=Ladder(self_trained=3)), tmp_path / "r")
    monkeypatch.setattr("pellucid.jobs.align_metrics.LEAST_TARGETS", 13)
    with pytest.raises(ConfigError, match="at least 13 targets"):
        run_align(asked(place, "whole", ladder=Ladder(metrics=("ssim",))), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_network_under_test_is_no_judge(place: Path, tmp_path: Path) -> None:
    import alignnets

    save_file(alignnets.whole().state_dict(), tmp_path / "net.safetensors")
    ladder = Ladder(trunk="alignnets:whole", trunk_weights=tmp_path / "net.safetensors", trunk_stages=("1",))
    with pytest.raises(ConfigError, match="cannot be its own judge"):
        run_align(asked(place, "whole", ladder=ladder), tmp_path / "r")


def test_what_cannot_be_compared_is_refused_before_any_work(place: Path, done: Run, tmp_path: Path) -> None:
    def refused(match: str, *runs: str, error: type[Exception] = ConfigError, **changes: object) -> None:
        with pytest.raises(error, match=match):
            run_align(asked(place, *runs, **changes), tmp_path / "r")
        assert not (tmp_path / "r").exists()

    refused("inverted different targets", "whole", "other")
    refused("stands twice", "whole", "whole")
    refused("2 runs, 1 names", "whole", "coarse", names=("a",))
    refused("--triples", "whole", triples=0)
    refused("--metrics must be one of", "whole", ladder=Ladder(metrics=("lpips",)))
    refused("at least 3 trunks", "whole", ladder=Ladder(self_trained=2))
    refused("belong to a --trunk", "whole", ladder=Ladder(heads=place / "whole"))
    refused("needs a trunk|head of a trunk", "whole", ladder=Ladder(answers=place / "alignnets.py"))
    refused("no metric to judge by", "whole", ladder=Ladder(metrics=()))
    refused("is no file", "whole", ladder=Ladder(trunk="a:b", heads=place / "nothing.pth"))
    refused("which layers of", "whole", ladder=Ladder(trunk="alignnets:trunk"))
    with pytest.raises(ConfigError, match="made by 'align', not by"):
        read_runs([done.path], [])
    (tmp_path / "half").mkdir()
    Run.create(tmp_path / "half" / "run", {"job": "invert"})
    with pytest.raises(ConfigError, match="is not finished"):
        read_runs([tmp_path / "half" / "run"], [])


def test_answers_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("item,chose_target\nrun:a,1\na,0\nb,true\n")
    assert read_answers(file) == ({"a": 0.5, "b": 1.0}, {"a": 2, "b": 1})
    file.write_text("item,chose_target\na,maybe\n")
    with pytest.raises(DataError, match="line 2"):
        read_answers(file)
    file.write_text("item,answer\na,1\n")
    with pytest.raises(DataError, match="chose_target"):
        read_answers(file)


def test_the_command_prints_every_column(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "align",
        str(place / "whole"),
        "--metrics",
        "ssim,lab",
        "--out",
        str(tmp_path / "r"),
        "--triples",
        "5",
    ]
    monkeypatch.setattr(sys, "argv", ["pellucid", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    printed = capsys.readouterr()
    assert printed.out.strip() == str((tmp_path / "r" / "index.html").resolve())
    assert re.search(r"whole \(n = 24\): ssim 100 \[7\d, 100\], lab 100 \[7\d, 100\]", printed.err)
    assert "mean of metrics 100 +- 0" in printed.err and "caution: whole is untrained" in printed.err
