"""`pellucid study create` and `freeze`: from inversion runs to a design file, from a design file to a study that can be served."""

import os
import re
from pathlib import Path

from pellucid._checks import ConfigError
from pellucid.study.design import Study, load_study, parse_study
from pellucid.study.frozen import Frozen, freeze
from pellucid.study.items import build_pool
from pellucid.study.template import design_toml
from pellucid.study.verdicts import register_claims, study_claims

LEDGER = "claims.jsonl"
MOST_AFC = 80
"""More trials than this take longer than 15 to 20 minutes."""


def create_design(runs: list[Path], out: Path, *, title: str) -> str:
    """Write a design file for these runs, to be edited; a line that says what comes next.

    Raises:
        ConfigError: a run without inversions, too few targets, or a file that is there already.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already; edit it, or write to another file")
    base = out.absolute().parent
    names = [os.path.relpath(run.absolute(), base) for run in runs]
    name = re.sub(r"[^a-z0-9]+", "-", out.stem.lower()).strip("-")[:63] or "study"
    trial = parse_study(design_toml(names, name=name, title=title, afc=1), name=str(out))
    pool = build_pool(trial, base=base)
    targets = len({item.target for item in pool.items})
    afc = min(MOST_AFC, targets - trial.trials.practice)
    if afc < 1:
        raise ConfigError(
            f"these runs share {targets} valid targets, of which {trial.trials.practice} are for practice"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    text = design_toml(names, name=name, title=title, afc=afc, file=out.name)
    out.write_text(text, encoding="utf-8")
    cells = sorted({item.cell for item in pool.items})
    return (
        f"{out}: {len(pool.items)} items, {targets} targets in {len(cells)} condition{'s' if len(cells) > 1 else ''} "
        f"({', '.join(cells)}). Edit it, then: pellucid study freeze {out} --out FOLDER"
    )


def freeze_study(design: Path, out: Path) -> str:
    """Check a design against its runs, freeze both in a folder, register its claims; a line that says what was frozen."""
    study = load_study(design)
    frozen = freeze(study, build_pool(study, base=design.absolute().parent), out)
    cells = sorted({item.cell for item in frozen.items})
    if study.trials.afc:
        register_claims(study_claims(study, cells, version=frozen.sha256), out / LEDGER)
    said = f"{out}: {in_words(frozen)}. Version {frozen.sha256[:12]}. Next: pellucid study serve {out}"
    if left := unedited(study):
        said += f"\nParticipants would read what the template says as {' and '.join(left)}: edit {design} and freeze it to a new folder."
    return said


def unedited(study: Study) -> list[str]:
    """The texts that only the experimenter can write, and that still stand as the template has them."""
    template = parse_study(design_toml(["run"], name="template", title="template"))
    return [
        f"texts.{n}" for n in ("contact", "ethics") if getattr(study.texts, n) == getattr(template.texts, n)
    ]


def in_words(frozen: Frozen) -> str:
    """How large the study is."""
    study, cells = frozen.study, {item.cell for item in frozen.items}
    return (
        f"{len(frozen.items)} items in {len(cells)} condition{'s' if len(cells) > 1 else ''}, {study.trials.shown} trials "
        f"for each of {frozen.quota} participants, {study.trials.raters} answers an item"
    )
