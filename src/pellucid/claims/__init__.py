"""Claims that can fail: state one, register it, check it, read its card.

`Claim` -> `register` -> `ConfirmationSplit.open` -> `check` -> `Verdict` -> `write_card`; the `Ledger` keeps them all.
Nothing in this package imports torch.
"""

from pellucid.claims.arms import Measured, Nested, nested, nested_from_flat
from pellucid.claims.calibrate import Calibration, calibrate
from pellucid.claims.card import card_html, card_page, write_card
from pellucid.claims.check import (
    Evidence,
    all_of,
    check,
    check_family,
    check_family_max_t,
    collect,
    conclude,
    evidence,
    judge,
    without_numbers,
)
from pellucid.claims.claim import Analysis, Claim, DataPlan, MeasurePlan, NullPlan, Scope, parse_scope
from pellucid.claims.file import claim_from_dict, load_claim
from pellucid.claims.ledger import Ledger, Row, Tally
from pellucid.claims.registration import (
    Audit,
    ConfirmationSplit,
    Registration,
    amend,
    audit,
    blind,
    register,
    unblind,
)
from pellucid.claims.verdict import Verdict, interval_verdict
from pellucid.claims.words import falsifier

__all__ = [
    "Analysis",
    "Audit",
    "Calibration",
    "Claim",
    "ConfirmationSplit",
    "DataPlan",
    "Evidence",
    "Ledger",
    "MeasurePlan",
    "Measured",
    "Nested",
    "NullPlan",
    "Registration",
    "Row",
    "Scope",
    "Tally",
    "Verdict",
    "all_of",
    "amend",
    "audit",
    "blind",
    "calibrate",
    "card_html",
    "card_page",
    "check",
    "check_family",
    "check_family_max_t",
    "claim_from_dict",
    "collect",
    "conclude",
    "evidence",
    "falsifier",
    "interval_verdict",
    "judge",
    "load_claim",
    "nested",
    "nested_from_flat",
    "parse_scope",
    "register",
    "unblind",
    "without_numbers",
    "write_card",
]
