"""Arms: the numbers of a claim by replicate, checked before any statistic sees them.

`gather` turns what a user passes (arrays, tensors, nested lists by model, callables of a seed) into float64 arrays
of one value a replicate and refuses everything that would make a verdict meaningless.
"""

import dataclasses as dc
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Shaped

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.claims.claim import Claim
from pellucid.rng import derive

Arm = Any
"""What an arm may be: an array or tensor by replicate, a `Nested`, or a callable of a seed that gives one value."""

UNPAIRED = ("delong",)
"""Intervals that compare two groups of images instead of two values of each replicate."""


@dc.dataclass(frozen=True)
class Nested:
    """Two-level data: for each trained model its own array of images."""

    models: tuple[Float[np.ndarray, " _"], ...]

    @property
    def means(self) -> Float[np.ndarray, " models"]:
        """One value a model: the mean over its images."""
        return np.array([model.mean() for model in self.models])

    def scaled(self, by: float) -> "Nested":
        """The same data times a number."""
        return Nested(tuple(model * by for model in self.models))


def nested(models: Iterable[Any]) -> Nested:
    """`Nested` from one array or tensor of images per model."""
    return Nested(tuple(as_array(model, f"model {i}") for i, model in enumerate(models)))


def nested_from_flat(values: Any, model: Any) -> Nested:
    """`Nested` from pooled values and, for each value, the id of the model it comes from.

    Raises:
        DataError: the two differ in length.
    """
    flat, ids = as_array(values, "values"), np.asarray(model)
    if flat.shape != ids.shape:
        raise DataError(f"one model id for each value is needed, got {ids.shape} ids for {flat.shape} values")
    return Nested(tuple(flat[ids == one] for one in np.unique(ids)))


@dc.dataclass(frozen=True)
class Measured:
    """What the measure of a claim file returns: the arms, the worlds of each null, the controls.

    `fingerprint` is that of the data it opened; it is compared with the registered one.
    """

    treated: Arm
    control: Arm = None
    nulls: Mapping[str, Any] = dc.field(default_factory=dict[str, Any])
    positive_control: Any = None
    negative_control: Any = None
    manipulation: Any = None
    fingerprint: str = ""
    notes: tuple[str, ...] = ()


@dc.dataclass(frozen=True)
class Arms:
    """Checked arms, oriented so that the claim speaks of an increase, and the replicate counts by level."""

    treated: Shaped[np.ndarray, "..."] | Nested
    control: Shaped[np.ndarray, "..."] | Nested | None
    n: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.treated.models) if isinstance(self.treated, Nested) else len(self.treated)


def as_array(values: Any, what: str) -> Shaped[np.ndarray, "..."]:
    """Float64 numpy array of a list, array or tensor (duck-typed: detached and moved to the CPU).

    Raises:
        DataError: empty, a single number, ragged or not numeric.
        NumericError: NaN or infinity inside.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(
            f"{what} has rows of different lengths; images nested in models are passed as nested([...]) ({error})"
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} must hold real numbers, got {array.dtype}")
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{what} must hold one value for each replicate, got shape {array.shape}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise NumericError(
            f"{what} holds {len(bad)} NaN or infinite values of {array.size} (first at {bad[0].tolist()}); "
            f"find out why that replicate failed: leaving it out changes the claim"
        )
    return array


def gather(claim: Claim, treated: Arm, control: Arm = None, *, seed: int = 0) -> Arms:
    """Arrays by replicate from what a user passed for the claim's data, with every guard of the claim applied.

    Raises:
        DataError: wrong shapes or lengths, pooled images in place of models, an arm compared with itself, replicates
            that are copies of each other.
        NumericError: NaN or infinity.
        ConfigError: a callable whose number of replicates the claim does not state.
    """
    arms = shape_arms(claim, treated, control, seed=seed)
    for arm in (arms.treated, arms.control):
        if arm is not None:
            _check_count(claim, len(arm.models) if isinstance(arm, Nested) else len(arm))
    _check_copies(claim, arms)
    return arms


def shape_arms(claim: Claim, treated: Arm, control: Arm = None, *, seed: int = 0) -> Arms:
    """Like `gather`, without the guards on the number of replicates: for nulls and controls."""
    first = _collect(claim, treated, "treated", seed=seed)
    second = None if control is None else _collect(claim, control, "control", seed=seed)
    for one, what in ((first, "treated"), (second, "control")):
        _check_shape(claim, one, what)
    _check_pair(claim, first, second)
    if second is not None and _same(first, second):
        raise DataError(
            "treated and control hold the same numbers: an arm was compared with itself. If the two truly agree "
            "everywhere (both at the ceiling, say), use a measure that can vary"
        )
    scale = float(claim.sign)
    return Arms(
        _scaled(first, scale),
        None if second is None else _scaled(second, scale),
        _counts(claim, first, second),
    )


def _collect(claim: Claim, arm: Arm, what: str, *, seed: int) -> Any:
    if isinstance(arm, Nested):
        return arm
    if not callable(arm):
        return as_array(arm, what)
    beyond = claim.scope.level != "checkpoint"
    count = claim.analysis.models if beyond else claim.analysis.images
    if count < 2:
        raise ConfigError(
            f"{what} is a function of a seed, so the claim must say how many replicates to draw: "
            f"set analysis.{'models' if beyond else 'images'}"
        )
    call = cast("Callable[[int], Any]", arm)
    drawn = [call(derive(seed, "replicate", i)) for i in range(count)]
    return as_array([_number(value) for value in drawn], what)


def _number(value: Any) -> Any:
    return value.detach().cpu().double().numpy() if hasattr(value, "detach") else value


def _check_shape(claim: Claim, arm: Any, what: str) -> None:
    if arm is None:
        return
    if isinstance(arm, Nested):
        if claim.scope.level == "checkpoint":
            raise DataError(
                f"{what} holds several models, but the claim is about one checkpoint: pass one array"
            )
        if claim.kind in ("ordered", "specific"):
            raise DataError(
                f"kind {claim.kind!r} takes arrays by replicate; pass one value a model, not nested images"
            )
        return
    columns = claim.kind == "ordered" or (claim.kind == "specific" and what == "control")
    if arm.ndim == 1 and claim.kind != "ordered":
        return
    if not (columns and arm.ndim == 2):
        raise DataError(
            f"{what} must be {'(replicates, columns)' if columns else 'one value for each replicate'} for kind "
            f"{claim.kind!r}, got shape {arm.shape}; images nested in models are passed as nested([...])"
        )
    if claim.kind == "ordered" and arm.shape[1] != len(claim.analysis.doses):
        raise DataError(f"{what} has {arm.shape[1]} columns for {len(claim.analysis.doses)} doses")


def _check_pair(claim: Claim, first: Any, second: Any) -> None:
    unpaired = claim.analysis.interval in UNPAIRED
    if claim.kind == "specific" and second is None:
        raise DataError(
            "a 'specific' claim compares with others: pass control, one column for each other target"
        )
    if second is None:
        if unpaired:
            raise DataError(
                f"interval {claim.analysis.interval!r} compares two groups: pass treated and control"
            )
        return
    if isinstance(first, Nested) != isinstance(second, Nested):
        raise DataError("one arm is nested by model and the other is not; pass both in the same form")
    if isinstance(first, Nested) or unpaired or not claim.analysis.paired:
        if isinstance(first, Nested) and len(first.models) != len(second.models):
            raise DataError(f"arms of {len(first.models)} and {len(second.models)} models cannot be paired")
        return
    if len(first) != len(second) or (claim.kind == "ordered" and first.shape != second.shape):
        raise DataError(
            f"treated has shape {first.shape} and control {second.shape}, but replicates are paired; for independent "
            f"samples set analysis.paired=False"
        )


def _check_count(claim: Claim, n: int) -> None:
    planned, level = claim.analysis.models, claim.scope.level
    if level == "checkpoint":
        if n < 2:
            raise DataError("one value is an anecdote (rung 0); an interval needs at least 2 replicates")
        return
    if n < 3:
        raise DataError(f"a claim about a {level} needs at least 3 trained models, got {n}")
    if n > planned:
        raise DataError(
            f"{n} values came for the {planned} models that this claim about a {level} states. Images of one model are "
            f"not replicates of a {level}: pooled, they find effects that are not there more than half of the time. "
            f"Pass one value a model, or nested([images of model 1, ...]); if more models were trained, amend analysis.models"
        )


def _check_copies(claim: Claim, arms: Arms) -> None:
    """Several copies of one model look like perfect agreement between models."""
    if claim.scope.level == "checkpoint":
        return
    both = [
        arm.means if isinstance(arm, Nested) else arm
        for arm in (arms.treated, arms.control)
        if arm is not None
    ]
    if any(bool((arm != arm[0]).any()) for arm in both):
        return
    effect = both[0][0] - (both[1][0] if len(both) > 1 else 0.0)
    if np.any(effect != 0):
        raise DataError(
            f"all {len(arms)} models gave exactly the same numbers, so they are probably one model loaded "
            f"{len(arms)} times; replicates differ in initialisation and data order"
        )


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Nested):
        return all(np.array_equal(one, two) for one, two in zip(first.models, second.models, strict=True))
    if first.ndim == 1 and second.ndim == 2:
        return any(np.array_equal(first, column) for column in second.T)
    return np.array_equal(first, second)


def _scaled(arm: Any, by: float) -> Any:
    return arm.scaled(by) if isinstance(arm, Nested) else arm * by


def _counts(claim: Claim, first: Any, second: Any) -> dict[str, int]:
    if isinstance(first, Nested):
        return {"models": len(first.models), "images": sum(len(model) for model in first.models)}
    counts = {claim.scope.replicate: len(first)}
    if second is not None and (claim.analysis.interval in UNPAIRED or not claim.analysis.paired):
        return {
            f"{claim.scope.replicate}, treated": len(first),
            f"{claim.scope.replicate}, control": len(second),
        }
    if claim.scope.level != "checkpoint" and claim.analysis.images:
        counts["images"] = claim.analysis.images
    return counts


def digest_of(arms: Arms, *, nulls: Sequence[Any], controls: Sequence[Any], seed: int) -> str:
    """SHA-256 of the measured numbers, a colon, and SHA-256 of what they were judged with: nulls, controls and seed.

    All of it the same again is a reproduction; another seed or other null worlds are another check.
    """
    parts: list[np.ndarray] = []
    for arm in (arms.treated, arms.control):
        if arm is not None:
            parts += list(arm.models) if isinstance(arm, Nested) else [arm]
    judged = [np.array([float(seed)]), *(np.array(null.values, dtype=float) for null in nulls)]
    judged += [np.array([float(control.passed)]) for control in controls]
    return f"{hash_arrays(*parts)}:{hash_arrays(*judged)}"


def hash_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 of shapes and float64 contents."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return digest.hexdigest()
