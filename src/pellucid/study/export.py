"""Export of a study and its way back: the same records three times (CSV, JSONL, parquet), a data dictionary, jsPsych columns.

    study/                       the frozen study: design, items, images, registered claims
    answers.csv .jsonl .parquet  a row an answer
    participants.*  events.*     a row a participant, a row an event
    jspsych.csv                  the answers under the column names of jsPsych 8
    dictionary.csv               every column: what it is, its unit, its values
    export.json                  version of the study, counts, SHA-256 of every file

Reading any of the three formats back gives equal records, so the analysis is the same byte for byte.
"""

import csv
import dataclasses as dc
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pellucid._checks import ConfigError, DataError, check_one_of
from pellucid.store import write_bytes
from pellucid.store.tables import read_table, table_bytes
from pellucid.study.columns import RECORDS, Columns, dictionary_rows, from_row, jspsych_rows, to_row
from pellucid.study.frozen import STIMULI, Frozen, load_frozen
from pellucid.study.records import Records

SCHEMA = 1
ABOUT, STUDY, JSPSYCH, DICTIONARY = "export.json", "study", "jspsych.csv", "dictionary.csv"
FORMATS = ("jsonl", "parquet", "csv")
LEDGER = "claims.jsonl"


@dc.dataclass(frozen=True)
class Exported:
    """An export, read back."""

    frozen: Frozen
    records: Records
    ledger: Path | None


def write_export(frozen: Frozen, records: Records, folder: Path | str) -> Path:
    """Write an export of these records to a new folder.

    Raises:
        ConfigError: the folder is not empty.
        DataError: records of people in test mode, which never leave the server.
    """
    folder, records = Path(folder), records.ordered()
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; an export goes to a folder of its own")
    tested = [p.id for p in records.participants if p.test]
    if tested:
        raise DataError(f"test participants are kept out of exports: {tested[:3]}")
    _copy_study(frozen, folder / STUDY)
    written = _files(frozen, records)
    for name, data in written.items():
        write_bytes(folder / name, data)
    about = {
        "schema": SCHEMA,
        "study": frozen.sha256,
        "participants": len(records.participants),
        "answers": len(records.answers),
        "events": len(records.events),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(written.items())},
    }
    write_bytes(folder / ABOUT, json.dumps(about, indent=1, sort_keys=True).encode())
    return folder


def _files(frozen: Frozen, records: Records) -> dict[str, bytes]:
    """Every table of an export by the name of its file."""
    written = dict[str, bytes]()
    for table, rows in (
        ("answers", records.answers),
        ("participants", records.participants),
        ("events", records.events),
    ):
        columns = RECORDS[table]
        plain = [to_row(row, columns) for row in rows]
        written[f"{table}.csv"] = csv_bytes(list(columns.names), plain)
        written[f"{table}.jsonl"] = b"".join(_line(row) for row in plain)
        written[f"{table}.parquet"] = table_bytes(
            table, {n: [r[n] for r in plain] for n in columns.names}, {}
        )
    jspsych = jspsych_rows(records, {item.id: item for item in frozen.items})
    written[JSPSYCH] = csv_bytes(list(jspsych[0]) if jspsych else ["trial_index"], jspsych)
    listed = dictionary_rows()
    written[DICTIONARY] = csv_bytes(list(listed[0]), listed)
    return written


def read_export(folder: Path | str, *, form: str = "jsonl") -> Exported:
    """Read an export back from one of its three forms; all give equal records.

    Raises:
        ConfigError: no export there.
        DataError: a file that was changed or is missing, or another study's records.
    """
    folder = Path(folder)
    check_one_of(form, FORMATS, "form")
    try:
        about = json.loads((folder / ABOUT).read_bytes())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{folder} is no export of a study ({ABOUT}: {error})") from error
    if about.get("schema") != SCHEMA:
        raise ConfigError(f"{folder} has schema {about.get('schema')}; this pellucid reads schema {SCHEMA}")
    frozen = load_frozen(folder / STUDY)
    if frozen.sha256 != about["study"]:
        raise DataError(
            f"{folder}: the records belong to study {about['study'][:12]}, the folder holds {frozen.sha256[:12]}"
        )
    tables: dict[str, tuple[Any, ...]] = {}
    for table, columns in RECORDS.items():
        file = folder / f"{table}.{form}"
        _unchanged(file, about["files"])
        tables[table] = tuple(from_row(row, columns) for row in _READ[form](file, columns))
    ledger = folder / STUDY / LEDGER
    records = Records(tables["participants"], tables["answers"], tables["events"]).ordered()
    return Exported(frozen, records, ledger if ledger.is_file() else None)


def csv_bytes(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """CSV in UTF-8 with a header; true/false in small letters, numbers so that they read back exactly, gaps empty."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[_csv(row[name]) for name in names] for row in rows])
    return sink.getvalue().encode()


def _csv(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _copy_study(frozen: Frozen, folder: Path) -> None:
    files = [
        f
        for f in sorted(frozen.path.iterdir())
        if f.name in ("study.json", "items.json", LEDGER, f"{LEDGER}.head")
    ]
    for file in [*files, *(frozen.image(name) for name in sorted(frozen.images))]:
        to = folder / file.relative_to(frozen.path)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)
    (folder / STIMULI).mkdir(parents=True, exist_ok=True)


def _unchanged(file: Path, hashes: Mapping[str, str]) -> None:
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    if found != hashes.get(file.name):
        raise DataError(f"{file} was changed since the export; export again, or analyse a copy as it was")


def _from_csv(file: Path, columns: Columns) -> list[dict[str, Any]]:
    """Texts of a CSV in the types of their columns."""
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    convert: dict[type, Callable[[str], Any]] = {
        str: str,
        int: int,
        float: float,
        bool: lambda text: text == "true",
    }
    return [{name: convert[columns.type_of(name)](row[name]) for name in columns.names} for row in rows]


def _from_jsonl(file: Path, _columns: Columns) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def _from_parquet(file: Path, columns: Columns) -> list[dict[str, Any]]:
    table = read_table(file)
    values = {name: [columns.type_of(name)(v) for v in table[name].tolist()] for name in columns.names}
    n = len(next(iter(values.values())))
    return [{name: values[name][i] for name in columns.names} for i in range(n)]


_READ: Mapping[str, Callable[[Path, Columns], list[dict[str, Any]]]] = {
    "csv": _from_csv,
    "jsonl": _from_jsonl,
    "parquet": _from_parquet,
}
