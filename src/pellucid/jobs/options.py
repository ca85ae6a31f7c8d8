"""Options for network and images that several commands take in the same way; `inspect` describes them in full."""

from pathlib import Path
from typing import Annotated

import typer

Split = Annotated[str, typer.Option(help="Which part of the data: train, test or all.")]
Size = Annotated[str | None, typer.Option(help="Resize images to this: 224 or HEIGHTxWIDTH.")]
Fit = Annotated[str, typer.Option(help="How --size is reached: crop or stretch.")]
Normalize = Annotated[str, typer.Option(help="MEAN/STD per channel, or 'imagenet', or 'none'.")]
File = Annotated[Path | None, typer.Option(help="As in inspect.", metavar="FILE")]
SkipUnreadable = Annotated[bool, typer.Option("--skip-unreadable", help="As in inspect.")]
Device = Annotated[str | None, typer.Option(help="Where to compute; the fastest device by default.")]
Model = Annotated[str | None, typer.Option("--model", help="As in inspect.", metavar="SPEC")]
Data = Annotated[str | None, typer.Option("--data", help="As in inspect.", metavar="SPEC")]
