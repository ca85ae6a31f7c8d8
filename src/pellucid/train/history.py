"""What happened, epoch by epoch."""

import dataclasses as dc
import time
from collections.abc import Mapping

import numpy as np

from pellucid._checks import ConfigError, DataError, nearest


@dc.dataclass(frozen=True)
class History:
    """One value an epoch in each column; `history["loss"]` is an array.

    Columns: `epoch` (from 0); `loss`, the weighted sum, and each term by its name without weight, as means
    over the epoch's rows; `accuracy` of the same forward passes, so on prepared inputs in training mode, in
    [0, 1], NaN without labels or logits; `validation_loss` (cross-entropy, nats) and `validation_accuracy`
    where a validation source was given; `lr` of the first parameter group; `seconds`.
    """

    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["epoch"])

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in self.columns:
            raise ConfigError(
                f"the history has no column {column!r}; nearest: {nearest(column, self.columns)}"
            )
        return self.columns[column]

    @property
    def last(self) -> dict[str, float]:
        """The last epoch's row."""
        return {name: float(values[-1]) for name, values in self.columns.items()}


@dc.dataclass
class Place:
    """Where a training stands: what a resumed one must know besides tensors, in numbers that JSON keeps.

    `sums` are row-weighted sums over the running epoch, by history column.
    """

    epoch: int = 0
    step: int = 0  # optimizer steps done in this epoch
    rows: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = dc.field(default_factory=dict[str, float])
    epochs: list[dict[str, float]] = dc.field(default_factory=list[dict[str, float]])

    def __post_init__(self) -> None:
        self._clock = time.monotonic()

    def advance(self, means: Mapping[str, float], *, rows: int, step: int) -> None:
        """Step number `step` of the epoch is done, over `rows` rows."""
        self.step = step + 1
        self.rows += rows
        self._count_seconds()
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + rows * value

    def close(self, extra: Mapping[str, float]) -> None:
        """End the epoch: its row goes into the table, the running sums start again."""
        if not self.rows:
            raise DataError(f"not one example of epoch {self.epoch} could be read")
        self._count_seconds()
        means = {name: value / self.rows for name, value in self.sums.items()}
        self.epochs.append({"epoch": float(self.epoch), **means, **extra, "seconds": self.seconds})
        self.epoch += 1
        self.step = self.rows = 0
        self.seconds = 0.0
        self.sums = {}

    def history(self) -> History:
        """The finished epochs."""
        columns = {name: np.array([row[name] for row in self.epochs], np.float64) for name in self.epochs[0]}
        return History({**columns, "epoch": columns["epoch"].astype(np.int64)})

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now
