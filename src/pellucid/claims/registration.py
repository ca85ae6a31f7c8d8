"""Registration: the claim's hash goes into the ledger before the confirmation split is opened.

`register` writes the claim with time, code and versions. A `ConfirmationSplit` hands out its data once for each
registered hash and logs it. `audit` then tells a confirmatory verdict from an exploratory and an invalid one.
"""

import dataclasses as dc
import hashlib
import importlib.metadata
import importlib.util
import logging
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from pellucid._checks import ConfigError
from pellucid.claims.claim import Claim, canonical_json
from pellucid.claims.ledger import Entry, Ledger
from pellucid.claims.power import power_before
from pellucid.claims.words import falsifier
from pellucid.rng import stream

log = logging.getLogger(__name__)

T = TypeVar("T")


@dc.dataclass(frozen=True)
class Registration:
    """Receipt: which hash stands in which line of which ledger."""

    hash: str
    ledger: Path
    line: int
    time: str


@dc.dataclass(frozen=True)
class Audit:
    """What the ledger says about a check: why it is invalid, what deviates, which amendments were made."""

    invalid: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    amendments: tuple[str, ...] = ()
    hash: str = ""


NO_AUDIT = Audit()
"""What the ledger says about a claim that was never registered: nothing."""


def register(claim: Claim, ledger: Ledger | Path | str, *, source: str = "") -> Registration:
    """Write the claim into the ledger and return its receipt; the same claim twice is one registration.

    Args:
        source: the claim file, if there is one, so that a later edit of the file is recognised.

    Raises:
        ConfigError: no reason for delta, no confirmation split, or no null for a claim that must beat one.
    """
    book = _book(ledger)
    _check_complete(claim)
    known = [e for e in book.entries() if e.claim == claim.sha256 and e.event in ("registered", "amended")]
    if known:
        return _receipt(known[0], book)
    opened = _openings(book.entries(), claim.data.key)
    if opened:
        log.warning(
            "the confirmation split %r was opened in line %d, before this registration: a verdict will be invalid",
            claim.data.key,
            opened[0].number,
        )
    return _receipt(book.append("registered", claim.sha256, _record(claim, source)), book)


def amend(registration: Registration, claim: Claim, *, reason: str) -> Registration:
    """Register a changed plan in place of an earlier one. The earlier one stays in the ledger.

    Before the confirmation split is opened an amendment is free; afterwards the verdict is exploratory.
    """
    _check_complete(claim)
    if not reason.strip():
        raise ConfigError("an amendment needs a reason")
    if claim.sha256 == registration.hash:
        raise ConfigError("the amended claim is the registered one: no field differs")
    book = Ledger(registration.ledger)
    record = {**_record(claim, ""), "from": registration.hash, "reason": reason}
    record.pop("source")
    return _receipt(book.append("amended", claim.sha256, record), book)


class ConfirmationSplit(Generic[T]):
    """Data behind a gate: opened once for each registered claim, by presenting its hash; every opening is logged.

    Args:
        key: the split's name, equal to `claim.data.key` (`"spec:confirmation"`).
        load: gives the data; not called before the gate opens.
    """

    def __init__(self, key: str, load: Callable[[], T], ledger: Ledger | Path | str) -> None:
        self.key = key
        self._load = load
        self._book = _book(ledger)

    def open(self, claim_hash: str) -> T:
        """The data, for a registered claim whose verdict is not yet known.

        Raises:
            ConfigError: the hash is not registered, names another split, or the claim has its verdict already.
        """
        plans = [e for e in self._book.about(claim_hash) if e.event in ("registered", "amended")]
        if not plans:
            raise ConfigError(
                f"hash {claim_hash[:12]} is not registered in {self._book.path}: register the claim first"
            )
        data = plans[0].body["claim"]["data"]
        planned = f"{data['spec']}:{data['confirmation']}"
        if planned != self.key:
            raise ConfigError(
                f"claim {claim_hash[:12]} was registered for split {planned!r}, not {self.key!r}"
            )
        if done := self._book.about(claim_hash, "checked"):
            raise ConfigError(
                f"claim {claim_hash[:12]} has its verdict (line {done[0].number}); a split is opened once for a claim"
            )
        self._book.append("opened", claim_hash, {"split": self.key})
        return self._load()

    def open_without_claim(self, *, reason: str) -> T:
        """The data for looking around. Logged; claims registered later on this split are invalid."""
        self._book.append("opened", "", {"split": self.key, "reason": reason})
        return self._load()


def audit(claim: Claim, registration: Registration | None, *, digest: str) -> Audit:
    """Compare a check with the ledger.

    Args:
        digest: hash of the data of this check; the same data may be checked again, other data may not.
    """
    if registration is None:
        return NO_AUDIT
    book = Ledger(registration.ledger)
    if problems := book.verify():
        return Audit(
            invalid=tuple(f"the ledger was tampered with: {p}" for p in problems), hash=registration.hash
        )
    entries = book.entries()
    plan = next(
        (e for e in entries if e.claim == registration.hash and e.event in ("registered", "amended")), None
    )
    if plan is None:
        return Audit(
            invalid=(f"hash {registration.hash[:12]} is not in the ledger {book.path}",),
            hash=registration.hash,
        )
    if claim.sha256 != registration.hash:
        changed = ", ".join(changed_fields(plan.body["claim"], claim.to_dict())) or "nothing that is stored"
        why = f"the claim is not the registered one: {changed} changed after registration (hash mismatch)"
        return Audit(invalid=(why,), hash=registration.hash)
    chain = _chain(entries, plan)
    early = [e for e in _openings(entries, claim.data.key) if e.number < chain[0].number]
    if early:
        why = f"the confirmation split was opened in line {early[0].number}, before registration in line {chain[0].number}"
        return Audit(invalid=(why,), hash=registration.hash)
    return Audit(
        deviations=tuple(_deviations(claim, plan, chain, book=book, digest=digest)),
        amendments=tuple(f"line {e.number}: {e.body['reason']}" for e in chain[1:]),
        hash=registration.hash,
    )


def _deviations(claim: Claim, plan: Entry, chain: list[Entry], *, book: Ledger, digest: str) -> list[str]:
    entries, found = book.entries(), list[str]()
    hashes, openings = {e.claim for e in chain}, _openings(entries, claim.data.key)
    if not any(e.claim in hashes for e in openings):
        found.append("the confirmation split was not opened through the ledger")
    if openings and plan.number > openings[0].number:
        found.append(f"the plan was amended (line {plan.number}) after the confirmation split was opened")
    done = [e for e in entries if e.event == "checked" and e.claim in hashes]
    if other := [e for e in done if not same_check(str(e.body["digest"]), digest)]:
        found.append(
            f"a verdict on other numbers, null worlds or another seed was recorded before (line {other[0].number})"
        )
    if claim_code(claim) != plan.body["code"]:
        names = ", ".join(_used(claim))
        found.append(f"the code of {names} changed after registration")
    return found


def _chain(entries: list[Entry], plan: Entry) -> list[Entry]:
    """The registration that a plan goes back to, then its amendments up to the plan."""
    chain = [plan]
    while chain[0].event == "amended":
        chain.insert(
            0,
            next(
                e
                for e in entries
                if e.claim == chain[0].body["from"] and e.event in ("registered", "amended")
            ),
        )
    return chain


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Dotted names of the fields in which two claims (as plain values) differ."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += changed_fields(before, after, f"{where}{key}.")
        elif canonical_json(before) != canonical_json(after):
            found.append(where + key)
    return found


def same_check(recorded: str, now: str) -> bool:
    """Whether two digests of `digest_of` are of one check; the oldest ledgers keep the measured numbers' part alone."""
    return recorded == now or (":" not in recorded and now.startswith(f"{recorded}:"))


def _used(claim: Claim) -> list[str]:
    """The functions that a claim names: its measure, and those of its nulls."""
    return list(dict.fromkeys(use for use in (claim.measure.use, *(null.use for null in claim.nulls)) if use))


def claim_code(claim: Claim) -> str:
    """SHA-256 of the source files behind a claim's functions; of the one file itself where it is one."""
    hashes = list(dict.fromkeys(code_hash(use) for use in _used(claim)))
    return (
        hashes[0]
        if len(hashes) == 1
        else hashlib.sha256("".join(hashes).encode()).hexdigest()
        if hashes
        else ""
    )


def code_hash(use: str) -> str:
    """SHA-256 of the source file behind `module:function`; empty where there is none. Runs no code of a plain module."""
    if not use:
        return ""
    name = use.partition(":")[0]
    try:
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return ""
    file = None if spec is None else spec.origin
    if file is None or not Path(file).is_file():
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a verdict may depend on."""
    found = {"python": platform.python_version()}
    for name in ("pellucid", "numpy", "scipy", "torch", "scikit-learn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def blind(names: Iterable[str], ledger: Ledger | Path | str, claim_hash: str, *, seed: int) -> dict[str, str]:
    """Random names for the arms (true name -> "arm A"), sealed in the ledger by the hash of the mapping.

    Analyse under the new names; `unblind` then records the mapping and shows that it is the sealed one.
    """
    true = sorted(names)
    order = stream(seed, "blind", claim_hash).permutation(len(true))
    mapping = {name: f"arm {chr(ord('A') + int(k))}" for name, k in zip(true, order, strict=True)}
    _book(ledger).append("blinded", claim_hash, {"seal": _seal(mapping, seed)})
    return mapping


def unblind(mapping: Mapping[str, str], ledger: Ledger | Path | str, claim_hash: str, *, seed: int) -> Entry:
    """Record the true names.

    Raises:
        ConfigError: this is not the mapping that was sealed.
    """
    book, seal = _book(ledger), _seal(mapping, seed)
    if not any(e.body["seal"] == seal for e in book.about(claim_hash, "blinded")):
        raise ConfigError("this is not the mapping that was sealed when the arms were blinded")
    return book.append("unblinded", claim_hash, {"mapping": dict(mapping), "seal": seal})


def _seal(mapping: Mapping[str, str], seed: int) -> str:
    return hashlib.sha256(canonical_json({"mapping": dict(mapping), "seed": seed}).encode()).hexdigest()


def _book(ledger: Ledger | Path | str) -> Ledger:
    return ledger if isinstance(ledger, Ledger) else Ledger(ledger)


def _receipt(entry: Entry, book: Ledger) -> Registration:
    return Registration(entry.claim, book.path, entry.number, entry.time)


def _openings(entries: list[Entry], key: str) -> list[Entry]:
    return [e for e in entries if e.event == "opened" and e.body["split"] == key]


def _record(claim: Claim, source: str) -> dict[str, Any]:
    power = power_before(claim)
    return {
        "claim": claim.to_dict(),
        "falsifier": falsifier(claim),
        "power": None if power is None else dc.asdict(power),
        "versions": versions(),
        "code": claim_code(claim),
        "source": source,
    }


def _check_complete(claim: Claim) -> None:
    if not claim.reason.strip():
        raise ConfigError(
            f"say in one line why delta = {claim.delta:g} {claim.unit} is the smallest effect that counts"
        )
    if not claim.data.confirmation:
        raise ConfigError(
            "a registered claim names the confirmation split that it will open: set data.confirmation"
        )
    if claim.data.confirmation.strip() == claim.data.exploration.strip():
        raise ConfigError(
            f"exploration and confirmation are both {claim.data.confirmation!r}: a claim found on a split cannot be confirmed "
            "on it; name data that has not been looked at"
        )
    if claim.kind in ("exceeds", "specific") and not claim.nulls:
        raise ConfigError(
            f"a registered {claim.kind!r} claim names at least one null: worlds in which it is false, e.g. untrained twins, "
            f"permuted labels, random units of the same size"
        )
