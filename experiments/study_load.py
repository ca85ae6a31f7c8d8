"""Hold a study under load: 200 simulated participants at once, on SQLite and PostgreSQL; every answer accounted for.

    python experiments/study_load.py                     # writes docs/results/study/load.md and load.csv
    python experiments/study_load.py --people 12 --answers 6 --databases sqlite --out /tmp/load

Each row of the table is a fresh server (one process) and a fresh database on this machine; the clients run beside it and
share its cores. Four loads: think time exponential with mean 1 s without pictures; the same with every picture fetched
(three small requests a trial); the same without pictures while the server is killed twice (kill -9) and started again; and
no think time at all, for the most the server gives. About seven minutes in all.
"""

import argparse
import asyncio
import contextlib
import csv
import dataclasses as dc
import hashlib
import io
import os
import platform
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from sqlalchemy import func, select

from pellucid.jobs.study_simulate import Crowd, free_port, reconcile, run_crowd, server, start, wait_for
from pellucid.jobs.study_visitor import Log
from pellucid.server import tables
from pellucid.server.database import Database
from pellucid.study.design import parse_study
from pellucid.study.frozen import Frozen, freeze
from pellucid.study.items import Pool, Stimulus, StudyItem
from pellucid.study.schedule import Item

OUT = Path(__file__).parents[1] / "docs" / "results" / "study"
TESTS = Path(__file__).parents[1] / "tests" / "server"
KILLED = "think 1 s, killed twice"

DESIGN = """
name = "load"
title = "A study under load"
runs = ["synthetic"]
[trials]
afc = {answers}
catches = {catches}
catches_right = {catches}
practice = 2
[sample]
quota = 100000
[texts]
landing = "Load."
consent = "Simulated."
consent_version = "1"
instructions = "Simulated."
debrief = "Done."
contact = "nobody"
ethics = "none needed: simulated"
"""


def frozen_study(folder: Path, *, answers: int) -> Frozen:
    """Synthetic items of 32 x 32 pixels: 100 targets under four conditions."""
    draw = np.random.default_rng(0)
    images: dict[str, bytes] = {}

    def stimulus(pixels: np.ndarray, role: str) -> Stimulus:
        buffer = io.BytesIO()
        Image.fromarray((255 * pixels).astype(np.uint8)).save(buffer, "PNG")
        name = hashlib.sha256(buffer.getvalue()).hexdigest()
        images[name] = buffer.getvalue()
        return Stimulus(name, role, 32, 32)

    items: list[StudyItem] = []
    for target in range(100):
        goal, start = draw.random((2, 32, 32, 3))
        shown = stimulus(goal, "target"), stimulus(start, "start")
        for cell, closeness in enumerate((0.2, 0.4, 0.6, 0.8)):
            item = Item(f"c{cell}-t{target}", f"cell {cell}", f"t{target}", f"class {target % 10}")
            items.append(StudyItem(item, stimulus(start + closeness * (goal - start), "found"), *shown))
    text = DESIGN.format(answers=answers, catches=max(1, answers // 12))
    return freeze(parse_study(text), Pool(tuple(items), images), folder)


@contextlib.contextmanager
def database(kind: str, folder: Path) -> Generator[str]:
    """The address of an empty database of this kind."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'load.db'}"
        return
    sys.path.insert(0, str(TESTS))
    from postgres import postgres  # what the tests start PostgreSQL with

    with postgres() as address:
        yield address


def empty_endpoint(address: str, *, seconds: float = 5.0, people: int = 200) -> float:
    """95th percentile of an endpoint that does nothing, in seconds, at one request a second from each of `people`."""
    context = ssl.create_default_context()
    taken: list[float] = []

    async def one(number: int) -> None:
        draw = np.random.default_rng(number)
        async with httpx.AsyncClient(
            base_url=address, timeout=30.0, verify=context, trust_env=False
        ) as client:
            await client.get("/api/health")  # to connect
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                await asyncio.sleep(float(draw.exponential(1.0)))
                began = time.monotonic()
                await client.get("/api/health")
                taken.append(time.monotonic() - began)

    async def everybody() -> list[float]:
        await asyncio.gather(*(one(n) for n in range(people)))
        return taken

    return float(np.percentile(asyncio.run(everybody()), 95))


@dc.dataclass(frozen=True)
class Row:
    """One load on one database."""

    database: str
    load: str
    people: int
    answers: int
    stored: int
    lost: int
    doubled: int
    retried: int
    median_ms: float
    p95_ms: float
    slowest_ms: float
    empty_p95_ms: float
    ratio: float
    per_second: float
    images: int


def measure(kind: str, load: str, crowd: Crowd, *, answers: int) -> Row:
    """A fresh server and database under one load; what the clients' logs say against what is stored."""
    people = sum(crowd.people.values())
    with tempfile.TemporaryDirectory() as place, database(kind, Path(place)) as url:
        frozen = frozen_study(Path(place) / "frozen", answers=answers)
        if load == KILLED:
            logs, empty = under_fire(frozen, url, crowd), float("nan")
        else:
            with server(frozen.path, url) as address:
                empty = empty_endpoint(address, people=people)
                logs = run_crowd(address, frozen, crowd)
        found = reconcile(logs, url, sha256=frozen.sha256)
    finished = found.ended.get("finished", 0)
    if finished != people:
        raise SystemExit(f"{finished} of {people} finished: {found.ended}")
    return Row(
        kind, load, people, found.acknowledged, found.stored, found.lost, found.doubled, found.retried, 1000 * found.median,
        1000 * found.p95, 1000 * found.slowest, 1000 * empty, found.p95 / empty, found.acknowledged / found.wall, found.images,
    )  # fmt: skip


def under_fire(frozen: Frozen, url: str, crowd: Crowd) -> list[Log]:
    """The logs of a crowd whose server is killed when a third, and again when two thirds of the answers are stored."""
    port, logs = free_port(), list[Log]()
    wanted = sum(crowd.people.values()) * frozen.study.trials.shown
    running = [start(frozen.path, url, port)]
    try:
        wait_for(running[0], port)
        load = threading.Thread(
            target=lambda: logs.extend(run_crowd(f"http://127.0.0.1:{port}", frozen, crowd)), daemon=True
        )
        load.start()
        for share in (1 / 3, 2 / 3):
            wait_until_stored(url, int(share * wanted))
            os.kill(running[-1].pid, signal.SIGKILL)
            running[-1].wait()
            running.append(start(frozen.path, url, port))
            wait_for(running[-1], port)
        load.join(300)
    finally:
        for process in running:
            process.kill()
            process.wait()
    return logs


def wait_until_stored(url: str, n: int) -> None:
    """Return once so many answers are stored."""
    held, count = Database(url), select(func.count()).select_from(tables.response)
    until = time.monotonic() + 180
    while (held.read_now(lambda c: c.scalar(count)) or 0) < n:
        if time.monotonic() > until:
            raise SystemExit(f"{n} answers did not come within three minutes")
        time.sleep(0.25)
    held.close()


def processor() -> str:
    """Model and number of cores of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown processor'}, {os.cpu_count()} cores"


def postgres_version() -> str:
    """Which PostgreSQL was used."""
    sys.path.insert(0, str(TESTS))
    from postgres import programs

    done = subprocess.run([str(programs() / "postgres"), "--version"], capture_output=True, text=True)
    return done.stdout.strip()


def findings(rows: list[Row]) -> list[str]:
    """What the table says, in sentences."""
    good = all(row.lost == row.doubled == 0 for row in rows)
    thinking = [row for row in rows if row.load == "think 1 s"]
    held = all(row.p95_ms < 250 for row in thinking)
    said = [
        f"- {'Every acknowledged answer is stored exactly once' if good else '**Answers do not add up**'}: the clients' own logs "
        f"against the database, {sum(row.answers for row in rows):,} answers in all."
    ]
    if thinking:
        figures = ", ".join(
            f"{r.p95_ms:.0f} ms on {r.database} ({r.ratio:.1f} times an empty endpoint)" for r in thinking
        )
        said.append(
            f"- The 95th percentile of an answer with a think time of 1 s is {'below' if held else '**not below**'} 250 ms: {figures}."
        )
    pictured = [row for row in rows if row.load == "with pictures"]
    if pictured:
        below = all(row.p95_ms < 250 for row in pictured)
        figures = ", ".join(f"{r.p95_ms:.0f} ms on {r.database}" for r in pictured)
        said.append(
            f"- With every picture fetched as well it is {'below' if below else '**not below**'} 250 ms: {figures}; clients and pictures "
            "share the cores with the server."
        )
    killed = [row for row in rows if row.load == KILLED]
    if killed:
        figures = ", ".join(f"{r.retried} on {r.database}" for r in killed)
        lost = sum(row.lost for row in killed)
        said.append(
            f"- Killed twice in mid-load (kill -9), the server lost {lost or 'no'} acknowledged answer{'s' if lost > 1 else ''}; "
            f"answers that had to be sent again: {figures}."
        )
    full = [row for row in rows if row.load == "no think time"]
    if full:
        figures = ", ".join(f"{r.per_second:.0f} answers a second on {r.database}" for r in full)
        said.append(f"- Saturation, clients on the same cores: {figures}.")
    return said


def page(rows: list[Row], load_before: float) -> str:
    """The findings and the table as a page."""
    said = [
        "# A study under load",
        "",
        "Each row: a fresh server (one process) and database; clients on the same machine.",
        "",
        *findings(rows),
        "",
        "| database | load | people | answers | stored | lost | doubled | sent again | median, ms | 95 %, ms | slowest, ms | "
        "empty endpoint 95 %, ms | ratio | answers/s | pictures |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    said += [
        f"| {r.database} | {r.load} | {r.people} | {r.answers} | {r.stored} | {r.lost} | {r.doubled} | {r.retried} | {r.median_ms:.0f} | "
        f"{r.p95_ms:.0f} | {r.slowest_ms:.0f} | {number(r.empty_p95_ms, 0)} | {number(r.ratio, 1)} | {r.per_second:.0f} | {r.images} |"
        for r in rows
    ]
    version = postgres_version() if any(r.database == "postgresql" for r in rows) else "no PostgreSQL"
    said += [
        "",
        "*think 1 s*: exponential with mean 1 s before each answer, no pictures fetched. *with pictures*: the same, and every picture "
        "of every trial is fetched. *no think time*: as fast as the replies come; its answers per second are the most this machine gives "
        "while it runs the clients, too. Times are of the try that succeeded; where the server is killed, what waited for it is under "
        "*sent again*.",
        "",
        f"{processor()}; load average before the run {load_before:.1f}; Python {platform.python_version()}; {version}. Written by "
        "`experiments/study_load.py`; the same figures in [load.csv](load.csv).",
        "",
    ]
    return "\n".join(said)


def number(value: float, digits: int) -> str:
    """A number, or a dash where it was not measured."""
    return "–" if value != value else f"{value:.{digits}f}"


def write(rows: list[Row], out: Path, load_before: float) -> None:
    """The page and its table, after every row: what was measured is not lost with what fails later."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "load.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dc.fields(Row)])
        writer.writeheader()
        writer.writerows(dc.asdict(row) for row in rows)
    (out / "load.md").write_text(page(rows, load_before))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument(
        "--answers", type=int, default=20, help="trials of each of them, catch trials not counted"
    )
    parser.add_argument(
        "--databases", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"]
    )
    known = ["think 1 s", "with pictures", KILLED, "no think time"]
    parser.add_argument("--loads", nargs="+", default=known, choices=known)
    parser.add_argument("--arrive", type=float, default=10.0, help="seconds within which they arrive")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    before = os.getloadavg()[0]
    loads = {
        "think 1 s": Crowd({"random": asked.people}, think=1.0, arrive=asked.arrive, images=False),
        "with pictures": Crowd({"random": asked.people}, think=1.0, arrive=asked.arrive),
        KILLED: Crowd({"random": asked.people}, think=1.0, arrive=asked.arrive, images=False),
        "no think time": Crowd({"random": asked.people}, think=0.0, arrive=asked.arrive, images=False),
    }
    rows: list[Row] = []
    for kind in asked.databases:
        for load in asked.loads:
            rows.append(measure(kind, load, loads[load], answers=asked.answers))
            print(rows[-1])
            write(rows, asked.out, before)
    print("\n".join([*findings(rows), str(asked.out / "load.md")]))


if __name__ == "__main__":
    main()
