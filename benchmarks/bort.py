"""What the constraint of Bort costs in an optimizer step, and in memory.

    python benchmarks/bort.py --network resnet18 --rounds 9
    python benchmarks/bort.py --layer            # beside exactly orthogonal layers

Random gradients, AdamW, one thread unless told. Every way takes four steps in each round, so that `every=4` pulls each
matrix once, and the ways take turns; a ratio is the median over rounds of the ratio to default AdamW of the same round,
by CPU time of the process with one thread and by the clock with more. `bare` rides no constraint; `plain` is the usual
per-tensor hook, row side first.
"""

import argparse
import platform
import statistics
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.methods.bort import (
    constrain,
    matrices,
    pull_columns_,
    pull_full_,
    pull_full_bfloat16_,
    pull_rows_,
)
from pellucid.rng import rng
from pellucid.train import seeded

STEPS = 4
STRENGTH = 0.1


def now() -> float:
    """Seconds: CPU time, which other processes do not disturb, or with several threads the clock's."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def plain(optimizer: Optimizer, model: nn.Module) -> object:
    """The constraint in six lines, as anyone would write it."""
    chosen = {id(m.param) for m in matrices(model, heads=True)}

    @torch.no_grad()
    def pull(opt, *_) -> None:
        for group in opt.param_groups:
            for p in (p for p in group["params"] if id(p) in chosen):
                w = p.detach().flatten(1)
                p.detach().sub_(group["lr"] * STRENGTH * (w @ w.T @ w - w).view_as(p))

    return optimizer.register_step_pre_hook(pull)


def ours(**settings) -> Callable[[Optimizer, nn.Module], object]:
    return lambda optimizer, model: constrain(
        optimizer, matrices(model, heads=True), strength=STRENGTH, **settings
    )


WAYS: dict[str, tuple[str, Callable[[Optimizer, nn.Module], object] | None]] = {
    "default, bare": ("default", None),
    "fused, bare": ("fused", None),
    "fused, every=1": ("fused", ours()),
    "fused, every=4": ("fused", ours(every=4)),
    "fused, every=1, bfloat16": ("fused", ours(pull=pull_full_bfloat16_)),
    "fused, every=4, bfloat16": ("fused", ours(every=4, pull=pull_full_bfloat16_)),
    "fused, plain": ("fused", plain),
    "fused, rows": ("fused", ours(pull=pull_rows_)),
    "fused, columns": ("fused", ours(pull=pull_columns_)),
    "default, every=1": ("default", ours()),
    "default, every=4": ("default", ours(every=4)),
    "default, plain": ("default", plain),
    "default, rows": ("default", ours(pull=pull_rows_)),
}


def time_steps(optimizer: Optimizer, model: nn.Module, add: Callable[..., object] | None) -> float:
    """Seconds of a step, the constraint put on before and taken off after."""
    handle = None if add is None else add(optimizer, model)
    began = now()
    for _ in range(STEPS):
        optimizer.step()
    seconds = (now() - began) / STEPS
    if handle is not None:
        handle.remove()
    return seconds


def measure(name: str, rounds: int) -> None:
    import timm

    with seeded(0):
        model = timm.create_model(name, pretrained=False)
    draw = rng(0, "gradients")
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn(p.shape, generator=draw)
    common = {"lr": 1e-5, "weight_decay": 0.0}
    optimizers = {
        "default": AdamW(model.parameters(), **common),
        "fused": AdamW(model.parameters(), fused=True, **common),
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    order = list(WAYS)
    for number in range(rounds + 1):
        turn = number % len(order)
        for way in order[turn:] + order[:turn]:
            kind, add = WAYS[way]
            spent = time_steps(optimizers[kind], model, add)
            if number:
                seconds[way].append(spent)
    chosen = matrices(model, heads=True)
    print(
        f"\n{name}: {len(chosen)} matrices, {sum(m.flops for m in chosen) / 1e9:.1f} Gflop on the smaller side\n"
    )
    tell(seconds, "default, bare")
    print(
        f"\nTwo matrix products a weight alone: {products(chosen) / statistics.median(seconds['default, bare']):.2f}"
    )
    largest = max(chosen, key=lambda m: m.param.nbytes)
    print(
        f"Spare memory of a pull: {spare([m.read(m.param.detach()) for m in chosen]) / largest.param.nbytes:.2f} of the largest"
    )


def tell(seconds: dict[str, list[float]], base: str) -> None:
    print("| way | ms | ratio | quartiles |\n|---|---|---|---|")
    for way, spent in seconds.items():
        ratios = [a / b for a, b in zip(spent, seconds[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {way} | {1e3 * statistics.median(spent):.1f} | {middle:.2f} | {low:.2f}-{high:.2f} |")


def products(chosen) -> float:
    """Seconds of W W^T and of one more product of the same size, on the smaller side, as torch has them."""
    ways: list[float] = []
    views = [m.read(m.param.detach()) for m in chosen]
    for _ in range(5):
        began = now()
        for w in views:
            side = w if w.shape[0] <= w.shape[1] else w.mT
            _ = (side @ side.mT) @ side
        ways.append(now() - began)
    return statistics.median(ways)


class Live(TorchDispatchMode):
    """The most bytes that were alive at a time of those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            storage = found.untyped_storage()
            mine = storage.data_ptr() not in {
                a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)
            }
            if mine and storage.data_ptr() not in self.seen:
                self._count(storage)
        return found

    def _count(self, storage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)

        def gone() -> None:
            self.now -= size
            self.seen.discard(key)

        weakref.finalize(storage, gone)


def spare(weights: list[Tensor]) -> int:
    """Bytes that pulling the costliest of the weights takes beside it."""
    most = 0
    for w in weights:
        with Live() as live:
            pull_full_(w, 1e-9, 1.0)
        most = max(most, live.most)
    return most


def layer(rounds: int) -> None:
    """Forward, backward and step of three 512 x 512 layers, batch 64: the constraint beside exact orthogonality."""
    import geotorch
    from torch.nn.utils.parametrizations import orthogonal

    def build(way: str) -> tuple[nn.Module, Optimizer]:
        with seeded(0):
            net = nn.Sequential(*(nn.Linear(512, 512) for _ in range(3)))
            for linear in net:
                if way.startswith("torch"):
                    orthogonal(linear)
                if way.startswith("geotorch"):
                    geotorch.orthogonal(linear, "weight")
        optimizer = AdamW(net.parameters(), lr=1e-5, weight_decay=0.0)
        if way.startswith("pellucid"):
            constrain(
                optimizer, matrices(net, heads=True), strength=STRENGTH, every=4 if way.endswith("4") else 1
            )
        return net, optimizer

    ways = ("plain", "pellucid, every=1", "pellucid, every=4", "torch orthogonal", "geotorch orthogonal")
    built = {way: build(way) for way in ways}
    x = torch.randn(64, 512, generator=rng(0, "batch"))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            net, optimizer = built[way]
            began = now()
            for _ in range(STEPS):
                net(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            if number:
                seconds[way].append((now() - began) / STEPS)
    print("\nThree 512 x 512 layers, batch 64, forward + backward + step\n")
    tell(seconds, "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="vit_tiny_patch16_224", help="a name of timm")
    parser.add_argument("--layer", action="store_true", help="beside exactly orthogonal layers instead")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next(
        (s.partition(":")[2].strip() for s in lines if s.startswith("model name")), platform.processor()
    )
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else "unknown"
    print(
        f"{cpu}; {chosen.threads} thread(s); torch {torch.__version__}; {chosen.rounds} rounds; load {load}"
    )
    if chosen.layer:
        layer(chosen.rounds)
    else:
        measure(chosen.network, chosen.rounds)


if __name__ == "__main__":
    main()
