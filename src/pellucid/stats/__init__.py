"""Streaming statistics of fixed size: a fitter takes batches, its result is a frozen dataclass.

Every fitter here can stop and go on (`state`, `load_state`) and be merged in any order. Sums are float64.
"""

from pellucid.stats._common import Stat, fold_of
from pellucid.stats.covariance import Covariance, CovarianceResult
from pellucid.stats.moments import ClassMoments, ClassMomentsResult, Moments, MomentsResult
from pellucid.stats.quantiles import Quantiles, QuantilesResult
from pellucid.stats.rates import Rates, RatesResult
from pellucid.stats.top import TopExamples, TopExamplesResult

__all__ = [
    "ClassMoments",
    "ClassMomentsResult",
    "Covariance",
    "CovarianceResult",
    "Moments",
    "MomentsResult",
    "Quantiles",
    "QuantilesResult",
    "Rates",
    "RatesResult",
    "Stat",
    "TopExamples",
    "TopExamplesResult",
    "fold_of",
]
