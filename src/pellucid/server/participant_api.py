"""What the scripts of the participant's pages ask: the next trial, an answer, an image. JSON in, JSON out."""

import hashlib
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Header, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pellucid.server.answers import Given, practise, show, take
from pellucid.server.people import Person, find
from pellucid.server.refusals import Refused
from pellucid.server.screens import Screen, Screens
from pellucid.server.site import Site, stimulus_bytes

FormHeader = Annotated[str, Header(alias="x-form", max_length=64)]
Milliseconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
AHEAD = 2
"""Images of so many trials after the shown one are fetched early."""


class Sent(BaseModel):
    """An answer. Nothing else is taken; times are milliseconds of the browser's monotonic clock."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str = Field(
        pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", description="a UUID for this answer"
    )
    ordinal: int = Field(ge=0, le=10_000)
    chosen: str = Field(pattern=r"^(left|right|[123]{3})$")
    shown_at: Milliseconds
    answered_at: Milliseconds
    viewport: str = Field(pattern=r"^[0-9]{1,5}x[0-9]{1,5}$")
    pixel_ratio: float = Field(gt=0, le=32, allow_inf_nan=False)
    scale: int = Field(ge=1, le=1024)
    flags: list[Literal["resized", "image_failed"]] = Field(default=[], max_length=2)
    focus_losses: int = Field(default=0, ge=0, le=100_000)
    hidden_ms: Milliseconds = 0.0

    @model_validator(mode="after")
    def _later(self) -> "Sent":
        if self.answered_at < self.shown_at:
            raise ValueError("an answer comes after the display")
        return self

    def given(self) -> Given:
        """The same for the database's job."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        return Given(
            self.ordinal, self.key, digest, self.chosen, self.shown_at, self.answered_at, self.viewport,
            self.pixel_ratio, self.scale, tuple(self.flags), self.focus_losses, self.hidden_ms,
        )  # fmt: skip


class Practised(BaseModel):
    """An answer to a practice trial."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ordinal: int = Field(ge=0, le=10_000)
    chosen: str = Field(pattern=r"^(left|right|[123]{3})$")


class Next(BaseModel):
    """What to show now. Without a trial: "paused" (come back later) or "over" (the page has something else to show).

    `preload` are images of the trials that follow, sorted by their names, which say nothing.
    """

    trial: Screen | None
    why: Literal["", "paused", "over"]
    done: int
    planned: int
    preload: list[str]


class Stored(BaseModel):
    """An answer is on the disk; `repeated` if it was there before."""

    stored: int
    repeated: bool
    next: Next


class Feedback(BaseModel):
    """Whether a practice answer was right."""

    right: bool
    next: Next


class Problem(BaseModel):
    """Why something was not done."""

    error: str
    message: str


PROBLEMS = {status: {"model": Problem} for status in (400, 401, 403, 409, 413, 415, 422, 429, 503, 507)}


def router(site: Site) -> APIRouter:
    """The routes below /api, and the images."""
    routes = APIRouter(tags=["participant"], responses={**PROBLEMS})
    _add_trials(routes, site)
    _add_practice(routes, site)
    _add_images(routes, site)

    @routes.get("/api/health", summary="The empty endpoint.")
    async def health() -> dict[str, bool]:
        return {"ok": True}

    return routes


def _add_trials(routes: APIRouter, site: Site) -> None:
    @routes.get("/api/next", response_model=Next, summary="The next trial; counts as showing it.")
    async def following(request: Request) -> Response:
        participant = site.participant(request)
        site.answers.check(participant)
        screens = await site.screens(participant)
        person = await site.database.write(partial(show, participant=participant))
        return _said(next_of(person, screens))

    @routes.post("/api/answers", response_model=Stored, summary="Keep an answer, then give the next trial.")
    async def answer(request: Request, sent: Annotated[Sent, Body()], form: FormHeader = "") -> Response:
        participant = site.participant_writing(request, form)
        screens = await site.screens(participant)
        job = partial(
            take, participant=participant, screens=screens, study=site.frozen.study, given=sent.given()
        )
        person, repeated = await site.database.write(job)
        if repeated and person.shown != person.answered:  # the study was paused when the first one came
            person = await site.database.write(partial(show, participant=participant))
        return _said(Stored(stored=sent.ordinal, repeated=repeated, next=next_of(person, screens)))


def _add_practice(routes: APIRouter, site: Site) -> None:
    @routes.get("/api/practice", summary="The next practice trial.")
    async def practice(request: Request) -> Next:
        participant = site.participant(request)
        site.answers.check(participant)
        screens = await site.screens(participant)
        person = await site.database.read(partial(find, participant=participant))
        return practice_of(person, screens)

    @routes.post("/api/practice", summary="Answer a practice trial, and hear about it.")
    async def practised(
        request: Request, sent: Annotated[Practised, Body()], form: FormHeader = ""
    ) -> Feedback:
        participant = site.participant_writing(request, form)
        screens = await site.screens(participant)
        job = partial(
            practise, participant=participant, screens=screens, study=site.frozen.study, ordinal=sent.ordinal,
            chosen=sent.chosen,
        )  # fmt: skip
        person, right = await site.database.write(job)
        return Feedback(right=right, next=practice_of(person, screens))


def _add_images(routes: APIRouter, site: Site) -> None:
    @routes.get("/stimuli/{name}", response_class=Response, responses={404: {"model": Problem}})
    async def stimulus(
        request: Request, name: Annotated[str, Path(pattern=r"^[0-9A-Za-z_-]{24}$")]
    ) -> Response:
        participant = site.participant(request)
        site.images.check(participant)
        screens = await site.screens(participant)
        if name not in screens.files:
            raise Refused(404, "no_image", "There is no such image.")
        data = stimulus_bytes(screens.files[name])
        # No validator such as an ETag: equal images must not be told by their headers.
        headers = {"cache-control": "private, max-age=86400, immutable"}
        return Response(data, media_type="image/png", headers=headers)


def _said(reply: BaseModel) -> Response:
    """A reply that was made by its own model needs no second check by FastAPI."""
    return Response(reply.model_dump_json(), media_type="application/json")


def next_of(person: Person, screens: Screens) -> Next:
    """What the browser shows now, from where the participant stands."""
    done, planned = person.answered, len(screens.main)
    if person.step != "trials" or person.state not in ("running", "paused"):
        return Next(trial=None, why="over", done=done, planned=planned, preload=[])
    if person.state == "paused":
        return Next(trial=None, why="paused", done=done, planned=planned, preload=[])
    return Next(
        trial=screens.main[done], why="", done=done, planned=planned, preload=_ahead(screens.main, done)
    )


def practice_of(person: Person, screens: Screens) -> Next:
    """The same among the practice trials."""
    done, planned = person.practised, len(screens.practised)
    if person.step != "practice" or done >= planned:
        return Next(trial=None, why="over", done=done, planned=planned, preload=[])
    return Next(
        trial=screens.practised[done],
        why="",
        done=done,
        planned=planned,
        preload=_ahead(screens.practised, done),
    )


def _ahead(screens: tuple[Screen, ...], done: int) -> list[str]:
    coming = screens[done + 1 : done + 1 + AHEAD]
    return sorted(image.url for screen in coming for image in screen.images.values())
