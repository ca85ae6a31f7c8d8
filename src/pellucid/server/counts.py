"""What the experimenter sees while people answer: counts, failures, durations. Never how answers came out."""

import dataclasses as dc
import datetime as dt
import statistics
from typing import Any

from sqlalchemy import Connection, case, func, select

from pellucid.server import tables
from pellucid.server.people import HOLDING, served
from pellucid.study.design import Study

RECENT = 100


@dc.dataclass(frozen=True)
class Cell:
    """A condition: answers that are stored, promised (stored or still open), and wanted."""

    name: str
    items: int
    stored: int
    promised: int
    wanted: int
    least: int
    most: int


@dc.dataclass(frozen=True)
class Somebody:
    """A participant in the list; `failing`: more catch trials wrong, of either kind, than the design allows."""

    id: str
    state: str
    test: bool
    answered: int
    planned: int
    catches: int
    passed: int
    failing: bool
    last_seen: str


@dc.dataclass(frozen=True)
class Counts:
    """The overview. `catches` and `passed` count catch trials over all participants, `failing` the people who fall short;
    `minutes` is the median from the first trial to the last answer."""

    paused: bool
    states: dict[str, int]
    held: int
    cells: tuple[Cell, ...]
    catches: int
    passed: int
    failing: int
    finished: int
    minutes: float | None
    pay: float | None
    recent: tuple[Somebody, ...]
    tests: int


def overview(connection: Connection, study: Study) -> Counts:
    """The overview of a study at this moment."""
    people = tables.participant
    real = people.c.test.is_(False)
    states = {
        state: int(n)
        for state, n in connection.execute(
            select(people.c.state, func.count()).where(real).group_by(people.c.state)
        )
    }
    everybody = _catches(connection, study)
    minutes = _minutes(connection)
    middle = statistics.median(minutes) if minutes else None
    pay = study.sample.pay_per_hour
    return Counts(
        paused=bool(connection.scalar(select(tables.study.c.paused))),
        states=states,
        held=sum(states.get(state, 0) for state in HOLDING),
        cells=cells(connection, study),
        catches=sum(p.catches for p in everybody if not p.test),
        passed=sum(p.passed for p in everybody if not p.test),
        failing=sum(p.failing for p in everybody if not p.test),
        finished=len(minutes),
        minutes=middle,
        pay=None if pay is None or middle is None else pay * middle / 60,
        recent=tuple(sorted(everybody, key=lambda p: p.last_seen, reverse=True)[:RECENT]),
        tests=sum(p.test for p in everybody),
    )


def cells(connection: Connection, study: Study) -> tuple[Cell, ...]:
    """Answers by condition, catch trials left out."""
    item, slot, people = tables.item, tables.slot, tables.participant
    assignment = tables.assignment
    stored_query = (
        select(slot.c.item, func.count())
        .join(assignment, assignment.c.id == slot.c.assignment)
        .join(people, people.c.id == assignment.c.participant)
        .where(people.c.test.is_(False), slot.c.ordinal < people.c.answered)
        .group_by(slot.c.item)
    )
    stored = {name: int(n) for name, n in connection.execute(stored_query)}
    promised = served(connection, keep_partials=study.sample.keep_partials)
    by_cell: dict[str, list[str]] = {}
    for row in connection.execute(select(item.c.id, item.c.cell).where(item.c.practice.is_(False))):
        by_cell.setdefault(row.cell, []).append(row.id)
    return tuple(
        Cell(
            name=name, items=len(ids), stored=sum(stored.get(i, 0) for i in ids),
            promised=sum(promised.get(i, 0) for i in ids), wanted=len(ids) * study.trials.raters,
            least=min(promised.get(i, 0) for i in ids), most=max(promised.get(i, 0) for i in ids),
        )
        for name, ids in sorted(by_cell.items())
    )  # fmt: skip


def _catches(connection: Connection, study: Study) -> list[Somebody]:
    people, assignment, trial, response = (
        tables.participant, tables.assignment, tables.trial, tables.response,
    )  # fmt: skip

    def wrong(kind: str, full: int) -> Any:
        missed = (trial.c.kind == kind) & (response.c.correct < full)
        return func.coalesce(func.sum(case((missed, 1), else_=0)), 0)

    query = (
        select(
            people.c.id,
            people.c.state,
            people.c.test,
            people.c.answered,
            people.c.planned,
            people.c.last_seen,
            func.count(response.c.id).label("catches"),
            wrong("afc", 1).label("afc_wrong"),
            wrong("match", 3).label("match_wrong"),
        )
        .join(assignment, assignment.c.participant == people.c.id, isouter=True)
        .join(trial, (trial.c.assignment == assignment.c.id) & trial.c.catch, isouter=True)
        .join(
            response,
            (response.c.assignment == trial.c.assignment) & (response.c.ordinal == trial.c.ordinal),
            isouter=True,
        )
        .group_by(people.c.id)
    )
    return [_somebody(row, study) for row in connection.execute(query)]


def _somebody(row: Any, study: Study) -> Somebody:
    """A row of `_catches`; who falls short is decided as the exclusion rule of the analysis does, kind by kind."""
    allowed = study.trials.catches - study.trials.catches_right
    match_allowed = study.trials.match_catches - study.trials.match_catches_right
    return Somebody(
        row.id, row.state, row.test, row.answered, row.planned, row.catches,
        passed=int(row.catches - row.afc_wrong - row.match_wrong),
        failing=bool(row.afc_wrong > allowed or row.match_wrong > match_allowed), last_seen=row.last_seen,
    )  # fmt: skip


def _minutes(connection: Connection) -> list[float]:
    people = tables.participant
    rows = connection.execute(
        select(people.c.started_at, people.c.finished_at).where(
            people.c.test.is_(False), people.c.state == "completed"
        )
    )
    spans = [
        dt.datetime.fromisoformat(row.finished_at) - dt.datetime.fromisoformat(row.started_at) for row in rows
    ]
    return [span.total_seconds() / 60 for span in spans]
