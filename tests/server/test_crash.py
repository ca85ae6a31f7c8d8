"""A server or database killed in mid-load, a disk that is really full: nothing that was acknowledged is lost."""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from held import Visitor, answer_to, client_of, frozen_study
from postgres import cluster
from running import free_port
from sqlalchemy import text

from pellucid.jobs.study_simulate import Crowd, reconcile, run_crowd, simulate_study, start, wait_for
from pellucid.jobs.study_visitor import Log
from pellucid.server import read_records
from pellucid.server.database import Database
from pellucid.study.frozen import Frozen

pytestmark = pytest.mark.slow


def test_a_simulated_crowd_is_stored_exactly_once(study: Frozen, tmp_path: Path) -> None:
    crowd = Crowd({"attentive": 4, "random": 1, "biased": 1, "absent": 1}, think=0.05, arrive=0.2)
    where = f"sqlite:///{tmp_path / 'dry.db'}"
    found = simulate_study(study.path, crowd, database=where, url=None, logs=tmp_path / "logs.jsonl")
    assert found.ended == {"finished": 6, "left": 1}
    assert (found.lost, found.doubled) == (0, 0) and found.acknowledged == found.stored == 6 * 9 + 4
    assert len((tmp_path / "logs.jsonl").read_text().splitlines()) == 7
    answers = read_records(where, sha256=study.sha256).answers
    catches = [a.correct for a in answers if a.catch]
    assert catches and "exactly once" in found.text()


def test_a_log_that_the_database_does_not_bear_out_is_reported(study: Frozen, tmp_path: Path) -> None:
    from pellucid.jobs.study_visitor import Sent

    where = f"sqlite:///{tmp_path / 'dry.db'}"
    with client_of(study.path, where) as client:
        person = Visitor(client).ready()
        person.answer(person.next()["trial"], chosen="left")
    name = person.cookies["participant"].partition(".")[0]
    claimed = [Sent("k", 0, "right", True, 0.1, 1, 0.0), Sent("l", 1, "left", True, 0.1, 1, 0.0)]
    found = reconcile([Log("random", name, claimed, "finished")], where, sha256=study.sha256)
    assert (found.lost, found.doubled) == (2, 1) and "DO NOT ADD UP" in found.text()


def wait_until_stored(where: str, frozen: Frozen, n: int) -> None:
    """Return once so many answers are stored, or after a minute: what is missing then, the logs will say."""
    until = time.monotonic() + 60
    while len(read_records(where, sha256=frozen.sha256).answers) < n and time.monotonic() < until:
        time.sleep(0.1)


@contextmanager
def crowd_at(port: int, frozen: Frozen, people: int) -> Iterator[list[Log]]:
    """A crowd that takes part meanwhile; its logs are complete afterwards."""
    logs: list[Log] = []
    crowd = Crowd({"random": people}, think=0.3, arrive=0.5, images=False)
    load = threading.Thread(
        target=lambda: logs.extend(run_crowd(f"http://127.0.0.1:{port}", frozen, crowd)), daemon=True
    )
    load.start()
    yield logs
    load.join(150)
    assert not load.is_alive()


def test_T17_a_server_killed_twice_in_mid_load_loses_nothing(where: str, tmp_path: Path) -> None:
    frozen = frozen_study(tmp_path / "frozen", quota="100")
    port = free_port()
    running = [start(frozen.path, where, port)]
    try:
        wait_for(running[0], port)
        with crowd_at(port, frozen, 12) as logs:
            for stored in (15, 50):
                wait_until_stored(where, frozen, stored)
                os.kill(running[-1].pid, signal.SIGKILL)
                running[-1].wait()
                running.append(start(frozen.path, where, port))
                wait_for(running[-1], port)
    finally:
        for process in running:
            process.kill()
            process.wait()
    found = reconcile(logs, where, sha256=frozen.sha256)
    assert found.retried > 0, "somebody was waiting for the server when it died"
    assert (found.lost, found.doubled) == (0, 0) and found.stored == 12 * 9, found.text()


def test_a_database_that_dies_in_mid_load_loses_nothing(tmp_path: Path) -> None:
    """PostgreSQL is ended in the middle of its work and started again; the study's server stays up and finds it."""
    frozen = frozen_study(tmp_path / "frozen", quota="100")
    with cluster() as postgresql:
        port = free_port()
        process = start(frozen.path, postgresql.address, port)
        try:
            wait_for(process, port)
            with crowd_at(port, frozen, 8) as logs:
                wait_until_stored(postgresql.address, frozen, 20)
                postgresql.die()
                time.sleep(1.0)
                postgresql.start()
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()
        found = reconcile(logs, postgresql.address, sha256=frozen.sha256)
    assert found.retried > 0 and found.ended == {"finished": 8}
    assert (found.lost, found.doubled) == (0, 0) and found.stored == 8 * 9, found.text()


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of so many megabytes, or a skip."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(filler: Path) -> None:
    """Write until the file system has no room."""
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"0" * 4096)


def answer_until_refused(
    people: list[Visitor], trials: list[dict[str, Any]]
) -> tuple[int, Visitor, Any, dict[str, Any]]:
    """(answers that were acknowledged, who was refused, the refusal, the answer that was refused)."""
    kept = 0
    for person, first in zip(people, trials, strict=True):
        trial: dict[str, Any] | None = first
        while trial:
            reply = person.send(body := answer_to(trial))
            if reply.status_code != 200:
                return kept, person, reply, body
            kept, trial = kept + 1, reply.json()["next"]["trial"]
    raise AssertionError(f"the disk is full, and all of {kept} answers were taken")


def test_a_disk_that_is_really_full(study: Frozen, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 1) as small:
        where = f"sqlite:///{small / 'study.db'}"
        with client_of(study.path, where) as client:
            person = Visitor(client).ready()
            trial = person.next()["trial"]
            fill(small / "filler")
            kept, _, reply, body = answer_until_refused([person], [trial])
            assert reply.status_code == 507 and "disk is full" in reply.json()["message"]
            assert "disk is full" in person.submit("/study/withdraw").text
            (small / "filler").unlink()
            assert person.send(body).status_code == 200
            assert len(read_records(where, sha256=study.sha256).answers) == kept + 1


def test_a_disk_of_postgresql_that_is_really_full(study: Frozen, tmp_path: Path) -> None:
    """The disk of the tables; its log lies on another, since PostgreSQL itself stops where that one is full."""
    with (
        cluster() as postgresql,
        tempfile.TemporaryDirectory() as place,
        disk(Path(place) / "disk", 48) as small,
    ):
        Path(place).chmod(0o755)
        postgresql.lend(small)
        database = Database(postgresql.address)
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE TABLESPACE small LOCATION '{small}'"))
            connection.execute(text("CREATE DATABASE held TABLESPACE small"))
        database.close()
        where = postgresql.address.rpartition("/")[0] + "/held"
        with client_of(study.path, where) as client:
            people = [Visitor(client).ready() for _ in range(6)]
            trials = [person.next()["trial"] for person in people]
            fill(small / "filler")
            kept, person, reply, body = answer_until_refused(people, trials)
            assert reply.status_code == 507 and "disk is full" in reply.json()["message"]
            assert len(read_records(where, sha256=study.sha256).answers) == kept
            (small / "filler").unlink()
            assert person.send(body).status_code == 200
            assert len(read_records(where, sha256=study.sha256).answers) == kept + 1
        postgresql.die()  # or the file system stays in use
