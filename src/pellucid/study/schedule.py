"""Who sees what, where and when: a participant's whole schedule from the items, the counts so far and one seed.

Rules (specification of the study, section 7.3): a participant sees each target under one model and method only, since
earlier trials would teach the answer; items that have the fewest answers are served first, so that raters per item stay
within one; sides are balanced within each cell and participant, at most three equal sides in a row; trials whose targets
share a class lie at least three apart; catch trials are about one in twelve and never adjacent.

A schedule is fixed at enrolment, on the server. Everything here is a pure function: same arguments, same schedule.
"""

import dataclasses as dc
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pellucid._checks import ConfigError
from pellucid.rng import stream

APART = 3
"""Trials whose targets share a class have positions that differ by at least this much."""
RUN = 3
"""At most this many equal sides in a row."""
SIDES = ("left", "right")
COPIES = ("target", "start")


@dc.dataclass(frozen=True)
class Item:
    """One thing to judge: the result of inverting `target` in one cell (model, layer, method), from one start."""

    id: str
    cell: str
    target: str
    label: str = ""
    """The target's class; "" if it has none, and then nothing is kept apart."""


@dc.dataclass(frozen=True)
class Trial:
    """What one screen shows. `target_side` of an `afc` trial; `rows` and `columns` of a `match` trial.

    In a `match` trial row r shows the result of item `items[rows[r]]`, column c the target of `items[columns[c]]`.
    A catch trial shows copies: of one option as the reference (`afc`; `copied` says of which, "target" or "start"), or
    of the columns as rows (`match`).
    """

    kind: str
    items: tuple[str, ...]
    catch: bool = False
    target_side: str = ""
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    copied: str = ""


@dc.dataclass(frozen=True)
class Plan:
    """How many trials of each kind a participant gets."""

    afc: int
    match: int = 0
    catches: int = 8
    """Catch trials among the `afc` trials."""
    match_catches: int = 0

    def __post_init__(self) -> None:
        for name in ("afc", "match", "catches", "match_catches"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.afc + self.match == 0:
            raise ConfigError("a plan needs at least one trial: afc and match are both 0")
        for trials, catches, kind in (
            (self.afc, self.catches, "afc"),
            (self.match, self.match_catches, "match"),
        ):
            if catches > max(0, trials - 1):
                raise ConfigError(
                    f"{catches} catch trials cannot be kept apart among {trials} {kind} trials; ask for at most {max(0, trials - 1)}"
                )

    @property
    def targets(self) -> int:
        """Targets that one participant uses up (those of catch trials are taken from the same ones)."""
        return self.afc + 3 * self.match


def schedule(
    items: Sequence[Item], plan: Plan, served: Mapping[str, int], *, seed: int, participant: str
) -> tuple[Trial, ...]:
    """The trials of one participant, in order: the `afc` part, then the `match` part.

    Args:
        served: answers (given or still open) that each item has so far; items it lacks have none.
        participant: the random id of the participant; with `seed` it determines every choice left free by the rules.

    Raises:
        ConfigError: fewer targets than the plan needs, or a class so frequent that its trials cannot be kept apart.
    """
    rng = stream(seed, "schedule", participant)
    chosen = choose(items, plan.targets, served, rng, spread_over=plan.afc)
    singles, triples = split(chosen, plan, rng)
    singly = [Trial("afc", (item.id,)) for item in spread(singles, rng)]
    singly = with_catches(singly, plan.catches, rng)
    cells = {item.id: item.cell for item in singles}
    sided = with_sides(singly, cells, rng)
    return (
        *with_copies(sided, stream(seed, "copies", participant)),
        *with_catches(matches(triples, rng), plan.match_catches, rng),
    )


def with_copies(trials: Sequence[Trial], rng: np.random.Generator) -> list[Trial]:
    """Deal what the reference of each catch trial copies: the target in half of them, the start image in the others.

    Were it always the target, somebody who takes the nicer picture without looking at the reference would pass every
    catch trial and count as perfect alignment.
    """
    places = [place for place, trial in enumerate(trials) if trial.catch]
    extra = int(rng.integers(2))
    copies = [COPIES[(number + extra) % 2] for number in range(len(places))]
    dealt = dict(zip(places, (copies[i] for i in rng.permutation(len(copies))), strict=True))
    return [dc.replace(trial, copied=dealt.get(place, "")) for place, trial in enumerate(trials)]


def choose(
    items: Sequence[Item],
    n: int,
    served: Mapping[str, int],
    rng: np.random.Generator,
    *,
    spread_over: int = 0,
) -> list[Item]:
    """One item for each of `n` targets: the targets served least, and of each the item served least.

    No more targets of a class than can be kept apart among `spread_over` trials while there are others; those left out are
    served least to the next participant.

    Ties go to the cell that this participant has least, so that cells form a Latin square over participants, then to chance.
    With all cells complete this keeps the answers of all items within one of each other.
    """
    by_target: dict[str, list[Item]] = {}
    for item in items:
        by_target.setdefault(item.target, []).append(item)
    if len(by_target) < n:
        raise ConfigError(
            f"a participant needs {n} different targets (one for an afc trial, three for a match trial) and there are "
            f"{len(by_target)}; ask for fewer trials or add targets"
        )
    total = {target: sum(served.get(item.id, 0) for item in group) for target, group in by_target.items()}
    names = [str(name) for name in rng.permutation(sorted(by_target))]
    cells: Counter[str] = Counter()
    chosen: list[Item] = []
    by_count = sorted(names, key=total.__getitem__)
    labels = {target: group[0].label for target, group in by_target.items()}
    for target in _few_of_a_class(by_count, labels, spread_over)[:n]:
        group = sorted(by_target[target], key=lambda item: item.id)
        order = [group[i] for i in rng.permutation(len(group))]
        item = min(order, key=lambda item: (served.get(item.id, 0), cells[item.cell]))
        cells[item.cell] += 1
        chosen.append(item)
    return chosen


def _few_of_a_class(targets: Sequence[str], labels: Mapping[str, str], trials: int) -> list[str]:
    """The targets in order, last those too many of their class; targets without a class are left where they are.

    In n trials a class has at most k = ceil(n / APART) places, and only n - APART (k - 1) classes can have so many: each of
    them takes one of the places that lie APART (k - 1) before the end.
    """
    if not trials:
        return list(targets)
    most = -(-trials // APART)
    room = trials - APART * (most - 1)
    seen: Counter[str] = Counter()
    first: list[str] = []
    last: list[str] = []
    for target in targets:
        label = labels[target]
        full = seen[label] >= most or (seen[label] == most - 1 and room == 0)
        if label and full:
            last.append(target)
            continue
        seen[label] += 1
        room -= bool(label) and seen[label] == most
        first.append(target)
    return first + last


def split(
    chosen: Sequence[Item], plan: Plan, rng: np.random.Generator
) -> tuple[list[Item], list[tuple[Item, ...]]]:
    """Items for `afc` trials and triples of one cell for `match` trials."""
    left = [chosen[i] for i in rng.permutation(len(chosen))]
    triples: list[tuple[Item, ...]] = []
    for _ in range(plan.match):
        sizes = Counter(item.cell for item in left)
        cell, size = sizes.most_common(1)[0]
        if size < 3:
            raise ConfigError(
                "a match trial needs three targets of one cell, and this participant's are spread over too many cells; "
                "ask for fewer match trials or fewer cells"
            )
        triple = tuple([item for item in left if item.cell == cell][:3])
        left = [item for item in left if item not in triple]
        triples.append(triple)
    return left, triples


def spread(items: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    """A random order in which items of one class lie at least `APART` positions apart.

    The most frequent class that may come next is drawn with a probability that grows with what is left of it, and
    comes for certain when waiting would leave too little room; a dead end starts again.
    """
    groups: dict[str, list[Item]] = {}
    for number, item in enumerate(items):
        groups.setdefault(item.label or f"\0{number}", []).append(item)
    largest = max(groups.items(), key=lambda pair: len(pair[1]), default=("", []))
    if (len(largest[1]) - 1) * APART + 1 > len(items):
        raise ConfigError(
            f"class {largest[0]!r} has {len(largest[1])} of {len(items)} targets, so its trials cannot lie {APART} apart; "
            f"choose targets of more classes"
        )
    for _ in range(1000):
        order = _try_spread(groups, len(items), rng)
        if order is not None:
            return order
    raise ConfigError(
        f"no order of these {len(items)} targets keeps equal classes {APART} trials apart; use more classes"
    )


def _try_spread(groups: Mapping[str, list[Item]], n: int, rng: np.random.Generator) -> list[Item] | None:
    left = {label: [group[i] for i in rng.permutation(len(group))] for label, group in groups.items()}
    recent: list[str] = []
    order: list[Item] = []
    for place in range(n):
        free = [label for label in left if left[label] and label not in recent[-(APART - 1) :]]
        if not free:
            return None
        urgent = [label for label in free if (len(left[label]) - 1) * APART + 1 >= n - place]
        weights = np.array([len(left[label]) ** 2 for label in free], float)
        label = urgent[0] if urgent else free[int(rng.choice(len(free), p=weights / weights.sum()))]
        order.append(left[label].pop())
        recent.append(label)
    return order


def with_sides(trials: Sequence[Trial], cells: Mapping[str, str], rng: np.random.Generator) -> list[Trial]:
    """The target left and right equally often in each cell and among the catch trials, at most `RUN` equal in a row.

    In a cell with an odd number of trials the side that has one more alternates over the odd cells from a random start,
    so that the participant's total stays within one. Catch trials count as a cell of their own, dealt last.
    """
    groups: dict[tuple[bool, str], list[int]] = {}
    for place, trial in enumerate(trials):
        key = (True, "") if trial.catch else (False, cells[trial.items[0]])
        groups.setdefault(key, []).append(place)
    sides = np.zeros(len(trials), int)
    extra = int(rng.integers(2))
    for key in sorted(groups):
        right, odd = divmod(len(groups[key]), 2)
        if odd:
            right, extra = right + extra, 1 - extra
        sides[rng.permutation(groups[key])[:right]] = 1
    sides = _break_runs(sides, [np.array(places) for places in groups.values()], rng)
    return [dc.replace(trial, target_side=SIDES[side]) for trial, side in zip(trials, sides, strict=True)]


def _break_runs(sides: np.ndarray, groups: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Exchange sides within cells until no run is longer than `RUN`; the counts of a cell never change."""
    cell_of = np.zeros(len(sides), int)
    for number, places in enumerate(groups):
        cell_of[places] = number
    for _ in range(10_000):
        start = long_run(sides)
        if start is None:
            return sides
        place = start + int(rng.integers(RUN + 1))
        partners = np.flatnonzero((cell_of == cell_of[place]) & (sides != sides[place]))
        if len(partners) == 0:
            continue  # another place of the run may have one; a cell with one trial never does
        other = int(rng.choice(partners))
        sides[place], sides[other] = sides[other], sides[place]
    return _flip_singles(sides, groups)


def _flip_singles(sides: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """With many cells of one trial nothing can be exchanged inside a cell: there the order of sides is dealt anew."""
    if all(len(places) == 1 for places in groups):
        return np.arange(len(sides)) % 2
    raise ConfigError(
        f"sides cannot be balanced in every cell without more than {RUN} equal ones in a row; use more trials a cell"
    )


def long_run(sides: np.ndarray) -> int | None:
    """Where the first run of more than `RUN` equal sides begins."""
    for start in range(len(sides) - RUN):
        if len(set(sides[start : start + RUN + 1].tolist())) == 1:
            return start
    return None


def matches(triples: Sequence[tuple[Item, ...]], rng: np.random.Generator) -> list[Trial]:
    """`match` trials with rows and columns in independent random orders."""
    return [
        Trial(
            "match",
            tuple(item.id for item in triple),
            rows=tuple(int(i) for i in rng.permutation(3)),
            columns=tuple(int(i) for i in rng.permutation(3)),
        )
        for triple in triples
    ]


def with_catches(trials: Sequence[Trial], n: int, rng: np.random.Generator) -> list[Trial]:
    """Insert `n` catch trials, made of items the participant sees anyway, evenly spread, never adjacent and never first."""
    edges = np.floor(np.linspace(1, len(trials), n + 1) + 1e-9).astype(int)
    found = list(trials)
    for low, high in reversed(list(itertools.pairwise(edges))):
        place = int(rng.integers(low, max(low + 1, high)))
        donor = trials[int(rng.integers(len(trials)))]
        found.insert(place, dc.replace(donor, catch=True))
    return found
