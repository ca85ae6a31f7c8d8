"""Data sets in their files: digits, idx, tables, Hugging Face; and the specs that open them."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid._checks import ConfigError, DataError
from pellucid.data import digits_source, mnist_source, open_source, table_source
from pellucid.data.idx import read_idx
from pellucid.rng import rng

pytestmark = pytest.mark.usefixtures("untouched_rng")


def random_bytes(*shape: int, seed: int = 0) -> np.ndarray:
    return torch.randint(0, 256, shape, generator=rng(seed), dtype=torch.uint8).numpy()


# --- digits


def test_digits_and_their_fixed_split():
    train, test, whole = (digits_source(split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(whole)) == (1197, 600, 1797)
    assert not set(train.names) & set(test.names) and set(train.names) | set(test.names) == set(whole.names)
    assert test.classes == tuple("0123456789")
    share = torch.bincount(test.targets) / torch.bincount(whole.targets)
    assert (share - 600 / 1797).abs().max() < 0.006
    batch = next(whole.batches(1797))
    assert batch.inputs.shape == (1797, 1, 8, 8) and torch.equal(
        batch.inputs * 16, (batch.inputs * 16).round()
    )
    assert batch.inputs.min() == 0 and batch.inputs.max() == 1
    assert test.names[0] == whole.names[whole.names.index(test.names[0])]


def test_digits_split_is_pinned():
    """Results name this split: were it to change, they would no longer be comparable."""
    assert digits_source(split="test").names[:5] == ["digit 2", "digit 4", "digit 5", "digit 10", "digit 13"]


# --- idx


def write_idx(path: Path, array: np.ndarray, *, pack: bool = False) -> None:
    data = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if pack:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def write_mnist(folder: Path, *, pack: bool = False, n: int = 6) -> None:
    for part, seed in (("train", 1), ("t10k", 2)):
        write_idx(folder / f"{part}-images-idx3-ubyte", random_bytes(n, 28, 28, seed=seed), pack=pack)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10, pack=pack)


@pytest.mark.parametrize("inside", ["MNIST/raw", "raw", ".", "MNIST"])
@pytest.mark.parametrize("pack", [False, True])
def test_mnist_layouts(tmp_path, inside, pack):
    write_mnist(tmp_path / inside, pack=pack)
    source = open_source(f"mnist:{tmp_path}", split="train")
    expected = torch.from_numpy(random_bytes(6, 28, 28, seed=1)).unsqueeze(1).float() / 255
    assert torch.equal(next(source.batches(6)).inputs, expected)
    assert source.targets.tolist() == [0, 1, 2, 3, 4, 5] and source.classes == tuple("0123456789")
    whole = mnist_source(tmp_path, split="all")
    assert len(whole) == 12 and torch.equal(whole[0][0], expected[0])


def test_fashion_mnist_has_its_own_folder_and_names(tmp_path):
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    write_mnist(tmp_path / "MNIST" / "raw", n=3)
    assert len(open_source(f"mnist:{tmp_path}")) == 3
    source = open_source(f"fashion-mnist:{tmp_path}")
    assert len(source) == 6 and source.classes[0] == "T-shirt/top" and source.classes[9] == "Ankle boot"


def test_bad_idx_files(tmp_path):
    with pytest.raises(DataError, match=r"no folder at .*nowhere; expected the idx files of MNIST"):
        mnist_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no t10k-images-idx3-ubyte \(or .gz\) for MNIST in .*; looked in"):
        mnist_source(tmp_path)
    write_mnist(tmp_path)
    images, labels = tmp_path / "t10k-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte"
    good = images.read_bytes()
    images.write_bytes(good[:-1])
    with pytest.raises(DataError, match="is truncated or damaged: 4703 bytes of data, 4704 expected"):
        mnist_source(tmp_path)
    images.write_bytes(b"\x00\x00\x08\x01" + good[4:])
    with pytest.raises(DataError, match="magic 00000801, expected 00000803"):
        mnist_source(tmp_path)
    images.write_bytes(b"\x00")
    with pytest.raises(DataError, match="is no idx file of 3 axes"):
        mnist_source(tmp_path)
    images.write_bytes(good)
    write_idx(labels, np.zeros(5, np.uint8))
    with pytest.raises(DataError, match="6 t10k images but 5 labels"):
        mnist_source(tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match=r"no .*t10k-labels-idx1-ubyte \(or .gz\)"):
        mnist_source(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(100))[:20])
    with pytest.raises(DataError, match="damaged or truncated"):
        read_idx(labels, 1)


# --- tables

ROWS = """age,sex,age,score,race,bad
23,Male,1,low,A,0
31,Female,2,high,B,1
45,Male,3,low,A,0
52,Male,4,,A,1
60,Female,5,high,C,0
61,Female,6,low,B,1
"""


def write_table(tmp_path: Path, text: str = ROWS) -> Path:
    (tmp_path / "t.csv").write_text(text)
    return tmp_path / "t.csv"


def test_table_columns(tmp_path):
    source = open_source(f"table:{write_table(tmp_path)}?target=bad&group=race", split="all")
    assert source.features == ("age", "sex=Female", "sex=Male", "age.1", "score=", "score=high", "score=low")
    batch = next(source.batches(6))
    assert batch.inputs[0].tolist() == [23, 0, 1, 1, 0, 0, 1] and batch.inputs[3].tolist() == [
        52,
        0,
        1,
        4,
        1,
        0,
        0,
    ]
    assert batch.targets.tolist() == [0, 1, 0, 1, 0, 1] and source.classes == ("0", "1")
    assert batch.groups.tolist() == [0, 1, 0, 0, 2, 1] and source.factor_names["race"] == ("A", "B", "C")
    train, test = (table_source(tmp_path / "t.csv", target="bad", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 2) and sorted(test.targets.tolist()) == [0, 1]
    assert not set(train.names) & set(test.names) and test.features == train.features
    plain = open_source(f"table:{tmp_path / 't.csv'}?columns=age.1,age", split="all")
    assert plain.features == ("age.1", "age") and plain.targets is None and plain[1][0].tolist() == [2, 31]
    dropped = open_source(f"table:{tmp_path / 't.csv'}?drop=sex,score,race,bad", split="all")
    assert dropped.features == ("age", "age.1")


@pytest.mark.parametrize(
    ("text", "query", "message"),
    [
        (ROWS, "target=bda", r"no column 'bda'; nearest: \['bad'"),
        (ROWS, "drop=age,sex,score,race,bad,age.1", "no columns are left"),
        ("a,y\n1,x\n,y\n", "target=y", r"1 of 2 fields of the numeric column 'a' are empty.*drop=a"),
        ("a,y\n1,x\ninf,y\n", "target=y", "1 of 2 fields of the numeric column 'a' are empty or not finite"),
        ("a,y\n1,x\n2,\n", "target=y", "target 'y' is empty in row 2"),
        ("a,y\n1,0.5\n2,1\n", "target=y", "target 'y' holds fractions"),
        (
            "a,y\n" + "".join(f"1,t{i}\n" for i in range(60)),
            "target=a",
            "'y' has 60 different values.*drop=y",
        ),
        (
            "a,y\n" + "".join(f"1,t{i}\n" for i in range(60)),
            "target=y",
            "'y' has 60 different values in 60 rows",
        ),
    ],
)
def test_bad_tables(tmp_path, text, query, message):
    with pytest.raises(DataError, match=message):
        open_source(f"table:{write_table(tmp_path, text)}?{query}", split="all")


# --- Hugging Face


@pytest.fixture
def saved(tmp_path, monkeypatch) -> Path:
    """A tiny data set on disk, in two splits; nothing is fetched."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'pellucid[hf]'")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )

    def part(n: int, seed: int):
        rows = {"image": [Image.fromarray(random_bytes(8, 8, 3, seed=seed + i)) for i in range(n)]}
        return datasets.Dataset.from_dict({**rows, "label": [i % 2 for i in range(n)]}, features=features)

    found = datasets.DatasetDict({"train": part(5, 0), "validation": part(3, 100)})
    found.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_hf_data_set_on_disk(saved):
    source = open_source(f"hf:{saved}", split="train")
    assert source.classes == ("cat", "dog") and source.targets.tolist() == [0, 1, 0, 1, 0]
    expected = torch.from_numpy(np.stack([random_bytes(8, 8, 3, seed=i) for i in range(5)]))
    assert torch.equal(next(source.batches(5)).inputs, expected.permute(0, 3, 1, 2).float() / 255)
    assert source.names[1] == "train/1" and len(source.fingerprint()) == 64
    assert len(open_source(f"hf:{saved}")) == 3 and len(open_source(f"hf:{saved}", split="all")) == 8
    assert open_source(f"hf:{saved}?channels=grey", size=4)[0][0].shape == (1, 4, 4)


def test_hf_folder_of_images(saved, tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_bytes(6, 6, 3)).save(tmp_path / "images" / name)
    source = open_source(f"hf:{tmp_path / 'images'}", split="train")
    assert source.classes == ("cat", "dog") and source[0][0].shape == (3, 6, 6)


def test_bad_hf(saved, tmp_path):
    with pytest.raises(DataError, match=r"no data set at .*nowhere"):
        open_source(f"hf:{tmp_path / 'nowhere'}")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="cannot open the data set"):
        open_source(f"hf:{tmp_path / 'void'}")
    with pytest.raises(DataError, match=r"no image column 'img'; its image columns: \['image'\]"):
        open_source(f"hf:{saved}?image=img")
    with pytest.raises(DataError, match=r"no column 'lable'; nearest: \['label'"):
        open_source(f"hf:{saved}?label=lable")
    import datasets

    datasets.load_from_disk(str(saved))["train"].save_to_disk(str(tmp_path / "one"))
    assert len(open_source(f"hf:{tmp_path / 'one'}", split="train")) == 5
    datasets.DatasetDict({"train": datasets.load_from_disk(str(tmp_path / "one"))}).save_to_disk(
        str(tmp_path / "two")
    )
    with pytest.raises(DataError, match=r"has the splits \['train'\], none for 'test'"):
        open_source(f"hf:{tmp_path / 'two'}")


def test_hf_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'pellucid\[hf\]'"):
        open_source("hf:some/name")


# --- specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", r"unknown data 'digit'; nearest: \['digits'.*all: \['digits', 'shapes', 'mnist:ROOT'"),
        ("minst:x", r"nearest: \['mnist:ROOT'"),
        ("mnist", "expected mnist:ROOT"),
        ("digits:x", "digits takes no path"),
        ("digits?chanels=rgb", r"one of \['channels'\], got 'chanels=rgb'"),
        ("digits?channels", "got 'channels'"),
        ("", "unknown data ''"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ConfigError, match=message):
        open_source(spec)


def test_a_bare_folder_is_pointed_out(tmp_path):
    with pytest.raises(ConfigError, match="is a folder: did you mean 'folder:"):
        open_source(str(tmp_path))


def test_length_takes_a_fixed_part():
    whole, part = open_source("digits"), open_source("digits", length=50, seed=1)
    assert len(part) == 50 and set(part.names) < set(whole.names)
    assert part.names == open_source("digits", length=50, seed=1).names
    assert part.names != open_source("digits", length=50, seed=2).names
    with pytest.raises(DataError, match="has 600 examples, 601 were asked for"):
        open_source("digits", length=601)


def test_digits_at_another_size():
    source = open_source("digits", size=16, channels="rgb")
    assert source[0][0].shape == (3, 16, 16) and len(source) == 600


def test_class_map_is_put_in_the_order_of_the_classes(tmp_path):
    (tmp_path / "map.json").write_text(
        '{"letter": 11, ' + ", ".join(f'"{9 - k}": [{k}]' for k in range(10)) + "}"
    )
    source = open_source("digits", class_map=tmp_path / "map.json")
    assert source.class_map.names == (*"0123456789", "letter")
    assert source.class_map.outputs[:2] == ((9,), (8,))
    assert source.fingerprint() != open_source("digits").fingerprint()
    (tmp_path / "map.json").write_text('{"0": 1}')
    with pytest.raises(DataError, match=r"class map has no entry for \['1', '2'"):
        open_source("digits", class_map=tmp_path / "map.json")


# --- the real files


@pytest.mark.data
def test_real_mnist(data_root):
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for root in (data_root, data_root / "MNIST", data_root / "MNIST" / "raw"):
        source = open_source(f"mnist:{root}")
        assert len(source) == 10000 and torch.bincount(source.targets).tolist() == counts
    train = open_source(f"fashion-mnist:{data_root}", split="train")
    assert torch.bincount(train.targets).tolist() == [6000] * 10


@pytest.mark.data
def test_real_cue_conflict_archive(data_root):
    folder = data_root / "texture_vs_shape"
    source = open_source(
        f"folder:{folder / 'cue-conflict.tar'}", class_map=folder / "categories16_to_imagenet.json", size=64
    )
    assert len(source) == 1280 and torch.bincount(source.targets).tolist() == [80] * 16
    assert source.class_map.names == source.classes and source.classes[0] == "airplane"
    assert source.class_map.outputs[0] == (404,) and len(source.class_map.outputs[3]) > 40
    assert source.class_map.from_logits(torch.zeros(2, 1000)).shape == (2, 16)
    assert next(source.batches(8)).inputs.shape == (8, 3, 64, 64)


@pytest.mark.data
def test_real_photographs(data_root):
    with pytest.raises(DataError, match=r"--size 224|channels=rgb"):
        open_source(f"folder:{data_root / 'natural_images'}")
    source = open_source(f"folder:{data_root / 'natural_images'}?channels=rgb", size=224)
    assert len(source) == 19 and source.targets is None  # 17 photographs and two masks
    assert next(source.batches(19)).inputs.shape == (19, 3, 224, 224)


@pytest.mark.data
def test_real_table(data_root):
    table = data_root / "compas" / "compas-scores-two-years.csv"
    columns = "age,sex,priors_count,juv_fel_count,c_charge_degree"
    source = open_source(f"table:{table}?target=two_year_recid&group=race&columns={columns}", split="all")
    assert len(source) == 7214 and len(source.features) == 7 and len(source.factor_names["race"]) == 6
    assert source.targets.double().mean().item() == pytest.approx(0.4507, abs=1e-4)
    with pytest.raises(DataError, match="different values"):
        open_source(f"table:{table}?target=two_year_recid")
