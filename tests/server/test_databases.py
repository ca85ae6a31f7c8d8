"""Tables and transactions, on SQLite and on PostgreSQL: migrations, enrolments and answers at the same moment."""

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from held import TOKEN, Visitor, answer_to, client_of, frozen_study, site_of
from sqlalchemy import Connection, func, inspect, select, text

from pellucid._checks import ConfigError
from pellucid.server import people, read_records, tables
from pellucid.server.answers import Given, take
from pellucid.server.database import Database
from pellucid.server.enrolment import enrol
from pellucid.server.migrations import migrate
from pellucid.server.opening import open_study
from pellucid.server.people import change, find
from pellucid.server.refusals import Refused, Unsaved
from pellucid.server.screens import Projector
from pellucid.study.frozen import Frozen


def test_a_participation(where: str, study: Frozen) -> None:
    with client_of(study.path, where) as client:
        person = Visitor(client).ready("?PROLIFIC_PID=a").finish()
        left = Visitor(client).ready()
        left.answer(left.next()["trial"])
        left.submit("/study/withdraw")
        desk = Visitor(client)
        desk.post("/experimenter/login", data={"token": TOKEN})
        page = desk.get("/experimenter").text
        assert "1 of 30" in page and "withdrawn" in page
        assert person.get("/study").status_code == 200
    found = read_records(where, sha256=study.sha256)
    assert len(found.answers) == study.study.trials.shown and found == found.ordered()


def test_the_migrations_make_the_tables(where: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    database = Database(where)

    def differences(connection: Connection) -> list[Any]:
        migrate(connection)
        migrate(connection)  # nothing to do the second time
        return compare_metadata(MigrationContext.configure(connection), tables.metadata)

    assert database.write_now(differences) == []
    names = set(database.read_now(lambda c: inspect(c).get_table_names()))
    assert names == {*tables.metadata.tables, "alembic_version"}
    database.write_now(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")).rowcount)
    with pytest.raises(ConfigError, match="newer pellucid"):
        database.write_now(migrate)
    database.close()


def test_enrolments_at_the_same_moment_are_served_evenly(where: str, study: Frozen) -> None:
    """Two servers over one database, twelve participants each, all at once."""
    database = Database(where)
    open_study(database, study, token=TOKEN)
    database.close()

    def one_server() -> None:
        async def all_at_once() -> None:
            mine = Database(where)
            begin = partial(people.begin, study=study.study, external="", test=False, quota=1000)
            names = await asyncio.gather(*(mine.write(begin) for _ in range(12)))
            # Without a turn: every try may be lost to another one.
            await asyncio.gather(*(enrol(mine, study, name, turn=asyncio.Lock()) for name in names))
            mine.close()

        asyncio.run(all_at_once())

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(one_server) for _ in range(2)]:
            done.result()
    database = Database(where)
    counts = select(tables.slot.c.item, func.count()).group_by(tables.slot.c.item)
    served = Counter({row[0]: row[1] for row in database.read_now(lambda c: c.execute(counts).all())})
    per_item = [served[item.id] for item in study.items]
    assert sum(per_item) == 24 * 9 and max(per_item) - min(per_item) <= 2, per_item
    assert database.read_now(lambda c: c.scalar(select(tables.study.c.enrolled))) == 24
    database.close()


def test_the_last_places_are_given_once(where: str, tmp_path: Path) -> None:
    """Two servers, six people each who consent at the same moment, five places."""
    frozen = frozen_study(tmp_path / "few", quota="5")
    database = Database(where)
    open_study(database, frozen, token=TOKEN)
    database.close()

    def one_server() -> list[str]:
        async def all_at_once() -> list[str]:
            mine = Database(where)
            begin = partial(people.begin, study=frozen.study, external="", test=False, quota=1000)
            names = await asyncio.gather(*(mine.write(begin) for _ in range(6)))
            turn = asyncio.Lock()
            told = await asyncio.gather(
                *(enrol(mine, frozen, name, turn=turn) for name in names), return_exceptions=True
            )
            mine.close()
            return [error.code if isinstance(error, Refused) else str(error) for error in told]

        return asyncio.run(all_at_once())

    with ThreadPoolExecutor(2) as pool:
        told = Counter(code for done in [pool.submit(one_server) for _ in range(2)] for code in done.result())
    assert told == {"None": 5, "full": 7}
    database = Database(where)
    assert database.read_now(people.held) == 5
    database.close()


def test_the_same_answer_from_many_tabs_is_stored_once(where: str, study: Frozen) -> None:
    with client_of(study.path, where) as client:
        person = Visitor(client).ready()
        person.next()
        name = person.cookies["participant"].partition(".")[0]
        site = site_of(client)
        screens = site.projector.known(name)
        assert screens is not None

        def given(key: str) -> Given:
            return Given(0, key, "d" * 64, "left", 1.0, 2.0, "1x1", 1.0, 1, (), 0, 0.0)

        def send(key: str) -> str:
            job = partial(take, participant=name, screens=screens, study=study.study, given=given(key))
            try:
                return "repeated" if site.database.write_now(job)[1] else "stored"
            except Refused as refusal:
                return refusal.code

        with ThreadPoolExecutor(8) as pool:
            same = Counter(pool.map(send, ["a"] * 12))
            other = Counter(pool.map(send, [f"b{n}" for n in range(12)]))
        assert same == {"stored": 1, "repeated": 11} and other == {"answered": 12}
    assert len(read_records(where, sha256=study.sha256).answers) == 1


def test_one_faulty_job_spoils_no_other(where: str, study: Frozen) -> None:
    database = Database(where)
    open_study(database, study, token=TOKEN)
    gate = threading.Event()

    def slow(connection: Connection) -> str:
        gate.wait(10)
        return "slow"

    def faulty(connection: Connection) -> None:
        connection.execute(text("INSERT INTO nowhere VALUES (1)"))

    def refused(connection: Connection) -> None:
        raise Refused(409, "no", "no")

    begin = partial(people.begin, study=study.study, external="", test=False, quota=1000)
    jobs = [slow, begin, faulty, begin, refused, begin]
    futures = [
        database._writer.submit(job) for job in jobs
    ]  # they wait together, so they are committed together
    gate.set()
    assert futures[0].result(20) == "slow"
    names = [futures[n].result(20) for n in (1, 3, 5)]
    with pytest.raises(Unsaved):
        futures[2].result(20)
    with pytest.raises(Refused, match="no"):
        futures[4].result(20)
    assert len({database.read_now(partial(find, participant=name)).id for name in names}) == 3
    database.close()


def test_a_reading_job_sees_one_moment(where: str, study: Frozen) -> None:
    """An export made while somebody comes or withdraws holds all of them or nothing of them."""
    database = Database(where)
    open_study(database, study, token=TOKEN)
    count = select(func.count()).select_from(tables.participant)
    begin = partial(people.begin, study=study.study, external="", test=False, quota=1000)

    def reads(connection: Connection) -> tuple[int | None, int | None]:
        before = connection.scalar(count)
        database.write_now(begin)
        return before, connection.scalar(count)

    assert database.read_now(reads) == (0, 0)
    assert database.read_now(lambda c: c.scalar(count)) == 1
    database.close()


def test_a_writer_waits_for_another_process(tmp_path: Path, study: Frozen) -> None:
    where = f"sqlite:///{tmp_path / 'study.db'}"
    first, second = Database(where), Database(where)
    open_study(first, study, token=TOKEN)
    name = first.write_now(partial(people.begin, study=study.study, external="", test=False, quota=9))
    holds, go = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        change(connection, name, comment="first")
        holds.set()
        go.wait(10)

    thread = threading.Thread(target=lambda: first.write_now(hold))
    thread.start()
    assert holds.wait(10)
    threading.Timer(0.3, go.set).start()
    second.write_now(partial(change, participant=name, comment="second"))
    thread.join()
    assert first.read_now(partial(find, participant=name)).comment == "second"
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "no database address"), ("mysql://x/y", "SQLite or PostgreSQL"), ("sqlite://", "forget every answer"),
        ("sqlite:////nowhere/at/all/study.db", "does not exist"),
    ],
)  # fmt: skip
def test_bad_addresses_are_explained(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Database(url)


def test_a_file_that_is_no_database_is_explained(tmp_path: Path, study: Frozen) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be opened"):
        client_of(study.path, f"sqlite:///{tmp_path / 'x.db'}")


def test_answers_survive_a_reopened_file(study: Frozen, tmp_path: Path) -> None:
    where = f"sqlite:///{tmp_path / 'study.db'}"
    with client_of(study.path, where) as client:
        person = Visitor(client).ready()
        body = answer_to(person.next()["trial"])
        person.send(body)
        screens = site_of(client).projector.known(person.cookies["participant"].partition(".")[0])
    database = Database(where)
    keys = open_study(database, study)
    assert screens is not None
    name = person.cookies["participant"].partition(".")[0]
    again = database.read_now(lambda c: Projector(study, keys).load(c, name))
    assert (again.trials, again.main, again.files) == (screens.trials, screens.main, screens.files)
    database.close()
