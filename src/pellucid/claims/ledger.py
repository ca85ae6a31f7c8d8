"""The project's ledger: an append-only `claims.jsonl` in which every line carries the hash of the line before.

Registered, refuted and abandoned claims all stay in it. `verify` finds edited, deleted and reordered lines, and, with
the small `.head` file beside the ledger, lines cut from its end. Who rewrites both files from some line on leaves no
trace in them: commit or publish the head hash to rule that out too.
"""

import contextlib
import dataclasses as dc
import datetime as dt
import hashlib
import json
import os
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pellucid._checks import ConfigError
from pellucid.claims.claim import canonical_json

Event = Literal["registered", "amended", "opened", "looked", "checked", "abandoned", "blinded", "unblinded"]

START = "0" * 64
"""What the first line carries in place of a previous hash."""

LOCK_SECONDS = 20.0


@dc.dataclass(frozen=True)
class Entry:
    """One line: what happened to which claim, when, and the hashes that chain it."""

    number: int
    time: str
    event: str
    claim: str
    body: Mapping[str, Any]
    previous: str
    hash: str


@dc.dataclass(frozen=True)
class Row:
    """One registered claim as the ledger shows it; `verdict` never without its rung."""

    number: int
    time: str
    claim: str
    statement: str
    scope: str
    status: str
    verdict: str
    source: str


@dc.dataclass(frozen=True)
class Tally:
    """How many claims were registered and what became of them."""

    registered: int
    supported: int
    refuted: int
    inconclusive: int
    invalid: int
    abandoned: int

    @property
    def ratio(self) -> float:
        """supported / registered; NaN for an empty ledger."""
        return self.supported / self.registered if self.registered else float("nan")

    @property
    def open(self) -> int:
        """Registered and not yet decided."""
        return (
            self.registered
            - self.supported
            - self.refuted
            - self.inconclusive
            - self.invalid
            - self.abandoned
        )


class Ledger:
    """Reads and appends to one ledger file. Nothing in it is ever rewritten."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            self.path = self.path / "claims.jsonl"

    @property
    def head(self) -> Path:
        """The file that holds number and hash of the last line."""
        return self.path.with_name(self.path.name + ".head")

    def append(self, event: Event, claim: str, body: Mapping[str, Any]) -> Entry:
        """Add one line and return it.

        Raises:
            ConfigError: the ledger is damaged (see `verify`), or another process keeps it locked.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if problems := self.verify():
                raise ConfigError(f"{self.path} is damaged, nothing was added: {problems[0]}")
            before = self.entries()
            content = {
                "number": len(before) + 1,
                "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                "event": event,
                "claim": claim,
                "body": dict(body),
                "previous": before[-1].hash if before else START,
            }
            entry = _entry({**content, "hash": _digest(content)})
            with self.path.open("a", encoding="utf-8") as file:
                file.write(canonical_json(dc.asdict(entry)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.head.write_text(f"{entry.number} {entry.hash}\n", encoding="utf-8")
        return entry

    def entries(self) -> list[Entry]:
        """All lines in order; empty where there is no ledger yet.

        Raises:
            ConfigError: a line is not one this library wrote.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [_parse(line, self.path, i) for i, line in enumerate(lines, 1) if line.strip()]

    def about(self, claim: str, event: Event | None = None) -> list[Entry]:
        """Lines about one claim (by hash), all events or one."""
        return [e for e in self.entries() if e.claim == claim and event in (None, e.event)]

    def verify(self) -> list[str]:
        """What is wrong with the chain, line by line; empty when it is intact."""
        try:
            entries = self.entries()
        except ConfigError as error:
            return [str(error)]
        problems: list[str] = []
        previous = START
        for place, entry in enumerate(entries, 1):
            content = {k: v for k, v in dc.asdict(entry).items() if k != "hash"}
            if _digest(content) != entry.hash:
                problems.append(f"line {place} was edited after it was written")
            if entry.number != place or entry.previous != previous:
                problems.append(
                    f"line {place} does not follow line {place - 1}: a line was deleted, added or moved"
                )
            previous = entry.hash
        return problems + self._verify_head(entries)

    def _verify_head(self, entries: list[Entry]) -> list[str]:
        if not self.head.exists():
            return [f"{self.head.name} is missing: lines may have been cut from the end"] if entries else []
        number, _, digest = self.head.read_text(encoding="utf-8").strip().partition(" ")
        if not entries:
            return [f"the ledger had {number} lines and is empty or gone"]
        if entries[-1].hash != digest:
            return [
                f"the last line is not the last that was written (line {number}): lines were cut or added"
            ]
        return []

    def rows(self) -> list[Row]:
        """Every registered claim, oldest first, with what became of it.

        Raises:
            ConfigError: a line lacks what this library writes.
        """
        entries = self.entries()
        try:
            return [_row(entry, entries) for entry in entries if entry.event == "registered"]
        except (KeyError, TypeError) as error:
            problems = self.verify() or [f"a line lacks {error}"]
            raise ConfigError(f"{self.path} cannot be listed: {problems[0]}") from error

    def tally(self) -> Tally:
        """Counts over all registered claims, abandoned and refuted ones included."""
        rows = self.rows()
        count = {
            word: sum(row.status == word for row in rows)
            for word in ("supported", "refuted", "inconclusive", "invalid", "abandoned")
        }
        return Tally(registered=len(rows), **count)

    def abandon(self, claim: str, *, reason: str) -> Entry:
        """Record that a registered claim will not be checked, and why. It stays in the ledger."""
        if not self.about(claim, "registered"):
            raise ConfigError(
                f"claim {claim[:12]} is not registered in {self.path}, so there is nothing to abandon"
            )
        return self.append("abandoned", claim, {"reason": reason})

    def look(self, claim: str, *, n: int, evalue: float) -> Entry:
        """Record an interim look: how many replicates had come and what the e-value was."""
        return self.append("looked", claim, {"n": n, "evalue": evalue})

    @contextlib.contextmanager
    def _lock(self) -> Generator[None]:
        lock = self.path.with_name(self.path.name + ".lock")
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                break
            except FileExistsError:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{lock} has been there for {LOCK_SECONDS:.0f} s: another process is writing, or one died; "
                        f"remove the file if none is running"
                    ) from None
                time.sleep(0.01)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _entry(fields: Mapping[str, Any]) -> Entry:
    return Entry(**{field.name: fields[field.name] for field in dc.fields(Entry)})


def _parse(line: str, path: Path, place: int) -> Entry:
    try:
        fields: Any = json.loads(line)
        return _entry(cast("Mapping[str, Any]", fields))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"line {place} of {path} is not a ledger line: {error}") from error


def _row(entry: Entry, entries: list[Entry]) -> Row:
    """Follow a registration through its amendments to its verdict: the first confirmatory one, which stands."""
    hashes, status, verdict, stands = {entry.claim}, "registered", "", False
    body: Mapping[str, Any] = entry.body
    for later in entries[entry.number :]:
        if later.event == "amended" and later.body["from"] in hashes:
            hashes.add(later.claim)
            body = {**body, **later.body}
        elif later.claim in hashes and later.event == "abandoned":
            status = "abandoned"
        elif later.claim in hashes and later.event == "checked" and not stands:
            status, verdict = str(later.body["outcome"]), str(later.body["headline"])
            stands = later.body["label"] == "confirmatory"
    claim = body["claim"]
    scope = f"{claim['scope']['level']}: {claim['scope']['subject']}"
    return Row(
        entry.number,
        entry.time,
        entry.claim,
        claim["statement"],
        scope,
        status,
        verdict,
        str(body.get("source", "")),
    )
