"""The invariance study runs end to end on digits, goes on where it stopped, and writes its page; its claims can be registered."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from studies import run_study

ROOT = Path(__file__).parents[1]


def study(out: Path, *options: str) -> str:
    return run_study("invariance", out, *options)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_study_runs_and_goes_on(tmp_path: Path) -> None:
    assert "done=1" in study(tmp_path, "--paradigm", "standard", "--regulariser", "adversary")
    printed = study(tmp_path)
    assert "digits networks SweepState(done=3, failed=0" in printed
    assert "digits inversions SweepState(done=9, failed=0" in printed
    networks = table(tmp_path / "results" / "digits" / "networks.csv")
    assert all(0 <= float(row[name]) <= 1 for row in networks for name in ("accuracy", "attacked", "probe"))
    cells = tmp_path / "results" / "digits" / "cells.csv"
    by_kind = {r["regulariser"]: r for r in table(cells) if r["paradigm"] == "standard"}
    assert set(by_kind) == {"free", "human-leaning", "adversary"}
    for name in (
        "afc.ssim",
        "afc_low.ssim",
        "afc.self-trained 1",
        "afc.untrained trunk",
        "afc.mean",
        "cluster.lab",
    ):
        assert 0 <= float(by_kind["free"][name]) <= 100
    assert float(by_kind["free"]["items"]) == 24 and 0 <= float(by_kind["free"]["valid"]) <= 1
    assert float(by_kind["free"]["stir.standard"]) >= 0 and float(by_kind["adversary"]["feasible.0.9"]) > 0
    before = cells.read_text()
    study(tmp_path)
    assert cells.read_text() == before
    study(tmp_path, "--page")
    page = (tmp_path / "results" / "index.md").read_text()
    assert "| inversions | 9 | 9 | 0 (none) |" in page and "Alignment, regulariser-free" in page
    assert (tmp_path / "results" / "alignment.svg").stat().st_size > 2000
    assert len(list((tmp_path / "results" / "digits" / "pictures").glob("*.png"))) == 9


CLAIMS = """
import sys
from pathlib import Path
import numpy as np
from invariance_claims import METRICS, Cells, build, claims, decide, findings, ledger_at, register_all
ledger = ledger_at(Path(sys.argv[1]))
register_all(ledger)
register_all(ledger)
every = claims()
assert len(ledger.entries()) == len(every) == len(METRICS) * len(findings())
assert {f.number for f, _, _ in every} == {1, 2, 3} and len({c.sha256 for _, _, c in every}) == len(every)
finding, metric, claim = next(e for e in every if "standard training" in e[0].statement and e[1] == "ssim")
net = finding.treated[0][0]
def row(paradigm, replicate, value):
    return {"architecture": net, "paradigm": paradigm, "regulariser": "free", "replicate": str(replicate),
            "status": "done", "afc.ssim": str(value)}
rows = [row("standard", r, v) for r, v in enumerate((2, 1, 4))]
assert decide(finding, metric, claim, cells=Cells(rows), ledger=ledger).verdict is None
rows += [row("adversarial L2", r, v) for r, v in enumerate((88, 92, 90))]
found = decide(finding, metric, claim, cells=Cells(rows), ledger=ledger).verdict
assert found.outcome == "supported" and found.label == "confirmatory", (found, found.label)
flat = [row(p, r, 0) for r in range(3) for p in ("standard", "adversarial L2")]
none = decide(finding, metric, build(finding, "lab"), cells=Cells([{**r, "afc.lab": r["afc.ssim"]} for r in flat]), ledger=ledger)
assert none.verdict is None and none.why.startswith("cannot be judged"), none
"""


@pytest.mark.slow
def test_claims_are_registered_once_and_decided_by_their_cells(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLAIMS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "experiments"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


FOLDED = """
import dataclasses as dc
import torch
from torch import nn
from invariance_nets import built, folded, on_copy
from invariance_setup import setups
from pellucid.attack import L2, adversarial
from pellucid.data import Batch
from pellucid.preprocess import normalize
from pellucid.rng import rng
setup = setups("smoke")["digits"]
for name in ("resnet8", "robust_small"):
    model = built(setup, name, 0).train()
    normalize(model, (0.4,), (0.3,))
    with torch.no_grad():
        for k in range(3):
            model(torch.rand(20, 1, 28, 28, generator=rng(k)))
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    quick, x = folded(model), torch.rand(6, 1, 28, 28, generator=rng(9))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in quick.modules())
    with torch.no_grad():
        torch.testing.assert_close(quick(x), model(x), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    attack, rows = adversarial(L2(1.0), steps=2), Batch(x, torch.arange(6), torch.arange(6))
    plain, copied = (prepare(model, rows, rng(1)).inputs for prepare in (attack, on_copy(attack)))
    torch.testing.assert_close(plain, copied, atol=1e-3, rtol=0)
    assert float((copied - x).abs().max()) > 0.01
"""


@pytest.mark.slow
def test_searches_and_attacks_on_the_folded_copy_are_those_of_the_network() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOLDED],
        env={**os.environ, "PYTHONPATH": str(ROOT / "experiments"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
