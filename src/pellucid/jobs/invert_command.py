"""The commands `pellucid invert` and `pellucid align`: parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer

from pellucid._checks import ConfigError
from pellucid.jobs.options import Data, Device, File, Fit, Model, Normalize, Size, SkipUnreadable, Split

Out = Annotated[Path, typer.Option("--out", help="The run folder to write.", metavar="RUN")]
BatchSize = Annotated[int, typer.Option(help="Images a batch.", min=1)]
Of = Annotated[
    Path | None,
    typer.Argument(
        help="A run of train, inspect or demo; or use --model, --data and --weights.", metavar="RUN"
    ),
]
Layer = Annotated[
    str, typer.Option(help="A layer, NAME:in for what it is given, or penultimate (what the head is given).")
]
Regulariser = Annotated[
    str,
    typer.Option(
        help="free, human-leaning, tv:W, blur:W, l1:W, tv-six, each with +transforms or +fourier; adversarial, "
        "weighted:W, towards-start:W."
    ),
]
Preset = Annotated[
    str, typer.Option(help="official (5,000 steps) or fast (600, with halvings and early stop).")
]
Steps = Annotated[int | None, typer.Option(help="Steps in place of the preset's.")]
Targets = Annotated[int, typer.Option(help="Images to invert, drawn with --seed.")]
Starts = Annotated[int, typer.Option(help="Start images of each target.")]
Natural = Annotated[int, typer.Option(help="Images whose pairs say what distance is nothing special.")]
Tolerances = Annotated[
    str, typer.Option(help="With adversarial: the largest rho allowed, comma-separated, growing.")
]
Against = Annotated[
    str, typer.Option(help="The metric an adversary works against: ssim, ms-ssim, lab, gradient, laplacian.")
]
IdentityRelus = Annotated[
    str,
    typer.Option(
        help="ReLU layers whose gradient passes as if they were not there; names or globs with commas."
    ),
]
Seed = Annotated[int, typer.Option(help="Of targets, start images and transforms.")]

OF_A_RUN = ("test", None, "crop", "none", None, None, False)
"""What the options about images are where a run is named."""


def invert(
    out: Out, run: Of = None, layer: Layer = "penultimate", regulariser: Regulariser = "free", preset: Preset = "fast",
    steps: Steps = None, targets: Targets = 100, starts: Starts = 3, natural: Natural = 150,
    tolerances: Tolerances = "0.05,0.1,0.2", against: Against = "lab", identity_relus: IdentityRelus = "",
    batch_size: BatchSize = 64, model: Model = None, weights: File = None, data: Data = None, split: Split = "test",
    size: Size = None, fit: Fit = "crop", normalize: Normalize = "none", class_map: File = None, labels: File = None,
    skip_unreadable: SkipUnreadable = False, device: Device = None, seed: Seed = 0,
) -> None:  # fmt: skip
    """Find images that a layer cannot tell from given ones, with the evidence that they are what they claim."""
    from pellucid.jobs.inspect import Request
    from pellucid.jobs.invert import Asking, Inversion, run_invert

    check_named(run, model, data)
    asking = Asking(run=run, weights=weights, data=data)
    if model is not None and data is not None:
        asking = Asking(
            request=Request(
                model=model, weights=weights, data=data, split=split, size=size, fit=fit, normalize=normalize,
                class_map=class_map, labels=labels, skip_unreadable=skip_unreadable, seed=seed,
            )
        )  # fmt: skip
    elif (split, size, fit, normalize, class_map, labels, skip_unreadable) != OF_A_RUN:
        raise ConfigError(
            "a run has its own images, made ready as it was made: --split, --size, --fit, --normalize, --class-map, --labels "
            "and --skip-unreadable go with --model and --data"
        )
    asked = Inversion(
        layer=layer, regulariser=regulariser, preset=preset, steps=steps, targets=targets, starts=starts,
        natural=natural, tolerances=numbers(tolerances, "--tolerances"), against=against,
        identity_relus=words(identity_relus), batch_size=batch_size, device=device, seed=seed,
    )  # fmt: skip
    typer.echo(str(run_invert(asking, asked, out).resolve()))


def check_named(run: Path | None, model: str | None, data: str | None) -> None:
    """Raise `ConfigError` unless a run is named, or a network with images, but not both."""
    if run is None and (model is None or data is None):
        raise ConfigError("name a run, or a network and images with --model and --data (and --weights)")
    if run is not None and model is not None:
        raise ConfigError("name a run, or a network with --model, but not both")


def words(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated option."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str, option: str) -> tuple[float, ...]:
    """The numbers of a comma-separated option."""
    try:
        return tuple(float(part) for part in words(text))
    except ValueError:
        raise ConfigError(f"{option} takes numbers with commas between them, got {text!r}") from None


Runs = Annotated[
    list[Path], typer.Argument(help="Runs of pellucid invert on the same targets.", metavar="RUN...")
]
Names = Annotated[
    str,
    typer.Option(help="One name for each run, with commas; one name several times for training replicates."),
]
Metrics = Annotated[
    str, typer.Option(help="Weight-free metrics that judge, with commas; none for no such metric.")
]
Trunk = Annotated[
    str | None,
    typer.Option(help="A trunk of your own for LPIPS: module:function or torchvision:NAME.", metavar="SPEC"),
]
TrunkWeights = Annotated[
    Path | None, typer.Option(help="Its weights; without, its column is a control.", metavar="FILE")
]
TrunkStages = Annotated[
    str, typer.Option(help="Its layers that are compared; known for alexnet, vgg16 and squeezenet1_1.")
]
Heads = Annotated[
    Path | None, typer.Option(help="LPIPS heads; without, weights of 1 (baseline).", metavar="FILE")
]
SelfTrained = Annotated[
    int,
    typer.Option(
        help="Train so many small trunks on your images (at least 3), by contrast where they have no labels, and one "
        "control.",
        min=0,
    ),
]
TrunkData = Annotated[
    str | None, typer.Option(help="What to train them on; the runs' data by default.", metavar="SPEC")
]
TrunkEpochs = Annotated[int, typer.Option(help="Passes over it.", min=1)]
Answers = Annotated[
    Path | None,
    typer.Option(
        help="CSV of people's answers (item, chose_target): calibrates the trunk's head.", metavar="FILE"
    ),
]
TriplesEach = Annotated[int, typer.Option(help="Triples of targets for clustering, for each start.")]
Stir = Annotated[
    bool, typer.Option("--stir", help="Open the networks again and measure shared invariance between them.")
]
JudgeSeed = Annotated[int, typer.Option(help="Of triples, trunks and folds.")]


def align(
    runs: Runs, out: Out, names: Names = "", metrics: Metrics = "ssim,ms-ssim,lab,gradient,laplacian",
    trunk: Trunk = None, trunk_weights: TrunkWeights = None, trunk_stages: TrunkStages = "", heads: Heads = None,
    self_trained: SelfTrained = 0, trunk_data: TrunkData = None, trunk_epochs: TrunkEpochs = 10,
    answers: Answers = None, triples: TriplesEach = 200, stir: Stir = False, batch_size: BatchSize = 64,
    device: Device = None, seed: JudgeSeed = 0,
) -> None:  # fmt: skip
    """Compare networks by how much what they cannot tell apart looks alike to metrics that stand in for people."""
    from pellucid.jobs.align import Alignment, run_align
    from pellucid.jobs.align_metrics import Ladder

    ladder = Ladder(
        metrics=() if metrics == "none" else words(metrics), trunk=trunk, trunk_weights=trunk_weights,
        trunk_stages=words(trunk_stages), heads=heads, self_trained=self_trained, trunk_data=trunk_data,
        trunk_epochs=trunk_epochs, answers=answers,
    )  # fmt: skip
    asked = Alignment(
        runs=tuple(runs), names=words(names), ladder=ladder, triples=triples, stir=stir, batch_size=batch_size,
        device=device, seed=seed,
    )  # fmt: skip
    typer.echo(str(run_align(asked, out).resolve()))
