"""`pellucid train`: a recipe becomes a run folder with weights, history and a page about the network."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pellucid._checks import StaleResultError
from pellucid.jobs.progress import progress, say

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pellucid.recipe.build import Training
    from pellucid.store import Run
    from pellucid.train import History
    from pellucid.train.processes import Processes

WEIGHTS = "weights.safetensors"
CHECKPOINT = "training"
# Where and how fast a training runs is no part of what it is: another machine may go on with it.
ELSEWHERE = {"train.device", "train.every", "data.workers"}


def train_recipe(path: Path, out: Path, *, device: str | None = None, beside: Path | None = None) -> Path:
    """Do everything that `pellucid train` does; the path of the page.

    The run keeps the resolved recipe, `weights.safetensors`, the table `history`, and what inspecting the
    trained network on the test data gives. Called again it goes on where it was stopped, or finds the run
    complete. Under `torchrun` all processes call it.

    Args:
        beside: A run to show the effect of a selectivity term against: the same network and images without the term.

    Raises:
        ConfigError: A fault in the recipe, or a folder that cannot be written.
        StaleResultError: The folder holds a run of another recipe.
    """
    from pellucid.jobs.constraint import measure, save_effect
    from pellucid.jobs.opening import check_run_folder
    from pellucid.jobs.selectivity import check_beside, keep_effect
    from pellucid.jobs.standing import nothing_left_behind
    from pellucid.jobs.tapping import tapped_layers
    from pellucid.recipe import load_recipe
    from pellucid.recipe.build import build
    from pellucid.train.processes import open_processes

    recipe = load_recipe(path)
    if device is not None:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"device": device})})
    check_run_folder(out)
    training = build(recipe)
    crew = open_processes(recipe.train.device, training.model)
    check_beside(training, beside)
    training.model.to(crew.device)
    if training.test is not None:
        tapped_layers(training.model, training.test, recipe.inspect.layers, device=crew.device)
    before = measure(training)
    with nothing_left_behind(out):
        run = open_run(out, training, crew)
        history = fit_recipe(training, run, crew)
    if crew.rank == 0:
        save_weights(training.model, run)
        run.save_table("history", history.columns, inputs=run.header["inputs"])
        save_effect(training, run, before)
        say(f"trained: {', '.join(f'{name} {value:.4g}' for name, value in history.last.items())}")
    crew.wait()
    page = write_page(training, run, crew)
    if crew.rank == 0:
        page = keep_effect(training, run, history, beside) or page
    return page if not recipe.activations or training.test is None else write_sparsity(training, run, crew)


def write_sparsity(training: "Training", run: "Run", crew: "Processes") -> Path:
    """How few units are on where a recipe put other activation functions in; the page again."""
    from pellucid.jobs.sparsity import Measure, add_sparsity
    from pellucid.report import write_report
    from pellucid.weights import weights_hash

    assert training.test is not None  # the caller looked
    asked = Measure(layers=tuple(training.recipe.inspect.layers), batch_size=training.recipe.train.batch_size)
    hashed = weights_hash(training.model)
    add_sparsity(run, training.model, training.test, asked, weights=hashed, device=crew.device)
    return write_report(run)


def open_run(out: Path, training: "Training", crew: "Processes") -> "Run":
    """The run folder: made by the first process, or found again with the same recipe and data."""
    from pellucid.jobs import standing
    from pellucid.store import Run

    recipe = training.recipe
    inputs = {"data": training.source.fingerprint()}
    if recipe.model.weights is not None:
        inputs["weights"] = hashlib.sha256(Path(recipe.model.weights).read_bytes()).hexdigest()
    if crew.rank == 0:
        standing.open_run(
            out, "train", {"recipe": recipe.model_dump(), "seed": recipe.train.seed, "inputs": inputs}
        )
    crew.wait()
    run = Run.open(out)
    was, now = flat(run.header.get("recipe", {})), flat(recipe.model_dump())
    changed = [
        f"{key} was {was.get(key)!r}, now {now.get(key)!r}"
        for key in sorted({*was, *now} - ELSEWHERE)
        if was.get(key) != now.get(key)
    ]
    there = run.header.get("inputs", {})
    changed += [
        f"the {what} are not the ones it began with" for what in inputs if there.get(what) != inputs[what]
    ]
    if changed:
        raise StaleResultError(
            f"{out} holds a run of another recipe ({'; '.join(changed)}); choose another folder, or delete it"
        )
    return run


def flat(recipe: Any, place: str = "") -> dict[str, Any]:
    """Every value of a recipe by its dotted place in the file."""
    if isinstance(recipe, Mapping):
        parts = cast("Mapping[str, Any]", recipe).items()
    elif isinstance(recipe, list):
        parts = enumerate(cast("list[Any]", recipe), start=1)
    else:
        return {place: recipe}
    return {k: v for key, part in parts for k, v in flat(part, f"{place}.{key}".removeprefix(".")).items()}


def fit_recipe(training: "Training", run: "Run", crew: "Processes") -> "History":
    """Train, or go on, or find it trained; the checkpoint lies in the run."""

    part = training.recipe.train
    if crew.rank == 0 and not (run.path / WEIGHTS).exists():
        say(
            f"training on {len(training.source):,} examples of {training.source.name}, {part.epochs} epochs ({crew.device})"
        )
    with progress("training steps") as report:
        return fit_training(
            training,
            run.path / CHECKPOINT,
            device=crew.device,
            progress=report if crew.rank == 0 else None,
        )


def fit_training(
    training: "Training",
    checkpoint: Path,
    *,
    device: "torch.device | str | None" = None,
    progress: Callable[[int, int], object] | None = None,
) -> "History":
    """`fit` with everything that a recipe says."""
    from pellucid.train import fit

    part, schedule = training.recipe.train, training.recipe.schedule
    return fit(
        training.model,
        training.source,
        training.optimizer,
        training.terms,
        weights=training.weights,
        epochs=part.epochs,
        batch_size=part.batch_size,
        seed=part.seed,
        prepare=training.prepare,
        validation=training.validation,
        schedule=training.schedule,
        schedule_by="epoch" if schedule is None else schedule.by,
        checkpoint=checkpoint,
        every=part.every,
        device=device,
        precision=part.precision,
        accumulate=part.accumulate,
        clip=part.clip,
        progress=progress,
    )


def save_weights(model: "nn.Module", run: "Run") -> None:
    """The trained weights under the model's own keys, for `--weights`."""
    from safetensors.torch import save

    from pellucid.store import write_bytes

    state = {k: v.detach().cpu().clone().contiguous() for k, v in model.state_dict().items()}
    write_bytes(run.path / WEIGHTS, save(state))


def write_page(training: "Training", run: "Run", crew: "Processes") -> Path:
    """Inspect the network on the test data and write the page; without, the page shows the training."""
    from pellucid.jobs.inspect import Request, inspect_model
    from pellucid.report import write_report

    recipe, facts = training.recipe, model_facts(training)
    if training.test is None:
        run.save("model", facts)
        run.save("classes", {"classes": list(training.source.classes)})
        return write_report(run)
    part = recipe.data
    request = Request(
        model=recipe.model.spec,
        data=part.test or part.spec,
        layers=tuple(recipe.inspect.layers),
        split=part.test_split,
        size=None if part.size is None else str(part.size),
        fit=part.fit,
        class_map=None if part.class_map is None else Path(part.class_map),
        labels=None if part.labels is None else Path(part.labels),
        top=recipe.inspect.top,
        skip_unreadable=part.skip_unreadable,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
    )
    training.model.eval()
    return inspect_model(
        training.model,
        training.test,
        run.path,
        request=request,
        model_facts=facts,
        device=crew.device,
        job="train",
    )


def model_facts(training: "Training") -> dict[str, Any]:
    """What a page says about the trained network."""
    from pellucid.weights import weights_hash

    recipe, model = training.recipe, training.model
    return {
        "spec": recipe.model.spec,
        "name": type(model).__name__
        if recipe.model.spec.count(":") == 0
        else recipe.model.spec.rpartition(":")[2],
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": WEIGHTS,
        "weights_hash": weights_hash(model),
        "trained": True,
        "upcast": False,
        "normalize": None if recipe.normalize is None else recipe.normalize.model_dump(),
        "notes": [f"trained by a recipe: {recipe.train.epochs} epochs, seed {recipe.train.seed}"],
    }
