"""When a penalty is on: functions of the epoch, between 0 and 1, for `SelectivityTerm` or as a term's weight in `fit`."""

import dataclasses as dc

from pellucid._checks import ConfigError


@dc.dataclass(frozen=True)
class Ramp:
    """0 before epoch `first`, 1 from epoch `last` on, a straight line between them. Epochs count from 0."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise ConfigError(f"a schedule needs 0 <= first <= last, got {self.first} and {self.last}")

    def __call__(self, epoch: int) -> float:
        if epoch >= self.last:
            return 1.0
        return 0.0 if epoch < self.first else (epoch - self.first) / (self.last - self.first)


def constant() -> Ramp:
    """On from the first step, as in the original experiments."""
    return Ramp(0, 0)


def delay(start: int) -> Ramp:
    """Off for the first `start` epochs, then on: lowering selectivity in the first epochs can damage training.

    References: Ranadive et al., "On the special role of class-selective neurons in early training", TMLR 2023.
    """
    return Ramp(start, start)


def ramp(first: int, last: int) -> Ramp:
    """From 0 at epoch `first` in a straight line to 1 at epoch `last`."""
    return Ramp(first, last)
