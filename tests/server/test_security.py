"""What is refused: forged, replayed, out of order, oversized, from another site; and what nobody gets to see."""

import json
import logging
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from held import TOKEN, Visitor, answer_to, client_of, frozen_study, site_of
from sqlalchemy import event, func, select

from pellucid._checks import ConfigError
from pellucid.server import read_records, tables
from pellucid.server.limits import Limit
from pellucid.server.screens import stimuli_of
from pellucid.study.frozen import Frozen

PRIVATE = ("", "/pause", "/continue", "/preview", "/logout")


def log_in(client: TestClient) -> Visitor:
    desk = Visitor(client)
    assert desk.post("/experimenter/login", data={"token": TOKEN}).status_code == 303
    desk.get("/experimenter")
    return desk


def test_T17_replies_say_neither_condition_nor_answer(client: TestClient, study: Frozen) -> None:
    person = Visitor(client).ready()
    (screens,) = (site_of(client).projector.known(p) for p in ids(client))
    assert screens is not None
    items = {i.id: i for i in (*study.items, *study.practice)}
    secret = (
        {s.sha256 for i in items.values() for s in i.stimuli}
        | set(items)
        | {"plain", "robust", "catch", "target"}
    )
    seen: set[str] = set()
    following = person.next()
    for trial in screens.trials:
        reply = json.dumps(following)
        assert not [word for word in secret if word in reply]
        assert set(following["trial"]) == {"ordinal", "kind", "rest", "images"}
        sizes = {(image["width"], image["height"]) for image in following["trial"]["images"].values()}
        assert len(sizes) == 1
        for slot, stimulus in stimuli_of(trial, items).items():
            url = following["trial"]["images"][slot]["url"]
            assert url not in seen, "an image has a name of its own on every screen and place"
            seen.add(url)
            picture = person.get(url)
            assert picture.content == study.image(stimulus.sha256).read_bytes()
            assert not {"etag", "last-modified", "content-disposition"} & set(picture.headers)
        following = person.answer(following["trial"]).json()["next"]
    page = person.get("/study").text
    assert not [word for word in secret - {"target"} if word in page]


def ids(client: TestClient) -> list[str]:
    return site_of(client).database.read_now(lambda c: list(c.scalars(select(tables.participant.c.id))))


@pytest.mark.parametrize(
    "name",
    [
        "../study.json",
        "..%2f..%2fstudy.json",
        "%2e%2e/study.db",
        "a" * 24,
        "/etc/passwd",
        "x",
        "stimuli\0.png",
        "😀" * 8,
    ],
)
def test_no_path_leads_out_of_the_stimuli(client: TestClient, study: Frozen, name: str) -> None:
    person = Visitor(client).ready()
    for address in (f"/stimuli/{name}", f"/static/{name}"):
        try:
            reply = person.get(address)
        except Exception as error:  # the client itself refuses to send some of them
            assert type(error).__name__ == "InvalidURL"
            continue
        assert reply.status_code in (400, 404, 405, 422) and "held" not in reply.text[:60]
    known = next(iter(study.images))
    assert person.get(f"/stimuli/{known}").status_code in (404, 422)
    assert person.get(f"/stimuli/{known}.png").status_code in (404, 422)


def test_images_are_for_their_participant_alone(client: TestClient) -> None:
    person, other = Visitor(client).ready(), Visitor(client).ready()
    url = person.next()["trial"]["images"]["left"]["url"]
    assert other.get(url).status_code == 404 and Visitor(client).get(url).status_code == 401


def test_large_bodies_are_refused(client: TestClient) -> None:
    person = Visitor(client).ready()
    body = answer_to(person.next()["trial"])
    headers = {"x-form": person.form, "content-type": "application/json"}
    large = json.dumps(body | {"viewport": "1" * 20_000}).encode()
    assert person.post("/api/answers", content=large, headers=headers).status_code == 413

    def endless() -> Any:
        for _ in range(20):
            yield b" " * 4096

    assert person.post("/api/answers", content=endless(), headers=headers).status_code == 413
    assert (
        person.post("/study/comment", data={"form": person.form, "comment": "x" * 15_000}).status_code == 422
    )


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1}, {"ordinal": "0"}, {"ordinal": -1}, {"ordinal": True}, {"chosen": "up"}, {"chosen": "left\n"}, {"key": "x"},
        {"shown_at": -1.0}, {"answered_at": 1.0}, {"answered_at": 1e300}, {"viewport": "<b>x1"}, {"pixel_ratio": 0},
        {"scale": 0}, {"flags": ["resumed"]}, {"flags": ["resized"] * 9}, {"focus_losses": -1}, {"hidden_ms": None},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_answers_are_refused(client: TestClient, change: dict[str, Any]) -> None:
    person = Visitor(client).ready()
    reply = person.send(answer_to(person.next()["trial"]) | change)
    assert reply.status_code == 422 and set(reply.json()) == {"error", "message"}


def test_broken_json_and_nan_are_refused(client: TestClient) -> None:
    person = Visitor(client).ready()
    body = answer_to(person.next()["trial"])
    headers = {"x-form": person.form, "content-type": "application/json"}
    nan = json.dumps(body | {"shown_at": float("nan")})
    for content in ("{", "[]", "null", nan, b"\xff\xfe"):
        assert person.post("/api/answers", content=content, headers=headers).status_code in (400, 422)


def test_other_sites_and_hosts_are_refused(client: TestClient) -> None:
    person = Visitor(client).ready()
    body = answer_to(person.next()["trial"])
    for header in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        reply = person.post("/api/answers", json=body, headers={"x-form": person.form, **header})
        assert reply.status_code == 403
    assert person.get("/study", headers={"host": "evil.example"}).status_code == 400
    same = {"x-form": person.form, "origin": "http://testserver", "sec-fetch-site": "same-origin"}
    assert person.post("/api/answers", json=body, headers=same).status_code == 200


def test_an_unauthenticated_visitor_reaches_no_result(client: TestClient) -> None:
    person = Visitor(client).ready().finish()
    strangers = (Visitor(client), person, Visitor(client, {"experimenter": "eyJ4.forged.x"}))
    for somebody in strangers:
        for part in PRIVATE:
            for ask in (somebody.get, somebody.post):
                reply = ask(f"/experimenter{part}")
                assert reply.status_code in (303, 401, 405, 422), part
                assert "By condition" not in reply.text
    for path in (
        "/openapi.json",
        "/docs",
        "/redoc",
        "/export",
        "/study.db",
        "/static/../study.db",
        "/results",
    ):
        assert Visitor(client).get(path).status_code == 404
    assert "By condition" in log_in(client).get("/experimenter").text


def test_wrong_tokens_are_slowed_down_and_never_lock_the_owner_out(client: TestClient) -> None:
    desk = Visitor(client)
    codes = [desk.post("/experimenter/login", data={"token": f"guess {n}"}).status_code for n in range(14)]
    assert codes[0] == 403 and codes[-1] == 429
    assert log_in(client).get("/experimenter").status_code == 200


def test_the_experimenters_forms_need_their_key(client: TestClient) -> None:
    desk = log_in(client)
    assert desk.post("/experimenter/pause", data={"form": "0" * 32}).status_code == 403
    assert desk.submit("/experimenter/pause").status_code == 303
    assert "nobody is let in" in desk.get("/experimenter").text
    assert desk.submit("/experimenter/continue").status_code == 303
    assert desk.submit("/experimenter/logout").status_code == 303


def test_a_new_token_ends_every_session(study: Frozen, database: str) -> None:
    with client_of(study.path, database) as client:
        desk = log_in(client)
        held = site_of(client).database.read_now(lambda c: c.execute(select(tables.study)).one())
        assert TOKEN not in str(held)
    with client_of(study.path, database, token="another-token") as client:
        desk.client = client
        assert desk.get("/experimenter").status_code == 303
        assert desk.post("/experimenter/login", data={"token": TOKEN}).status_code == 403


def test_cookies_and_headers(study: Frozen, database: str, tmp_path: Path) -> None:
    with client_of(study.path, database, public_url="https://study.example.org") as client:
        page = client.get("/")
        visit = re.search(r'name="visit" value="([^"]+)"', page.text)
        assert visit
        cookie = client.post("/start", data={"visit": visit[1]}).headers["set-cookie"]
        assert cookie.startswith("__Host-participant=") and "Secure" in cookie and "HttpOnly" in cookie
        assert "SameSite=lax" in cookie and "Path=/" in cookie and "Domain" not in cookie
        login = client.post("/experimenter/login", data={"token": TOKEN}).headers["set-cookie"]
        assert login.startswith("__Host-experimenter=") and "SameSite=strict" in login and "Secure" in login
        for path in ("/", "/nothing", "/static/study.css", "/api/health", "/experimenter/login"):
            headers = client.get(path).headers
            assert (
                "script-src 'self'" in headers["content-security-policy"]
                and "unsafe" not in headers["content-security-policy"]
            )
            assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
            assert "max-age" in headers["strict-transport-security"] and "cache-control" in headers
    with pytest.raises(ConfigError, match="https://"):
        client_of(study.path, database, public_url="study.example.org")


def test_test_mode_is_in_no_export_and_no_count(client: TestClient, study: Frozen, database: str) -> None:
    desk = log_in(client)
    assert desk.submit("/experimenter/preview").status_code == 303
    tester = Visitor(client, {"participant": desk.cookies["participant"]})
    tester.get("/study")
    tester.consent().prepare().finish()
    assert read_records(database, sha256=study.sha256).participants == ()
    page = log_in(client).get("/experimenter").text
    assert "in test mode" in page and "0 of 30" in page


def test_nothing_that_people_write_reaches_a_page_unescaped(tmp_path: Path) -> None:
    evil = '<script>alert(\\"x\\")</script>'
    texts = dict.fromkeys(
        ("title", "landing", "consent", "instructions", "debrief", "contact", "ethics"), f'"{evil}"'
    )
    texts |= {"question": f'"{evil}"', "answers": f'["{evil}", "b"]', "completion_code": f'"{evil}"'}
    frozen = frozen_study(tmp_path / "evil", **texts)
    with client_of(frozen.path, f"sqlite:///{tmp_path / 'evil.db'}") as client:
        person = Visitor(client)
        pages = [person.get("/").text, person.arrive(f"?PROLIFIC_PID={'<script>'}").get("/study").text]
        person.consent()
        for step, fields in (
            ("device", {"pointer": "<script>"}),
            ("instructions", {}),
            ("quiz", {"q0": "2"}),
        ):
            pages.append(person.get("/study").text)
            person.submit(f"/study/{step}", **fields)
        person.prepare().finish()
        person.submit("/study/comment", comment="<script>alert(1)</script>")
        pages += [person.get("/study").text, log_in(client).get("/experimenter").text]
        for page in pages:
            assert "<script>" not in page
            assert re.findall(r"<script\b(?! type=\"module\" src=\"/static/)", page) == []


def test_no_address_and_no_parameter_is_stored_or_logged(
    client: TestClient, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="pellucid"):
        person = Visitor(client)
        person.arrive("?PROLIFIC_PID=5f3c9d0123456789abcdef01")
        person.get("/nothing/here?PROLIFIC_PID=5f3c9d0123456789abcdef01")
        person.consent()
    content = Path(database.removeprefix("sqlite:///")).read_bytes()
    wal = Path(database.removeprefix("sqlite:///") + "-wal")
    content += wal.read_bytes() if wal.exists() else b""
    for word in ("5f3c9d0123456789abcdef01", "testclient", "127.0.0.1", "python-httpx"):
        assert word.encode() not in content and word not in caplog.text
    assert "refused GET '/nothing/here'" in caplog.text and "(404)" in caplog.text


def test_a_full_disk_says_so_and_loses_nothing(study: Frozen, database: str) -> None:
    with sqlite3.connect(database.removeprefix("sqlite:///")) as small:
        small.execute("PRAGMA page_size = 512")  # so that a few answers need a page more
        small.execute("VACUUM")
    with client_of(study.path, database) as client:
        person = Visitor(client).ready()
        trial = person.next()["trial"]
        engine, full = site_of(client).database.engine, [True]
        event.listen(
            engine, "begin", lambda c: c.exec_driver_sql("PRAGMA max_page_count = 1") if full[0] else None
        )
        kept = 0
        while (reply := person.send(body := answer_to(trial))).status_code == 200:
            kept, trial = kept + 1, reply.json()["next"]["trial"]
        assert reply.status_code == 507 and reply.json()["error"] == "disk_full"
        assert "safe" in reply.json()["message"] and "retry-after" in reply.headers
        full[0] = False
        engine.dispose()
        assert len(read_records(database, sha256=study.sha256).answers) == kept
        assert person.send(body).status_code == 200, "the same answer under the same key, once there is room"
        assert len(read_records(database, sha256=study.sha256).answers) == kept + 1


def test_requests_of_one_participant_are_limited(client: TestClient) -> None:
    person, other = Visitor(client).ready(), Visitor(client).ready()
    site_of(
        client
    ).answers.rate = 0.0  # on a slow machine the bucket would fill faster than it is emptied here
    codes = {person.get("/api/next").status_code for _ in range(80)}
    assert codes == {200, 429}
    assert other.get("/api/next").status_code == 200


def test_a_limit_refills() -> None:
    moment = [0.0]
    limit = Limit(rate=2.0, burst=3.0, clock=lambda: moment[0])
    assert [limit.allows("a") for _ in range(5)] == [True, True, True, False, False]
    assert limit.allows("b")
    moment[0] = 0.5
    assert [limit.allows("a"), limit.allows("a")] == [True, False]
    moment[0] = 100.0
    assert [limit.allows("a") for _ in range(4)] == [True, True, True, False]


def test_what_is_refused_is_counted(client: TestClient) -> None:
    person = Visitor(client).ready()
    person.answer({"ordinal": 3, "kind": "afc"})
    assert site_of(client).refused["out_of_order"] == 1
    assert "out of order" in log_in(client).get("/experimenter").text
    logins = select(func.count()).select_from(tables.audit).where(tables.audit.c.action == "login")
    assert site_of(client).database.read_now(lambda c: c.scalar(logins)) == 1
