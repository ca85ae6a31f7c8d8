"""The commands `pellucid backtrack` and `pellucid edit`: parse, call, print. Network and images as in `inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from pellucid.jobs.options import Data, Device, File, Fit, Model, Normalize, Size, SkipUnreadable, Split

Seed = Annotated[int, typer.Option(help="Of the images drawn, and of exemplars.")]
RunFolder = Annotated[
    Path | None,
    typer.Argument(
        help="A run of train, inspect, demo, backtrack or edit; or use --model, --data and --out.",
        metavar="RUN",
    ),
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="The run folder to write, with --model.", metavar="RUN")
]
Images = Annotated[int, typer.Option(help="How many images to measure on, drawn with --seed.", min=2)]
Shown = Annotated[int, typer.Option(help="How many of them the page shows.", min=1)]
Again = Annotated[bool, typer.Option("--again", help="Replace what was computed before.")]


def backtrack(
    run: RunFolder = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            help="Layer names or globs; repeat it for more. Default: every activation function that can be backtracked.",
            metavar="GLOB",
        ),
    ] = None,
    images: Images = 64,
    shown: Shown = 6,
    views: Annotated[int, typer.Option(help="Units a layer to show in pixels.", min=0)] = 16,
    search: Annotated[
        int,
        typer.Option(help="Steps of the gradient search that it is compared with; 0 leaves it out.", min=0),
    ] = 200,
    against: Annotated[
        Path | None,
        typer.Option(help="Weights of the same network trained without the constraint.", metavar="FILE"),
    ] = None,
    again: Again = False,
    model: Model = None,
    weights: File = None,
    data: Data = None,
    out: OutFolder = None,
    split: Split = "test",
    size: Size = None,
    fit: Fit = "crop",
    normalize: Normalize = "none",
    class_map: File = None,
    labels: File = None,
    skip_unreadable: SkipUnreadable = False,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Rebuild images from each layer by running a plain network backwards, and add it to the page."""
    from pellucid.jobs.backtrack import Backtracking, run_backtrack
    from pellucid.jobs.backtrack_bench import opening_of_options

    opening = opening_of_options(
        run, model=model, weights=weights, data=data, out=out, split=split, size=size, fit=fit, normalize=normalize,
        class_map=class_map, labels=labels, skip_unreadable=skip_unreadable, seed=seed,
    )  # fmt: skip
    asked = Backtracking(
        layers=tuple(layers or ()), images=images, shown=shown, views=views, search=search, against=against, seed=seed,
        device=device, again=again,
    )  # fmt: skip
    typer.echo(str(run_backtrack(opening, asked).resolve()))


def edit(
    run: RunFolder = None,
    towards: Annotated[
        str,
        typer.Option(
            help="The class to edit towards; by default each image's second guess.", metavar="CLASS"
        ),
    ] = "",
    layer: Annotated[
        str, typer.Option(help="Where features are exchanged; by default the last that can be backtracked.")
    ] = "",
    alpha: Annotated[float, typer.Option(help="How much of the features is exchanged.", min=0)] = 1.0,
    channels: Annotated[int, typer.Option(help="How many channels of each class.", min=1)] = 32,
    images: Images = 64,
    shown: Shown = 6,
    contributions: Annotated[int, typer.Option(help="Channels to show for each image.", min=1)] = 8,
    again: Again = False,
    model: Model = None,
    weights: File = None,
    data: Data = None,
    out: OutFolder = None,
    split: Split = "test",
    size: Size = None,
    fit: Fit = "crop",
    normalize: Normalize = "none",
    class_map: File = None,
    labels: File = None,
    skip_unreadable: SkipUnreadable = False,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Edit images towards another class with its features, beside blending and a gradient, and add it to the page."""
    from pellucid.jobs.backtrack_bench import opening_of_options
    from pellucid.jobs.edit import Editing, run_edit

    opening = opening_of_options(
        run, model=model, weights=weights, data=data, out=out, split=split, size=size, fit=fit, normalize=normalize,
        class_map=class_map, labels=labels, skip_unreadable=skip_unreadable, seed=seed,
    )  # fmt: skip
    asked = Editing(
        towards=towards, layer=layer, alpha=alpha, channels=channels, images=images, shown=shown,
        contributions=contributions, seed=seed, device=device, again=again,
    )  # fmt: skip
    typer.echo(str(run_edit(opening, asked).resolve()))
