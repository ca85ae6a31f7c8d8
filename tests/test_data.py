"""Batches and sources: the partition, maps, subsets, fingerprints, class maps, concept labels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid._checks import ConfigError, DataError
from pellucid.data import Batch, ClassMap, Source, array_source, concepts, read_class_map
from pellucid.data.adapt import adapt, adapt_images
from pellucid.data.images import Look
from pellucid.data.split import held_out, others
from pellucid.rng import rng

pytestmark = pytest.mark.usefixtures("untouched_rng")


def numbered(n: int, **known) -> Source:
    """A source whose example i is the number i, of class i % 3."""
    return array_source(torch.arange(n, dtype=torch.float32).view(n, 1), [i % 3 for i in range(n)], **known)


class Listed:
    """The plainest examples there can be: `len()` and `[i]`."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


# --- the partition


@given(
    n=st.integers(1, 60),
    size=st.integers(1, 70),
    world=st.integers(1, 7),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
    start=st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_partition_is_the_same_whatever_the_shard(n, size, world, seed, epoch, shuffle, start):
    source = numbered(n)
    how = {"shuffle": shuffle, "seed": seed, "epoch": epoch}
    whole = list(source.batches(size, **how))
    assert [b.number for b in whole] == list(range(math.ceil(n / size)))
    assert sorted(torch.cat([b.index for b in whole]).tolist()) == list(range(n))  # no padding, nothing twice
    assert all(len(b) == size for b in whole[:-1])
    shards = [list(source.batches(size, start=start, shard=(r, world), **how)) for r in range(world)]
    found = sorted((b for shard in shards for b in shard), key=lambda b: b.number)
    assert [b.number for b in found] == list(range(start, len(whole)))
    for rank, shard in enumerate(shards):
        assert all(b.number % world == rank for b in shard)
    for b in found:
        same = whole[b.number]
        assert torch.equal(b.index, same.index) and torch.equal(b.inputs, same.inputs)
        assert torch.equal(b.inputs.flatten(), b.index.float())
        assert torch.equal(b.targets, b.index % 3)


def test_shuffle_is_a_permutation_by_seed_and_epoch():
    def order(**how) -> list[int]:
        return torch.cat([b.index for b in numbered(50).batches(8, **how)]).tolist()

    assert order() == list(range(50))
    assert order(shuffle=True, seed=1, epoch=2) == order(shuffle=True, seed=1, epoch=2)
    assert order(shuffle=True, seed=1, epoch=2) == torch.randperm(50, generator=rng(1, "shuffle", 2)).tolist()
    assert len({tuple(order(shuffle=True, seed=s, epoch=e)) for s in range(3) for e in range(3)}) == 9


@pytest.mark.parametrize(
    "bad", [{"size": 0}, {"start": -1}, {"shard": (2, 2)}, {"shard": (0, 0)}, {"shard": (-1, 2)}]
)
def test_bad_partition_is_told_at_once(bad):
    with pytest.raises(ConfigError, match="size >= 1"):
        numbered(3).batches(**{"size": 2, **bad})


def test_reading_ahead_gives_the_same_batches():
    source = numbered(40).map(lambda x, g: x + torch.rand(1, generator=g), "noise", random=True)
    ahead = Source(source.name, source.examples, source.classes, workers=3)
    for one, other in zip(source.batches(7, shuffle=True), ahead.batches(7, shuffle=True), strict=True):
        assert one.number == other.number
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.index, other.index)


def test_reading_ahead_raises_in_turn_and_can_be_left():
    def fail_late(x):
        if int(x) == 20:
            raise ZeroDivisionError
        return x

    source = numbered(30)
    ahead = Source("late", source.map(fail_late, "late").examples, workers=2)
    batches = ahead.batches(5)
    assert [len(next(batches)) for _ in range(4)] == [5] * 4
    with pytest.raises(ZeroDivisionError):
        next(batches)
    left = ahead.batches(5)
    next(left)
    del left  # its threads end


# --- what a batch holds


def test_uint8_becomes_float_exactly():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    inputs = next(array_source(pixels).batches(1)).inputs
    assert inputs.dtype == torch.float32
    expected = [np.float32(k) / np.float32(255) for k in range(256)]
    assert inputs.flatten().tolist() == [float(value) for value in expected]
    assert torch.equal((inputs * 255).round().to(torch.uint8), pixels)


def test_plain_examples_and_arrays_agree():
    pixels = torch.randint(0, 256, (10, 3, 4, 4), generator=rng(0), dtype=torch.uint8)
    fast = array_source(pixels, list(range(10)))
    plain = Source("plain", Listed([(pixels[i], i) for i in range(10)]), fast.classes)
    for one, other in zip(fast.batches(4, shuffle=True), plain.batches(4, shuffle=True), strict=True):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
    assert torch.equal(plain.targets, fast.targets)
    assert plain[3][1] == fast[3][1] == 3
    assert torch.equal(plain[3][0], fast[3][0]) and len(plain.fingerprint()) == 64


def test_unlabelled_has_no_targets():
    source = array_source(torch.rand(4, 2, generator=rng(0)))
    assert source.targets is None and source.classes == ()
    assert next(source.batches(4)).targets is None
    assert Source("plain", Listed([(torch.zeros(1), None)] * 3)).targets is None


def test_half_labelled_is_refused():
    source = Source("half", Listed([(torch.zeros(1), 0), (torch.zeros(1), None)]))
    with pytest.raises(DataError, match="1 of 2 examples have no target"):
        next(source.batches(2))


def test_unequal_shapes_are_refused():
    source = Source("ragged", Listed([(torch.zeros(1), 0), (torch.zeros(2), 0)]))
    with pytest.raises(DataError, match=r"unequal shape, \(1,\) and \(2,\)"):
        next(source.batches(2))


def test_batch_moves_to_a_device_and_keeps_its_index():
    batch = Batch(torch.zeros(2, 1), torch.zeros(2).long(), torch.arange(2), torch.arange(2), 5)
    moved = batch.to("meta")
    assert moved.inputs.is_meta and moved.targets.is_meta and moved.groups.is_meta
    assert not moved.index.is_meta and moved.number == 5
    assert Batch(torch.zeros(2, 1), None, torch.arange(2)).to("cpu").targets is None


# --- take


def test_take_carries_everything_along():
    source = numbered(
        6,
        factors={"place": torch.arange(6) * 10},
        captions=[f"number {i}" for i in range(6)],
        names=list("abcdef"),
        groups=torch.arange(6) % 2,
    )
    part = source.take([4, 1, 4])
    batch = next(part.batches(3))
    assert batch.inputs.flatten().tolist() == [4, 1, 4] and batch.index.tolist() == [0, 1, 2]
    assert batch.targets.tolist() == [1, 1, 1] and batch.groups.tolist() == [0, 1, 0]
    assert part.factors["place"].tolist() == [40, 10, 40]
    assert part.captions == ["number 4", "number 1", "number 4"] and part.names == ["e", "b", "e"]
    assert part.take([1]).names == ["b"] and part.take([1])[0][0].item() == 1
    mask = torch.tensor([True, False, False, True, False, False])
    assert source.take(mask).names == ["a", "d"] == source.take(np.array([0, 3])).names
    assert len(source.take(range(2, 5))) == 3 and len(source.take([])) == 0


@pytest.mark.parametrize("index", [[6], [-1], [0, 99]])
def test_take_beyond_the_end(index):
    with pytest.raises(DataError, match="reaches beyond 'array' of 6 examples"):
        numbered(6).take(index)
    with pytest.raises(DataError, match="needs 6 entries, got 2"):
        numbered(6).take(torch.tensor([True, False]))


@pytest.mark.parametrize("what", ["captions", "names", "groups"])
def test_columns_must_have_a_row_an_example(what):
    column = torch.arange(2) if what == "groups" else ["a", "b"]
    with pytest.raises(DataError, match=f"3 examples but 2 rows of {what}"):
        numbered(3, **{what: column})
    with pytest.raises(DataError, match="2 rows of factor 'colour'"):
        numbered(3, factors={"colour": torch.arange(2)})


# --- map


def test_random_map_belongs_to_seed_epoch_and_position():
    def jitter(x, generator):
        return x + torch.rand(x.shape, generator=generator)

    source = numbered(20).map(jitter, "jitter", random=True)

    def read(size, **how):
        batches = list(source.batches(size, **how))
        index = torch.cat([b.index for b in batches])
        return torch.cat([b.inputs for b in batches])[index.argsort()]

    plain = read(20, seed=3, epoch=1)
    assert torch.equal(plain, read(7, seed=3, epoch=1, shuffle=True))  # whatever the batch and order
    for i in range(20):
        assert plain[i] == i + torch.rand(1, generator=rng(3, "map", "jitter", 1, i))
    assert not torch.equal(plain, read(20, seed=4, epoch=1))
    assert not torch.equal(plain, read(20, seed=3, epoch=2))
    assert torch.equal(
        source.take([5, 2])[0][0], source[5][0]
    )  # map, then take: the draws stay with the example


def test_maps_chain_in_order_and_change_shapes():
    source = numbered(4).map(lambda x: x + 1, "plus").map(lambda x: torch.cat([x, x * 2]), "twice")
    assert next(source.batches(2)).inputs.tolist() == [[1, 2], [2, 4]]
    assert source[3][0].tolist() == [4, 8] and source.targets.tolist() == [0, 1, 2, 0]


def test_map_errors_name_the_map():
    with pytest.raises(DataError, match="map 'to list' must return a tensor, got list"):
        next(numbered(3).map(lambda x: x.tolist(), "to list").batches(2))
    with pytest.raises(DataError, match="map 'ragged': examples of unequal shape"):
        next(numbered(3).map(lambda x: x.expand(int(x) + 1), "ragged").batches(2))


# --- fingerprints


def test_fingerprint_changes_with_any_byte_label_or_map():
    pixels = torch.randint(0, 256, (5, 1, 3, 3), generator=rng(1), dtype=torch.uint8)
    source = array_source(pixels, [0, 1, 2, 0, 1])
    same = array_source(pixels.clone(), [0, 1, 2, 0, 1], name="other name")
    assert source.fingerprint() == same.fingerprint() == source.take(range(5)).fingerprint()
    others_ = [source.take(range(4)), source.take([1, 0, 2, 3, 4]), array_source(pixels)]
    for place in range(pixels.numel()):
        changed = pixels.clone()
        changed.view(-1)[place] ^= 1
        others_.append(array_source(changed, [0, 1, 2, 0, 1]))
    others_ += [
        array_source(pixels, [0, 1, 2, 0, 2]),
        array_source(pixels, [0, 1, 2, 0, 1], classes=["a", "b", "c"]),
        array_source(pixels, [0, 1, 2, 0, 1], groups=torch.arange(5)),
        array_source(pixels, [0, 1, 2, 0, 1], factors={"f": torch.arange(5)}),
        array_source(pixels, [0, 1, 2, 0, 1], captions=list("abcde")),
        source.map(torch.square, "square"),
        source.map(torch.square, "other"),
        source.map(lambda x, g: x, "square", random=True),
        adapt(source, Look((6, 6))),
        adapt(source, Look((6, 6), "stretch")),
        adapt(source, Look(channels="rgb")),
    ]
    prints = {source.fingerprint(), *(other.fingerprint() for other in others_)}
    assert len(prints) == 1 + len(others_)


# --- bad arrays


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(0, 2), None, "holds no examples"),
        (torch.zeros(2, 8, 8, 3), None, r"permute\(0, 3, 1, 2\)"),
        (torch.full((2, 1, 4, 4), 200.0), None, "divide by 255"),
        (-torch.ones(2, 1, 4, 4), None, r"must lie in \[0, 1\]"),
        (torch.tensor([[math.nan]]), None, "NaN or infinity"),
        (torch.tensor([[math.inf]]), None, "NaN or infinity"),
        (torch.zeros(2, 3, dtype=torch.int32), None, "uint8 or floating"),
        (torch.zeros(2, 3), [0], "2 examples need 2 targets"),
        (torch.zeros(2, 3), [0, -1], "-1 to 0"),
    ],
)
def test_bad_arrays(inputs, targets, message):
    with pytest.raises(DataError, match=message):
        array_source(inputs, targets)


def test_targets_must_have_a_class():
    with pytest.raises(DataError, match=r"must lie in \[0, 1\], got 0 to 2"):
        array_source(torch.zeros(3, 2), [0, 1, 2], classes=["a", "b"])


# --- fitting arrays


def test_adapted_images_against_loops():
    images = torch.rand(2, 3, 9, 12, generator=rng(2))
    grey = adapt_images(images, Look(channels="grey"))
    for n in range(2):
        for i in range(9):
            for j in range(12):
                r, g, b = images[n, :, i, j].tolist()
                assert grey[n, 0, i, j].item() == pytest.approx(0.299 * r + 0.587 * g + 0.114 * b, abs=1e-6)
    cut = adapt_images(images, Look((9, 8)))
    assert torch.equal(cut, images[:, :, :, 2:10])  # no resizing needed: the middle
    assert adapt_images(images, Look((20, 10), "stretch")).shape == (2, 3, 20, 10)
    assert adapt_images(images, Look((20, 10))).shape == (2, 3, 20, 10)
    flat = torch.full((1, 1, 5, 7), 0.3)
    assert torch.allclose(adapt_images(flat, Look((16, 16), channels="rgb")), torch.full((1, 3, 16, 16), 0.3))


def test_adapt_leaves_what_fits_and_refuses_tables():
    images = array_source(torch.rand(2, 1, 4, 4, generator=rng(0)))
    assert adapt(images, Look((4, 4), channels="grey")) is images
    assert adapt(images, Look((8, 8)))[0][0].shape == (1, 8, 8)
    with pytest.raises(DataError, match="holds no images"):
        adapt(array_source(torch.zeros(2, 5)), Look((8, 8)))


# --- splits


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_held_out_is_stratified(sizes, share):
    targets = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    count = round(share * len(targets))
    chosen = held_out(targets, count)
    assert len(chosen) == count and chosen.tolist() == sorted(set(chosen.tolist()))
    for c, n in enumerate(sizes):
        assert abs(int((targets[chosen] == c).sum()) - n * count / len(targets)) < 1
    rest = others(len(targets), chosen)
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(len(targets)))


# --- class maps


def test_class_scores_are_mean_probabilities():
    found = ClassMap(("cat", "dog", "pen"), ((1, 2), (0,), (3,)))
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    for row, scores in zip(logits.tolist(), found.from_logits(logits).tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        p = [math.exp(value) / total for value in row]
        assert scores == pytest.approx([(p[1] + p[2]) / 2, p[0], p[3]], abs=1e-12)
    aligned = found.align(["pen", "cat"])
    assert aligned.names == ("pen", "cat", "dog") and aligned.outputs == ((3,), (1, 2), (0,))
    with pytest.raises(DataError, match=r"no entry for \['cats'\]; its nearest names: \['cat'"):
        found.align(["cats"])
    with pytest.raises(DataError, match="names output 3, but the model has 2 outputs"):
        found.from_logits(torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.json", '{"cat": [281, 282], "dog": 5}'),
        ("map.json", '{"cat": {"imagenet_indices": [281, 282], "wnids": ["n1", "n2"]}, "dog": {"i": [5]}}'),
        ("map.csv", "class,index,note\ncat,281,x\ndog,5,y\ncat,282,z\n"),
    ],
)
def test_class_map_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_class_map(tmp_path / name) == ClassMap(("cat", "dog"), ((281, 282), (5,)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("map.json", "{", "is not JSON"),
        ("map.json", "[1]", "must be an object of class names, got a list"),
        ("map.json", "{}", "names no class"),
        ("map.json", '{"cat": "281"}', "'cat': expected an output number"),
        ("map.json", '{"cat": []}', "'cat' needs one or more outputs"),
        ("map.json", '{"cat": [-1]}', "'cat' needs one or more outputs >= 0"),
        (
            "map.json",
            '{"cat": [1, 2], "dog": 2}',
            "output 2 stands for 'cat' and 'dog'; an output belongs to one",
        ),
        ("map.json", '{"cat": [1, 1]}', "output 1 stands twice for 'cat'"),
        ("map.json", '{"cat": {"a": [1], "b": [2]}}', "one list of output numbers, found 2"),
        ("map.csv", "name,index\ncat,3\n", "needs the columns class and index"),
        ("map.csv", "class,index\ncat,three\n", "'three' of 'cat' is no output number"),
    ],
)
def test_bad_class_map_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_class_map(tmp_path / name)
    with pytest.raises(DataError, match="no class map at"):
        read_class_map(tmp_path / "nowhere.json")


# --- concept labels


def test_concepts_of_coded_and_boolean_factors():
    source = Source(
        "known",
        numbered(3).examples,
        factors={
            "colour": torch.tensor([1, 0, 1]),
            "big": torch.tensor([True, False, False]),
            "x": torch.rand(3, generator=rng(0)),
        },
        factor_names={"colour": ("red", "blue")},
    )
    names, present = concepts(source)
    assert names == ("colour=red", "colour=blue", "big")
    assert present.tolist() == [[False, True, True], [True, False, False], [False, True, False]]
    with pytest.raises(DataError, match="has no concept labels"):
        concepts(numbered(3))
