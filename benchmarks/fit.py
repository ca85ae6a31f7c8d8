"""What `fit` costs over a loop written by hand: `python benchmarks/fit.py`.

Both train the same network on the same batches, in turn, round after round, on one thread; the figures are medians of
each round's ratio in CPU seconds of this process.
"""

import copy
import platform
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from pellucid.data import Source, array_source, digits_source
from pellucid.rng import rng
from pellucid.train import CrossEntropy, fit
from pellucid.zoo import conv_net, resnet8

ROUNDS = 7


def by_hand(model: nn.Module, source: Source, batch_size: int) -> None:
    optimizer = SGD(model.parameters(), lr=0.01)
    model.train()
    for batch in source.batches(batch_size, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        optimizer.step()


def by_fit(model: nn.Module, source: Source, batch_size: int) -> None:
    optimizer = SGD(model.parameters(), lr=0.01)
    fit(model, source, optimizer, {"task": CrossEntropy()}, epochs=1, batch_size=batch_size)


def seconds(loop, model: nn.Module, source: Source, batch_size: int) -> float:
    model = copy.deepcopy(model)
    start = time.process_time()
    loop(model, source, batch_size)
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    noise = (torch.rand(1280, 3, 32, 32, generator=rng(0)) * 255).to(torch.uint8)
    labels = torch.randint(0, 10, (1280,), generator=rng(1))
    cases = {
        "small conv net, digits, batch 100": (conv_net(), digits_source(split="train"), 100),
        "ResNet-8 (8-16-32), 32 px, batch 128": (
            resnet8(widths=(8, 16, 32)),
            array_source(noise, labels, name="noise", classes=tuple("0123456789")),
            128,
        ),
    }
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}, median of {ROUNDS}\n")
    for name, (model, source, size) in cases.items():
        seconds(by_fit, model, source, size)
        ratios = [
            seconds(by_fit, model, source, size) / seconds(by_hand, model, source, size)
            for _ in range(ROUNDS)
        ]
        print(f"{name}: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
