"""A simulated participant: takes part in a study over HTTP as a browser does, sees the pictures, keeps a log.

How it answers is an `Observer` of `pellucid.study.observers`, the same as in simulations without a server. Those are told of
a trial what is known of it; here the trial is what its pictures look like: a browser knows no more.
"""

import asyncio
import dataclasses as dc
import io
import itertools
import json
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from jaxtyping import Float

from pellucid.study.observers import Given, Observer, absent, attentive, random_clicker, side_biased
from pellucid.study.schedule import SIDES, Trial

Pixels = Float[np.ndarray, "height width 3"]

VISIT = re.compile(r'name="visit" value="([^"]+)"')
FORM = re.compile(r'(?:name="form" value|data-form)="([0-9a-f]+)"')
PATIENCE = 120.0
"""Seconds for which a request is tried again while the server does not answer."""
AGAIN = (429, 500, 502, 503, 504, 507)


CHARACTERS = ("attentive", "random", "biased", "absent")
LOOKING = ("attentive", "absent")
"""Those who fetch the pictures and compare their pixels; the others do not look."""
TWICE = 0.02
"""How often an answer is sent a second time, as after a lost reply."""
LEAVES = 0.4
"""The share of the trials after which an absent one leaves."""


def observer_of(character: str, *, planned: int) -> Observer:
    """How a character answers `planned` trials: `attentive` chooses what is nearest in its pixels, but for a lapse in fifty."""
    sees = attentive(share=1.0)
    observers = {
        "attentive": sees, "random": random_clicker(), "biased": side_biased(),
        "absent": absent(sees, after=math.ceil(LEAVES * planned)),
    }  # fmt: skip
    return observers[character]


@dc.dataclass(frozen=True)
class Sent:
    """An answer in a participant's own log; `seconds` until it was acknowledged, of the try that succeeded."""

    key: str
    ordinal: int
    chosen: str
    acknowledged: bool
    seconds: float
    tries: int
    at: float


@dc.dataclass
class Log:
    """What one simulated participant did."""

    character: str
    participant: str = ""
    answers: list[Sent] = dc.field(default_factory=list[Sent])
    ended: str = ""
    images: int = 0


def perceived(kind: str, pictures: Mapping[str, Pixels]) -> Trial:
    """The trial that these pictures look like: the target stands where the pixels are nearest. Unseen, it is as it stands."""
    if kind == "match":
        return Trial("match", ("row1", "row2", "row3"), rows=(0, 1, 2), columns=_columns(pictures))
    if not pictures:
        return Trial("afc", ("reference",), target_side=SIDES[0])
    left, right = (_distance(pictures["reference"], pictures[side]) for side in SIDES)
    return Trial("afc", ("reference",), target_side=SIDES[0] if left < right else SIDES[1])


def _columns(pictures: Mapping[str, Pixels]) -> tuple[int, ...]:
    """For each column the row that it goes with, so that the pixels are nearest in all."""
    if not pictures:
        return 0, 1, 2
    rows, columns = ([pictures[f"{part}{n}"] for n in (1, 2, 3)] for part in ("row", "column"))

    def cost(order: Sequence[int]) -> float:
        return sum(_distance(rows[row], column) for row, column in zip(order, columns, strict=True))

    return min(itertools.permutations(range(3)), key=cost)


def _distance(first: Pixels, second: Pixels) -> float:
    return float(np.sqrt(((first - second) ** 2).mean()))


@dc.dataclass
class Tries:
    """How a request went: tries, seconds of the last one, and when it ended (of the monotonic clock)."""

    count: int = 0
    seconds: float = 0.0
    at: float = 0.0


class Visitor:
    """One participation. `client` is its browser: it keeps the cookies."""

    def __init__(self, client: httpx.AsyncClient, character: str, rng: np.random.Generator) -> None:
        self._client, self._rng = client, rng
        self._form = ""
        self.log = Log(character)

    async def take_part(self, query: str, *, think: float, quiz: tuple[int, ...], images: bool) -> Log:
        """From the landing page to the debrief; `think` is the mean of an exponential time before each answer, in seconds."""
        page = await self._ask("GET", f"/{query}")
        visit = VISIT.search(page.text)
        began = await self._ask("POST", "/start", data={"visit": visit[1] if visit else ""})
        if began.status_code != 303:
            self.log.ended = "not let in"
            return self.log
        self.log.participant = next(iter(self._client.cookies.values())).partition(".")[0]
        await self._step("consent", agree="yes", age="yes")
        await self._step("device", pointer="mouse")
        await self._step("instructions")
        if quiz:
            await self._step("quiz", **{f"q{n}": str(right) for n, right in enumerate(quiz)})
        if not self.log.ended:
            await self._practise()
            await self._trials(think=think, images=images)
        if not self.log.ended:
            await self._step("comment", comment="simulated")
            self.log.ended = "finished"
        return self.log

    async def _step(self, name: str, **fields: str) -> None:
        await self._ask("GET", "/study")
        reply = await self._ask("POST", f"/study/{name}", data={"form": self._form, **fields})
        if reply.status_code == 303 or self.log.ended:
            return
        # The last place may be given to somebody else between the first page and consent.
        full = name == "consent" and reply.status_code in (403, 503)
        self.log.ended = "not let in" if full else f"refused at {name}: {reply.status_code}"

    async def _practise(self) -> None:
        await self._ask("GET", "/study")
        following = (await self._ask("GET", "/api/practice")).json()
        while following["trial"]:
            body = {"ordinal": following["trial"]["ordinal"], "chosen": "left"}
            if following["trial"]["kind"] == "match":
                body["chosen"] = "123"
            following = (await self._ask("POST", "/api/practice", json=body)).json()["next"]

    async def _trials(self, *, think: float, images: bool) -> None:
        following = (await self._ask("GET", "/api/next")).json()
        observer = observer_of(self.log.character, planned=following["planned"])
        while trial := following["trial"]:
            if observer.leaves_after is not None and following["done"] >= observer.leaves_after:
                self.log.ended = "left"
                return
            # The answer is due after the time to think; pictures are fetched meanwhile, as a browser does ahead.
            due = asyncio.sleep(float(self._rng.exponential(think)) if think else 0)
            pictures, _ = await asyncio.gather(self._see(trial, images=images), due)
            given = observer.answer(perceived(trial["kind"], pictures), (), self._rng)
            following = await self._answer(trial["ordinal"], given)
        if following["why"] != "over":
            self.log.ended = following["why"]

    async def _see(self, trial: dict[str, Any], *, images: bool) -> dict[str, Pixels]:
        if not images:
            return {}
        urls = {slot: image["url"] for slot, image in trial["images"].items()}
        replies = await asyncio.gather(*(self._ask("GET", url) for url in urls.values()))
        self.log.images += len(replies)
        if self.log.character not in LOOKING:
            return {}
        return {slot: _pixels(reply.content) for slot, reply in zip(urls, replies, strict=True)}

    async def _answer(self, ordinal: int, given: Given) -> dict[str, Any]:
        shown = 1000.0 + 10_000.0 * ordinal
        key = str(uuid.UUID(bytes=self._rng.bytes(16), version=4))
        body = {
            "key": key, "ordinal": ordinal, "chosen": given.chosen, "shown_at": shown, "answered_at": shown + given.rt_ms,
            "viewport": "1280x800", "pixel_ratio": 1.0, "scale": 6, "flags": [], "focus_losses": 0, "hidden_ms": 0.0,
        }  # fmt: skip
        tries = Tries()
        reply = await self._ask("POST", "/api/answers", json=body, tries=tries)
        known = reply.status_code == 200
        self.log.answers.append(Sent(key, ordinal, given.chosen, known, tries.seconds, tries.count, tries.at))
        if not known:
            self.log.ended = f"refused: {reply.json()['error']}"
            return {"trial": None, "why": "over"}
        if self._rng.random() < TWICE:
            reply = await self._ask("POST", "/api/answers", json=body)
        return reply.json()["next"]

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        data: dict[str, str] | None = None,
        json: dict[str, Any] | None = None,
        tries: Tries | None = None,
    ) -> httpx.Response:
        headers = {"x-form": self._form}
        reply = await persistently(
            lambda: self._client.request(method, url, data=data, json=json, headers=headers), tries or Tries()
        )
        if reply.headers.get("content-type", "").startswith("text/html") and (
            found := FORM.search(reply.text)
        ):
            self._form = found[1]
        return reply


async def persistently(request: Callable[[], Awaitable[httpx.Response]], tries: Tries) -> httpx.Response:
    """Ask until the server says yes or no, as the study's own script does."""
    pause, given_up = 0.2, time.monotonic() + PATIENCE
    while True:
        tries.count += 1
        began = time.monotonic()
        reply = None
        try:
            reply = await request()
        except httpx.TransportError:
            if began > given_up:
                raise
        tries.at = time.monotonic()
        tries.seconds = tries.at - began
        if reply is not None and (reply.status_code not in AGAIN or began > given_up):
            return reply
        await asyncio.sleep(pause)
        pause = min(2 * pause, 5.0)


def _pixels(data: bytes) -> Pixels:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), dtype=float) / 255


def to_plain(log: Log) -> str:
    """A log as a line of JSON."""
    return json.dumps(dc.asdict(log), sort_keys=True)
