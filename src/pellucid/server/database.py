"""One way to a database, SQLite or PostgreSQL: jobs that read, and jobs that write and are committed before they return.

A job is a function of a connection. A writing job either raises `Refused` before its first write or completes, so jobs
can share a transaction: one thread takes all jobs that wait and commits them together, since a commit costs a flush to the
disk however much is in it. Several servers over one PostgreSQL are kept apart by its row locks; should two batches ever
lock each other out, PostgreSQL ends one of them, and its jobs are run again one by one.
"""

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from pellucid._checks import ConfigError
from pellucid.server.refusals import Refused, disk_full, unavailable

log = logging.getLogger("pellucid.server")

T = TypeVar("T")
Job = Callable[[Connection], T]

TOGETHER = 64
"""At most so many jobs are committed at once."""
WAIT_MS = 20_000
"""How long to wait for another process that writes to the same SQLite file."""


class Database:
    """Runs jobs on a database, for a program with an event loop."""

    def __init__(self, url: str) -> None:
        parsed = checked_url(url)
        self.engine = open_engine(parsed)
        check_reachable(self.engine)
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="read")
        self._writer = GroupWriter(self.engine)

    async def write(self, job: Job[T]) -> T:
        """Run a job in a transaction; when this returns, what it wrote is on the disk.

        Raises:
            Unsaved: the disk is full, or the database does not answer: nothing of the job was kept.
        """
        return await asyncio.wrap_future(self._writer.submit(job))

    async def read(self, job: Job[T]) -> T:
        """Run a job that writes nothing."""
        return await asyncio.wrap_future(self._readers.submit(self.read_now, job))

    def write_now(self, job: Job[T]) -> T:
        """`write` for programs without an event loop."""
        return self._writer.submit(job).result()

    def read_now(self, job: Job[T]) -> T:
        """`read` for programs without an event loop."""
        # One moment for all statements of the job: an export holds nobody's answers without the person.
        snapshot = {} if self.engine.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        try:
            with self.engine.connect().execution_options(reads=True, **snapshot) as connection:
                return job(connection)
        except SQLAlchemyError as error:
            raise explained(error) from error

    async def forget_deleted(self) -> None:
        """Leave nothing of deleted rows in SQLite's log; in the file itself they were overwritten (`secure_delete`)."""
        if self.engine.name == "sqlite":
            await asyncio.wrap_future(self._readers.submit(self._empty_log))

    def _empty_log(self) -> None:
        connection = self.engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:  # the rows are deleted all the same; the next checkpoint takes the log
            log.warning("the log of the database could not be emptied: %s", error)
        finally:
            connection.close()

    def close(self) -> None:
        """Finish the jobs that wait, then let go of all connections."""
        self._writer.close()
        self._readers.shutdown()
        self.engine.dispose()


class GroupWriter:
    """One thread that commits all waiting jobs at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: SimpleQueue[tuple[Job[Any], Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)
        self._thread.start()

    def submit(self, job: Job[T]) -> "Future[T]":
        """A promise that is kept once the job is committed."""
        future: Future[T] = Future()
        self._queue.put((job, future))
        return future

    def close(self) -> None:
        """Commit what waits and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ended = [first], False
            while len(batch) < TOGETHER and not ended:
                try:
                    another = self._queue.get_nowait()
                except Empty:
                    break
                if another is None:
                    ended = True
                else:
                    batch.append(another)
            self._commit(batch)
            if ended:
                return

    def _commit(self, batch: list[tuple[Job[Any], Future[Any]]], *, again: bool = False) -> None:
        outcomes: list[Any] = []
        try:
            with self._engine.begin() as connection:
                for job, _ in batch:
                    outcomes.append(refusal_or_result(job, connection))
        except Exception as error:
            # One job spoilt the transaction of all: each again by itself, so that only the culprit fails.
            if len(batch) > 1:
                for one in batch:
                    self._commit([one])
            elif isinstance(error, IntegrityError) and not again:
                # Another server wrote the same row first; seen from now on, the job takes that into account.
                self._commit(batch, again=True)
            else:
                batch[0][1].set_exception(explained(error))
            return
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Refused):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


def refusal_or_result(job: Job[T], connection: Connection) -> T | Refused:
    """A refusal ends its own job only: it was raised before the job wrote anything."""
    try:
        return job(connection)
    except Refused as refusal:
        return refusal


def explained(error: Exception) -> Exception:
    """A database's own error as the refusal that a person can be shown; any other error as it is."""
    if not isinstance(error, SQLAlchemyError):
        return error
    cause = error.orig if isinstance(error, DBAPIError) else None
    if (
        getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(cause, "sqlstate", None) == "53100"
    ):
        return disk_full()
    # SQLite reports a write that the file system refused as an I/O error.
    if str(getattr(cause, "sqlite_errorname", "")).startswith("SQLITE_IOERR"):
        return disk_full()
    # Without the statement and what was to be stored: those are nobody's business but the database's.
    log.error("the database: %s", str(cause or type(error).__name__).strip().partition("\n")[0])
    return unavailable()


def checked_url(url: str) -> URL:
    """The parsed address of a database.

    Raises:
        ConfigError: not an address, another kind of database, or SQLite in memory (it would forget every answer).
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            f"{url!r} is no database address; give sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
        ) from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(f"a study is kept in SQLite or PostgreSQL, got {parsed.get_backend_name()!r}")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError("SQLite in memory would forget every answer; give a file: sqlite:///study.db")
    return (
        parsed.set(drivername="postgresql+psycopg") if parsed.get_backend_name() == "postgresql" else parsed
    )


def check_reachable(engine: Engine) -> None:
    """Raise `ConfigError`, with the driver's own reason, where the database cannot be opened."""
    try:
        with engine.connect().execution_options(reads=True) as connection:
            connection.exec_driver_sql("SELECT 1")
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        where = engine.url.render_as_string(hide_password=True)
        raise ConfigError(
            f"the database {where} cannot be opened: {str(cause).strip().splitlines()[0]}"
        ) from error


def open_engine(url: URL) -> Engine:
    """An engine that flushes every commit to the disk and starts SQLite's transactions as writers."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_size=6, max_overflow=0, pool_pre_ping=True, hide_parameters=True)
    file = Path(str(url.database)).absolute()
    if not file.parent.is_dir():
        raise ConfigError(f"the folder of the database does not exist: {file.parent}")
    if not file.exists() and "uri" not in url.query:
        _make_private(file)
    engine = create_engine(url, hide_parameters=True)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_private(file: Path) -> None:
    """An empty file that no other user of this machine can read: it will hold the key that signs links and sessions."""
    try:
        file.touch(mode=0o600)  # SQLite gives the log beside it the same mode
    except OSError as error:
        raise ConfigError(f"the database {file} cannot be made: {error.strerror}") from error


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # or the driver decides when transactions begin
    for pragma in (
        f"busy_timeout={WAIT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON",
    ):  # fmt: skip
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE for writers (a transaction that first reads could not be upgraded when another wrote meanwhile).
    reading = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
