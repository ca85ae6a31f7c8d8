"""A PostgreSQL server of its own on loopback, from Debian's packages; skips with the reason where there is none."""

import dataclasses as dc
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import free_port


def programs() -> Path:
    """The folder of `initdb` and `pg_ctl`, or a skip."""
    for found in (
        shutil.which("pg_ctl"),
        *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), reverse=True),
    ):
        if found and (Path(found).resolve().parent / "initdb").exists():
            return Path(found).resolve().parent
    pytest.skip("no PostgreSQL on this machine (Debian: apt-get install postgresql)")


def owner() -> str | None:
    """Who runs it: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    pytest.skip("PostgreSQL does not run as root, and there is no other user")


@dc.dataclass(frozen=True)
class Cluster:
    """A PostgreSQL server that a test can let die."""

    folder: Path
    user: str | None
    home: Path
    port: int

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def address(self) -> str:
        return f"postgresql+psycopg://study@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *options: str) -> None:
        environment = {**os.environ, "HOME": str(self.home), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [str(self.folder / program), "-D", str(self.data), *options],
            user=self.user,
            cwd=self.home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            text=True,
        )
        assert done.returncode == 0, done.stdout

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.home} -c shared_buffers=32MB"
        self.run("pg_ctl", "-w", "-t", "60", "-l", str(self.home / "log"), "-o", options, "start")

    def die(self) -> None:
        """End every process at once, without a word to anybody: what was committed has to be recovered from the log."""
        self.run("pg_ctl", "-m", "immediate", "-w", "stop")

    def lend(self, folder: Path) -> None:
        """Give a folder to the user that PostgreSQL runs as."""
        if self.user:
            os.chown(folder, pwd.getpwnam(self.user).pw_uid, -1)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A running server with an empty database; it and its files are gone afterwards."""
    folder, user = programs(), owner()
    made = Cluster(folder, user, Path(tempfile.mkdtemp(prefix="pellucid-pg-")), free_port())
    made.lend(made.home)
    try:
        made.run("initdb", "-U", "study", "-A", "trust", "-E", "UTF8")
        made.start()
        yield made
    finally:
        if (made.data / "postmaster.pid").exists():
            made.die()
        shutil.rmtree(made.home, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database; the server and its files are gone afterwards."""
    with cluster() as made:
        yield made.address
