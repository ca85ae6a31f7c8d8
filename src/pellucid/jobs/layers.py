"""`pellucid layers`: what there is to tap in a model."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pellucid._checks import ConfigError
from pellucid.jobs.tapping import taking


def print_layers(spec: str, input_size: str, *, patterns: Sequence[str] = ()) -> None:
    """Build the model without weights, run one blank input through it, and print a table of its layers."""
    import torch

    from pellucid.recipe import open_model
    from pellucid.taps import find_layers, layers

    shape = parse_shape(input_size)
    model = open_model(spec).eval()
    wanted = set(find_layers(model, patterns)) if patterns else None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("layer", "left"),
        ("type", "left"),
        ("output", "left"),
        ("units", "right"),
        ("axis", "right"),
        ("calls", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # pyright: ignore[reportArgumentType]
    blank = torch.zeros(1, *shape)
    with taking(blank, "another --input"):
        rows = layers(model, blank)
    for row in rows:
        if wanted is None or wanted & {row.name, row.name.partition("#")[0]}:
            size = "x".join(map(str, row.shape)) or "-"
            axis = "-" if row.unit_axis is None else str(row.unit_axis)
            table.add_row(row.name or '""', row.type, size, str(row.units or "-"), axis, str(row.calls))
    Console(width=None).print(table)


def parse_shape(text: str) -> tuple[int, ...]:
    """Read `3x64x64` as (3, 64, 64)."""
    if not re.fullmatch(r"\d+(x\d+)*", text.strip()):
        raise ConfigError(f"--input must be sizes joined by x, such as 3x64x64 or 784, got {text!r}")
    return tuple(int(part) for part in text.strip().split("x"))
