"""Streaming statistics against loops in float64, in any order, split and merge, and on bad input."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from pellucid import stats
from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.data import Batch
from pellucid.stats._common import split_units

CLASSES, FOLDS = 3, 4
FITTERS: dict[str, Callable[[], stats.Stat]] = {
    "moments": stats.Moments,
    "class_moments": lambda: stats.ClassMoments(CLASSES, folds=FOLDS),
    "top": lambda: stats.TopExamples(4),
    "rates": lambda: stats.Rates((0.0, 0.5)),
    "quantiles": stats.Quantiles,
    "covariance": stats.Covariance,
}


def batch_of(index: Tensor, targets: Tensor | None) -> Batch:
    return Batch(torch.zeros(len(index), 1), targets, index)


def feed(fitter: stats.Stat, values: Tensor, targets: Tensor | None, index: Tensor, size: int) -> stats.Stat:
    for rows in torch.arange(len(values)).split(size):
        fitter.update(values[rows], batch_of(index[rows], None if targets is None else targets[rows]))
    return fitter


def world(n: int = 60, units: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Responses behind a ReLU (so with exact zeros and a dead unit), labels, indices."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, units, generator=generator).relu()
    values[:, 1] = 0.0
    targets = torch.randint(CLASSES, (n,), generator=generator)
    return values, targets, torch.randperm(1000, generator=generator)[:n]


def tensors_of(result: object) -> dict[str, Tensor]:
    found = {k: v for k, v in vars(result).items() if isinstance(v, Tensor)}
    return found | {k: torch.tensor(v) for k, v in vars(result).items() if isinstance(v, int | float)}


def assert_close(a: object, b: object, *, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    mine, other = tensors_of(a), tensors_of(b)
    assert mine.keys() == other.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=rtol, atol=atol, equal_nan=True, msg=name)


# Slow twins: the formulas again, with loops over Python floats.


def test_moments_are_the_loop() -> None:
    values, targets, index = world()
    got = feed(stats.Moments(), values, targets, index, 7).result()
    assert got.count == 60
    for unit in range(values.shape[1]):
        column = [float(v) for v in values[:, unit]]
        mean = math.fsum(column) / 60
        var = math.fsum((v - mean) ** 2 for v in column) / 59
        assert float(got.mean[unit]) == pytest.approx(mean, rel=1e-12)
        assert float(got.var[unit]) == pytest.approx(var, rel=1e-12)
        assert float(got.std[unit]) == pytest.approx(math.sqrt(var), rel=1e-12)
        assert (float(got.min[unit]), float(got.max[unit])) == (min(column), max(column))
        assert float(got.zero_fraction[unit]) == sum(v == 0 for v in column) / 60


def splitmix(index: int) -> int:
    word = (1 << 64) - 1
    z = (index + 0x9E3779B97F4A7C15) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


def test_fold_is_splitmix64() -> None:
    index = torch.cat([torch.arange(500), torch.tensor([2**40, 2**62 + 1])])
    expected = [(splitmix(int(i)) >> 11) % 10 for i in index]
    assert stats.fold_of(index, 10).tolist() == expected
    # The published first output of splitmix64 seeded with 0.
    assert splitmix(0) == 0xE220A8397B1DCDAF


def test_folds_are_even_within_strided_classes() -> None:
    counts = torch.bincount(stats.fold_of(torch.arange(0, 100_000, 10), 10), minlength=10)
    assert counts.sum() == 10_000
    assert (counts - 1000).abs().max() < 150


def test_class_moments_are_the_loop() -> None:
    values, targets, index = world()
    got = feed(stats.ClassMoments(CLASSES + 1, folds=FOLDS), values, targets, index, 7).result()
    folds = [(splitmix(int(i)) >> 11) % FOLDS for i in index]
    for c in range(CLASSES + 1):
        members = [i for i in range(60) if int(targets[i]) == c]
        assert float(got.counts[c]) == len(members)
        for unit in range(values.shape[1]):
            for fold in range(FOLDS):
                cell = [float(values[i, unit]) for i in members if folds[i] == fold]
                assert float(got.count[c, fold]) == len(cell)
                assert float(got.sum[c, fold, unit]) == pytest.approx(math.fsum(cell), rel=1e-12)
                assert float(got.sum_sq[c, fold, unit]) == pytest.approx(
                    math.fsum(v * v for v in cell), rel=1e-12
                )
            if not members:
                assert math.isnan(float(got.mean[c, unit]))
                continue
            column = [float(values[i, unit]) for i in members]
            mean = math.fsum(column) / len(column)
            var = math.fsum((v - mean) ** 2 for v in column) / (len(column) - 1)
            assert float(got.mean[c, unit]) == pytest.approx(mean, rel=1e-12)
            assert float(got.var[c, unit]) == pytest.approx(var, rel=1e-11)
    assert got.n == 60


def test_class_moments_by_hand_need_no_deviations() -> None:
    values, targets, index = world()
    full = feed(stats.ClassMoments(CLASSES, folds=FOLDS), values, targets, index, 60).result()
    bare = stats.ClassMomentsResult(count=full.count, sum=full.sum, sum_sq=full.sum_sq)
    torch.testing.assert_close(bare.var, full.var, rtol=1e-9, atol=1e-12)


def test_default_folds() -> None:
    assert stats.ClassMoments(100).folds == 10
    assert stats.ClassMoments(101).folds == 2


def test_top_examples_are_the_sorted_list() -> None:
    values, targets, index = world()
    values = (values * 4).round() / 4  # many ties
    got = feed(stats.TopExamples(9), values, targets, index, 7).result()
    for unit in range(values.shape[1]):
        order = sorted((-float(values[i, unit]), int(index[i])) for i in range(60))[:9]
        assert got.values[unit].tolist() == [-v for v, _ in order]
        assert got.index[unit].tolist() == [i for _, i in order]
    assert got.place is None and got.grid is None


def test_top_examples_keep_places() -> None:
    values, _, index = world(20)
    places = torch.arange(100).view(20, 5) % 12
    fitter = stats.TopExamples(3, grid=(3, 4))
    for rows in torch.arange(20).split(6):
        fitter.update(values[rows], batch_of(index[rows], None), places=places[rows])
    got = fitter.result()
    assert got.grid == (3, 4) and got.place is not None
    for unit in range(5):
        for rank in range(3):
            row = int((index == got.index[unit, rank]).nonzero())
            assert got.place[unit, rank].tolist() == [int(places[row, unit]) // 4, int(places[row, unit]) % 4]


def test_top_examples_with_too_few_samples() -> None:
    fitter = stats.TopExamples(4, grid=(2, 2))
    fitter.update(torch.tensor([[1.0], [2.0]]), batch_of(torch.tensor([5, 6]), None))
    got = fitter.result()
    assert got.values.tolist() == [[2.0, 1.0, -math.inf, -math.inf]]
    assert got.index.tolist() == [[6, 5, -1, -1]]
    assert got.place is not None and got.place.tolist() == [[[-1, -1]] * 4]


def test_rates_are_the_loop() -> None:
    values, targets, index = world()
    got = feed(stats.Rates((0.0, 0.5)), values, targets, index, 7).result()
    for row, threshold in enumerate((0.0, 0.5)):
        for unit in range(values.shape[1]):
            assert float(got.rate[row, unit]) == sum(float(v) > threshold for v in values[:, unit]) / 60


LEVELS = (0.0, 0.01, 0.07, 0.25, 0.5, 0.75, 0.95, 1.0)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=60), st.sampled_from([2, 5, 9]))
@settings(max_examples=60, deadline=None)
def test_quantiles_keep_their_bound(column: list[float], bits: int) -> None:
    fitter = stats.Quantiles(LEVELS, bits=bits)
    fitter.update(
        torch.tensor(column, dtype=torch.float64).unsqueeze(1), batch_of(torch.arange(len(column)), None)
    )
    got = fitter.result()
    exact = np.quantile(np.array(column), LEVELS, method="inverted_cdf")
    for value, true in zip(got.values[:, 0].tolist(), exact, strict=True):
        assert abs(value - true) <= max(got.relative_error * abs(true), got.absolute_error)
    assert got.values[0, 0] == min(column) and got.values[-1, 0] == max(column)


def test_quantiles_of_a_large_sample() -> None:
    values = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 50.0])
    got = feed(stats.Quantiles((0.025, 0.5, 0.995)), values, None, torch.arange(20_000), 999).result()
    exact = np.quantile(values.double().numpy(), got.levels, axis=0, method="inverted_cdf")
    assert np.all(
        np.abs(got.values.numpy() - exact) <= got.relative_error * np.abs(exact) + got.absolute_error
    )


def test_covariance_is_the_loop() -> None:
    values, targets, index = world()
    got = feed(stats.Covariance(), values, targets, index, 7).result()
    mean = [math.fsum(values[:, u].tolist()) / 60 for u in range(5)]
    for a in range(5):
        for b in range(5):
            total = math.fsum((float(r[a]) - mean[a]) * (float(r[b]) - mean[b]) for r in values)
            assert float(got.cov[a, b]) == pytest.approx(total / 59, rel=1e-11, abs=1e-15)
    assert torch.equal(got.cov, got.cov.T)


# Any order, any split, any merge.


@st.composite
def parts(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    n, units = draw(st.integers(2, 24)), draw(st.integers(1, 4))
    number = st.one_of(st.just(0.0), st.floats(-1e6, 1e6, width=32), st.floats(-1, 1, width=32))
    values = torch.tensor(
        draw(st.lists(st.lists(number, min_size=units, max_size=units), min_size=n, max_size=n))
    )
    targets = torch.tensor(draw(st.lists(st.integers(0, CLASSES - 1), min_size=n, max_size=n)))
    order = draw(st.permutations(range(n)))
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=4)))
    pieces = [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    return values, targets, torch.arange(n), pieces


@pytest.mark.parametrize("name", FITTERS)
@given(parts())
@settings(max_examples=40, deadline=None)
def test_any_order_split_and_merge_agree(
    name: str, drawn: tuple[Tensor, Tensor, Tensor, list[list[int]]]
) -> None:
    values, targets, index, pieces = drawn
    whole = feed(FITTERS[name](), values, targets, index, len(values))
    merged = FITTERS[name]()
    for piece in pieces:
        part = FITTERS[name]()
        rows = torch.tensor(piece)
        feed(part, values[rows], targets[rows], index[rows], 1 + len(piece) // 2)
        resumed = FITTERS[name]()
        resumed.load_state(part.state())
        merged.merge(resumed)
    merged.merge(FITTERS[name]())  # one that saw nothing
    scale = float(values.double().square().max())
    assert_close(whole.result(), merged.result(), rtol=1e-9, atol=1e-13 * scale + 1e-13)


@pytest.mark.parametrize("name", ["top", "rates", "quantiles"])
def test_countable_results_are_identical_in_any_order(name: str) -> None:
    values, targets, index = world()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    a = feed(FITTERS[name](), values, targets, index, 60).result()
    b = feed(FITTERS[name](), values[order], targets[order], index[order], 7).result()
    assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", FITTERS)
def test_state_round_trips_through_a_file(name: str) -> None:
    values, targets, index = world()
    through = feed(FITTERS[name](), values, targets, index, 7)
    halfway = feed(FITTERS[name](), values[:28], targets[:28], index[:28], 7)
    resumed = FITTERS[name]()
    resumed.load_state(load(save(halfway.state())))
    feed(resumed, values[28:], targets[28:], index[28:], 7)
    assert_close(through.result(), resumed.result(), rtol=0, atol=0)
    before = halfway.state()
    feed(halfway, values[28:], targets[28:], index[28:], 7)
    again = FITTERS[name]()
    again.load_state(before)
    assert all(torch.equal(v, before[k]) for k, v in again.state().items()), "a state is a snapshot"
    again.load_state({})
    assert again.state() == {}


@pytest.mark.parametrize("name", ["moments", "class_moments", "top", "rates", "quantiles"])
def test_layers_side_by_side_are_the_layers(name: str) -> None:
    values, targets, index = world()
    side_by_side = feed(FITTERS[name](), values, targets, index, 7)
    pieces = split_units(side_by_side, [2, 3])
    for piece, columns in zip(pieces, (values[:, :2], values[:, 2:]), strict=True):
        assert_close(piece.result(), feed(FITTERS[name](), columns, targets, index, 7).result())
    assert [p.state() for p in split_units(FITTERS[name](), [2, 3])] == [{}, {}]


# Numbers that hurt.


@pytest.mark.parametrize("size", [3, 64, 5000])
def test_a_large_mean_hides_no_variance(size: int) -> None:
    noise = torch.randn(5000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = noise + torch.tensor([1e6, -1e6], dtype=torch.float64)
    targets, index = torch.arange(5000) % 2, torch.arange(5000)
    exact = values.numpy().astype(np.longdouble)
    var = np.asarray(exact.var(axis=0, ddof=1), dtype=np.float64)
    moments = feed(stats.Moments(), values, targets, index, size).result()
    np.testing.assert_allclose(moments.var.numpy(), var, rtol=1e-9)
    cov = feed(stats.Covariance(), values, targets, index, size).result()
    np.testing.assert_allclose(cov.cov.diagonal().numpy(), var, rtol=1e-9)
    by_class = feed(stats.ClassMoments(2), values, targets, index, size).result()
    for c in range(2):
        own = np.asarray(exact[c::2].var(axis=0, ddof=1), dtype=np.float64)
        np.testing.assert_allclose(by_class.var[c].numpy(), own, rtol=1e-9)


def test_an_outlier_in_one_class_costs_the_others_nothing() -> None:
    values = torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(200) % 2
    values[0] = 1e9
    got = feed(stats.ClassMoments(2), values, targets, torch.arange(200), 10).result()
    assert float(got.var[1, 0]) == pytest.approx(float(values[1::2].var()), rel=1e-12)


@given(st.lists(st.floats(-1e8, 1e8), min_size=2, max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_variance_is_never_negative(column: list[float]) -> None:
    values = torch.tensor(column, dtype=torch.float64).unsqueeze(1)
    index = torch.arange(len(column))
    assert float(feed(stats.Moments(), values, None, index, 3).result().var) >= 0
    by_class = feed(stats.ClassMoments(2), values, index % 2, index, 3).result()
    assert bool((by_class.var.nan_to_num() >= 0).all())


def test_one_sample_has_no_variance() -> None:
    one = feed(stats.Moments(), torch.ones(1, 2), None, torch.arange(1), 1).result()
    assert bool(one.var.isnan().all()) and one.mean.tolist() == [1.0, 1.0]


def test_half_precision_is_summed_in_float64() -> None:
    values = torch.full((3000, 1), 0.1, dtype=torch.float16)
    got = feed(stats.Moments(), values, None, torch.arange(3000), 100).result()
    assert float(got.mean) == pytest.approx(float(values[0, 0]), rel=1e-14)


# Bad input.


@pytest.mark.parametrize("name", FITTERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_responses_are_named(name: str, bad: float) -> None:
    values, targets, index = world(units=CLASSES)
    values[17, 2] = bad
    fitter = FITTERS[name]()
    with pytest.raises(NumericError, match=rf"unit 2 to sample {int(index[17])} is"):
        feed(fitter, values, targets, index, 7)


def test_finite_responses_whose_sum_overflows_are_fine() -> None:
    values = torch.full((4, 1), 1.5e308, dtype=torch.float64)
    stats.Rates().update(values, batch_of(torch.arange(4), None))


@pytest.mark.parametrize("name", FITTERS)
def test_another_width_is_refused(name: str) -> None:
    values, targets, index = world()
    fitter = feed(FITTERS[name](), values, targets, index, 30)
    with pytest.raises(DataError, match=r"seen 5 units and now got 3"):
        fitter.update(values[:4, :3], batch_of(index[:4], targets[:4]))
    other = feed(FITTERS[name](), values[:, :3], targets, index, 30)
    with pytest.raises(DataError, match="5 and of 3 units"):
        fitter.merge(other)
    with pytest.raises(DataError, match="one row of responses"):
        fitter.update(values[:4], batch_of(index[:5], targets[:5]))


@pytest.mark.parametrize("name", FITTERS)
def test_a_result_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="no sample"):
        FITTERS[name]().result()


@pytest.mark.parametrize("name", FITTERS)
def test_another_kind_or_state_is_refused(name: str) -> None:
    other = "rates" if name != "rates" else "top"
    with pytest.raises(ConfigError, match="one kind"):
        FITTERS[name]().merge(FITTERS[other]())
    with pytest.raises(ConfigError, match="a state of"):
        FITTERS[name]().load_state({"nonsense": torch.zeros(1)})


def test_other_settings_do_not_merge() -> None:
    pairs = [
        (stats.ClassMoments(2), stats.ClassMoments(3), "classes"),
        (stats.ClassMoments(2, folds=2), stats.ClassMoments(2, folds=3), "folds"),
        (stats.TopExamples(2), stats.TopExamples(3), "k"),
        (stats.Rates((0.0,)), stats.Rates((1.0,)), "thresholds"),
        (stats.Quantiles(bits=3), stats.Quantiles(bits=4), "bits"),
    ]
    for a, b, what in pairs:
        with pytest.raises(ConfigError, match=f"same {what}"):
            a.merge(b)  # type: ignore[arg-type]


def test_states_of_other_settings_are_refused() -> None:
    values, targets, index = world()
    state = feed(stats.TopExamples(4), values, targets, index, 60).state()
    with pytest.raises(ConfigError, match=r"shape \('any', 5\), got \(5, 4\)"):
        stats.TopExamples(5).load_state(state)


def test_labels_are_checked() -> None:
    values, targets, index = world()
    with pytest.raises(DataError, match="needs labels"):
        feed(stats.ClassMoments(CLASSES), values, None, index, 7)
    targets[11] = CLASSES
    with pytest.raises(DataError, match=rf"sample {int(index[11])} has label 3, outside 0\.\.2"):
        feed(stats.ClassMoments(CLASSES), values, targets, index, 7)


def test_settings_are_checked() -> None:
    for make in (
        lambda: stats.ClassMoments(0),
        lambda: stats.ClassMoments(2, folds=0),
        lambda: stats.TopExamples(0),
        lambda: stats.Rates(()),
        lambda: stats.Rates((math.nan,)),
        lambda: stats.Quantiles((1.5,)),
        lambda: stats.Quantiles(bits=99),
        lambda: stats.Quantiles(low=3, high=3),
    ):
        with pytest.raises(ConfigError):
            make()


def test_every_fitter_is_a_stat() -> None:
    assert all(isinstance(make(), stats.Stat) for make in FITTERS.values())
