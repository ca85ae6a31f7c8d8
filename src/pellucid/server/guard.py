"""What holds for every request: its size, its form, where it comes from, and the headers of the reply."""

import json
import logging
import re
from collections import Counter

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("pellucid.server")

LARGEST = 16 * 1024
"""Bytes of a request's body; an answer has about 400, a comment at most 8,000."""

HEADERS = {
    # Everything from this host, nothing inline, nothing embedded anywhere.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "x-robots-tag": "noindex",
}
SAFE = ("GET", "HEAD", "OPTIONS")
HOST = re.compile(r"(?P<name>[a-z0-9._\-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)
FORMS = ("", "application/x-www-form-urlencoded", "application/json")
"""What our pages send. Anything else, such as uploads with a character set of the sender's choice, is not even parsed."""
REFUSALS = {
    "unknown_host": (400, "This study is not held under that address."),
    "bad_length": (400, "This request does not say how long it is."),
    "too_large": (413, "This is too large."),
    "bad_form": (415, "This request is not of the form that the study expects."),
    "other_site": (403, "This request comes from another site."),
}
SECRET = re.compile(r"[0-9A-Fa-f]{16,}")


class Guard:
    """Refuses what is too large, malformed or from another site, and puts the headers on every reply.

    Attributes:
        refused: the counts that the experimenter sees; refusals of the guard are added.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], https: bool, refused: Counter[str]) -> None:
        self._app, self._hosts, self._https, self.refused = app, hosts, https, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        code = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        if code:
            self.refused[code] += 1
            log.warning("refused %s %s: %s", scope["method"], for_log(scope["path"]), code)
            await _plain(send, code, self._https, program=scope["path"].startswith("/api/"))
            return
        await self._limited(scope, receive, send)

    def _refusal(self, method: str, path: str, headers: Headers) -> str:
        """One of `REFUSALS`, or "" for a request that may pass."""
        given = headers.get("host", "").lower()
        host = HOST.fullmatch(given)
        if host is None or host["name"] not in self._hosts:
            return "unknown_host"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return "bad_length"
        if int(length[:12]) > LARGEST:
            return "too_large"
        ours = headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
        if (
            method in SAFE
        ):  # a link from elsewhere may lead to a page; what a program asks is asked by our pages alone
            return "" if ours or not path.startswith("/api/") else "other_site"
        origin = headers.get("origin")
        if not ours or (origin is not None and origin.lower().partition("://")[2] != given):
            return "other_site"
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return "" if kind in FORMS else "bad_form"

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST:  # a body that never said how long it is
                raise HTTPException(413, REFUSALS["too_large"][1])
            return message

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_headers(MutableHeaders(scope=message), https=self._https)
            await send(message)

        await self._app(scope, counted, headed)


def add_headers(headers: MutableHeaders, *, https: bool) -> None:
    """The headers every reply has; pages are never kept by a cache, images and static files say so themselves."""
    for name, value in HEADERS.items():
        headers[name] = value
    if "cache-control" not in headers:
        headers["cache-control"] = "no-store"
    if https:
        headers["strict-transport-security"] = "max-age=31536000"


def for_log(path: str) -> str:
    """A path as logs may have it: the route only (a query may carry what identifies a person), and no personal link."""
    return ascii(SECRET.sub("*", path)[:80])


async def _plain(send: Send, code: str, https: bool, *, program: bool) -> None:
    status, sentence = REFUSALS[code]
    start: Message = {"type": "http.response.start", "status": status, "headers": []}
    headers = MutableHeaders(scope=start)
    headers["content-type"] = "application/json" if program else "text/plain; charset=utf-8"
    add_headers(headers, https=https)
    text = json.dumps({"error": code, "message": sentence}) if program else f"{sentence}\n"
    await send(start)
    await send({"type": "http.response.body", "body": text.encode()})
