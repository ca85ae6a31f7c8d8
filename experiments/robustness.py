"""Clean, corrupted and attacked accuracy of published networks: fills `docs/results/robustness`.

    PELLUCID_DATA=FOLDER python experiments/robustness.py [--minutes N] [--preset default|full] [--network WORD] [--part PART]
                                                         [--page-only]

A cell is one network and one part (clean, attack, margin, corruptions). Finished cells are kept in `cells.csv`; run it
again, or in several processes at once, to go on. The networks are named in the README of the data folder.
"""

import argparse
import dataclasses as dc
import functools
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from pellucid.data import Source, open_source
from pellucid.evals.attack import AttackCurve, attack_curve, margin_control
from pellucid.evals.attack.curve import joined as joined_curves
from pellucid.evals.classify import accuracy
from pellucid.evals.corrupt import TYPES, CorruptionTable, corrupted_accuracy
from pellucid.evals.corrupt.table import joined as joined_tables
from pellucid.jobs.robustness import rebuilt
from pellucid.preprocess import normalize
from pellucid.store import Run
from pellucid.sweep import Cell, run_cells
from pellucid.weights import apply_weights, load_weights
from pellucid.zoo import CIFAR_RESNET_MEAN, CIFAR_RESNET_STD, resnet20, resnet32

T = TypeVar("T")
HERE = Path(__file__).parent
WORK = HERE.parent / "runs" / "robustness"
RESULTS = HERE.parent / "docs" / "results" / "robustness"
PARTS = ("clean", "attack", "margin", "corruptions")


@dc.dataclass(frozen=True)
class Network:
    """A published network, the images it is judged on, and the attack that it is judged by."""

    build: Callable[[], nn.Module]
    weights: str
    data: str
    split: str
    radii: tuple[float, ...]
    steps: int
    surrogate: str = ""
    attacked: int = 500
    rgb: bool = True


@dc.dataclass(frozen=True)
class Preset:
    """How many images, and which severities."""

    corrupted: int
    severities: tuple[int, ...]
    attacked_factor: int = 1


PRESETS = {"default": Preset(1000, (1, 3, 5)), "full": Preset(10000, (1, 2, 3, 4, 5), attacked_factor=2)}


def robust_small() -> nn.Module:
    """The architecture of the provably robust networks."""
    sys.path.insert(0, str(HERE))
    from nets import robust_small as build

    return build()


SMALL = tuple(r / 255 for r in (0.5, 1, 2, 4))
LARGE = (0.05, 0.1, 0.15, 0.2, 0.3)
R20, R32 = "weights/cifar10_resnet/resnet20-12fca82f.th", "weights/cifar10_resnet/resnet32-d509ac18.th"
JPEG, LOSSLESS = "cifar10:{}/cifar10?images=jpeg", "cifar10:{}/cifar10?images=lossless"
NETWORKS: Mapping[str, Network] = {
    "robust MNIST": Network(
        robust_small, "weights/robust_small/mnist.pth", "mnist:{}/MNIST", "test", LARGE, 40,
        attacked=1000, rgb=False,
    ),
    "robust Fashion-MNIST": Network(
        robust_small, "weights/robust_small/fashion_mnist.pth", "fashion-mnist:{}/FashionMNIST", "test", LARGE, 40,
        attacked=1000, rgb=False,
    ),
    "ResNet-20, JPEG test": Network(resnet20, R20, JPEG, "test", SMALL, 20, "ResNet-32, JPEG test"),
    "ResNet-32, JPEG test": Network(resnet32, R32, JPEG, "test", SMALL, 20, "ResNet-20, JPEG test"),
    "ResNet-20, lossless": Network(resnet20, R20, LOSSLESS, "train", SMALL, 20),
    "ResNet-32, lossless": Network(resnet32, R32, LOSSLESS, "train", SMALL, 20),
}  # fmt: skip


def data_root() -> Path:
    root = os.environ.get("PELLUCID_DATA")
    if not root:
        sys.exit("PELLUCID_DATA is not set: it names the folder with the images and the weights")
    return Path(root)


def open_network(name: str) -> nn.Module:
    network = NETWORKS[name]
    model = network.build()
    apply_weights(model, load_weights(data_root() / network.weights))
    if network.rgb:
        normalize(model, CIFAR_RESNET_MEAN, CIFAR_RESNET_STD)
    return model.eval()


@functools.cache
def open_images(spec: str, split: str) -> Source:
    return open_source(spec.format(data_root()), split=split)


def images_of(name: str, n: int | None = None) -> Source:
    network = NETWORKS[name]
    source = open_images(network.data, network.split)
    return source if n is None else source.take(range(min(n, len(source))))


def measure(cell: Cell, scratch: Path, *, preset: Preset) -> Mapping[str, float]:
    """The numbers of one cell, by name; `corruption:severity` and `attack:radius` are accuracies as fractions."""
    name, part = str(cell.settings["network"]), str(cell.settings["part"])
    print(f"{name}: {part}", flush=True)
    found = {"clean": clean, "corruptions": corruptions, "attack": attack, "margin": margin}[part]
    return found(name, preset, scratch)


def kept(scratch: Path, name: str, kind: type[T], compute: Callable[[], T]) -> T:
    """A part of a cell: a killed cell goes on after its last part."""
    run = Run.open(scratch / "parts") if (scratch / "parts").exists() else Run.create(scratch / "parts")
    if not run.has(name):
        print(f"  {name}", flush=True)
        run.save(name, compute())
    return rebuilt(kind, run.load(name))


def clean(name: str, _: Preset, __: Path) -> Mapping[str, float]:
    found = accuracy(open_network(name), images_of(name), batch_size=250)
    return {"n": found.n, "accuracy": found.accuracy, "low": found.lo, "high": found.hi}


def corruptions(name: str, preset: Preset, scratch: Path) -> Mapping[str, float]:
    def table(kind: str) -> CorruptionTable:
        return corrupted_accuracy(
            open_network(name), images_of(name, preset.corrupted), [kind], preset.severities,
            frost_textures=data_root() / "frost", batch_size=100,
        )  # fmt: skip

    found = joined_tables([kept(scratch, t, CorruptionTable, functools.partial(table, t)) for t in TYPES])
    out: dict[str, float] = {"n": found.n, "accuracy": found.clean}
    out["low"], out["high"] = found.clean_interval
    out |= {"mean": found.mean, "mean low": found.mean_interval[0], "mean high": found.mean_interval[1]}
    out |= {
        "relative": found.relative,
        "relative low": found.relative_interval[0],
        "relative high": found.relative_interval[1],
    }
    columns = found.columns()
    for t, s, a, low, high in zip(
        *(columns[key] for key in ("type", "severity", "accuracy", "low", "high")), strict=True
    ):
        out |= {f"{t}:{s}": a, f"{t}:{s} low": low, f"{t}:{s} high": high}
    return out


def attack(name: str, preset: Preset, scratch: Path) -> Mapping[str, float]:
    network = NETWORKS[name]

    def curve(radius: float) -> AttackCurve:
        return attack_curve(
            open_network(name), images_of(name, network.attacked * preset.attacked_factor), [radius],
            steps=network.steps, surrogate=open_network(network.surrogate) if network.surrogate else None,
            checked=128, batch_size=100,
        )  # fmt: skip

    found = joined_curves(
        [kept(scratch, f"radius_{r:.6g}", AttackCurve, functools.partial(curve, r)) for r in network.radii]
    )
    for problem in found.problems:
        print(f"  problem: {problem}", flush=True)
    out: dict[str, float] = {
        "n": found.n, "accuracy": found.clean, "low": found.low[0], "high": found.high[0], "steps": found.steps,
        "checked": found.checked, "whole": found.whole, "gradient norm": found.gradient_norm,
        "zero gradient": found.zero_gradient, "problems": len(found.problems), "notes": len(found.notes),
    }  # fmt: skip
    for i, r in enumerate(found.radii):
        out |= {
            f"pgd:{r:.6g}": found.accuracy[i], f"pgd:{r:.6g} low": found.low[i], f"pgd:{r:.6g} high": found.high[i],
            f"fgsm:{r:.6g}": found.fgsm[i], f"again:{r:.6g}": found.again[i],
            f"more steps:{r:.6g}": found.more_steps[i],
        }  # fmt: skip
        if found.transfer is not None:
            out[f"transfer:{r:.6g}"] = found.transfer[i]
    return out


def margin(name: str, _: Preset, __: Path) -> Mapping[str, float]:
    network = NETWORKS[name]
    radii = network.radii[:3]
    found = margin_control(
        open_network(name), images_of(name, 100), radii, steps=network.steps, batch_size=100
    )
    out: dict[str, float] = {"n": found.n, "not found": found.not_found}
    out |= dict(zip(("relative q1", "relative median", "relative q3"), found.quartiles, strict=True))
    for i, r in enumerate(found.radii):
        out |= {
            f"plain:{r:.6g}": found.plain[i],
            f"normalized:{r:.6g}": found.normalized[i],
            f"worst:{r:.6g}": found.worst[i],
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=None, help="start no cell that would not end within this"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--network", default="", help="only the networks whose name holds this")
    parser.add_argument("--part", choices=PARTS, default=None, help="only this part, and clean accuracy")
    parser.add_argument("--page-only", action="store_true", help="write page and figures from cells.csv")
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder = WORK / chosen.preset
    results = RESULTS if chosen.preset == "default" else RESULTS / chosen.preset
    table = results / "cells.csv"
    if table.exists() and not (folder / "cells.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(table, folder / "cells.csv")
    if not chosen.page_only:
        parts = PARTS if chosen.part is None else dict.fromkeys(("clean", chosen.part))
        networks = [name for name in NETWORKS if chosen.network in name]
        cells = [Cell({"network": n, "part": p}, 0, 0) for p in parts for n in networks]
        work = functools.partial(measure, preset=PRESETS[chosen.preset])
        state = run_cells(cells, work, folder, minutes=chosen.minutes, retry_failed=True)
        print(f"{state.done} of {len(cells)} cells done, {state.failed} failed, {state.claimed} with others")
    results.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "cells.csv", table)
    from robustness_page import write_page

    write_page(table, results)


if __name__ == "__main__":
    main()
