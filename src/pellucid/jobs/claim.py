"""What `pellucid claim register | check | ledger` do.

The measure of a claim file is a function `measure(seed, split, **args) -> Measured`: `split` is the text of `[data]
confirmation` when a registered claim is checked, and of `[data] exploration` otherwise. A null with its own `use` is a
function of the same form that gives one world's effect, or its (treated, control) pair, for each seed.
"""

import dataclasses as dc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pellucid._checks import ConfigError
from pellucid.claims import (
    Claim,
    ConfirmationSplit,
    Ledger,
    Measured,
    Registration,
    Row,
    Tally,
    Verdict,
    audit,
    check,
    load_claim,
    register,
    without_numbers,
    write_card,
)

LEDGER = Path("claims.jsonl")


@dc.dataclass(frozen=True)
class Checked:
    """A verdict and where its card lies."""

    verdict: Verdict
    page: Path
    data: Path

    @property
    def exit_code(self) -> int:
        """0 for any verdict, 3 for an invalid one."""
        return 3 if self.verdict.outcome == "invalid" else 0


@dc.dataclass(frozen=True)
class LedgerView:
    """A ledger as it is listed: its claims, their count by verdict, and what is wrong with the chain."""

    rows: tuple[Row, ...]
    tally: Tally
    problems: tuple[str, ...]


def register_file(path: Path | str, *, ledger: Path | str = LEDGER) -> Registration:
    """Register the claim of a file, after making sure that everything it names can be found."""
    claim = load_claim(path)
    _resolve_all(claim)
    return register(claim, ledger, source=_source(path, ledger))


def check_file(
    path: Path | str, *, ledger: Path | str = LEDGER, out: Path | str | None = None, seed: int = 0
) -> Checked:
    """Check the claim of a file and write its card beside it (`FILE.card.html`, `FILE.card.json`).

    A registered claim opens its confirmation split; one that was never registered is checked on the exploration split
    and is exploratory; one that was edited after registration, or whose split was opened early, opens nothing and is
    invalid.
    """
    file, claim = Path(path), load_claim(path)
    registration = _registration_of(claim, path, ledger)
    verdict = _blocked(claim, registration) or _measured(claim, registration, seed)
    page, data = write_card(verdict, Path(out) if out is not None else file.with_name(f"{file.stem}.card"))
    return Checked(verdict, page, data)


def show_ledger(ledger: Path | str = LEDGER) -> LedgerView:
    """All registered claims, abandoned and refuted ones included.

    Raises:
        ConfigError: there is no ledger, or a line cannot be read.
    """
    book = Ledger(ledger)
    if not book.path.exists() and not book.head.exists():
        raise ConfigError(f"there is no ledger at {book.path}; `pellucid claim register FILE` starts one")
    problems = book.verify()
    return LedgerView(tuple(book.rows()), book.tally(), tuple(problems))


def _registration_of(claim: Claim, path: Path | str, ledger: Path | str) -> Registration | None:
    """The claim's own line; else the line of an earlier form of this file, which the audit will tell apart."""
    book = Ledger(ledger)
    plans = [e for e in book.entries() if e.event in ("registered", "amended")]
    own = [e for e in plans if e.claim == claim.sha256]
    same = [
        e
        for e in plans
        if e.body.get("source") == _source(path, ledger)
        or e.body.get("claim", {}).get("statement") == claim.statement
    ]
    found = own[:1] or same[-1:]
    return Registration(found[0].claim, book.path, found[0].number, found[0].time) if found else None


def _blocked(claim: Claim, registration: Registration | None) -> Verdict | None:
    """An invalid verdict before anything is opened, if the ledger already says so."""
    before = audit(claim, registration, digest="")
    return without_numbers(claim, before.invalid, registration=before.hash) if before.invalid else None


def _measured(claim: Claim, registration: Registration | None, seed: int) -> Verdict:
    functions = _resolve_all(claim)
    if registration is not None and not Ledger(registration.ledger).about(registration.hash, "checked"):
        ConfirmationSplit(claim.data.key, lambda: None, registration.ledger).open(registration.hash)
    split = claim.data.exploration if registration is None else claim.data.confirmation
    found = functions[claim.measure.use](seed, split, **claim.measure.args)
    if not isinstance(found, Measured):
        raise ConfigError(
            f"{claim.measure.use} must return pellucid.claims.Measured, got {type(found).__name__}"
        )
    if found.fingerprint and claim.data.fingerprint and found.fingerprint != claim.data.fingerprint:
        why = (
            f"the data are not the registered ones: fingerprint {found.fingerprint[:12]}, registered "
            f"{claim.data.fingerprint[:12]}"
        )
        return without_numbers(claim, (why,), registration=registration.hash if registration else "")
    generated = {plan.name: _world(plan.args, functions[plan.use], split) for plan in claim.nulls if plan.use}
    return check(
        claim,
        found.treated,
        found.control,
        nulls={**found.nulls, **generated},
        positive_control=found.positive_control,
        negative_control=found.negative_control,
        manipulation=found.manipulation,
        registration=registration,
        notes=found.notes,
        seed=seed,
    )


def _world(args: Mapping[str, Any], function: Callable[..., Any], split: str) -> Callable[[int], Any]:
    return lambda seed: function(seed, split, **args)


def _resolve_all(claim: Claim) -> dict[str, Callable[..., Any]]:
    """The functions that the claim names; all are looked up before any runs."""
    from pellucid.recipe import resolve

    if not claim.measure.use:
        raise ConfigError('the claim file names no measure: set use = "module:function" in [measure]')
    names = [claim.measure.use, *(plan.use for plan in claim.nulls if plan.use)]
    return {name: resolve(name) for name in names}


def _source(path: Path | str, ledger: Path | str) -> str:
    """The claim file seen from the ledger's folder, so that both may move together."""
    home = Ledger(ledger).path.parent.resolve()
    file = Path(path).resolve()
    return file.relative_to(home).as_posix() if file.is_relative_to(home) else file.as_posix()
