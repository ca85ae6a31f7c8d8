"""CIFAR-10 from python batches, from its JPEG archive and from lossless sheets; pickles that try to do harm."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid._checks import ConfigError, DataError
from pellucid.data import cifar as cifar_module
from pellucid.data import cifar10_source, open_source
from pellucid.data.cifar import read_batch
from pellucid.rng import rng

pytestmark = pytest.mark.usefixtures("untouched_rng")


def random_bytes(*shape: int, seed: int = 0) -> np.ndarray:
    return torch.randint(0, 256, shape, generator=rng(seed), dtype=torch.uint8).numpy()


# --- python batches


def write_batches(folder: Path, *, parts: int = 2, n: int = 4) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{k + 1}" for k in range(parts)] + ["test_batch"]
    for k, name in enumerate(names):
        batch = {
            b"data": random_bytes(n, 3072, seed=k),
            b"labels": [(i + k) % 10 for i in range(n)],
            b"filenames": [b"x.png"] * n,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return np.concatenate([random_bytes(n, 3072, seed=k) for k in range(parts)])


@pytest.mark.parametrize("inside", [".", "cifar-10-batches-py"])
def test_python_batches(tmp_path, inside):
    pixels = write_batches(tmp_path / inside, parts=11)
    train = open_source(f"cifar10:{tmp_path}", split="train")  # batch 10 and 11 come after 9
    expected = torch.from_numpy(pixels.reshape(-1, 3, 32, 32)).float() / 255
    assert torch.equal(next(train.batches(44)).inputs, expected)
    assert train.targets[:5].tolist() == [0, 1, 2, 3, 1] and train.classes[9] == "truck"
    assert len(cifar10_source(tmp_path)) == 4 and len(cifar10_source(tmp_path, split="all")) == 48


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_pickles_of_any_protocol(tmp_path, protocol):
    content = {"data": random_bytes(2, 5), "labels": [np.int64(3), 1], "n": np.float32(0.5), "b": b"\xff\x00"}
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_batch(tmp_path / "x")
    assert np.array_equal(found["data"], content["data"]) and found["labels"] == [3, 1]
    assert found["n"] == 0.5


class Malicious:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize(
    "call", [(print, "owned"), (eval, "1 + 1"), (np.load, "x.npy"), (getattr, "a", "upper")]
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickles_are_refused(tmp_path, capsys, call, protocol):
    write_batches(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": Malicious(*call)}, protocol=protocol))
    with pytest.raises(DataError, match=r"test_batch: it asks for .*, which is not plain data"):
        cifar10_source(tmp_path)
    assert capsys.readouterr().out == ""


def test_bad_batches(tmp_path):
    with pytest.raises(DataError, match=r"no folder at .*; expected CIFAR-10"):
        cifar10_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no CIFAR-10 in .*: expected data_batch_"):
        cifar10_source(tmp_path)
    write_batches(tmp_path)
    test = tmp_path / "test_batch"
    good = test.read_bytes()
    for content, message in [
        (good[: len(good) // 2], "cannot read CIFAR batch .*test_batch"),
        (b"", "cannot read CIFAR batch"),
        (pickle.dumps([1]), "holds a list, expected a dict"),
        (pickle.dumps({"data": 1, "labels": []}), r"'data' must be bytes of shape \(n, 3072\), got int"),
        (pickle.dumps({"data": np.zeros((2, 3072))}), r"got float64 of shape \(2, 3072\)"),
        (pickle.dumps({"data": random_bytes(2, 3072), "labels": [1]}), "'labels' must be a list of 2"),
        (pickle.dumps({"data": random_bytes(1, 3072), "labels": [10]}), r"must lie in \[0, 9\], got 10"),
    ]:
        test.write_bytes(content)
        with pytest.raises(DataError, match=message):
            cifar10_source(tmp_path)
    test.unlink()
    with pytest.raises(DataError, match="no test_batch in"):
        cifar10_source(tmp_path)


# --- JPEG archive and lossless sheets


@pytest.fixture
def jpegs(tmp_path, monkeypatch) -> Path:
    """A small archive in the layout of the large one: 30 training and 20 test images, sorted by class."""
    monkeypatch.setattr(cifar_module, "COUNTS", {"train": 30, "test": 20})
    labels = {part: np.arange(n, dtype=np.uint8) * 3 % 10 for part, n in cifar_module.COUNTS.items()}
    np.savez(tmp_path / "labels.npz", **labels, classes=np.array(cifar_module.CLASSES))
    with tarfile.open(tmp_path / cifar_module.ARCHIVE, "w:xz") as archive:
        for part, targets in labels.items():
            for i in sorted(range(len(targets)), key=lambda i: (targets[i], i)):
                stream = io.BytesIO()
                colour = (i * 8, 255 - i * 8, 100 if part == "train" else 0)
                Image.new("RGB", (32, 32), colour).save(stream, "JPEG", quality=95)
                member = tarfile.TarInfo(f"cifar10_jpeg/{part}/{cifar_module.CLASSES[targets[i]]}/{i}.jpg")
                member.size = stream.tell()
                stream.seek(0)
                archive.addfile(member, stream)
    for k in range(2):
        sheet = random_bytes(10, 3072, seed=k)
        Image.fromarray(sheet.reshape(10, 1024, 3)).save(tmp_path / f"lossless_train_{k}.png")
    return tmp_path


def test_jpeg_archive_is_put_in_original_order(jpegs):
    for split, n in (("train", 30), ("test", 20), ("all", 50)):
        source = open_source(f"cifar10:{jpegs}", split=split)
        inputs = next(source.batches(n)).inputs
        original = source.factors["original"]
        assert len(source) == n and torch.equal(source.targets, original * 3 % 10)
        assert torch.allclose(inputs.mean((2, 3))[:, 0] * 255, original * 8.0, atol=2.5)
        assert source.names[0] == ("test/0" if split == "test" else "train/0")


def test_lossless_sheets_are_training_images(jpegs):
    source = open_source(f"cifar10:{jpegs}?images=lossless", split="train")
    expected = np.concatenate([random_bytes(10, 3072, seed=k) for k in range(2)]).reshape(20, 32, 32, 3)
    assert torch.equal(
        next(source.batches(20)).inputs, torch.from_numpy(expected).permute(0, 3, 1, 2).float() / 255
    )
    assert source.targets.tolist() == [i * 3 % 10 for i in range(20)]
    with pytest.raises(ConfigError, match="are training images; ask for split='train'"):
        open_source(f"cifar10:{jpegs}?images=lossless")
    with pytest.raises(DataError, match="no CIFAR-10 in"):
        open_source(f"cifar10:{jpegs}?images=batches")
    write_batches(jpegs)
    assert len(open_source(f"cifar10:{jpegs}")) == 4
    assert len(open_source(f"cifar10:{jpegs}?images=jpeg")) == 20


def test_bad_archives(jpegs):
    whole = (jpegs / cifar_module.ARCHIVE).read_bytes()
    (jpegs / cifar_module.ARCHIVE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"damaged or truncated|it is truncated"):
        cifar10_source(jpegs)
    (jpegs / "lossless_train_0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*lossless_train_0.png"):
        cifar10_source(jpegs, split="train", images="lossless")
    np.savez(jpegs / "labels.npz", train=np.zeros(3))
    with pytest.raises(DataError, match=r"cannot read .*labels.npz: .*test.*; expected the arrays"):
        cifar10_source(jpegs)
    np.savez(jpegs / "labels.npz", train=np.zeros(3), test=np.zeros(20))
    with pytest.raises(DataError, match=r"labels.npz: train has shape \(3,\), expected \(30,\)"):
        cifar10_source(jpegs)
    (jpegs / "labels.npz").unlink()
    with pytest.raises(DataError, match=r"no labels.npz in"):
        cifar10_source(jpegs)


# --- the real files


@pytest.mark.data
def test_real_python_batches(data_root):
    train, test = (open_source(f"cifar10:{data_root}", split=split) for split in ("train", "test"))
    assert torch.bincount(train.targets).tolist() == [500] * 10
    assert torch.bincount(test.targets).tolist() == [200] * 10 and len(test.factors["original"]) == 2000


@pytest.mark.data
def test_real_lossless_images(data_root):
    source = open_source(f"cifar10:{data_root / 'cifar10'}?images=lossless", split="train")
    assert torch.bincount(source.targets).tolist() == [396, 366, 420, 384, 422, 393, 414, 385, 407, 413]
    assert next(source.batches(4000)).inputs.mean().item() == pytest.approx(0.473, abs=0.01)


@pytest.mark.data
@pytest.mark.slow
def test_real_jpeg_archive(data_root):
    """The subset in python batches was decoded from these very files, so both readers must agree."""
    whole = open_source(f"cifar10:{data_root / 'cifar10'}", split="test")
    assert torch.bincount(whole.targets).tolist() == [1000] * 10
    subset = open_source(f"cifar10:{data_root}", split="test")
    same = whole.take(subset.factors["original"])
    assert torch.equal(same.targets, subset.targets)
    difference = next(same.batches(2000)).inputs - next(subset.batches(2000)).inputs
    assert difference.abs().max() <= 2.01 / 255  # JPEG decoders may round differently
