"""Files that are there whole or not at all, and errors that say what to do when they cannot be written."""

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path

from pellucid._checks import ConfigError

# Kept free beside what is written: a disk filled to the last byte breaks everything else on the machine.
RESERVE = 1 << 20
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to a temporary neighbour, flush it to the disk, then rename it to `path`.

    A reader sees the old file or the new one, never a part; on any failure the temporary file is removed.

    Raises:
        ConfigError: no room, no permission, or another reason that the system gives.
    """
    check_space(path.parent, len(data))
    # Process and thread in the name: two writers of one file do not write into each other's temporary.
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise explained(error, path, needed=len(data)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def check_space(folder: Path, needed: int) -> None:
    """Raise `ConfigError` unless the disk under `folder` (which may not exist yet) has `needed` bytes free."""
    there = existing(folder)
    free = shutil.disk_usage(there).free
    if free < needed + RESERVE:
        raise ConfigError(
            f"not enough room under {there}: {readable(needed)} needed (and {readable(RESERVE)} kept free), "
            f"{readable(free)} free; free some, or write to another disk"
        )


def existing(path: Path) -> Path:
    """The nearest ancestor of `path`, or `path` itself, that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def explained(error: OSError, path: Path, *, needed: int = 0) -> ConfigError:
    """The error of the operating system as a sentence about `path`."""
    why = error.strerror or str(error)
    if error.errno in NO_ROOM:
        with contextlib.suppress(OSError):
            why += f", {readable(shutil.disk_usage(existing(path)).free)} free"
        return ConfigError(
            f"no room to write {path}: {readable(needed)} needed, {why}; no part of it was left behind; "
            "free some room or write to another disk"
        )
    if error.errno in NOT_ALLOWED:
        return ConfigError(
            f"{path} cannot be written: {why}; choose another folder or change its permissions"
        )
    return ConfigError(f"{path} cannot be written: {why}")


def readable(size: int) -> str:
    """A number of bytes for a person: three figures and a unit."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
