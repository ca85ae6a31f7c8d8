"""What a sweep computes: cells, each one setting of the factors and one replicate."""

import dataclasses as dc
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence

from pellucid._checks import ConfigError

Value = int | float | str | bool
LEADING = ("cell", "replicate", "seed", "status", "seconds", "error", "measure", "value")


@dc.dataclass(frozen=True)
class Cell:
    """One setting of the factors and one replicate. `seed` depends on (sweep seed, replicate) alone."""

    settings: Mapping[str, Value]
    replicate: int
    seed: int

    @property
    def name(self) -> str:
        """A file name: readable, and unique because it ends in a hash of everything."""
        text = json.dumps([dict(sorted(self.settings.items())), self.replicate, self.seed])
        plain = "_".join(f"{key}-{value}" for key, value in self.settings.items())
        safe = "".join(c if c.isalnum() or c in "-_.+" else "-" for c in plain)[:80]
        return f"{safe}_r{self.replicate}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def grid(factors: Mapping[str, Sequence[Value]], *, replicates: int, seed: int = 0) -> list[Cell]:
    """Every combination of the factors' levels, `replicates` times; all settings of replicate 0 come first.

    Replicate-first order makes an unfinished sweep a balanced one.
    """
    if replicates < 1:
        raise ConfigError(f"a sweep needs at least 1 replicate, got {replicates}")
    for factor, levels in factors.items():
        if not levels:
            raise ConfigError(f"factor {factor!r} has no levels")
        if factor in LEADING:
            raise ConfigError(
                f"a factor cannot be called {factor!r}: {list(LEADING)} are columns of the table"
            )
        if len(set(map(repr, levels))) < len(levels):
            raise ConfigError(f"factor {factor!r} names a level twice: {list(levels)}")
    combinations = [
        dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())
    ]
    seeds = [_seed(seed, replicate) for replicate in range(replicates)]
    return [Cell(settings, r, seeds[r]) for r in range(replicates) for settings in combinations]


def _seed(seed: int, replicate: int) -> int:
    digest = hashlib.sha256(json.dumps([seed, "replicate", replicate]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
