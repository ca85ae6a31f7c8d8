"""Nulls and controls of one check: worlds in which the claim is false, and planted cases that test the pipeline."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float

from pellucid._checks import ConfigError, DataError, NumericError, nearest
from pellucid.claims.arms import Arms, Measured, Nested, as_array, shape_arms
from pellucid.claims.claim import Claim, NullPlan
from pellucid.claims.effect import dose_permutations, effect
from pellucid.claims.estimate import Estimate, one_sample_t
from pellucid.claims.nulls import smallest_p
from pellucid.claims.verdict import Control, NullResult, compare, interval_verdict
from pellucid.claims.words import figure
from pellucid.rng import derive

DEFAULT_WORLDS = 20
"""Worlds drawn from a generator that the claim does not plan: the fewest whose rank reaches 0.05, and one."""


def null_results(
    claim: Claim, given: Mapping[str, Any], arms: Arms, estimate: Estimate, *, seed: int
) -> tuple[NullResult, ...]:
    """Every planned and every given null compared with the effect; `ordered` claims also face permuted doses.

    Raises:
        ConfigError: a planned null has no worlds.
        DataError: a null is no null: it holds the treated data, or one world over and over.
    """
    planned = {plan.name: plan for plan in claim.nulls}
    for name in planned:
        if name not in given:
            hint = f"; given: {nearest(name, given)}" if given else ""
            raise ConfigError(f"the claim plans the null {name!r} and no worlds of it came{hint}")
    results = [
        _result(claim, planned.get(name), name, source, arms=arms, estimate=estimate, seed=seed)
        for name, source in given.items()
    ]
    if claim.kind == "ordered":
        worlds = dose_permutations(claim, arms, seed=seed)
        results.append(compare(NullPlan("doses permuted", worlds=len(worlds)), estimate.theta, worlds))
    return tuple(results)


def _result(
    claim: Claim, plan: NullPlan | None, name: str, source: Any, *, arms: Arms, estimate: Estimate, seed: int
) -> NullResult:
    if not callable(source):
        if not isinstance(source, Nested):
            source = as_array(source, f"null {name!r}")
        _check_not_treated(claim, name, source, arms)
    if plan is not None and plan.form == "paired":
        return _paired(claim, name, source, arms=arms, seed=seed)
    worlds = _worlds(claim, plan, name, source, arms=arms, seed=seed)
    if worlds.ndim != 1 or len(worlds) < 2:
        raise DataError(
            f"null {name!r} must hold the effect in each of at least 2 worlds, got shape {worlds.shape}"
        )
    if claim.kind == "equivalent":  # nothing to beat: reported as a note
        return NullResult(
            name, "rank", tuple(float(v) for v in worlds), float("nan"), smallest_p(len(worlds))
        )
    used = plan or _default_plan(claim, name, len(worlds))
    return compare(used, estimate.theta, worlds)


def _default_plan(claim: Claim, name: str, worlds: int) -> NullPlan:
    """Rank where it can reach the level, else the prediction interval; the result says which."""
    enough = smallest_p(worlds) <= claim.analysis.level
    return NullPlan(name, worlds=worlds, form="rank" if enough else "prediction")


def _worlds(
    claim: Claim, plan: NullPlan | None, name: str, source: Any, *, arms: Arms, seed: int
) -> Float[np.ndarray, "..."]:
    if not callable(source):
        return source * claim.sign
    call, count = cast("Callable[[int], Any]", source), DEFAULT_WORLDS if plan is None else plan.worlds
    return np.array(
        [_world(claim, name, call(derive(seed, "null", name, j)), arms=arms, seed=seed) for j in range(count)]
    )


def _world(claim: Claim, name: str, found: Any, *, arms: Arms, seed: int) -> float:
    pair = as_pair(found)
    if pair is None:
        value = float(found)
        if not np.isfinite(value):
            raise NumericError(f"null {name!r} gave {value} in one of its worlds")
        return value * claim.sign
    world = shape_arms(claim, *pair)
    if isinstance(world.treated, Nested) == isinstance(arms.treated, Nested):
        _check_not_treated(claim, name, by_replicate(world.treated) * claim.sign, arms)
    return effect(claim, world, seed=seed).theta


def by_replicate(arm: Nested | np.ndarray) -> np.ndarray:
    """One value a replicate: the means of nested images."""
    return arm.means if isinstance(arm, Nested) else arm


def _check_not_treated(claim: Claim, name: str, values: Nested | np.ndarray, arms: Arms) -> None:
    """A null that is the treated arm, or the effect by replicate, is the claim itself and can only be matched."""
    treated, given = by_replicate(arms.treated), by_replicate(values) * claim.sign
    same = [treated]
    if arms.control is not None and by_replicate(arms.control).shape == treated.shape:
        same.append(treated - by_replicate(arms.control))
    if any(given.shape == one.shape and np.allclose(given, one, rtol=1e-9, atol=0) for one in same):
        raise DataError(f"null {name!r} is no null: it holds the treated data themselves")


def _paired(claim: Claim, name: str, source: Any, *, arms: Arms, seed: int) -> NullResult:
    """The null arm of the same replicate: treated minus null must be above 0."""
    null = shape_arms(claim, source, seed=seed).treated
    treated, null = (one.means if isinstance(one, Nested) else one for one in (arms.treated, null))
    if treated.shape != null.shape or treated.ndim != 1:
        raise DataError(
            f"null {name!r} is paired: it needs one value for each of {len(treated)} replicates, got {null.shape}"
        )
    difference = treated - null
    p = one_sample_t(difference).p_above(0.0)
    return NullResult(name, "paired", tuple(float(v) for v in difference), p, 0.0)


def as_pair(found: Any) -> tuple[Any, Any] | None:
    """(treated, control) of a `Measured` or a pair; None for anything else."""
    if isinstance(found, Measured):
        return found.treated, found.control
    if isinstance(found, tuple) and len(cast("tuple[Any, ...]", found)) == 2:
        return cast("tuple[Any, Any]", found)
    return None


def planted_control(
    claim: Claim, given: Any, *, seed: int, name: Literal["positive control", "negative control"]
) -> tuple[Control, ...]:
    """A positive control passes if the claim is found in it, a negative one if it is not.

    For `equivalent` the positive control is a planted effect that must be refuted (could the pipeline have seen one?),
    and the negative control a case without effect that must not be.
    """
    if given is None:
        return ()
    if isinstance(given, bool | np.bool_):
        return (Control(name, bool(given), "judged by the caller"),)
    pair = as_pair(given)
    if pair is None:
        raise DataError(
            f"a {name} is a (treated, control) pair, or True or False, got {type(given).__name__}"
        )
    level = claim.analysis.level
    lo, hi = effect(claim, shape_arms(claim, *pair, seed=seed), seed=seed).bounds(level)
    wanted = "refuted" if claim.kind == "equivalent" else "supported"
    found = interval_verdict(claim.kind, lo, hi, delta=claim.delta) == wanted
    detail = f"interval [{figure(lo)}, {figure(hi)}] against delta {figure(claim.delta)}"
    return (Control(name, found if name == "positive control" else not found, detail),)


def manipulation_check(claim: Claim, given: Any) -> tuple[Control, ...]:
    """Did the knob turn? By replicate: the lower bound of the movement is above 0. Over doses: means are monotone."""
    if given is None:
        return ()
    if isinstance(given, bool | np.bool_):
        return (Control("manipulation check", bool(given), "judged by the caller"),)
    moved = as_array(given, "manipulation")
    if moved.ndim == 2:
        steps = np.diff(moved.mean(axis=0))
        monotone = bool((steps > 0).all() or (steps < 0).all())
        return (
            Control(
                "manipulation check",
                monotone,
                f"means over the doses {np.round(moved.mean(axis=0), 4).tolist()}",
            ),
        )
    lo, hi = one_sample_t(moved).bounds(claim.analysis.level)
    return (Control("manipulation check", lo > 0, f"moved by [{figure(lo)}, {figure(hi)}]"),)
