"""A run folder becomes a folder of pages that open from disk."""

from pellucid.report.contents import Contents, read
from pellucid.report.write import SECTIONS, write_report

__all__ = ["SECTIONS", "Contents", "read", "write_report"]
