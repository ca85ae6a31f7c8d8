"""`record` in several processes, and after a kill -9: the same result as one undisturbed process."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

# What each process runs. The model is float64 and does no arithmetic that depends on the batch, so that responses are
# identical whatever the batching.
WORLD = """
import os, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
from pellucid.data import array_source
from pellucid.record import record
from pellucid.stats import ClassMoments, Covariance, Moments, Quantiles, Rates, TopExamples
from pellucid.taps import Tap

torch.set_num_threads(1)
out = Path(sys.argv[1])
rank = int(os.environ.get("RANK", "0"))

def pieces(n=10, poison=None):
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(n, 3, 4, 5, dtype=torch.float64, generator=draw)
    if poison is not None:
        images[poison, 0, 0, 0] = 0.0
    model = nn.Sequential(nn.LogSigmoid() if poison is None else Log(), nn.Softplus(), nn.ReLU(inplace=True))
    source = array_source(images, torch.arange(n) % 3, name="generated", classes=("a", "b", "c"))
    taps = {"a": Tap("0"), "b": Tap("2")}
    chosen = {"m": Moments(), "c": ClassMoments(3), "t": TopExamples(4), "q": Quantiles(), "r": Rates(), "v": Covariance()}
    return model, source, taps, {tap: chosen for tap in taps}

class Log(nn.Module):
    def forward(self, x):
        return x.log()

def tensors(recording):
    return {
        f"{tap}.{name}.{field}": value.contiguous()
        for tap, results in recording.items()
        for name, result in results.items()
        for field, value in vars(result).items()
        if isinstance(value, torch.Tensor)
    }

def write(name, recording, visited=()):
    found = tensors(recording) | {"n": torch.tensor(recording.n), "visited": torch.tensor(visited, dtype=torch.int64)}
    save_file(found, out / f"{name}-{rank}.safetensors")
"""

SHARE = """
visited = []
also = lambda output, batch: visited.extend(batch.index.tolist())
model, source, taps, stats = pieces()
write("shared", record(model, source, taps, stats, batch_size=2, places=True, also=also), visited)

# One batch for four processes: three of them see nothing.
write("few", record(model, source, taps, stats, batch_size=64, places=True))

# Kept in a file by each process, and gone on from it.
where = dict(batch_size=2, places=True, checkpoint=out / "pass.safetensors", every=0.0)
def stop(done, total):
    raise InterruptedError("stopped by the test")
for _ in range(2):
    try:
        record(model, source, taps, stats, progress=stop, **where)
    except Exception as error:
        assert "stopped by the test" in str(error), error
write("resumed", record(model, source, taps, stats, **where))

# A process that fails takes the others with it, saying why.
model, source, taps, stats = pieces(poison=5)
try:
    record(model, source, taps, stats, batch_size=2)
except Exception as error:
    (out / f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
"""

ALONE = """
torch.distributed.destroy_process_group()
os.environ["WORLD_SIZE"] = "1"
if rank == 0:
    model, source, taps, stats = pieces()
    write("alone", record(model, source, taps, stats, batch_size=10, places=True))
"""

TWO = """
model, source, taps, stats = pieces()
write("two", record(model, source, taps, stats, batch_size=3, places=True))
"""

SLOW = """
import time
model, source, taps, stats = pieces(n=60)
slowly = len(sys.argv) > 2
def progress(done, total):
    (out / "done.txt").write_text(str(done))
    if slowly:
        time.sleep(0.05)
where = dict(checkpoint=out / "pass.safetensors", every=0.0, progress=progress)
write("resumed", record(model, source, taps, stats, batch_size=2, places=True, **where))
write("whole", record(model, source, taps, stats, batch_size=2, places=True))
"""


def environment() -> dict[str, str]:
    left_out = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    return {k: v for k, v in os.environ.items() if k not in left_out} | {"OMP_NUM_THREADS": "1"}


def script(folder: Path, body: str) -> Path:
    path = folder / "script.py"
    path.write_text(WORLD + body)
    return path


def run(command: list[str]) -> None:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_same(folder: Path, a: str, b: str, *, exact: bool = False) -> None:
    mine, other = load_file(folder / f"{a}.safetensors"), load_file(folder / f"{b}.safetensors")
    mine.pop("visited"), other.pop("visited")
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-9, "atol": 1e-12}
        torch.testing.assert_close(tensor, other[name], **tolerance, equal_nan=True, msg=name)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes wrote, started by torchrun, beside what one wrote."""
    folder = tmp_path_factory.mktemp("shared")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    run([sys.executable, *launch, str(script(folder, SHARE + ALONE)), str(folder)])
    return folder


@pytest.mark.slow
@pytest.mark.multiprocess
def test_ten_samples_on_four_processes_are_seen_once(shared: Path) -> None:
    visited = [load_file(shared / f"shared-{rank}.safetensors")["visited"].tolist() for rank in range(4)]
    assert sorted(i for part in visited for i in part) == list(range(10))
    assert [len(part) for part in visited] == [4, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["shared", "few", "resumed"])
def test_four_processes_agree_with_one(shared: Path, name: str) -> None:
    for rank in range(4):
        assert_same(shared, f"{name}-{rank}", "alone-0")
        assert_same(shared, f"{name}-{rank}", f"{name}-0", exact=True)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_each_process_keeps_its_own_checkpoint(shared: Path) -> None:
    files = {path.name for path in shared.glob("pass*")}
    assert files == {f"pass-{rank}-of-4.safetensors" for rank in range(4)}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_failure_in_one_process_reaches_all(shared: Path) -> None:
    told = [(shared / f"error-{rank}.txt").read_text() for rank in range(4)]
    # Sample 5 is in batch 2, which belongs to process 2.
    reason = r"NumericError: layer '0': the response of unit 0 to sample 5 is -inf"
    assert re.match(reason, told[2])
    for rank in (0, 1, 3):
        assert re.match(f"PellucidError: the pass failed in process 2 of 4: {reason}", told[rank])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_accelerate_launch(tmp_path: Path) -> None:
    # On a machine without a GPU this is how accelerate starts several processes: --cpu alone leaves that to MPI.
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    run([sys.executable, *launch, str(script(tmp_path, TWO + ALONE)), str(tmp_path)])
    for rank in range(2):
        assert_same(tmp_path, f"two-{rank}", "alone-0")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_pass_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path = script(tmp_path, SLOW)
    victim = subprocess.Popen([sys.executable, str(path), str(tmp_path), "slowly"], env=environment())
    told = tmp_path / "done.txt"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and victim.poll() is None:
        if told.exists() and int(told.read_text() or 0) >= 20:
            break
        time.sleep(0.01)
    assert victim.poll() is None, "it must be killed in the middle"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert (tmp_path / "pass.safetensors").exists() and not (tmp_path / "resumed-0.safetensors").exists()
    run([sys.executable, str(path), str(tmp_path)])
    assert_same(tmp_path, "resumed-0", "whole-0", exact=True)
    assert list(tmp_path.glob(".*part")) == []
