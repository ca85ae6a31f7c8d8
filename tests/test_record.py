"""`record` against loops, in any batching, through stops and kills of the process, and on bad input."""

import dataclasses as dc
import errno
import gc
import math
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError, LayerNotFound, NumericError, StaleResultError
from pellucid.data import ArrayExamples, Batch, Source, array_source
from pellucid.data.examples import Gathered
from pellucid.record import Recording, record
from pellucid.record.places import token_grid
from pellucid.stats import (
    ClassMoments,
    Covariance,
    Moments,
    Quantiles,
    Rates,
    Stat,
    TopExamples,
)
from pellucid.taps import Tap

CLASSES = 3


def network(seed: int = 0) -> nn.Sequential:
    """Two ReLUs, one in place, and logits; odd map sizes so that rows and columns cannot be mixed up."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 3 * 2, CLASSES),
        )


def digits(n: int = 61, seed: int = 0) -> Source:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 1, 9, 8, generator=generator)
    return array_source(
        images, torch.randint(CLASSES, (n,), generator=generator), name="random", classes=tuple("abc")
    )


class Largest:
    """A statistic of one's own: the largest response of each unit, and the samples seen."""

    def __init__(self) -> None:
        self.best: Tensor | None = None
        self.seen: list[int] = []

    def update(self, values: Tensor, batch: Batch) -> None:
        top = values.amax(0)
        self.best = top if self.best is None else torch.maximum(self.best, top)
        self.seen += batch.index.tolist()

    def merge(self, other: "Largest") -> None:
        if other.best is not None:
            self.best = other.best if self.best is None else torch.maximum(self.best, other.best)
        self.seen += other.seen

    def state(self) -> dict[str, Tensor]:
        return {} if self.best is None else {"best": self.best, "seen": torch.tensor(self.seen)}

    def load_state(self, state: Any) -> None:
        self.best, self.seen = state.get("best"), state["seen"].tolist() if state else []

    def result(self) -> tuple[Tensor, list[int]]:
        assert self.best is not None
        return self.best, self.seen


TAPS = {"early": Tap("1"), "late": Tap("4"), "logits": Tap("")}


def every_stat() -> dict[str, dict[str, Stat]]:
    """Groups of different reach: on all taps, on two, on one; alone and shared."""
    return {
        "early": {
            "m": Moments(),
            "c": ClassMoments(CLASSES),
            "t": TopExamples(5),
            "q": Quantiles(),
            "v": Covariance(),
        },
        "late": {
            "c": ClassMoments(CLASSES),
            "m": Moments(),
            "t": TopExamples(5),
            "t3": TopExamples(3),
            "r": Rates(),
        },
        "logits": {"m": Moments(), "own": Largest()},
    }


def on(taps: dict[str, Tap], chosen: dict[str, Stat]) -> dict[str, dict[str, Stat]]:
    """The same statistics, the very objects, on every tap."""
    return {tap: chosen for tap in taps}  # noqa: C420 - sharing is meant


def tensors(recording: Recording) -> dict[str, Tensor]:
    return {
        f"{tap}.{name}.{field}": value
        for tap, results in recording.items()
        for name, result in results.items()
        for field, value in getattr(result, "__dict__", {}).items()
        if isinstance(value, Tensor)
    }


def assert_same(a: Recording, b: Recording, **tolerance: float) -> None:
    mine, other = tensors(a), tensors(b)
    assert mine.keys() == other.keys() and a.n == b.n
    for name, tensor in mine.items():
        if tolerance:
            torch.testing.assert_close(tensor, other[name], **tolerance, equal_nan=True, msg=name)
        else:
            assert torch.equal(tensor.nan_to_num(), other[name].nan_to_num()), name


def maps_of(model: nn.Module, source: Source, layer: int) -> Tensor:
    """The activation of a layer for every sample, one at a time, without hooks."""
    model.eval()
    rows: list[Tensor] = []
    with torch.no_grad():
        for i in range(len(source)):
            x = source[i][0].unsqueeze(0)
            for module in list(model.children())[: layer + 1]:
                x = module(x.clone())
            rows.append(x)
    return torch.cat(rows)


# The slow twin.


def test_record_is_the_loop() -> None:
    model, source = network(), digits()
    got = record(model, source, TAPS, every_stat(), batch_size=16, places=True)
    assert (got.n, got.skipped, got.left_out, got.non_finite) == (61, (), 0, {})
    assert list(got) == list(TAPS) and list(got["late"]) == ["c", "m", "t", "t3", "r"] and len(got) == 3
    targets = source.targets
    assert targets is not None
    for tap, layer in (("early", 1), ("late", 4)):
        maps = maps_of(model, source, layer)
        values = maps.double().mean((2, 3))
        torch.testing.assert_close(got[tap]["m"].mean, values.mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(got[tap]["m"].var, values.var(0), rtol=1e-4, atol=1e-9)
        for c in range(CLASSES):
            torch.testing.assert_close(
                got[tap]["c"].mean[c], values[targets == c].mean(0), rtol=1e-5, atol=1e-7
            )
        top = got[tap]["t"]
        assert top.grid == tuple(maps.shape[2:])
        for unit in range(values.shape[1]):
            order = sorted(range(61), key=lambda i: (-float(values[i, unit]), i))[:5]
            torch.testing.assert_close(top.values[unit], values[order, unit], rtol=1e-5, atol=1e-7)
            for rank in range(5):
                sample, (row, column) = int(top.index[unit, rank]), top.place[unit, rank].tolist()
                assert float(maps[sample, unit, row, column]) == pytest.approx(
                    float(maps[sample, unit].max()), rel=1e-5
                )
    early = maps_of(model, source, 1).mean((2, 3)).double()
    torch.testing.assert_close(got["early"]["v"].cov, early.T.cov(), rtol=1e-4, atol=1e-9)
    best, seen = got["logits"]["own"]
    torch.testing.assert_close(best, maps_of(model, source, 6).amax(0).double(), rtol=1e-5, atol=1e-7)
    assert seen == list(range(61))


def test_sharing_an_update_changes_nothing() -> None:
    model, source = network(), digits()
    together = record(model, source, TAPS, every_stat(), batch_size=16, places=True)
    for tap, chosen in every_stat().items():
        for name, stat in chosen.items():
            alone = record(model, source, {tap: TAPS[tap]}, {tap: {name: stat}}, batch_size=16, places=True)
            mine = {k: v for k, v in tensors(together).items() if k.startswith(f"{tap}.{name}.")}
            assert mine.keys() == tensors(alone).keys()
            for key, tensor in tensors(alone).items():
                torch.testing.assert_close(mine[key], tensor, rtol=1e-12, atol=1e-15, equal_nan=True)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_other_batch_sizes_agree(size: int) -> None:
    chosen = {tap: {"m": Moments(), "c": ClassMoments(CLASSES)} for tap in TAPS} | {
        "early": {"v": Covariance()}
    }
    whole = record(network(), digits(), TAPS, chosen, batch_size=61)
    got = record(network(), digits(), TAPS, chosen, batch_size=size)
    assert_same(whole, got, rtol=1e-5, atol=1e-6)


def test_one_object_may_stand_for_many_taps_and_is_left_alone() -> None:
    top = TopExamples(2)
    got = record(network(), digits(), TAPS, on(TAPS, {"top": top}))
    assert got["early"]["top"].values.shape == (6, 2) and got["late"]["top"].values.shape == (8, 2)
    assert top.state() == {}
    assert got["early"]["top"].place is None


def test_fitters_merge_with_those_of_another_pass() -> None:
    model, source = network(), digits()
    whole = record(model, source, TAPS, every_stat(), batch_size=10)
    chosen = {"late": {"c": ClassMoments(CLASSES)}}
    halves = [source.take(range(30)), source.take(range(30, 61))]
    # Folds follow the index in the source, so the two halves together have other folds than the whole.
    a, b = (record(model, s, {"late": TAPS["late"]}, chosen).fitters["late"]["c"] for s in halves)
    a.merge(b)
    torch.testing.assert_close(a.result().mean, whole["late"]["c"].mean, rtol=1e-6, atol=1e-8)


# Statistics and taps of one's own.


def test_a_statistic_of_ones_own() -> None:
    got = record(network(), digits(), TAPS, on(TAPS, {"own": Largest(), "m": Moments()}), batch_size=8)
    best, seen = got["late"]["own"]
    assert torch.equal(best, got["late"]["m"].max) and seen == list(range(61))


class Above:
    """A statistic of one's own that treats units apart, with a setting that nobody else sees."""

    unit_axes = {"count": 0}  # noqa: RUF012

    def __init__(self, threshold: float | Tensor) -> None:
        self._threshold = threshold
        self._seen: dict[str, Tensor] = {}

    def update(self, values: Tensor, batch: Batch) -> None:
        above = (values > self._threshold).sum(0)
        self._seen = {"count": self._seen["count"] + above if self._seen else above}

    def merge(self, other: "Above") -> None:
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        return self._seen

    def load_state(self, state: Any) -> None:
        self._seen = dict(state)

    def result(self) -> Tensor:
        return self._seen["count"]


def test_only_equal_settings_share_an_update() -> None:
    model, source = network(), digits()
    chosen: dict[str, Stat] = {str(t): Above(t) for t in (0.01, 0.05)} | {"tensor": Above(torch.tensor(0.05))}
    got = record(model, source, {"a": Tap("1"), "b": Tap("4")}, {"a": chosen, "b": chosen}, batch_size=9)
    for tap, layer in (("a", 1), ("b", 4)):
        responses = maps_of(model, source, layer).mean((2, 3))
        for name, threshold in (("0.01", 0.01), ("0.05", 0.05), ("tensor", 0.05)):
            assert got[tap][name].tolist() == (responses > threshold).sum(0).tolist()


def test_a_reduction_of_ones_own() -> None:
    taps = {"max": Tap("4", reduce=lambda maps: maps.amax((2, 3))), "mean": Tap("4")}
    got = record(network(), digits(), taps, on(taps, {"t": TopExamples(1), "m": Moments()}), places=True)
    maps = maps_of(network(), digits(), 4)
    torch.testing.assert_close(got["max"]["m"].mean, maps.amax((2, 3)).double().mean(0), rtol=1e-5, atol=1e-7)
    assert got["max"]["t"].place is None, "a reduction of one's own has no place"
    assert got["mean"]["t"].place is not None


def test_a_reduction_that_keeps_the_map_is_refused() -> None:
    with pytest.raises(DataError, match=r"tap 'a' must give one row .* got \(61, 8, 3, 2\)"):
        record(network(), digits(), {"a": Tap("4", reduce=lambda maps: maps)}, {"a": {"m": Moments()}})


class Tokens(nn.Module):
    """Cuts 8 x 8 images into 2 x 2 patches behind one class token that is always the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
        tokens = torch.cat([torch.full_like(patches[:, :1], 9.0), patches], dim=1)
        return self.act(tokens).mean(1)


def test_places_among_tokens_are_those_of_the_patches() -> None:
    source = array_source(torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), name="patches")
    got = record(Tokens(), source, {"a": Tap("act")}, {"a": {"t": TopExamples(2)}}, places=True)["a"]["t"]
    assert got.grid == (4, 4)
    for unit in range(4):
        sample, (row, column) = int(got.index[unit, 0]), got.place[unit, 0].tolist()
        image = source[sample][0][0]
        own = image[unit // 2 :: 2, unit % 2 :: 2]  # the pixel of every patch that this unit reads
        assert float(own[row, column]) == float(own.max())


def test_token_grids() -> None:
    square = {
        196: (14, 14),
        197: (14, 14),
        198: (14, 14),
        201: (14, 14),
        50: (7, 7),
        257: (16, 16),
        5: (2, 2),
    }
    assert {n: token_grid(n, image=(224, 224)) for n in square} == square
    assert token_grid(140, image=(224, 224)) is None
    assert token_grid(151, image=(160, 240)) == (10, 15)
    assert token_grid(77, image=(0, 0)) is None


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def test_units_on_the_last_axis() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), Last())
    taps = {"first": Tap("0"), "last": Tap("1", unit_axis=-1)}
    got = record(model, digits(), taps, on(taps, {"t": TopExamples(3)}), places=True)
    assert got["last"]["t"].grid == (7, 6)
    assert torch.equal(got["last"]["t"].index, got["first"]["t"].index)
    assert torch.equal(got["last"]["t"].place, got["first"]["t"].place)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.relu(x) - 0.5)


def test_a_layer_that_runs_twice() -> None:
    taps = {"a": Tap("relu#0"), "b": Tap("relu#1")}
    got = record(Twice(), digits(), taps, on(taps, {"m": Moments()}))
    assert float(got["a"]["m"].mean) == pytest.approx(0.5, abs=0.05)
    assert float(got["b"]["m"].mean) == pytest.approx(0.125, abs=0.02)
    with pytest.raises(LayerNotFound, match="runs 2 times"):
        record(Twice(), digits(), {"a": Tap("relu")}, {"a": {"m": Moments()}})


def test_half_precision_models() -> None:
    half = record(
        network().bfloat16(), digits().map(lambda x: x.bfloat16(), "bf16"), TAPS, every_stat(), places=True
    )
    full = record(network(), digits(), TAPS, every_stat(), places=True)
    torch.testing.assert_close(half["late"]["m"].mean, full["late"]["m"].mean, rtol=0.05, atol=0.01)


def test_wrapped_models() -> None:
    plain = record(network(), digits(), TAPS, every_stat())
    assert_same(plain, record(nn.DataParallel(network()), digits(), TAPS, every_stat()))


# What the pass leaves as it was, and what it tells meanwhile.


def test_mode_hooks_gradients_and_rng_are_left(untouched_rng: None) -> None:
    model = network().train()
    model[3].eval()
    before = [m.training for m in model.modules()]
    record(model, digits(), TAPS, every_stat(), places=True)
    with pytest.raises(ZeroDivisionError):
        record(model, digits(), TAPS, every_stat(), also=lambda *_: 1 / 0)  # type: ignore[arg-type]
    assert [m.training for m in model.modules()] == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters()) and torch.is_grad_enabled()


class Noisy(nn.Module):
    """Draws in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + 0.1 * torch.randn_like(x))


def test_a_model_that_draws_leaves_the_generators(untouched_rng: None) -> None:
    taps = {"late": Tap("body.1")}
    record(Noisy(), digits(), taps, on(taps, {"m": Moments()}))
    with pytest.raises(ZeroDivisionError):
        record(Noisy(), digits(), taps, on(taps, {"m": Moments()}), also=lambda *_: 1 / 0)  # type: ignore[arg-type]


def test_progress_and_also() -> None:
    told: list[tuple[int, int]] = []
    outputs: list[tuple[Tensor, Batch]] = []
    record(
        network(),
        digits(),
        TAPS,
        every_stat(),
        batch_size=20,
        progress=lambda done, total: told.append((done, total)),
        also=lambda output, batch: outputs.append((output, batch)),
    )
    assert told == [(20, 61), (40, 61), (60, 61), (61, 61)]
    torch.testing.assert_close(
        torch.cat([o for o, _ in outputs]), maps_of(network(), digits(), 6), rtol=1e-4, atol=1e-6
    )
    assert torch.cat([b.index for _, b in outputs]).tolist() == list(range(61))


def test_memory_does_not_grow_with_the_data() -> None:
    sources = {n: digits(n) for n in (100, 1000)}
    alive: dict[int, int] = {}

    for n, source in sources.items():

        def weigh(output: Any, batch: Batch, n: int = n) -> None:
            if batch.number == n // 50 - 1:
                gc.collect()
                kept = [t for t in gc.get_objects() if issubclass(type(t), Tensor)]
                alive[n] = sum(t.numel() * t.element_size() for t in kept)

        record(network(), source, TAPS, every_stat(), batch_size=50, places=True, also=weigh)
    # Both sources are alive all the time; the order of the samples, 8 bytes each, belongs to the source.
    assert alive[1000] - 8 * 900 <= 1.02 * alive[100], alive


# NaN, infinity, and images that cannot be read.


class Poison(nn.Module):
    """Unit 2 of samples whose first pixel is 1 becomes NaN, or what is asked."""

    def __init__(self, value: float = math.nan) -> None:
        super().__init__()
        self.body = network()
        self.act = nn.Identity()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body[:2](x)
        marked = (x[:, 0, 0, 0] == 1).view(-1, 1, 1, 1) & (torch.arange(6) == 2).view(1, -1, 1, 1)
        return self.act(torch.where(marked, self.value, maps))


def poisoned(*rows: int) -> Source:
    images = digits().examples.inputs.clone()
    images[list(rows), 0, 0, 0] = 1.0
    return array_source(images, digits().examples.targets, name="poisoned", classes=tuple("abc"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_is_named(value: float) -> None:
    taps = {"good": Tap("body.1"), "bad": Tap("act")}
    with pytest.raises(NumericError, match=rf"layer 'act': the response of unit 2 to sample 37 is {value}"):
        record(Poison(value), poisoned(37, 50), taps, on(taps, {"m": Moments()}), batch_size=8)


def test_a_nan_in_the_output_names_the_sample_as_the_source_does() -> None:
    class Output(Poison):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean((2, 3))

    source = dc.replace(poisoned(37), names=[f"image_{i}.png" for i in range(61)])
    said = r"^the model's output: the response of unit 2 to sample 37 \(image_37\.png\) is nan.*--count-non-finite"
    taps = {"out": Tap("")}
    with pytest.raises(NumericError, match=said):
        record(Output(), source, taps, on(taps, {"m": Moments()}))


def test_a_nan_is_counted_and_left_out_everywhere_if_asked() -> None:
    taps = {"good": Tap("body.1"), "bad": Tap("act")}
    chosen = on(taps, {"m": Moments(), "t": TopExamples(4), "c": ClassMoments(CLASSES)})
    got = record(Poison(), poisoned(3, 37, 40), taps, chosen, batch_size=8, places=True, non_finite="count")
    assert (got.n, got.left_out, got.non_finite) == (58, 3, {"bad": 3})
    rest = [i for i in range(61) if i not in (3, 37, 40)]
    clean = record(network(), digits(), {"good": Tap("1")}, {"good": {"t": TopExamples(60)}}, places=True)[
        "good"
    ]["t"]
    for unit in range(6):
        order = [
            (i, p)
            for i, p in zip(clean.index[unit].tolist(), clean.place[unit].tolist(), strict=True)
            if i in rest
        ]
        assert got["good"]["t"].index[unit].tolist() == [i for i, _ in order[:4]]
        assert got["good"]["t"].place[unit].tolist() == [p for _, p in order[:4]]
    assert got["good"]["c"].n == 58 and got["bad"]["m"].count == 58
    with pytest.raises(
        DataError, match=r"no sample of 'poisoned' could be recorded: 0 unreadable, 61 with a NaN"
    ):
        record(Poison(), poisoned(*range(61)), taps, chosen, non_finite="count")


class Holes(ArrayExamples):
    """Samples 5 and 30 cannot be read."""

    skipped: dict[int, tuple[str, str]]

    def gather(self, index: Tensor, *, seed: int, epoch: int) -> Gathered:
        kept = torch.tensor([j for j, i in enumerate(index.tolist()) if i not in (5, 30)], dtype=torch.int64)
        found = super().gather(index[kept], seed=seed, epoch=epoch)
        for i in {5, 30} & set(index.tolist()):
            self.skipped[i] = (f"{i}.png", "truncated")
        return Gathered(found.inputs, found.targets, kept)


def holes() -> Source:
    examples = Holes(digits().examples.inputs, digits().examples.targets)
    object.__setattr__(examples, "skipped", {})
    return Source("holes", examples, tuple("abc"))


def test_unreadable_images_are_listed() -> None:
    got = record(network(), holes(), TAPS, every_stat(), batch_size=8)
    assert got.n == 59 and set(got.skipped) == {("5.png", "truncated"), ("30.png", "truncated")}


# Stop and go on.


class Killed(Exception):
    pass


def stop_after(batches: int) -> Callable[[int, int], None]:
    left = [batches]

    def progress(done: int, total: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    return progress


@pytest.mark.parametrize("make", [digits, holes])
def test_a_stopped_pass_goes_on_to_the_same_bits(make: Callable[[], Source], tmp_path: Path) -> None:
    taps, chosen = TAPS, every_stat()
    chosen["late"]["own"] = Largest()
    where: dict[str, Any] = {
        "batch_size": 4,
        "places": True,
        "checkpoint": tmp_path / "pass.safetensors",
        "every": 0.0,
    }
    whole = record(network(), make(), taps, chosen, batch_size=4, places=True)
    for batches in (3, 5):
        with pytest.raises(Killed):
            record(network(), make(), taps, chosen, progress=stop_after(batches), **where)
    told: list[int] = []
    got = record(network(), make(), taps, chosen, progress=lambda done, _: told.append(done), **where)
    # The batch after which the progress was shown had not been saved yet.
    assert told[0] == 28
    assert_same(whole, got)
    assert got["late"]["own"][1] == whole["late"]["own"][1]
    assert set(got.skipped) == set(whole.skipped)
    told.clear()
    again = record(network(), make(), taps, chosen, progress=lambda done, _: told.append(done), **where)
    assert told == [] and again.n == got.n
    assert_same(got, again)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pass.safetensors"
    where: dict[str, Any] = {"batch_size": 8, "checkpoint": path}
    record(network(), digits(), TAPS, every_stat(), **where)
    other_taps = TAPS | {"late": Tap("3")}
    other_stats = every_stat() | {"logits": {"m": Moments(), "r": Rates((1.0,))}}
    for what, call in {
        "model": lambda: record(network(1), digits(), TAPS, every_stat(), **where),
        "data": lambda: record(network(), digits(seed=1), TAPS, every_stat(), **where),
        "taps": lambda: record(network(), digits(), other_taps, every_stat(), **where),
        "statistics": lambda: record(network(), digits(), TAPS, other_stats, **where),
        "batch size": lambda: record(network(), digits(), TAPS, every_stat(), batch_size=9, checkpoint=path),
        "places": lambda: record(network(), digits(), TAPS, every_stat(), places=True, **where),
    }.items():
        with pytest.raises(StaleResultError, match=f"written with another {what}: delete it"):
            call()
    mine = {"weights": "abc"}
    with pytest.raises(StaleResultError, match="another data, another model, another weights"):
        record(network(), digits(), TAPS, every_stat(), inputs=mine, **where)


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "pass.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="cannot be read"):
        record(network(), digits(), TAPS, every_stat(), checkpoint=path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="no checkpoint of record"):
        record(network(), digits(), TAPS, every_stat(), checkpoint=path)
    path.unlink()
    (tmp_path / "pass-0-of-4.safetensors").touch()
    with pytest.raises(StaleResultError, match="another number of processes than 1"):
        record(network(), digits(), TAPS, every_stat(), checkpoint=path)


@pytest.fixture
def no_room() -> Iterator[None]:
    """Files of this process may not grow beyond 2 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, no_room: None) -> None:
    with pytest.raises(ConfigError, match="no room to write") as caught:
        record(network(), digits(), TAPS, every_stat(), checkpoint=tmp_path / "pass.safetensors", every=0.0)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_also_cannot_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a statistic on Tap\(''\)"):
        record(network(), digits(), TAPS, every_stat(), checkpoint=tmp_path / "x", also=lambda *_: None)


# Bad input.


def test_bad_calls_are_explained() -> None:
    model, source, chosen = network(), digits(), {"late": {"m": Moments()}}
    late = {"late": TAPS["late"]}
    used = Moments()
    used.update(torch.ones(1, 1), Batch(torch.ones(1), None, torch.arange(1)))
    cases: list[tuple[str, type[Exception], Callable[[], Any]]] = [
        ("at least one tap", ConfigError, lambda: record(model, source, {}, {})),
        ("'lat', which is no tap; nearest: .'late'", ConfigError, lambda: record(model, source, late, {"lat": {}})),
        ("tap 'early' has no statistic", ConfigError, lambda: record(model, source, TAPS, chosen)),
        ("no layer 'layer9'", LayerNotFound, lambda: record(model, source, {"late": Tap("layer9")}, chosen)),
        ("has seen samples already", ConfigError, lambda: record(model, source, late, {"late": {"m": used}})),
        ("no such device 'cuda:77'; available: .'cpu'", ConfigError, lambda: record(model, source, late, chosen, device="cuda:77")),
        ("no such device 'gpu'", ConfigError, lambda: record(model, source, late, chosen, device="gpu")),
        ("batch_size must be", ConfigError, lambda: record(model, source, late, chosen, batch_size=0)),
        ("labels", DataError, lambda: record(model, array_source(torch.rand(3, 1, 9, 8)), late, {"late": {"c": ClassMoments(2)}})),
        ("no examples", DataError, lambda: record(model, source.take([]), late, chosen)),
    ]  # fmt: skip
    for message, kind, call in cases:
        with pytest.raises(kind, match=message):
            call()


def test_a_class_in_place_of_an_object_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"such as Moments\(\)"):
        record(network(), digits(), {"a": Tap("1")}, {"a": {"m": Moments}})  # type: ignore[dict-item]


def test_a_model_that_does_not_fit_the_data_is_explained() -> None:
    colour = array_source(torch.rand(4, 3, 9, 8), name="colour")
    with pytest.raises(
        DataError, match=r"Sequential cannot run on source 'colour'.* \(4, 3, 9, 8\).*expected input"
    ):
        record(network(), colour, {"a": Tap("1")}, {"a": {"m": Moments()}})


def test_labels_outside_the_classes_name_the_sample() -> None:
    with pytest.raises(DataError, match=r"sample .* has label 2, outside 0\.\.1"):
        record(network(), digits(), {"a": Tap("1")}, {"a": {"c": ClassMoments(2)}})


class AnySize(Source):
    """Images of another size from the second batch on."""

    def batches(self, size: int, **_: Any) -> Iterator[Batch]:
        for number, side in enumerate((8, 10)):
            yield Batch(torch.rand(2, 1, side, side), None, torch.arange(2) + 2 * number, number=number)


def test_places_need_one_map_size() -> None:
    source = AnySize("sizes", range(4))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    record(model, source, {"a": Tap("1")}, {"a": {"t": TopExamples(1)}})
    with pytest.raises(DataError, match=r"layer '1' was \(6, 6\) and is now \(8, 8\)"):
        record(model, source, {"a": Tap("1")}, {"a": {"t": TopExamples(1)}}, places=True)


@pytest.mark.gpu
def test_an_accelerator_agrees_with_the_cpu() -> None:
    kind = str(torch.accelerator.current_accelerator())
    chosen = {tap: {"m": Moments(), "c": ClassMoments(CLASSES)} for tap in TAPS}
    chosen["early"]["t"] = TopExamples(1)
    there = record(network(), digits(), TAPS, chosen, device=kind, places=True)
    here = record(network(), digits(), TAPS, chosen, places=True)
    torch.testing.assert_close(there["late"]["m"].mean, here["late"]["m"].mean, rtol=1e-3, atol=1e-5)
    assert there["early"]["t"].grid == here["early"]["t"].grid
