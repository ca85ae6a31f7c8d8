"""Images per second of each corruption on one thread: `python benchmarks/corrupt.py [--size 32] [--batch 128]`.

The median over five rounds in CPU seconds, all severities together, the types taken in turn. The goal is 500 images/s a core at
32 px for the cheap ones.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pellucid.evals.corrupt import SEVERITIES, TYPES, corrupt

GOAL = 500


def textures(folder: Path) -> Path:
    """A stand-in for pictures of frost: the cost does not depend on what they show."""
    pixels = np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8)
    for i in range(6):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.rand(
        (options.batch, 3, options.size, options.size), generator=torch.Generator().manual_seed(0)
    )
    rates: dict[str, list[float]] = {name: [] for name in TYPES}
    with tempfile.TemporaryDirectory() as folder:
        frost = textures(Path(folder))
        for _ in range(6):
            for name in TYPES:
                start = time.process_time()
                for severity in SEVERITIES:
                    corrupt(images, name, severity, frost_textures=frost)
                rates[name].append(options.batch * len(SEVERITIES) / (time.process_time() - start))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread, {options.size} px, batch {options.batch}"
    )
    print(f"{'corruption':20s} {'images/s':>10s}")
    for name, found in rates.items():
        rate = statistics.median(found[1:])  # the first round imports and reads
        print(f"{name:20s} {rate:10.0f}{'' if options.size != 32 or rate >= GOAL else f'  below {GOAL}'}")


if __name__ == "__main__":
    main()
