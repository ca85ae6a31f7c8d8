"""What decoding costs beside the parts it is made of: training steps, all decodings, exhaustive scores, a guard.

    python benchmarks/decode.py --rounds 20
    python benchmarks/decode.py --net mlp --batch 512

Two networks: the 8-layer MLP of the method's paper on 28 x 28 images, and ResNet-8 (8-16-32) on 32 x 32 colour images
with a convolutional generator; batch 128, one thread unless told. T is the time of a forward and backward pass, F and G
of a forward pass, of the classifier f and of the generator g; L T_g and L G are those of every layer by itself, summed,
and L (G + R) with the residual that a guard checks in place of the decoding. Everything takes its turn in every round, in
a random order; a ratio is the median over rounds of ratios within a round, by CPU time of the process. `faults` are
pages that the allocator took anew from the system, a median: time that depends on what the process did before.

Targets: DecNN step at most 1.15 (T_f + L T_g); ReDecNN at D = 1 at most 1.15 (2 T_f + T_g); scores of all L paths
F + L (F + G) in one pass; a guarded forward at most F + L G and 10 %.
"""

import argparse
import platform
import random
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid import zoo
from pellucid.data import Batch
from pellucid.methods.decode import (
    Decodable,
    DecodeTerm,
    Guarded,
    RecursiveTerm,
    all_scores,
    make_decodable,
    residual_below,
)
from pellucid.rng import rng
from pellucid.taps import watch
from pellucid.train import CrossEntropy, Step, seeded

Parts = dict[str, Callable[[int], object]]
TRAINING = ("T_f", "DecNN", "ReDecNN")
"""Parts that run in training mode; the mode is set before a part's time begins."""


def mlp(batch: int) -> tuple[Decodable, Batch]:
    with seeded(0):
        model = zoo.mlp(hidden=(256,) * 8)
    return _made(model, [f"relu{i}" for i in range(1, 9)], (1, 28, 28), batch)


def resnet8(batch: int) -> tuple[Decodable, Batch]:
    with seeded(0):
        model = zoo.resnet8(widths=(8, 16, 32))
    return _made(model, ["relu", *(f"layer{i}.0.relu2" for i in (1, 2, 3))], (3, 32, 32), batch)


def _made(model: nn.Module, layers: list[str], shape: tuple[int, ...], batch: int) -> tuple[Decodable, Batch]:
    inputs = torch.rand(batch, *shape, generator=rng(0, "inputs"))
    made = make_decodable(model, layers, inputs[:2], width=64)
    return made, Batch(inputs, torch.arange(batch) % 10, torch.arange(batch))


NETS = {"mlp": mlp, "resnet8": resnet8}


def parts(made: Decodable, batch: Batch) -> Parts:
    """What is timed, by name; each call does the whole of it."""
    model, decoder, x, y = made.model, made.decoder, batch.inputs, batch.targets
    last = made.activations(x)
    task, guarded = CrossEntropy(), Guarded(made, {"r": residual_below()})
    terms = {"DecNN": DecodeTerm(made, patience=0), "ReDecNN": RecursiveTerm(made, patience=0)}

    def done(loss: Tensor) -> None:
        loss.backward()
        made.zero_grad(set_to_none=True)

    def classifier(_: int) -> None:
        done(F.cross_entropy(model(x), y))

    def generator(_: int) -> None:
        """g on each layer's codes by itself, its adapter included, with the gradient to the activation: L T_g."""
        for name, h in last.items():
            code = h.clone().requires_grad_()
            done(decoder.residual(x, decoder.raw({name: code})[0]).mean())

    def step(name: str) -> Callable[[int], None]:
        def run(number: int) -> None:
            with watch(model, made.taps, grad=True) as seen:
                output = model(x)
            here = Step(model, batch, output, 0, number, rng(0, number))
            done(task(here, {}) + terms[name](here, dict(seen)))

        return run

    @torch.no_grad()
    def forward(_: int) -> None:
        model(x)

    @torch.no_grad()
    def one_by_one(_: int) -> None:
        for name in made.layers:
            made.likelihood.decoding(decoder.raw({name: last[name]})[0])

    @torch.no_grad()
    def checked(_: int) -> None:
        for name in made.layers:
            decoder.residual(x, decoder.raw({name: last[name]})[0])

    @torch.no_grad()
    def at_once(_: int) -> None:
        made.likelihood.decoding(decoder.raw(last, x)[0])

    @torch.no_grad()
    def guard(_: int) -> None:
        guarded(x)

    return {
        "T_f": classifier, "L T_g": generator, "DecNN": step("DecNN"), "ReDecNN": step("ReDecNN"), "F": forward,
        "L G": one_by_one, "L (G + R)": checked, "all decodings": at_once,
        "scores": lambda _: all_scores(made, x), "guard": guard,
    }  # fmt: skip


def timed(made: Decodable, todo: Parts, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """CPU seconds and page faults of each part in each round; two rounds before the first are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    faults: dict[str, list[int]] = {name: [] for name in todo}
    order = random.Random(0)
    for number in range(-2, rounds):
        for name in order.sample(list(todo), len(todo)):
            made.train(name in TRAINING)
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
            todo[name](max(number, 0))
            if number >= 0:
                seconds[name].append(time.process_time() - began)
                faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return seconds, faults


def ratios(seconds: dict[str, list[float]], layers: int) -> dict[str, list[float]]:
    """Each measure against the sum of its parts, round by round."""
    rows = [dict(zip(seconds, values, strict=True)) for values in zip(*seconds.values(), strict=True)]
    return {
        "DecNN step / (T_f + L T_g), at most 1.15": [r["DecNN"] / (r["T_f"] + r["L T_g"]) for r in rows],
        "ReDecNN step / (2 T_f + T_g), at most 1.15": [
            r["ReDecNN"] / (2 * r["T_f"] + r["L T_g"] / layers) for r in rows
        ],
        "all decodings / (L G)": [r["all decodings"] / r["L G"] for r in rows],
        "all scores / (F + L (F + G))": [r["scores"] / (r["F"] + layers * r["F"] + r["L G"]) for r in rows],
        "guarded forward / (F + L G), at most 1.10": [r["guard"] / (r["F"] + r["L G"]) for r in rows],
        "guarded forward / (F + L (G + R))": [r["guard"] / (r["F"] + r["L (G + R)"]) for r in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", action="append", choices=sorted(NETS), help="only these networks")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    print(
        f"{next(named, platform.processor())}, {chosen.threads} thread(s), batch {chosen.batch}, torch {torch.__version__}"
    )
    for build in (NETS[name] for name in chosen.net or NETS):
        made, batch = build(chosen.batch)
        seconds, faults = timed(made, parts(made, batch), chosen.rounds)
        for name, values in seconds.items():
            middle = statistics.median(values)
            print(
                f"{build.__name__} {name}: {1000 * middle:.2f} ms, {statistics.median(faults[name]):.0f} faults"
            )
        for name, values in ratios(seconds, len(made.layers)).items():
            low, middle, high = statistics.quantiles(values, n=4)
            print(f"  {name}: {middle:.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
