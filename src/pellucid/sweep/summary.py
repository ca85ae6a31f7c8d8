"""Means and paired differences over replicates, with intervals."""

import dataclasses as dc
import json
import math
from collections.abc import Iterator, Mapping, Sequence

from pellucid._checks import ConfigError, DataError
from pellucid.sweep.cells import Value


@dc.dataclass(frozen=True)
class Summary:
    """Mean over replicates with its two-sided Student-t interval; `nan` bounds below two replicates."""

    settings: Mapping[str, Value]
    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)


def summarise(table: Mapping[str, Sequence[Value]], measure: str, *, level: float = 0.95) -> list[Summary]:
    """One `Summary` a setting, in order of first appearance: mean +- t(n-1) * s / sqrt(n) over replicates."""
    groups: dict[str, tuple[dict[str, Value], list[float]]] = {}
    for settings, _, value in _of(table, measure):
        groups.setdefault(json.dumps(settings), (settings, []))[1].append(value)
    return [_summary(settings, values, level) for settings, values in groups.values()]


def paired(
    table: Mapping[str, Sequence[Value]], measure: str, *, baseline: Mapping[str, Value], level: float = 0.95
) -> list[Summary]:
    """Differences to the baseline setting at the same replicate, with their t interval.

    Factors that `baseline` does not name are matched: data set by data set, for instance. Replicates that one of
    the two settings lacks are left out of that pair, and `n` says how many remain.
    """
    rows = list(_of(table, measure))
    factors = [key for key in table if key not in ("replicate", "measure", "value")]
    unknown = set(baseline) - set(factors)
    if unknown:
        raise ConfigError(f"the baseline names {sorted(unknown)}, which are no factors; there are {factors}")

    def key(settings: Mapping[str, Value], replicate: int) -> str:
        return json.dumps([{**settings, **baseline}, replicate])

    base = {key(s, r): v for s, r, v in rows if all(s[f] == level_ for f, level_ in baseline.items())}
    if not base:
        raise DataError(f"no finished cell has the baseline setting {dict(baseline)}")
    groups: dict[str, tuple[dict[str, Value], list[float]]] = {}
    for settings, replicate, value in rows:
        if all(settings[f] == v for f, v in baseline.items()) or key(settings, replicate) not in base:
            continue
        difference = value - base[key(settings, replicate)]
        groups.setdefault(json.dumps(settings), (settings, []))[1].append(difference)
    return [_summary(settings, values, level) for settings, values in groups.values()]


def _of(table: Mapping[str, Sequence[Value]], measure: str) -> Iterator[tuple[dict[str, Value], int, float]]:
    names = list(dict.fromkeys(map(str, table["measure"])))
    if measure not in names:
        raise ConfigError(f"no measure {measure!r}; there are {names}")
    factors = [key for key in table if key not in ("replicate", "measure", "value")]
    for i, name in enumerate(table["measure"]):
        if name == measure:
            replicate, value = table["replicate"][i], table["value"][i]
            yield {f: table[f][i] for f in factors}, int(replicate), float(value)


def _summary(settings: Mapping[str, Value], values: Sequence[float], level: float) -> Summary:
    from scipy import stats

    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Summary(settings, mean, math.nan, math.nan, tuple(values))
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * spread
    return Summary(settings, mean, mean - half, mean + half, tuple(values))
