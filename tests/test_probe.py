"""Linear probes: planted attributes are read off, noise is not, and intervals mean what they say."""

import pytest
import torch
from torch import Tensor

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.evals.probe import (
    ProbeResult,
    _check,
    compare_probes,
    control_labels,
    linear_probe,
    nested_probe,
    shuffled_null,
)
from pellucid.rng import rng


def world(
    n: int = 300, units: int = 12, labels: int = 3, *, signal: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    g = rng(seed, "world")
    y = torch.randint(0, labels, (n,), generator=g)
    directions = torch.randn(labels, units, generator=g)
    return torch.randn(n, units, generator=g) + signal * directions[y], y


def probe(x: Tensor, y: Tensor, cut: int = 200, **options: float) -> ProbeResult:
    return linear_probe(x[:cut], y[:cut], x[cut:], y[cut:], seed=0, strengths=(0.01, 1.0), **options)


def test_a_planted_attribute_is_read_off_and_noise_is_not(untouched_rng: None) -> None:
    x, y = world(signal=2.0)
    found = probe(x, y + 5)  # labels need not start at 0
    assert found.score > 0.95
    assert found.lo <= found.score <= found.hi
    assert found.labels.tolist() == [5, 6, 7]
    assert found.predictions.equal(found.labels[found.probs.argmax(1)])
    assert found.correct.double().mean().item() == pytest.approx(found.score)
    assert found.converged
    nothing = probe(*world(signal=0.0))
    assert nothing.lo <= 1 / 3 + 0.05
    assert nothing.score < 0.5


def test_scale_and_offset_of_units_do_not_matter() -> None:
    x, y = world(signal=0.5)
    stretched = x * torch.logspace(-3, 3, 12) + 100
    assert probe(x, y).probs.sub(probe(stretched, y).probs).abs().max() < 2e-2


def test_the_fit_is_the_penalised_minimum() -> None:
    """The slow twin: gradient descent on the stated objective in float64."""
    x, y = world(n=90, units=3, labels=2, signal=0.7)
    found = linear_probe(x[:60], y[:60], x[60:], y[60:], seed=0, strengths=(0.5,))
    mean, std = x[:60].double().mean(0), x[:60].double().std(0, correction=0)
    a, b = (x[:60].double() - mean) / std, (x[60:].double() - mean) / std
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    c = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, c], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14)

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(a @ w + c, y[:60].double())
        loss = loss + w.square().sum() / (2 * 0.5 * 60)
        loss.backward()
        return loss

    optimizer.step(objective)
    torch.testing.assert_close(found.probs[:, 1], (b @ w + c).sigmoid().detach(), atol=2e-3, rtol=0)
    assert found.strength == 0.5


def test_the_penalty_is_chosen_on_the_training_part_alone() -> None:
    x, y = world(signal=0.3)
    choices = {
        linear_probe(x[:200], y[:200], test, y[200:], seed=0).strength for test in (x[200:], x[200:] * 0)
    }
    assert len(choices) == 1
    noise, labels = world(n=60, units=40, signal=0.0)
    assert linear_probe(noise[:40], labels[:40], noise[40:], labels[40:], seed=0).strength <= 1e-2


def test_the_interval_is_a_bootstrap_over_test_items() -> None:
    found = probe(*world(signal=0.4), draws=4000)
    error = (found.score * (1 - found.score) / found.n_test) ** 0.5
    assert found.hi - found.lo == pytest.approx(2 * 1.96 * error, rel=0.12)
    narrow = probe(*world(signal=0.4), level=0.8)
    assert narrow.hi - narrow.lo < found.hi - found.lo


def test_chance_is_what_the_commonest_training_label_gets() -> None:
    y = torch.tensor([0] * 70 + [1] * 30 + [0] * 5 + [1] * 15)
    x = torch.randn(120, 4, generator=rng(1))
    found = linear_probe(x[:100], y[:100], x[100:], y[100:], seed=0, strengths=(1e-4,))
    assert found.chance == pytest.approx(0.25)
    assert found.score == pytest.approx(0.25)
    assert found.balanced == pytest.approx(0.5)


def test_shuffled_labels_give_chance() -> None:
    x, y = world(signal=2.0)
    null = shuffled_null(x[:200], y[:200], x[200:], y[200:], seed=0, worlds=8, strengths=(0.01, 1.0))
    assert len(null) == 8
    assert null.mean().item() == pytest.approx(1 / 3, abs=0.1)
    assert null.max() < probe(x, y).lo


def test_control_labels_are_random_but_consistent(untouched_rng: None) -> None:
    types = torch.arange(400).repeat(2)
    labels = torch.tensor([3] * 3 + [8])
    found = control_labels(types, labels, seed=1)
    assert found[:400].equal(found[400:])
    assert control_labels(torch.tensor([17]), labels, seed=1)[0] == found[17]  # whatever else is asked for
    assert set(found.tolist()) == {3, 8}
    assert (found == 3).double().mean().item() == pytest.approx(0.75, abs=0.08)
    assert not found.equal(control_labels(types, labels, seed=2))


def test_memory_solves_a_control_task_only_where_types_come_back() -> None:
    g = rng(2, "types")
    types = torch.arange(40).repeat(8)
    x = torch.eye(40)[types] + 0.01 * torch.randn(320, 40, generator=g)  # a layer that only knows who is who
    y = control_labels(types, torch.tensor([0, 1]), seed=3)
    assert linear_probe(x[:160], y[:160], x[160:], y[160:], seed=0, strengths=(1.0,)).score > 0.95


def test_two_probes_are_compared_item_by_item() -> None:
    x, y = world(n=600, signal=1.0)
    good, poor = probe(x, y, cut=300), probe(x[:, :2], y, cut=300)
    found = compare_probes(good, poor, seed=0)
    assert found.difference == pytest.approx(good.score - poor.score)
    assert found.lo > 0
    same = compare_probes(good, good, seed=0)
    assert (same.difference, same.lo, same.hi) == (0.0, 0.0, 0.0)
    with pytest.raises(DataError, match="same test items"):
        compare_probes(good, probe(x, y, cut=301), seed=0)


def test_nested_cross_validation_scores_every_item_once() -> None:
    x, y = world(n=120, signal=0.4)
    found = nested_probe(x, y, seed=0, outer=5, strengths=(0.1, 1.0))
    assert len(found.scores) == 5
    assert found.score == pytest.approx(found.scores.mean().item())
    assert found.lo < found.score < found.hi <= 1
    error = (found.scores.var().item() * (1 / 5 + 24 / 96)) ** 0.5
    assert found.hi - found.score == pytest.approx(min(2.7764 * error, 1 - found.score), rel=1e-3)


def test_what_cannot_be_probed_is_explained() -> None:
    x, y = world(signal=1.0)
    with pytest.raises(DataError, match="at least two labels"):
        linear_probe(x[:9], y[:9] * 0, x[9:], y[9:] * 0, seed=0)
    with pytest.raises(DataError, match=r"test part has labels.*\[7\]"):
        linear_probe(x[:200], y[:200], x[200:], torch.where(y[200:] == 1, 7, y[200:]), seed=0)
    with pytest.raises(DataError, match="one training item"):
        lonely = torch.cat([torch.tensor([9]), y[1:200]])
        linear_probe(x[:200], lonely, x[200:], y[200:], seed=0)
    with pytest.raises(DataError, match="12 units, test items 5"):
        # Behind the signature, which says the same and is checked in tests only.
        _check(x[:200], y[:200], x[200:, :5], y[200:])
    with pytest.raises(NumericError, match="training item 3"):
        bad = x.clone()
        bad[3, 1] = float("nan")
        linear_probe(bad[:200], y[:200], bad[200:], y[200:], seed=0)
    with pytest.raises(DataError, match="no test item"):
        linear_probe(x, y, x[:0], y[:0], seed=0)
    with pytest.raises(ConfigError, match="positive"):
        linear_probe(x[:200], y[:200], x[200:], y[200:], seed=0, strengths=(0.0, 1.0))
