"""What `import pellucid` costs beside what it needs.

    python benchmarks/import_time.py --repeats 7

Each import runs in a fresh interpreter, in turns, with warm file caches; medians. "Beyond torch" is the time that
importing comes to after torch has been imported in the same interpreter.
"""

import argparse
import statistics
import subprocess
import sys

from record import cpu

CASES = {
    "import torch": ("pass", "import torch"),
    "import pellucid": ("pass", "import pellucid"),
    "import pellucid, beyond torch": ("import torch", "import pellucid"),
    "every public name, beyond torch": (
        "import torch",
        "import pellucid\nfor name in pellucid.__all__: getattr(pellucid, name)",
    ),
    "record and statistics, beyond torch": (
        "import torch",
        "from pellucid import ClassMoments, Moments, Tap, TopExamples, record",
    ),
    "the command line, no torch": ("pass", "import pellucid.cli"),
}


def seconds(before: str, what: str) -> float:
    """The time of `what` in a fresh interpreter, after `before`."""
    code = (
        f"{before}\nimport time\nstarted = time.perf_counter()\n{what}\nprint(time.perf_counter() - started)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for round_ in range(repeats + 1):
        for name, (before, what) in CASES.items():
            took = seconds(before, what)
            if round_:  # the first round warms the file caches
                times[name].append(took)
    print(f"{cpu()}; median of {repeats}\n\n| what | s |\n|---|---|")
    for name, taken in times.items():
        print(f"| {name} | {statistics.median(taken):.3f} |")


if __name__ == "__main__":
    main()
