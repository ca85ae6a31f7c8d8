"""The pages of a participant, from the landing page to the debrief. Forms in, pages out; the trials are `participant_api`."""

import re
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from pellucid.server import people
from pellucid.server.enrolment import enrol
from pellucid.server.people import Person, find, steps_of
from pellucid.server.refusals import Refused
from pellucid.server.rendering import render
from pellucid.server.site import Site

FormField = Annotated[str, Form(alias="form", max_length=64)]
Ticked = Annotated[str, Form(max_length=8)]
BROWSERS = ("Firefox", "Edg", "OPR", "SamsungBrowser", "Chrome", "Version")
"""What browsers call themselves, the more special ones first; Safari says "Version"."""
CALLED = {"Edg": "Edge", "OPR": "Opera", "SamsungBrowser": "Samsung", "Version": "Safari"}
POINTERS = ("mouse", "touch", "unknown")


def router(site: Site) -> APIRouter:
    """The routes of people who take part."""
    routes = APIRouter(tags=["pages"], default_response_class=HTMLResponse)
    _add_arrival(routes, site)
    _add_consent(routes, site)
    _add_preparation(routes, site)
    _add_words(routes, site)
    _add_leaving(routes, site)
    return routes


def _add_arrival(routes: APIRouter, site: Site) -> None:
    study = site.frozen.study

    @routes.get("/", summary="The landing page; recruitment parameters are hashed at once.")
    async def landing(request: Request) -> HTMLResponse:
        person = study.recruitment.person if study.recruitment.parameters else ""
        value = request.query_params.get(person, "")[:256] if person else ""
        visit = site.keys.visit(site.keys.external(f"{person}={value}" if value else ""))
        known = site.keys.participant(request.cookies.get(site.person_cookie, ""))
        page = {
            "title": study.title,
            "study": study,
            "visit": visit,
            "known": known is not None and not value,
        }
        return HTMLResponse(render("landing.html", page))

    @routes.post("/start", summary="Become a participant.")
    async def start(visit: Annotated[str, Form(max_length=400)]) -> Response:
        site.starts.check("everybody")
        external = site.keys.visited(visit)
        if external is None:
            raise Refused(
                403, "forged", "This page is too old or not from this site. Please open the study again."
            )
        job = partial(people.begin, study=study, external=external, test=False, quota=site.frozen.quota)
        participant = await site.database.write(job)
        return _to_study(site, participant)

    @routes.get("/resume/{token}", summary="Go on, on this device, by the personal link.")
    async def resume(token: Annotated[str, Path(max_length=200)]) -> Response:
        participant = site.keys.participant(token)
        if participant is None:
            raise Refused(403, "forged", "This link is not complete. Please copy all of your personal link.")
        await site.database.read(partial(find, participant=participant))
        return _to_study(site, participant)


def _to_study(site: Site, participant: str) -> Response:
    reply = RedirectResponse("/study", 303)
    site.remember(reply, participant)
    return reply


def _add_consent(routes: APIRouter, site: Site) -> None:
    study = site.frozen.study

    @routes.get("/study", summary="Where the participant stands.")
    async def step(request: Request) -> HTMLResponse:
        participant = site.participant(request)
        person = await site.database.read(partial(find, participant=participant))
        return HTMLResponse(page_of(site, person))

    @routes.post("/study/consent")
    async def consent(request: Request, form: FormField, agree: Ticked = "", age: Ticked = "") -> Response:
        participant = site.participant_writing(request, form)
        if not (agree and (age or not study.sample.minimum_age)):
            return await _again(site, participant, "Please tick every box if you want to take part.")
        await enrol(site.database, site.frozen, participant, turn=site.turn)
        return RedirectResponse("/study", 303)


def _add_preparation(routes: APIRouter, site: Site) -> None:
    study = site.frozen.study

    @routes.post("/study/device")
    async def device(
        request: Request, form: FormField, pointer: Annotated[str, Form(max_length=16)] = "unknown"
    ) -> Response:
        participant = site.participant_writing(request, form)
        kind = pointer if pointer in POINTERS else "unknown"
        named = f"{browser_family(request.headers.get('user-agent', ''))}, {kind}"
        await site.database.write(
            partial(people.advance, participant=participant, study=study, step="device", device=named)
        )
        return RedirectResponse("/study", 303)

    @routes.post("/study/instructions")
    async def instructions(request: Request, form: FormField) -> Response:
        participant = site.participant_writing(request, form)
        await site.database.write(
            partial(people.advance, participant=participant, study=study, step="instructions")
        )
        return RedirectResponse("/study", 303)


def _add_words(routes: APIRouter, site: Site) -> None:
    study = site.frozen.study

    @routes.post("/study/quiz")
    async def quiz(request: Request, form: FormField) -> Response:
        participant = site.participant_writing(request, form)
        sent = await request.form()
        given = tuple(_number(sent.get(f"q{n}")) for n in range(len(study.quiz)))
        if 0 in given:
            return await _again(site, participant, "Please answer every question.")
        right = await site.database.write(
            partial(people.answer_quiz, participant=participant, study=study, given=given)
        )
        if not right:
            wrong = "Not every answer was right. Please read again and correct them."
            return await _again(site, participant, wrong)
        return RedirectResponse("/study", 303)

    @routes.post("/study/comment")
    async def comment(
        request: Request, form: FormField, comment: Annotated[str, Form(max_length=4000)] = ""
    ) -> Response:
        participant = site.participant_writing(request, form)
        text = comment.replace("\0", "").strip()
        await site.database.write(partial(people.comment, participant=participant, study=study, text=text))
        return RedirectResponse("/study", 303)


async def _again(site: Site, participant: str, problem: str) -> HTMLResponse:
    """The same page once more, with what is missing said at its top."""
    person = await site.database.read(partial(find, participant=participant))
    return HTMLResponse(page_of(site, person, problem=problem), 422)


def _add_leaving(routes: APIRouter, site: Site) -> None:
    @routes.post("/study/decline", summary="No consent.")
    async def decline(request: Request, form: FormField) -> Response:
        participant = site.participant_writing(request, form)
        await site.database.write(partial(people.decline, participant=participant))
        return RedirectResponse("/study", 303)

    @routes.get("/study/withdraw", summary="Asks once more.")
    async def ask(request: Request) -> HTMLResponse:
        participant = site.participant(request)
        person = await site.database.read(partial(find, participant=participant))
        return HTMLResponse(render("withdraw.html", common(site, person, "Withdraw")))

    @routes.post("/study/withdraw", summary="Delete the answers.")
    async def withdraw(request: Request, form: FormField) -> Response:
        participant = site.participant_writing(request, form)
        await site.database.write(partial(people.withdraw, participant=participant))
        site.projector.forget(participant)
        await site.database.forget_deleted()
        return RedirectResponse("/study", 303)


TITLES = {
    "consent": "Information and consent",
    "device": "Your screen",
    "instructions": "What you do",
    "quiz": "Is it clear?",
    "practice": "Practice",
    "trials": "The pictures",
    "comment": "Anything to add?",
    "debrief": "Thank you",
}
ENDED = {
    "withdrawn": "You have withdrawn",
    "screened_out": "The study ends here for you",
}


def page_of(site: Site, person: Person, *, problem: str = "") -> str:
    """The page of the step that a participant has come to."""
    if person.state in ENDED:
        page = common(site, person, ENDED[person.state])
        return render("ended.html", page)
    page = common(site, person, TITLES[person.step]) | {"problem": problem}
    template = "trial.html" if person.step in ("practice", "trials") else f"{person.step}.html"
    return render(template, page)


def common(site: Site, person: Person, title: str) -> dict[str, Any]:
    """What every page of a participant shows."""
    study = site.frozen.study
    steps = steps_of(study)
    return {
        "title": title, "study": study, "person": person, "form": site.keys.form(person.id),
        "link": f"{site.public_url}/resume/{site.keys.link(person.id)}",
        "number": steps.index(person.step) + 1, "steps": len(steps),
        "widest": max(s.width for item in site.frozen.items for s in item.stimuli),
    }  # fmt: skip


def browser_family(agent: str) -> str:
    """Family and major version alone, such as "Firefox 140": what else a browser says would tell people apart."""
    for name in BROWSERS:
        found = re.search(rf"{name}/(\d{{1,4}})", agent)
        if found:
            return f"{CALLED.get(name, name)} {found[1]}"
    return "unknown browser"


def _number(value: object) -> int:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[1-6]", value) else 0
