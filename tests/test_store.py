"""The run folder: whole or not at all, everything back as it went in, and nothing stale by accident."""

import dataclasses as dc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid._checks import ConfigError, DataError, StaleResultError
from pellucid.store import SCHEMA, Run, check_space, check_writable, digest, write_bytes
from pellucid.store.tree import put_together, take_apart, to_json

INPUTS = {"weights": "a" * 64, "data": "b" * 64}


@dc.dataclass(frozen=True)
class Inner:
    values: torch.Tensor
    note: str


@dc.dataclass(frozen=True)
class Result:
    mean: torch.Tensor
    counts: np.ndarray
    score: float
    n: int
    kind: str
    nothing: None
    grid: tuple[int, int]
    by_layer: dict[str, Inner]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", {"recipe": {"model": "zoo:small"}, "seed": 3})


@pytest.fixture
def result() -> Result:
    inner = Inner(torch.arange(6.0).reshape(2, 3).T, "x")
    return Result(
        torch.rand(4, 5, dtype=torch.float64),
        np.arange(3),
        float("nan"),
        7,
        "cat",
        None,
        (2, 3),
        {"a.b/c": inner},
    )


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# -- what goes in comes out ----------------------------------------------------------------------------------------


def test_dataclass_round_trip(run: Run, result: Result) -> None:
    run.save("result", result, inputs=INPUTS)
    facts = run.facts("result")
    assert np.isnan(facts.pop("score"))
    assert facts == {
        "n": 7,
        "kind": "cat",
        "nothing": None,
        "grid": [2, 3],
        "by_layer": {"a.b/c": {"note": "x"}},
    }
    arrays = run.arrays("result")
    assert set(arrays) == {"mean", "counts", "by_layer/a.b~1c/values"}
    np.testing.assert_array_equal(arrays["mean"], result.mean.numpy())
    # A transposed tensor is not contiguous: its values, not its memory, must come back.
    np.testing.assert_array_equal(arrays["by_layer/a.b~1c/values"], result.by_layer["a.b/c"].values.numpy())
    whole = run.load("result")
    np.testing.assert_array_equal(
        whole["by_layer"]["a.b/c"]["values"], result.by_layer["a.b/c"].values.numpy()
    )


def test_numbers_that_json_does_not_know(run: Run) -> None:
    values = {
        "nan": float("nan"),
        "inf": np.float32("inf"),
        "minus": torch.tensor(-float("inf")),
        "exact": 0.1 + 0.2,
    }
    run.save("numbers", values)
    back = run.facts("numbers")
    assert np.isnan(back["nan"])
    assert (back["inf"], back["minus"], back["exact"]) == (float("inf"), -float("inf"), 0.1 + 0.2)
    text = (run.path / "facts" / "numbers.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text().filter(lambda k: not k.startswith("$")), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=8).filter(lambda k: not k.startswith("$")), json_values, max_size=4))
def test_any_facts_survive(facts: dict) -> None:
    arrays: dict[str, np.ndarray] = {}
    tree = json.loads(to_json(take_apart(facts, arrays)))
    assert put_together(tree, arrays) == facts
    assert not arrays


def test_array_names_never_clash() -> None:
    tree = {"": {"a": np.ones(1)}, "a": np.zeros(1), "x/y": np.full(1, 2.0), "x": {"y": np.full(1, 3.0)}}
    arrays: dict[str, np.ndarray] = {}
    back = put_together(take_apart(tree, arrays), arrays)
    assert len(arrays) == 4
    assert (back[""]["a"], back["a"], back["x/y"], back["x"]["y"]) == (1, 0, 2, 3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint8", "bool", ">f4"])
def test_array_types(run: Run, dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    run.save("array", {"x": array, "empty": array[:0]})
    np.testing.assert_array_equal(run.arrays("array")["x"], array)
    assert run.arrays("array")["empty"].shape == (0, 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": {1, 2}}, "x: a set has no place"),
        ({"x": {"deep": object()}}, "x/deep: a object"),
        ({"x": torch.ones(2, dtype=torch.bfloat16)}, r"convert it first, with .float\(\)"),
        ({"x": np.array([1j])}, "complex128"),
        ({1: "x"}, "keys are text"),
        ({"$x": 1}, "does not begin with '\\$'"),
        (3.0, "expected a dataclass or a mapping"),
    ],
)
def test_values_without_a_place(run: Run, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.save("bad", value)
    assert not run.has("bad")


def test_result_without_arrays_replaces_one_with(run: Run) -> None:
    run.save("x", {"a": np.ones(3)})
    run.save("x", {"b": 1})
    assert run.arrays("x") == {}
    assert run.facts("x") == {"b": 1}
    assert not (run.path / "arrays" / "x.safetensors").exists()


# -- tables and images ---------------------------------------------------------------------------------------------


def test_table_round_trip(run: Run) -> None:
    columns = {
        "layer": ["a", "b", None], "unit": [0, 1, 2], "si": torch.tensor([0.5, float("nan"), 1.0]),
        "dead": np.array([True, False, False]), "gaps": [1, None, 3], "odd": ["\udcff", "ü", "<script>"],
    }  # fmt: skip
    run.save_table("units", columns, inputs=INPUTS)
    table = run.table("units", inputs=INPUTS)
    assert list(table) == list(columns)
    assert table["layer"].tolist() == ["a", "b", None]
    assert table["unit"].dtype == np.int64
    np.testing.assert_array_equal(table["si"], [0.5, np.nan, 1.0])
    np.testing.assert_array_equal(table["gaps"], [1, np.nan, 3])
    assert table["dead"].dtype == bool
    assert table["odd"].tolist() == ["\\udcff", "ü", "<script>"]
    assert run.table_names() == ["units"]


def test_empty_table(run: Run) -> None:
    run.save_table("none", {"layer": [], "unit": np.zeros(0, np.int64)})
    assert len(run.table("none")["unit"]) == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1, 2], "b": [1]}, "equally long"),
        ({"a": [1, "x"]}, "of one kind"),
        ({"a": np.ones((2, 2))}, "one value a row"),
        ({"a": [[1], [2]]}, "one number or text a row"),
    ],
)
def test_bad_tables(run: Run, columns: dict, message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        run.save_table("bad", columns)
    assert run.table_names() == []


def test_images_are_lossless(run: Run) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = run.save_image("thumbs", "10", pixels)
    run.save_image("thumbs", "2", torch.tensor(pixels[:, :, :1] / 255, dtype=torch.float32))
    np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(run.path / "images/thumbs/2.png")), pixels[:, :, 0])
    assert [f.name for f in run.image_files("thumbs")] == ["2.png", "10.png"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"\.permute\(1, 2, 0\)"),
        (np.full((4, 4), 2.0), r"reals in \[0, 1\], got \[2, 2\]"),
        (np.zeros((4, 4), np.int64), "got int64"),
        (np.full((4, 4), np.nan), "reals in"),
        (np.zeros((0, 4), np.uint8), "expected"),
    ],
)
def test_bad_images(run: Run, image: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run.save_image("thumbs", "0", image)


# -- staleness -----------------------------------------------------------------------------------------------------


def test_other_inputs_are_stale(run: Run) -> None:
    run.save("x", {"a": np.ones(2)}, inputs=INPUTS)
    run.save_table("t", {"a": [1]}, inputs=INPUTS)
    assert run.has("x", inputs=INPUTS)
    assert run.has("t", inputs=INPUTS)
    assert not run.has("y", inputs=INPUTS)
    other = {**INPUTS, "weights": "c" * 64}
    for read in (run.has, run.facts, run.arrays, run.load):
        with pytest.raises(StaleResultError, match=r"weights: 'a+…' there, 'c+…' here"):
            read("x", inputs=other)
    for read in (run.has, run.table):
        with pytest.raises(StaleResultError, match="weights"):
            read("t", inputs=other)
    with pytest.raises(StaleResultError, match=r"version: nothing there, '2' here"):
        run.has("x", inputs={**INPUTS, "version": "2"})
    with pytest.raises(StaleResultError, match=r"data: 'b+…' there, nothing here"):
        run.has("x", inputs={"weights": INPUTS["weights"]})


def test_digest() -> None:
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": [1.5, None], "a": 1})
    assert digest(np.ones(3)) == digest(torch.ones(3, dtype=torch.float64)) != digest(np.ones((3, 1)))
    assert digest([1]) != digest([1.5])
    assert len(digest("x")) == 64


# -- whole or not at all -------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 64 kB: writes fail in their middle, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_result_and_no_parts(run: Run, small_disk: None) -> None:
    run.save("x", {"a": np.ones(10)})
    before = files(run.path)
    with pytest.raises(ConfigError, match=r"no room to write .*x\.safetensors: 800 kB needed"):
        run.save("x", {"a": np.ones(100_000)})
    assert files(run.path) == before
    np.testing.assert_array_equal(run.arrays("x")["a"], np.ones(10))
    noise = np.random.default_rng(0).random(100_000)
    with pytest.raises(ConfigError, match="no room"):
        run.save_table("big", {"a": noise})
    assert files(run.path) == before


def test_space_is_checked_beforehand(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not enough room under .*: 1e\+18 GB needed .* free; free some"):
        Run.create(tmp_path / "run", needed=10**27)
    with pytest.raises(ConfigError, match="not enough room"):
        check_space(tmp_path / "not" / "there", 10**27)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "f", b"new")
    assert files(tmp_path) == {"f"}
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_kill_between_two_files_of_a_result_means_not_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save("x", {"a": np.ones(3)})
    (run.path / "arrays" / "x.safetensors").write_bytes(b"of another result")
    assert not run.has("x")
    with pytest.raises(DataError, match=r"does not belong to facts/x\.json"):
        run.arrays("x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        Run.create(tmp_path / "run")


def test_a_place_the_system_refuses(tmp_path: Path) -> None:
    for place in ("/proc/pellucid", "/sys/pellucid"):
        if Path(place).parent.is_dir():
            with pytest.raises(ConfigError, match=r"cannot be written|not enough room"):
                check_writable(place)


# -- which folders are runs ----------------------------------------------------------------------------------------


def test_create_and_open(tmp_path: Path) -> None:
    made = Run.create(tmp_path / "a" / "b", {"seed": 1})
    again = Run.open(tmp_path / "a" / "b")
    assert again.header == made.header == Run(str(tmp_path / "a" / "b")).header
    assert again.header["seed"] == 1
    assert again.header["schema"] == SCHEMA
    assert {"python", "pellucid", "torch"} <= set(again.header["versions"])
    again.annotate({"seconds": 2.5, "seed": 2})
    assert Run(again.path).header["seconds"] == 2.5
    with pytest.raises(ConfigError, match="a run already"):
        Run.create(again.path)
    with pytest.raises(ConfigError, match=r"writes these itself.*schema"):
        again.annotate({"schema": 9})


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(ConfigError, match="neither empty nor a run"):
        Run.create(tmp_path / "thesis")
    with pytest.raises(ConfigError, match="not a run folder"):
        Run.open(tmp_path / "thesis")
    with pytest.raises(ConfigError, match="is a file"):
        Run.create(tmp_path / "thesis" / "chapter.tex")
    with pytest.raises(ConfigError, match="is a file"):
        Run.create(tmp_path / "thesis" / "chapter.tex" / "run")
    assert files(tmp_path) == {"thesis/chapter.tex"}


def test_another_schema_version(run: Run) -> None:
    header = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**header, "schema": 99, "versions": {"pellucid": "7.0"}}))
    for refuse in (Run.open, check_writable):
        with pytest.raises(
            ConfigError, match=r"schema version 99 \(written by pellucid 7\.0\).* reads version 1: open it"
        ):
            refuse(run.path)


def test_damage_is_named(run: Run) -> None:
    run.save("x", {"a": 1})
    (run.path / "facts" / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json is damaged"):
        run.facts("x")
    run.save_table("t", {"a": [1]})
    (run.path / "tables" / "t.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"t\.parquet is damaged"):
        run.table("t")
    (run.path / "run.json").write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object"):
        Run.open(run.path)


def test_what_is_not_there(run: Run) -> None:
    run.save("selectivity", {"a": 1})
    run.save_table("units", {"a": [1]})
    with pytest.raises(DataError, match=r"no result 'selectvity'.*nearest: \['selectivity'\]"):
        run.facts("selectvity")
    with pytest.raises(DataError, match=r"no table 'unit'.*nearest: \['units'\]"):
        run.table("unit")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 200, "a\\b", "con.", "a b", "ü"])
def test_names_stay_in_the_folder(run: Run, name: str) -> None:
    for use in (
        lambda: run.save(name, {}),
        lambda: run.save_table(name, {}),
        lambda: run.has(name),
        lambda: run.facts(name),
    ):
        with pytest.raises(ConfigError, match="a name in a run"):
            use()
    with pytest.raises(ConfigError, match="a name in a run"):
        run.save_image(name, "x", np.zeros((2, 2), np.uint8))


def test_readable_without_torch(run: Run, result: Result) -> None:
    run.save("result", result)
    run.save_table("units", {"a": [1.0]})
    code = (
        "import sys; from pellucid.store import Run; run = Run.open(sys.argv[1]); "
        "run.load('result'); run.table('units'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True, timeout=60)
