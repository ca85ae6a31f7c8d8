"""Accuracy: slow twins, streaming, class maps, and outputs that are not what they should be."""

import math

import pytest
import torch
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.data import Batch, ClassMap, array_source
from pellucid.evals.classify import Predictions, accuracy, looks_like_probabilities, wilson
from pellucid.rng import rng

NAMES = ("a", "b", "c", "d")


def batch_of(targets: Tensor | None, n: int) -> Batch:
    return Batch(torch.zeros(n, 1), targets, torch.arange(n))


def scores_and_targets(n: int = 97) -> tuple[Tensor, Tensor]:
    g = rng(0, "scores")
    scores = torch.randint(0, 4, (n, 4), generator=g).float()  # full of ties
    return scores, torch.randint(0, 3, (n,), generator=g)  # class d has no samples


def test_agrees_with_the_slow_twin() -> None:
    scores, targets = scores_and_targets()
    stat = Predictions(NAMES, within=(1, 2, 3, 9))
    stat.update(scores, batch_of(targets, len(scores)))
    found = stat.result()
    confusion = [[0] * 4 for _ in range(4)]
    hits = dict.fromkeys((1, 2, 3), 0)
    for row, target in zip(scores.tolist(), targets.tolist(), strict=True):
        order = sorted(range(4), key=lambda c: (-row[c], c))
        confusion[target][order[0]] += 1
        for k in hits:
            hits[k] += target in order[:k]
    right = sum(confusion[c][c] for c in range(4))
    assert found.confusion.tolist() == confusion
    assert found.accuracy == pytest.approx(right / 97)
    assert found.guesses == (1, 2, 3)  # nine guesses of four classes say nothing
    assert found.within == pytest.approx([v / 97 for v in hits.values()])
    assert found.by_class[:3].tolist() == pytest.approx(
        [confusion[c][c] / sum(confusion[c]) for c in range(3)]
    )
    assert found.by_class[3].isnan()
    assert found.by_class_lo[3].isnan()
    assert (found.by_class_lo[:3] < found.by_class[:3]).all()
    assert found.balanced == pytest.approx(found.by_class[:3].mean().item())
    assert found.majority == pytest.approx(max(sum(row) for row in confusion) / 97)
    assert found.n == 97


def test_streaming_merging_and_resuming_change_nothing() -> None:
    scores, targets = scores_and_targets()
    whole = Predictions(NAMES)
    whole.update(scores, batch_of(targets, 97))
    parts = [Predictions(NAMES) for _ in range(3)]
    for part, rows in zip(parts, torch.arange(97).split(40), strict=True):
        for few in rows.split(7):
            part.update(scores[few], Batch(scores[few], targets[few], few))
    total = Predictions(NAMES)
    total.merge(parts[2])
    total.merge(parts[0])
    resumed = Predictions(NAMES)
    resumed.load_state(total.state())
    resumed.merge(parts[1])
    assert resumed.result().confusion.equal(whole.result().confusion)
    assert resumed.result().within == whole.result().within
    with pytest.raises(ConfigError, match="same classes"):
        whole.merge(Predictions(("x", "y")))


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (1, 3), (50, 100), (9_990, 10_000)])
def test_wilson_agrees_with_scipy(correct: int, n: int) -> None:
    from scipy.stats import binomtest

    for level in (0.9, 0.95):
        expected = binomtest(correct, n).proportion_ci(level, method="wilson")
        assert wilson(correct, n, level=level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_has_no_interval() -> None:
    assert all(math.isnan(end) for end in wilson(0, 0))


class Reader(nn.Module):
    """Each pixel of a 1 x 1 x K image is the logit of its class."""

    def __init__(self, give=lambda logits: logits) -> None:
        super().__init__()
        self.give = give
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor):
        return self.give(self.drop(x.flatten(1)))


def planted(n: int = 100, classes: int = 4, wrong: int = 20):
    targets = torch.arange(n) % classes
    said = torch.where(torch.arange(n) < wrong, (targets + 1) % classes, targets)
    images = torch.nn.functional.one_hot(said, classes).float()[:, None, None]
    return array_source(images, targets, classes=NAMES[:classes])


def test_planted_accuracy_is_found(untouched_rng: None) -> None:
    model = Reader()
    found = accuracy(model, planted(), batch_size=13)
    assert found.accuracy == pytest.approx(0.8)
    assert (found.lo, found.hi) == pytest.approx(wilson(80, 100))
    assert (found.guesses, found.within) == ((1,), pytest.approx((0.8,)))
    assert found.classes == NAMES
    assert model.training
    assert found.confusion[0, 1] == 5


def test_outputs_in_tuples_and_mappings_are_found_or_refused() -> None:
    for give in (lambda logits: (logits, logits * 2), lambda logits: {"logits": logits}):
        assert accuracy(Reader(give), planted()).accuracy == pytest.approx(0.8)
    with pytest.raises(ConfigError, match="logits"):
        accuracy(Reader(lambda logits: {"scores": logits}), planted())
    with pytest.raises(ConfigError, match="logits"):
        accuracy(Reader(lambda logits: logits[:, :, None]), planted())


def test_outputs_that_do_not_fit_the_classes_are_explained() -> None:
    with pytest.raises(DataError, match=r"each of 4 classes expected.*gives 5.*class map"):
        accuracy(Reader(lambda logits: torch.cat([logits, logits[:, :1]], 1)), planted())
    with pytest.raises(NumericError, match="sample 0 has NaN"):
        Predictions(NAMES).update(torch.full((2, 4), float("nan")), batch_of(torch.tensor([0, 1]), 2))
    with pytest.raises(DataError, match="needs labels"):
        Predictions(NAMES).update(torch.zeros(2, 4), batch_of(None, 2))
    with pytest.raises(DataError, match=r"0\.\.3, got 0\.\.4"):
        Predictions(NAMES).update(torch.zeros(2, 4), batch_of(torch.tensor([0, 4]), 2))
    with pytest.raises(DataError, match="no classes"):
        Predictions(())
    with pytest.raises(DataError, match="no sample"):
        Predictions(NAMES).result()
    with pytest.raises(ConfigError, match="guesses"):
        Predictions(NAMES, within=(0,))


def test_a_class_map_turns_many_outputs_into_classes() -> None:
    """`b` means outputs 1 and 2; `other` is a name that the data does not have and that competes."""
    mapped = ClassMap(("other", "b", "a"), ((3,), (1, 2), (0,))).align(("a", "b"))
    stat = Predictions(("a", "b"), to_scores=mapped.from_logits)
    logits = torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 3.0, 0], [0, 0, 0, 3.0]])
    stat.update(logits, batch_of(torch.tensor([0, 1, 1]), 3))
    found = stat.result()
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.confusion.tolist() == [[1, 0, 0], [0, 1, 1]]
    with pytest.raises(DataError, match="each of 2 classes"):
        Predictions(("a", "b"), to_scores=lambda x: x[:, :1]).update(
            logits, batch_of(torch.tensor([0, 1, 1]), 3)
        )


def test_probabilities_are_told_from_logits() -> None:
    logits = torch.randn(6, 5, generator=rng(1))
    assert looks_like_probabilities(logits.softmax(1))
    assert looks_like_probabilities(logits.softmax(1).half())
    assert looks_like_probabilities(torch.eye(3))
    for other in (
        logits,
        logits.log_softmax(1),
        logits.sigmoid(),
        torch.ones(4, 1),
        torch.zeros(0, 3),
        logits[0],
    ):
        assert not looks_like_probabilities(other)
