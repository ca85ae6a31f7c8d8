"""The commands `pellucid invert` and `pellucid align`: parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer

from pellucid._checks import ConfigError
from pellucid.jobs.options import Data, Device, File, Fit, Model, Normalize, Size, SkipUnreadable, Split

Out = Annotated[Path, typer.Option("--out", help="The run folder to write.", metavar="RUN")]
BatchSize = Annotated[int, typer.Option(help="Images a batch.", min=1)]


def invert(
    out: Out,
    run: Annotated[
        Path | None,
        typer.Argument(
            help="A run of train, inspect or demo; or use --model, --data and --weights.", metavar="RUN"
        ),
    ] = None,
    layer: Annotated[
        str,
        typer.Option(help="A layer, NAME:in for what it is given, or penultimate (what the head is given)."),
    ] = "penultimate",
    regulariser: Annotated[
        str,
        typer.Option(
            help="free, human-leaning, tv:W, blur:W, l1:W, tv-six, each with +transforms or +fourier; adversarial, "
            "weighted:W, towards-start:W."
        ),
    ] = "free",
    preset: Annotated[
        str, typer.Option(help="official (5,000 steps) or fast (600, with halvings and early stop).")
    ] = "fast",
    steps: Annotated[int | None, typer.Option(help="Steps in place of the preset's.")] = None,
    targets: Annotated[int, typer.Option(help="Images to invert, drawn with --seed.")] = 100,
    starts: Annotated[int, typer.Option(help="Start images of each target.")] = 3,
    natural: Annotated[
        int, typer.Option(help="Images whose pairs say what distance is nothing special.")
    ] = 150,
    tolerances: Annotated[
        str, typer.Option(help="With adversarial: the largest rho allowed, comma-separated, growing.")
    ] = "0.05,0.1,0.2",
    against: Annotated[
        str,
        typer.Option(help="The metric an adversary works against: ssim, ms-ssim, lab, gradient, laplacian."),
    ] = "lab",
    identity_relus: Annotated[
        str,
        typer.Option(
            help="ReLU layers whose gradient passes as if they were not there; names or globs with commas."
        ),
    ] = "",
    batch_size: BatchSize = 64,
    model: Model = None,
    weights: File = None,
    data: Data = None,
    split: Split = "test",
    size: Size = None,
    fit: Fit = "crop",
    normalize: Normalize = "none",
    class_map: File = None,
    labels: File = None,
    skip_unreadable: SkipUnreadable = False,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Of targets, start images and transforms.")] = 0,
) -> None:
    """Find images that a layer cannot tell from given ones, with the evidence that they are what they claim."""
    from pellucid.jobs.inspect import Request
    from pellucid.jobs.invert import Asking, Inversion, run_invert

    if run is None and (model is None or data is None):
        raise ConfigError("name a run, or a network and images with --model and --data (and --weights)")
    if run is not None and model is not None:
        raise ConfigError("name a run, or a network with --model, but not both")
    asking = Asking(run=run, weights=weights, data=data)
    if model is not None and data is not None:
        asking = Asking(
            request=Request(
                model=model, weights=weights, data=data, split=split, size=size, fit=fit, normalize=normalize,
                class_map=class_map, labels=labels, skip_unreadable=skip_unreadable, seed=seed,
            )
        )  # fmt: skip
    asked = Inversion(
        layer=layer, regulariser=regulariser, preset=preset, steps=steps, targets=targets, starts=starts,
        natural=natural, tolerances=numbers(tolerances, "--tolerances"), against=against,
        identity_relus=words(identity_relus), batch_size=batch_size, device=device, seed=seed,
    )  # fmt: skip
    typer.echo(str(run_invert(asking, asked, out).resolve()))


def words(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated option."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str, option: str) -> tuple[float, ...]:
    """The numbers of a comma-separated option."""
    try:
        return tuple(float(part) for part in words(text))
    except ValueError:
        raise ConfigError(f"{option} takes numbers with commas between them, got {text!r}") from None


def align(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs of pellucid invert on the same targets.", metavar="RUN...")
    ],
    out: Out,
    names: Annotated[
        str,
        typer.Option(
            help="One name for each run, with commas; one name several times for training replicates."
        ),
    ] = "",
    metrics: Annotated[
        str, typer.Option(help="Weight-free metrics that judge, with commas; none for no such metric.")
    ] = "ssim,ms-ssim,lab,gradient,laplacian",
    trunk: Annotated[
        str | None,
        typer.Option(
            help="A trunk of your own for LPIPS: module:function or torchvision:NAME.", metavar="SPEC"
        ),
    ] = None,
    trunk_weights: Annotated[
        Path | None, typer.Option(help="Its weights; without, its column is a control.", metavar="FILE")
    ] = None,
    trunk_stages: Annotated[
        str, typer.Option(help="Its layers that are compared; known for alexnet, vgg16 and squeezenet1_1.")
    ] = "",
    heads: Annotated[
        Path | None, typer.Option(help="LPIPS heads; without, weights of 1 (baseline).", metavar="FILE")
    ] = None,
    self_trained: Annotated[
        int,
        typer.Option(help="Train so many small trunks on your images (at least 3), and one control.", min=0),
    ] = 0,
    trunk_data: Annotated[
        str | None, typer.Option(help="What to train them on; the runs' data by default.", metavar="SPEC")
    ] = None,
    trunk_epochs: Annotated[int, typer.Option(help="Passes over it.", min=1)] = 10,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="CSV of people's answers (item, chose_target): calibrates the trunk's head.", metavar="FILE"
        ),
    ] = None,
    triples: Annotated[int, typer.Option(help="Triples of targets for clustering, for each start.")] = 200,
    stir: Annotated[
        bool,
        typer.Option("--stir", help="Open the networks again and measure shared invariance between them."),
    ] = False,
    batch_size: BatchSize = 64,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Of triples, trunks and folds.")] = 0,
) -> None:
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
