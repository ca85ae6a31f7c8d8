"""What the selectivity term costs in a training step: ordinary taps on every ReLU, and the fused form.

    python benchmarks/selectivity.py --rounds 30

ResNet-20 (16-32-64), 32 x 32 images, batch 128, SGD, one thread unless told. The ways take turns within every round;
a ratio is the median over rounds of the ratio to the plain step of the same round, by CPU time of the process, so a
machine that is busy with something else does not count.
"""

import argparse
import contextlib
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pellucid import zoo
from pellucid.data import Batch
from pellucid.methods.selectivity.fused import fused
from pellucid.methods.selectivity.regularise import SelectivityTerm, selectivity_taps
from pellucid.rng import rng
from pellucid.taps import watch
from pellucid.train import CrossEntropy, Step, seeded

WAYS = ("plain", "hooks", "fused")


def make_step(way: str, size: int) -> Callable[[int], None]:
    """One optimizer step on random images."""
    with seeded(0):
        model = zoo.resnet20()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    task = CrossEntropy()
    draw = rng(0, "images")
    batch = Batch(torch.rand(size, 3, 32, 32, generator=draw), torch.arange(size) % 10, torch.arange(size))
    stack = contextlib.ExitStack()
    taps = stack.enter_context(fused(model)) if way == "fused" else selectivity_taps(model)
    term = SelectivityTerm(taps, -1.0)

    def step(number: int) -> None:
        assert stack is not None  # keeps the fused form on
        with contextlib.ExitStack() as hooks:
            seen = {} if way == "plain" else hooks.enter_context(watch(model, taps, grad=True))
            output = model(batch.inputs)
            here = Step(model, batch, output, 0, number, rng(0, number))
            loss = task(here, {})
            if way != "plain":
                loss = loss + term(here, seen)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    steps = {way: make_step(way, chosen.batch) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(chosen.rounds + 2):
        turn = number % len(WAYS)
        for way in WAYS[turn:] + WAYS[:turn]:
            began = time.process_time()
            steps[way](number)
            if number >= 2:
                seconds[way].append(time.process_time() - began)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    print(
        f"{cpu}; {chosen.threads} thread(s); torch {torch.__version__}; batch {chosen.batch}; {chosen.rounds} rounds"
    )
    print("| way | CPU s a step | ratio to plain | quartiles |\n|---|---|---|---|")
    for way in WAYS:
        ratios = [a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {way} | {statistics.median(seconds[way]):.3f} | {middle:.3f} | {low:.3f}-{high:.3f} |")


if __name__ == "__main__":
    main()
