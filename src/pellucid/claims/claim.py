"""The claim: one sentence that can fail, with everything that decides about it fixed beforehand.

A `Claim` holds plans only, no data. Its canonical JSON (sorted keys, no spaces) is hashed; the hash is what is
registered and what opens the confirmation split.
"""

import dataclasses as dc
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, cast

from pellucid._checks import ConfigError, check_one_of, check_range

Kind = Literal["exceeds", "equivalent", "ordered", "specific"]
Level = Literal["checkpoint", "recipe", "family"]
Direction = Literal["up", "down"]
Intervention = Literal["none", "input edit", "activation edit", "weight edit", "training-time"]
IntervalName = Literal[
    "t", "wilcoxon", "bootstrap", "hierarchical", "delong", "wilson", "corrected", "betting"
]
NullForm = Literal["prediction", "rank", "paired"]
Trend = Literal["rank", "slope"]

LEVELS: tuple[Level, ...] = ("checkpoint", "recipe", "family")
FEWEST_MODELS = 3
"""Fewest trained models behind a claim about a recipe or a family."""

SCHEMA = 1
"""Version of the canonical form. It is part of the hash."""


@dc.dataclass(frozen=True)
class Scope:
    """What exactly the claim is about; it fixes the unit of replication.

    `checkpoint`: one trained network, images (or units) are the replicates. `recipe`: one way to train, trained
    models are the replicates. `family`: several architectures or data sets, one model of each is a replicate.
    """

    level: Level
    subject: str
    layer: str = ""
    over: Literal["images", "units"] = "images"

    def __post_init__(self) -> None:
        check_one_of(self.level, LEVELS, "scope level")
        if not self.subject.strip():
            raise ConfigError(
                f"a scope names its subject, got an empty one; try 'checkpoint: SHA-256 of the weights' or "
                f"'{self.level}: what it is'"
            )

    @property
    def replicate(self) -> str:
        """The unit of replication, in the plural: what the interval generalises over."""
        return self.over if self.level == "checkpoint" else "models"


def parse_scope(text: str) -> Scope:
    """`"recipe: ResNet-8 on CIFAR-10"` -> `Scope("recipe", "ResNet-8 on CIFAR-10")`.

    Raises:
        ConfigError: the word before the colon is no level, or nothing follows it.
    """
    level, _, subject = text.partition(":")
    check_one_of(level.strip(), LEVELS, "scope level (the word before the colon)")
    return Scope(cast(Level, level.strip()), subject.strip())


@dc.dataclass(frozen=True)
class NullPlan:
    """A generator of worlds in which the claim is false: its name, how many worlds, and how they are compared.

    `prediction`: Student prediction interval for one more world, exact for Gaussian statistics. `rank`: rank among
    the worlds, for any distribution. `paired`: one null arm value for each replicate. With `search=True` every world
    repeats the search for the best unit, layer or label, and only the rank form is valid.
    """

    name: str
    worlds: int = 20
    form: NullForm = "rank"
    search: bool = False
    use: str = ""
    args: Mapping[str, Any] = dc.field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        check_one_of(self.form, ("prediction", "rank", "paired"), f"form of null {self.name!r}")
        if not self.name.strip():
            raise ConfigError("a null needs a name, e.g. 'untrained' or 'permuted labels'")
        if self.search and self.form != "rank":
            raise ConfigError(
                f"null {self.name!r} repeats a search, so its statistic is a maximum and not Gaussian; "
                f"form={self.form!r} would be wrong, use form='rank'"
            )
        if self.worlds < 2:
            raise ConfigError(
                f"null {self.name!r} has {self.worlds} worlds; at least 2 are needed, better 20"
            )


@dc.dataclass(frozen=True)
class Analysis:
    """How the numbers decide: interval method, level at each boundary, replicate counts, family.

    Args:
        alpha: one-sided level at each boundary, so 0.05 gives a 90% interval.
        models, images: replicate counts by level; `models` is required beyond one checkpoint.
        sd: spread of one replicate's effect, from exploration replicates only; 0 means unknown.
        paired: False takes the two arms as independent samples (Welch).
        family, family_size: the claims that are tested together; alone, a claim of a family of m uses alpha / m.
        doses, trend: for `ordered`, the doses and whether a rank correlation or a slope is the estimand.
        reference: for `wilson`, the rate that counts as no effect.
        test_fraction: for `corrected`, n_test / n_train of the resampling.
        bounds: for `betting`, the range that each replicate's effect cannot leave.
        draws: bootstrap or permutation draws.
    """

    interval: IntervalName = "t"
    alpha: float = 0.05
    models: int = 0
    images: int = 0
    sd: float = 0.0
    paired: bool = True
    family: str = ""
    family_size: int = 1
    doses: tuple[float, ...] = ()
    trend: Trend = "rank"
    reference: float = 0.0
    test_fraction: float = 0.0
    bounds: tuple[float, ...] = ()
    draws: int = 4999
    exclusions: str = ""

    def __post_init__(self) -> None:
        names = ("t", "wilcoxon", "bootstrap", "hierarchical", "delong", "wilson", "corrected", "betting")
        check_one_of(self.interval, names, "analysis.interval")
        check_range(self.alpha, 1e-6, 0.1, "analysis.alpha")
        for name, least in (("models", 0), ("images", 0), ("family_size", 1), ("draws", 99)):
            if getattr(self, name) < least:
                raise ConfigError(f"analysis.{name} must be at least {least}, got {getattr(self, name)}")
        if not (math.isfinite(self.sd) and self.sd >= 0):
            raise ConfigError(f"analysis.sd is a spread, so at least 0 (0: unknown), got {self.sd}")
        if self.interval == "corrected" and not self.test_fraction > 0:
            raise ConfigError("interval 'corrected' needs analysis.test_fraction = n_test / n_train, above 0")
        if self.interval == "betting" and not (len(self.bounds) == 2 and self.bounds[0] < self.bounds[1]):
            raise ConfigError(
                f"interval 'betting' needs analysis.bounds = [low, high] that no replicate's effect can leave, "
                f"got {list(self.bounds)}"
            )

    @property
    def level(self) -> float:
        """One-sided level at each boundary for this claim on its own: alpha / family_size (Bonferroni)."""
        return self.alpha / self.family_size


@dc.dataclass(frozen=True)
class DataPlan:
    """Which data: `exploration` may be looked at freely, `confirmation` is opened once, by presenting the hash."""

    spec: str = ""
    exploration: str = ""
    confirmation: str = ""
    fingerprint: str = ""
    examples: Literal["held-out", "chosen"] = "held-out"

    @property
    def key(self) -> str:
        """The confirmation split's name in the ledger."""
        return f"{self.spec}:{self.confirmation}" if self.confirmation else ""


@dc.dataclass(frozen=True)
class MeasurePlan:
    """Which function measures, as `module:function`, and its keyword arguments."""

    use: str = ""
    args: Mapping[str, Any] = dc.field(default_factory=dict[str, Any])


@dc.dataclass(frozen=True)
class Claim:
    """One sentence a reader could disagree with, and everything that decides about it.

    The effect theta is treated minus control (or what `analysis.interval` names), in `unit`. `direction="down"` says
    the sentence speaks of a decrease. `exceeds`: theta > delta; `equivalent`: |theta| < delta; `ordered`: the trend
    over doses > delta; `specific`: theta over each other target > delta.

    Raises:
        ConfigError: delta is not positive, fewer than 3 models beyond one checkpoint, a null that could never be
            beaten with its number of worlds, and whatever else could not be decided later.
    """

    statement: str
    delta: float | int
    kind: Kind
    _: dc.KW_ONLY
    scope: Scope
    reason: str = ""
    effect: str = "difference"
    unit: str = ""
    direction: Direction = "up"
    intervention: Intervention = "none"
    prediction: str = ""
    nulls: tuple[NullPlan, ...] = ()
    positive_control: str = ""
    manipulation: str = ""
    measure: MeasurePlan = MeasurePlan()
    data: DataPlan = DataPlan()
    analysis: Analysis = Analysis()

    def __post_init__(self) -> None:
        check_one_of(self.kind, ("exceeds", "equivalent", "ordered", "specific"), "kind")
        check_one_of(self.direction, ("up", "down"), "direction")
        acts = ("none", "input edit", "activation edit", "weight edit", "training-time")
        check_one_of(self.intervention, acts, "intervention")
        object.__setattr__(self, "delta", float(self.delta))
        if not self.statement.strip():
            raise ConfigError("a claim is a sentence a reader could disagree with; the statement is empty")
        _check_delta(self)
        _check_replication(self)
        _check_nulls(self)
        if self.kind == "ordered" and len(set(self.analysis.doses)) < 3:
            raise ConfigError(
                f"an 'ordered' claim needs analysis.doses with at least 3 different doses, got {list(self.analysis.doses)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, with the schema version."""
        return {"schema": SCHEMA, **dc.asdict(self)}

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no spaces, no NaN. The same claim gives the same text on every machine.

        Raises:
            ConfigError: an argument in `args` is not a JSON value.
        """
        return canonical_json(self.to_dict())

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal; changed by any field, not by the order of keys."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @property
    def sign(self) -> int:
        """+1 for an increase, -1 for a decrease: decisions are made on sign * theta."""
        return 1 if self.direction == "up" else -1


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text.

    Raises:
        ConfigError: a value has no JSON form (an object, NaN, infinity).
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"a claim holds JSON values only (text, finite numbers, lists, tables): {error}"
        ) from error


def _check_delta(claim: Claim) -> None:
    delta = claim.delta
    if math.isfinite(delta) and delta > 0:
        return
    if delta == 0:
        why = {
            "exceeds": "any non-zero effect, however small, would count",
            "equivalent": "no finite data can show an effect of exactly zero",
        }.get(claim.kind, "any trend or difference, however small, would count")
        raise ConfigError(
            f"delta=0 is refused for kind {claim.kind!r}: {why}; give the smallest effect that counts"
        )
    raise ConfigError(
        f"delta is the smallest effect that counts, a positive number, got {delta}; "
        f"say direction='down' for a claim about a decrease"
    )


def _check_replication(claim: Claim) -> None:
    level, models = claim.scope.level, claim.analysis.models
    if level != "checkpoint" and models < FEWEST_MODELS:
        raise ConfigError(
            f"a claim about a {level} generalises over trained models and needs analysis.models >= {FEWEST_MODELS}, "
            f"got {models}; train more models, or claim something about one checkpoint"
        )
    if level == "checkpoint" and claim.analysis.interval == "hierarchical":
        raise ConfigError(
            "interval 'hierarchical' resamples models, then images; a checkpoint has one model: use 't'"
        )


def _check_nulls(claim: Claim) -> None:
    names = [plan.name for plan in claim.nulls]
    if len(set(names)) < len(names):
        raise ConfigError(f"nulls need different names, got {names}")
    level = claim.analysis.level
    for plan in claim.nulls:
        least = math.ceil(round(1 / level, 9)) - 1
        if plan.form == "rank" and plan.worlds < least:
            raise ConfigError(
                f"null {plan.name!r}: the rank among {plan.worlds} worlds cannot fall below p = {1 / (plan.worlds + 1):.3g}, "
                f"and {level:.3g} is needed; plan at least {least} worlds, or form='prediction' for a Gaussian statistic"
            )
