"""Verdicts: the interval rule, the evidence ladder, and the record of how a verdict came about."""

import dataclasses as dc
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from pellucid._checks import DataError
from pellucid.claims.claim import Claim, Kind, NullForm, NullPlan
from pellucid.claims.nulls import prediction_p, prediction_threshold, rank_p, smallest_p
from pellucid.claims.power import Power
from pellucid.claims.words import RUNGS, falsifier, figure, percent

Outcome = Literal["supported", "refuted", "inconclusive", "invalid"]
Label = Literal["confirmatory", "exploratory"]

EXPLORATORY_RUNG = 2
"""Highest rung without a registration, or after a deviation from the plan."""


def interval_verdict(kind: Kind, lo: float, hi: float, *, delta: float) -> Outcome:
    """What an interval says about a claim, oriented so that it speaks of an increase (section 10.3 of the method).

    `equivalent`: supported if -delta < lo and hi < delta, refuted if lo > delta or hi < -delta. All other kinds:
    supported if lo > delta, refuted if hi < delta. Else inconclusive.
    """
    if kind == "equivalent":
        if -delta < lo and hi < delta:
            return "supported"
        return "refuted" if lo > delta or hi < -delta else "inconclusive"
    if lo > delta:
        return "supported"
    return "refuted" if hi < delta else "inconclusive"


@dc.dataclass(frozen=True)
class NullResult:
    """How the effect compares with the worlds of one null. `p` is NaN where the comparison is only a note."""

    name: str
    form: NullForm
    values: tuple[float, ...]
    p: float
    attainable: float

    def beaten(self, level: float) -> bool:
        """Whether p reaches the level."""
        return self.p <= level

    def threshold(self, level: float) -> float:
        """The effect that would beat it, oriented; NaN for the paired form."""
        worlds = np.array(self.values)
        if self.form == "prediction":
            return prediction_threshold(worlds, level=level)
        if self.form == "rank":
            above = math.floor(level * (len(worlds) + 1) + 1e-9)
            return float(np.sort(worlds)[-above]) if above >= 1 else math.inf
        return math.nan


def compare(plan: NullPlan, theta: float, worlds: Float[np.ndarray, " worlds"]) -> NullResult:
    """Compare an oriented effect with the oriented effects of null worlds, in the form that the plan names.

    Raises:
        DataError: the worlds are the effect itself, or copies of one world.
    """
    values = tuple(float(v) for v in worlds)
    if np.allclose(worlds, theta, rtol=1e-12, atol=0.0):
        raise DataError(
            f"null {plan.name!r} is no null: each of its {len(worlds)} worlds is the effect itself ({theta:g})"
        )
    if float(np.ptp(worlds)) == 0.0:
        raise DataError(
            f"null {plan.name!r} does not vary: its {len(worlds)} worlds are copies of one; vary their seed"
        )
    if plan.form == "prediction":
        return NullResult(plan.name, "prediction", values, prediction_p(theta, worlds), 0.0)
    return NullResult(plan.name, "rank", values, rank_p(theta, worlds), smallest_p(len(worlds)))


@dc.dataclass(frozen=True)
class Control:
    """A check of the pipeline itself. A control that failed makes the verdict invalid."""

    name: Literal["positive control", "negative control", "manipulation check"]
    passed: bool
    detail: str


@dc.dataclass(frozen=True)
class Verdict:
    """What became of a claim, with everything a reader needs to disagree.

    `effect`, `lo`, `hi` and `values` are in the claim's unit and as measured (treated minus control); nulls are
    oriented so that larger favours the claim. `level` is the one-sided level of the interval.
    """

    claim: Claim
    outcome: Outcome
    rung: int
    label: Label
    effect: float
    lo: float
    hi: float
    level: float
    p_raw: float
    p_adjusted: float
    p_refute: float
    method: str
    n: Mapping[str, int]
    values: tuple[float, ...]
    nulls: tuple[NullResult, ...] = ()
    controls: tuple[Control, ...] = ()
    power: Power | None = None
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    amendments: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    registration: str = ""
    seed: int = 0
    parts: tuple["Verdict", ...] = ()

    @property
    def headline(self) -> str:
        """The verdict word, never without its rung: "supported (rung 3, confirmatory)"."""
        return f"{self.outcome} (rung {self.rung}, {self.label})"

    @property
    def p_support(self) -> float:
        """The p-value that `supported` rests on: the largest of the interval's and those of all nulls."""
        beaten = [null.p for null in self.nulls if not math.isnan(null.p)]
        return max([self.p_raw, *beaten])

    def __str__(self) -> str:
        unit = self.claim.unit
        if math.isnan(self.effect):
            return f"{self.headline}: {'; '.join(self.reasons)}"
        inside = f"{figure(self.effect, unit)}, {percent(self.level)} interval [{self.lo:.3g}, {self.hi:.3g}]"
        why = f"; {'; '.join(self.reasons)}" if self.reasons else ""
        return f"{self.headline}: {self.claim.effect} {inside}, delta {figure(self.claim.delta, unit)}{why}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values (NaN and infinity become null), with the generated sentences."""
        fields = {field.name: getattr(self, field.name) for field in dc.fields(self)}
        fields["parts"] = [part.to_dict() for part in self.parts]
        for name in ("nulls", "controls"):
            fields[name] = [dc.asdict(one) for one in fields[name]]
        fields["claim"] = self.claim.to_dict()
        fields["power"] = None if self.power is None else dc.asdict(self.power)
        extra = {
            "headline": self.headline,
            "rung_means": RUNGS[self.rung],
            "falsifier": falsifier(self.claim),
        }
        return _plain({**fields, **extra, "hash": self.claim.sha256})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def rung(
    claim: Claim,
    outcome: Outcome,
    *,
    nulls: tuple[NullResult, ...],
    controls: tuple[Control, ...],
    level: float,
    confirmatory: bool,
) -> int:
    """The rung of the evidence ladder (0 to 6) that a verdict stands on; see `RUNGS`.

    Rung 3 asks for every null beaten; where support means no effect, or the verdict is refuted, for a positive control
    that was found (the world in which it would have come out otherwise). Rung 4 and 5 need an intervention whose
    manipulation check passed; 6 a `family` scope on top of rung 4.
    """
    if outcome == "invalid":
        return 0
    if claim.data.examples == "chosen":
        return 1
    passed = {control.name for control in controls if control.passed}
    beaten = bool(nulls) and all(null.beaten(level) for null in nulls)
    if outcome == "inconclusive":
        reached = 2
    elif claim.kind == "equivalent" or outcome == "refuted":
        reached = 3 if "positive control" in passed else 2
    else:
        reached = 3 if beaten else 2
    if reached == 3 and claim.intervention != "none" and "manipulation check" in passed:
        predicted = bool(claim.prediction) and claim.intervention != "input edit" and confirmatory
        reached = 5 if claim.intervention == "training-time" or predicted else 4
        reached = 6 if claim.scope.level == "family" else reached
    return reached if confirmatory else min(reached, EXPLORATORY_RUNG)
