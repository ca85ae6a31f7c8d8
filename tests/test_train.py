"""`fit`: the loop against one written by hand, reproducibility, resumption, processes, and what it refuses."""

import dataclasses as dc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from pellucid import zoo
from pellucid._checks import ConfigError, DataError, LayerNotFound, NumericError, StaleResultError
from pellucid.data import Batch, Source, array_source
from pellucid.rng import rng
from pellucid.taps import Tap, keep
from pellucid.train import CrossEntropy, History, Step, Term, fit, logits_of, seeded
from pellucid.train.processes import Plan, Processes

TASK = {"task": CrossEntropy()}


def blobs(n: int = 50, *, seed: int = 0, labelled: bool = True) -> Source:
    """Images of 1 x 4 x 4 whose brightest quarter is their class."""
    generator = rng(seed, "blobs")
    targets = torch.randint(4, (n,), generator=generator)
    images = 0.3 * torch.rand(n, 1, 4, 4, generator=generator)
    for image, target in zip(images, targets.tolist(), strict=True):
        row, column = divmod(target, 2)
        image[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 0.6
    return array_source(images, targets if labelled else None, name="blobs")


def small(*, dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    with seeded(seed):
        return zoo.mlp(image_size=4, classes=4, hidden=(8,), dropout=dropout)


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


def train(model: nn.Module, source: Source, **options) -> History:
    optimizer = options.pop("optimizer", None) or SGD(model.parameters(), lr=0.1, momentum=0.9)
    options = {"terms": TASK, "epochs": 2, "batch_size": 16, "device": "cpu", **options}
    return fit(model, source, optimizer, **options)


@dc.dataclass(frozen=True)
class MeanActivation:
    """A term that looks inside: the mean activation of one layer."""

    layer: str = "relu1"

    @property
    def taps(self) -> dict[str, Tap]:
        return {"here": Tap(self.layer)}

    def __call__(self, step: Step, seen) -> Tensor:
        return seen["here"].mean()


# -- the loop ------------------------------------------------------------------------------------------------


def test_the_loop_is_the_one_you_would_write() -> None:
    source, model, twin = blobs(), small(), small()
    history = train(model, source, epochs=3, seed=7)
    optimizer = SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        losses, correct = 0.0, 0
        for batch in source.batches(16, shuffle=True, seed=7, epoch=epoch):
            optimizer.zero_grad()
            logits = twin(batch.inputs)
            loss = -logits.log_softmax(1)[torch.arange(len(logits)), batch.targets].mean()
            loss.backward()
            optimizer.step()
            losses += len(logits) * float(loss.detach())
            correct += int((logits.argmax(1) == batch.targets).sum())
        assert history["loss"][epoch] == pytest.approx(losses / 50, rel=1e-6)
        assert history["accuracy"][epoch] == pytest.approx(correct / 50)
    torch.testing.assert_close(weights_of(model), weights_of(twin), rtol=1e-5, atol=1e-7)


def test_it_learns() -> None:
    history = train(small(), blobs(200), epochs=12, validation=blobs(100, seed=1))
    assert history.last["validation_accuracy"] > 0.95
    assert history["loss"][-1] < history["loss"][0] / 2


def test_history_is_a_table_of_epochs() -> None:
    model = small()
    optimizer = SGD(model.parameters(), lr=0.1)
    history = train(
        model,
        blobs(),
        optimizer=optimizer,
        epochs=4,
        schedule=CosineAnnealingLR(optimizer, 4),
        validation=blobs(8),
    )
    assert list(history.columns) == [
        "epoch", "loss", "task", "accuracy", "validation_loss", "validation_accuracy", "lr", "seconds",
    ]  # fmt: skip
    assert len(history) == 4 and history["epoch"].tolist() == [0, 1, 2, 3]
    assert history["lr"] == pytest.approx([0.05 * (1 + np.cos(np.pi * e / 4)) for e in range(4)])
    with pytest.raises(ConfigError, match="nearest: \\['loss'"):
        history["lss"]
    with pytest.raises(dc.FrozenInstanceError):
        history.columns = {}


def test_validation_is_measured_in_eval_mode() -> None:
    model, held_out = small(dropout=0.5), blobs(30, seed=2)
    history = train(model, blobs(), validation=held_out)
    model.eval()
    with torch.no_grad():
        batch = next(held_out.batches(30))
        logits = model(batch.inputs)
    assert history.last["validation_loss"] == pytest.approx(
        float(F.cross_entropy(logits, batch.targets)), rel=1e-6
    )
    assert history.last["validation_accuracy"] == pytest.approx(
        float((logits.argmax(1) == batch.targets).float().mean())
    )


def test_terms_are_weighted_and_see_what_they_tapped() -> None:
    source, model, twin = blobs(16), small(), small()
    weights = {"quiet": lambda epoch: 0.5 * epoch}
    history = train(model, source, terms={**TASK, "quiet": MeanActivation()}, weights=weights, epochs=3)
    optimizer = SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        batch = next(source.batches(16, shuffle=True, epoch=epoch))
        hidden = twin.relu1(twin.linear1(batch.inputs.flatten(1)))
        task, quiet = F.cross_entropy(twin.linear(hidden), batch.targets), hidden.mean()
        assert history["task"][epoch] == pytest.approx(float(task.detach()), rel=1e-5)
        assert history["quiet"][epoch] == pytest.approx(float(quiet.detach()), rel=1e-5)
        assert history["loss"][epoch] == pytest.approx(float((task + 0.5 * epoch * quiet).detach()), rel=1e-5)
        optimizer.zero_grad()
        (task + 0.5 * epoch * quiet).backward()
        optimizer.step()
    torch.testing.assert_close(weights_of(model), weights_of(twin), rtol=1e-5, atol=1e-7)


def test_a_tap_that_several_terms_share_is_read_once() -> None:
    reads = []

    def reduce(activation: Tensor) -> Tensor:
        reads.append(1)
        return activation.mean(1, keepdim=True)

    @dc.dataclass(frozen=True)
    class Same:
        key: str
        taps = property(lambda self: {self.key: Tap("relu1", reduce)})

        def __call__(self, step, seen) -> Tensor:
            assert list(seen) == [self.key]
            return seen[self.key].mean()

    train(small(), blobs(16), terms={**TASK, "a": Same("x"), "b": Same("y")}, epochs=1)
    assert len(reads) == 1


def test_a_term_may_run_the_model_again() -> None:
    class Again:
        taps = property(lambda self: {"first": Tap("relu1", keep)})

        def __call__(self, step: Step, seen) -> Tensor:
            before = seen["first"].clone()
            step.model(step.batch.inputs * 0)
            assert torch.equal(before, seen["first"])
            return seen["first"].mean()

    train(small(), blobs(16), terms={**TASK, "again": Again()}, epochs=1)


def test_terms_work_in_your_own_loop() -> None:
    from pellucid.taps import watch

    model, batch, term = small(), next(blobs().batches(8)), MeanActivation()
    with watch(model, term.taps, grad=True) as seen:
        output = model(batch.inputs)
        step = Step(model, batch, output, epoch=0, iteration=0, rng=rng(0))
        loss = CrossEntropy()(step, {}) + 0.1 * term(step, seen)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_cross_entropy_smooths_labels() -> None:
    logits, targets = torch.randn(5, 4, dtype=torch.float64, generator=rng(0)), torch.tensor([0, 1, 2, 3, 3])
    batch = Batch(torch.zeros(5, 1), targets, torch.arange(5))
    found = CrossEntropy(label_smoothing=0.2)(Step(nn.Identity(), batch, logits, 0, 0, rng(0)), {})
    by_hand = 0.0
    for row, target in zip(logits, targets.tolist(), strict=True):
        log_sum = float(row.exp().sum().log())
        by_hand += sum((0.05 + 0.8 * (k == target)) * (log_sum - float(row[k])) for k in range(4)) / 5
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(by_hand, rel=1e-12)


def test_logits_are_found_in_tuples_and_mappings() -> None:
    logits = torch.zeros(2, 3)
    assert logits_of(logits) is logits_of((logits, "aux")) is logits_of({"logits": logits}) is logits
    with pytest.raises(ConfigError, match=r"came a tensor of shape \(2, 3, 1\)"):
        logits_of(logits[..., None])
    with pytest.raises(ConfigError, match="came dict"):
        logits_of({"features": logits})


# -- arguments that change the loop --------------------------------------------------------------------------


def test_prepare_gives_the_model_another_batch() -> None:
    given, draws = [], []

    def prepare(model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        draws.append(torch.rand(1, generator=generator).item())
        return dc.replace(batch, inputs=batch.inputs * 0)

    train(small(), blobs(32), prepare=prepare, on_step=lambda step, _: given.append(step.batch.inputs))
    assert all(not inputs.any() for inputs in given)
    again, draws = draws, []
    train(small(seed=1), blobs(32), prepare=prepare)
    assert draws == again and len(set(draws)) == 4


def test_two_views_of_a_batch_leave_the_step_size_alone() -> None:
    def double(model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        both = {name: torch.cat([getattr(batch, name)] * 2) for name in ("inputs", "targets", "index")}
        return dc.replace(batch, **both)

    once, twice = small(), small()
    train(once, blobs(30))
    train(twice, blobs(30), prepare=double)
    torch.testing.assert_close(weights_of(once), weights_of(twice), rtol=1e-5, atol=1e-6)


def test_on_step_sees_every_step_and_progress_ends_at_the_total() -> None:
    steps, losses, shown = [], [], []
    train(
        small(),
        blobs(),
        on_step=lambda step, means: (steps.append((step.epoch, step.iteration)), losses.append(means)),
        progress=lambda done, total: shown.append((done, total)),
    )
    assert steps == [(epoch, 4 * epoch + i) for epoch in range(2) for i in range(4)]
    assert shown == [(i + 1, 8) for i in range(8)]
    assert set(losses[0]) == {"loss", "task", "accuracy"}


def test_a_schedule_by_step_reaches_its_end_in_steps() -> None:
    model = small()
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = OneCycleLR(optimizer, max_lr=1.0, total_steps=8)
    train(model, blobs(), optimizer=optimizer, schedule=schedule, schedule_by="step")
    assert schedule.last_epoch == 8


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(accumulate: int) -> None:
    whole, parts = small(), small()
    first = train(whole, blobs(50), epochs=3)
    second = train(parts, blobs(50), epochs=3, accumulate=accumulate)
    torch.testing.assert_close(weights_of(whole), weights_of(parts), rtol=1e-4, atol=1e-6)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    assert first["accuracy"] == pytest.approx(second["accuracy"])


def test_the_gradient_norm_is_clipped() -> None:
    moved = []
    model = small()
    before = weights_of(model)
    train(
        model, blobs(16), optimizer=SGD(model.parameters(), lr=1.0), clip=0.01, epochs=1,
        on_step=lambda *_: moved.append(float((weights_of(model) - before).norm())),
    )  # fmt: skip
    assert moved[0] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_learns_much_the_same(precision: str) -> None:
    plain, reduced = small(), small()
    first = train(plain, blobs(32), epochs=3)
    dtypes = set()
    second = train(
        reduced,
        blobs(32),
        epochs=3,
        precision=precision,
        on_step=lambda step, _: dtypes.add(step.output.dtype),
    )
    assert dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert second["loss"] == pytest.approx(first["loss"], rel=0.05)
    assert all(p.dtype == torch.float32 for p in reduced.parameters())


# -- what is left as it was ----------------------------------------------------------------------------------


def test_dropout_is_reproducible_whatever_the_global_generator() -> None:
    runs = []
    for state in (1, 2):
        with seeded(state):
            before = torch.get_rng_state()
            model = small(dropout=0.5)
            train(model, blobs(), seed=3)
            assert torch.equal(before, torch.get_rng_state())
        runs.append(weights_of(model))
    assert torch.equal(*runs)
    other = small(dropout=0.5)
    train(other, blobs(), seed=4)
    assert not torch.equal(runs[0], weights_of(other))


def test_modes_hooks_and_generator_come_back_after_an_error() -> None:
    model = small(dropout=0.5).eval()
    model.relu1.train()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()

    def stop(step: Step, losses) -> None:
        assert step.model.training
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, blobs(), terms={**TASK, "quiet": MeanActivation()}, on_step=stop)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_seeded_depends_on_its_key_alone(untouched_rng) -> None:
    with seeded(1, "a"):
        first = torch.rand(3)
    with seeded(1, "b"):
        other = torch.rand(3)
    with seeded(1, "a"):
        assert torch.equal(first, torch.rand(3))
    assert not torch.equal(first, other)


class Ruler(nn.Module):
    """A network beside the model, trained to say how large the model's activations are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 1), nn.BatchNorm1d(1))

    @property
    def taps(self) -> dict[str, Tap]:
        return {"here": Tap("relu1")}

    def forward(self, step: Step, seen) -> Tensor:
        return (self.net(seen["here"]) - seen["here"].mean(1, keepdim=True)).square().mean()


def test_a_frozen_model_is_only_looked_at() -> None:
    with seeded(0):
        model, ruler = zoo.conv_net(classes=4, widths=(8, 8, 8)), Ruler()
    model.requires_grad_(False)
    before, own = weights_of(model), weights_of(ruler)
    train(model, blobs(), terms={"ruler": ruler}, optimizer=SGD(ruler.parameters(), lr=0.1))
    assert torch.equal(before, weights_of(model)), "batch norm must not move either"
    assert not torch.equal(own, weights_of(ruler))


# -- checkpoints ---------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def checkpointed(folder: Path, *, stop_at: int | None = None, **options) -> tuple[Tensor, History | None]:
    """A training with everything that has a state; killed before iteration `stop_at` ends."""
    with seeded(0):
        model, ruler = zoo.mlp(image_size=4, classes=4, hidden=(8,), dropout=0.3), Ruler()
    optimizer = AdamW([*model.parameters(), *ruler.parameters()], lr=0.01)

    def kill(step: Step, losses) -> None:
        if step.iteration == stop_at:
            raise Killed

    options = {"weights": {"ruler": 0.5}, "epochs": 3, "batch_size": 16, "seed": 5, "every": 0.0, **options}
    try:
        history = fit(
            model,
            blobs(),
            optimizer,
            {**TASK, "ruler": ruler},
            schedule=OneCycleLR(optimizer, 0.02, total_steps=12),
            schedule_by="step",
            validation=blobs(12, seed=3),
            checkpoint=folder,
            on_step=kill,
            device="cpu",
            **options,
        )
    except Killed:
        history = None
    return torch.cat([weights_of(model), weights_of(ruler)]), history


@pytest.mark.parametrize(("stop_at", "every"), [(1, 1e9), (3, 0.0), (4, 0.0), (10, 0.0), (10, 1e9)])
def test_a_killed_training_goes_on_to_bitwise_the_same_end(
    tmp_path: Path, stop_at: int, every: float
) -> None:
    expected, straight = checkpointed(tmp_path / "straight")
    checkpointed(tmp_path / "killed", stop_at=stop_at, every=every)
    weights, history = checkpointed(tmp_path / "killed", every=every)
    assert torch.equal(weights, expected)
    for column in straight.columns:
        if column != "seconds":
            assert np.array_equal(history[column], straight[column]), column


def test_a_finished_training_returns_at_once(tmp_path: Path) -> None:
    expected, first = checkpointed(tmp_path)
    weights, again = checkpointed(tmp_path, stop_at=0)  # would be killed if it made one step
    assert torch.equal(weights, expected)
    assert np.array_equal(first["loss"], again["loss"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e00003-s00000000"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 6}, "seed was 5, now 6"),
        ({"batch_size": 8}, "batch_size was 16, now 8"),
        ({"epochs": 4}, "epochs was 3, now 4"),
        ({"weights": {"ruler": 0.25}}, "weights was"),
        ({"clip": 1.0}, "clip was None, now 1.0"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, change, words: str) -> None:
    checkpointed(tmp_path, stop_at=5)
    with pytest.raises(StaleResultError, match=words):
        checkpointed(tmp_path, **change)


def test_other_data_or_another_model_is_another_training(tmp_path: Path) -> None:
    train(small(), blobs(), checkpoint=tmp_path)
    with pytest.raises(StaleResultError, match="data was"):
        train(small(), blobs(seed=1), checkpoint=tmp_path)
    other = zoo.mlp(image_size=4, classes=4, hidden=(9,))
    with pytest.raises(StaleResultError, match="model was"):
        train(other, blobs(), checkpoint=tmp_path)
    model = small()
    with pytest.raises(StaleResultError, match="optimizer was"):
        train(model, blobs(), optimizer=SGD(model.parameters(), lr=0.2, momentum=0.9), checkpoint=tmp_path)


def test_a_half_written_checkpoint_is_not_one(tmp_path: Path) -> None:
    expected, _ = checkpointed(tmp_path / "straight")
    checkpointed(tmp_path / "killed", stop_at=5)
    broken = tmp_path / "killed" / ".new-e00001-s00000003"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"cut sho")
    weights, _ = checkpointed(tmp_path / "killed")
    assert torch.equal(weights, expected) and not broken.exists()


def test_the_checkpoint_is_safetensors_and_json(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = small()
    train(model, blobs(), checkpoint=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "place.json", "rest.pt"]
    kept = load_file(folder / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    place = json.loads((folder / "place.json").read_text())
    assert place["version"] == 1 and place["place"]["epoch"] == 2
    torch.load(folder / "rest.pt", weights_only=True)


def test_a_folder_that_cannot_be_written_is_named_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="file"):
        train(
            small(),
            blobs(),
            checkpoint=tmp_path / "file" / "inside",
            on_step=lambda *_: pytest.fail("too late"),
        )


KILL_SCRIPT = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
from test_train import checkpointed
from pellucid.train import loop

def kill(step, losses, at=int(sys.argv[2])):
    if step.iteration == at:
        os.kill(os.getpid(), signal.SIGKILL)

fit = loop.fit
import test_train
test_train.fit = lambda *a, **k: fit(*a, **{{**k, "on_step": kill}})
weights, history = checkpointed(sys.argv[1])
torch.save(weights, sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_kill_9_in_mid_epoch_and_resume(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(KILL_SCRIPT.format(tests=str(Path(__file__).parent)))

    def run(at: int) -> int:
        command = [sys.executable, script, tmp_path / "kept", str(at), tmp_path / "weights.pt"]
        return subprocess.run(
            [str(c) for c in command], env={**os.environ, "OMP_NUM_THREADS": "1"}
        ).returncode

    assert run(6) == -9 and run(-1) == 0
    expected, _ = checkpointed(tmp_path / "straight")
    assert torch.equal(torch.load(tmp_path / "weights.pt", weights_only=True), expected)


# -- several processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("n", [48, 51, 53])
def test_the_parts_of_all_processes_are_the_batches_of_one(world: int, accumulate: int, n: int) -> None:
    source = blobs(n)
    plans = [Plan(n, 12, accumulate, rank, world) for rank in range(world)]
    shares = [list(plan.steps(source, seed=1, epoch=2, start=1)) for plan in plans]
    whole = list(source.batches(12, shuffle=True, seed=1, epoch=2, start=1))
    assert len(whole) == plans[0].count - 1
    for number, batch in enumerate(whole):
        mine = [share[number] for share in shares]
        assert {step for step, _ in mine} == {number + 1}
        assert len({len(parts) for _, parts in mine}) == 1, "every process must make as many passes"
        rows = torch.cat([part.index for _, parts in mine for part in parts])
        assert sorted(rows.tolist()) == sorted(batch.index.tolist())
        assert plans[0].rows(number + 1) == len(batch.index)


def test_a_place_behind_the_last_batch_has_nothing_left() -> None:
    assert list(Plan(50, 16, 1, 0, 1).steps(blobs(), seed=0, epoch=0, start=4)) == []


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((50, 10, 4, 0, 1), "multiple of 1 processes x accumulate 4"),
        ((49, 12, 1, 0, 3), "1 rows for 3 processes"),
    ],
)
def test_batches_that_cannot_be_shared_out_are_refused(plan, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan(*plan)


def everything_shared(rank: int, folder: Path, *, accumulate: int) -> dict[str, Tensor]:
    """Weights and history of a training with a term of every kind; other first weights in every process."""
    model = small(seed=rank)
    with seeded(0):
        ruler = Ruler()
        ruler.net = nn.Linear(8, 1)
    optimizer = SGD([*model.parameters(), *ruler.parameters()], lr=0.1, momentum=0.9)
    history = fit(
        model,
        blobs(50),
        optimizer,
        {**TASK, "quiet": MeanActivation(), "ruler": ruler},
        weights={"quiet": 0.3},
        epochs=3,
        batch_size=16,
        seed=2,
        validation=blobs(31, seed=1),
        device="cpu",
        accumulate=accumulate,
        clip=5.0,
        checkpoint=folder / "kept",
    )
    columns = {name: torch.tensor(values) for name, values in history.columns.items() if name != "seconds"}
    return {"weights": torch.cat([weights_of(model), weights_of(ruler)]), **columns}


TWO_SCRIPT = """
import os, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_train import everything_shared

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
torch.save(everything_shared(rank, folder, accumulate=2), folder / f"{{rank}}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_SCRIPT.format(tests=str(Path(__file__).parent)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = everything_shared(0, tmp_path / "one", accumulate=1)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), f"{key} differs between the processes"
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-6)


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ConfigError, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, ConfigError, "batch_size 0"),
        ({"terms": {}}, ConfigError, "at least one term"),
        ({"terms": {"loss": CrossEntropy()}}, ConfigError, "cannot be called 'loss'"),
        ({"weights": {"tsk": 1.0}}, ConfigError, r"'tsk', which is no term; nearest: \['task'\]"),
        ({"weights": {"task": lambda epoch: float("nan")}}, ConfigError, "'task' is nan at epoch 0"),
        ({"clip": 0.0}, ConfigError, "clip must be"),
        ({"every": -1.0}, ConfigError, "every must be"),
        ({"device": "cuda:99"}, ConfigError, "no such device 'cuda:99'"),
        ({"device": "warp"}, ConfigError, "no such device 'warp'"),
        ({"terms": {"quiet": MeanActivation("rleu1")}}, LayerNotFound, "nearest: .*'relu1'"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_step(options, error, message: str) -> None:
    model = small()
    before = weights_of(model)
    with pytest.raises(error, match=message):
        train(model, blobs(), **options)
    assert torch.equal(before, weights_of(model))


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(DataError, match="'blobs' is empty"):
        train(small(), blobs().take([]))


def test_an_optimizer_of_another_model_is_refused() -> None:
    model = small()
    with pytest.raises(ConfigError, match="none of the model's parameters"):
        train(model, blobs(), optimizer=SGD(small().parameters(), lr=0.1))


def test_optimizers_and_schedules_that_fit_cannot_step_are_refused() -> None:
    model = small()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="LBFGS"):
        train(model, blobs(), optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ConfigError, match="ReduceLROnPlateau"):
        train(model, blobs(), optimizer=optimizer, schedule=ReduceLROnPlateau(optimizer))
    with pytest.raises(ConfigError, match="another optimizer"):
        train(model, blobs(), schedule=CosineAnnealingLR(optimizer, 2))


def test_a_batch_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="needs labels"):
        train(small(), blobs(labelled=False))
    with pytest.raises(DataError, match="no labels to compare"):
        train(small(), blobs(), validation=blobs(labelled=False))


def test_an_unlabelled_source_trains_with_terms_that_need_no_labels() -> None:
    history = train(small(), blobs(labelled=False), terms={"quiet": MeanActivation()})
    assert np.isnan(history["accuracy"]).all() and history["quiet"][1] < history["quiet"][0]


def test_more_classes_than_logits_are_refused() -> None:
    with pytest.raises(DataError, match="labels from 0 to 3, but the model gives 3 logits"):
        train(zoo.mlp(image_size=4, classes=3), blobs())


def test_a_loss_that_is_no_number_is_named_before_it_reaches_a_weight() -> None:
    class Bad:
        taps = property(lambda self: {})

        def __call__(self, step: Step, seen) -> Tensor:
            return logits_of(step.output).sum() * (float("nan") if step.iteration == 5 else 1e-3)

    model, kept = small(), []
    with pytest.raises(NumericError, match="the term 'bad' is nan at epoch 1, iteration 5"):
        train(model, blobs(), terms={**TASK, "bad": Bad()}, on_step=lambda *_: kept.append(weights_of(model)))
    assert torch.equal(weights_of(model), kept[-1]) and len(kept) == 5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda step: logits_of(step.output), r"scalar tensor, came a tensor of shape \(16, 4\)"),
        (lambda step: 1.0, "came float"),
        (lambda step: torch.tensor(1.0), "no term depends on a parameter"),
    ],
)
def test_a_term_that_is_no_loss_is_refused(value, message: str) -> None:
    class Odd:
        taps = property(lambda self: {})

        def __call__(self, step: Step, seen):
            return value(step)

    assert isinstance(Odd(), Term)
    with pytest.raises(ConfigError, match=message):
        train(small(), blobs(), terms={"odd": Odd()})


def test_unreadable_images_are_left_out_of_the_mean() -> None:
    """A source may skip what it cannot read; the gradient is then the mean over what is left."""
    source = blobs(16)

    class Torn:
        """The examples of `source` without number 3, though it is counted."""

        def __len__(self) -> int:
            return 16

        def gather(self, index, *, seed, epoch):
            from pellucid.data.examples import Gathered, gather

            kept = (index != 3).nonzero().flatten()
            found = gather(source.examples, index[kept])
            return Gathered(found.inputs, found.targets, kept)

    torn, rest = small(), small()
    train(torn, dc.replace(source, examples=Torn()), epochs=1, batch_size=16)
    train(rest, source.take([i for i in range(16) if i != 3]), epochs=1, batch_size=15)
    torch.testing.assert_close(weights_of(torn), weights_of(rest), rtol=1e-5, atol=1e-7)


def test_one_process_needs_no_process_group() -> None:
    crew = Processes(0, 1, torch.device("cpu"))
    value = torch.ones(2)
    crew.sum_([value])
    crew.copy_from_first_([value])
    crew.wait()
    assert crew.sum_gradients_([], [1.0]) == [1.0] and torch.equal(value, torch.ones(2))
    assert not torch.distributed.is_initialized()


# -- an accelerator -------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_an_accelerator_trains_and_its_generator_is_untouched(precision: str, tmp_path: Path) -> None:
    kind = torch.accelerator.current_accelerator().type
    module = torch.get_device_module(kind)
    state, found = module.get_rng_state(), []
    for _ in range(2):
        model = small(dropout=0.5)
        history = train(model, blobs(), device=kind, precision=precision, epochs=4)
        assert next(model.parameters()).device.type == kind and history["loss"][-1] < history["loss"][0]
        found.append(weights_of(model).cpu())
        module.manual_seed(torch.seed() % 1000)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    module.set_rng_state(state)
    straight, _ = small(), train(small(), blobs(), device=kind, checkpoint=tmp_path, every=0.0)
    again = train(straight, blobs(), device=kind, checkpoint=tmp_path)
    assert len(again) == 2 and torch.equal(state, module.get_rng_state())


# -- the digits study ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_digits_recipe_reaches_its_accuracy() -> None:
    """selectivity study, acceptance A7 at alpha = 0: 98.3 % on 1,197 test digits after 25 epochs on 600."""
    from pellucid.data import open_source

    source, found = open_source("digits", split="all"), []
    for replicate in range(2):
        order = torch.randperm(1797, generator=rng(replicate, "split"))
        with seeded(replicate):
            model = zoo.conv_net()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        history = fit(
            model,
            source.take(order[:600]),
            optimizer,
            TASK,
            epochs=25,
            batch_size=100,
            seed=replicate,
            schedule=CosineAnnealingLR(optimizer, 25),
            validation=source.take(order[600:]),
            device="cpu",
        )
        found.append(100 * history.last["validation_accuracy"])
    assert np.mean(found) == pytest.approx(98.3, abs=1.0)
