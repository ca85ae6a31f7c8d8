"""Names, recipes and the job that trains one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pellucid._checks import ConfigError, LayerNotFound, StaleResultError
from pellucid.jobs import train as job
from pellucid.jobs.train import train_recipe
from pellucid.recipe import Recipe, check_arguments, load_recipe, open_model, parse_recipe, resolve
from pellucid.recipe.build import build
from pellucid.store import Run
from pellucid.taps import Tap
from pellucid.train import CrossEntropy

MODULE = """
from torch import nn

CONSTANT = 3
net = nn.Identity()

def build(*, classes=10, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))

def fails(depth=1):
    raise RuntimeError(f"no depth {depth}")

def not_a_model():
    return 7

def weight(epoch):
    return 0.1 * epoch

def flip(image, rng):
    return image.flip(-1)

class Nets:
    class Inner(nn.Identity):
        pass

class Quiet:
    def __init__(self, taps, power=1.0):
        self.taps, self.power = taps, power

    def __call__(self, step, seen):
        return sum(values.abs().pow(self.power).mean() for values in seen.values())

def prepare(*, factor):
    import dataclasses
    return lambda model, batch, rng: dataclasses.replace(batch, inputs=batch.inputs * factor)
"""

RECIPE = """
[data]
spec = "digits"

[model]
spec = "pellucid.zoo:conv_net"
arguments = {{ widths = [4, 8], pool_after = [1] }}

[optimizer]
name = "SGD"
lr = 0.1
momentum = 0.9

[train]
epochs = 2
batch_size = 100
device = "cpu"
{more}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of the user's own, not on the path yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(Path.cwd()))])
    (tmp_path / "mine.py").write_text(MODULE)
    yield tmp_path
    for name in ("mine", "broken", "unfinished", "leaves", "needs"):
        sys.modules.pop(name, None)


def recipe(text: str = "", **changes: str) -> Recipe:
    content = RECIPE.format(more=text)
    for old, new in changes.items():
        assert old in content
        content = content.replace(old, new)
    return parse_recipe(content, name="r.toml")


# -- names ---------------------------------------------------------------------------------------------------


def test_names_stand_for_what_they_say(here: Path) -> None:
    from pellucid import zoo

    assert resolve("pellucid.zoo:resnet20") is zoo.resnet20
    assert resolve("CrossEntropy") is CrossEntropy
    assert resolve("mine:build")()[3].out_features == 10
    assert resolve("mine:Nets.Inner").__name__ == "Inner"
    assert isinstance(resolve("mine:net"), nn.Identity)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CrossEntrpy", r"no public name 'CrossEntrpy'.*nearest: \['CrossEntropy'"),
        ("mine:biuld", r"mine has no 'biuld'; nearest: \['build'"),
        ("mine:Nets.Iner", r"Nets.*has no 'Iner'|mine has no 'Iner'"),
        ("mine:CONSTANT", "is a int, which cannot be called"),
        ("mime:build", r"no module 'mime', neither installed nor in .*; files here: \['mine'"),
        (":build", "expected module:name"),
        ("mine:", "expected module:name"),
    ],
)
def test_names_that_stand_for_nothing_are_explained(here: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "x = 1\ny = undefined_name\n",
            r"NameError: name 'undefined_name' is not defined \(.*broken.py, line 2: y = ",
        ),
        ("def f(:\n", "SyntaxError: .*broken.py, line 1"),
        (
            "import not_installed_at_all\n",
            r"ModuleNotFoundError: No module named 'not_installed_at_all' .*line 1",
        ),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_module_that_fails_to_import_shows_its_own_error(here: Path, code: str, message: str) -> None:
    (here / "broken.py").write_text(code)
    with pytest.raises(ConfigError, match=f"importing 'broken' failed: {message}"):
        resolve("broken:build")


def test_arguments_are_checked_before_the_call() -> None:
    def function(a, *, width=1):
        raise AssertionError("called")

    check_arguments(function, {"a": 1, "width": 2}, "it")
    with pytest.raises(ConfigError, match=r"it takes no argument 'widht'; nearest: \['width'"):
        check_arguments(function, {"a": 1, "widht": 2}, "it")
    with pytest.raises(ConfigError, match="it needs the argument 'a'"):
        check_arguments(function, {"width": 2}, "it")
    check_arguments(dict, {"anything": 1}, "it")


# -- models --------------------------------------------------------------------------------------------------


def test_a_model_is_built_with_classes_and_arguments(here: Path, untouched_rng) -> None:
    model = open_model("mine:build", classes=5, arguments={"width": 6})
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 5) and model[1].out_features == 6
    again = open_model("mine:build", classes=5, arguments={"width": 6})
    other = open_model("mine:build", classes=5, arguments={"width": 6}, seed=1)
    assert torch.equal(model[1].weight, again[1].weight)
    assert not torch.equal(model[1].weight, other[1].weight), "a replicate must start from other weights"


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("mine:build", {"widht": 3}, r"the model mine:build takes no argument 'widht'; nearest: \['width'"),
        (
            "mine:fails",
            {"depth": 9},
            r"building mine:fails with \{'depth': 9\} failed: RuntimeError: no depth 9",
        ),
        ("mine:not_a_model", {}, "must give an nn.Module, came int"),
        ("mine:net", {"width": 1}, "is a model already and takes no arguments"),
    ],
)
def test_models_that_cannot_be_built_are_explained(here: Path, spec: str, arguments, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_model(spec, arguments=arguments)


def test_a_missing_library_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ConfigError, match=rf'needs {library}, .*pip install "pellucid\[vision\]"'):
            open_model(f"{library}:resnet18")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_library_models_are_built_untrained_and_never_downloaded() -> None:
    pytest.importorskip("timm")
    model = open_model("timm:resnet10t", classes=7, arguments={"in_chans": 1})
    assert model.eval()(torch.rand(1, 1, 32, 32)).shape == (1, 7)
    with pytest.raises(ConfigError, match=r"timm has no model 'resnet10tt'; nearest: \[.*'resnet10t'"):
        open_model("timm:resnet10tt")
    with pytest.raises(ConfigError, match="built untrained, without 'pretrained'"):
        open_model("timm:resnet10t", arguments={"pretrained": True})
    with pytest.raises(ConfigError, match=r"failed: TypeError.*'bogus'"):
        open_model("timm:resnet10t", arguments={"bogus": 1})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchvision_models_too() -> None:
    pytest.importorskip("torchvision")
    assert open_model("torchvision:squeezenet1_1", classes=3).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(
        ConfigError, match=r"torchvision has no model 'sqeezenet1_1'; nearest: .*squeezenet1_1"
    ):
        open_model("torchvision:sqeezenet1_1")


# -- recipes -------------------------------------------------------------------------------------------------


def test_a_recipe_is_resolved_with_every_default() -> None:
    whole = recipe().model_dump()
    assert whole["train"] == {
        "epochs": 2, "batch_size": 100, "seed": 0, "device": "cpu", "precision": "no", "accumulate": 1, "clip": None,
        "every": 60.0,
    }  # fmt: skip
    assert whole["optimizer"] == {"name": "SGD", "lr": 0.1, "momentum": 0.9}
    assert [term["use"] for term in whole["terms"]] == ["CrossEntropy"]
    assert Recipe.model_validate(whole) == recipe()
    json.dumps(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs = 2": "epocs = 2"}, r"r.toml: \[train\] the key 'epochs' is missing|unknown key 'epocs'; nearest: \['epochs'"),
        ({"[train]": "[trian]"}, r"unknown section 'trian'; nearest: \['train'"),
        ({"epochs = 2": 'epochs = "two"'}, r"\[train\] epochs: expected a valid integer, came 'two'"),
        ({"epochs = 2": "epochs = 0"}, r"\[train\] epochs: expected greater than or equal to 1, came 0"),
        ({"epochs = 2": "epochs = 2.0"}, r"\[train\] epochs: expected a valid integer, came 2.0"),
        ({'spec = "digits"': "spec = 7"}, r"\[data\] spec: expected a valid string, came 7"),
        ({'spec = "digits"': 'spec = "digits"\nfit = "crob"'}, r"\[data\] fit: expected 'crop' or 'stretch', came 'crob'"),
        ({"epochs = 2": "epochs = = 2"}, r"r.toml is no TOML: .*line"),
    ],
)  # fmt: skip
def test_faults_are_told_with_their_place_and_the_nearest_key(changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)


def test_faults_in_terms_are_told_with_their_number() -> None:
    with pytest.raises(ConfigError, match=r"\[terms number 2\] unknown key 'wieght'; nearest: \['weight'"):
        recipe('[[terms]]\nuse = "CrossEntropy"\n[[terms]]\nuse = "CrossEntropy"\nname = "b"\nwieght = 1')
    with pytest.raises(
        ConfigError, match=r"\[terms number 1\] weight: expected a valid number or a valid string, came \[1\]"
    ) as caught:
        recipe('[[terms]]\nuse = "CrossEntropy"\nweight = [1]')
    assert "came [1]" in str(caught.value) and len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="two terms have one name"):
        recipe('[[terms]]\nuse = "CrossEntropy"\n[[terms]]\nuse = "CrossEntropy"')


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe('seeed = 1\nprecision = "bf32"')
    assert "seeed" in str(caught.value) and "bf32" in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*none.toml"):
        load_recipe(tmp_path / "none.toml")


# -- what a recipe builds ------------------------------------------------------------------------------------


def test_a_recipe_builds_what_it_says(here: Path) -> None:
    training = build(
        recipe(
            """
            [schedule]
            name = "OneCycleLR"
            by = "step"
            max_lr = 0.2
            [normalize]
            mean = [0.3]
            std = [0.4]
            [[terms]]
            use = "CrossEntropy"
            arguments = { label_smoothing = 0.1 }
            [[terms]]
            use = "mine:Quiet"
            weight = "mine:weight"
            layers = ["relu*"]
            arguments = { power = 2.0 }
            [prepare]
            use = "mine:prepare"
            arguments = { factor = 0.5 }
            """,
            **{'spec = "digits"': 'spec = "digits"\nvalidation = 0.1\nlength = 200\nchange = "mine:flip"'},
        )
    )
    assert (len(training.source), len(training.validation), len(training.test)) == (180, 20, 600)
    assert not set(training.source.names) & set(training.validation.names)
    assert training.schedule.total_steps == 2 * 2
    assert type(training.optimizer) is torch.optim.SGD and training.optimizer.defaults["momentum"] == 0.9
    assert training.terms["crossentropy"] == CrossEntropy(label_smoothing=0.1)
    assert training.terms["quiet"].taps == {"relu1": Tap("relu1"), "relu2": Tap("relu2")}
    assert training.weights["crossentropy"] == 1.0 and training.weights["quiet"](3) == pytest.approx(0.3)
    batch = next(training.source.batches(1))
    assert torch.equal(training.prepare(training.model, batch, None).inputs, batch.inputs * 0.5)
    images = torch.rand(2, 1, 8, 8)
    bare = open_model("pellucid.zoo:conv_net", arguments={"widths": [4, 8], "pool_after": [1]}).eval()
    assert torch.allclose(training.model.eval()(images), bare((images - 0.3) / 0.4))


def test_the_length_of_a_schedule_is_that_of_the_training() -> None:
    assert build(recipe('[schedule]\nname = "CosineAnnealingLR"')).schedule.T_max == 2
    assert build(recipe('[schedule]\nname = "CosineAnnealingLR"\nT_max = 5')).schedule.T_max == 5


@pytest.mark.parametrize(
    ("text", "changes", "error", "message"),
    [
        ("", {'name = "SGD"': 'name = "SGDD"'}, ConfigError, r"\[optimizer\] no Optimizer 'SGDD'.*nearest: \['SGD'"),
        ("", {"momentum = 0.9": "momentun = 0.9"}, ConfigError, r"\[optimizer\] SGD takes no argument 'momentun'; nearest: \['momentum'"),
        ("", {"lr = 0.1": "lr = -1.0"}, ConfigError, r"\[optimizer\] SGD with .*failed: ValueError: Invalid learning rate: -1.0"),
        ('[schedule]\nname = "CosineAnealingLR"', {}, ConfigError, r"\[schedule\] no LRScheduler .*nearest: \['CosineAnnealingLR'"),
        ('[schedule]\nname = "StepLR"', {}, ConfigError, r"\[schedule\] StepLR needs the argument 'step_size'"),
        ('[[terms]]\nuse = "CrossEntropi"', {}, ConfigError, "nearest: .*'CrossEntropy'"),
        ('[[terms]]\nuse = "mine:Quiet"\nlayers = ["rleu*"]', {}, LayerNotFound, "no layer matches 'rleu\\*'"),
        ('[[terms]]\nuse = "mine:not_a_model"', {}, ConfigError, "must give a term .*came int"),
        ("", {"widths = [4, 8]": "wdiths = [4, 8]"}, ConfigError, r"takes no argument 'wdiths'; nearest: \['widths'"),
        ("", {'spec = "digits"': 'spec = "digits"\ntest_split = "train"'}, ConfigError, "the test images are the training images"),
        ("", {'spec = "digits"': 'spec = "digist"'}, ConfigError, "unknown data 'digist'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_section(
    here: Path, text: str, changes, error, message: str
) -> None:
    with pytest.raises(error, match=message):
        build(recipe(text, **changes))


# -- the job -------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "digits.toml"
    path.write_text(RECIPE.format(more=""))
    return path


def test_training_a_recipe_leaves_a_whole_run(file: Path, tmp_path: Path, untouched_rng) -> None:
    page = train_recipe(file, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert page == run.path / "index.html" and page.exists()
    assert run.header["job"] == "train" and run.header["recipe"]["train"]["batch_size"] == 100
    history = run.table("history")
    assert history["epoch"].tolist() == [0, 1] and history["loss"][1] < history["loss"][0]
    facts = run.facts("accuracy")
    assert facts["n"] == 600 and facts["lo"] < facts["accuracy"] < facts["hi"]

    from pellucid.data import open_source
    from pellucid.weights import apply_weights, load_weights

    model = open_model("pellucid.zoo:conv_net", arguments={"widths": [4, 8], "pool_after": [1]}, seed=9)
    apply_weights(model, load_weights(run.path / "weights.safetensors"))
    batch = next(open_source("digits", split="test").batches(600))
    with torch.no_grad():
        right = (model.eval()(batch.inputs).argmax(1) == batch.targets).float().mean()
    assert float(right) == pytest.approx(facts["accuracy"], abs=1e-6)


def test_a_run_goes_on_or_says_that_it_is_complete(file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train_recipe(file, straight)

    from pellucid.train import loop

    whole, calls = loop.Update.__call__, []

    def stops(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 15:  # 12 steps an epoch
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(loop.Update, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(file, stopped)
    train_recipe(file, stopped)
    assert len(calls) == 15 + 12, "the first epoch is not trained again"
    capsys.readouterr()
    train_recipe(file, stopped)
    assert len(calls) == 15 + 12 and "the run is complete" in capsys.readouterr().err
    first, second = (
        np.frombuffer((r / "weights.safetensors").read_bytes(), np.uint8) for r in (straight, stopped)
    )
    assert np.array_equal(first, second)


def test_a_run_of_another_recipe_is_refused(file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(job, "write_page", lambda training, run, crew: run.path / "index.html")
    train_recipe(file, tmp_path / "run")
    text = file.read_text()
    file.write_text(text.replace('device = "cpu"', 'device = "cpu"\nevery = 5.0'))
    train_recipe(file, tmp_path / "run")  # where and how fast is no other recipe
    file.write_text(text.replace("lr = 0.1", "lr = 0.2"))
    with pytest.raises(StaleResultError, match=r"optimizer\.lr was 0\.1, now 0\.2"):
        train_recipe(file, tmp_path / "run")
    Run.create(tmp_path / "other", {"job": "evaluate"})
    with pytest.raises(ConfigError, match="is a run of `pellucid evaluate`, not of `pellucid train`"):
        train_recipe(file, tmp_path / "other")


def test_without_test_data_the_page_shows_the_training(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text().replace('spec = "digits"', 'spec = "digits"\ntest_split = "none"'))
    page = train_recipe(file, tmp_path / "run")
    assert page.exists() and Run.open(page.parent).table("history")["epoch"].tolist() == [0, 1]
    assert not (tmp_path / "run" / "facts" / "accuracy.json").exists()


def test_faults_show_before_anything_is_written(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text() + '[inspect]\nlayers = ["rleu*"]\n')
    with pytest.raises(LayerNotFound, match="rleu"):
        train_recipe(file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_train_a_recipe_into_one_run(file: Path, tmp_path: Path) -> None:
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, torch\nfrom pathlib import Path\nfrom pellucid.jobs.train import train_recipe\n"
        "train_recipe(Path(sys.argv[1]), Path(sys.argv[2]))\ntorch.distributed.destroy_process_group()\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(file), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    train_recipe(file, tmp_path / "one")
    one, two = (Run.open(tmp_path / name) for name in ("one", "two"))
    # Batch norm sees half a batch in each process, so the two trainings are alike and not equal.
    assert two.table("history")["loss"] == pytest.approx(one.table("history")["loss"], rel=0.1)
    assert two.facts("accuracy")["n"] == 600 and (two.path / "index.html").exists()
