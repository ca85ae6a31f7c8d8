"""Ready-made claims: six sentences people want to make, each with the plan that lets it fail.

Each function returns a `Claim` that can be registered; `ready_checks` holds the check that goes with it. Default deltas
are those of the test catalogue (docs/claims.md). The extra thresholds of a claim with several parts stand in
`measure.args`, so that they are registered with it.
"""

import dataclasses as dc
from collections.abc import Sequence

from pellucid._checks import ConfigError
from pellucid.claims.claim import Analysis, Claim, DataPlan, Direction, MeasurePlan, NullPlan, Scope

PERMUTED, UNTRAINED, RANDOM_SETS = "permuted labels", "untrained", "random sets"
NO_DATA = DataPlan()
ABLATIONS = ("zero", "mean", "resample")


def property_matters(
    name: str,
    recipe: str,
    *,
    delta: float,
    reason: str,
    models: int,
    direction: Direction = "down",
    unit: str = "pp",
    sd: float = 0.0,
    data: DataPlan = NO_DATA,
) -> Claim:
    """A penalty on a unit property changes accuracy, beyond what the same penalty with permuted labels does.

    Effect: accuracy of the arm minus accuracy of the permuted-label arm, paired by replicate.
    """
    verb = "lowers" if direction == "down" else "raises"
    return Claim(
        f"Changing {name} during training {verb} accuracy by more than {delta:g} {unit} ({recipe})",
        delta,
        "exceeds",
        scope=Scope("recipe", recipe),
        reason=reason,
        effect="accuracy, property arm minus permuted-label arm",
        unit=unit,
        direction=direction,
        intervention="training-time",
        manipulation=f"{name} moves as intended on held-out data",
        nulls=(NullPlan(PERMUTED, worlds=models, form="paired"),),
        data=data,
        analysis=Analysis(models=models, sd=sd),
    )


def recipes_equivalent(
    first: str,
    second: str,
    *,
    delta: float,
    reason: str,
    models: int,
    unit: str = "pp",
    sd: float = 0.0,
    paired: bool = True,
    data: DataPlan = NO_DATA,
) -> Claim:
    """Two recipes give the same result to within delta: two one-sided tests over trained models."""
    return Claim(
        f"{first} and {second} agree to within {delta:g} {unit}",
        delta,
        "equivalent",
        scope=Scope("recipe", f"{first} / {second}"),
        reason=reason,
        effect=f"{first} minus {second}",
        unit=unit,
        intervention="training-time",
        data=data,
        analysis=Analysis(models=models, sd=sd, paired=paired),
    )


def unit_detects(
    concept: str,
    checkpoint: str,
    *,
    layer: str,
    unit: int,
    delta: float = 0.25,
    margin: float = 0.10,
    edit_delta: float | None = None,
    reason: str = "AUROC 0.75, midway between guessing and certainty",
    images: int = 0,
    twins: int = 0,
    searched: bool = False,
    data: DataPlan = NO_DATA,
) -> Claim:
    """A unit's response tells images with a concept from images without it, better than it tells any distractor.

    Args:
        delta: AUROC - 1/2 that counts; `margin` is the AUROC by which it must exceed each distractor.
        edit_delta: if given, inserting the concept must raise the response by this much more than a distractor edit.
        twins: number of untrained twins; 0 leaves that null out.
        searched: the unit or label was chosen as the best of many, so that every null world repeats the search.
    """
    nulls = [NullPlan(PERMUTED, worlds=199, search=searched)]
    if twins:
        nulls.append(
            NullPlan(UNTRAINED, worlds=twins, form="rank" if searched or twins >= 19 else "prediction")
        )
    args = {"margin": margin, **({} if edit_delta is None else {"edit_delta": edit_delta})}
    return Claim(
        f"Unit {layer}:{unit} detects {concept}",
        delta,
        "exceeds",
        scope=Scope("checkpoint", checkpoint, layer),
        reason=reason,
        effect="AUROC - 1/2",
        intervention="none" if edit_delta is None else "input edit",
        nulls=tuple(nulls),
        measure=MeasurePlan("", args),
        data=data,
        analysis=Analysis(interval="delong", images=images),
    )


def activation_decodes(
    attribute: str,
    checkpoint: str,
    *,
    layer: str,
    delta: float = 0.05,
    reason: str = "5 points of accuracy beyond what raw inputs and untrained twins give",
    images: int = 0,
    twins: int = 0,
    sd: float = 0.0,
    data: DataPlan = NO_DATA,
) -> Claim:
    """A linear probe on a layer reads an attribute better than guessing, shuffled labels, raw inputs and untrained twins."""
    nulls = [NullPlan(PERMUTED, worlds=20)]
    if twins:
        nulls.append(NullPlan(UNTRAINED, worlds=twins, form="rank" if twins >= 19 else "prediction"))
    return Claim(
        f"Layer {layer} holds {attribute} in linearly readable form",
        delta,
        "specific",
        scope=Scope("checkpoint", checkpoint, layer),
        reason=reason,
        effect="probe accuracy beyond its best control",
        nulls=tuple(nulls),
        data=data,
        analysis=Analysis(images=images, sd=sd),
    )


def invariant(
    change: str,
    checkpoint: str,
    *,
    layer: str,
    delta: float = 0.05,
    probe_delta: float | None = None,
    reason: str = "a change that moves the representation by 5% of the distance between images is none",
    images: int = 0,
    twins: int = 0,
    sd: float = 0.0,
    data: DataPlan = NO_DATA,
) -> Claim:
    """A layer represents an image and its changed version alike: rho = E|f(x)-f(Zx)|^2 / E|f(x)-f(x')|^2 below delta.

    Args:
        probe_delta: if given, a linear probe must also fail to tell changed from original: AUROC within 1/2 +- this.
    """
    args = {} if probe_delta is None else {"probe_delta": probe_delta}
    nulls = (NullPlan(UNTRAINED, worlds=max(2, twins), form="prediction"),) if twins else ()
    return Claim(
        f"Layer {layer} is invariant to {change}",
        delta,
        "equivalent",
        scope=Scope("checkpoint", checkpoint, layer),
        reason=reason,
        effect="rho, squared change relative to other images",
        intervention="input edit",
        positive_control="a planted map that is not invariant: each image paired with another one",
        nulls=nulls,
        measure=MeasurePlan("", args),
        data=data,
        analysis=Analysis(images=images, sd=sd),
    )


def units_necessary(
    behaviour: str,
    checkpoint: str,
    *,
    layer: str,
    units: Sequence[int],
    delta: float,
    reason: str,
    ablations: Sequence[str] = ABLATIONS,
    images: int = 0,
    worlds: int = 999,
    data: DataPlan = NO_DATA,
) -> Claim:
    """Ablating a set of units raises the loss on a behaviour more than elsewhere, and more than random sets do.

    Every ablation type must show it (intersection-union, no correction). Random sets have the same size and matched
    activation norm (`matched_sets`).
    """
    if not ablations:
        raise ConfigError(f"name at least one ablation type, such as {list(ABLATIONS)}")
    return Claim(
        f"Units {list(units)} of layer {layer} are necessary for {behaviour}",
        delta,
        "exceeds",
        scope=Scope("checkpoint", checkpoint, layer),
        reason=reason,
        effect="loss increase on the behaviour minus elsewhere",
        unit="nats",
        intervention="activation edit",
        manipulation="the ablation changes the activations of the units",
        nulls=(NullPlan(RANDOM_SETS, worlds=worlds),),
        measure=MeasurePlan("", {"ablations": list(ablations), "units": [int(u) for u in units]}),
        data=data,
        analysis=Analysis(images=images, paired=False),
    )


def part(claim: Claim, *, delta: float, effect: str) -> Claim:
    """One part of a claim: the same scope with its own threshold and no null of its own."""
    return dc.replace(claim, kind="exceeds", delta=delta, effect=effect, nulls=(), direction="up")
