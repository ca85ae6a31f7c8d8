"""Controls of a selectivity index: slow twins, planted rotations, and what cannot be measured."""

import pytest
import torch
from torch import Tensor

from pellucid._checks import DataError
from pellucid.data import Batch
from pellucid.evals.controls import any_basis_separability, ccmas, resting_level, top_precision
from pellucid.methods.selectivity import class_selectivity
from pellucid.rng import rng
from pellucid.stats import ClassMoments, Covariance, TopExamples, TopExamplesResult


def measured(x: Tensor, y: Tensor, classes: int = 4):
    moments, covariance = ClassMoments(classes), Covariance()
    batch = Batch(x, y, torch.arange(len(x)))
    moments.update(x, batch)
    covariance.update(x, batch)
    return covariance.result(), moments.result()


def world(n: int = 400, units: int = 6, *, signal: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = rng(seed, "world")
    y = torch.randint(0, 3, (n,), generator=g)  # class 3 has no samples
    x = torch.randn(n, units, generator=g, dtype=torch.float64)
    x[torch.arange(n), y] += signal
    return x + 5, y


def test_separability_agrees_with_the_slow_twin() -> None:
    x, y = world()
    n, units = x.shape
    mean = x.sum(0) / n
    total, between = torch.zeros(units, units).double(), torch.zeros(units, units).double()
    for i in range(n):
        total += torch.outer(x[i] - mean, x[i] - mean)
    for c in range(3):
        rows = [x[i] for i in range(n) if y[i] == c]
        centre = sum(rows) / len(rows) - mean
        between += len(rows) * torch.outer(centre, centre)
    found = any_basis_separability(*measured(x, y))
    assert found.trace == pytest.approx(torch.trace(torch.linalg.inv(total) @ between).item())
    assert found.share == pytest.approx(found.trace / 2)
    assert 0 < found.trace < 2


def test_a_rotation_moves_class_information_off_the_axes_and_separability_sees_it() -> None:
    x, y = world(units=40, signal=4.0)
    rotation = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=rng(1)))[0]
    turned = (x - 5) @ rotation + 5
    before, after = any_basis_separability(*measured(x, y)), any_basis_separability(*measured(turned, y))
    assert after.trace == pytest.approx(before.trace)
    _, on_axis = measured(x.clamp_min(0), y)
    _, off_axis = measured(turned.clamp_min(0), y)
    assert class_selectivity(off_axis).eta2.max() < 0.7 * class_selectivity(on_axis).eta2.max()


def test_perfect_separation_reaches_its_bound_and_dead_units_do_not_matter() -> None:
    y = torch.arange(300) % 3
    x = torch.zeros(300, 5, dtype=torch.float64)
    x[torch.arange(300), y] = 1.0
    found = any_basis_separability(*measured(x, y))
    assert found.trace == pytest.approx(2.0)
    assert found.directions == 2


def test_chance_is_what_shuffled_labels_give() -> None:
    x, y = world(n=120, units=30)
    g = rng(2)
    real = [any_basis_separability(*measured(x, y[torch.randperm(120, generator=g)])) for _ in range(60)]
    mean = sum(found.trace for found in real) / 60
    assert real[0].chance == pytest.approx(mean, rel=0.05)


def test_separability_needs_matching_measures() -> None:
    x, y = world()
    covariance, _ = measured(x[:100], y[:100])
    with pytest.raises(DataError, match="same samples"):
        any_basis_separability(covariance, measured(x, y)[1])
    with pytest.raises(DataError, match="two classes"):
        any_basis_separability(*measured(x, y * 0))


def test_resting_level_and_ccmas() -> None:
    y = torch.tensor([0] * 10 + [1] * 30 + [2] * 60)
    means = torch.tensor([[4.0, 0, 2], [2, 0, 2], [1, 0, 2]], dtype=torch.float64)
    _, moments = measured(means[y], y)
    level, other = resting_level(moments), (2 * 30 + 1 * 60) / 90
    assert level[0].item() == pytest.approx(1 / (7 / 3))
    assert level[1].isnan()
    assert level[2].item() == pytest.approx(1)
    found = ccmas(moments)
    assert found[0].item() == pytest.approx((4 - other) / (4 + other))
    assert found[1].isnan()
    assert found[2].item() == pytest.approx(0, abs=1e-12)
    assert ccmas(measured(means[y], y * 0)[1]).isnan().all()


def test_top_precision_is_the_share_of_the_commonest_class() -> None:
    x = torch.tensor([[9.0, 1], [8, 2], [7, 3], [6, 4], [5, 5]])
    y = torch.tensor([1, 1, 0, 2, 2])
    stat = TopExamples(3)
    stat.update(x, Batch(x, y, torch.arange(5)))
    found = top_precision(stat.result(), y)
    assert found.precision.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert found.top_class.tolist() == [1, 2]
    empty = TopExamplesResult(torch.full((1, 2), -torch.inf).double(), torch.full((1, 2), -1), None, None)
    assert top_precision(empty, y).precision.isnan().all()
    assert top_precision(empty, y).top_class.tolist() == [-1]
    with pytest.raises(DataError, match="no target"):
        top_precision(stat.result(), y[:3])
    with pytest.raises(DataError, match="negative"):
        top_precision(stat.result(), y - 1)
