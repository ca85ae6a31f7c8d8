"""Schedules: every rule holds for every participant, and counts stay even over many of them."""

from collections import Counter

import numpy as np
import pytest

from pellucid._checks import ConfigError
from pellucid.study.schedule import APART, RUN, SIDES, Item, Plan, Trial, long_run, schedule


def items_of(targets: int = 40, cells: int = 4, classes: int = 10) -> list[Item]:
    return [
        Item(f"t{t}-c{c}", f"cell{c}", f"t{t}", f"class{t % classes}")
        for t in range(targets)
        for c in range(cells)
    ]


def afc(trials: tuple[Trial, ...]) -> list[Trial]:
    return [t for t in trials if t.kind == "afc"]


def check_rules(trials: tuple[Trial, ...], items: dict[str, Item]) -> None:
    real = [t for t in trials if not t.catch]
    targets = [items[i].target for t in real for i in t.items]
    assert len(set(targets)) == len(targets), "each target once"
    sides = np.array([SIDES.index(t.target_side) for t in afc(trials)])
    assert long_run(sides) is None, f"at most {RUN} equal sides in a row"
    by_cell: dict[str, Counter[str]] = {}
    for t in real:
        if t.kind == "afc":
            by_cell.setdefault(items[t.items[0]].cell, Counter())[t.target_side] += 1
    assert all(abs(c["left"] - c["right"]) <= 1 for c in by_cell.values())
    total = Counter(t.target_side for t in real if t.kind == "afc")
    assert abs(total["left"] - total["right"]) <= 1
    labels = [items[t.items[0]].label for t in real if t.kind == "afc"]
    assert all(labels[i] != labels[i + k] for k in range(1, APART) for i in range(len(labels) - k))
    catches = np.array([t.catch for t in trials])
    assert not catches[0] and not (catches[1:] & catches[:-1]).any()
    for t in trials:
        if t.kind == "match":
            assert len({items[i].cell for i in t.items}) == 1
            assert sorted(t.rows) == sorted(t.columns) == [0, 1, 2]


@pytest.mark.slow
def test_A16_a_thousand_participants() -> None:
    items = items_of()
    by_id, served = {i.id: i for i in items}, Counter[str]()
    for participant in range(1000):
        trials = schedule(items, Plan(afc=40, catches=3), served, seed=7, participant=f"p{participant}")
        check_rules(trials, by_id)
        assert sum(t.catch for t in trials) == 3
        served.update(t.items[0] for t in trials if not t.catch)
        if participant % 50 == 0:
            counts = [served[i.id] for i in items]
            assert max(counts) - min(counts) <= 1
    assert set(Counter(served.values())) == {250}, "1000 participants x 40 targets over 160 items"


def test_part_of_the_targets_still_keeps_raters_within_one() -> None:
    items = items_of(targets=30, cells=3)
    by_id, served = {i.id: i for i in items}, Counter[str]()
    for participant in range(120):
        trials = schedule(
            items,
            Plan(afc=13, match=3, catches=2, match_catches=1),
            served,
            seed=1,
            participant=str(participant),
        )
        check_rules(trials, by_id)
        served.update(i for t in trials if not t.catch for i in t.items)
        counts = [served[i.id] for i in items]
        assert max(counts) - min(counts) <= 1


def test_dropped_answers_are_refilled_first() -> None:
    items = items_of(targets=12, cells=2, classes=12)
    served = {item.id: 3 for item in items} | {"t5-c1": 0}
    trials = schedule(items, Plan(afc=1, catches=0), served, seed=0, participant="x")
    assert trials[0].items == ("t5-c1",)


def test_the_same_arguments_give_the_same_schedule_and_another_participant_another() -> None:
    items, plan = items_of(), Plan(afc=24, catches=2)
    first = schedule(items, plan, {}, seed=3, participant="a")
    assert schedule(list(reversed(items)), plan, {}, seed=3, participant="a") == first
    assert schedule(items, plan, {}, seed=3, participant="b") != first
    assert schedule(items, plan, {}, seed=4, participant="a") != first


def test_over_participants_every_cell_and_side_comes_equally_often() -> None:
    items = items_of(targets=24, cells=4)
    pairs, by_id = Counter[tuple[str, str]](), {i.id: i for i in items}
    for participant in range(100):
        for trial in schedule(items, Plan(afc=24, catches=0), {}, seed=0, participant=str(participant)):
            pairs[by_id[trial.items[0]].cell, trial.target_side] += 1
    assert all(count == 300 for count in pairs.values()), pairs


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: schedule(items_of(5), Plan(afc=6, catches=0), {}, seed=0, participant="a"),
            "6 different targets",
        ),
        (
            lambda: schedule(items_of(12, classes=2), Plan(afc=12, catches=0), {}, seed=0, participant="a"),
            "apart",
        ),
        (
            lambda: schedule(
                items_of(4, cells=4), Plan(afc=1, match=1, catches=0), {}, seed=0, participant="a"
            ),
            "one cell",
        ),
        (lambda: Plan(afc=0), "at least one trial"),
        (lambda: Plan(afc=4, catches=4), "kept apart"),
        (lambda: Plan(afc=4, catches=-1), "negative"),
    ],
)
def test_plans_that_cannot_work_are_refused(call, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()


def test_without_classes_nothing_is_kept_apart() -> None:
    items = [Item(f"t{t}", "cell", f"t{t}") for t in range(9)]
    assert len(schedule(items, Plan(afc=9, catches=1), {}, seed=0, participant="a")) == 10


def test_small_plans_never_draw_more_of_a_class_than_can_be_kept_apart() -> None:
    items = items_of(targets=100, cells=4, classes=10)
    by_id, served = {i.id: i for i in items}, Counter[str]()
    for participant in range(100):
        trials = schedule(items, Plan(afc=6, catches=1), served, seed=0, participant=f"p{participant}")
        check_rules(trials, by_id)
        served.update(t.items[0] for t in trials if not t.catch)
    assert max(served[i.id] for i in items) - min(served[i.id] for i in items) <= 1


@pytest.mark.parametrize("afc", [2, 3, 4, 5, 6, 7, 8, 10, 12])
@pytest.mark.parametrize(("targets", "classes"), [(12, 3), (12, 4), (20, 10), (12, 6)])
def test_every_small_plan_has_an_order_for_everybody(afc: int, targets: int, classes: int) -> None:
    """Two classes of two among four trials cannot be kept apart, though no class has too many by itself."""
    items = items_of(targets=targets, cells=2, classes=classes)
    by_id, served = {i.id: i for i in items}, Counter[str]()
    for participant in range(60):
        trials = schedule(items, Plan(afc=afc, catches=0), served, seed=afc, participant=f"p{participant}")
        labels = [by_id[t.items[0]].label for t in trials]
        assert len(labels) == afc
        assert all(labels[i] != labels[i + k] for k in range(1, APART) for i in range(len(labels) - k))
        served.update(t.items[0] for t in trials)
