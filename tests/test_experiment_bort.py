"""The study of Bort runs end to end on digits, goes on where it stopped, writes its page, and decides its claims."""

import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from pellucid._checks import ConfigError
from pellucid.claims import Ledger, register
from pellucid.rng import rng
from pellucid.sweep.locks import held
from pellucid.train import seeded
from studies import run_study

ROOT = Path(__file__).parents[1]
PARTS = (
    "bort",
    "bort_cell",
    "bort_claims",
    "bort_data",
    "bort_figures",
    "bort_measures",
    "bort_page",
    "bort_rows",
    "bort_setup",
    "bort_sparse",
)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Gives a module of the study by name; nothing of it stays on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.setenv("PELLUCID_SCRATCH", str(tmp_path / "scratch"))
    yield importlib.import_module
    for name in PARTS:
        sys.modules.pop(name, None)


def study(out: Path, *options: str) -> str:
    return run_study("bort", out, *options)


@pytest.mark.slow
def test_the_study_runs_and_goes_on(tmp_path: Path) -> None:
    assert "done=9" in study(tmp_path, "--optimizer", "adamw")
    assert "done=18" in study(tmp_path)
    table = tmp_path / "results" / "digits" / "cells.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["status"] == "done" for row in rows)
    final = [row for row in rows if row["phase"] == "final"]
    assert len(final) == 6 and len(rows) == 18
    tried = {
        (r["optimizer"], r["arm"], r["lr"], r["weight_decay"], r["strength"])
        for r in rows
        if r["phase"] == "tuning"
    }
    assert all((r["optimizer"], r["arm"], r["lr"], r["weight_decay"], r["strength"]) in tried for r in final)
    assert {r["seed"] for r in final}.isdisjoint(r["seed"] for r in rows if r["phase"] == "tuning")
    wanted = (
        "accuracy",
        "defect",
        "defect.conv3",
        "error.act1",
        "error_pinv.act3",
        "error_search.act3",
        "cosine.act3",
    )
    wanted += (
        "noise_gain",
        "deletion.SAT",
        "insertion.random",
        "deletion.centre",
        "edit.1",
        "blend_size.2",
        "step.0.25",
    )
    assert all(float(row[name]) >= 0 for row in final for name in wanted)
    assert not (tmp_path / "results" / "claims.jsonl").exists(), "a smoke run registers nothing"
    study(tmp_path, "--page")
    page = (tmp_path / "results" / "index.md").read_text()
    assert "| 12 | 12 | 6 | 6 | none |" in page and "**" in page
    assert (tmp_path / "results" / "error_depth.svg").stat().st_size > 2000
    assert (tmp_path / "results" / "pictures_digits.png").stat().st_size > 500


def test_the_default_grid_is_what_the_page_says(part) -> None:
    study = part("bort")
    for dataset, tuning, final in (("mnist", 54, 27), ("cifar10", 60, 30)):
        cells = study.cells_of("default", dataset)
        assert len({cell.name for cell in cells}) == len(cells) == tuning + final
        for cell in cells[tuning:]:
            assert len(study.needs(cell, cells)) == 6, "every arm has the same budget"
        assert cells[tuning].settings["net"] == "plain" and cells[tuning].replicate == 0
        seeds = [{c.seed for c in cells if c.settings["phase"] == phase} for phase in ("tuning", "final")]
        assert seeds[0].isdisjoint(seeds[1])


def test_every_setting_is_safe_and_strong_enough(part) -> None:
    """lr x strength x every is at most 1/2, and the pull budget of a whole training at least 5."""
    setup = part("bort_setup")
    steps = setup.setups("default")["mnist"].epochs * 10_000 / 64
    for grid in setup.GRIDS.values():
        for arm, every in setup.ARMS.items():
            choices = grid.choices(arm)
            assert len(set(choices)) == 6
            for choice in choices:
                assert choice.lr * choice.strength * max(every, 1) <= 0.5
                assert bool(choice.strength) == bool(every) and not (every and choice.weight_decay)
                assert not every or choice.lr / 2 * choice.strength * steps >= 5


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, 1, 6), (2, 1, 7), (2, 0, 8), (3, 2, 5)])
def test_leaving_out_zeros_of_a_gradient_changes_no_gradient(
    part, stride: int, padding: int, size: int
) -> None:
    sparse = part("bort_sparse")
    with seeded(0):
        conv = nn.Conv2d(3, 7, 3, stride, padding).double()
        model = nn.Sequential(
            conv, nn.LeakyReLU(0.5), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(7, 4).double()
        )
    model.to(memory_format=torch.channels_last)
    images = torch.rand(9, 3, size, size, generator=rng(0, "images"), dtype=torch.float64).requires_grad_()

    def gradients(weigh) -> list[torch.Tensor]:
        return list(torch.autograd.grad(weigh(model), [images, *model.parameters()]))

    def head(net) -> torch.Tensor:
        return net(images).square().sum()

    def everywhere(net) -> torch.Tensor:  # no gradient is zero: the usual backward pass
        return net[0](images).square().sum() + 0 * head(net)

    for weigh in (head, everywhere):
        wanted = gradients(weigh)
        sparse.SPARSE = 0.9
        with sparse.sparse_gradient(model, "0"):
            assert type(conv) is not nn.Conv2d
            found = gradients(weigh)
        assert type(conv) is nn.Conv2d
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="no convolution"), sparse.sparse_gradient(model, "4"):
        pass
    with sparse.sparse_gradient(model, ""):
        assert type(conv) is nn.Conv2d


def write(table: Path, rows: list[dict[str, object]]) -> None:
    names = list(dict.fromkeys(key for row in rows for key in row))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def test_a_final_cell_takes_the_best_setting_and_refuses_before_there_is_one(part, tmp_path: Path) -> None:
    study, cell_part = part("bort"), part("bort_cell")
    cells = study.cells_of("smoke", "digits")
    final = next(c for c in cells if c.settings["phase"] == "final" and c.settings["arm"] == "every 1")
    tuning = study.needs(final, cells)
    rows = [
        {"cell": c.name, **c.settings, "replicate": 0, "status": "done", "validation": score}
        for c, score in zip(tuning, (0.5, 0.7), strict=True)
    ]
    write(tmp_path / "cells.csv", rows[:1])
    with pytest.raises(ConfigError, match="1 of 2 tuning cells"):
        cell_part.best_choice(tmp_path / "cells.csv", final, settings=2)
    write(tmp_path / "cells.csv", rows)
    found = cell_part.best_choice(tmp_path / "cells.csv", final, settings=2)
    assert (found.lr, found.strength) == (1e-3, 16.0)
    write(tmp_path / "cells.csv", [{**row, "validation": 0.5} for row in rows])
    assert cell_part.best_choice(tmp_path / "cells.csv", final, settings=2).strength == 8.0, (
        "the first of equals"
    )


def test_a_final_cell_waits_for_tuning_that_another_process_computes(part, tmp_path: Path) -> None:
    study = part("bort")
    sweep = study.sweep_of("smoke", "digits", tmp_path / "results")
    final = [cell for cell in sweep.cells if cell.settings["phase"] == "final"]
    assert not sweep.one(final, retry=False) and not sweep.waiting(final), "nobody tunes: nothing to wait for"
    claim = sweep.folder / "claims" / f"{sorted(sweep.needed[final[0].name])[0]}.lock"
    claim.parent.mkdir(parents=True)
    with held(claim):
        assert sweep.waiting(final) and not sweep.one(final, retry=False)


def test_a_cell_that_fails_each_time_is_not_retried_for_ever(
    part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = part("bort")
    calls: list[str] = []

    def fail(cell, scratch, **_options):
        calls.append(cell.name)
        raise ValueError("each time")

    monkeypatch.setattr(study, "run_cell", fail)
    for times in (1, 2):
        sweep = study.sweep_of("smoke", "digits", tmp_path / "results")
        study.compute({sweep: sweep.cells[:2]}, minutes=1, retry=True)
        assert len(calls) == 2 * times
    assert sweep.state().failed == 2
    study.compute({sweep: sweep.cells[:2]}, minutes=1, retry=False)
    assert len(calls) == 4


def network(arm: str, replicate: int, *, accuracy: float, error: float, edit: float) -> dict[str, str]:
    """A finished cell of the plain network with AdamW, as text."""
    wobble = (0.0, 0.4, -0.3)[replicate]
    numbers = {
        "accuracy": accuracy + 0.001 * wobble, "defect": (0.1 if arm != "plain" else 0.9) + 0.01 * wobble,
        "error.act3": error * (1 + 0.1 * wobble), "edit.1": edit + 0.01 * wobble, "blend.1": 0.5 - 0.005 * wobble,
        "noise.1": 0.02, "deletion.SAT": 0.5 + 0.01 * wobble, "deletion.random": 0.48, "deletion.centre": 0.3,
    }  # fmt: skip
    place = {
        "status": "done",
        "phase": "final",
        "net": "plain",
        "optimizer": "adamw",
        "arm": arm,
        "replicate": str(replicate),
    }
    return {**place, **{key: str(value) for key, value in numbers.items()}}


def networks(claims: ModuleType, *, fall: float, error: float, edit: float) -> list[dict[str, str]]:
    found = [network("plain", r, accuracy=0.97, error=12.0, edit=0.5) for r in range(claims.REPLICATES)]
    # In another order, so that the paired differences vary.
    return found + [
        network("every 1", (r + 1) % 3, accuracy=0.97 - fall, error=error, edit=edit) | {"replicate": str(r)}
        for r in range(3)
    ]


@pytest.mark.parametrize(
    ("fall", "error", "edit", "outcomes"),
    [
        (0.0, 0.5, 0.7, ["supported", "supported", "supported", "refuted"]),
        (-0.02, 0.5, 0.5, ["supported", "supported", "refuted", "refuted"]),
        (0.02, 4.0, 0.55, ["refuted", "refuted", "inconclusive", "refuted"]),
    ],
)
def test_claims_are_decided_as_they_should(
    part, tmp_path: Path, fall: float, error: float, edit: float, outcomes: list[str]
) -> None:
    claims = part("bort_claims")
    ledger = Ledger(tmp_path / "claims.jsonl")
    ours = [c for c in claims.claims() if c.data.spec == "mnist" and c.measure.args["optimizer"] == "adamw"]
    for claim in ours:
        register(claim, ledger)
    rows = networks(claims, fall=fall, error=error, edit=edit)
    early = [claims.decide(claim, rows[:-1], ledger) for claim in ours]
    assert all(one.verdict is None for one in early) and not [
        e for e in ledger.entries() if e.event == "opened"
    ]
    found = [claims.decide(claim, rows, ledger).verdict for claim in ours]
    assert [verdict.outcome for verdict in found] == outcomes
    assert all(verdict.label == "confirmatory" for verdict in found)
    again = [claims.decide(claim, rows, ledger).verdict.outcome for claim in ours]
    assert again == outcomes and ledger.verify() == []


def test_every_claim_is_registered_once(part, tmp_path: Path) -> None:
    claims = part("bort_claims")
    ledger = Ledger(tmp_path / "claims.jsonl")
    claims.register_all(ledger)
    claims.register_all(ledger)
    assert ledger.tally().registered == len(claims.claims()) == 16
    kept = {entry.claim for entry in Ledger(ROOT / "docs" / "results" / "bort" / "claims.jsonl").entries()}
    assert {claim.sha256 for claim in claims.claims()} <= kept, (
        "a registered claim was changed: amend it in the ledger"
    )


def test_a_constraint_without_effect_makes_its_claims_invalid(part, tmp_path: Path) -> None:
    claims = part("bort_claims")
    ledger = Ledger(tmp_path / "claims.jsonl")
    rows = [
        {**row, "defect": str(0.9 + 0.001 * i)}
        for i, row in enumerate(networks(claims, fall=0, error=0.5, edit=0.7))
    ]
    ours = claims.claims()[:2]
    for claim in ours:
        register(claim, ledger)
    outcomes = [claims.decide(claim, rows, ledger).verdict.outcome for claim in ours]
    assert outcomes == ["invalid", "invalid"]
