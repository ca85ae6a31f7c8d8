"""Cost of PGD-20 over its 20 forward and backward passes to the input: `python benchmarks/attack.py`.

Every variant runs in turn, round after round, on one thread; the figures are medians of each round's ratio to the bare
passes of the same round, in CPU seconds of this process, so that a busy machine does not matter much. `full`: every step for every image (early_stop=False), the
worst case. `early stop`: the default, on images that the network gets right. foolbox and the adversarial-robustness-
toolbox run the same 20 steps where they are installed.
"""

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from pellucid.attack import Linf, pgd
from pellucid.train import seeded
from pellucid.zoo import resnet20

STEPS, RADIUS = 20, 4 / 255
GOAL = 1.05


def small_net() -> nn.Module:
    """The architecture of the staged provably robust networks."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def bare(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Twenty forward and backward passes to the input, parameters frozen, and nothing else."""
    for _ in range(STEPS):
        z = x.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(z), y, reduction="sum"), z)


def variants(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(model, x, y),
        "full": lambda: pgd(model, x, y, ball=Linf(RADIUS), steps=STEPS, early_stop=False),
        "early stop": lambda: pgd(model, x, y, ball=Linf(RADIUS), steps=STEPS),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import foolbox

            attack = foolbox.attacks.LinfPGD(abs_stepsize=RADIUS / 4, steps=STEPS)
            theirs = foolbox.PyTorchModel(model, bounds=(0, 1))
            found["foolbox"] = lambda: attack(theirs, x, y, epsilons=RADIUS)
        except ImportError:
            print("foolbox is not installed: left out")
        try:
            from art.attacks.evasion import ProjectedGradientDescentPyTorch
            from art.estimators.classification import PyTorchClassifier

            classifier = PyTorchClassifier(
                model,
                nn.CrossEntropyLoss(),
                tuple(x.shape[1:]),
                10,
                clip_values=(0.0, 1.0),
                device_type="cpu",
            )
            art = ProjectedGradientDescentPyTorch(
                classifier,
                eps=RADIUS,
                eps_step=RADIUS / 4,
                max_iter=STEPS,
                num_random_init=1,
                batch_size=len(x),
                verbose=False,
            )
            found["toolbox"] = lambda: art.generate(x.numpy(), y.numpy())
        except ImportError:
            print("adversarial-robustness-toolbox is not installed: left out")
    return found


def measure(name: str, model: nn.Module, x: torch.Tensor, rounds: int) -> None:
    model.eval().requires_grad_(False)
    with torch.no_grad():
        y = model(x).argmax(1)
    runs = variants(model, x, y)
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds + 1):
        for key, run in runs.items():
            start = time.process_time()
            run()
            times[key].append(time.process_time() - start)
    base = times["bare"][1:]
    print(f"{name}: 20 bare passes {statistics.median(base) * 1000:.0f} ms")
    for key, found in times.items():
        ratio = statistics.median(t / b for t, b in zip(found[1:], base, strict=True))
        print(f"  {key:12s} {ratio:5.3f} x{'  above the goal' if key == 'full' and ratio > GOAL else ''}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread")
    with seeded(0):
        small, large = small_net(), resnet20()
    measure(
        "small conv net, 28 px, batch 100",
        small,
        torch.rand((100, 1, 28, 28), generator=draw),
        options.rounds,
    )
    measure("ResNet-20, 32 px, batch 32", large, torch.rand((32, 3, 32, 32), generator=draw), options.rounds)


if __name__ == "__main__":
    main()
