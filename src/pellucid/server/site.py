"""What every route works with: the study, its database, its keys, and who is asking."""

import asyncio
import dataclasses as dc
import functools
import logging
from collections import Counter
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from pellucid.server.database import Database
from pellucid.server.keys import Keys
from pellucid.server.limits import Limit
from pellucid.server.refusals import Refused
from pellucid.server.screens import Projector, Screens
from pellucid.study.frozen import Frozen

log = logging.getLogger("pellucid.server")

DAY = 24 * 3600
FORM = "x-form"
"""The header in which requests of scripts carry what forms carry in a field."""


@dc.dataclass(frozen=True)
class Site:
    """One study being held.

    Attributes:
        turn: whose turn it is to enrol.
        answers, images, starts, logins: how often what may be asked for.
        refused: how often what was refused since the start; the experimenter sees it.
    """

    frozen: Frozen
    database: Database
    keys: Keys
    projector: Projector
    public_url: str
    turn: asyncio.Lock
    answers: Limit
    images: Limit
    starts: Limit
    logins: Limit
    refused: Counter[str]

    @property
    def https(self) -> bool:
        """Whether browsers reach it over https."""
        return urlsplit(self.public_url).scheme == "https"

    @property
    def person_cookie(self) -> str:
        """Name of the cookie that knows a participant."""
        return "__Host-participant" if self.https else "participant"

    @property
    def session_cookie(self) -> str:
        """Name of the cookie that knows an experimenter."""
        return "__Host-experimenter" if self.https else "experimenter"

    def participant(self, request: Request) -> str:
        """Who asks.

        Raises:
            Refused: nobody we know.
        """
        participant = self.keys.participant(request.cookies.get(self.person_cookie, ""))
        if participant is None:
            raise Refused(
                401, "unknown", "Please open the study by your personal link, or from its first page."
            )
        return participant

    def participant_writing(self, request: Request, sent: str) -> str:
        """Who asks to change something; the request must carry what only our own pages know.

        Raises:
            Refused: nobody we know, another site's request, or too many.
        """
        participant = self.participant(request)
        if not self.keys.right_form(participant, sent):
            raise Refused(
                403, "forged", "This form is too old or not from this site. Please reload the page."
            )
        self.answers.check(participant)
        return participant

    def remember(self, response: Response, participant: str) -> None:
        """Set the cookie by which a participant is known."""
        response.set_cookie(
            self.person_cookie, self.keys.link(participant), max_age=60 * DAY, httponly=True, samesite="lax",
            secure=self.https, path="/",
        )  # fmt: skip

    async def screens(self, participant: str) -> Screens:
        """What this participant is shown.

        Raises:
            Refused: no schedule.
        """
        known = self.projector.known(participant)
        if known is not None:
            return known
        made = await self.database.read(lambda c: self.projector.load(c, participant))
        return self.projector.remember(participant, made)

    def note_refusal(self, refusal: Refused, where: str, participant: str | None) -> None:
        """Log what was refused, by participant if it is known, never by address."""
        self.refused[refusal.code] += 1
        log.warning(
            "refused %s for %s: %s (%d)", where, participant or "nobody", refusal.code, refusal.status
        )


@functools.lru_cache(maxsize=2048)
def stimulus_bytes(path: str) -> bytes:
    """An image's file, read once."""
    with open(path, "rb") as file:  # noqa: PTH123 - a text is what the cache compares fastest
        return file.read()
