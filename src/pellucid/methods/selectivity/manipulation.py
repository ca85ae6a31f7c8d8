"""Did the knob turn? Only where held-out selectivity follows alpha does an effect of alpha say anything about it."""

import dataclasses as dc
from collections.abc import Sequence

from jaxtyping import Float, Float64
from torch import Tensor

from pellucid._checks import ConfigError, NumericError

COLLAPSED = 0.5
"""Training collapsed where less than this share of what the baseline learnt beyond chance is left."""


@dc.dataclass(frozen=True)
class ManipulationCheck:
    """Mean held-out index by alpha, and the alphas around 0 over which it rises with alpha without a break.

    `collapsed` are the alphas at which training failed: a network near chance is no evidence about selectivity.
    """

    alphas: tuple[float, ...]
    index: Float64[Tensor, " alphas"]
    usable: tuple[float, ...]
    collapsed: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """Whether the whole range is usable; else verdicts on it are invalid."""
        return self.usable == self.alphas

    @property
    def reason(self) -> str:
        """In words, for a card."""
        if self.passed:
            return f"held-out selectivity rises with alpha from {self.alphas[0]:g} to {self.alphas[-1]:g}"
        out = [a for a in self.alphas if a not in self.usable]
        why = f"; training collapsed at {_listed(self.collapsed)}" if self.collapsed else ""
        return (
            f"no verdict at alpha = {_listed(out)}: held-out selectivity does not follow alpha so far out{why}; "
            f"usable: {_listed(self.usable)}"
        )


def manipulation_check(
    alphas: Sequence[float | int],
    index: Float[Tensor, "replicates alphas"],
    *,
    accuracy: Float[Tensor, "replicates alphas"] | None = None,
    chance: float = 0.0,
) -> ManipulationCheck:
    """Check that the mean held-out index (cross-fitted, say) rises strictly with alpha.

    Large |alpha| breaks it: training collapses to a constant output, or units die. `usable` is the longest run of
    alphas through 0 in which every step up in alpha is a step up in the index and no training collapsed.

    Args:
        index: one row a replicate, one column an alpha.
        accuracy: of the same networks, in [0, 1]; collapsed where mean accuracy - `chance` is less than half of what
            it is at alpha = 0.

    Raises:
        ConfigError: alphas that are not rising, that lack 0, or that do not match the columns.
        NumericError: a NaN (a network whose every unit is dead has no index).
    """
    doses = tuple(float(a) for a in alphas)
    if sorted(set(doses)) != list(doses) or 0.0 not in doses or index.shape[1] != len(doses):
        raise ConfigError(
            f"expected rising alphas that contain 0 and one column of the index for each, got {doses} and "
            f"{index.shape[1]} columns"
        )
    if not bool(index.isfinite().all()):
        raise NumericError(
            "the index holds NaN: a network without a living unit; leave that alpha out and say so"
        )
    means = index.double().mean(0)
    collapsed = _collapsed(doses, accuracy, chance)
    whole = [dose not in collapsed for dose in doses]
    rises = (means.diff() > 0).tolist()
    first = last = doses.index(0.0)
    while last + 1 < len(doses) and rises[last] and whole[last + 1]:
        last += 1
    while first > 0 and rises[first - 1] and whole[first - 1]:
        first -= 1
    return ManipulationCheck(doses, means, doses[first : last + 1], collapsed)


def _collapsed(
    doses: tuple[float, ...], accuracy: Float[Tensor, "replicates alphas"] | None, chance: float
) -> tuple[float, ...]:
    if accuracy is None:
        return ()
    learnt = accuracy.double().mean(0) - chance
    least = COLLAPSED * float(learnt[doses.index(0.0)])
    return tuple(dose for dose, left in zip(doses, learnt.tolist(), strict=True) if left < least)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
