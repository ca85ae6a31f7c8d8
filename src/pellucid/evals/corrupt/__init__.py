"""The fifteen standard corruptions at five severities, files of them, and accuracy on them."""

from pellucid.evals.corrupt.corrupting import corrupt, corruption_source
from pellucid.evals.corrupt.files import corruption_file, corruption_files
from pellucid.evals.corrupt.severities import SEVERITIES, TYPES
from pellucid.evals.corrupt.table import CorruptionTable, corrupted_accuracy, corrupted_file_accuracy

__all__ = [
    "SEVERITIES",
    "TYPES",
    "CorruptionTable",
    "corrupt",
    "corrupted_accuracy",
    "corrupted_file_accuracy",
    "corruption_file",
    "corruption_files",
    "corruption_source",
]
