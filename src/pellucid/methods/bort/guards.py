"""What would make the pull diverge, vanish or miss its target, found before it happens and told by layer.

Without other forces a singular value follows s <- s (1 + step (a - s^2)) with step = lr * strength * every. It settles
for step * a < 1 and is monotone up to 1/2; from s^2 = a + 2 / step it diverges, and from a + 1 / step it changes sign
on its way. Decay towards zero by wd moves the target to a - wd / strength.
"""

import dataclasses as dc
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid._checks import ConfigError
from pellucid.methods.bort.gram import gram
from pellucid.methods.bort.matrices import Matrix
from pellucid.methods.bort.pull import FULL, MOST, SIGNED, Amplitude, Pull
from pellucid.methods.bort.sharded import whole

NOTICED = 0.1
"""Share of the target that weight decay may take away before there is a warning."""


@dc.dataclass(frozen=True)
class Settings:
    """What a constraint was asked for."""

    strength: float
    amplitude: Amplitude
    every: int
    pull: Pull

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise ConfigError(f"strength must be a finite number of at least 0, got {self.strength}")
        if not callable(self.amplitude) and not 0 < self.amplitude < float("inf"):
            raise ConfigError(
                f"amplitude must be a finite number above 0 (the target of squared singular values) or keep_norm, got "
                f"{self.amplitude}"
            )
        if self.every < 1:
            raise ConfigError(f"every must be at least 1 optimizer step, got {self.every}")
        if self.pull in SIGNED and callable(self.amplitude):
            raise ConfigError("a pull with signs needs a number as amplitude; use pull_full_ with keep_norm")

    @property
    def scale(self) -> float:
        """What a step must be multiplied with to be at most `MOST`: a, and 1 for pulls of constant size."""
        if self.pull in SIGNED:
            return 1.0
        return 0.0 if callable(self.amplitude) else self.amplitude


class Guard:
    """Looks at one parameter group whenever its learning rate or weight decay has changed."""

    def __init__(self, settings: Settings, matrices: Sequence[Matrix]):
        self.settings, self.matrices = settings, matrices
        self._seen = (-1.0, -1.0)
        self._safe = 0.0

    def check(self, lr: float, decay: float) -> None:
        """Raise, or warn, where a pull at this learning rate and weight decay would do harm.

        Raises:
            ConfigError: the step is too large, a start lies beyond the bound, or decay is stronger than the pull.
        """
        if (lr, decay) == self._seen or not self.settings.strength:
            return
        step = lr * self.settings.strength * self.settings.every
        self._check_step(step, lr)
        if decay != self._seen[1]:
            self._check_decay(decay)
        if step > self._safe and self.settings.pull not in SIGNED:
            self._check_start(step)
        self._seen = (lr, decay)

    def _check_step(self, step: float, lr: float) -> None:
        s = self.settings
        if step * s.scale > MOST * (1 + 1e-9):
            raise ConfigError(
                f"{_names(self.matrices)}: lr {lr:g} x strength {s.strength:g} x every {s.every} x amplitude "
                f"{s.scale:g} = {step * s.scale:.3g}, beyond {MOST:g}, where the pull begins to oscillate; lower the "
                f"strength to {MOST / (lr * s.every * s.scale):.3g}"
            )

    def _check_decay(self, decay: float) -> None:
        s = self.settings
        if not decay or not s.scale:
            return
        share = decay / (s.scale * s.strength)
        if share >= 1:
            raise ConfigError(
                f"{_names(self.matrices)}: weight decay {decay:g} is at least amplitude x strength = "
                f"{s.scale * s.strength:g}, so these weights go to zero; put them in a parameter group with "
                "weight_decay=0, or raise the strength"
            )
        if share > NOTICED:
            target = (
                ""
                if s.pull in SIGNED
                else f": squared singular values settle near {s.scale * (1 - share):.3g}"
            )
            warnings.warn(
                f"{_names(self.matrices)}: weight decay {decay:g} takes {share:.0%} of the pull's target{target}; put "
                "them in a parameter group with weight_decay=0",
                stacklevel=5,
            )

    def _check_start(self, step: float) -> None:
        """Refuse a weight from which this step diverges; remember up to which step the present ones are safe."""
        safe = float("inf")
        for matrix in self.matrices:
            largest, a = _largest(matrix, self.settings, enough=1 / step)
            if largest > a + 2 / step:
                raise ConfigError(
                    f"layer {matrix.layer!r}: its largest squared {_what(self.settings.pull)} is {largest:.4g}, beyond "
                    f"amplitude + 2 / (lr x strength x every) = {a + 2 / step:.4g}, from where the pull diverges; lower "
                    "the strength, raise the amplitude, or use amplitude=keep_norm"
                )
            if largest > a + 1 / step:
                warnings.warn(
                    f"layer {matrix.layer!r}: its largest squared {_what(self.settings.pull)} {largest:.4g} is beyond "
                    f"amplitude + 1 / step = {a + 1 / step:.4g}: its first pull flips the sign of that direction, which "
                    "changes what a trained layer computes; lower the strength",
                    stacklevel=6,
                )
            if largest > a:
                safe = min(safe, 1 / (largest - a))
        self._safe = max(step, safe / 2)


def _largest(matrix: Matrix, settings: Settings, *, enough: float) -> tuple[float, float]:
    """The largest squared singular value (or norm) over the parts, or a bound of it below `enough`; and a."""
    w = matrix.read(whole(matrix.param.detach()))
    a = 0.0 if callable(settings.amplitude) else settings.amplitude
    rough = float(torch.linalg.vector_norm(w, dim=(-2, -1)).square().max())
    if rough <= enough:
        return rough, max(a, 0.0)
    g = gram(w.double())
    if callable(settings.amplitude):
        quartic, quadratic = g.square().sum((-2, -1)), g.diagonal(dim1=-2, dim2=-1).sum(-1)
        a = float(settings.amplitude(quartic, quadratic).min())
    return float(_squares(w.double(), g, settings.pull).max()), a


def _squares(w: Float[Tensor, "..."], g: Float[Tensor, "..."], pull: Pull) -> Float[Tensor, "..."]:
    if pull in FULL:
        return torch.linalg.eigvalsh(g)
    axis = -1 if _what(pull) == "row norm" else -2
    return w.square().sum(axis)


def _what(pull: Pull) -> str:
    names = {"pull_rows_": "row norm", "pull_columns_": "column norm"}
    return names.get(getattr(pull, "__name__", ""), "singular value")


def _names(matrices: Sequence[Matrix]) -> str:
    names = [repr(matrix.layer) for matrix in matrices]
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return f"layer{'s' if names[1:] else ''} {', '.join(names[:3])}{more}"
