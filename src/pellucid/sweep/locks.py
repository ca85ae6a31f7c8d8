"""Locks between processes and machines, through the file system; a killed process gives its locks up at once."""

import contextlib
from collections.abc import Generator
from pathlib import Path

from pellucid._checks import ConfigError


@contextlib.contextmanager
def held(path: Path) -> Generator[None]:
    """Wait for the lock at `path` and hold it."""
    from filelock import FileLock

    with _supported(path), FileLock(path):
        yield


@contextlib.contextmanager
def claimed(path: Path) -> Generator[bool]:
    """True while this process holds the lock at `path`; False at once when another one does."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    with _supported(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
    try:
        yield True
    finally:
        lock.release()


def is_claimed(path: Path) -> bool:
    """Whether a living process, here or on a machine that shares the folder, holds the lock at `path`."""
    if not path.exists():
        return False
    with claimed(path) as free:
        return not free


@contextlib.contextmanager
def _supported(path: Path) -> Generator[None]:
    try:
        yield
    except NotImplementedError as error:
        raise ConfigError(
            f"the file system of {path} has no file locks ({error}); put the sweep's folder elsewhere"
        ) from None
