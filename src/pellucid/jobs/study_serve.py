"""What `pellucid study serve` does: hold a frozen study on this machine."""

import dataclasses as dc
import ipaddress
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pellucid._checks import ConfigError
from pellucid.server import EXTRA, create_app

if TYPE_CHECKING:
    import uvicorn

SWITCH = 0.0005
"""Seconds after which a thread that waits gets its turn."""
PATIENCE = 15
"""Seconds that requests under way get when the server is stopped."""


@dc.dataclass(frozen=True)
class Place:
    """Where a study is held.

    Attributes:
        url: how browsers reach it; "" for http://HOST:PORT.
        plain_http: let answers and logins cross a network unencrypted.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    url: str = ""
    plain_http: bool = False

    @property
    def public_url(self) -> str:
        """How browsers reach it."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return self.url or f"http://{shown}:{self.port}"


def default_database(folder: Path | str) -> str:
    """The address of the database in a study's folder."""
    return f"sqlite:///{Path(folder).resolve() / 'study.db'}"


def serve_study(
    folder: Path, place: Place, *, database: str | None, new_token: bool, say: Callable[[str], None]
) -> None:
    """Hold a study until the process is stopped; `say` gets the links, and the token if it is new.

    Raises:
        ConfigError: not reachable safely, the port is taken, or the extra `web` is missing.
    """
    check_place(place)
    try:
        import uvicorn

        from pellucid.server.database import Database
        from pellucid.server.keys import new_token as make_token
        from pellucid.server.opening import is_new
    except ModuleNotFoundError as error:
        raise ConfigError(f"{EXTRA} ({error})") from error
    url = database or default_database(folder)
    held = Database(url)
    try:
        token = make_token() if new_token or is_new(held) else ""
    finally:
        held.close()
    app = create_app(folder, url, public_url=place.public_url, token=token)
    for line in links(app.title, place, token):
        say(line)
    # No access log: it would hold addresses and recruitment parameters.
    config = uvicorn.Config(
        app, host=place.host, port=place.port, access_log=False, log_level="warning", server_header=False,
        proxy_headers=False, timeout_keep_alive=30, timeout_graceful_shutdown=PATIENCE,
    )  # fmt: skip
    _run(uvicorn.Server(config), place, say)


def _run(server: "uvicorn.Server", place: Place, say: Callable[[str], None]) -> None:
    """Serve until somebody ends it."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    # Every statement lets go of the interpreter's lock and waits for it again while requests are handled: five
    # milliseconds, as it is set, would be most of what an answer takes under load.
    sys.setswitchinterval(SWITCH)
    try:
        server.run()
    except KeyboardInterrupt:  # what uvicorn passes on after it has stopped
        say("Stopped; every answer that was acknowledged is stored. The same command goes on.")
    except SystemExit as error:  # what uvicorn does when it cannot listen
        raise ConfigError(
            f"cannot listen on {place.host}:{place.port}; is another server there? Choose another --port"
        ) from error


def links(title: str, place: Place, token: str) -> list[str]:
    """What to tell the experimenter at the start."""
    told = [
        f"{title}",
        f"  participants   {place.public_url}/",
        f"  experimenter   {place.public_url}/experimenter",
    ]
    if token:
        told += [f"  token          {token}", "The token is shown this once; --new-token makes another."]
    else:
        told += ["The experimenter's token was shown at the first start; --new-token makes another."]
    return told


def check_place(place: Place) -> None:
    """Raise `ConfigError` where answers, links and the login would cross a network in the clear."""
    scheme, host = urlsplit(place.public_url).scheme, urlsplit(place.public_url).hostname or ""
    if place.plain_http or scheme == "https":
        return
    if not (is_loopback(place.host) and is_loopback(host)):
        raise ConfigError(
            f"{place.public_url} would send links, answers and the login over the network unencrypted; put a proxy with "
            "https before the server and give --url https://YOUR.HOST, or say --plain-http on a network you trust"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
