"""The contract: an answer is stored once, in order, before the next trial is shown, and never changed."""

import re
import uuid

import pytest
from fastapi.testclient import TestClient
from held import Visitor, answer_to, client_of, frozen_study, site_of
from sqlalchemy import func, select, update

from pellucid._checks import ConfigError, StaleResultError
from pellucid.server import read_records, tables
from pellucid.study.frozen import Frozen
from pellucid.study.scoring import correct_of


def stored(client: TestClient) -> int:
    count = select(func.count()).select_from(tables.response)
    return site_of(client).database.read_now(lambda c: c.scalar(count)) or 0


def state_of(client: TestClient) -> list[str]:
    return site_of(client).database.read_now(lambda c: list(c.scalars(select(tables.participant.c.state))))


def test_a_whole_participation(client: TestClient, study: Frozen, database: str) -> None:
    person = Visitor(client).ready("?PROLIFIC_PID=abc").finish()
    assert "Anything to add" in person.get("/study").text
    assert state_of(client) == ["completed"]
    assert person.submit("/study/comment", comment="<script>alert(1)</script>").status_code == 303
    page = person.get("/study").text
    assert "C0FFEE" in page and "https://example.org/done" in page
    found = read_records(database, sha256=study.sha256)
    (somebody,) = found.participants
    assert len(found.answers) == somebody.planned == study.study.trials.shown == 9
    assert [a.ordinal for a in found.answers] == list(range(9))
    assert somebody.state == "completed" and somebody.quiz_passed and somebody.consent_version == "v1"
    assert somebody.device == "unknown browser, mouse"
    screens = site_of(client).projector.known(somebody.id)
    assert screens is not None
    for answer, trial in zip(found.answers, screens.trials, strict=True):
        assert answer.correct == correct_of(trial, answer.chosen) and answer.rt_ms == 850.5
    assert len(somebody.external) == 64 and "abc" not in somebody.external
    kinds = [e.kind for e in found.events]
    assert kinds == [
        "invited",
        "consented",
        "quiz",
        "practice",
        "practice",
        "running",
        "completed",
        "comment",
    ]


def test_T17_a_double_submit_is_stored_once(client: TestClient) -> None:
    person = Visitor(client).ready()
    body = answer_to(person.next()["trial"])
    first, second = person.send(body), person.send(body)
    assert first.json()["repeated"] is False and second.json()["repeated"] is True
    assert first.json()["next"] == second.json()["next"]
    assert stored(client) == 1


def test_another_answer_to_the_same_trial_is_refused(client: TestClient) -> None:
    person = Visitor(client).ready()
    body = answer_to(person.next()["trial"])
    assert person.send(body).status_code == 200
    for change in ({"chosen": "right"}, {"key": str(uuid.uuid4())}, {"answered_at": 1900.0}):
        reply = person.send(body | change)
        assert reply.status_code == 409 and reply.json()["error"] == "answered"
    assert stored(client) == 1


def test_order_keys_and_choices_are_checked(client: TestClient) -> None:
    person = Visitor(client).ready()
    trial = person.next()["trial"]
    body = answer_to(trial)
    wrong = {
        "out_of_order": person.send(body | {"ordinal": 1}),
        "no_answer": person.send(body | {"chosen": "123"}),
    }
    for code, reply in wrong.items():
        assert reply.json()["error"] == code
    following = person.send(body).json()["next"]["trial"]
    assert person.answer(following, key=body["key"]).json()["error"] == "key_used"
    assert stored(client) == 1


def test_an_answer_to_a_trial_that_was_never_shown_is_refused(client: TestClient) -> None:
    person = Visitor(client).ready()
    assert person.answer({"ordinal": 0, "kind": "afc"}).json()["error"] == "not_shown"


def test_nobody_answers_before_the_trials(client: TestClient) -> None:
    person = Visitor(client).arrive()
    assert person.get("/api/next").json()["error"] == "not_now"
    person.consent()
    assert person.next() == {"trial": None, "why": "over", "done": 0, "planned": 9, "preload": []}
    assert person.answer({"ordinal": 0, "kind": "afc"}).json()["error"] == "closed"


def test_the_key_of_a_form_cannot_be_left_out_or_taken_from_another(client: TestClient) -> None:
    person, other = Visitor(client).ready(), Visitor(client).ready()
    body = answer_to(person.next()["trial"])
    for form in ("", "0" * 32, other.form):
        reply = person.post("/api/answers", json=body, headers={"x-form": form})
        assert reply.status_code == 403 and reply.json()["error"] == "forged"
    stranger = Visitor(client, {"participant": "forged.token"}, person.form)
    assert stranger.send(body).status_code == 401
    assert stored(client) == 0


def test_resumed_trials_are_counted_and_flagged(client: TestClient, study: Frozen, database: str) -> None:
    person = Visitor(client).ready()
    person.answer(person.next()["trial"])
    again = person.next()
    assert again["trial"]["ordinal"] == 1 and person.next() == again
    person.answer(again["trial"])
    first, second = read_records(database, sha256=study.sha256).answers
    assert (first.attempt, first.flags) == (1, ()) and (second.attempt, second.flags) == (3, ("resumed",))


def test_another_device_goes_on_by_the_link(client: TestClient) -> None:
    person = Visitor(client).arrive()
    person.consent()
    link = re.search(r"http://testserver(/resume/[\w.]+)", person.get("/study").text)
    assert link
    person.prepare()
    person.answer(person.next()["trial"])
    elsewhere = Visitor(client)
    assert elsewhere.get(link[1]).status_code == 303
    elsewhere.get("/study")
    assert elsewhere.next()["trial"]["ordinal"] == 1
    assert Visitor(client).get(link[1][:-3] + "abc").status_code == 403


def test_a_killed_server_knows_everything_that_it_acknowledged(study: Frozen, database: str) -> None:
    with client_of(study.path, database) as client:
        person = Visitor(client).ready()
        body = answer_to(person.next()["trial"])
        shown = person.send(body).json()["next"]
    with client_of(study.path, database, token="") as client:
        person.client = client
        assert person.send(body).json() == {"stored": 0, "repeated": True, "next": shown}
        assert person.next() == shown, "the same screen under the same names"


def test_T17_withdrawal_deletes_the_answers_and_leaves_a_marker(
    client: TestClient, study: Frozen, database: str
) -> None:
    stays, leaves = Visitor(client).ready(), Visitor(client).ready("?PROLIFIC_PID=x")
    stays.answer(stays.next()["trial"])
    body = answer_to(leaves.next()["trial"])
    leaves.send(body)
    picture = leaves.next()["trial"]["images"]["left"]["url"]
    assert "cannot be brought back" in leaves.get("/study/withdraw").text
    assert leaves.submit("/study/withdraw").status_code == 303
    assert "Your answers are deleted" in leaves.get("/study").text
    found = read_records(database, sha256=study.sha256)
    assert len(found.answers) == 1
    (gone,) = [p for p in found.participants if p.state == "withdrawn"]
    assert (gone.device, gone.planned) == ("", 0)
    assert [e.kind for e in found.events if e.participant == gone.id] == ["withdrawn"]
    assert leaves.send(body).status_code == 409 and leaves.get(picture).status_code == 409
    back = Visitor(client)
    back.arrive("?PROLIFIC_PID=x")
    assert "Your answers are deleted" in back.get("/study").text


def test_one_person_takes_part_once(client: TestClient) -> None:
    Visitor(client).arrive("?PROLIFIC_PID=same").consent()
    second = Visitor(client).arrive("?PROLIFIC_PID=same")
    assert "Your screen" in second.get("/study").text
    assert len(state_of(client)) == 1


def test_declining_and_failing_the_quiz_screen_out(client: TestClient) -> None:
    declines = Visitor(client).arrive()
    declines.submit("/study/decline")
    assert "The study ends here" in declines.get("/study").text
    fails = Visitor(client).arrive().consent()
    for step in ("device", "instructions"):
        fails.submit(f"/study/{step}")
    assert fails.submit("/study/quiz").status_code == 422
    assert "Not every answer" in fails.submit("/study/quiz", q0="1").text
    fails.submit("/study/quiz", q0="1")
    assert "The study ends here" in fails.get("/study").text
    assert fails.get("/api/next").json()["why"] == "over"
    assert state_of(client) == ["screened_out", "screened_out"]


def test_consent_needs_every_box(client: TestClient) -> None:
    person = Visitor(client).arrive()
    assert "tick every box" in person.submit("/study/consent", agree="yes").text
    assert state_of(client) == ["invited"]


def test_the_pause_lets_nobody_in_and_keeps_answers_on_their_way(client: TestClient) -> None:
    person = Visitor(client).ready()
    trial = person.next()["trial"]
    site_of(client).database.write_now(lambda c: c.execute(update(tables.study).values(paused=True)))
    reply = person.answer(trial).json()
    assert reply["stored"] == 0 and reply["next"]["trial"] is None and reply["next"]["why"] == "paused"
    assert person.next()["why"] == "paused" and state_of(client) == ["paused"]
    late = Visitor(client)
    visit = re.search(r'name="visit" value="([^"]+)"', late.get("/").text)
    assert visit and late.post("/start", data={"visit": visit[1]}).status_code == 503
    site_of(client).database.write_now(lambda c: c.execute(update(tables.study).values(paused=False)))
    assert person.next()["trial"]["ordinal"] == 1 and state_of(client) == ["running"]


def test_quota_and_places_that_return(study: Frozen, tmp_path) -> None:
    frozen = frozen_study(tmp_path / "small", quota="1")
    with client_of(frozen.path, f"sqlite:///{tmp_path / 'q.db'}") as client:
        first = Visitor(client).ready()
        full = Visitor(client)
        visit = re.search(r'name="visit" value="([^"]+)"', full.get("/").text)
        assert visit
        assert "all the participants it needs" in full.post("/start", data={"visit": visit[1]}).text
        past = update(tables.participant).values(last_seen=tables.minutes_ago(91.0))
        waiting = Visitor(client)
        site_of(client).database.write_now(
            lambda c: (c.execute(past), c.execute(update(tables.participant).values(state="invited")))[0]
        )
        waiting.arrive().consent()
        assert sorted(state_of(client)) == ["consented", "expired"]
        trial = first.next()["trial"]
        assert first.answer(trial).status_code == 200, "who comes back late has done the work"


def test_items_are_served_evenly(client: TestClient, study: Frozen) -> None:
    for _ in range(6):
        Visitor(client).arrive().consent()
    counts = select(tables.slot.c.item, func.count()).group_by(tables.slot.c.item)
    served = dict(tuple(row) for row in site_of(client).database.read_now(lambda c: c.execute(counts).all()))
    all_counts = [served.get(item.id, 0) for item in study.items]
    assert sum(all_counts) == 6 * 9 and max(all_counts) - min(all_counts) <= 2


def test_another_study_is_not_mixed_in(study: Frozen, database: str, tmp_path) -> None:
    client_of(study.path, database)
    other = frozen_study(tmp_path / "other", seed="4")
    with pytest.raises(StaleResultError, match="database of its own"):
        client_of(other.path, database)
    with pytest.raises(StaleResultError, match="not of"):
        read_records(database, sha256=other.sha256)
    with pytest.raises(ConfigError, match="needs a token"):
        client_of(other.path, f"sqlite:///{tmp_path / 'new.db'}", token="")
