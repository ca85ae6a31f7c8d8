"""From arms to an estimate: the estimand and the interval that the claim's analysis names."""

import numpy as np
from jaxtyping import Float

from pellucid._checks import ConfigError, DataError
from pellucid.claims.arms import Arms, Nested
from pellucid.claims.auroc import delong
from pellucid.claims.claim import Claim
from pellucid.claims.estimate import (
    Estimate,
    Weakest,
    bootstrap_mean,
    corrected_resampled_t,
    one_sample_t,
    two_level_bootstrap,
    welch_t,
    wilson,
)
from pellucid.claims.evalues import betting
from pellucid.claims.signed_rank import signed_rank
from pellucid.rng import stream


def effect(claim: Claim, arms: Arms, *, seed: int = 0) -> Estimate:
    """The claim's estimand with its interval, oriented so that the claim speaks of an increase.

    `exceeds`, `equivalent`: mean of treated minus control by replicate (AUROC - 1/2 for `delong`, a rate minus its
    reference for `wilson`). `ordered`: mean over replicates of the trend over doses. `specific`: the weakest of
    treated minus each column of control.
    """
    if claim.kind == "ordered":
        return _interval(claim, trends(claim, arms), seed=seed)
    if claim.kind == "specific":
        others = np.asarray(arms.control)
        columns = others[:, None] if others.ndim == 1 else others
        return Weakest(
            tuple(_two(claim, np.asarray(arms.treated), column, seed=seed) for column in columns.T)
        )
    if isinstance(arms.treated, Nested):
        return _nested(claim, arms.treated, arms.control, seed=seed)
    control = None if arms.control is None else np.asarray(arms.control)
    return _two(claim, arms.treated, control, seed=seed)


def trends(claim: Claim, arms: Arms) -> Float[np.ndarray, " replicates"]:
    """Each replicate's trend over the doses: Spearman's rank correlation, or the least-squares slope per dose."""
    response = np.asarray(arms.treated) - (0.0 if arms.control is None else np.asarray(arms.control))
    return trend_rows(response, np.array(claim.analysis.doses), rank=claim.analysis.trend == "rank")


def trend_rows(
    response: Float[np.ndarray, "replicates doses"], doses: Float[np.ndarray, " doses"], *, rank: bool
) -> Float[np.ndarray, " replicates"]:
    """Correlation of ranks (or slope) of each row with the doses. A row without variation has trend 0."""
    from scipy.stats import rankdata

    x = rankdata(doses) if rank else doses
    y = rankdata(response, axis=1) if rank else response
    x, y = x - x.mean(), y - y.mean(axis=1, keepdims=True)
    if not rank:
        return y @ x / (x @ x)
    scale = np.sqrt((x @ x) * (y * y).sum(axis=1))
    return np.divide(y @ x, scale, out=np.zeros(len(y)), where=scale > 0)


def dose_permutations(claim: Claim, arms: Arms, *, seed: int) -> Float[np.ndarray, " worlds"]:
    """Mean trend in worlds where each replicate's doses are permuted: the null that `ordered` claims always face."""
    response = np.asarray(arms.treated) - (0.0 if arms.control is None else np.asarray(arms.control))
    rank, random = claim.analysis.trend == "rank", stream(seed, "doses permuted")
    worlds = np.empty(claim.analysis.draws)
    doses = np.array(claim.analysis.doses)
    for start in range(0, len(worlds), 256):
        stop = min(start + 256, len(worlds))
        order = random.random((stop - start, *response.shape)).argsort(axis=2)
        shuffled = np.take_along_axis(response[None], order, axis=2).reshape(-1, response.shape[1])
        worlds[start:stop] = trend_rows(shuffled, doses, rank=rank).reshape(stop - start, -1).mean(axis=1)
    return worlds


def _nested(claim: Claim, treated: Nested, control: object, *, seed: int) -> Estimate:
    other = control if isinstance(control, Nested) else None
    if claim.analysis.interval != "hierarchical":
        return _two(claim, treated.means, None if other is None else other.means, seed=seed)
    random, draws = stream(seed, "models, then images"), claim.analysis.draws
    second = None if other is None else other.models
    return two_level_bootstrap(treated.models, second, draws=draws, rng=random)


def _two(claim: Claim, treated: np.ndarray, control: np.ndarray | None, *, seed: int) -> Estimate:
    if claim.analysis.interval == "delong":
        if control is None:
            raise DataError("an AUROC compares two groups: pass treated and control")
        return delong(treated, control)
    if control is None:
        return _interval(claim, treated, seed=seed)
    if not claim.analysis.paired:
        if claim.analysis.interval != "t":
            raise ConfigError(
                f"independent samples take interval 't' (Welch), not {claim.analysis.interval!r}"
            )
        return welch_t(treated, control)
    return _interval(claim, treated - control, seed=seed)


def _interval(claim: Claim, values: Float[np.ndarray, " n"], *, seed: int) -> Estimate:
    plan, single = claim.analysis, claim.kind in ("exceeds", "equivalent", "specific")
    if plan.interval == "t":
        return one_sample_t(values, method="paired t" if single else f"t of the {plan.trend} trend")
    if plan.interval == "wilcoxon":
        return signed_rank(values)
    if plan.interval == "corrected":
        return corrected_resampled_t(values, test_fraction=plan.test_fraction)
    if plan.interval == "bootstrap":
        return bootstrap_mean(values, draws=plan.draws, rng=stream(seed, "bootstrap"))
    if plan.interval == "betting":
        low, high = plan.bounds
        bounds = (low, high) if claim.sign > 0 else (-high, -low)
        return betting(values, bounds=bounds, alpha=plan.level)
    if plan.interval == "wilson":
        down = (
            claim.sign < 0
        )  # the arm was negated, so that an increase is a rate of zeros above 1 - reference
        return wilson(
            values + 1 if down else values, reference=1 - plan.reference if down else plan.reference
        )
    raise ConfigError(f"interval {plan.interval!r} needs images nested in models: pass nested([...])")
