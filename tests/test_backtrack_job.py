"""`pellucid backtrack` and `pellucid edit` on a small network: what they write, show, refuse, and do not do again."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pellucid._checks import ConfigError, DataError, NotInvertible, StaleResultError
from pellucid.cli import main
from pellucid.jobs.backtrack import OTHER, OURS, PINV, SEARCH, Backtracking, run_backtrack
from pellucid.jobs.backtrack_bench import Opening
from pellucid.jobs.backtrack_pictures import diverging, picture
from pellucid.jobs.edit import ALPHAS, Editing, run_edit
from pellucid.jobs.inspect import Request
from pellucid.methods.bort.backtrack_errors import reconstruction
from pellucid.report import write_report
from pellucid.store import Run
from pellucid.train import seeded
from pellucid.zoo.traceable import traceable_net

NASTY = "<b>six & 'x'"
SMALL = Backtracking(images=12, shown=3, views=4, search=3, device="cpu")
EDIT = Editing(images=12, shown=2, channels=4, contributions=3, device="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in a module, two sets of its weights, and a folder of images in classes with awkward names."""
    folder = tmp_path_factory.mktemp("backtrack")
    (folder / "tracenets.py").write_text(
        "from pellucid import zoo\nfrom pellucid.zoo.traceable import traceable_net\n"
        "def plain(): return traceable_net(in_channels=3, classes=3, widths=(12, 20), kernels=(3, 2), strides=(1, 2))\n"
        "def residual(): return zoo.resnet8(classes=3)\n"
        "def smooth(): return zoo.vit(image_size=12, classes=3)\n"
    )
    rng = np.random.default_rng(0)
    for number, name in enumerate(("ant", "bee", NASTY)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 255, (12, 12, 3)) // 2
            pixels[..., number] += 90
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / name / f"<{i}>.png")
    for seed, name in ((0, "one"), (1, "other")):
        with seeded(seed):
            model = traceable_net(in_channels=3, classes=3, widths=(12, 20), kernels=(3, 2), strides=(1, 2))
        if seed == 0:
            for conv in (model.conv1, model.conv2):
                weight = torch.linalg.qr(conv.weight.detach().flatten(1).T).Q.T
                conv.weight.data.copy_(weight.reshape(conv.weight.shape))
        else:  # filters much alike: what the constraint is against
            for conv in (model.conv1, model.conv2):
                conv.weight.data.add_(0.5)
        model.linear.weight.data.mul_(10)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def importable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))


def opening(place: Path, out: Path, **changes: object) -> Opening:
    fields = {
        "model": "tracenets:plain",
        "weights": place / "one.safetensors",
        "data": f"folder:{place / 'photos'}",
    }
    return Opening(request=Request(**{**fields, **changes}), out=out)


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Both commands, into one run."""
    sys.path.insert(0, str(place))
    out = tmp_path_factory.mktemp("done") / "run"
    try:
        run_backtrack(
            opening(place, out), Backtracking(**{**vars(SMALL), "against": place / "other.safetensors"})
        )
        run_edit(opening(place, out), EDIT)
    finally:
        sys.path.remove(str(place))
    return Run.open(out)


def test_tables_hold_what_the_library_measures(place: Path, done: Run) -> None:
    from pellucid.jobs.backtrack_bench import open_bench

    bench = open_bench(
        Opening(run=None, request=opening(place, done.path).request, out=done.path),
        job="x",
        images=12,
        seed=0,
        device="cpu",
    )
    expected = reconstruction(bench.subject.model, bench.images)
    table = done.table("backtrack")
    assert set(table["way"]) == {OURS, PINV, SEARCH, OTHER} and set(table["layer"]) == {"act1", "act2"}
    for layer, close in expected.items():
        row = (table["way"] == OURS) & (table["layer"] == layer)
        assert float(table["error"][row][0]) == pytest.approx(float(close.error.mean()))
        assert table["error_lo"][row] < table["error"][row] < table["error_hi"][row]
    worse = table["error"][(table["way"] == OTHER) & (table["layer"] == "act2")]
    assert float(worse[0]) > float(expected["act2"].error.mean())
    edits = done.table("edits")
    assert edits["alpha"].tolist() == sorted(ALPHAS) and edits["size"][0] == 0 and edits["edit"][0] == 0
    assert np.all(np.diff(edits["size"]) > 0) and np.allclose(
        edits["gradient_size"], edits["size"], atol=1e-3
    )


def test_results_carry_the_hashes_of_what_they_came_from(done: Run) -> None:
    import json

    for file in ("facts/backtracked.json", "facts/edited.json"):
        inputs = json.loads((done.path / file).read_text())["$inputs"]
        assert {"weights", "preprocessing", "data", "settings", "method", "version"} <= set(inputs)
    assert done.facts("backtracked")["against"] == "other.safetensors"


def test_the_page_shows_both_and_escapes_everything(done: Run) -> None:
    text = (done.path / "index.html").read_text()
    assert 'id="backtracking"' in text and 'id="edits"' in text
    assert NASTY not in text and "<0>" not in text and "&lt;" in text
    for url in re.findall(r"url\((images/[^)]+)\)", text):
        assert (done.path / url).exists()
    assert text.count("view of unit") == 8
    assert "far from orthogonal" not in text.split('id="edits"')[0], "the first network is the orthogonal one"
    assert "Against other.safetensors" in text
    assert "Rings: pseudo-inverse; dashed: gradient search; bars: other weights." in text
    assert text.count('<path class="dash"') == 3, "two baselines of one chart do not look alike"
    before = text
    assert write_report(done).read_text() == before, "the same tables give the same bytes"


def test_a_finished_run_is_not_computed_again_and_another_is_refused(
    place: Path, done: Run, monkeypatch
) -> None:
    import pellucid.jobs.backtrack as job
    import pellucid.jobs.edit as edit_job

    asked = Backtracking(**{**vars(SMALL), "against": place / "other.safetensors"})
    monkeypatch.setattr(job, "_ways_back", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(edit_job, "_save", lambda *_, **__: pytest.fail("computed again"))
    run_backtrack(opening(place, done.path), asked)
    run_edit(opening(place, done.path), EDIT)
    with pytest.raises(StaleResultError, match="--again"):
        run_backtrack(opening(place, done.path), SMALL)
    with pytest.raises(StaleResultError, match="another model"):
        run_edit(opening(place, done.path, weights=place / "other.safetensors"), EDIT)


def test_a_run_of_inspect_is_taken_from_the_command_line(
    place: Path, done: Run, tmp_path: Path, monkeypatch, capsys
) -> None:
    goal = str(done.table("edit_pictures")["target"][0])  # one that the network takes some image for
    out, data = tmp_path / "run", f"folder:{place / 'photos'}"
    given = [
        "--model",
        "tracenets:plain",
        "--weights",
        str(place / "one.safetensors"),
        "--data",
        data,
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["pellucid", "inspect", *given, "--out", str(out)])
    main_quietly()
    shared = ["--images", "8", "--shown", "2", "--device", "cpu"]
    monkeypatch.setattr(
        sys,
        "argv",
        ["pellucid", "backtrack", str(out), *shared, "--search", "0", "--views", "0", "--layers", "act1"],
    )
    main_quietly()
    monkeypatch.setattr(
        sys, "argv", ["pellucid", "edit", str(out), *shared, "--towards", goal, "--alpha", "0.4"]
    )
    main_quietly()
    assert capsys.readouterr().out.strip().endswith(str(out / "index.html"))
    run = Run.open(out)
    assert run.facts("backtracked")["layers"] == ["act1"] and SEARCH not in run.facts("backtracked")["ways"]
    assert 0.4 in run.table("edits")["alpha"].tolist()
    assert set(run.table("edit_pictures")["target"]) == {goal}
    assert 'id="units"' in (out / "index.html").read_text(), "what inspect wrote is still there"


def main_quietly() -> None:
    try:
        main()
    except SystemExit as error:
        assert error.code in (0, None)


def test_networks_that_cannot_be_traced_say_how_far_one_gets(place: Path, tmp_path: Path) -> None:
    asked = Backtracking(**{**vars(SMALL), "search": 0, "views": 0})
    run_backtrack(opening(place, tmp_path / "residual", model="tracenets:residual", weights=None), asked)
    facts = Run.open(tmp_path / "residual").facts("backtracked")
    assert facts["layers"][-1] == "layer1.0.relu1" and "'layer1.0.relu2' takes something" in facts["stops"]
    assert "Untrained" in (tmp_path / "residual" / "index.html").read_text()
    with pytest.raises(NotInvertible, match=r"relu2"):
        run_backtrack(
            opening(place, tmp_path / "deep", model="tracenets:residual", weights=None),
            Backtracking(**{**vars(asked), "layers": ("layer2.0.relu2",)}),
        )
    with pytest.raises(ConfigError, match="head that takes one number"):
        run_edit(opening(place, tmp_path / "edit", model="tracenets:residual", weights=None), EDIT)


def test_bad_requests_are_refused_first(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--images"):
        run_backtrack(opening(place, tmp_path / "a"), Backtracking(images=1))
    with pytest.raises(ConfigError, match="--alpha"):
        run_edit(opening(place, tmp_path / "a"), Editing(alpha=-1.0))
    with pytest.raises(ConfigError, match="names no class"):
        run_edit(opening(place, tmp_path / "b"), Editing(**{**vars(EDIT), "towards": "wasp"}))
    with pytest.raises(ConfigError, match="--model"):
        run_backtrack(Opening(), SMALL)
    (tmp_path / "rows.csv").write_text("a,b,y\n" + "1,2,x\n3,4,z\n" * 4)
    table = f"table:{tmp_path / 'rows.csv'}?target=y"
    with pytest.raises(DataError, match="expected images"):
        run_backtrack(opening(place, tmp_path / "c", data=table), SMALL)


def test_a_run_that_backtrack_made_can_be_edited_by_its_name(done: Run) -> None:
    when = (done.path / "facts" / "edited.json").stat().st_mtime_ns
    run_edit(Opening(run=done.path), EDIT)
    assert (done.path / "facts" / "edited.json").stat().st_mtime_ns == when, "the same network and images"


@pytest.mark.parametrize("option", [("--size", "12"), ("--normalize", "0.5/0.5"), ("--skip-unreadable",)])
@pytest.mark.parametrize("command", ["backtrack", "edit"])
def test_options_that_a_run_decides_are_refused(
    command: str, option: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pellucid", command, str(tmp_path), *option])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"not with a run: {option[0]}" in " ".join(capsys.readouterr().err.split())


def test_black_images_are_rebuilt_and_left_out_of_edits(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "photos", tmp_path / "photos")
    for i in range(4):
        Image.new("RGB", (12, 12)).save(tmp_path / "photos" / "ant" / f"black{i}.png")
    here = opening(place, tmp_path / "run", data=f"folder:{tmp_path / 'photos'}")
    run_backtrack(here, Backtracking(**{**vars(SMALL), "search": 0, "images": 28}))
    run_edit(here, Editing(**{**vars(EDIT), "images": 28}))
    run = Run.open(tmp_path / "run")
    assert 0 < run.facts("edited")["n"] <= 24 and run.facts("edited")["left_out"] >= 4
    assert np.isfinite(
        np.concatenate([run.table("edits")[key] for key in ("size", "blend", "gradient")])
    ).all()
    text = re.sub(r"<(script|style).*?</\1>", "", (tmp_path / "run" / "index.html").read_text(), flags=re.S)
    assert not re.search(r"\bnan\b", text)


def test_pictures_are_signed_by_colour() -> None:
    change = torch.tensor([-1.0, 0.0, 0.5, 2.0]).view(1, 1, 4)
    pixels = diverging(change, reach=1.0)[0]
    assert pixels[1].tolist() == [255, 255, 255]
    assert pixels[0][2] > pixels[0][0] and pixels[3][0] > pixels[3][2] and pixels[2][0] > pixels[2][2]
    assert picture(torch.full((1, 2, 2), 3.0)).max() == 255
    assert max(picture(torch.zeros(3, 400, 200)).shape) == 160
