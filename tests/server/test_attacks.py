"""What an adversary sends or looks for: malformed hosts and origins, odd bodies, secrets in logs and files, stale traces."""

import dataclasses as dc
import json
import logging
import os
import stat
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from held import TOKEN, Visitor, answer_to, client_of, frozen_study, pool, site_of

from pellucid._checks import ConfigError, DataError
from pellucid.server import read_records
from pellucid.server.counts import overview
from pellucid.server.guard import for_log
from pellucid.study.frozen import Frozen
from pellucid.study.items import _same_sizes
from pellucid.study.scoring import right_choice

JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
def person(client: TestClient) -> Visitor:
    """Somebody before their first trial."""
    return Visitor(client).ready()


@pytest.mark.parametrize(
    "origin", ["http://[", "null", "", "http://testserver.evil", "testserver", "http://user@testserver"]
)
def test_malformed_and_foreign_origins_are_refused(person: Visitor, origin: str) -> None:
    body = answer_to(person.next()["trial"])
    reply = person.post("/api/answers", json=body, headers={"x-form": person.form, "origin": origin})
    assert reply.status_code == 403 and reply.json()["error"] == "other_site"


@pytest.mark.parametrize(
    "host", ["testserver:[", "testserver/x", "testserver:abc", "user@testserver", "evil", ""]
)
def test_malformed_and_foreign_hosts_are_refused(person: Visitor, host: str) -> None:
    reply = person.get("/study", headers={"host": host})
    assert reply.status_code == 400 and "not held under that address" in reply.text


def test_a_study_is_held_on_an_address_of_version_6(study: Frozen, database: str) -> None:
    with client_of(study.path, database, public_url="http://[::1]:8000") as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"host": "[::2]:8000"}).status_code == 400
    with client_of(study.path, database, public_url="http://[fd00::5]:8000") as client:
        assert client.get("/").status_code == 200


def test_a_study_has_no_path(study: Frozen, database: str) -> None:
    with pytest.raises(ConfigError, match="without a path"):
        client_of(study.path, database, public_url="https://example.org/study")


def test_another_site_cannot_have_a_trial_shown(person: Visitor) -> None:
    """`GET /api/next` notes that a trial was shown, so an image tag elsewhere must not be able to ask it."""
    person.next()
    assert person.get("/api/next", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    answered = person.answer({"ordinal": 0, "kind": "afc"})
    assert answered.status_code == 200
    assert person.get("/study", headers={"sec-fetch-site": "cross-site"}).status_code == 200, (
        "a link may lead here"
    )


@pytest.mark.parametrize(
    "content",
    [
        "[" * 8000, '{"ordinal": ' + "9" * 5000 + "}", '{"shown_at": ' + "9" * 400 + "}", '{"key": "\\ud800"}', '{"\\ud800": 1}',
        b"\xff\xfe\x00", "", '{"viewport": "\u0661x\u0661"}',
    ],
    ids=["deep", "5000 digits", "400 digits", "surrogate", "surrogate name", "no text", "empty", "other digits"],
)  # fmt: skip
def test_odd_bodies_are_refused(person: Visitor, content: str | bytes) -> None:
    person.next()
    text = content
    if isinstance(content, str) and content.startswith("{"):  # a whole answer with one odd field
        body = json.dumps(answer_to({"ordinal": 0, "kind": "afc"}))
        text = f"{body[:-1]}, {content[1:]}"
    reply = person.post("/api/answers", content=text, headers={**JSON, "x-form": person.form})
    assert reply.status_code in (400, 422) and set(reply.json()) == {"error", "message"}


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data; boundary=x; charset=unicode_escape", "text/plain", "multipart/form-data", "x"],
)
def test_only_forms_and_json_are_parsed(client: TestClient, kind: str) -> None:
    """An upload names its own character set, and what that makes of bytes need be no text that can be stored."""
    body = '--x\r\nContent-Disposition: form-data; name="token"\r\n\r\n\\ud800\r\n--x--\r\n'
    reply = client.post("/experimenter/login", content=body, headers={"content-type": kind})
    assert reply.status_code == 415
    assert site_of(client).refused["bad_form"] == 1


@pytest.mark.parametrize("text", ["%ED%A0%80", "%00", "%F0%9F%98%80", "%"])
def test_odd_texts_in_forms_are_refused_or_kept_as_text(client: TestClient, text: str) -> None:
    assert client.post("/experimenter/login", content=f"token={text}", headers=FORM).status_code == 403
    assert client.post("/start", content=f"visit={text}", headers=FORM).status_code == 403
    person = Visitor(client).ready().finish()
    sent = f"form={person.form}&comment={text}"
    assert person.post("/study/comment", content=sent, headers=FORM).status_code == 303
    assert "C0FFEE" in person.get("/study").text


def test_refusals_at_the_door_are_counted_for_the_experimenter(client: TestClient, person: Visitor) -> None:
    large = {"content-length": "99999", **JSON}
    assert person.post("/api/answers", content="{}", headers=large).json()["error"] == "too_large"
    person.post("/api/answers", json={}, headers={"origin": "https://evil.example"})
    assert (site_of(client).refused["too_large"], site_of(client).refused["other_site"]) == (1, 1)
    desk = Visitor(client)
    desk.post("/experimenter/login", data={"token": TOKEN})
    assert "other site" in desk.get("/experimenter").text


def test_no_personal_link_is_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    person = Visitor(client).arrive()
    token = person.cookies["participant"]
    secret = token.partition(".")[2]
    with caplog.at_level(logging.DEBUG):
        for path in (f"/resume/{token}x", f"/Resume/{token}", f"/resume/{token[:-4]}", f"//resume/{token}"):
            assert person.get(path).status_code in (403, 404)
        person.get(f"/resume/{token}", headers={"host": "evil.example"})
    refusals = [r.getMessage() for r in caplog.records if r.name == "pellucid.server"]
    assert len(refusals) == 5 and not [line for line in refusals if secret[:12] in line]
    assert for_log("/resume/\n" + 40 * "a") == "'/resume/\\n*'"


def test_a_fault_says_so_and_has_the_headers(
    study: Frozen, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(study.path, database) as made:
        person = Visitor(made).ready()
        site = site_of(made)

        def fails(_: str) -> None:
            raise RuntimeError("a path of this machine")

        monkeypatch.setattr(site.projector, "known", fails)
        quiet = TestClient(made.app, base_url="http://testserver", raise_server_exceptions=False)
        person.client = quiet
        reply = person.get("/api/next")
        assert reply.status_code == 500 and reply.json()["error"] == "fault"
        assert "machine" not in reply.text and "safe" in reply.json()["message"]
        assert "script-src 'self'" in reply.headers["content-security-policy"]


def everything(database: str) -> bytes:
    """All bytes of a SQLite database: the file and its log."""
    file = Path(database.removeprefix("sqlite:///"))
    return b"".join(
        part.read_bytes() for part in file.parent.glob(f"{file.name}*") if not part.name.endswith("-shm")
    )


def test_T17_withdrawal_leaves_no_trace_in_the_files(study: Frozen, database: str) -> None:
    with client_of(study.path, database) as client:
        person = Visitor(client).ready()
        body = answer_to(person.next()["trial"])
        person.send(body)
        person.finish()
        person.submit("/study/comment", comment="what I saw was a teapot")
        assert b"teapot" in everything(database) and body["key"].encode() in everything(database)
        assert person.submit("/study/withdraw").status_code == 303
        assert b"teapot" not in everything(database), "not in free pages, not in the log"
        assert body["key"].encode() not in everything(database)
        assert "Your answers are deleted" in person.get("/study").text
    (marker,) = read_records(database, sha256=study.sha256).participants
    assert (marker.state, marker.quiz_passed, marker.quiz_attempts) == ("withdrawn", False, 0)


def test_comments_are_exported_as_events(client: TestClient, study: Frozen, database: str) -> None:
    person = Visitor(client).ready().finish()
    person.submit("/study/comment", comment='=cmd("x")\nsecond line')
    person.submit("/study/comment", comment="too late")
    (event,) = [e for e in read_records(database, sha256=study.sha256).events if e.kind == "comment"]
    assert json.loads(event.detail) == {"text": '=cmd("x")\nsecond line'}
    assert event.detail.startswith("{"), "a spreadsheet takes it for no formula"


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_no_other_user_reads_the_database(client: TestClient, database: str) -> None:
    Visitor(client).arrive()
    file = Path(database.removeprefix("sqlite:///"))
    modes = {part.name: stat.S_IMODE(part.stat().st_mode) for part in file.parent.glob("study.db*")}
    assert len(modes) >= 2 and set(modes.values()) == {0o600}, modes


def test_images_that_would_tell_the_condition_by_their_size_are_refused() -> None:
    items = list(pool(4).items)
    _same_sizes(items)
    large = [dc.replace(i, found=dc.replace(i.found, width=9)) if i.cell == "robust" else i for i in items]
    with pytest.raises(DataError, match="give the condition away"):
        _same_sizes(large)


def test_catch_failures_are_counted_as_the_analysis_counts_them(tmp_path: Path) -> None:
    """Both afc catch trials right, where one is enough, make up for no wrong one among the match trials."""
    both = {"catches_right": "1", "match": "2", "match_catches": "1\nmatch_catches_right = 1", "afc": "5"}
    frozen = frozen_study(tmp_path / "both", **both)
    with client_of(frozen.path, f"sqlite:///{tmp_path / 'both.db'}") as client:
        site, person = site_of(client), Visitor(client).ready()
        screens = site.projector.known(person.cookies["participant"].partition(".")[0])
        assert screens is not None
        following = person.next()
        while trial := following["trial"]:
            planned = screens.trials[trial["ordinal"]]
            chosen = right_choice(planned)
            if planned.catch and planned.kind == "match":
                chosen = chosen[1:] + chosen[0]
            following = person.answer(trial, chosen=chosen).json()["next"]
        counts = site.database.read_now(lambda c: overview(c, frozen.study))
    assert (counts.catches, counts.passed, counts.failing) == (3, 2, 1)
    assert counts.recent[0].failing
