"""The application put together: opening, routes, and what happens when something is refused."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from pellucid._checks import ConfigError
from pellucid.server import experimenter, participant_api, participant_pages
from pellucid.server.database import Database
from pellucid.server.guard import Guard, add_headers, for_log
from pellucid.server.limits import Limit
from pellucid.server.opening import open_study
from pellucid.server.refusals import Refused
from pellucid.server.rendering import STATIC, render
from pellucid.server.screens import Projector
from pellucid.server.site import Site
from pellucid.study.frozen import load_frozen

log = logging.getLogger("pellucid.server")

FAULT = (
    "Something went wrong on the side of the study. Everything that was saved before is safe. Please try again; if it stays "
    "like this, please tell the experimenter."
)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})


def build_app(study_folder: Path | str, database_url: str, *, public_url: str, token: str = "") -> FastAPI:
    """`pellucid.server.create_app`."""
    address = urlsplit(public_url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigError(f"the address of the study begins with http:// or https://, got {public_url!r}")
    if address.path.strip("/") or address.query:
        raise ConfigError(f"a study has a host (or a port) of its own, without a path, got {public_url!r}")
    frozen = load_frozen(study_folder)
    database = Database(database_url)
    try:
        keys = open_study(database, frozen, token=token)
    except BaseException:
        database.close()
        raise
    site = Site(
        frozen, database, keys, Projector(frozen, keys), public_url.rstrip("/"), turn=asyncio.Lock(),
        answers=Limit(rate=10.0, burst=60.0), images=Limit(rate=40.0, burst=400.0), starts=Limit(rate=50.0, burst=400.0),
        logins=Limit(rate=0.2, burst=10.0), refused=Counter(),
    )  # fmt: skip
    app = FastAPI(
        title=f"Pellucid study: {frozen.study.title}", docs_url=None, redoc_url=None, openapi_url=None,
        lifespan=_closing(database),
    )  # fmt: skip
    app.state.site = site
    for part in (participant_api, participant_pages, experimenter):  # what is asked most comes first
        app.include_router(part.router(site))
    app.mount("/static", CachedFiles(directory=STATIC), name="static")
    _explain_refusals(app, site)
    host = address.hostname.lower()
    hosts = LOOPBACK | {f"[{host}]" if ":" in host else host}
    app.add_middleware(Guard, hosts=hosts, https=site.https, refused=site.refused)
    return app


class CachedFiles(StaticFiles):
    """Files of the package; a browser asks again after an hour."""

    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)  # pyright: ignore[reportArgumentType] - passed on as it came
        response.headers["cache-control"] = "private, max-age=3600"
        return response


def _closing(database: Database) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        database.close()

    return lifespan


def _explain_refusals(app: FastAPI, site: Site) -> None:
    """Programs get a code and a sentence, people get a page; nobody gets back what they sent."""

    def said(request: Request, refusal: Refused) -> Response:
        participant = site.keys.participant(request.cookies.get(site.person_cookie, ""))
        path = request.scope["path"]  # `request.url` is put together from what the browser says of the host
        site.note_refusal(refusal, f"{request.method} {for_log(path)}", participant)
        headers = {"retry-after": "5"} if refusal.status in (429, 503, 507) else None
        if path.startswith("/api/"):
            reply = {"error": refusal.code, "message": refusal.message}
            return JSONResponse(reply, refusal.status, headers)
        page = {"title": "Not possible", "study": site.frozen.study, "message": refusal.message}
        page |= {"again": refusal.status in (429, 500, 503, 507)}
        return HTMLResponse(render("message.html", page), refusal.status, headers)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return said(request, error)

    async def invalid(request: Request, _: Exception) -> Response:
        return said(
            request, Refused(422, "invalid", "This request is not of the form that the study expects.")
        )

    async def missing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = {404: "There is nothing at this address.", 413: "This is too large."}
        message = sentence.get(error.status_code, "This request cannot be answered.")
        return said(request, Refused(error.status_code, "http", message))

    async def broken(request: Request, _: Exception) -> Response:  # the fault itself is logged by the server
        reply = said(request, Refused(500, "fault", FAULT))
        add_headers(reply.headers, https=site.https)  # this reply does not pass the guard
        return reply

    app.add_exception_handler(Exception, broken)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, missing)
