"""What tests of the server share: a frozen study, a client over a fresh SQLite database, an empty database of either kind."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `web` is not installed")
pytest.importorskip("sqlalchemy", reason="the extra `web` is not installed")

from fastapi.testclient import TestClient
from held import client_of, frozen_study
from postgres import postgres
from sqlalchemy import text

from pellucid.server.database import Database
from pellucid.study.frozen import Frozen


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    return frozen_study(tmp_path_factory.mktemp("study") / "frozen")


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def client(study: Frozen, database: str) -> Iterator[TestClient]:
    with client_of(study.path, database) as made:
        yield made


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a PostgreSQL server."""
    with postgres() as address:
        yield address


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    address = request.getfixturevalue("server")
    name = f"t{uuid.uuid4().hex}"
    database = Database(address)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    database.close()
    return address.rpartition("/")[0] + f"/{name}"
