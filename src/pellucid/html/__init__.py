"""Pieces of pages as pure functions: escaped text, numbers for people, tables, thumbnails, charts as inline SVG.

Everything returns `Markup`, text that is already safe; whatever is not `Markup` is escaped on its way in.
The look comes from the page's stylesheet: charts draw with its colours, so that they follow light and dark.
"""

from markupsafe import Markup, escape

from pellucid.html.charts import Series, column_chart, histogram, line_chart
from pellucid.html.marks import bars, fill, strip
from pellucid.html.numbers import count, counted, decimals, interval, is_missing, number, percent
from pellucid.html.text import breakable, missing, table
from pellucid.html.thumbs import Place, Thumb, image_grid, sprite_sheets, thumb

__all__ = [
    "Markup",
    "Place",
    "Series",
    "Thumb",
    "bars",
    "breakable",
    "column_chart",
    "count",
    "counted",
    "decimals",
    "escape",
    "fill",
    "histogram",
    "image_grid",
    "interval",
    "is_missing",
    "line_chart",
    "missing",
    "number",
    "percent",
    "sprite_sheets",
    "strip",
    "table",
    "thumb",
]
