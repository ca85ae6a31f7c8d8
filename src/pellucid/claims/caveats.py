"""What a verdict has to say against itself: gaps in the registered plan, warnings, notes on nulls."""

import math
from collections.abc import Mapping

import numpy as np

from pellucid.claims.claim import Claim
from pellucid.claims.estimate import Estimate
from pellucid.claims.power import power_before
from pellucid.claims.verdict import Control, NullResult
from pellucid.claims.words import figure

FEW_MODELS = 6
FEW_IMAGES = 20


def gaps(
    claim: Claim, n: Mapping[str, int], nulls: tuple[NullResult, ...], controls: tuple[Control, ...]
) -> list[str]:
    """What was registered and did not come: each is a deviation from the plan."""
    found: list[str] = []
    for name, planned in (("models", claim.analysis.models), ("images", claim.analysis.images)):
        came = sum(count for key, count in n.items() if key.startswith(name))
        if planned and came and came != planned:
            found.append(f"{came} {name} came for the {planned} registered")
    for plan in claim.nulls:
        came = next((len(null.values) for null in nulls if null.name == plan.name), 0)
        if plan.form != "paired" and came < plan.worlds:
            found.append(f"null {plan.name!r}: {came} worlds came for the {plan.worlds} registered")
    present = {control.name for control in controls}
    for text, name in (
        (claim.positive_control, "positive control"),
        (claim.manipulation, "manipulation check"),
    ):
        if text and name not in present:
            found.append(f"the registered {name} was not run")
    return found


def null_notes(claim: Claim, nulls: tuple[NullResult, ...]) -> list[str]:
    """Where support means no effect, a null has nothing to be beaten at: say whether the claim is also true there."""
    notes: list[str] = []
    for null in nulls:
        if math.isnan(null.p):
            inside = sum(abs(v) < claim.delta for v in null.values)
            word = "also true" if 2 * inside > len(null.values) else "not true"
            where = "untrained" if "untrained" in null.name else f"in null '{null.name}'"
            notes.append(f"{word} {where} ({inside} of {len(null.values)} worlds)")
    return notes


def warnings(
    claim: Claim,
    estimate: Estimate,
    *,
    n: Mapping[str, int],
    nulls: tuple[NullResult, ...],
    controls: tuple[Control, ...],
) -> list[str]:
    """What weakens a verdict without making it invalid, each in one line."""
    names = {control.name for control in controls}
    out = [*_sizes(claim, n), *_power(claim)]
    if claim.kind in ("exceeds", "specific") and not nulls:
        out.append(
            "no null: nothing shows that the effect is absent where the claim is false (rung 2 at most)"
        )
    if "positive control" not in names:
        out.append("no positive control: the pipeline was not seen to find a planted case")
    if claim.intervention != "none" and "manipulation check" not in names:
        out.append("no manipulation check: it is not shown that the intervention took hold (rung 3 at most)")
    if not claim.reason:
        out.append("no reason is given why delta is the smallest effect that counts")
    if len(estimate.values) > 1 and float(np.ptp(estimate.values)) == 0:
        out.append(
            "the effect is the same in every replicate, so its interval has no width: is it true by construction?"
        )
    for null in nulls:
        if null.form == "prediction":
            out.append(f"null '{null.name}': {len(null.values)} worlds, compared as Gaussian")
    return out


def _sizes(claim: Claim, n: Mapping[str, int]) -> list[str]:
    level = claim.scope.level
    models, least = n.get("models", 0), min(n.values())
    if level != "checkpoint" and models < FEW_MODELS:
        return [f"only {models} models stand for the {level}; {FEW_MODELS} or more make the interval useful"]
    if level == "checkpoint" and least < FEW_IMAGES:
        return [f"only {least} {claim.scope.over}: the interval leans on normality"]
    return []


def _power(claim: Claim) -> list[str]:
    power = power_before(claim)
    if power is None:
        return [
            "power was not stated before: set analysis.sd from exploration replicates, and the replicate count"
        ]
    if power.underpowered:
        return [f"underpowered: {power.value:.2f} at an effect of {figure(power.at, claim.unit)}"]
    return []
