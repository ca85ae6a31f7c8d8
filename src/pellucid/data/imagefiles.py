"""Examples that are image files, decoded when they are asked for."""

import dataclasses as dc
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid._checks import DataError
from pellucid.data.examples import Gathered, feed
from pellucid.data.files import Files
from pellucid.data.images import Header, Look, decode, peek

READERS = 8  # threads that read headers; they mostly wait for the disk
AHEAD = 2048  # headers read at a time


@dc.dataclass(frozen=True)
class ImageExamples:
    """Image files of one shape. `skipped` fills as unreadable ones are met, where they may be skipped."""

    files: Files
    look: Look
    shape: tuple[int, int, int]
    targets: Int[Tensor, " n"] | None
    skip_unreadable: bool
    skipped: dict[int, tuple[str, str]]

    def __len__(self) -> int:
        return len(self.files.names)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        return self._decode(i), None if self.targets is None else int(self.targets[i])

    def labels(self) -> Tensor | None:
        return self.targets

    def gather(self, index: Int[Tensor, " batch"], *, seed: int, epoch: int) -> Gathered:  # noqa: ARG002
        rows: list[Tensor] = []
        kept: list[int] = []
        asked: list[int] = index.tolist()
        for place, i in enumerate(asked):
            if i in self.skipped:
                continue
            try:
                rows.append(self._decode(i))
            except DataError as error:
                if not self.skip_unreadable:
                    raise
                self.skipped[i] = (self.files.names[i], _reason(error))
                continue
            kept.append(place)
        chosen = torch.tensor(kept, dtype=torch.int64)
        inputs = torch.stack(rows) if rows else torch.empty((0, *self.shape))
        return Gathered(inputs, None if self.targets is None else self.targets[index[chosen]], chosen)

    def digest(self, index: Int[Tensor, " batch"]) -> str:
        sha = hashlib.sha256(repr(dc.astuple(self.look)).encode())
        for i in index.tolist():
            with self.files.open(i) as stream:
                sha.update(hashlib.sha256(stream.read()).digest())
        feed(sha, None if self.targets is None else self.targets[index])
        return sha.hexdigest()

    def _decode(self, i: int) -> Float[Tensor, "channels height width"]:
        try:
            with self.files.open(i) as stream:
                x = decode(stream, self.look)
        except Exception as error:  # decoders fail with errors of many types on broken files
            raise unreadable(self.files, i, error) from error
        if tuple(x.shape) != self.shape:
            raise unreadable(self.files, i, f"has shape {tuple(x.shape)}, the others {self.shape}")
        return x


def image_examples(
    files: Files, look: Look, *, targets: Int[Tensor, " n"] | None, skip_unreadable: bool = False
) -> ImageExamples:
    """Look at the header of every file, so that wrong files are met before any long work, and fix the common shape.

    Raises:
        DataError: a file is no image or is truncated (unless `skip_unreadable`), images differ in size and no size
            is given, or grey and colour images are mixed and `channels` is not given.
    """
    skipped: dict[int, tuple[str, str]] = {}
    first: dict[object, int] = {}
    for i, found in enumerate(_headers(files)):
        if isinstance(found, Header):
            kind = (found.channels if look.channels is None else look.channels,)
            first.setdefault(kind if look.size else (*kind, found.height, found.width), i)
        elif skip_unreadable:
            skipped[i] = (files.names[i], _reason(found))
        else:
            raise found
    if not first:
        raise DataError(
            f"none of the {len(files.names)} images can be read; the first: {next(iter(skipped.values()))}"
        )
    shape = _common_shape(files, look, list(first.values()))
    return ImageExamples(files, look, shape, targets, skip_unreadable, skipped)


def unreadable(files: Files, i: int, error: Exception | str) -> DataError:
    """The error for a file that cannot be used."""
    reason = str(error) or type(error).__name__
    return DataError(
        f"cannot read image {files.where(i)}: {reason}\n"
        "remove or replace it, or let unreadable images be skipped and listed (--skip-unreadable)"
    )


def _headers(files: Files) -> Iterator[Header | DataError]:
    """Header or error of every file, in order; some thousands are read ahead at most."""
    n = len(files.names)
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, n, AHEAD):
            yield from pool.map(lambda i: _look_at(files, i), range(start, min(start + AHEAD, n)))


def _look_at(files: Files, i: int) -> Header | DataError:
    try:
        with files.open(i) as stream:
            header = peek(stream)
        if not header.whole:  # perhaps only a file with something appended: decoding it decides
            with files.open(i) as stream:
                decode(stream, Look())
    except Exception as error:  # decoders fail with errors of many types on broken files
        return unreadable(files, i, error)
    return header


def _common_shape(files: Files, look: Look, kinds: Sequence[int]) -> tuple[int, int, int]:
    """The one shape of all images; `kinds` holds the first image of each kind that was met."""
    found: list[Header] = []
    for i in kinds[:2]:
        with files.open(i) as stream:
            found.append(peek(stream))
    if len(found) == 2:
        (a, b), (i, j) = found, kinds[:2]
        if look.channels is None and a.channels != b.channels:
            raise DataError(
                f"grey and colour images are mixed: {files.where(i)} is {a.channels}, {files.where(j)} is {b.channels}; "
                "say which to make of them, e.g. folder:PATH?channels=rgb (or grey)"
            )
        raise DataError(
            f"images of unequal size: {files.where(i)} is {a.height}x{a.width}, {files.where(j)} is "
            f"{b.height}x{b.width} (height x width); give one size for all, e.g. --size 224"
        )
    channels = look.channels or found[0].channels
    size = look.size or (found[0].height, found[0].width)
    return {"grey": 1, "rgb": 3}[channels], *size


def _reason(error: DataError) -> str:
    """The cause alone: the file is named beside it."""
    return str(error.__cause__ or error).splitlines()[0]
