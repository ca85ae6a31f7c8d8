"""A stream belongs to its key alone."""

import subprocess
import sys

import numpy as np
import torch

from pellucid.rng import derive, kept_generators, rng, stream


def test_streams_depend_on_the_key_alone(untouched_rng: None) -> None:
    assert torch.equal(torch.randn(5, generator=rng(1, "a", 2)), torch.randn(5, generator=rng(1, "a", 2)))
    assert np.array_equal(stream(1, "a", 2).random(5), stream(1, "a", 2).random(5))
    keys = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, 1.0), (0, "1")]
    assert len({derive(*key) for key in keys}) == len(keys)
    assert all(0 <= derive(*key) < 2**63 for key in keys)


def test_the_numbers_never_change() -> None:
    """Results name their seeds; other numbers under the same seed would make them unrepeatable."""
    assert derive(0) == 7520536977032167579
    assert derive(7, "shuffle", 3) == 7700369463484693251


def test_generators_are_put_back(untouched_rng: None) -> None:
    with kept_generators(torch.device("cpu")):
        torch.rand(3)


def test_derive_loads_no_torch() -> None:
    code = "import sys; from pellucid.rng import derive; derive(1); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
