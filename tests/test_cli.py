"""The commands as a person runs them: what they print, what they leave behind, and what they say when it goes wrong."""

import dataclasses as dc
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pellucid.cli import app, main

NETS = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))

def padded():
    net = small()
    net[0].padding = (3, 3)
    return net

class Wrapped(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.net, self.form = small(), form
    def forward(self, x):
        y = self.net(x)
        return {"tuple": (y, x), "dict": {"logits": y}, "odd": {"score": y}}[self.form]

def in_a_tuple():
    return Wrapped("tuple")

def in_a_dict():
    return Wrapped("dict")

def without_logits():
    return Wrapped("odd")

def of_five():
    net = small()
    net[6] = nn.Linear(6, 5)
    return net

def one_channel():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def linear_only():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))

def wide():
    return nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 2))

def broken():
    raise RuntimeError("no such optimiser, said the model")

not_a_function = 3
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder as a user has it: a module with networks, weights, and images in one folder a class."""
    (tmp_path / "nets.py").write_text(NETS)
    random = np.random.default_rng(0)
    for name, colour in (("red", 0), ("blue", 2)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(12):
            image = random.integers(0, 80, (16, 16, 3), dtype=np.uint8)
            image[..., colour] += 120
            Image.fromarray(image).save(folder / f"{i}.png")
    torch.manual_seed(1)
    names = {"0": (8, 3), "2": (6, 8)}
    state = {}
    for layer, (out, into) in names.items():
        state[f"{layer}.weight"] = torch.randn(out, into, 3, 3) * 0.2
        state[f"{layer}.bias"] = torch.zeros(out)
    state |= {"6.weight": torch.randn(2, 6), "6.bias": torch.zeros(2)}
    save_file(state, tmp_path / "net.safetensors")
    return tmp_path


@dc.dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def pellucid(*arguments: str, cwd: Path) -> Done:
    """Run the command in this process (importing torch for each run would take most of the time)."""
    out, err = io.StringIO(), io.StringIO()
    modules, path = set(sys.modules), list(sys.path)
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["pellucid", *arguments])
        patch.setenv("COLUMNS", "200")
        try:
            main()
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        finally:
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                if name in ("nets", "planted", "cells"):
                    del sys.modules[name]
    return Done(code, out.getvalue(), err.getvalue())


def in_a_shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pellucid", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, env=environment)


INSPECT = (
    "inspect",
    "--model",
    "nets:small",
    "--weights",
    "net.safetensors",
    "--data",
    "folder:photos",
    "--out",
    "run",
)


def test_help_answers_without_torch(place: Path) -> None:
    from typer.main import get_command

    commands = [[], *([name] for name in get_command(app).commands)]  # type: ignore[attr-defined]
    for command in commands:
        done = pellucid(*command, "--help", cwd=place)
        assert done.returncode == 0 and "Usage" in done.stdout, command
    code = "import sys; sys.argv = ['pellucid', '--help']\ntry:\n from pellucid.cli import main; main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_layers_lists_what_can_be_tapped(place: Path) -> None:
    done = pellucid("layers", "--model", "nets:small", "--input", "3x16x16", cwd=place)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["1", "ReLU", "8x16x16", "8", "1", "1"] in lines
    assert ["6", "Linear", "2", "2", "1", "1"] in lines


def test_inspect_writes_a_page_and_says_where_last(place: Path) -> None:
    done = pellucid(*INSPECT, cwd=place)
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.splitlines()[-1])
    assert page == (place / "run" / "index.html").resolve() and page.is_file()
    from pellucid.store import Run

    run = Run.open(place / "run")
    units = run.table("units")
    assert list(units["layer"]) == ["1"] * 8 + ["3"] * 6
    assert set(units["top_class"]) <= {"red", "blue", ""}
    assert run.facts("model")["trained"] and run.facts("data")["n"] == 24
    before = (place / "run" / "tables" / "units.parquet").read_bytes()
    again = pellucid(*INSPECT, cwd=place)
    assert again.returncode == 0 and "complete" in again.stderr
    assert (place / "run" / "tables" / "units.parquet").read_bytes() == before


def test_inspect_finds_the_planted_unit(place: Path) -> None:
    """A network whose first unit is red minus blue must be reported as selective for red."""
    (place / "planted.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))\n"
        "    with torch.no_grad():\n"
        "        net[0].weight[:] = torch.tensor([[1.0, 0, -1], [0, 1, 0]]).view(2, 3, 1, 1); net[0].bias.zero_()\n"
        "    return net\n"
    )
    done = pellucid(
        "inspect", "--model", "planted:build", "--data", "folder:photos", "--out", "run", cwd=place
    )
    assert done.returncode == 0, done.stderr
    from pellucid.store import Run

    run = Run.open(place / "run")
    units = run.table("units")
    assert next(iter(units["top_class"])) == "red"
    assert units["si_cf"][0] > 0.9 > 0.2 > units["si_cf"][1]
    assert not run.facts("model")["trained"]
    assert "untrained" in (place / "run" / "index.html").read_text().lower()


def test_a_stale_run_is_refused_not_reused(place: Path) -> None:
    assert pellucid(*INSPECT, cwd=place).returncode == 0
    (place / "photos" / "red" / "0.png").write_bytes((place / "photos" / "blue" / "0.png").read_bytes())
    done = pellucid(*INSPECT, cwd=place)
    assert done.returncode == 2 and done.stderr.count("\n") < 8
    assert "StaleResultError" in done.stderr and "data" in done.stderr


BAD = {
    "unknown layer": (["--layers", "layer9"], "LayerNotFound"),
    "empty glob": (["--layers", "conv*"], "no layer"),
    "data path missing": (["--data", "folder:nowhere"], "nowhere"),
    "data without images": (["--data", "folder:empty"], "image"),
    "weights missing": (["--weights", "gone.pt"], "gone.pt"),
    "weights of another architecture": (["--model", "nets:wide"], "0.weight"),
    "module missing": (["--model", "netz:small"], "netz"),
    "attribute missing": (["--model", "nets:smal"], "small"),
    "model import failing": (["--model", "nets:broken"], "no such optimiser"),
    "not callable": (["--model", "nets:not_a_function"], "not_a_function"),
    "no activation to tap": (["--model", "nets:linear_only", "--weights", ""], "--layers"),
    "no such device": (["--device", "cuda:7"], "cpu"),
    "odd device": (["--device", "toaster"], "toaster"),
    "unknown data": (["--data", "cifar11:."], "cifar10"),
    "odd normalisation": (["--normalize", "0.5"], "MEAN/STD"),
    "odd policy": (["--negative", "drop"], "leave-out"),
    "odd size": (["--size", "big"], "224"),
    "output is a file": (["--out", "nets.py"], "nets.py"),
    "output is not a run": (["--out", "photos"], "photos"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_readable_message_and_exit_2(place: Path, case: str) -> None:
    (place / "empty").mkdir()
    (place / "empty" / "notes.txt").write_text("no picture")
    changes, expected = BAD[case]
    options = dict(zip(INSPECT[1::2], INSPECT[2::2], strict=True)) | dict(
        zip(changes[::2], changes[1::2], strict=True)
    )
    words = [word for option in options.items() if option[1] for word in option]
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if "__pycache__" not in path.parts}
    done = pellucid("inspect", *words, cwd=place)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip()) > 20
    after = {path for path in place.rglob("*") if "__pycache__" not in path.parts}
    assert set(before) <= after and after - set(before) <= {place / "run"}, "bad input leaves nothing behind"


def test_a_truncated_image_is_named_and_skipped_only_if_asked(place: Path) -> None:
    victim = place / "photos" / "red" / "3.png"
    victim.write_bytes(victim.read_bytes()[:200])
    done = pellucid(*INSPECT, cwd=place)
    assert done.returncode == 2 and "3.png" in done.stderr and "--skip-unreadable" in done.stderr
    done = pellucid(*INSPECT, "--skip-unreadable", cwd=place)
    assert done.returncode == 0, done.stderr
    from pellucid.store import Run

    facts = Run.open(place / "run").facts("data")
    assert facts["n"] == 23 and "3.png" in facts["skipped"][0][0]
    assert "3.png" in (place / "run" / "index.html").read_text()


def test_a_run_folder_of_another_version_is_refused(place: Path) -> None:
    assert pellucid(*INSPECT, cwd=place).returncode == 0
    header = place / "run" / "run.json"
    header.write_text(header.read_text().replace('"schema": 1', '"schema": 99'))
    done = pellucid(*INSPECT, cwd=place)
    assert done.returncode == 2 and "99" in done.stderr
    assert pellucid("report", "run", cwd=place).returncode == 2


def test_report_needs_neither_model_nor_images(place: Path) -> None:
    assert pellucid(*INSPECT, cwd=place).returncode == 0
    first = (place / "run" / "index.html").read_text()
    (place / "run" / "index.html").unlink()
    (place / "nets.py").unlink()
    done = pellucid("report", "run", cwd=place)
    assert done.returncode == 0 and (place / "run" / "index.html").read_text() == first


def test_another_network_with_the_same_weights_is_not_the_same_run(place: Path) -> None:
    assert pellucid(*INSPECT, cwd=place).returncode == 0
    words = ["nets:padded" if word == "nets:small" else word for word in INSPECT]
    done = pellucid(*words, cwd=place)
    assert done.returncode == 2 and "--model nets:small then, nets:padded now" in done.stderr
    assert "delete that folder" in done.stderr


def test_options_that_changed_are_named(place: Path) -> None:
    assert pellucid(*INSPECT, cwd=place).returncode == 0
    done = pellucid(*INSPECT, "--top", "4", cwd=place)
    assert done.returncode == 2 and "--top 16 then, 4 now" in done.stderr


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("in_a_tuple", ""),
        ("in_a_dict", ""),
        ("without_logits", "no logits"),
        ("of_five", "5 outputs and the data 2 classes"),
    ],
)
def test_outputs_of_any_form_are_looked_at_and_accuracy_needs_logits(
    place: Path, model: str, says: str
) -> None:
    done = pellucid(
        "inspect", "--model", f"nets:{model}", "--data", "folder:photos", "--out", "run", cwd=place
    )
    assert done.returncode == 0, done.stderr
    from pellucid.store import Run

    run = Run.open(place / "run")
    facts = run.facts("data")
    assert says in facts["accuracy_why"]
    assert (place / "run" / "facts" / "accuracy.json").exists() == (not says)


def test_images_a_model_cannot_take_are_named_with_what_to_try(place: Path) -> None:
    done = pellucid(
        "inspect", "--model", "nets:one_channel", "--data", "folder:photos", "--out", "run", cwd=place
    )
    assert (
        done.returncode == 2
        and "cannot take inputs of 3x16x16" in done.stderr
        and "?channels=" in done.stderr
    )
    done = pellucid("layers", "--model", "nets:small", "--input", "1x16x16", cwd=place)
    assert done.returncode == 2 and "another --input" in done.stderr
    assert not (place / "run").exists()


def test_a_named_layer_without_units_is_an_error_not_left_out(place: Path) -> None:
    done = pellucid(*INSPECT, "--layers", "1", "5#4", cwd=place)
    assert done.returncode == 2 and "5#4" in done.stderr


def test_an_attempt_that_failed_leaves_no_trace_in_the_next(place: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(place / "net.safetensors")
    state["0.weight"] = state["0.weight"] * float("nan")
    save_file(state, place / "nan.safetensors")
    words = ["nan.safetensors" if word == "net.safetensors" else word for word in INSPECT]
    done = pellucid(*words, cwd=place)
    assert done.returncode == 2 and not (place / "run").exists()
    assert pellucid(*INSPECT, "--limit", "20", cwd=place).returncode == 0
    from pellucid.store import Run

    run = Run.open(place / "run")
    assert run.header["recipe"]["weights"] == "net.safetensors" and run.facts("data")["total"] == 24


def test_a_job_does_not_write_into_the_run_of_another(place: Path) -> None:
    assert pellucid(*INSPECT, cwd=place).returncode == 0
    done = pellucid("demo", "--out", "run", "--epochs", "1", cwd=place)
    assert done.returncode == 2 and "a run of `pellucid inspect`" in done.stderr
    assert not (place / "run" / "training").exists()


def test_space_is_checked_before_the_pass(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2_500_000})())
    done = pellucid(*INSPECT, cwd=place)
    assert done.returncode == 2 and "free" in done.stderr and "recorded" not in done.stderr


def test_several_layers_may_follow_one_option() -> None:
    from pellucid.cli import spread

    assert spread(["--layers", "a", "b", "--out", "r"], "--layers") == [
        "--layers",
        "a",
        "--layers",
        "b",
        "--out",
        "r",
    ]
    assert spread(["x", "--layers", "a"], "--layers") == ["x", "--layers", "a"]
    assert spread(["--layers=a", "b"], "--layers") == ["--layers", "a", "--layers", "b"]


@pytest.mark.slow
def test_the_command_itself_maps_errors_to_exit_codes(place: Path) -> None:
    done = in_a_shell(*INSPECT, "--layers", "layer9", cwd=place)
    assert done.returncode == 2 and "LayerNotFound" in done.stderr and "Traceback" not in done.stderr
    (place / "nets.py").write_text(
        NETS.replace("nn.Flatten(), nn.Linear(6, 2)", "nn.Flatten(), nn.Linear(6, 2), Odd()")
        + "\nclass Odd(nn.Module):\n    def forward(self, x):\n        raise KeyError('a bug of the user')\n"
    )
    done = in_a_shell(
        "inspect", "--model", "nets:small", "--data", "folder:photos", "--out", "odd", cwd=place
    )
    assert done.returncode != 0 and "a bug of the user" in done.stderr


@pytest.mark.slow
def test_the_demo_resumes_after_a_kill(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pellucid", "demo", "--out", "run", "--epochs", "4"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("training/e*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = pellucid("demo", "--out", "run", "--epochs", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = pellucid("demo", "--out", "whole", "--epochs", "4", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    for table in ("units", "layers", "top"):
        ours, theirs = (tmp_path / run / "tables" / f"{table}.parquet" for run in ("run", "whole"))
        from pellucid.store.tables import read_table

        a, b = read_table(ours), read_table(theirs)
        for column in a:
            np.testing.assert_array_equal(a[column], b[column])


SWEEP = """
[sweep]
run = "cells:work"
replicates = 3
baseline = { alpha = 0 }

[factors]
alpha = [-1, 0, 1]

[fixed]
slope = 2.0
"""
WORK = """
import random

def work(cell, scratch, slope):
    return {"accuracy": 90 - slope * abs(cell.settings["alpha"]) + random.Random(cell.seed).random()}
"""


def test_a_sweep_is_filled_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SWEEP)
    (tmp_path / "cells.py").write_text(WORK)
    done = pellucid("sweep", "s.toml", "--out", "sweep", cwd=tmp_path)
    assert done.returncode == 0 and "complete: 9 cells" in done.stderr
    page = (tmp_path / "sweep" / "index.html").read_text()
    assert Path(done.stdout.splitlines()[-1]) == (tmp_path / "sweep" / "index.html").resolve()
    assert "difference to alpha 0" in page and "−2.00 [−2.00, −2.00]" in page


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("replicates", "replicate"), "nearest: ['replicates'"),
        (("[factors]", "[factor]"), "nearest: ['factors'"),
        (("cells:work", "cells:wark"), "work"),
        (("slope = 2.0", "slop = 2.0"), "slope"),
        (("alpha = [-1, 0, 1]", "alpha = 3"), "list of levels"),
        (("{ alpha = 0 }", "{ beta = 0 }"), "nearest: ['alpha'"),
        (("{ alpha = 0 }", "{ alpha = 9 }"), "9 is no level of 'alpha'"),
        (("[sweep]", "[sweep"), "cannot read the sweep file"),
    ],
)
def test_bad_sweep_files_say_what_is_wrong(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    (tmp_path / "s.toml").write_text(SWEEP.replace(*change))
    (tmp_path / "cells.py").write_text(WORK)
    done = pellucid("sweep", "s.toml", "--out", "sweep", cwd=tmp_path)
    assert done.returncode == 2 and expected in done.stderr and not (tmp_path / "sweep").exists()


def test_cells_of_other_work_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SWEEP)
    (tmp_path / "cells.py").write_text(WORK)
    assert pellucid("sweep", "s.toml", "--out", "sweep", "--minutes", "0", cwd=tmp_path).returncode == 0
    (tmp_path / "s.toml").write_text(SWEEP.replace("slope = 2.0", "slope = 3.0"))
    done = pellucid("sweep", "s.toml", "--out", "sweep", cwd=tmp_path)
    assert done.returncode == 2 and "fixed was {'slope': 2.0}, now {'slope': 3.0}" in done.stderr


@pytest.mark.slow
def test_a_sweep_over_a_recipe_trains_each_cell(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(
        '[data]\nspec = "digits"\n[model]\nspec = "pellucid.zoo:conv_net"\narguments = { in_channels = 1, widths = [4, 8] }\n'
        '[optimizer]\nname = "SGD"\nlr = 0.1\n[train]\nepochs = 1\nbatch_size = 100\n'
    )
    (tmp_path / "s.toml").write_text(
        '[sweep]\nrecipe = "net.toml"\nreplicates = 2\n[factors]\n"optimizer.lr" = [0.001, 0.1]\n'
    )
    done = pellucid("sweep", "s.toml", "--out", "sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    from pellucid.sweep import summarise, tidy

    low, high = summarise(tidy(tmp_path / "sweep" / "cells.csv"), "accuracy")
    assert low.settings == {"optimizer.lr": 0.001} and low.n == 2 and high.mean > low.mean
