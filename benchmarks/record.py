"""What recording costs: beside the bare forward pass, beside two naive ways, and in memory.

    python benchmarks/record.py                       both networks, one and two threads, and memory
    python benchmarks/record.py --only resnet18 --threads 1 --batches 40

Every ratio is the median of the ratios to the bare forward pass measured within the same batch, so a machine that is
busy for a while does not favour either. `fill` are the first batches, while the lists of top examples fill; `steady` is
what comes after. Needs the extra `vision`; random weights and inputs, nothing is downloaded.
"""

import argparse
import copy
import dataclasses as dc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.data import Batch, Source
from pellucid.record import record
from pellucid.stats import ClassMoments, Moments, Stat, TopExamples
from pellucid.taps import Tap, layers

BATCH, SIZE, CLASSES, K = 16, 224, 10, 16


def resnet18() -> tuple[nn.Module, list[str]]:
    """ResNet-18 and its 17 ReLU outputs: in each block one module runs twice."""
    from torchvision.models import resnet18 as build

    model = build().eval()
    return model, [layer.name for layer in layers(model, torch.zeros(1, 3, 64, 64)) if layer.type == "ReLU"]


def vit_tiny() -> tuple[nn.Module, list[str]]:
    """ViT-Tiny/16 and the 12 outputs of its MLP nonlinearity."""
    import timm

    model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    return model, [f"blocks.{i}.mlp.act" for i in range(12)]


MODELS = {"resnet18": resnet18, "vit_tiny": vit_tiny}


@dc.dataclass(frozen=True)
class Interleaved(Source):
    """Random images; before each batch is handed out, the other ways are timed on it. `record` gets what remains."""

    ways: Mapping[str, Any] = dc.field(default_factory=dict)
    seconds: dict[str, list[float]] = dc.field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter

    def batches(self, size: int, **_: Any) -> Iterator[Batch]:
        draw = torch.Generator().manual_seed(0)
        for number in range(len(self) // size):
            inputs = torch.rand(size, 3, SIZE, SIZE, generator=draw)
            targets = torch.randint(CLASSES, (size,), generator=draw)
            batch = Batch(inputs, targets, torch.arange(number * size, (number + 1) * size), number=number)
            # Whoever runs right after the pause finds other caches: take turns.
            names = list(self.ways)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                self._time(name, batch)
            started = self.clock()
            yield batch
            self.seconds.setdefault("record", []).append(self.clock() - started)

    def _time(self, name: str, batch: Batch) -> None:
        started = self.clock()
        self.ways[name](batch)
        self.seconds.setdefault(name, []).append(self.clock() - started)


def counted_layers(model: nn.Module, names: list[str]) -> Iterator[tuple[nn.Module, dict[int, str]]]:
    """Each module with the names of its calls."""
    modules: dict[str, dict[int, str]] = {}
    for name in names:
        layer, _, call = name.partition("#")
        modules.setdefault(layer, {})[int(call or 0)] = name
    for layer, calls in modules.items():
        yield model.get_submodule(layer), calls


def on(names: list[str], chosen: dict[str, Stat]) -> dict[str, dict[str, Stat]]:
    """The same statistics on every layer."""
    return {name: chosen for name in names}  # noqa: C420 - sharing is meant


class Keep:
    """Naive: every hook keeps its whole activation until the forward is over."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.model, self.kept = copy.deepcopy(model), []
        for module, _ in counted_layers(self.model, names):
            module.register_forward_hook(lambda *seen: self.kept.append(seen[2].detach().clone()))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> None:
        self.kept.clear()
        self.model(batch.inputs)


class HookByHook:
    """Naive: every hook updates the statistics of its own layer, with the place of every maximum."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.model, self.batch, self.calls = copy.deepcopy(model), None, {}
        for module, calls in counted_layers(self.model, names):
            state: dict[int, dict[str, Tensor]] = {call: {} for call in calls}
            module.register_forward_hook(lambda *seen, state=state: self._update(seen[0], seen[2], state))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> None:
        self.batch, self.calls = batch, {}
        self.model(batch.inputs)

    def _update(self, module: nn.Module, out: Tensor, states: dict[int, dict[str, Tensor]]) -> None:
        call = self.calls.get(module, 0)
        self.calls[module] = call + 1
        state = states[call]
        maps = out.flatten(2) if out.ndim == 4 else out.transpose(1, 2)
        values, place = maps.mean(2).double(), maps.argmax(2)
        onehot = nn.functional.one_hot(self.batch.targets, CLASSES).double()
        for name, new in (
            ("count", onehot.sum(0)),
            ("sum", onehot.T @ values),
            ("square", onehot.T @ values**2),
            ("all", values.sum(0)),
            ("all square", (values**2).sum(0)),
        ):
            state[name] = state[name] + new if name in state else new
        both = torch.cat([state["top"], values]) if "top" in state else values
        places = torch.cat([state["place"], place]) if "place" in state else place
        state["top"], chosen = both.topk(min(K, len(both)), dim=0)
        state["place"] = places.gather(0, chosen)


def speed(
    name: str, *, threads: int, batches: int, fill: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds and ratios for one network."""
    torch.set_num_threads(threads)
    model, names = MODELS[name]()
    bare = copy.deepcopy(model)

    def forward(batch: Batch) -> None:
        with torch.no_grad():
            bare(batch.inputs)

    ways = {"bare": forward, "keep": Keep(model, names), "hook by hook": HookByHook(model, names)}
    source = Interleaved("random", range(BATCH * batches), ways=ways, clock=clock)
    chosen = {"by_class": ClassMoments(CLASSES), "moments": Moments(), "top": TopExamples(K)}
    taps = {layer: Tap(layer) for layer in names}
    record(model, source, taps, on(names, chosen), batch_size=BATCH, places=True)
    seconds = source.seconds

    def ratio(way: str, part: slice) -> float:
        return statistics.median(
            a / b for a, b in zip(seconds[way][part], seconds["bare"][part], strict=True)
        )

    steady = slice(fill, None)
    return {
        "bare s": statistics.median(seconds["bare"][steady]),
        "record, steady": ratio("record", steady),
        "record, fill": ratio("record", slice(1, fill)),
        "keep all": ratio("keep", steady),
        "hook by hook": ratio("hook by hook", steady),
    }


MEMORY = """
import resource, sys, torch
from torch import nn
from pellucid.data import Source
from pellucid.record import record
from pellucid.stats import ClassMoments, Covariance, Moments, TopExamples
from pellucid.taps import Tap
torch.set_num_threads(1)
class Examples:
    def __len__(self): return int(sys.argv[1])
    def __getitem__(self, i):
        if i >= len(self): raise IndexError(i)
        return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)), i % 10
model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 256, 3, stride=2), nn.ReLU())
taps = {"a": Tap("1"), "b": Tap("3")}
source = Source("generated", Examples(), tuple("0123456789"))
with torch.no_grad():
    model(torch.rand(64, 3, 32, 32))
alone = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kept = []
if sys.argv[2] == "keep":
    model[3].register_forward_hook(lambda *seen: kept.append(seen[2].clone()))
chosen = {"c": ClassMoments(10), "m": Moments(), "t": TopExamples(16), "v": Covariance()}
record(model, source, taps, {tap: chosen for tap in taps}, batch_size=64, places=True)
print(alone, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory(images: int, way: str) -> tuple[float, float]:
    """Peak MB of a process after one bare forward pass, and after the whole source."""
    command = [sys.executable, "-c", MEMORY, str(images), way]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    alone, after = (int(kb) / 1024 for kb in done.stdout.split())
    return alone, after


def cpu() -> str:
    """The processor as the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*MODELS, "memory"])
    parser.add_argument("--threads", type=int, choices=(1, 2))
    parser.add_argument("--batches", type=int, default=60, help="batches of 16 images in all")
    parser.add_argument("--fill", type=int, default=30, help="of these, how many count as filling the lists")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for a machine that others use"
    )
    chosen = parser.parse_args()
    clock = time.process_time if chosen.cpu_time else time.perf_counter
    print(
        f"{'processor' if chosen.cpu_time else 'wall'} time; load {os.getloadavg()[0]:.1f}; {cpu()}; torch {torch.__version__}; batch {BATCH}, {SIZE} px; {platform.platform()}\n"
    )
    heads: list[str] = []
    for name in [n for n in MODELS if chosen.only in (None, n)]:
        for threads in [chosen.threads] if chosen.threads else [1, 2]:
            row = speed(name, threads=threads, batches=chosen.batches, fill=chosen.fill, clock=clock)
            if not heads:
                heads = ["network", "threads", *row]
                print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
            print(f"| {name} | {threads} | {' | '.join(f'{v:.3f}' for v in row.values())} |", flush=True)
    if chosen.only in (None, "memory"):
        print("\n| way | images | MB, one bare forward | MB, peak of the pass | MB beside the model |")
        print("|---|---|---|---|---|")
        for way in ("record", "keep"):
            for images in (1_000, 10_000):
                alone, after = memory(images, way)
                print(f"| {way} | {images} | {alone:.0f} | {after:.0f} | {after - alone:.1f} |", flush=True)


if __name__ == "__main__":
    main()
