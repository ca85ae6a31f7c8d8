"""Columns to parquet and back; what a table was computed from travels in its schema."""

import json
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np

from pellucid._checks import ConfigError, DataError
from pellucid.store.tree import as_numpy

KEY = b"pellucid"


def table_bytes(name: str, columns: Mapping[str, Any], inputs: Mapping[str, str]) -> bytes:
    """A parquet file of `columns`, with `inputs` in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lengths = {column: len(cast(Sized, values)) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"table {name!r}: columns of one table are equally long, got {lengths}")
    fields = {
        column: _column(values, f"table {name!r}, column {column!r}") for column, values in columns.items()
    }
    about = json.dumps({"inputs": dict(inputs)}).encode()
    table = pa.table(fields).replace_schema_metadata({KEY: about})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def read_table(file: Path) -> dict[str, np.ndarray]:
    """Columns as numpy arrays that the caller may write to."""
    parquet = _open(file)
    try:
        table = parquet.read(use_threads=False)
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from None
    return {name: np.array(table.column(name).to_numpy(zero_copy_only=False)) for name in table.column_names}


def stored_inputs(file: Path) -> dict[str, str]:
    """What the table was computed from, as given to `save_table`."""
    metadata = _open(file).schema_arrow.metadata or {}
    return json.loads(metadata.get(KEY, b'{"inputs": {}}'))["inputs"]


def _open(file: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} is damaged: {error}; delete it and compute it again")


def _column(values: Any, what: str) -> Any:
    import pyarrow as pa

    if isinstance(values, list | tuple):
        values = [_text(v) if isinstance(v, str) else v for v in cast(list[Any], values)]
    else:
        array = as_numpy(values, what)
        if array.ndim != 1:
            raise DataError(
                f"{what}: expected one value a row, got shape {array.shape}; save it with Run.save"
            )
        values = (
            [_text(v) if isinstance(v, str) else v for v in array.tolist()]
            if array.dtype.kind in "UO"
            else array
        )
    try:
        column = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{what}: {error}; expected numbers, text or booleans of one kind") from None
    if pa.types.is_nested(column.type):
        raise ConfigError(f"{what}: expected one number or text a row, got {column.type}")
    return column


def _text(value: str) -> str:
    """Text that UTF-8 can hold: bytes of a file name that are no text stay visible as an escape."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
