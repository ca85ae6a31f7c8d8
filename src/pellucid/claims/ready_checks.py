"""The checks that go with the ready-made claims of `ready`. They take arrays; no method and no model is imported."""

import dataclasses as dc
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from pellucid._checks import ConfigError, DataError
from pellucid.claims.arms import Arm, as_array
from pellucid.claims.auroc import auroc_difference, delong
from pellucid.claims.check import Evidence, all_of, check, evidence
from pellucid.claims.claim import Claim, NullPlan
from pellucid.claims.controls import manipulation_check
from pellucid.claims.estimate import (
    Estimate,
    LogRatio,
    Weakest,
    one_sample_t,
    ratio_of_means,
    welch_t,
)
from pellucid.claims.nulls import permuted_auroc_worlds, smallest_p
from pellucid.claims.ready import ABLATIONS, PERMUTED, RANDOM_SETS, UNTRAINED, part
from pellucid.claims.registration import Registration
from pellucid.claims.ridge import ridge_scores, shuffled_correct
from pellucid.claims.verdict import Control, NullResult, Verdict, compare, interval_verdict
from pellucid.rng import stream

Features = Float[np.ndarray, "_ _"]
"""Responses (images, units) whose sizes may differ from other arguments'."""


def check_property_matters(
    claim: Claim,
    treated: Arm,
    permuted: Arm,
    *,
    moved: Any,
    positive_control: Any = None,
    registration: Registration | None = None,
    seed: int = 0,
) -> Verdict:
    """Accuracy of the property arm against the permuted-label arm of the same replicate.

    Args:
        moved: how far the property moved as intended, by replicate: the manipulation check.
    """
    return check(
        claim,
        treated,
        permuted,
        nulls={PERMUTED: permuted},
        manipulation=moved,
        positive_control=positive_control,
        registration=registration,
        seed=seed,
    )


def check_recipes_equivalent(
    claim: Claim,
    first: Arm,
    second: Arm,
    *,
    positive_control: Any = None,
    registration: Registration | None = None,
    seed: int = 0,
) -> Verdict:
    """Two recipes by trained model; the positive control is a pair of recipes known to differ."""
    return check(
        claim, first, second, positive_control=positive_control, registration=registration, seed=seed
    )


def check_unit_detects(
    claim: Claim,
    responses: Float[np.ndarray, " images"],
    concept: Bool[np.ndarray, " images"],
    *,
    distractors: Bool[np.ndarray, "images others"] | None = None,
    candidates: tuple[Features, Bool[np.ndarray, "_ _"]] | None = None,
    twins: Float[np.ndarray, " worlds"] | None = None,
    inserted: tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]] | None = None,
    strata: Int[np.ndarray, " images"] | None = None,
    positive_control: bool | None = None,
    moved: Any = None,
    registration: Registration | None = None,
    seed: int = 0,
) -> Verdict:
    """AUROC of a unit for a concept, its margin over distractors, and its response to an edit; all parts must hold.

    Args:
        responses: the unit on images that were not used to choose unit or label.
        candidates: responses (images, units) and labels (images, concepts) among which unit and label were chosen;
            each permuted world then repeats the search over them.
        twins: AUROC - 1/2 in each untrained twin, after the same search.
        inserted: response change when the concept is inserted, and when a distractor is, for the same images.
        strata: permute labels within these groups only (confounds).
        positive_control: whether the pipeline found a planted concept unit.
        moved: manipulation check of the edit: by image pair, how far the input changed, or True / False.
    """
    if float(np.ptp(responses)) == 0:
        raise DataError(
            "the unit gives the same response to every image (a dead unit), so it detects nothing"
        )
    plans = {plan.name: plan for plan in claim.nulls}
    permuted = plans.get(PERMUTED, NullPlan(PERMUTED, worlds=199))
    if permuted.search and candidates is None:
        raise ConfigError("the unit was searched for: pass candidates=(responses of all units, all labels)")
    pool = candidates or (responses[:, None], concept[:, None])
    labels = pool[1].astype(np.int64)
    worlds = permuted_auroc_worlds(pool[0], labels, worlds=permuted.worlds, seed=seed, strata=strata)
    found = delong(responses[concept], responses[~concept])
    nulls = [compare(permuted, found.theta, worlds.max(axis=(1, 2)))]
    nulls += _twins(plans, found.theta, twins)
    counts = {"images, with": int(concept.sum()), "images, without": int((~concept).sum())}
    known = (
        ()
        if positive_control is None
        else (Control("positive control", positive_control, "judged by the caller"),)
    )
    known = (*known, *manipulation_check(claim, moved))
    main = evidence(
        claim, found, n=counts, nulls=tuple(nulls), controls=known, registration=registration, seed=seed,
        notes=(permuted_note(permuted),) if permuted.search else (),
    )  # fmt: skip
    parts = [main]
    if distractors is not None:
        parts.append(_margin(claim, responses, concept, distractors, registration=registration))
    if "edit_delta" in claim.measure.args:
        parts.append(_edit(claim, inserted, registration))
    return all_of(parts)


def permuted_note(plan: NullPlan) -> str:
    """What a searched null says on the card."""
    return f"the search for the best unit and label was repeated in each of {plan.worlds} permuted worlds"


def _twins(plans: Mapping[str, NullPlan], theta: float, twins: np.ndarray | None) -> list[NullResult]:
    if twins is None:
        if UNTRAINED in plans:
            raise ConfigError(f"the claim plans the null {UNTRAINED!r} and no twins came")
        return []
    form = "rank" if len(twins) >= 19 else "prediction"
    return [compare(plans.get(UNTRAINED, NullPlan(UNTRAINED, worlds=len(twins), form=form)), theta, twins)]


def _margin(
    claim: Claim,
    responses: np.ndarray,
    concept: np.ndarray,
    distractors: np.ndarray,
    *,
    registration: Registration | None,
) -> Evidence:
    margin = float(claim.measure.args.get("margin", 0.10))
    weakest = Weakest(tuple(auroc_difference(responses, concept, other) for other in distractors.T))
    one = part(claim, delta=margin, effect="AUROC beyond the best distractor")
    return _beside(one, weakest, {"images": len(responses)}, part_of=claim, registration=registration)


def _edit(
    claim: Claim, inserted: tuple[np.ndarray, np.ndarray] | None, registration: Registration | None
) -> Evidence:
    if inserted is None:
        raise ConfigError(
            "the claim plans an input edit (edit_delta): pass inserted=(change, distractor change)"
        )
    change, other = as_array(inserted[0], "inserted"), as_array(inserted[1], "inserted distractor")
    if change.shape != other.shape:
        raise DataError(f"both edits are of the same images, got {change.shape} and {other.shape} changes")
    one = part(claim, delta=float(claim.measure.args["edit_delta"]), effect="response to inserting it")
    return _beside(
        one,
        one_sample_t(change - other),
        {"image pairs": len(change)},
        part_of=claim,
        registration=registration,
    )


def _beside(
    one: Claim, estimate: Estimate, n: Mapping[str, int], *, part_of: Claim, registration: Registration | None
) -> Evidence:
    """Evidence for a further part: the main part carries the nulls that rung 3 asks for."""
    bare = dc.replace(one, positive_control="", manipulation="", analysis=dc.replace(one.analysis, images=0))
    return evidence(bare, estimate, n=n, registration=registration, part_of=part_of)


def check_activation_decodes(
    claim: Claim,
    train: tuple[Features, Int[np.ndarray, " _"]],
    test: tuple[Features, Int[np.ndarray, " _"]],
    *,
    raw: tuple[Features, Features] | None = None,
    twins: Sequence[tuple[Features, Features]] = (),
    ridge: float = 1.0,
    registration: Registration | None = None,
    seed: int = 0,
) -> Verdict:
    """Accuracy of a linear probe beyond each control on one held-out split: the weakest margin must exceed delta.

    Controls: the most frequent class, probes on shuffled labels, on raw inputs (`raw`: train and test) and on untrained
    twins (train and test features of each). Null worlds repeat all of it with shuffled labels; each twin is also put in
    the network's place.
    """
    (features, targets), (held, truth) = train, test
    for name, one, other in [("train", features, targets), ("test", held, truth)]:
        if len(one) != len(other):
            raise DataError(f"{name} holds {len(one)} images and {len(other)} labels")
    for name, place in [("raw", raw), *(("twins", twin) for twin in twins)]:
        if place is not None and (len(place[0]), len(place[1])) != (len(targets), len(truth)):
            raise DataError(f"{name} must hold the same {len(targets)} training and {len(truth)} test images")
    plan = next((p for p in claim.nulls if p.name == PERMUTED), NullPlan(PERMUTED))
    labels = _label_worlds(targets, truth, plan.worlds, seed)
    places = [(features, held), *([raw] if raw is not None else []), *twins]
    right = np.stack([shuffled_correct(*place, *labels, ridge=ridge).astype(float) for place in places])
    modes = np.array([np.bincount(world).argmax() for world in labels[0]])
    guess = (modes[:, None] == labels[1]).astype(float)
    known = right[1 : 2 if raw is not None else 1]
    main = _margins(right[0], [guess, *known, *_mean(right[1 + len(known) :])])
    shuffled = np.broadcast_to(right[0][1:].mean(axis=0), truth.shape)
    estimate = Weakest(
        tuple(
            one_sample_t(right[0][0] - other, method="paired t over test images")
            for other in [*main.others, shuffled]
        )
    )
    nulls = [compare(plan, estimate.theta, main.worlds)]
    if twins:
        nulls += _decoding_twins(claim, right, guess, known, theta=estimate.theta)
    counts = {"images": len(truth), "training images": len(targets)}
    return all_of(
        [evidence(claim, estimate, n=counts, nulls=tuple(nulls), registration=registration, seed=seed)]
    )


@dc.dataclass(frozen=True)
class _Margins:
    """Controls by test image in the real world, and the weakest margin in each shuffled world."""

    others: list[np.ndarray]
    worlds: np.ndarray


def _margins(right: np.ndarray, others: Sequence[np.ndarray]) -> _Margins:
    weakest = np.min([right.mean(axis=1) - other.mean(axis=1) for other in others], axis=0)
    return _Margins([other[0] for other in others], weakest[1:])


def _mean(twins: np.ndarray) -> list[np.ndarray]:
    return [twins.mean(axis=0)] if len(twins) else []


def _decoding_twins(
    claim: Claim, right: np.ndarray, guess: np.ndarray, known: np.ndarray, *, theta: float
) -> list[NullResult]:
    """Each twin in the network's place, against the same controls and the other twins."""
    twins = right[1 + len(known) :]
    if len(twins) < 2:
        raise DataError("at least 2 untrained twins are needed to know how much they vary")
    found: list[float] = []
    for j in range(len(twins)):
        rest = np.delete(twins, j, axis=0)
        found.append(min(float((twins[j] - other)[0].mean()) for other in [guess, *known, rest.mean(axis=0)]))
    plans = {plan.name: plan for plan in claim.nulls}
    return _twins(plans, theta, np.array(found))


def _label_worlds(
    targets: np.ndarray, truth: np.ndarray, worlds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The true labels first, then each shuffled world's, for training and test images."""
    random = stream(seed, "shuffled labels")
    first = np.stack([targets, *(random.permutation(targets) for _ in range(worlds))])
    return first, np.stack([truth, *(random.permutation(truth) for _ in range(worlds))])


def check_invariant(
    claim: Claim,
    original: Features,
    changed: Features,
    *,
    twins: Sequence[tuple[Features, Features]] = (),
    moved: Any = None,
    registration: Registration | None = None,
    seed: int = 0,
) -> Verdict:
    """rho of a representation under a change of its input, with a planted non-invariant map as positive control.

    Args:
        twins: (original, changed) in untrained networks: is the invariance learnt or built in?
        moved: manipulation check: by image, how far the change moved the input itself, or True / False.
    """
    found = rho(original, changed)
    planted = rho(original, np.roll(original, 1, axis=0)).bounds(claim.analysis.level)
    seen = interval_verdict("equivalent", *planted, delta=claim.delta) == "refuted"
    control = Control(
        "positive control",
        seen,
        f"each image against another one: rho in [{planted[0]:.3g}, {planted[1]:.3g}]",
    )
    nulls: tuple[NullResult, ...] = ()
    if twins:
        worlds = tuple(rho(*twin).theta for twin in twins)
        nulls = (NullResult(UNTRAINED, "rank", worlds, math.nan, smallest_p(len(worlds))),)
    counts = {"images": len(original)}
    controls = (control, *manipulation_check(claim, moved))
    parts = [
        evidence(claim, found, n=counts, nulls=nulls, controls=controls, registration=registration, seed=seed)
    ]
    if "probe_delta" in claim.measure.args:
        parts.append(_told_apart(claim, original, changed, control, registration=registration, seed=seed))
    return all_of(parts)


def rho(original: Features, changed: Features) -> LogRatio:
    """E|f(x) - f(Zx)|^2 / E|f(x) - f(x')|^2 over images x and pairs of different images."""
    if original.shape != changed.shape or len(original) < 3:
        raise DataError(
            f"the same images before and after are needed, at least 3, got {original.shape} and {changed.shape}"
        )
    moved = ((original - changed) ** 2).sum(axis=1)
    apart = ((original - original.mean(axis=0)) ** 2).sum(axis=1)
    n = len(original)
    between = (apart + apart.mean()) * n / (n - 1)  # mean squared distance of each image to the others
    return ratio_of_means(moved, between, influence=2.0)


def _told_apart(
    claim: Claim,
    original: Features,
    changed: Features,
    control: Control,
    *,
    registration: Registration | None,
    seed: int,
) -> Evidence:
    """AUROC of a probe that tells changed from original images; trained on one half of the images, read on the other."""
    order = stream(seed, "probe halves").permutation(len(original))
    fit, read = order[: len(order) // 2], order[len(order) // 2 :]
    kind = np.repeat([False, True], len(fit))
    both = np.concatenate([original[fit], changed[fit]])
    before, after = (ridge_scores(both, kind, one[read]) for one in (original, changed))
    one = dc.replace(
        claim, delta=float(claim.measure.args["probe_delta"]), effect="AUROC - 1/2 of a probe for the change", nulls=(),
        analysis=dc.replace(claim.analysis, interval="delong", images=0),
    )  # fmt: skip
    counts = {"images, changed": len(read), "images, original": len(read)}
    return evidence(
        one, delong(after, before), n=counts, controls=(control,), registration=registration, part_of=claim
    )


def check_units_necessary(
    claim: Claim,
    on: Mapping[str, Float[np.ndarray, " images"]],
    off: Mapping[str, Float[np.ndarray, " others"]],
    random: Mapping[str, Float[np.ndarray, " worlds"]],
    *,
    changed: Any = None,
    registration: Registration | None = None,
    seed: int = 0,
) -> Verdict:
    """Loss increase on the behaviour's images (`on`) against other images (`off`), for each ablation type.

    Args:
        on, off: ablation type -> loss increase of each image, in nats.
        random: ablation type -> the same difference of means for each random set of units (see `matched_sets`).
        changed: manipulation check: by image, how far the ablated units' activations moved, or True / False.
    """
    types: Sequence[str] = claim.measure.args.get("ablations", ABLATIONS)
    parts: list[Evidence] = []
    for name in types:
        if not (name in on and name in off and name in random):
            raise ConfigError(f"the claim plans the ablation {name!r}: pass it in on, off and random")
        found = welch_t(as_array(on[name], f"on[{name!r}]"), as_array(off[name], f"off[{name!r}]"))
        plan = next(
            (p for p in claim.nulls if p.name == RANDOM_SETS), NullPlan(RANDOM_SETS, worlds=len(random[name]))
        )
        null = compare(plan, found.theta, as_array(random[name], f"random[{name!r}]"))
        one = dc.replace(claim, effect=f"{claim.effect} ({name} ablation)")
        counts = {"images, behaviour": len(on[name]), "images, elsewhere": len(off[name])}
        parts.append(
            evidence(
                one,
                found,
                n=counts,
                nulls=(null,),
                controls=manipulation_check(claim, changed),
                registration=registration,
                seed=seed,
                part_of=claim,
            )
        )
    return all_of(parts)
