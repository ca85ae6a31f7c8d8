"""Synthetic worlds for the self-calibration: for every claim type one where it is false and one where it is true.

Null worlds sit at the boundary (the effect equals delta) or, where a null does the work, clear delta and look exactly
like their null worlds: the hardest cases in which `supported` would be wrong. Responses are drawn, nothing is trained.
"""

import dataclasses as dc
from collections.abc import Callable

import numpy as np

from pellucid.claims import ready
from pellucid.claims.arms import nested
from pellucid.claims.check import check
from pellucid.claims.claim import Analysis, Claim, Kind, NullPlan, Scope
from pellucid.claims.power import auroc_error, power_equivalent, power_exceeds
from pellucid.claims.ready_checks import (
    check_activation_decodes,
    check_invariant,
    check_property_matters,
    check_recipes_equivalent,
    check_unit_detects,
    check_units_necessary,
)
from pellucid.claims.verdict import Verdict
from pellucid.rng import stream

RECIPE, WHY = Scope("recipe", "synthetic"), "calibration"


@dc.dataclass(frozen=True)
class WorldType:
    """A claim type: its name, the power it states, and how to run it in a null (False) or planted (True) world."""

    name: str
    stated: float
    run: Callable[[bool, int], Verdict]


def _claim(kind: Kind, delta: float, *, analysis: Analysis, nulls: tuple[NullPlan, ...] = ()) -> Claim:
    return Claim("synthetic", delta, kind, scope=RECIPE, reason=WHY, analysis=analysis, nulls=nulls)


def exceeds(planted: bool, seed: int) -> Verdict:
    """3 models, spread 0.5, delta 1."""
    r = stream(seed, "exceeds")
    base = r.normal(size=3)
    claim = _claim("exceeds", 1.0, analysis=Analysis(models=3, sd=0.5))
    return check(claim, base + (2.0 if planted else 1.0) + 0.5 * r.normal(size=3), base, seed=seed)


def equivalent(planted: bool, seed: int) -> Verdict:
    """10 models, spread 0.5, delta 0.5."""
    r = stream(seed, "equivalent")
    base = r.normal(size=10)
    claim = _claim("equivalent", 0.5, analysis=Analysis(models=10, sd=0.5))
    return check(claim, base + (0.0 if planted else 0.5) + 0.5 * r.normal(size=10), base, seed=seed)


def ordered(planted: bool, seed: int) -> Verdict:
    """5 models, 5 doses, noise 1, slope per dose 0.25 (null) or 0.5."""
    r, doses = stream(seed, "ordered"), np.arange(5.0)
    plan = Analysis(models=5, doses=tuple(map(float, doses)), trend="slope", draws=499)
    claim = _claim("ordered", 0.25, analysis=plan)
    return check(claim, (0.5 if planted else 0.25) * doses + r.normal(size=(5, 5)), seed=seed)


def specific(planted: bool, seed: int) -> Verdict:
    """6 models, 3 other targets, spread 0.5; in the null world one of the others is as close as delta."""
    r = stream(seed, "specific")
    base = r.normal(size=6)
    gaps = np.array([2.0, 2.0, 2.0] if planted else [1.0, 3.0, 3.0])
    others = base[:, None] - gaps + 0.5 * r.normal(size=(6, 3))
    return check(_claim("specific", 1.0, analysis=Analysis(models=6)), base, others, seed=seed)


def images_in_models(planted: bool, seed: int) -> Verdict:
    """8 models of 50 images: spread 0.5 between models, 2 within; bootstrap of models, then images."""
    r = stream(seed, "nested")
    models = (2.0 if planted else 1.0) + 0.5 * r.normal(size=(8, 1)) + 2.0 * r.normal(size=(8, 50))
    plan = Analysis(interval="hierarchical", models=8, draws=999)
    return check(_claim("exceeds", 1.0, analysis=plan), nested(models), seed=seed)


def twins_by_prediction(planted: bool, seed: int) -> Verdict:
    """Effect far above delta; 5 untrained twins that show just as much (null) or none, prediction interval."""
    return _twins(planted, seed, NullPlan("untrained", worlds=5, form="prediction"))


def twins_by_rank(planted: bool, seed: int) -> Verdict:
    """The same with 19 twins, by rank."""
    return _twins(planted, seed, NullPlan("untrained", worlds=19))


def _twins(planted: bool, seed: int, plan: NullPlan) -> Verdict:
    r = stream(seed, "twins", plan.form)
    shared = r.normal()  # this network among networks: what replicates of its measurement share
    values = 10.0 + shared + 1e-3 * r.normal(size=6)
    worlds = (0.0 if planted else 10.0) + r.normal(size=plan.worlds)
    claim = _claim("exceeds", 1.0, analysis=Analysis(models=6), nulls=(plan,))
    return check(claim, values, nulls={plan.name: worlds}, seed=seed)


def optional_stopping(planted: bool, seed: int) -> Verdict:
    """Up to 300 values in [0, 1], looked at after each one; delta 0.5, planted mean 0.7."""
    r, mean = stream(seed, "betting"), 0.7 if planted else 0.5
    plan = Analysis(interval="betting", models=300, bounds=(0.0, 1.0))
    return check(_claim("exceeds", 0.5, analysis=plan), r.beta(4 * mean, 4 - 4 * mean, size=300), seed=seed)


def property_matters(planted: bool, seed: int) -> Verdict:
    """6 paired replicates, spread 0.5 pp, delta 1 pp, direction down."""
    r = stream(seed, "property")
    permuted = 95 + r.normal(size=6)
    claim = ready.property_matters("selectivity", "synthetic", delta=1.0, reason=WHY, models=6, sd=0.5)
    treated = permuted - (2.0 if planted else 1.0) + 0.5 * r.normal(size=6)
    return check_property_matters(claim, treated, permuted, moved=0.3 + 0.02 * r.normal(size=6), seed=seed)


def recipes_equivalent(planted: bool, seed: int) -> Verdict:
    """6 paired replicates, spread 0.5 pp, delta 1 pp."""
    r = stream(seed, "recipes")
    base = 95 + r.normal(size=6)
    claim = ready.recipes_equivalent("one", "other", delta=1.0, reason=WHY, models=6, sd=0.5)
    return check_recipes_equivalent(
        claim, base + (0.0 if planted else -1.0) + 0.5 * r.normal(size=6), base, seed=seed
    )


def unit_detects(planted: bool, seed: int) -> Verdict:
    """100 images with and 100 without; AUROC 0.60 (delta) or 0.70."""
    from scipy.special import ndtri

    r, concept = stream(seed, "unit"), np.repeat([True, False], 100)
    responses = r.normal(size=200) + np.sqrt(2) * float(ndtri(0.7 if planted else 0.6)) * concept
    claim = ready.unit_detects("it", "synthetic", layer="late", unit=0, delta=0.1, reason=WHY, images=200)
    return check_unit_detects(claim, responses, concept, seed=seed)


def best_of_many(planted: bool, seed: int) -> Verdict:
    """The best of 30 units x 5 concepts on 100 images of noise; planted: one unit of AUROC 0.85 among them."""
    r = stream(seed, "search")
    units, labels = r.normal(size=(100, 30)), r.random((100, 5)) < 0.5
    if planted:
        units[:, 3] += 1.466 * labels[:, 2]
    ranks = units.argsort(axis=0).argsort(axis=0) + 1
    count = labels.sum(axis=0)
    area = (ranks.T @ labels - count * (count + 1) / 2) / (count * (100 - count))
    unit, concept = np.unravel_index(int(area.argmax()), area.shape)
    claim = ready.unit_detects(
        "it", "synthetic", layer="late", unit=int(unit), delta=0.02, reason=WHY, searched=True
    )
    return check_unit_detects(
        claim, units[:, unit], labels[:, concept], candidates=(units, labels), seed=seed
    )


def activation_decodes(planted: bool, seed: int) -> Verdict:
    """300 + 300 images, 10 units that carry the label (accuracy about 0.75) or not; raw inputs and 5 twins do not."""
    r, labels = stream(seed, "decodes"), np.tile([0, 1], 300)
    places = [r.normal(size=(600, 10)) for _ in range(7)]
    if planted:
        places[0][:, 0] += 1.5 * labels
    halves = [(place[:300], place[300:]) for place in places]
    claim = ready.activation_decodes(
        "it", "synthetic", layer="late", delta=0.1, reason=WHY, images=300, twins=5
    )
    train, test = (halves[0][0], labels[:300]), (halves[0][1], labels[300:])
    return check_activation_decodes(claim, train, test, raw=halves[1], twins=halves[2:], seed=seed)


def invariant(planted: bool, seed: int) -> Verdict:
    """100 images, 10 units, Gaussian; rho = delta = 0.05 (null) or 0.042."""
    r = stream(seed, "invariant")
    original = r.normal(size=(100, 10))
    changed = original + np.sqrt(2 * (0.042 if planted else 0.05)) * r.normal(size=(100, 10))
    return check_invariant(
        ready.invariant("it", "synthetic", layer="late", images=100), original, changed, seed=seed
    )


def units_necessary(planted: bool, seed: int) -> Verdict:
    """40 + 40 images, 3 ablation types, 199 random sets; null: the chosen set is a random set of a damaging kind."""
    r = stream(seed, "necessary")
    shared = r.normal()
    on = {name: 4.0 + shared + 0.5 * r.normal(size=40) for name in ready.ABLATIONS}
    off = {name: 0.5 * r.normal(size=40) for name in ready.ABLATIONS}
    worlds = {name: (0.0 if planted else 4.0) + r.normal(size=199) for name in ready.ABLATIONS}
    claim = ready.units_necessary(
        "it", "synthetic", layer="late", units=[0], delta=0.5, reason=WHY, images=80, worlds=199
    )
    return check_units_necessary(claim, on, off, worlds, changed=True, seed=seed)


def world_types() -> tuple[WorldType, ...]:
    """All claim types with the power they state; power of a joint claim is bounded below by Bonferroni."""
    slope_sd = 1 / np.sqrt(10)  # noise 1 over doses 0..4
    third = power_exceeds(6, sd=0.5 * 1.0, delta=1.0)
    error = auroc_error(0.7, 100, 100)
    return (
        WorldType("exceeds, 3 models", power_exceeds(3, sd=0.5, delta=1.0), exceeds),
        WorldType("equivalent, 10 models", power_equivalent(10, sd=0.5, delta=0.5), equivalent),
        WorldType("ordered, 5 models x 5 doses", power_exceeds(5, sd=float(slope_sd), delta=0.25), ordered),
        WorldType("specific, 6 models x 3 others", 1 - 3 * (1 - third), specific),
        WorldType("images nested in 8 models", power_exceeds(8, sd=0.574, delta=1.0), images_in_models),
        WorldType("beats 5 twins (prediction)", 0.99, twins_by_prediction),
        WorldType("beats 19 twins (rank)", 0.99, twins_by_rank),
        WorldType("optional stopping (e-value)", 0.8, optional_stopping),
        WorldType("property matters for accuracy", power_exceeds(6, sd=0.5, delta=1.0), property_matters),
        WorldType("two recipes are equivalent", power_equivalent(6, sd=0.5, delta=1.0), recipes_equivalent),
        WorldType("unit detects a concept", _normal_power(0.1 / error), unit_detects),
        WorldType("best unit and label of 150", 0.99, best_of_many),
        WorldType(
            "activation decodes an attribute", power_exceeds(300, sd=0.7, delta=0.1), activation_decodes
        ),
        WorldType(
            "representation is invariant", _log_ratio_power(100, rel=0.64, theta=0.042, delta=0.05), invariant
        ),
        WorldType("units are necessary", 0.8, units_necessary),
    )


def _log_ratio_power(n: int, *, rel: float, theta: float, delta: float) -> float:
    """P(upper bound < delta): the log of the ratio has sd rel / sqrt(n)."""
    return power_exceeds(n, sd=rel, delta=1.0, theta=1.0 + float(np.log(delta / theta)))


def _normal_power(shift: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(shift - 1.6449))
