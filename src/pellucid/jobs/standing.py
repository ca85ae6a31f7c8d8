"""Where a run folder stands: made here or found again, of the same job, from the same inputs, complete or not."""

import inspect
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid._checks import ConfigError, PellucidError, StaleResultError

if TYPE_CHECKING:
    from torch import nn

    from pellucid.store import Run
    from pellucid.taps import LayerInfo

# What a killed job leaves to go on from; a folder without it that ended in an error is taken away again.
PROGRESS = ("recording.safetensors", "search.safetensors", "training/e*", "training/*/e*", "tables/*")
# Bytes of pages and tables a unit, and of a thumbnail, measured on runs of 8,000 units.
UNIT_BYTES, THUMB_BYTES = 6_000, 14_000


def open_run(out: Path, job: str, facts: Mapping[str, Any]) -> "Run":
    """The run of this job in `out`, made if there is none.

    Raises:
        ConfigError: `out` holds the run of another job.
    """
    from pellucid.store import Run

    if not (out / "run.json").exists():
        return Run.create(out, {"job": job, **facts})
    run = Run.open(out)
    if run.header.get("job") != job:
        raise ConfigError(
            f"{out} is a run of `pellucid {run.header.get('job')}`, not of `pellucid {job}`; choose another --out"
        )
    return run


@contextmanager
def nothing_left_behind(out: Path) -> Generator[None]:
    """After an error that left no progress, a run folder that was made here is removed again."""
    was_there, held = out.exists(), (out / "run.json").exists()
    try:
        yield
    except PellucidError:
        progress = any(next(out.glob(pattern), None) for pattern in PROGRESS)
        if not held and not progress:
            if was_there:
                (out / "run.json").unlink(missing_ok=True)
                shutil.rmtree(out / "training", ignore_errors=True)
            else:
                shutil.rmtree(out, ignore_errors=True)
        raise


def model_code(model: "nn.Module", spec: str, infos: Sequence["LayerInfo"]) -> str:
    """A hash of what a model computes apart from its weights: its spec, structure, layer shapes and source files."""
    from pellucid.store import digest
    from pellucid.taps import unwrap

    inner = unwrap(model)
    modules = {spec.partition(":")[0], *(type(module).__module__ for module in inner.modules())}
    sources = {name: _source(name) for name in modules if name.partition(".")[0] != "torch"}
    rows = [[info.name, info.type, list(info.shape)] for info in infos]
    return digest([spec, repr(inner), rows, sources])


def _source(module: str) -> str:
    """The text of a module's file; "" where there is none."""
    if module not in sys.modules:
        return ""
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return ""


def check_same(
    run: "Run", recipe: Mapping[str, Any], inputs: Mapping[str, str], *, state: str = "is complete"
) -> None:
    """Raise `StaleResultError`, in the words of the command line, when a run was made from something else."""
    from pellucid.store import digest

    then = run.header.get("inputs", {})
    differ = [name for name in inputs if then.get(name) != inputs[name]]
    if not differ:
        return
    before = run.header.get("recipe", {})
    options = [
        f"--{key.replace('_', '-')} {before.get(key)} then, {value} now"
        for key, value in recipe.items()
        if digest(before.get(key)) != digest(value)
    ]
    words = "; ".join(options) or f"the {', the '.join(differ)} changed"
    raise StaleResultError(
        f"{run.path} {state}, and was computed from something else ({words}); choose another --out, or delete that "
        "folder to compute it again"
    )


def space_needed(infos: Sequence["LayerInfo"], examples: int, *, shown: int) -> int:
    """About how many bytes the run will take: tables and pages by unit, thumbnails by example."""
    units = sum(info.units for info in infos)
    return UNIT_BYTES * units + THUMB_BYTES * min(examples, units * shown) + 2_000_000
