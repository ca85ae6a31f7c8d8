"""Claim files: TOML that a person writes by hand, read into a `Claim`; unknown keys are refused, nearest name given.

[claim]     statement scope kind delta reason, and optionally effect unit direction intervention prediction
            positive_control manipulation
[measure]   use args
[data]      spec exploration confirmation fingerprint examples
[[nulls]]   name worlds form search use args
[analysis]  interval alpha models images sd paired family family_size doses ...
"""

import dataclasses as dc
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pellucid._checks import ConfigError, check_one_of, nearest
from pellucid.claims.claim import SCHEMA, Analysis, Claim, DataPlan, MeasurePlan, NullPlan, Scope, parse_scope

T = TypeVar("T")

SECTIONS = ("claim", "measure", "data", "nulls", "analysis")
NESTED_FIELDS = ("scope", "measure", "data", "nulls", "analysis")


def load_claim(path: Path | str) -> Claim:
    """Read a claim file.

    Raises:
        ConfigError: no such file, no TOML, an unknown or missing key, a value of another type, or a claim that cannot
            be decided.
    """
    file = Path(path)
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the claim file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    _known(tree, SECTIONS, f"{file.name}")
    if "claim" not in tree:
        raise ConfigError(f"{file.name} has no [claim] table; it needs statement, scope, kind, delta, reason")
    head = _table(tree["claim"], "[claim]")
    allowed = [f.name for f in dc.fields(Claim) if f.name not in NESTED_FIELDS]
    _known(head, [*allowed, "scope"], "[claim]")
    return claim_from_dict({**head, **{name: tree[name] for name in SECTIONS[1:] if name in tree}})


def claim_from_dict(fields: Mapping[str, Any]) -> Claim:
    """The claim that `Claim.to_dict` made, or a mapping written by hand in which `scope` is a text.

    Raises:
        ConfigError: see `load_claim`; also another schema version.
    """
    given = dict(fields)
    if (schema := given.pop("schema", SCHEMA)) != SCHEMA:
        raise ConfigError(
            f"this claim has schema {schema}, and this version of pellucid reads schema {SCHEMA}"
        )
    scope = given.get("scope")
    if isinstance(scope, str):
        given["scope"] = parse_scope(scope)
    elif scope is not None:
        given["scope"] = _build(Scope, scope, "scope")
    for name, cls in (("measure", MeasurePlan), ("data", DataPlan), ("analysis", Analysis)):
        if name in given:
            given[name] = _build(cls, given[name], f"[{name}]")
    if "nulls" in given:
        given["nulls"] = tuple(
            _build(NullPlan, one, "[[nulls]]") for one in _list(given["nulls"], "[[nulls]]")
        )
    return _build(Claim, given, "[claim]")


def _build(cls: type[T], given: Any, where: str) -> T:
    """A dataclass from a table: unknown and missing keys are named, values must have the field's type."""
    table = _table(given, where)
    fields = {field.name: field for field in dc.fields(cast(Any, cls)) if field.name != "_"}
    _known(table, list(fields), where)
    needed = [n for n, f in fields.items() if f.default is dc.MISSING and f.default_factory is dc.MISSING]
    if absent := [name for name in needed if name not in table]:
        raise ConfigError(f"{where} needs {absent}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _fit(value, hints[name], f"{where} {name}") for name, value in table.items()})


def _fit(value: Any, hint: Any, where: str) -> Any:
    """The value in the field's type: a whole number may stand for a real one, a list for a tuple."""
    if dc.is_dataclass(value) or (isinstance(value, tuple) and typing.get_origin(hint) is tuple):
        return value
    origin = typing.get_origin(hint)
    expected: tuple[type, ...]
    if origin is Literal:
        check_one_of(str(value), typing.get_args(hint), where)
        expected = (str,)
    elif origin is tuple:
        return tuple(_fit(one, typing.get_args(hint)[0], where) for one in _list(value, where))
    elif origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _table(value, where)
    elif hint is float or (origin is not None and float in typing.get_args(hint)):
        expected = (int, float)
    else:
        expected = (hint,)
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        raise ConfigError(f"{where} must be {_name(expected)}, got {value!r}")
    return float(cast(float, value)) if float in expected else value


def _name(expected: tuple[type, ...]) -> str:
    words = {str: "text", int: "a whole number", bool: "true or false"}
    return "a number" if float in expected else words.get(expected[0], expected[0].__name__)


def _known(table: Mapping[str, Any], allowed: tuple[str, ...] | list[str], where: str) -> None:
    for key in table:
        if key not in allowed:
            raise ConfigError(f"{where}: unknown key {key!r}; nearest: {nearest(key, allowed)}")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table, got {value!r}")
    return dict(cast("Mapping[str, Any]", value))


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} must be a list, got {value!r}")
    return list(cast("list[Any]", value))
