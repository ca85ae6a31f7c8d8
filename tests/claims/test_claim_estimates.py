"""Every interval against a slow twin: loops, enumerations and scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pellucid._checks import ConfigError, DataError
from pellucid.claims.auroc import auroc, auroc_difference, delong
from pellucid.claims.estimate import (
    Estimate,
    Weakest,
    bootstrap_mean,
    corrected_resampled_t,
    one_sample_t,
    ratio_of_means,
    two_level_bootstrap,
    welch_t,
    wilson,
)
from pellucid.claims.evalues import Betting, betting, betting_wealth, e_bh
from pellucid.claims.signed_rank import SignedRank, signed_rank

R = np.random.default_rng(0)
A, B = R.normal(1.0, 1.0, size=12), R.normal(0.2, 2.0, size=9)


def test_t_against_scipy() -> None:
    found = one_sample_t(A)
    expected = stats.ttest_1samp(A, 0.3, alternative="greater")
    assert found.p_above(0.3) == pytest.approx(expected.pvalue, abs=1e-12)
    low, high = stats.t.interval(0.9, len(A) - 1, loc=A.mean(), scale=stats.sem(A))
    assert found.bounds(0.05) == pytest.approx((low, high), abs=1e-12)


def test_welch_against_scipy() -> None:
    found = welch_t(A, B)
    expected = stats.ttest_ind(A, B, equal_var=False, alternative="greater")
    assert found.p_above(0.0) == pytest.approx(expected.pvalue, abs=1e-12)
    assert found.df == pytest.approx(expected.df, abs=1e-9)
    interval = stats.ttest_ind(A, B, equal_var=False).confidence_interval(0.9)
    assert found.bounds(0.05) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_corrected_t_widens_by_the_overlap() -> None:
    plain, corrected = one_sample_t(A), corrected_resampled_t(A, test_fraction=0.25)
    n = len(A)
    assert corrected.se / plain.se == pytest.approx(math.sqrt((1 / n + 0.25) * n))


def brute_delong(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """AUROC and DeLong's variance with loops over pairs."""
    kernel = [[1.0 if a > b else 0.5 if a == b else 0.0 for b in y] for a in x]
    v10 = [sum(row) / len(y) for row in kernel]
    v01 = [sum(kernel[i][j] for i in range(len(x))) / len(x) for j in range(len(y))]
    area = sum(v10) / len(x)
    s10 = sum((v - area) ** 2 for v in v10) / (len(x) - 1)
    s01 = sum((v - area) ** 2 for v in v01) / (len(y) - 1)
    return area, s10 / len(x) + s01 / len(y)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=3, max_size=15), st.lists(st.integers(0, 6), min_size=3, max_size=15)
)
def test_delong_against_loops(first: list[int], second: list[int]) -> None:
    x, y = np.array(first, dtype=float), np.array(second, dtype=float)
    area, variance = brute_delong(x, y)
    found = delong(x, y)
    assert found.theta + 0.5 == pytest.approx(area, abs=1e-12)
    assert auroc(x, y) == pytest.approx(area, abs=1e-12)
    if abs(area - 0.5) < 0.5:
        low, high = found.bounds(0.05)
        assert (high - low) / 2 == pytest.approx(1.6448536 * math.sqrt(variance), abs=1e-6)


def test_delong_half_width_of_the_catalogue() -> None:
    r = np.random.default_rng(1)
    x, y = r.normal(stats.norm.ppf(0.75) * math.sqrt(2), 1, 200), r.normal(0, 1, 200)
    low, high = delong(x, y).bounds(0.05)
    assert (high - low) / 2 == pytest.approx(0.04, abs=0.005)


def test_complete_separation_is_bounded_by_disjoint_pairs() -> None:
    found = delong(np.arange(10.0, 20.0), np.arange(0.0, 8.0))
    low, high = found.bounds(0.05)
    assert (low, high) == pytest.approx((0.05 ** (1 / 8) - 0.5, 0.5))
    assert stats.binomtest(8, 8).proportion_ci(0.9).low == pytest.approx(low + 0.5)
    mirrored = delong(np.arange(0.0, 8.0), np.arange(10.0, 20.0))
    assert mirrored.bounds(0.05) == pytest.approx((-high, -low))
    assert mirrored.p_below(-low) == pytest.approx(0.05)


def test_auroc_difference_against_a_jackknife() -> None:
    r = np.random.default_rng(2)
    responses = r.normal(size=200)
    concept, other = responses + r.normal(size=200) > 0, responses + 3 * r.normal(size=200) > 0
    found = auroc_difference(responses, concept, other)
    keep = ~np.eye(200, dtype=bool)
    left_out = [
        auroc(responses[k & concept], responses[k & ~concept])
        - auroc(responses[k & other], responses[k & ~other])
        for k in keep
    ]
    jackknife = math.sqrt(199 / 200 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    assert found.theta == pytest.approx(
        auroc(responses[concept], responses[~concept]) - auroc(responses[other], responses[~other])
    )
    assert found.se == pytest.approx(jackknife, rel=0.03)


def test_wilson_against_scipy() -> None:
    values = np.array([1.0] * 17 + [0.0] * 8)
    found = wilson(values, reference=0.5)
    interval = stats.binomtest(17, 25).proportion_ci(0.9, method="wilson")
    assert found.bounds(0.05) == pytest.approx((interval.low - 0.5, interval.high - 0.5))
    assert found.theta == pytest.approx(17 / 25 - 0.5)
    with pytest.raises(DataError, match="every value must be 0 or 1"):
        wilson(A, reference=0.0)


def brute_signed_rank_p(values: np.ndarray, x: float) -> float:
    """P(T+ >= observed) over all sign patterns."""
    shifted = values - x
    ranks = stats.rankdata(np.abs(shifted))
    observed = ranks[shifted > 0].sum()
    patterns = itertools.product((0, 1), repeat=len(values))
    return float(np.mean([np.dot(p, ranks) >= observed - 1e-9 for p in patterns]))


def test_signed_rank_against_enumeration_and_scipy() -> None:
    values = A[:9]
    found = signed_rank(values)
    walsh = [(values[i] + values[j]) / 2 for i in range(9) for j in range(i, 9)]
    assert found.theta == pytest.approx(np.median(walsh))
    for x in (-0.5, 0.0, 0.4, 1.1):
        assert found.p_above(x) == pytest.approx(brute_signed_rank_p(values, x), abs=1e-12)
        assert found.p_above(x) == pytest.approx(
            stats.wilcoxon(values - x, alternative="greater").pvalue, abs=1e-12
        )
        assert found.p_below(x) == pytest.approx(
            stats.wilcoxon(values - x, alternative="less").pvalue, abs=1e-12
        )


def test_signed_rank_normal_approximation_joins_the_exact_one() -> None:
    values = np.random.default_rng(3).normal(0.3, 1, size=60)
    exact = signed_rank(values)
    more = np.append(values, values.mean())
    assert SignedRank(more).bounds(0.05) == pytest.approx(exact.bounds(0.05), abs=0.02)


def test_signed_rank_limits() -> None:
    with pytest.raises(DataError, match="cannot fall below p"):
        signed_rank(A[:4])
    with pytest.raises(ConfigError, match="too many pairs"):
        signed_rank(np.zeros(3001))
    assert signed_rank(A[:5]).bounds(0.01) == (-math.inf, math.inf)


def test_expanded_percentile_is_the_t_interval_for_gaussian_means() -> None:
    values = np.random.default_rng(4).normal(size=25)
    found = bootstrap_mean(values, draws=200_000, rng=np.random.default_rng(5))
    low, high = one_sample_t(values).bounds(0.05)
    assert found.bounds(0.05) == pytest.approx((low, high), abs=0.04 * (high - low))
    with pytest.raises(ConfigError, match="cannot reach beyond their extremes"):
        bootstrap_mean(values[:5], draws=99, rng=np.random.default_rng(0))


def test_two_level_bootstrap_has_both_variances() -> None:
    r = np.random.default_rng(6)
    models = [r.normal(mean, 2.0, size=40) for mean in r.normal(0, 1.0, size=10)]
    found = two_level_bootstrap(models, None, draws=8000, rng=np.random.default_rng(7))
    means = np.array([model.mean() for model in models])
    within = np.mean([model.var() / 40 for model in models])
    assert found.theta == pytest.approx(means.mean())
    assert found.draws.var() == pytest.approx((means.var() + within) / 10, rel=0.06)


def test_two_level_bootstrap_pairs_images_where_it_can() -> None:
    r = np.random.default_rng(8)
    base = [r.normal(size=30) * 10 for _ in range(6)]
    treated = [one + 1 for one in base]
    paired = two_level_bootstrap(treated, base, draws=500, rng=np.random.default_rng(9))
    assert paired.draws == pytest.approx(np.ones(500))
    apart = two_level_bootstrap(treated, [one[:20] for one in base], draws=500, rng=np.random.default_rng(9))
    assert apart.draws.std() > 0.5


def test_ratio_error_against_a_jackknife() -> None:
    r = np.random.default_rng(10)
    x = r.normal(size=(60, 5))
    moved, apart = 0.1 * r.exponential(size=60), (x**2).sum(axis=1)
    found = ratio_of_means(moved, apart)
    keep = ~np.eye(60, dtype=bool)
    left = np.array([moved[k].mean() / apart[k].mean() for k in keep])
    jackknife = math.sqrt(59 / 60 * np.sum((left - left.mean()) ** 2))
    assert found.se == pytest.approx(jackknife, rel=0.05)
    nothing = ratio_of_means(np.zeros(60), apart)
    assert nothing.bounds(0.05) == (0.0, 0.0)
    assert (nothing.p_below(0.1), nothing.p_above(0.1)) == (0.0, 1.0)
    with pytest.raises(DataError, match="dead layer"):
        ratio_of_means(moved, np.zeros(60))


def estimates() -> list[Estimate]:
    r = np.random.default_rng(11)
    values = r.normal(0.5, 1.0, size=20)
    unit = np.clip(0.5 + 0.1 * r.normal(size=80), 0, 1)
    parts = (one_sample_t(values), one_sample_t(values + r.normal(size=20)), one_sample_t(values + 0.5))
    return [
        one_sample_t(values),
        welch_t(values, B),
        delong(values, B),
        wilson((values > 0).astype(float), reference=0.5),
        signed_rank(values),
        bootstrap_mean(values, draws=999, rng=r),
        ratio_of_means(values**2, values**2 + 1),
        betting(unit, bounds=(0.0, 1.0), alpha=0.05),
        Weakest(parts),
    ]


@pytest.mark.parametrize("found", estimates(), ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_interval_and_p_values_are_inversions(found: Estimate, level: float) -> None:
    low, high = found.bounds(level)
    assert low < found.theta < high
    step = 1e-3 * (high - low)
    for x in np.linspace(low - 0.2, high + 0.2, 41):
        if abs(x - low) > step:
            assert (found.p_above(float(x)) <= level) == (x < low)
        if abs(x - high) > step:
            assert (found.p_below(float(x)) <= level) == (x > high)
    assert isinstance(found, Estimate)
    assert found.method
    assert len(found.values) > 1


def test_weakest_needs_every_part() -> None:
    strong, weak = one_sample_t(A + 10), one_sample_t(B)
    found = Weakest((strong, weak))
    assert found.theta == weak.theta
    assert found.p_above(0.0) == weak.p_above(0.0)
    assert found.p_below(0.0) == pytest.approx(min(1.0, 2 * weak.p_below(0.0)))
    assert found.bounds(0.05)[1] == weak.bounds(0.025)[1]


def test_too_little_data() -> None:
    for make in (lambda: one_sample_t(A[:1]), lambda: welch_t(A[:1], B), lambda: delong(A[:1], B)):
        with pytest.raises(DataError, match="at least 2"):
            make()


# e-values


def slow_wealth(values: list[float], mean: float, alpha: float) -> list[float]:
    """The bets one after the other, each staking from the past alone."""
    wealth, out, seen, squares, before = 1.0, [], 0.0, 0.0, 0.25
    for t, x in enumerate(values, 1):
        stake = min(math.sqrt(2 * math.log(1 / alpha) / (before * t * math.log(1 + t))), 0.5 / mean)
        wealth *= 1 + stake * (x - mean)
        out.append(wealth)
        seen += x
        centre = (0.5 + seen) / (t + 1)
        squares += (x - centre) ** 2
        before = (0.25 + squares) / (t + 1)
    return out


def test_wealth_against_a_loop() -> None:
    values = np.random.default_rng(12).random(50)
    found = betting_wealth(values, 0.4, low=0.0, high=1.0)
    assert found == pytest.approx(np.array(slow_wealth(list(values), 0.4, 0.05)), rel=1e-10)
    scaled = betting_wealth(4 * values - 1, 0.6, low=-1.0, high=3.0)
    assert scaled == pytest.approx(found, rel=1e-9)
    with pytest.raises(DataError, match="outside the stated bounds"):
        betting_wealth(values, 0.4, low=0.0, high=0.5)


def test_stopping_whenever_one_likes_keeps_the_level() -> None:
    r = np.random.default_rng(13)
    ruined = [betting_wealth(r.beta(2, 2, size=200), 0.5, low=0.0, high=1.0).max() >= 20 for _ in range(1000)]
    assert np.mean(ruined) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_wealth_falls_as_the_mean_rises() -> None:
    values = np.random.default_rng(14).random(80)
    evalues = [Betting(values, 0.0, 1.0).evalue_above(float(m)) for m in np.linspace(0, 1, 30)]
    assert all(a >= b for a, b in itertools.pairwise(evalues))
    assert Betting(values, 0.0, 1.0).p_above(-1.0) == 0.0


def test_e_bh_against_its_definition() -> None:
    r = np.random.default_rng(15)
    for _ in range(50):
        evalues = np.exp(r.normal(2, 2, size=7))
        ordered = sorted(evalues, reverse=True)
        count = max([k for k in range(1, 8) if ordered[k - 1] >= 7 / (0.1 * k)], default=0)
        found = e_bh(evalues, alpha=0.1)
        assert found.sum() == count
        assert not count or evalues[found].min() >= ordered[count - 1]
