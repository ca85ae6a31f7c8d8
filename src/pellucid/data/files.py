"""Lists of image files: in a folder, in a tar archive, or in memory."""

import dataclasses as dc
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Protocol, runtime_checkable

from pellucid._checks import DataError
from pellucid.data.columns import natural_key

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


@runtime_checkable
class Files(Protocol):
    """Image files in a fixed order. `names` are relative, with `/`; `where(i)` is for messages."""

    @property
    def names(self) -> Sequence[str]: ...
    def open(self, i: int) -> BufferedIOBase: ...
    def where(self, i: int) -> str: ...


@dc.dataclass(frozen=True)
class FolderFiles:
    """Files under a folder."""

    root: Path
    names: Sequence[str]

    def open(self, i: int) -> BufferedIOBase:
        return (self.root / self.names[i]).open("rb")

    def where(self, i: int) -> str:
        return str(self.root / self.names[i])


@dc.dataclass(frozen=True)
class TarFiles:
    """Members of an uncompressed tar archive, read where they lie; nothing is unpacked."""

    path: Path
    names: Sequence[str]
    spans: Sequence[tuple[int, int]]  # (offset, length)

    def open(self, i: int) -> BufferedIOBase:
        offset, length = self.spans[i]
        with self.path.open("rb") as stream:
            stream.seek(offset)
            return io.BytesIO(stream.read(length))

    def where(self, i: int) -> str:
        return f"{self.path}:{self.names[i]}"


@dc.dataclass(frozen=True)
class MemoryFiles:
    """Files held as bytes, from a compressed archive or a table."""

    origin: str
    names: Sequence[str]
    contents: Sequence[bytes]

    def open(self, i: int) -> BufferedIOBase:
        return io.BytesIO(self.contents[i])

    def where(self, i: int) -> str:
        return f"{self.origin}:{self.names[i]}"


def is_archive(path: Path) -> bool:
    """Whether the name is that of a tar archive."""
    return path.name.lower().endswith(ARCHIVES)


def list_folder(root: Path) -> FolderFiles:
    """Every image under `root` in natural order; hidden files and folders are left out, links are followed."""
    names: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, onerror=_raise, followlinks=True):
        state = Path(folder).stat()
        if (state.st_dev, state.st_ino) in seen:  # a link back to a folder that was visited
            subfolders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        subfolders[:] = [name for name in subfolders if _visible(name)]
        relative = Path(folder).relative_to(root)
        names += [(relative / name).as_posix() for name in files if _visible(name) and _is_image(name)]
    return FolderFiles(root, sorted(names, key=natural_key))


def list_archive(path: Path) -> TarFiles | MemoryFiles:
    """Every image in a tar archive in natural order. A compressed archive is read into memory."""
    found: list[tuple[str, int, int, bytes]] = []
    try:
        with tarfile.open(path) as archive:
            compressed = not isinstance(archive.fileobj, io.BufferedReader)  # whatever its name says
            for member in archive:
                name = member.name.removeprefix("./")
                if not member.isreg() or member.issparse() or not _is_image(name):
                    continue
                if not all(_visible(part) for part in name.split("/")):
                    continue
                stream = archive.extractfile(member) if compressed else None
                found.append((name, member.offset_data, member.size, stream.read() if stream else b""))
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"cannot read archive {path}: {error}; expected one of {list(ARCHIVES)}") from error
    found.sort(key=lambda entry: natural_key(entry[0]))
    names = [name for name, *_ in found]
    if compressed:
        return MemoryFiles(str(path), names, [content for *_, content in found])
    return TarFiles(path, names, [(offset, length) for _, offset, length, _ in found])


def _raise(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from error


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)
