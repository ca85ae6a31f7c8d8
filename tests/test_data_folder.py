"""Images of the user's own: folders, archives, labels files, and every way in which they can be wrong."""

import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid._checks import ConfigError, DataError
from pellucid.data import concepts, folder_source, open_source
from pellucid.data.columns import natural_key
from pellucid.data.images import Look, cover, decode
from pellucid.rng import rng

pytestmark = pytest.mark.usefixtures("untouched_rng")


def picture(seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    """A random picture of `size` (height, width)."""
    shape = (*size, 3) if mode == "RGB" else size
    return Image.fromarray(torch.randint(0, 256, shape, generator=rng(seed), dtype=torch.uint8).numpy())


def save(path: Path, seed: int = 0, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **how).save(path)
    return path


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Two classes, in names that plain sorting would put out of order."""
    root = tmp_path / "animals"
    for k, name in enumerate(["cat/img2.png", "cat/img10.PNG", "cat/img1.png", "dog/b.png", "dog/sub/a.png"]):
        save(root / name, k)
    (root / ".cache").mkdir()
    save(root / ".cache" / "x.png")
    save(root / "cat" / ".hidden.png")
    (root / "notes.txt").write_text("no image")
    return root


def as_tar(folder: Path, target: Path, mode: str = "w") -> Path:
    with tarfile.open(target, mode) as archive:
        archive.add(folder, arcname=f"./{folder.name}")
    return target


# --- reading


def test_classes_from_folders_in_natural_order(animals):
    source = folder_source(animals)
    assert source.name == "animals" and source.classes == ("cat", "dog")
    assert source.names == ["cat/img1.png", "cat/img2.png", "cat/img10.PNG", "dog/b.png", "dog/sub/a.png"]
    assert source.targets.tolist() == [0, 0, 0, 1, 1] and source.skipped == []
    batch = next(source.batches(5))
    assert batch.inputs.shape == (5, 3, 12, 10) and batch.inputs.dtype == torch.float32
    for i, seed in enumerate([2, 0, 1, 3, 4]):
        expected = torch.from_numpy(np.array(picture(seed))).permute(2, 0, 1).float() / 255
        assert torch.equal(batch.inputs[i], expected)
        assert torch.equal(source[i][0], expected) and source[i][1] == batch.targets[i]


def test_flat_folder_is_unlabelled(tmp_path):
    for k in range(3):
        save(tmp_path / f"{k}.bmp", k, mode="L")
    source = open_source(f"folder:{tmp_path}")
    assert source.classes == () and source.targets is None
    assert next(source.batches(3)).inputs.shape == (3, 1, 12, 10)


def test_natural_order():
    names = ["b1", "a10", "a9", "A2", "a", "10", "9", "a2"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "A2", "a2", "a9", "a10", "b1"]


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz"), ("b.tar", "w:gz")]
)
def test_archives_give_what_folders_give(animals, tmp_path, name, mode):
    folder, archive = folder_source(animals), folder_source(as_tar(animals, tmp_path / name, mode))
    assert archive.classes == folder.classes and archive.name == name
    assert archive.names == [f"animals/{name}" for name in folder.names]
    assert torch.equal(next(archive.batches(9)).inputs, next(folder.batches(9)).inputs)
    assert archive.fingerprint() == folder.fingerprint()


def test_train_and_test_folders_are_entered(animals, tmp_path):
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    animals.rename(root / "train" / "animals")
    save(root / "val" / "cat" / "x.png")
    assert folder_source(root, split="train").names[0] == "animals/cat/img1.png"
    assert folder_source(root, split="test").names == ["cat/x.png"]
    with pytest.raises(DataError, match=r"holds \['train', 'val'\]; say which"):
        folder_source(root, split="all")
    (root / "val").rename(root / "training")
    with pytest.raises(DataError, match="nothing for split 'test'"):
        folder_source(root, split="test")


def test_links_are_followed_once(animals):
    (animals / "dog" / "loop").symlink_to(animals)
    (animals / "cat" / "linked.png").symlink_to(animals / "dog" / "b.png")
    assert "cat/linked.png" in folder_source(animals).names and len(folder_source(animals)) == 6


def test_reading_ahead(animals):
    one, two = folder_source(animals), open_source(f"folder:{animals}", workers=2)
    assert two.workers == 2
    for a, b in zip(one.batches(2, shuffle=True), two.batches(2, shuffle=True), strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.index, b.index)


def test_fingerprint_follows_bytes_labels_and_look(animals):
    first = folder_source(animals).fingerprint()
    moved = animals.rename(animals.with_name("elsewhere"))
    assert folder_source(moved).fingerprint() == first
    prints = {
        first,
        folder_source(moved, size=8).fingerprint(),
        folder_source(moved, channels="grey").fingerprint(),
    }
    save(moved / "cat" / "img1.png", 77)
    prints.add(folder_source(moved).fingerprint())
    (moved / "cat" / "img1.png").rename(moved / "dog" / "0.png")
    prints.add(folder_source(moved).fingerprint())
    assert len(prints) == 5


# --- one image to one tensor


def bytes_of(image: Image.Image, kind: str = "PNG", **how) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    stream.seek(0)
    return stream


def test_transparency_lies_over_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    assert decode(bytes_of(image), Look())[:, 0].T.tolist() == [[1, 0, 0], [1, 1, 1]]
    grey = Image.new("LA", (2, 1), (0, 255))
    grey.putpixel((1, 0), (0, 0))
    assert decode(bytes_of(grey), Look())[:, 0].tolist() == [[0, 1]]


def test_palettes_become_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 255, 128, 0])
    image.putpixel((1, 0), 1)
    expected = torch.tensor([[10, 20, 30], [255, 128, 0]]) / 255
    assert torch.allclose(decode(bytes_of(image), Look())[:, 0].T, expected)
    see_through = decode(bytes_of(image, transparency=0), Look())[:, 0, 0]
    assert see_through.tolist() == [1, 1, 1]


def test_sixteen_bits_keep_their_scale():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    found = decode(bytes_of(Image.fromarray(values)), Look())
    assert found.shape == (1, 1, 4)
    assert found[0, 0].tolist() == pytest.approx([0, 1 / 255, 32768 / 65535, 1], abs=1e-7)
    assert decode(bytes_of(Image.fromarray(values)), Look((2, 2), channels="rgb")).shape == (3, 2, 2)


def test_black_and_white_and_cmyk():
    assert decode(bytes_of(Image.new("1", (2, 2), 1)), Look()).unique().tolist() == [1]
    assert decode(bytes_of(Image.new("CMYK", (2, 2)), "JPEG"), Look()).shape == (3, 2, 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_honoured(tmp_path, kind, orientation):
    upright = Image.new("L", (6, 4))
    upright.paste(255, (0, 0, 2, 2))  # white at the top left
    stored = upright.transpose({3: 3, 6: 2, 8: 4}[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"turned.{kind.lower()}", kind, exif=exif)
    upright.save(tmp_path / f"upright.{kind.lower()}", kind)
    source = folder_source(tmp_path)  # headers agree on the size
    turned, plain = (source[i][0] for i in range(2))
    assert turned.shape == plain.shape
    assert plain[0, :2, :2].mean() > 0.9 and turned[0, :2, :2].mean() > 0.9
    assert turned[0, :, 4:].mean() < 0.1


def test_unknown_ranges_are_refused(tmp_path):
    for k, pixels in enumerate([np.full((2, 2), 1e6, np.int32), np.zeros((2, 2), np.float32)]):
        folder = tmp_path / str(k)
        folder.mkdir()
        Image.fromarray(pixels).save(folder / "x.tiff")
        with pytest.raises(DataError, match=r"cannot read image .*x.tiff: .* pixels.*expected 8 or 16 bits"):
            next(folder_source(folder).batches(1))


@pytest.mark.parametrize(("old", "new"), [((100, 50), (20, 20)), ((50, 100), (20, 20)), ((31, 47), (24, 16))])
def test_crop_covers_and_cuts_the_centre(old, new):
    (height, width), (top, left) = cover(old, new)
    assert height >= new[0] and width >= new[1] and (height == new[0] or width == new[1])
    assert abs(height / width - old[0] / old[1]) < 0.1
    assert abs(2 * top + new[0] - height) <= 1 and abs(2 * left + new[1] - width) <= 1


@pytest.mark.slow
def test_crop_is_that_of_torchvision():
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    usual = transforms.Compose([transforms.Resize(24), transforms.CenterCrop(24)])
    for seed, size in enumerate([(40, 61), (61, 40), (24, 90), (33, 33), (20, 21)]):
        image = picture(seed, size=size)
        expected = torch.from_numpy(np.array(usual(image))).permute(2, 0, 1).float() / 255
        assert torch.equal(decode(bytes_of(image), Look((24, 24))), expected)


def test_stretch_and_flat_colours():
    flat = Image.new("RGB", (30, 17), (51, 102, 204))
    for fit in ("crop", "stretch"):
        found = decode(bytes_of(flat), Look((8, 9), fit))
        assert found.shape == (3, 8, 9)
        assert torch.allclose(found, torch.tensor([0.2, 0.4, 0.8]).view(3, 1, 1).expand(3, 8, 9))
    half = Image.new("L", (40, 10))
    half.paste(255, (20, 0, 40, 10))
    stretched = decode(bytes_of(half), Look((10, 10), "stretch"))[0]
    assert stretched[:, :4].max() == 0 and stretched[:, 6:].min() == 1


# --- what can be wrong with images


def test_missing_and_empty(tmp_path, animals):
    with pytest.raises(DataError, match=r"no folder or archive at .*animal; beside it: \['animals'"):
        folder_source(tmp_path / "animal")
    with pytest.raises(DataError, match=r"no folder or archive at .*nowhere/deep$"):
        folder_source(tmp_path / "nowhere" / "deep")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match=r"no images in .*void; expected files ending in .jpg, .jpeg, .png"):
        folder_source(tmp_path / "void")
    with pytest.raises(DataError, match="neither a folder nor a tar archive"):
        folder_source(animals / "notes.txt")
    (animals / "cow").mkdir()
    with pytest.raises(DataError, match=r"class folder .*cow holds no images"):
        folder_source(animals)


def test_a_file_without_a_byte_is_called_empty(animals):
    (animals / "cat" / "img1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"the file is empty \(0 bytes\)"):
        folder_source(animals)


def test_images_beside_classes(animals):
    save(animals / "stray.png")
    with pytest.raises(DataError, match=r"both in sub-folders and beside them \('stray.png'"):
        folder_source(animals)


def test_damaged_archives(tmp_path, animals):
    (tmp_path / "no.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"cannot read archive .*no.tar"):
        folder_source(tmp_path / "no.tar")
    whole = as_tar(animals, tmp_path / "whole.tar.gz", "w:gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot read archive .*cut.tar.gz"):
        folder_source(tmp_path / "cut.tar.gz")


def test_unequal_sizes(animals):
    save(animals / "dog" / "tall.png", size=(20, 10))
    message = r"unequal size: .*img1.png is 12x10, .*tall.png is 20x10 \(height x width\); .* --size 224"
    with pytest.raises(DataError, match=message):
        folder_source(animals)
    assert next(folder_source(animals, size=(8, 6)).batches(9)).inputs.shape == (6, 3, 8, 6)


def test_mixed_colour(animals):
    save(animals / "dog" / "grey.png", mode="L")
    with pytest.raises(
        DataError, match=r"grey and colour images are mixed: .*img1.png is rgb, .*grey.png is grey"
    ):
        folder_source(animals)
    assert next(open_source(f"folder:{animals}?channels=rgb").batches(9)).inputs.shape == (6, 3, 12, 10)
    assert next(folder_source(animals, channels="grey").batches(9)).inputs.shape == (6, 1, 12, 10)


def truncate(path: Path, keep: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("keep", [0, 0.1, 0.6, 0.9])
def test_truncated_images_are_met_on_opening(animals, suffix, keep):
    truncate(save(animals / "dog" / f"cut.{suffix}", size=(12, 10)), keep)
    with pytest.raises(
        DataError, match=rf"cannot read image .*cut.{suffix}: .*\nremove or replace it.*--skip-unreadable"
    ):
        folder_source(animals)
    source = folder_source(animals, skip_unreadable=True)
    assert len(source) == 6 and [name for name, _ in source.skipped] == [f"dog/cut.{suffix}"]
    batches = list(source.batches(2))
    place = source.names.index(f"dog/cut.{suffix}")
    assert sorted(torch.cat([b.index for b in batches]).tolist()) == [i for i in range(6) if i != place]
    for b in batches:
        assert b.targets.tolist() == source.targets[b.index].tolist() and len(b.inputs) == len(b.index)


def test_appended_bytes_do_no_harm(animals):
    path = save(animals / "dog" / "more.jpg")
    path.write_bytes(path.read_bytes() + b"a camera's own notes")
    assert len(folder_source(animals)) == 6


def test_images_that_break_later_are_skipped_or_told(animals):
    strict, lenient = folder_source(animals), folder_source(animals, skip_unreadable=True)
    truncate(animals / "cat" / "img2.png")
    with pytest.raises(DataError, match=r"cannot read image .*img2.png"):
        list(strict.batches(2))
    small = lenient.take([1, 4]).map(lambda x: x + 1, "plus")
    assert lenient.skipped == []
    assert [b.index.tolist() for b in lenient.batches(2)] == [[0], [2, 3], [4]]
    assert [b.index.tolist() for b in lenient.batches(2)] == [[0], [2, 3], [4]]
    [(name, reason)] = lenient.skipped
    assert name == "cat/img2.png" and reason
    assert small.skipped == lenient.skipped and lenient.take([0, 2]).skipped == []
    assert [b.index.tolist() for b in small.batches(2)] == [[1]]
    assert [(b.number, b.index.tolist()) for b in small.batches(1)] == [
        (1, [1])
    ]  # an empty batch is not yielded


def test_nothing_readable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 1 images can be read; the first: \('a.png'"):
        folder_source(tmp_path, skip_unreadable=True)


def test_images_that_change_size_behind_our_back(animals):
    source = folder_source(animals)
    save(animals / "cat" / "img2.png", size=(7, 7))
    with pytest.raises(DataError, match=r"img2.png: has shape \(3, 7, 7\), the others \(3, 12, 10\)"):
        list(source.batches(3))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fit": "squeeze"}, ConfigError, "fit must be one of"),
        ({"channels": "grya"}, ConfigError, "channels must be one of .* nearest: 'grey'"),
        ({"split": "valid"}, ConfigError, "split must be one of"),
        ({"size": 0}, ConfigError, "size must lie in 1 to 8192"),
    ],
)
def test_bad_options(animals, options, error, message):
    with pytest.raises(error, match=message):
        open_source(f"folder:{animals}", **options)


# --- labels files


def test_labels_file(animals, tmp_path, caplog):
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "path,label,weight,colour,group\n"
        "dog/b.png,canine,2.5,red,north\n./cat/img10.PNG,feline,,blue,south\ncat\\img1.png,feline,4,red,north\n"
    )
    with caplog.at_level(logging.WARNING):
        source = open_source(f"folder:{animals}", labels=labels)
    assert "2 of 5 images" in caplog.text
    assert source.names == ["dog/b.png", "cat/img10.PNG", "cat/img1.png"]
    assert source.classes == ("canine", "feline") and source.targets.tolist() == [0, 1, 1]
    assert source.factors["weight"].tolist()[::2] == [2.5, 4] and source.factors["weight"][1].isnan()
    assert source.factors["colour"].tolist() == [1, 0, 1] and source.factor_names["colour"] == ("blue", "red")
    assert source.groups.tolist() == [0, 1, 0] and source.factor_names["group"] == ("north", "south")
    assert concepts(source)[0] == ("colour=blue", "colour=red", "group=north", "group=south")
    assert torch.equal(source[0][0], folder_source(animals)[3][0])
    flat = folder_source(as_tar(animals / "cat", tmp_path / "cat.tar"))
    assert flat.classes == () and flat.names[0] == "cat/img1.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b\n", r"lacks the columns \['path'\]; it has \['file', 'label'\]"),
        (
            "path,label\ncat/img3.png,cat\n",
            r"names 1 images that are not in .*'cat/img3.png'; nearest there: \['cat/img",
        ),
        ("path,label\ndog/b.png,a\ndog/b.png,a\n", "names 'dog/b.png' more than once"),
        ("path,label\ndog/b.png,\n", "'dog/b.png' has an empty label"),
        ("path,label\ndog/b.png\n", "row 2 has 1 fields, the header has 2"),
        ("path,label\n", "has a header but no rows"),
        ("", "is empty"),
    ],
)
def test_bad_labels_files(animals, tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        folder_source(animals, labels=tmp_path / "labels.csv")


def test_labels_file_that_is_none(animals, tmp_path):
    with pytest.raises(DataError, match="no labels file at"):
        folder_source(animals, labels=tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(DataError, match="is not a CSV file in UTF-8"):
        folder_source(animals, labels=tmp_path / "binary.csv")
    with pytest.raises(ConfigError, match="a labels file goes with folder:PATH, not with digits"):
        open_source("digits", labels=tmp_path / "binary.csv")
