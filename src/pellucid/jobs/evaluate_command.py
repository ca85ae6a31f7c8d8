"""The command `pellucid evaluate`: parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer

Text = Annotated[str | None, typer.Option(help="As in inspect.", metavar="SPEC")]


def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="A run of train, inspect, demo or trace, or several trainings of one recipe and --out for what they "
            "have in common; or use --model, --data and --out.",
            metavar="[RUN]...",
            show_default=False,
        ),
    ] = None,
    attacks: Annotated[
        str, typer.Option(help="pgd, pgd-margin, pgd-l2, separated by commas; or none.")
    ] = "pgd",
    radii: Annotated[
        str, typer.Option(help="Largest change of a pixel, in [0, 1]: 0.1,0.2 or 8/255.")
    ] = "1/255,2/255,4/255,8/255,16/255,32/255,64/255",
    radii_l2: Annotated[
        str, typer.Option("--radii-l2", help="Length of the change of an image.")
    ] = "0.25,0.5,1,2,4",
    steps: Annotated[int, typer.Option(help="Gradient steps of an attack.")] = 20,
    restarts: Annotated[int, typer.Option(help="Random starts of an attack.")] = 1,
    margin: Annotated[int, typer.Option(help="Images of the margin control; 0 leaves it out.")] = 100,
    corruptions: Annotated[
        str, typer.Option(help="all, none, or names of the fifteen, separated by commas.")
    ] = "all",
    severities: Annotated[str, typer.Option(help="Of 1 to 5, separated by commas.")] = "1,2,3,4,5",
    frost: Annotated[
        Path | None, typer.Option(help="Pictures of frost, for that corruption.", metavar="FOLDER")
    ] = None,
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration", help="Whether its confidence can be believed: ECE, reliability, selection."
        ),
    ] = False,
    ood: Annotated[
        list[str] | None,
        typer.Option(
            "--ood", help="Data it has not learnt, far from its own; repeat it for more.", metavar="DATA"
        ),
    ] = None,
    ood_near: Annotated[
        list[str] | None,
        typer.Option(
            "--ood-near", help="The same, of the same kind as its own: other classes.", metavar="DATA"
        ),
    ] = None,
    detectors: Annotated[
        str, typer.Option(help="Detectors of --ood: all, or names separated by commas.")
    ] = "all",
    fit_on: Annotated[
        str | None,
        typer.Option(help="Training data for detectors; those of the run by default.", metavar="DATA"),
    ] = None,
    watch_radii: Annotated[
        str, typer.Option(help="Radii at which to ask whether attacks are noticed, or none.")
    ] = "none",
    groups: Annotated[
        str | None, typer.Option(help="A column of the data: what happens to each group.", metavar="COLUMN")
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="The class that --groups counts as selected; the second of two.")
    ] = None,
    fewest: Annotated[int, typer.Option(help="Members a group needs to be compared.")] = 30,
    images: Annotated[int, typer.Option(help="How many images, drawn with --seed; 0 for all.")] = 500,
    again: Annotated[bool, typer.Option("--again", help="Replace what was measured before.")] = False,
    model: Text = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="safetensors or a torch checkpoint, read without executing code.", metavar="FILE"),
    ] = None,
    data: Text = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run folder to write, with --model or with several runs.", metavar="RUN"),
    ] = None,
    split: Annotated[str, typer.Option(help="Which part of the data: train, test or all.")] = "test",
    size: Annotated[str | None, typer.Option(help="Resize images to this: 224 or HEIGHTxWIDTH.")] = None,
    fit: Annotated[str, typer.Option(help="How --size is reached: crop or stretch.")] = "crop",
    normalize: Annotated[str, typer.Option(help="MEAN/STD per channel, or 'imagenet', or 'none'.")] = "none",
    class_map: Annotated[
        Path | None,
        typer.Option(help="JSON or CSV that maps the data's classes to the model's outputs.", metavar="FILE"),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV with path, label and more columns for a folder of images.", metavar="FILE"),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Count and list unreadable images instead of stopping.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images a batch.", min=1)] = 64,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the fastest one by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    workers: Annotated[int, typer.Option(help="Threads that decode images ahead.", min=0)] = 0,
) -> None:
    """Measure how far to trust a network, on a run or any checkpoint, and add it to the page.

    Corruptions and attacks by default; --calibration, --ood, --watch-radii and --groups ask for more.
    """
    from pellucid._checks import ConfigError
    from pellucid.jobs.evaluate import Evaluation, evaluate_checkpoint, evaluate_run
    from pellucid.jobs.evaluate import radii as read_radii
    from pellucid.jobs.evaluate_asked import Questions
    from pellucid.jobs.evaluate_runs import evaluate_runs
    from pellucid.jobs.inspect import Request

    questions = Questions(
        calibration=calibration, ood=tuple(ood or ()), ood_near=tuple(ood_near or ()), detectors=detectors,
        fit_on=fit_on, watch_radii=read_radii(watch_radii, "--watch-radii"), groups=groups, positive=positive,
        fewest=fewest,
    )  # fmt: skip
    asked = Evaluation(
        attacks=attacks, radii=radii, radii_l2=radii_l2, steps=steps, restarts=restarts, margin=margin,
        corruptions=corruptions, severities=severities, frost=frost, images=images, seed=seed, batch_size=batch_size,
        device=device, again=again, questions=questions,
    )  # fmt: skip
    if runs and len(runs) > 1 and out is not None and model is None and weights is None and data is None:
        page = evaluate_runs(runs, out, asked)
    elif runs and len(runs) == 1 and model is None and out is None:
        page = evaluate_run(runs[0], asked, weights=weights, data=data)
    elif not runs and model is not None and data is not None and out is not None:
        request = Request(
            model=model, weights=weights, data=data, split=split, size=size, fit=fit, normalize=normalize,
            class_map=class_map, labels=labels, skip_unreadable=skip_unreadable, batch_size=batch_size, seed=seed,
            workers=workers,
        )  # fmt: skip
        page = evaluate_checkpoint(request, out, asked)
    else:
        raise ConfigError(
            "name a run, or several runs and --out, or a network and images with --model, --data and --out; one of the three"
        )
    typer.echo(str(page.resolve()))
