"""Participants: where each stands, how they come in, and how they leave. Jobs for a `Database`."""

import dataclasses as dc
import json
import secrets

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update

from pellucid.server import tables
from pellucid.server.opening import note
from pellucid.server.refusals import Refused
from pellucid.study.design import Study

STEPS = ("consent", "device", "instructions", "quiz", "practice", "trials", "comment", "debrief")
"""What a participant goes through; a study without quiz, practice or comment leaves those out."""
OPEN = ("invited", "consented", "running", "paused")
"""States in which a participant may still answer."""
HOLDING = ("consented", "running", "paused", "completed")
"""States that hold a place in the quota and raters' places at items."""
ANSWERING = ("consented", "running", "paused", "expired")
"""States in which an answer is taken: who comes back late has done the work."""
LEFT = ("withdrawn", "screened_out")
"""States that nothing follows."""


@dc.dataclass(frozen=True)
class Person:
    """A row of the table `participant`, and whether the study is paused."""

    id: str
    external: str | None
    test: bool
    state: str
    step: str
    consent_version: str
    enrolled_at: str
    consented_at: str
    started_at: str
    finished_at: str
    last_seen: str
    planned: int
    answered: int
    shown: int
    attempt: int
    practised: int
    quiz_attempts: int
    quiz_passed: bool
    device: str
    comment: str
    study_paused: bool


# Statements of every answer are made once: to make them takes longer than to run them.
_FIND = select(tables.participant, select(tables.study.c.paused).scalar_subquery()).where(
    tables.participant.c.id == bindparam("participant")
)
_FIND_LOCKED = _FIND.with_for_update(of=tables.participant)


def find(connection: Connection, participant: str, *, lock: bool = False) -> Person:
    """The participant of this id; with `lock` nobody else changes them before the transaction ends.

    Raises:
        Refused: there is none.
    """
    query = _FIND_LOCKED if lock else _FIND
    row = connection.execute(query, {"participant": participant}).one_or_none()
    if row is None:
        raise Refused(401, "unknown", "This link does not belong to a participant of this study.")
    return Person(*row)


def steps_of(study: Study) -> tuple[str, ...]:
    """The steps of this study, in order."""
    without = {
        step
        for step, there in (
            ("quiz", study.quiz),
            ("practice", study.trials.practice),
            ("comment", study.comment),
        )
        if not there
    }
    return tuple(step for step in STEPS if step not in without)


def step_after(study: Study, step: str) -> str:
    """The step that follows."""
    steps = steps_of(study)
    return steps[min(steps.index(step) + 1, len(steps) - 1)]


def begin(connection: Connection, study: Study, *, external: str, test: bool, quota: int) -> str:
    """The id of a new participant, or of the one who came with the same recruitment parameter before.

    Raises:
        Refused: the study is paused or full, or comes by invitation only.
    """
    if external:
        known = connection.scalar(
            select(tables.participant.c.id).where(tables.participant.c.external == external)
        )
        if known is not None:
            return known
    if study.recruitment.required and not external and not test:
        raise Refused(
            403, "by_invitation", "This study is by invitation: open it by the link you were given."
        )
    check_room(connection, quota=quota, test=test)
    participant = secrets.token_hex(16)
    moment = tables.now()
    connection.execute(
        insert(tables.participant).values(
            id=participant, external=external or None, test=test, state="invited", step="consent", consent_version="",
            enrolled_at=moment, consented_at="", started_at="", finished_at="", last_seen=moment, planned=0,
            answered=0, shown=-1, attempt=0, practised=0, quiz_attempts=0, quiz_passed=not study.quiz, device="",
            comment="",
        )
    )  # fmt: skip
    happened(connection, participant, "invited")
    return participant


def check_room(connection: Connection, *, quota: int, test: bool) -> None:
    """Raise `Refused` while the study is paused, or once it has all its participants."""
    if test:
        return
    if connection.scalar(select(tables.study.c.paused)):
        raise Refused(503, "paused", "The study is paused at the moment. Please come back later.")
    if held(connection) >= quota:
        raise Refused(
            403, "full", "The study has all the participants it needs. Thank you for your interest."
        )


def held(connection: Connection) -> int:
    """Places of the quota that are taken."""
    people = tables.participant
    query = (
        select(func.count()).select_from(people).where(people.c.test.is_(False), people.c.state.in_(HOLDING))
    )
    return connection.scalar(query) or 0


def expire(connection: Connection, *, minutes: float) -> int:
    """Return the places of those who were not seen for so long; how many that were."""
    people = tables.participant
    late = [
        row.id
        for row in connection.execute(
            select(people.c.id)
            .where(people.c.state.in_(OPEN), people.c.last_seen < tables.minutes_ago(minutes))
            .with_for_update(skip_locked=True)
        )
    ]
    if late:
        connection.execute(update(people).where(people.c.id.in_(late)).values(state="expired"))
    for participant in late:
        happened(connection, participant, "expired")
    return len(late)


def advance(
    connection: Connection, participant: str, study: Study, *, step: str, **facts: str | int | bool
) -> None:
    """Leave `step` for the one that follows, and keep what was learnt in it. A step left before is left alone."""
    person = find(connection, participant, lock=True)
    if person.step != step or person.state in LEFT:
        return
    change(connection, participant, step=step_after(study, step), **facts)


def comment(connection: Connection, participant: str, study: Study, text: str) -> None:
    """Keep what a participant wrote, if anything; as an event it stands in exports, and goes with a withdrawal."""
    person = find(connection, participant, lock=True)
    if person.step != "comment" or person.state in LEFT:
        return
    change(connection, participant, step=step_after(study, "comment"), comment=text)
    if text:
        happened(connection, participant, "comment", {"text": text})


def change(connection: Connection, participant: str, **columns: str | int | bool | None) -> None:
    """Set columns of a participant, who was seen just now."""
    people = tables.participant
    connection.execute(
        update(people).where(people.c.id == participant).values(last_seen=tables.now(), **columns)
    )


def answer_quiz(connection: Connection, participant: str, study: Study, given: tuple[int, ...]) -> bool:
    """Count a try of the quiz; whether it was right. Who fails too often is screened out if the design says so."""
    person = find(connection, participant, lock=True)
    if person.step != "quiz" or person.state not in ANSWERING:
        return True
    right = given == tuple(question.right for question in study.quiz)
    tries = person.quiz_attempts + 1
    happened(connection, participant, "quiz", {"try": tries, "given": list(given), "right": right})
    if right or (tries >= study.exclusion.quiz_tries and "quiz" not in study.exclusion.rules):
        change(
            connection, participant, quiz_attempts=tries, quiz_passed=right, step=step_after(study, "quiz")
        )
    elif tries >= study.exclusion.quiz_tries:
        change(connection, participant, quiz_attempts=tries, state="screened_out", finished_at=tables.now())
        happened(connection, participant, "screened_out", {"why": "quiz"})
    else:
        change(connection, participant, quiz_attempts=tries)
    return right


def decline(connection: Connection, participant: str) -> None:
    """No consent: the participant takes no part."""
    person = find(connection, participant, lock=True)
    if person.state == "invited":
        change(connection, participant, state="screened_out", finished_at=tables.now())
        happened(connection, participant, "screened_out", {"why": "no consent"})


def withdraw(connection: Connection, participant: str) -> int:
    """Delete all that a participant answered or wrote, and leave a marker; how many answers that were."""
    person = find(connection, participant, lock=True)
    if person.state == "withdrawn":
        return 0
    own = (
        select(tables.assignment.c.id).where(tables.assignment.c.participant == participant).scalar_subquery()
    )
    deleted = connection.execute(delete(tables.response).where(tables.response.c.assignment == own)).rowcount
    for table in (tables.slot, tables.trial):
        connection.execute(delete(table).where(table.c.assignment == own))
    connection.execute(delete(tables.assignment).where(tables.assignment.c.participant == participant))
    connection.execute(delete(tables.event).where(tables.event.c.participant == participant))
    change(
        connection, participant, state="withdrawn", finished_at=tables.now(), comment="", device="", answered=0,
        planned=0, shown=-1, attempt=0, practised=0, quiz_attempts=0, quiz_passed=False,
    )  # fmt: skip
    happened(connection, participant, "withdrawn", {"answers": deleted})
    note(connection, f"participant {participant}", "withdrawn", f"{deleted} answers deleted")
    return deleted


def happened(
    connection: Connection, participant: str, kind: str, detail: dict[str, object] | None = None
) -> None:
    """Add an event."""
    text = json.dumps(detail, sort_keys=True) if detail else ""
    connection.execute(
        insert(tables.event).values(participant=participant, at=tables.now(), kind=kind, detail=text)
    )


def served(connection: Connection, *, keep_partials: bool) -> dict[str, int]:
    """Answers, given or still open, that each item has from participants who hold their places."""
    people, slot, assignment = tables.participant, tables.slot, tables.assignment
    counts = people.c.state.in_(HOLDING)
    if keep_partials:  # of those who left only what they answered
        counts = or_(counts, (people.c.state == "expired") & (slot.c.ordinal < people.c.answered))
    query = (
        select(slot.c.item, func.count())
        .join(assignment, assignment.c.id == slot.c.assignment)
        .join(people, people.c.id == assignment.c.participant)
        .where(people.c.test.is_(False), counts)
        .group_by(slot.c.item)
    )
    return {name: int(n) for name, n in connection.execute(query)}
