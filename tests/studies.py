"""What the tests of `experiments/` share: a study run as a person runs it, small and in folders of the test's own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_study(name: str, out: Path, *options: str) -> str:
    """What `experiments/NAME.py --preset smoke --dataset digits` prints, without staged data and on one thread."""
    env = {key: value for key, value in os.environ.items() if key != "PELLUCID_DATA"}
    env |= {"PELLUCID_SCRATCH": str(out / "scratch"), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "experiments" / f"{name}.py")
    command = [
        sys.executable,
        script,
        "--preset",
        "smoke",
        "--dataset",
        "digits",
        "--out",
        str(out / "results"),
    ]
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
