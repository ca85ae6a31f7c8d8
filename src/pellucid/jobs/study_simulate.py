"""What `pellucid study simulate` does: a crowd of simulated participants takes part over HTTP, and every answer is accounted for.

Each participant keeps a log of what it sent and what was acknowledged; afterwards the logs and the database must agree.
"""

import asyncio
import contextlib
import dataclasses as dc
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np

from pellucid._checks import ConfigError
from pellucid.jobs.study_visitor import CHARACTERS, LOOKING, Log, Visitor, to_plain
from pellucid.rng import stream
from pellucid.server import read_records
from pellucid.store import write_bytes
from pellucid.study.frozen import Frozen, load_frozen


@dc.dataclass(frozen=True)
class Crowd:
    """Who takes part, and how fast.

    Attributes:
        people: how many of each of `CHARACTERS`, by name.
        think: mean seconds before an answer, exponential; 0 for as fast as the server can.
        arrive: they arrive evenly within so many seconds.
        images: whether pictures are fetched; without, nobody can be attentive.
    """

    people: Mapping[str, int]
    think: float = 1.0
    arrive: float = 1.0
    images: bool = True
    seed: int = 0


@dc.dataclass(frozen=True)
class Simulated:
    """How a simulation went. Seconds are of answers, from sending one to its acknowledgement.

    Attributes:
        lost: acknowledged answers that the database does not have. Anything but 0 is a fault.
        doubled: trials with more than one stored answer, or answers nobody sent. Anything but 0 is a fault.
        wall: seconds from the first to the last answer.
    """

    people: int
    ended: dict[str, int]
    acknowledged: int
    stored: int
    lost: int
    doubled: int
    retried: int
    images: int
    median: float
    p95: float
    slowest: float
    wall: float

    def text(self) -> str:
        """Some lines for a terminal."""
        ends = ", ".join(f"{n} {how}" for how, n in sorted(self.ended.items()))
        verdict = (
            "every answer is stored exactly once"
            if not (self.lost or self.doubled)
            else "ANSWERS DO NOT ADD UP"
        )
        return (
            f"{self.people} participants: {ends}\n"
            f"{self.acknowledged} answers acknowledged, {self.stored} stored, {self.lost} lost, {self.doubled} doubled: {verdict}\n"
            f"an answer took {1000 * self.median:.0f} ms (median), {1000 * self.p95:.0f} ms (95th percentile), "
            f"{1000 * self.slowest:.0f} ms (slowest); {self.acknowledged / max(self.wall, 1e-9):.0f} answers a second"
        )


def simulate_study(
    folder: Path, crowd: Crowd, *, database: str, url: str | None, logs: Path | None
) -> Simulated:
    """Let a crowd take part, in a server of its own unless `url` says where one runs, then compare logs and database.

    Raises:
        ConfigError: an unknown character, nobody at all, or no server.
    """
    check_crowd(crowd)
    frozen = load_frozen(folder)
    with contextlib.ExitStack() as stack:
        address = url or stack.enter_context(server(folder, database))
        kept = run_crowd(address, frozen, crowd)
    if logs is not None:
        write_bytes(logs, ("\n".join(to_plain(log) for log in kept) + "\n").encode())
    return reconcile(kept, database, sha256=frozen.sha256)


def check_crowd(crowd: Crowd) -> None:
    """Raise `ConfigError` unless there is somebody, and everybody is known."""
    unknown = sorted(set(crowd.people) - set(CHARACTERS))
    if unknown:
        raise ConfigError(f"simulated participants are {list(CHARACTERS)}, got {unknown}")
    if not crowd.images and any(crowd.people.get(name) for name in LOOKING):
        raise ConfigError(
            f"without pictures nobody can be {' or '.join(LOOKING)}; ask for images, or for others"
        )
    if sum(crowd.people.values()) < 1:
        raise ConfigError("a simulation needs at least one participant, such as --attentive 10")


def run_crowd(address: str, frozen: Frozen, crowd: Crowd) -> list[Log]:
    """Let everybody take part at once. Raises `ConfigError` as `check_crowd` does."""
    check_crowd(crowd)
    return asyncio.run(_all(address, frozen, crowd))


async def _all(address: str, frozen: Frozen, crowd: Crowd) -> list[Log]:
    characters = [name for name in CHARACTERS for _ in range(crowd.people.get(name, 0))]
    order = stream(crowd.seed, "order").permutation(len(characters))
    context = ssl.create_default_context()  # once: it takes longer to make than a participation to start
    visits = [
        _visit(address, frozen, crowd, number=n, character=characters[int(k)], context=context)
        for n, k in enumerate(order)
    ]
    return list(await asyncio.gather(*visits))


async def _visit(
    address: str,
    frozen: Frozen,
    crowd: Crowd,
    *,
    number: int,
    character: str,
    context: ssl.SSLContext,
) -> Log:
    await asyncio.sleep(crowd.arrive * number / sum(crowd.people.values()))
    person = frozen.study.recruitment.person if frozen.study.recruitment.parameters else ""
    query = f"?{person}=simulated-{crowd.seed}-{number}" if person else ""
    quiz = tuple(question.right for question in frozen.study.quiz)
    # A client each, as everybody has a browser: its pool looks at all of its connections for every request.
    async with httpx.AsyncClient(base_url=address, timeout=30.0, verify=context, trust_env=False) as client:
        visitor = Visitor(client, character, stream(crowd.seed, "visitor", number))
        return await visitor.take_part(query, think=crowd.think, quiz=quiz, images=crowd.images)


def reconcile(logs: Sequence[Log], database: str, *, sha256: str) -> Simulated:
    """Compare what participants sent with what is stored."""
    mine = {log.participant for log in logs}
    found = [a for a in read_records(database, sha256=sha256).answers if a.participant in mine]
    stored = Counter((a.participant, a.ordinal, a.chosen) for a in found)
    sent = {(log.participant, s.ordinal, s.chosen) for log in logs for s in log.answers}
    acknowledged = {
        (log.participant, s.ordinal, s.chosen) for log in logs for s in log.answers if s.acknowledged
    }
    trials = Counter((a.participant, a.ordinal) for a in found)
    answers = [s for log in logs for s in log.answers if s.acknowledged]
    seconds = np.array([s.seconds for s in answers] or [float("nan")])
    times = [s.at for s in answers]
    return Simulated(
        people=len(logs), ended=dict(Counter(log.ended for log in logs)), acknowledged=len(acknowledged),
        stored=len(found), lost=len(acknowledged - set(stored)),
        doubled=sum(n > 1 for n in trials.values()) + len(set(stored) - sent),
        retried=sum(s.tries > 1 for s in answers), images=sum(log.images for log in logs),
        median=float(np.median(seconds)), p95=float(np.percentile(seconds, 95)), slowest=float(seconds.max()),
        wall=max(times) - min(times) if times else 0.0,
    )  # fmt: skip


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(folder: Path, database: str) -> Generator[str]:
    """The address of a server in a process of its own, stopped at the end."""
    port = free_port()
    process = start(folder, database, port)
    try:
        wait_for(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def start(folder: Path, database: str, port: int) -> "subprocess.Popen[bytes]":
    """Start `pellucid study serve` on a port of this machine."""
    command = [sys.executable, "-m", "pellucid", "study", "serve", str(folder), "--database", database]
    return subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for(process: "subprocess.Popen[bytes]", port: int, *, seconds: float = 60.0) -> None:
    """Return once the server answers.

    Raises:
        ConfigError: it ended, or does not answer.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ConfigError(
                f"the server ended with code {process.returncode}; run `pellucid study serve` to see why"
            )
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise ConfigError(f"the server did not answer within {seconds:.0f} s")
