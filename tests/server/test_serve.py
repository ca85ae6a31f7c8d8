"""The commands: what is told at the start, what is refused, and that help loads nothing heavy."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from running import free_port

from pellucid._checks import ConfigError
from pellucid.jobs.study_serve import Place, check_place, default_database, is_loopback, links
from pellucid.jobs.study_simulate import Crowd, check_crowd, wait_for
from pellucid.study.frozen import Frozen


@pytest.mark.parametrize(
    "place",
    [
        Place(host="0.0.0.0"), Place(url="http://study.example.org"), Place(host="192.168.1.2", port=80),
        Place(host="0.0.0.0", url="http://127.0.0.1:8000"),
    ],
    ids=str,
)  # fmt: skip
def test_no_login_crosses_a_network_in_the_clear(place: Place) -> None:
    with pytest.raises(ConfigError, match="unencrypted"):
        check_place(place)


@pytest.mark.parametrize(
    ("place", "url"),
    [
        (Place(), "http://127.0.0.1:8000"),
        (Place(host="::1"), "http://[::1]:8000"),
        (Place(host="localhost", port=81), "http://localhost:81"),
        (Place(host="0.0.0.0", url="https://study.example.org"), "https://study.example.org"),
        (Place(host="0.0.0.0", plain_http=True), "http://0.0.0.0:8000"),
    ],
    ids=str,
)
def test_safe_places_are_served(place: Place, url: str) -> None:
    check_place(place)
    assert place.public_url == url


def test_the_token_is_told_once() -> None:
    first, later = links("Study", Place(), "secret"), links("Study", Place(), "")
    assert any("secret" in line for line in first) and not any("secret" in line for line in later)
    assert any("http://127.0.0.1:8000/experimenter" in line for line in later)
    assert Place(host="::1", port=1).public_url == "http://[::1]:1"
    assert not is_loopback("example.org")


def test_crowds_are_checked() -> None:
    with pytest.raises(ConfigError, match="got \\['sleepy'\\]"):
        check_crowd(Crowd({"sleepy": 3}))
    with pytest.raises(ConfigError, match="at least one"):
        check_crowd(Crowd({"random": 0}))
    with pytest.raises(ConfigError, match="without pictures nobody can be attentive"):
        check_crowd(Crowd({"attentive": 1}, images=False))
    check_crowd(Crowd({"attentive": 0, "random": 1}, images=False))


@contextmanager
def served(study: Frozen, database: str, *options: str) -> Iterator[tuple[str, str]]:
    """`pellucid study serve` as a person runs it: (its address, the token it printed or "")."""
    port = free_port()
    command = [
        sys.executable,
        "-u",
        "-m",
        "pellucid",
        "study",
        "serve",
        str(study.path),
        "--database",
        database,
    ]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options], stdout=said, stderr=said, text=True
        )
        try:
            wait_for(process, port)
            said.seek(0)
            told = dict(line.split(maxsplit=1) for line in said.read().splitlines() if line.startswith("  "))
            yield told["participants"].strip().rstrip("/"), told.get("token", "").strip()
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0, "Ctrl-C is how a study is ended"


@pytest.mark.slow
def test_the_token_is_printed_once_and_logs_in(study: Frozen, database: str) -> None:
    def logs_in(address: str, token: str) -> bool:
        return (
            httpx.post(f"{address}/experimenter/login", data={"token": token}, trust_env=False).status_code
            == 303
        )

    with served(study, database) as (address, token):
        assert len(token) >= 32 and logs_in(address, token) and not logs_in(address, token[:-1])
    with served(study, database) as (address, none):
        assert none == "" and logs_in(address, token)
    with served(study, database, "--new-token") as (address, new):
        assert new not in ("", token) and logs_in(address, new) and not logs_in(address, token)
    stored = Path(database.removeprefix("sqlite:///")).read_bytes()
    assert token.encode() not in stored and new.encode() not in stored


@pytest.mark.slow
def test_a_taken_port_and_a_folder_that_is_no_study(study: Frozen, tmp_path: Path) -> None:
    import socket

    def serve(folder: Path, port: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pellucid", "study", "serve", str(folder), "--port", str(port)]
        command += ["--database", f"sqlite:///{tmp_path / 'study.db'}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    empty = serve(tmp_path, free_port())
    assert empty.returncode == 2 and "no frozen study" in empty.stderr and "Traceback" not in empty.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = serve(study.path, taken.getsockname()[1])
    assert done.returncode == 2 and "cannot listen" in done.stderr and "Traceback" not in done.stderr
    assert default_database(study.path).endswith("frozen/study.db")
