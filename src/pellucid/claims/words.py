"""The sentences that come with a claim: its rungs, its falsifier, its verdict in words."""

import math

from pellucid.claims.claim import Claim

RUNGS = (
    "an anecdote",
    "quantified on chosen examples",
    "quantified on held-out data with an interval",
    "beats its nulls",
    "an intervention on inputs or activations changes what was predicted",
    "an intervention during training, or an edit predicted before it was made",
    "replicated over models or data sets",
)
"""What each rung of the evidence ladder means, weakest first."""


def figure(value: float, unit: str = "") -> str:
    """Three significant figures with the unit behind."""
    text = f"{value:.3g}" if math.isfinite(value) else ("unbounded" if math.isinf(value) else "unknown")
    return f"{text} {unit}".strip()


def percent(level: float) -> str:
    """One-sided level 0.05 -> "90%"."""
    return f"{100 * (1 - 2 * level):.4g}%"


def falsifier(claim: Claim) -> str:
    """The outcome that would refute the claim, in words, made from its fields alone."""
    over, delta = claim.scope.replicate, figure(claim.delta, claim.unit)
    interval = f"the {percent(claim.analysis.level)} interval of {claim.effect} over {over}"
    signed = figure(claim.sign * claim.delta, claim.unit)
    if claim.kind == "equivalent":
        return (
            f"Refuted if {interval} lies wholly above {delta} or wholly below -{delta}. "
            f"An interval that reaches outside [-{delta}, {delta}] without leaving it is inconclusive, not support."
        )
    side = "below" if claim.sign > 0 else "above"
    what = {
        "exceeds": f"{interval} lies wholly {side} {signed}",
        "ordered": f"{interval}, a trend over the doses, lies wholly {side} {signed}",
        "specific": f"{interval}, against any one of the others, lies wholly {side} {signed}",
    }[claim.kind]
    beaten = _nulls(claim)
    return (
        f"Refuted if {what}: a non-zero effect that is too small refutes as well as one of "
        f"the wrong sign.{beaten}"
    )


def _nulls(claim: Claim) -> str:
    names = [f"'{plan.name}'" for plan in claim.nulls]
    if not names:
        return ""
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f" An effect that does not beat the null worlds {listed} is not support either."


def against(theta: float, lo: float, hi: float, delta: float, *, kind: str) -> str:
    """Why an oriented interval refutes: wrong sign, or non-zero but too small, or simply too small."""
    if kind == "equivalent":
        return "the effect lies outside the range that counts as none"
    if hi < 0:
        return "the effect has the wrong sign"
    if lo > 0:
        return "the effect is non-zero but too small"
    return f"the effect ({figure(theta)}) is smaller than the smallest that counts ({figure(delta)})"
