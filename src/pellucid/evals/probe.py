"""Linear probes: can an attribute be read off a layer's responses, and is that the layer's doing?

A score alone says little. Put beside it what a probe reads from the raw input and from an untrained twin of the
network, from labels that mean nothing (`shuffled_null`), and from a control task that only memory solves
(`control_labels`); `compare_probes` gives the difference of two probes on the same test items with its interval.

References: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016; Hewitt and
Liang, "Designing and interpreting probes with control tasks", EMNLP 2019.
"""

import dataclasses as dc
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from pellucid._checks import ConfigError, DataError, NumericError, check_range
from pellucid.rng import derive, rng

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

VERSION = "1"

# Inverse strengths of the L2 penalty on standardised responses, strongest first: a factor of 10 changes little.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
MOST_STEPS = 1000


@dc.dataclass(frozen=True)
class ProbeResult:
    """A linear probe on its test items; shares are in [0, 1].

    `score` the share read off correctly, with `lo`, `hi` from a bootstrap over test items (this probe, other test
    items); `chance` the share that always naming the commonest training label gets right; `balanced` the mean over
    labels of the share read off. `probs[item, label]` in the order of `labels`; `strength` the chosen inverse
    penalty; `converged` whether the fit came to rest within 1,000 steps.
    """

    score: float
    lo: float
    hi: float
    chance: float
    balanced: float
    predictions: Int64[Tensor, " test"]
    correct: Bool[Tensor, " test"]
    probs: Float64[Tensor, "test labels"]
    labels: Int64[Tensor, " labels"]
    strength: float
    converged: bool
    n_train: int
    n_test: int
    level: float
    version: str


@dc.dataclass(frozen=True)
class NestedProbe:
    """A probe by nested cross-validation: mean score over outer folds, with the corrected resampled t interval."""

    score: float
    lo: float
    hi: float
    chance: float
    scores: Float64[Tensor, " folds"]
    n: int
    level: float
    version: str


@dc.dataclass(frozen=True)
class ProbeDifference:
    """Score of one probe minus that of another on the same test items, with a paired bootstrap interval."""

    difference: float
    lo: float
    hi: float
    level: float


def linear_probe(
    train_x: Float[Tensor, "train units"],
    train_y: Int[Tensor, " train"],
    test_x: Float[Tensor, "test units"],
    test_y: Int[Tensor, " test"],
    *,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 5,
    draws: int = 1000,
    level: float = 0.95,
) -> ProbeResult:
    """Fit a multinomial logistic regression on the training part and score it on the test part.

    min_W mean cross-entropy(W x + b, y) + ||W||^2 / (2 C n), x standardised with the training part's mean and
    standard deviation. C is the one of `strengths` with the lowest cross-validated log loss over `folds` stratified
    folds of the training part, the smaller one in a tie; standardising is done anew in each fold, so nothing of an
    item is known where it is judged, and the test part is touched once.

    Raises:
        DataError: too few items of a label, a test label that training lacks, parts of different width.
        NumericError: a response is NaN or infinite.
    """
    check_range(level, 0.5, 0.9999, "level")
    _check(train_x, train_y, test_x, test_y)
    x, y = _numpy(train_x), train_y.cpu().numpy()
    folds = _folds(train_y, folds)
    strength = _choose(x, y, strengths=sorted(strengths), folds=folds, seed=seed)
    model, converged = _fit(x, y, strength)
    probs = torch.from_numpy(np.asarray(model.predict_proba(_numpy(test_x)), dtype=np.float64))
    labels = torch.unique(train_y.cpu()).long()
    predictions = labels[probs.argmax(1)]
    truth = test_y.cpu().long()
    correct = predictions == truth
    lo, hi = _bootstrap(correct.double(), draws=draws, level=level, seed=seed)
    common = labels[torch.stack([(train_y.cpu() == label).sum() for label in labels]).argmax()]
    return ProbeResult(
        score=float(correct.double().mean()),
        lo=lo,
        hi=hi,
        chance=float((truth == common).double().mean()),
        balanced=sum(float(correct[truth == label].double().mean()) for label in truth.unique())
        / len(truth.unique()),
        predictions=predictions,
        correct=correct,
        probs=probs,
        labels=labels,
        strength=strength,
        converged=converged,
        n_train=len(train_y),
        n_test=len(test_y),
        level=level,
        version=VERSION,
    )


def nested_probe(
    x: Float[Tensor, "items units"],
    y: Int[Tensor, " items"],
    *,
    seed: int,
    outer: int = 10,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 5,
    level: float = 0.95,
) -> NestedProbe:
    """Where there is no held-out part: each outer fold is scored by a probe chosen and fitted on the others.

    mean +- t(outer - 1) sqrt(var (1 / outer + n_test / n_train)): the second term answers for training parts that
    overlap, without which such intervals are far too narrow.

    References: Nadeau and Bengio, "Inference for the generalization error", Machine Learning 2003.
    """
    from scipy.stats import t
    from sklearn.model_selection import StratifiedKFold

    check_range(level, 0.5, 0.9999, "level")
    outer = _folds(y, outer)
    parts = StratifiedKFold(outer, shuffle=True, random_state=_state(seed, "outer"))
    found: list[ProbeResult] = []
    for inside, outside in parts.split(np.zeros(len(y)), y.cpu().numpy()):
        a, b = torch.from_numpy(inside), torch.from_numpy(outside)
        found.append(
            linear_probe(x[a], y[a], x[b], y[b], seed=seed, strengths=strengths, folds=folds, level=level)
        )
    scores = torch.tensor([result.score for result in found], dtype=torch.float64)
    ratio = sum(result.n_test / result.n_train for result in found) / outer
    error = math.sqrt(float(scores.var()) * (1 / outer + ratio))
    reach = float(t.ppf((1 + level) / 2, outer - 1)) * error
    mean = float(scores.mean())
    chance = sum(result.chance for result in found) / outer
    return NestedProbe(
        mean, max(mean - reach, 0.0), min(mean + reach, 1.0), chance, scores, len(y), level, VERSION
    )


def compare_probes(
    first: ProbeResult, second: ProbeResult, *, seed: int, draws: int = 1000, level: float = 0.95
) -> ProbeDifference:
    """Score of `first` minus score of `second`, on the same test items in the same order; in [-1, 1].

    For the layer against the raw input, an untrained twin or a control task. Test items are resampled in pairs, so
    what makes an item easy for both cancels.

    Raises:
        DataError: the two have different numbers of test items.
    """
    if first.n_test != second.n_test:
        raise DataError(
            f"probes compare on the same test items; these have {first.n_test} and {second.n_test}"
        )
    gain = first.correct.double() - second.correct.double()
    lo, hi = _bootstrap(gain, draws=draws, level=level, seed=seed)
    return ProbeDifference(float(gain.mean()), lo, hi, level)


def control_labels(
    types: Int[Tensor, " items"], labels: Int[Tensor, " train"], *, seed: int
) -> Int64[Tensor, " items"]:
    """Labels of a control task: every type gets one random label, the same wherever the type occurs.

    A probe can only solve this by remembering types, so a probe's score minus its control score (its selectivity)
    says what the responses offer beyond memory. Labels are drawn with the frequencies of `labels`.

    Args:
        types: what makes items alike for memory: their identity, object or scene. A type that is only in the test
            part cannot be remembered.
        labels: the true training labels.

    References: Hewitt and Liang, EMNLP 2019, section 2.
    """
    values, counts = torch.unique(labels.cpu(), return_counts=True)
    found = torch.empty(len(types), dtype=torch.int64)
    for kind in torch.unique(types.cpu()).tolist():
        drawn = torch.multinomial(counts.double(), 1, generator=rng(seed, "control_labels", kind))
        found[types.cpu() == kind] = values[drawn].long()
    return found


def shuffled_null(
    train_x: Float[Tensor, "train units"],
    train_y: Int[Tensor, " train"],
    test_x: Float[Tensor, "test units"],
    test_y: Int[Tensor, " test"],
    *,
    seed: int,
    worlds: int = 20,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = 5,
) -> Float64[Tensor, " worlds"]:
    """Scores of the whole procedure, choice of penalty included, when the training labels are shuffled.

    They centre on the score of guessing. With J worlds the smallest p-value is 1 / (J + 1).
    """
    if worlds < 1:
        raise ConfigError(f"shuffled_null needs at least one world, got {worlds}")
    scores: list[float] = []
    for world in range(worlds):
        order = torch.randperm(len(train_y), generator=rng(seed, "shuffled_null", world)).to(train_y.device)
        shuffled = train_y[order]
        result = linear_probe(
            train_x, shuffled, test_x, test_y, seed=seed, strengths=strengths, folds=folds, draws=1
        )
        scores.append(result.score)
    return torch.tensor(scores, dtype=torch.float64)


def _check(
    train_x: Float[Tensor, "train units"],
    train_y: Int[Tensor, " train"],
    test_x: Float[Tensor, "test other"],
    test_y: Int[Tensor, " test"],
) -> None:
    if train_x.shape[1] != test_x.shape[1]:
        raise DataError(f"training items have {train_x.shape[1]} units, test items {test_x.shape[1]}")
    if not len(test_y):
        raise DataError("no test item: a probe is scored on items it was not fitted to")
    for name, x in (("training", train_x), ("test", test_x)):
        if not x.isfinite().all():
            raise NumericError(
                f"the responses of {name} item {int((~x.isfinite().all(1)).nonzero()[0])} are not finite"
            )
    unknown = sorted(set(test_y.tolist()) - set(train_y.tolist()))
    if unknown:
        raise DataError(
            f"the test part has labels that the training part lacks: {unknown[:5]}; split by label"
        )


def _folds(y: Int[Tensor, " items"], folds: int) -> int:
    """As many folds as asked, or as the rarest label has items."""
    values, counts = torch.unique(y, return_counts=True)
    if len(values) < 2:
        raise DataError(f"a probe needs at least two labels in its training part, got {values.tolist()}")
    rarest = int(counts.argmin())
    if counts[rarest] < 2:
        raise DataError(
            f"label {int(values[rarest])} has one training item; a probe needs two of each or more"
        )
    return min(folds, int(counts[rarest]))


def _choose(
    x: Float64[np.ndarray, "train units"],
    y: Int[np.ndarray, " train"],
    *,
    strengths: Sequence[float],
    folds: int,
    seed: int,
) -> float:
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    if not strengths or min(strengths) <= 0:
        raise ConfigError(f"strengths must be positive numbers, got {list(strengths)}")
    if len(strengths) == 1:
        return float(strengths[0])
    labels = np.unique(y)
    parts = list(StratifiedKFold(folds, shuffle=True, random_state=_state(seed, "inner")).split(x, y))
    losses: list[float] = []
    for strength in strengths:
        loss = 0.0
        for inside, outside in parts:
            model, _ = _fit(x[inside], y[inside], strength)
            loss += log_loss(y[outside], model.predict_proba(x[outside]), labels=labels) * len(outside)
        losses.append(loss)
    return float(strengths[int(np.argmin(losses))])


def _fit(
    x: Float64[np.ndarray, "items units"], y: Int[np.ndarray, " items"], strength: float
) -> "tuple[Pipeline, bool]":
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    logistic = LogisticRegression(C=strength, max_iter=MOST_STEPS)
    model = make_pipeline(StandardScaler(), logistic)
    with warnings.catch_warnings():
        # Not hidden: `converged` of the result says it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return model, bool(logistic.n_iter_.max() < MOST_STEPS)


def _bootstrap(
    values: Float64[Tensor, " items"], *, draws: int, level: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean over items."""
    generator = rng(seed, "probe", "bootstrap")
    means = [
        values[torch.randint(len(values), (len(values),), generator=generator)].mean() for _ in range(draws)
    ]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    lo, hi = torch.stack(means).quantile(ends).tolist()
    return lo, hi


def _state(seed: int, *key: str) -> int:
    """A seed for scikit-learn, which takes 32 bits."""
    return derive(seed, "probe", *key) % (1 << 32)


def _numpy(x: Float[Tensor, "items units"]) -> Float64[np.ndarray, "items units"]:
    return x.detach().cpu().double().numpy()
