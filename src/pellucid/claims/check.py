"""Check a claim against its numbers: `check`, `judge`, `check_family`, `all_of`.

The order of things: the arms are checked and oriented, the effect is estimated, each null is compared, the controls
are judged, the ledger is audited; then the interval rule decides.
"""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pellucid._checks import ConfigError, DataError, check_one_of
from pellucid.claims.arms import Arm, digest_of, gather, hash_arrays
from pellucid.claims.caveats import gaps, null_notes, warnings
from pellucid.claims.claim import Claim
from pellucid.claims.controls import manipulation_check, null_results, planted_control
from pellucid.claims.effect import effect
from pellucid.claims.estimate import Estimate
from pellucid.claims.families import (
    Correction,
    benjamini_hochberg,
    benjamini_yekutieli,
    harmonic,
    holm,
    holm_levels,
    selection_levels,
)
from pellucid.claims.ledger import Ledger
from pellucid.claims.nulls import max_t
from pellucid.claims.power import power_before
from pellucid.claims.registration import NO_AUDIT, Audit, Registration, audit, same_check
from pellucid.claims.verdict import Control, NullResult, Outcome, Verdict, interval_verdict, rung
from pellucid.claims.words import against, figure


@dc.dataclass(frozen=True)
class Evidence:
    """All that a verdict is made of before the level is known: a family decides that."""

    claim: Claim
    estimate: Estimate
    n: Mapping[str, int]
    nulls: tuple[NullResult, ...] = ()
    controls: tuple[Control, ...] = ()
    audit: Audit = NO_AUDIT
    notes: tuple[str, ...] = ()
    seed: int = 0
    digest: str = ""
    registration: Registration | None = None

    @property
    def p_support(self) -> float:
        """Largest of the p-values that support needs."""
        delta, kind = self.claim.delta, self.claim.kind
        p = self.estimate.p_above(-delta if kind == "equivalent" else delta)
        if kind == "equivalent":
            return max(p, self.estimate.p_below(delta))
        return max([p, *(null.p for null in self.nulls)])

    @property
    def p_refute(self) -> float:
        """P-value of the claim's own truth at its boundary."""
        below = self.estimate.p_below(
            -self.claim.delta if self.claim.kind == "equivalent" else self.claim.delta
        )
        if self.claim.kind == "equivalent":
            return min(below, self.estimate.p_above(self.claim.delta))
        return below


def check(
    claim: Claim,
    treated: Arm,
    control: Arm = None,
    *,
    nulls: Mapping[str, Any] | None = None,
    positive_control: Any = None,
    negative_control: Any = None,
    manipulation: Any = None,
    registration: Registration | None = None,
    notes: tuple[str, ...] = (),
    seed: int = 0,
) -> Verdict:
    """The verdict on a claim: supported, refuted, inconclusive or invalid, with the rung it stands on.

    Args:
        treated, control: one value a replicate (what a replicate is follows from the scope), `nested` images by model,
            or a function of a seed; control None means that treated is the effect itself.
        nulls: for each null its worlds: an array of effects, or a function of a seed that gives an effect or a
            (treated, control) pair; for the paired form the null arm by replicate.
        positive_control: a planted (treated, control) pair in which the claim is true and must be found, or whether
            it was found. For `equivalent` it is a planted effect, which must be refuted.
        negative_control: a pair without the effect, in which the claim must not be found, or whether it stayed silent.
        manipulation: how far the manipulated property moved as intended, by replicate (or replicates x doses, which
            must be monotone), or whether it moved.
        registration: the receipt of `register`; the verdict goes into its ledger. Without it the verdict is
            exploratory and stands on rung 2 at most.
        notes: lines for the card.

    Raises:
        DataError, NumericError, ConfigError: the numbers cannot carry a verdict; the message says why.
    """
    found = collect(
        claim,
        treated,
        control,
        nulls=nulls,
        positive_control=positive_control,
        negative_control=negative_control,
        manipulation=manipulation,
        registration=registration,
        notes=notes,
        seed=seed,
    )
    return conclude(found)


def collect(
    claim: Claim,
    treated: Arm,
    control: Arm = None,
    *,
    nulls: Mapping[str, Any] | None = None,
    positive_control: Any = None,
    negative_control: Any = None,
    manipulation: Any = None,
    registration: Registration | None = None,
    notes: tuple[str, ...] = (),
    seed: int = 0,
) -> Evidence:
    """The first half of `check`: everything but the level. `check_family` concludes several together."""
    arms = gather(claim, treated, control, seed=seed)
    estimate = effect(claim, arms, seed=seed)
    controls = (
        *planted_control(claim, positive_control, seed=seed, name="positive control"),
        *planted_control(claim, negative_control, seed=seed, name="negative control"),
        *manipulation_check(claim, manipulation),
    )
    worlds = null_results(claim, nulls or {}, arms, estimate, seed=seed)
    return evidence(
        claim,
        estimate,
        n=arms.n,
        nulls=worlds,
        controls=controls,
        registration=registration,
        notes=notes,
        seed=seed,
        digest=digest_of(arms, nulls=worlds, controls=controls, seed=seed),
    )


def evidence(
    claim: Claim,
    estimate: Estimate,
    *,
    n: Mapping[str, int],
    nulls: tuple[NullResult, ...] = (),
    controls: tuple[Control, ...] = (),
    registration: Registration | None = None,
    notes: tuple[str, ...] = (),
    seed: int = 0,
    digest: str = "",
    part_of: Claim | None = None,
) -> Evidence:
    """Evidence from an estimate that was made elsewhere, oriented so that the claim speaks of an increase.

    Args:
        digest: hash of the data; made from the estimate if empty.
        part_of: the registered claim, where this is only one of its parts (see `all_of`).
    """
    digest = digest or hash_arrays(estimate.values, np.array([estimate.theta]))
    found = audit(part_of or claim, registration, digest=digest)
    if registration is not None:
        found = dc.replace(found, deviations=(*found.deviations, *gaps(claim, n, nulls, controls)))
    return Evidence(
        claim=claim,
        estimate=estimate,
        n=n,
        nulls=nulls,
        controls=controls,
        audit=found,
        notes=(*notes, *null_notes(claim, nulls)),
        seed=seed,
        digest=digest,
        registration=registration,
    )


def judge(found: Evidence) -> Verdict:
    """The verdict at the claim's own level (alpha over the size of its family), not written anywhere."""
    level = found.claim.analysis.level
    adjusted = min(1.0, found.p_support * found.claim.analysis.family_size)
    return judge_at(found, support=level, refute=level, p_adjusted=adjusted)


def conclude(found: Evidence) -> Verdict:
    """`judge`, and the verdict goes into the ledger of its registration."""
    verdict = judge(found)
    write_down(found, verdict)
    return verdict


def judge_at(
    found: Evidence, *, support: float, refute: float, p_adjusted: float, nulls_at: float | None = None
) -> Verdict:
    """The verdict at given one-sided levels for support and refutation; nulls must be beaten at `nulls_at` (`support`)."""
    claim, estimate = found.claim, found.estimate
    null_level = support if nulls_at is None else nulls_at
    outcome, reasons = _decide(found, support=support, refute=refute, nulls_at=null_level)
    level = refute if outcome == "refuted" else support
    lo, hi = estimate.bounds(level)
    confirmatory = found.registration is not None and not found.audit.deviations and outcome != "invalid"
    shown = [float(claim.sign * v) for v in (lo, hi)]
    p_raw = Evidence(claim, estimate, found.n).p_support
    return Verdict(
        claim=claim,
        outcome=outcome,
        rung=rung(
            claim,
            outcome,
            nulls=found.nulls,
            controls=found.controls,
            level=null_level,
            confirmatory=confirmatory,
        ),
        label="confirmatory" if confirmatory else "exploratory",
        effect=claim.sign * estimate.theta,
        lo=min(shown),
        hi=max(shown),
        level=level,
        p_raw=p_raw,
        p_adjusted=p_adjusted,
        p_refute=found.p_refute,
        method=estimate.method,
        n=found.n,
        values=tuple(float(v) for v in claim.sign * estimate.values),
        nulls=found.nulls,
        controls=found.controls,
        power=power_before(claim),
        reasons=reasons,
        warnings=tuple(warnings(claim, estimate, n=found.n, nulls=found.nulls, controls=found.controls)),
        deviations=found.audit.deviations,
        amendments=found.audit.amendments,
        notes=found.notes,
        registration=found.audit.hash,
        seed=found.seed,
    )


def without_numbers(claim: Claim, reasons: tuple[str, ...], *, registration: str = "") -> Verdict:
    """An invalid verdict on a claim whose data were not opened, with the reasons."""
    nan = float("nan")
    return Verdict(
        claim=claim,
        outcome="invalid",
        rung=0,
        label="exploratory",
        effect=nan,
        lo=nan,
        hi=nan,
        level=claim.analysis.level,
        p_raw=nan,
        p_adjusted=nan,
        p_refute=nan,
        method="not measured",
        n={},
        values=(),
        power=power_before(claim),
        reasons=reasons,
        registration=registration,
    )


def _decide(
    found: Evidence, *, support: float, refute: float, nulls_at: float
) -> tuple[Outcome, tuple[str, ...]]:
    claim, estimate = found.claim, found.estimate
    failed = [f"the {c.name} failed: {c.detail}" for c in found.controls if not c.passed]
    if found.audit.invalid or failed:
        return "invalid", (*found.audit.invalid, *failed)
    lo, hi = estimate.bounds(support)
    if interval_verdict(claim.kind, lo, hi, delta=claim.delta) == "supported":
        held = [null for null in found.nulls if claim.kind != "equivalent" and not null.beaten(nulls_at)]
        if not held:
            return "supported", ()
        return "inconclusive", tuple(
            f"the interval clears delta, but null '{null.name}' is not beaten (p = {figure(null.p)})"
            for null in held
        )
    lo, hi = estimate.bounds(refute)
    if interval_verdict(claim.kind, lo, hi, delta=claim.delta) == "refuted":
        return "refuted", (against(estimate.theta, lo, hi, claim.delta, kind=claim.kind),)
    return "inconclusive", ("the interval holds values on both sides of delta",)


def write_down(found: Evidence, verdict: Verdict) -> None:
    """Add the verdict to the ledger, unless the same numbers stand there already or the ledger is damaged."""
    if found.registration is None:
        return
    book = Ledger(found.registration.ledger)
    if book.verify() or any(
        same_check(str(e.body["digest"]), found.digest)
        for e in book.about(found.registration.hash, "checked")
    ):
        return
    kept = {
        name: verdict.to_dict()[name]
        for name in ("outcome", "headline", "rung", "label", "effect", "lo", "hi")
    }
    book.append("checked", found.registration.hash, {**kept, "digest": found.digest})


def check_family(
    cases: Mapping[str, Evidence], *, correction: Correction = "holm", alpha: float = 0.05
) -> dict[str, Verdict]:
    """Verdicts of claims that are tested together, from `collect`ed evidence.

    Holm controls the chance of any false verdict, `bh` and `by` the share of false ones among the supported. Support
    and refutation are corrected separately; each interval is read at the level at which its claim was tested.
    """
    check_one_of(correction, ("holm", "bh", "by"), "correction")
    if not cases:
        raise ConfigError("a family needs at least one claim")
    found = list(cases.values())
    support = np.array([one.p_support for one in found])
    refute = np.array([one.p_refute for one in found])
    adjusted, levels = _corrected(support, correction, alpha)
    _, refute_levels = _corrected(refute, correction, alpha)
    verdicts: dict[str, Verdict] = {}
    for i, (name, one) in enumerate(cases.items()):
        verdict = judge_at(
            one, support=float(levels[i]), refute=float(refute_levels[i]), p_adjusted=float(adjusted[i])
        )
        write_down(one, verdict)
        verdicts[name] = verdict
    return verdicts


def check_family_max_t(
    cases: Mapping[str, Evidence], *, null: str, alpha: float = 0.05
) -> dict[str, Verdict]:
    """Verdicts of claims whose null worlds are drawn jointly: world j of every claim is the same permutation or network.

    The null's p-values are step-down max-T adjusted over the family (Westfall and Young 1993), which needs far fewer worlds
    than Holm when the claims are correlated; intervals are read at Holm's levels, as in `check_family`.

    Args:
        null: the name of the joint null, in rank form, which every claim has with equally many worlds.

    Raises:
        DataError: a claim without that null, or with another number of worlds.
    """
    if not cases:
        raise ConfigError("a family needs at least one claim")
    joint = {
        name: next((one for one in found.nulls if one.name == null), None) for name, found in cases.items()
    }
    worlds = {
        name: 0 if one is None or one.form != "rank" else len(one.values) for name, one in joint.items()
    }
    if len(set(worlds.values())) > 1 or not min(worlds.values()):
        raise DataError(
            f"max-T needs the null {null!r} in rank form with equally many worlds in every claim, got {worlds}"
        )
    values = np.stack([np.array(one.values) for one in joint.values() if one is not None], axis=1)
    adjusted = max_t(np.array([found.estimate.theta for found in cases.values()]), values)
    inside = np.array([Evidence(found.claim, found.estimate, found.n).p_support for found in cases.values()])
    support = holm_levels(inside, alpha=alpha)
    refute = holm_levels(np.array([found.p_refute for found in cases.values()]), alpha=alpha)
    verdicts: dict[str, Verdict] = {}
    for i, (name, found) in enumerate(cases.items()):
        nulls = tuple(
            dc.replace(one, p=float(adjusted[i])) if one.name == null else one for one in found.nulls
        )
        one = dc.replace(found, nulls=nulls)
        p_adjusted = float(max(adjusted[i], holm(inside)[i]))
        verdict = judge_at(
            one, support=float(support[i]), refute=float(refute[i]), p_adjusted=p_adjusted, nulls_at=alpha
        )
        write_down(one, verdict)
        verdicts[name] = verdict
    return verdicts


def _corrected(p: np.ndarray, correction: Correction, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    if correction == "holm":
        return holm(p), holm_levels(p, alpha=alpha)
    if correction == "bh":
        adjusted = benjamini_hochberg(p)
        return adjusted, selection_levels(adjusted, alpha=alpha)
    adjusted = benjamini_yekutieli(p)
    return adjusted, selection_levels(adjusted, alpha=alpha, penalty=harmonic(len(p)))


def all_of(parts: Sequence[Evidence]) -> Verdict:
    """One verdict on a claim with several parts that must all hold (intersection-union); the first part names it.

    Supported if every part is, at the full level (no correction is due); refuted if any part is at level / parts;
    invalid if any part is. Effect and interval shown are those of the part that decided.
    """
    if not parts:
        raise DataError("a claim with parts needs at least one")
    judged = [
        judge_at(
            part,
            support=part.claim.analysis.level,
            refute=part.claim.analysis.level / len(parts),
            p_adjusted=part.p_support,
        )
        for part in parts
    ]
    order: tuple[Outcome, ...] = ("invalid", "refuted", "inconclusive", "supported")
    worst = min(judged, key=lambda verdict: order.index(verdict.outcome))
    p = max(verdict.p_support for verdict in judged)
    reasons = tuple(
        f"{v.claim.effect}: {reason}" for v in judged if v.outcome == worst.outcome for reason in v.reasons
    )
    verdict = dc.replace(
        worst,
        claim=parts[0].claim,
        rung=_joint_rung(judged, worst),
        p_adjusted=p,
        reasons=reasons,
        warnings=tuple(dict.fromkeys(w for v in judged if v is judged[0] or v.nulls for w in v.warnings)),
        notes=tuple(dict.fromkeys(note for v in judged for note in v.notes)),
        parts=tuple(judged),
    )
    write_down(parts[0], verdict)
    return verdict


def _joint_rung(judged: Sequence[Verdict], worst: Verdict) -> int:
    """The part that decided; where all hold, the weakest of those that faced nulls or an intervention."""
    if worst.outcome != "supported":
        return worst.rung
    return min(verdict.rung for verdict in judged if verdict.nulls or verdict is judged[0])
