"""A run folder: facts as JSON, tables as parquet, arrays as safetensors, images as PNG; readable without torch."""

from pellucid.store.files import check_space, write_bytes
from pellucid.store.run import SCHEMA, Run, check_writable
from pellucid.store.tree import digest

__all__ = ["SCHEMA", "Run", "check_space", "check_writable", "digest", "write_bytes"]
