"""Controls beside a selectivity index: was the resting level raised, was class information moved off the unit axes,
and do other indices agree?

Sparsity, the fraction of zero responses, is `zero_fraction` of `Moments`; d' and eta squared come with
`class_selectivity`.
"""

import dataclasses as dc

import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from pellucid._checks import DataError
from pellucid.stats import ClassMomentsResult, CovarianceResult, TopExamplesResult

# Directions with less than this share of the largest variance are rounding, or dead units.
FLAT = 1e-10


@dc.dataclass(frozen=True)
class Separability:
    """How well some linear direction separates the classes, whatever the basis.

    `trace` = tr(St^-1 Sb) in [0, K - 1]; `share` = trace / (K - 1), in [0, 1]; `chance` is the trace expected of
    labels that mean nothing, which few samples for each unit make large; `directions` the rank of St.
    """

    trace: float
    share: float
    chance: float
    directions: int
    n: int


def any_basis_separability(covariance: CovarianceResult, moments: ClassMomentsResult) -> Separability:
    """T = tr(St^-1 Sb): class information in a layer that a rotation of its units does not change.

    St is the total and Sb the between-class covariance of the same samples, St inverted on the directions in which
    responses vary. If the on-axis measures fall while T stays, information was moved and not removed. Under labels
    without meaning T is (K - 1) directions / (n - 1) on average.

    Raises:
        DataError: the two are of different samples or units, or fewer than two classes are present.

    References: Pillai, "Some new test criteria in multivariate analysis", 1955 (T is Pillai's trace).
    """
    n, present = moments.n, moments.counts > 0
    if n != covariance.count or moments.sum.shape[2] != len(covariance.cov):
        raise DataError(
            f"separability needs covariance and class moments of the same samples and units: {covariance.count} samples "
            f"of {len(covariance.cov)} units, and {n} labelled samples of {moments.sum.shape[2]} units"
        )
    classes = int(present.sum())
    if classes < 2:
        raise DataError(f"separability needs at least two classes with samples, got {classes}")
    apart = (moments.mean[present] - covariance.mean) * (moments.counts[present] / n).sqrt()[:, None]
    values, vectors = torch.linalg.eigh(covariance.cov * ((n - 1) / n))
    kept = values > FLAT * values[-1].clamp_min(1e-300)
    trace = float(((apart @ vectors[:, kept]).square() / values[kept]).sum())
    directions = int(kept.sum())
    chance = (classes - 1) * directions / (n - 1)
    return Separability(trace, trace / (classes - 1), min(chance, classes - 1.0), directions, n)


def resting_level(moments: ClassMomentsResult) -> Float64[Tensor, " units"]:
    """Smallest class mean over mean of the class means: min_c m_c / mean_c m_c.

    In [0, 1] for non-negative responses; 1 for a unit that answers every class alike, NaN for a dead one. A network
    can lower its selectivity index by raising this instead of giving up class information.
    """
    means = moments.mean[moments.counts > 0]
    middle = means.mean(0)
    return torch.where(middle == 0, float("nan"), means.amin(0) / middle)


def ccmas(moments: ClassMomentsResult) -> Float64[Tensor, " units"]:
    """Class-conditional mean activation selectivity: (m_b - m_other) / (m_b + m_other), b the preferred class.

    m_other is the mean over all samples of the other classes, so large classes weigh more than in the selectivity
    index. In [0, 1] for non-negative responses, NaN for a dead unit. Known to overstate selectivity.

    References: Zhou et al., "Revisiting the importance of individual units in CNNs via ablation", 2018; Gale et al.,
    "Are there any object detectors in the hidden layers of CNNs trained to identify objects or scenes?", 2019.
    """
    present = moments.counts > 0
    counts, means = moments.counts[present, None], moments.mean[present]
    if len(means) < 2:
        return means.new_full((means.shape[1],), float("nan"))
    best, preferred = means.max(0)
    n_best = counts[preferred, 0]
    others = ((counts * means).sum(0) - n_best * best) / (counts.sum() - n_best)
    return (best - others) / (best + others)


@dc.dataclass(frozen=True)
class TopPrecision:
    """Of each unit: `precision`, the share of its top examples that are of one class, in [0, 1], and that class."""

    precision: Float64[Tensor, " units"]
    top_class: Int64[Tensor, " units"]


def top_precision(top: TopExamplesResult, targets: Int[Tensor, " samples"]) -> TopPrecision:
    """How pure the examples are that drive a unit most: the share of its commonest class among them.

    With k examples and K even classes a unit without preference reads about 1 / K plus the luck of the best of K:
    judge it against shuffled targets, never against 1 / K. Units with no example give NaN and class -1.

    Args:
        targets: label of every sample of the source, looked up by the examples' index.

    Raises:
        DataError: an example lies outside the targets.
    """
    if top.index.numel() and int(top.index.max()) >= len(targets):
        raise DataError(f"example {int(top.index.max())} has no target: {len(targets)} targets were given")
    seen = top.index >= 0
    labels = targets.cpu().long()[top.index.clamp_min(0)]
    if labels.numel() and int(labels[seen].amin() if seen.any() else 0) < 0:
        raise DataError("targets must be labels 0, 1, ...; some are negative (unlabelled)")
    classes = int(labels.max()) + 1 if labels.numel() else 1
    counts = torch.zeros(len(labels), classes, dtype=torch.float64)
    counts.scatter_add_(1, labels, seen.double())
    n = counts.sum(1)
    most, which = counts.max(1)
    return TopPrecision(most / n, torch.where(n > 0, which, -1))
