"""Requests made from the API's own schema, right and wrong ones, by everybody who might send them: participants, experimenters, strangers.

Never an error of the server, always what the schema says; nothing malformed is taken, and a stranger gets nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from held import TOKEN, Visitor, site_of
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis.errors import Unsatisfiable
from pydantic import ValidationError
from sqlalchemy import select

from pellucid.server import tables
from pellucid.server.participant_api import Practised, Sent

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

QUIET = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
PUBLIC = ("/", "/api/health", "/experimenter/login")
"""What anybody may read."""
MODELS = {"/api/answers": Sent, "/api/practice": Practised}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def operations(client: TestClient) -> Iterator[Any]:
    """Every operation of the application."""
    app: Any = client.app
    schema = schemathesis.openapi.from_dict({**app.openapi(), "openapi": "3.1.0"})
    return (found.ok() for found in schema.get_all_operations())


def check_reply(operation: Any, reply: httpx.Response, sent: dict[str, Any]) -> None:
    """What holds for every reply, whoever asks."""
    what = (reply.request.method, operation.path, reply.status_code, reply.text[:200])
    assert reply.status_code < 500, what
    assert "script-src 'self'" in reply.headers["content-security-policy"], what
    if not operation.path.startswith("/api/"):
        return
    operation.validate_response(reply)
    documented = operation.definition.raw["responses"]
    if reply.status_code >= 400:
        assert set(reply.json()) == {"error", "message"}, what
    if reply.status_code != 405:  # the schema says nothing of other methods
        assert str(reply.status_code) in documented, what
    model = MODELS.get(operation.path)
    if reply.status_code == 200 and reply.request.method == "POST" and model is not None:
        try:
            model.model_validate_json(reply.request.content)
        except ValidationError as error:
            raise AssertionError(f"taken, and should not have been: {sent}") from error


Check = Callable[[Any, httpx.Response], None]


def ask_all(client: TestClient, comes: Callable[[], Visitor], *, below: str, also: Check) -> int:
    """Send right and wrong requests to every operation below a path; how many were sent. `also` checks a reply further."""
    return sum(
        ask(comes(), operation, mode, also)
        for operation in operations(client)
        if operation.path.startswith(below)
        for mode in schemathesis.GenerationMode
    )


def ask(who: Visitor, operation: Any, mode: Any, also: Check) -> int:
    """Send what the schema allows, or what it does not; how many requests that were."""
    count = 0

    @QUIET
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        nonlocal count
        asked = case.as_transport_kwargs(base_url="http://testserver")
        sent = {
            k: v for k, v in asked.items() if k in ("json", "data", "content", "params") and v is not None
        }
        if mode == "positive" and isinstance(sent.get("data"), dict) and "form" in sent["data"]:
            sent["data"]["form"] = who.form  # nobody guesses it: past this check there is more to try
        body = sent.get("json")
        if (
            mode == "positive" and isinstance(body, dict) and "answered_at" in body
        ):  # a rule that no schema can say
            body["answered_at"] = max(body["shown_at"], body["answered_at"])
        given_headers = {k.lower(): v for k, v in dict(asked.get("headers") or {}).items()}
        headers = {k: v for k, v in given_headers.items() if k == "content-type"} | {"x-form": who.form}
        try:
            reply = who._ask(case.method, case.formatted_path, headers=headers, **sent)
        except (httpx.InvalidURL, UnicodeEncodeError):  # the client itself cannot send it
            reject()
        count += 1
        check_reply(operation, reply, sent)
        also(operation, reply)

    with suppress(Unsatisfiable):  # where nothing is asked for, nothing can be wrong
        check()
    return count


@pytest.fixture
def held(client: TestClient) -> TestClient:
    """The application without rate limits."""
    site = site_of(client)
    for limit in (site.answers, site.starts, site.images):
        limit.rate = limit.burst = 1e9
    return client


@pytest.mark.parametrize("below", ["/api/", "/study", "/stimuli", "/resume"])
def test_participants(held: TestClient, below: str) -> None:
    def comes() -> Visitor:
        person = Visitor(held).ready()
        person.next()
        return person

    assert ask_all(held, comes, below=below, also=lambda *_: None) > 8
    table = tables.response
    order = select(table.c.assignment, table.c.ordinal).order_by(table.c.assignment, table.c.id)
    by_person: dict[int, list[int]] = {}
    for assignment, ordinal in site_of(held).database.read_now(lambda c: c.execute(order).all()):
        by_person.setdefault(assignment, []).append(ordinal)
    for ordinals in by_person.values():
        assert ordinals == list(range(len(ordinals))), "what was let through came in order, each once"


def test_experimenters(held: TestClient) -> None:
    desk = Visitor(held)
    desk.post("/experimenter/login", data={"token": TOKEN})
    desk.get("/experimenter")
    form = desk.form

    def comes() -> Visitor:
        desk.form = form
        return desk

    assert ask_all(held, comes, below="/experimenter", also=lambda *_: None) > 20
    done = set(site_of(held).database.read_now(lambda c: list(c.scalars(select(tables.audit.c.action)))))
    assert {"login", "paused", "continued"} <= done, "right requests got through to what they ask for"


def test_strangers_get_nothing(held: TestClient) -> None:
    person = Visitor(held).ready()
    secret = person.cookies["participant"]

    def nothing(operation: Any, reply: httpx.Response) -> None:
        where = (operation.path, reply.status_code)
        assert reply.status_code >= 300 or operation.path in PUBLIC, where
        if 300 <= reply.status_code < 400:
            assert reply.headers["location"] == "/experimenter/login", where
        assert "set-cookie" not in reply.headers, where
        assert secret not in reply.text and "By condition" not in reply.text

    strangers = iter([{}, {"participant": secret[:-1] + "0", "experimenter": "eyJ4.forged.x"}] * 500)
    assert ask_all(held, lambda: Visitor(held, next(strangers)), below="/", also=nothing) > 80
    people = select(tables.participant.c.id)
    assert len(site_of(held).database.read_now(lambda c: list(c.scalars(people)))) == 1, "nobody came in"
