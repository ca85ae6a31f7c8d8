"""The fifteen corruptions: formulas against loops, one image one corruption, severity, sizes, files, tables."""

import colorsys
import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pellucid._checks import ConfigError, DataError
from pellucid.data import Source, array_source, open_source
from pellucid.evals.corrupt import (
    SEVERITIES,
    TYPES,
    corrupt,
    corrupted_accuracy,
    corrupted_file_accuracy,
    corruption_file,
    corruption_files,
    corruption_source,
)
from pellucid.evals.corrupt import needs as needs_module
from pellucid.evals.corrupt.blur import defocus_blur, disc, glass_blur, streak, zoom_blur
from pellucid.evals.corrupt.digital import elastic_transform, pixelate
from pellucid.evals.corrupt.drawing import draws_for
from pellucid.evals.corrupt.severities import LARGE, SMALL, level
from pellucid.evals.corrupt.table import joined
from pellucid.evals.corrupt.weather import plasma, snow
from pellucid.rng import rng
from pellucid.train import seeded

pytestmark = pytest.mark.usefixtures("untouched_rng")


@pytest.fixture(scope="session")
def frost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three textures of their own look, with a text file between them."""
    folder = tmp_path_factory.mktemp("frost")
    for i, size in enumerate([(300, 240), (400, 300), (260, 330)]):
        x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        pixels = 128 + 100 * np.sin(x / (5 + i)) * np.cos(y / 7)
        Image.fromarray(np.stack([pixels] * 3, -1).astype(np.uint8)).save(folder / f"texture{i}.png")
    (folder / "README.md").write_text("not a picture")
    return folder


def images(n: int = 4, channels: int = 3, height: int = 32, width: int | None = None) -> torch.Tensor:
    """Smooth coloured images with some contrast."""
    width = height if width is None else width
    g = torch.Generator().manual_seed(n * 1000 + height + width)
    coarse = torch.rand((n, channels, 5, 5), generator=g)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


def photographs(size: int) -> torch.Tensor:
    """Squares cut from the photographs that scikit-image ships."""
    import skimage.data

    found = []
    for picture in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()):
        for top in (0, 80):
            for left in (0, 100, 180):
                square = Image.fromarray(picture[top : top + 220, left : left + 220]).resize((size, size))
                found.append(torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float() / 255)
    return torch.stack(found)


# ---- constants and sizes


def test_there_are_fifteen_types_of_five_severities() -> None:
    assert len(TYPES) == 15 and SEVERITIES == (1, 2, 3, 4, 5)
    assert set(SMALL) == set(LARGE) == set(TYPES)
    assert all(len(rows) == 5 for table in (SMALL, LARGE) for rows in table.values())


def test_published_constants_hold_at_the_published_sizes() -> None:
    for name in TYPES:
        for s in SEVERITIES:
            assert level(name, s, 32) == SMALL[name][s - 1]
            assert level(name, s, 224) == LARGE[name][s - 1]


def test_lengths_follow_the_size_and_nothing_else_does() -> None:
    assert level("defocus_blur", 5, 64) == {"radius_px": 3.0, "edge_px": 0.2}
    assert level("defocus_blur", 5, 112) == {"radius_px": 5.0, "edge_px": 0.25}
    assert level("defocus_blur", 5, 8) == level("defocus_blur", 5, 32)
    assert level("elastic_transform", 1, 8)["jitter_px"] == pytest.approx(0.64)
    assert level("gaussian_noise", 3, 65) == LARGE["gaussian_noise"][2]
    assert level("glass_blur", 4, 64)["rounds"] == 2


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 31), (64, 48), (65, 70)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TYPES)
def test_any_size_keeps_shape_and_range(name, channels, height, width, frost) -> None:
    x = images(2, channels, height, width)
    for severity in (1, 5):
        y = corrupt(x, name, severity, frost_textures=frost)
        assert y.shape == x.shape and y.dtype == x.dtype
        assert float(y.min()) >= 0 and float(y.max()) <= 1
        rare = name == "impulse_noise" and severity == 1  # one value in a hundred
        assert rare or not torch.equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_large_images_and_double_precision(name, frost) -> None:
    x = images(1, 3, 224).double()
    for severity in (1, 3, 5):
        y = corrupt(x, name, severity, frost_textures=frost)
        assert y.shape == x.shape and y.dtype == torch.float64


# ---- one image, one corruption


@pytest.mark.parametrize("name", TYPES)
def test_randomness_belongs_to_the_image(name, frost) -> None:
    x, index = images(5), [7, 3, 11, 4, 20]
    whole = corrupt(x, name, 3, index=index, seed=2, frost_textures=frost)
    for rows in ([1, 3], [4], [3, 0, 2]):
        part = corrupt(x[rows], name, 3, index=[index[r] for r in rows], seed=2, frost_textures=frost)
        assert torch.allclose(part, whole[rows], atol=1e-6)
    drawn = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    other = corrupt(x, name, 3, index=index, seed=3, frost_textures=frost)
    assert torch.equal(other, whole) == (name in drawn)


def test_the_input_is_not_changed(frost) -> None:
    for name in TYPES:
        x = images(2)
        before = x.clone()
        corrupt(x, name, 5, frost_textures=frost)
        assert torch.equal(x, before), name


# The published constants of these two do not grow in strength from each severity to the next.
UNEVEN = {"glass_blur", "elastic_transform"}


@pytest.mark.parametrize("size", [32, pytest.param(112, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in TYPES if name not in UNEVEN])
def test_severity_takes_images_further_from_clean(name, size, frost) -> None:
    from skimage.metrics import structural_similarity

    clean = photographs(size)
    distance = []
    for s in SEVERITIES:
        y = corrupt(clean, name, s, frost_textures=frost)
        if name == "snow":  # finer flakes at severity 2 cost more structure than coarser ones at 3
            distance.append(float((y - clean).square().mean().sqrt()))
            continue
        alike = [
            structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=1.0)
            for a, b in zip(clean, y, strict=True)
        ]
        distance.append(1 - float(np.mean(alike)))
    assert distance[0] > 0.002
    assert all(b > 0.9 * a for a, b in itertools.pairwise(distance)), distance
    assert distance[-1] > 1.5 * distance[0]


def test_the_uneven_two_grow_in_what_their_constants_say() -> None:
    clean = photographs(32)
    first, last = (corrupt(clean, "glass_blur", s) for s in (1, 5))
    assert float((last - clean).square().mean()) > 1.3 * float((first - clean).square().mean())
    for table in (SMALL, LARGE):  # local displacement grows where the affine jitter falls
        rows = table["elastic_transform"][2:]
        sway = [row["amount_px2"] / max(row["sigma_px"], 1e-9) for row in rows]
        assert sway == sorted(sway)


# ---- slow twins


def twin(name: str, severity: int, x: torch.Tensor, index: int) -> torch.Tensor:
    """The formula again, value by value, on one image in float64."""
    g = rng(0, "corrupt", name, severity, index)
    c = level(name, severity, min(x.shape[1:]))
    flat = x.double().flatten().tolist()
    if name == "gaussian_noise":
        noise = torch.randn(tuple(x.shape), generator=g).flatten().tolist()
        out = [v + c["sigma"] * n for v, n in zip(flat, noise, strict=True)]
    elif name == "impulse_noise":
        u = torch.rand(tuple(x.shape), generator=g).flatten().tolist()
        out = [
            0.0 if r < c["amount"] / 2 else 1.0 if r > 1 - c["amount"] / 2 else v
            for v, r in zip(flat, u, strict=True)
        ]
    elif name == "contrast":
        rows = x.double().flatten(1).tolist()
        means = [sum(row) / len(row) for row in rows]
        out = [(v - m) * c["factor"] + m for row, m in zip(rows, means, strict=True) for v in row]
    else:
        pixels = x.double().flatten(1).T.tolist()
        changed = []
        for pixel in pixels:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            changed.append(colorsys.hsv_to_rgb(hue, saturation, min(1, value + c["add"])))
        out = [p[k] for k in range(3) for p in changed]
    return torch.tensor([min(max(v, 0), 1) for v in out]).view_as(x)


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "contrast", "brightness"])
def test_corruptions_of_single_values_equal_slow_twins(name) -> None:
    x = images(3, height=12)
    for severity in (1, 4):
        y = corrupt(x, name, severity, index=[5, 6, 9])
        for image, changed, i in zip(x, y, (5, 6, 9), strict=True):
            assert torch.allclose(changed, twin(name, severity, image, i).float(), atol=2e-6)


def test_shot_noise_has_the_moments_of_photons() -> None:
    x = torch.full((1, 1, 64, 64), 0.4)
    y = corrupt(x, "shot_noise", 5)
    assert float(y.mean()) == pytest.approx(0.4, abs=0.005)
    assert float(y.var()) == pytest.approx(0.4 / 50, rel=0.1)
    assert float((y * 50 - (y * 50).round()).abs().max()) < 1e-4


def test_defocus_equals_a_sum_over_the_disc() -> None:
    x, c = images(1, 1, 16)[0, 0].double(), {"radius_px": 1.5, "edge_px": 0.1}
    inside = [(a, b) for a in range(-1, 2) for b in range(-1, 2) if a * a + b * b <= 2.25]
    assert len(inside) == 9
    y = defocus_blur(x[None, None].float(), draws_for("defocus_blur", 1, [0], seed=0), c)[0, 0]
    for row in range(16):
        for column in range(16):
            at = [(_mirror(row + a, 16), _mirror(column + b, 16)) for a, b in inside]
            assert float(y[row, column]) == pytest.approx(sum(float(x[p]) for p in at) / 9, abs=1e-6)
    soft = disc(0.3, 0.4)
    bell = [math.exp(-0.5 * (i / 0.4) ** 2) for i in (-1, 0, 1)]
    assert float(soft[1, 1] / soft.sum()) == pytest.approx((bell[1] / sum(bell)) ** 2, rel=1e-5)


def _mirror(i: int, n: int) -> int:
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def test_streak_equals_a_sum_along_the_line() -> None:
    x = images(1, 1, 12)
    y = streak(x, [30.0], radius=3.0, sigma=1.2)[0, 0]
    weights = [math.exp(-0.5 * (i / 1.2) ** 2) for i in range(7)]
    weights = [w for w in weights if w / sum(weights) > 1e-4]
    total = sum(weights)
    for row in range(12):
        for column in range(12):
            value = 0.0
            for i, w in enumerate(weights):
                r = min(max(row + round(i * math.sin(math.pi / 6)), 0), 11)
                c = min(max(column + round(i * math.cos(math.pi / 6)), 0), 11)
                value += w / total * float(x[0, 0, r, c])
            assert float(y[row, column]) == pytest.approx(value, abs=1e-3)


def test_zoom_blur_equals_a_mean_of_enlargements() -> None:
    x = images(1, 1, 10)
    y = zoom_blur(x, draws_for("zoom_blur", 1, [0], seed=0), {"largest": 1.2, "step": 0.1})[0, 0]
    for row in range(10):
        for column in range(10):
            value = float(x[0, 0, row, column])
            for factor in (1.0, 1.1, 1.2):
                r, c = ((p - 4.5) / factor + 4.5 for p in (row, column))
                value += _bilinear(x[0, 0], r, c)
            assert float(y[row, column]) == pytest.approx(value / 4, abs=1e-5)


def _bilinear(x: torch.Tensor, r: float, c: float) -> float:
    top, left = math.floor(r), math.floor(c)
    value = 0.0
    for i, a in ((top, 1 - (r - top)), (top + 1, r - top)):
        for j, b in ((left, 1 - (c - left)), (left + 1, c - left)):
            value += a * b * float(x[min(max(i, 0), len(x) - 1), min(max(j, 0), len(x) - 1)])
    return value


def test_glass_blur_only_moves_pixels_when_it_does_not_blur() -> None:
    x = torch.arange(144.0).view(1, 1, 12, 12) / 144
    c = {"sigma_px": 1e-6, "reach_px": 2, "rounds": 1}
    y = glass_blur(x, draws_for("glass_blur", 1, [0], seed=0), c)[0, 0]
    moved = 0
    for row in range(12):
        for column in range(12):
            source = round(float(y[row, column]) * 144)
            down, right = source // 12 - row, source % 12 - column
            assert -2 <= down < 2 and -2 <= right < 2
            moved += (down, right) != (0, 0)
            if row < 3 or column < 3 or row > 10 or column > 10:
                assert (down, right) == (0, 0)
    assert moved > 40


def test_plasma_equals_diamond_square_by_loops() -> None:
    draws = draws_for("fog", 1, [4], seed=0)
    found = plasma(draws, 8, 1.5)[0]
    noise = (torch.rand((8, 8), generator=rng(0, "corrupt", "fog", 1, 4)) * 2 - 1).double()
    cloud = torch.zeros(8, 8, dtype=torch.float64)
    step, amplitude = 8, 1.0
    while step >= 2:
        half = step // 2
        for r in range(half, 8, step):
            for c in range(half, 8, step):
                near = [(r + a, c + b) for a in (-half, half) for b in (-half, half)]
                cloud[r, c] = sum(float(cloud[i % 8, j % 8]) for i, j in near) / 4 + amplitude * noise[r, c]
        for r in range(0, 8, half):
            for c in range(0, 8, half):
                if (r // half + c // half) % 2:
                    near = [(r - half, c), (r + half, c), (r, c - half), (r, c + half)]
                    cloud[r, c] = (
                        sum(float(cloud[i % 8, j % 8]) for i, j in near) / 4 + amplitude * noise[r, c]
                    )
        step, amplitude = half, amplitude / 1.5**2
    twin_cloud = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    assert torch.allclose(found.double(), twin_cloud, atol=1e-5)


def test_fog_keeps_the_brightest_value_possible() -> None:
    x = images(3)
    y = corrupt(x, "fog", 5)
    assert bool((y.amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6).all())
    assert bool((y.mean((1, 2, 3)) > 0).all())


def test_snow_without_flakes_only_whitens() -> None:
    c = dict.fromkeys(("mean", "sigma"), 0.0) | dict.fromkeys(("flake", "radius", "blur", "pixel_px"), 1.0)
    c |= {"threshold": 0.5, "keep": 0.8}
    x = images(2)
    y = snow(x, draws_for("snow", 1, [0, 1], seed=0), c)
    grey = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    expected = 0.8 * x + 0.2 * torch.maximum(x, 1.5 * grey[:, None] + 0.5)
    assert torch.allclose(y, expected, atol=1e-6)


def test_frost_lays_a_piece_of_a_texture_over(tmp_path) -> None:
    Image.fromarray(np.full((200, 200, 3), 100, np.uint8)).save(tmp_path / "flat.png")
    x = images(2)
    y = corrupt(x, "frost", 5, frost_textures=tmp_path)
    assert torch.allclose(y, (0.75 * x + 0.45 * 100 / 255).clamp(0, 1), atol=1e-6)
    tall = images(1, 1, 150, 340)  # larger than the texture: it is enlarged
    assert corrupt(tall, "frost", 1, frost_textures=str(tmp_path)).shape == tall.shape


def test_elastic_without_noise_is_the_identity_and_a_shift_is_a_shift() -> None:
    x = images(2)
    still = {"amount_px2": 0.0, "sigma_px": 1.0, "jitter_px": 0.0}
    y = elastic_transform(x, draws_for("elastic_transform", 1, [0, 1], seed=0), still)
    assert torch.allclose(y, x, atol=1e-4)


def test_elastic_maps_its_three_points() -> None:
    """Where the affine map sends a corner, the picture shows what was at the corner before."""
    from pellucid.evals.corrupt.digital import _random_affine

    draws = draws_for("elastic_transform", 1, [3], seed=0)
    affine = _random_affine(draws, 32, 32, 2.0)[0]
    shift = torch.rand((3, 2), generator=rng(0, "corrupt", "elastic_transform", 1, 3)) * 4 - 2
    for corner, by in zip(torch.tensor([[26.0, 26], [26, 6], [6, 6]]), shift, strict=True):
        assert torch.allclose(torch.cat([corner + by, torch.ones(1)]) @ affine, corner, atol=1e-3)


def test_pixelate_equals_block_means() -> None:
    x = (images(1, 1, 8) * 255).round() / 255
    y = pixelate(x, draws_for("pixelate", 1, [0], seed=0), {"factor": 0.5})[0, 0]
    for r in range(0, 8, 2):
        for c in range(0, 8, 2):
            block = float(x[0, 0, r : r + 2, c : c + 2].mean())
            assert torch.allclose(y[r : r + 2, c : c + 2], torch.tensor(block), atol=1.01 / 255)


def test_jpeg_equals_a_file_written_and_read() -> None:
    x = images(1)
    file = io.BytesIO()
    Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=50)
    expected = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1).float() / 255
    assert torch.equal(corrupt(x, "jpeg_compression", 4)[0], expected)


# ---- sources


def test_a_corrupted_source_is_the_corruption_of_its_images() -> None:
    x = (images(10) * 255).byte()
    clean = array_source(x, list(range(10)))
    noisy = corruption_source(clean, "gaussian_noise", 3, seed=4)
    expected = corrupt(x.float() / 255, "gaussian_noise", 3, seed=4)
    for size in (3, 10):
        found = torch.cat([batch.inputs for batch in noisy.batches(size)])
        assert torch.equal(found, expected)
    shuffled = next(iter(noisy.batches(10, shuffle=True, seed=9, epoch=2)))
    assert torch.equal(shuffled.inputs, expected[shuffled.index])
    part = noisy.take([7, 2])
    assert torch.equal(part[0][0], expected[7]) and part[1][1] == 2
    assert torch.equal(noisy.targets, clean.targets) and noisy.classes == clean.classes
    prints = {
        s.fingerprint()
        for s in (
            clean,
            noisy,
            corruption_source(clean, "gaussian_noise", 4, seed=4),
            corruption_source(clean, "contrast", 3),
        )
    }
    assert len(prints) == 4


# ---- accuracy


class Brightness(nn.Module):
    """Bright or dark: logits from the mean of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        z = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


def shaded(n: int = 60) -> Source:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    x = torch.rand((n, 1, 16, 16), generator=g) * 0.2 + 0.38 + 0.04 * y.view(-1, 1, 1, 1)
    return array_source(x, y)


def test_a_table_counts_what_each_corruption_leaves(frost) -> None:
    source, model = shaded(), Brightness().train()
    types, severities = ("brightness", "gaussian_noise", "frost", "contrast"), (1, 5)
    seen: list[tuple[int, int]] = []
    table = corrupted_accuracy(
        model,
        source,
        types,
        severities,
        frost_textures=frost,
        batch_size=7,
        progress=lambda *p: seen.append(p),
    )
    assert model.training and model.scale.grad is None
    assert table.types == types and table.severities == severities and table.n == 60 and table.skipped == ()
    batch = next(iter(source.batches(60)))
    with torch.no_grad():
        for t, name in enumerate(types):
            for s, severity in enumerate(severities):
                y = corrupt(batch.inputs, name, severity, frost_textures=frost)
                right = model(y).argmax(1) == batch.targets
                assert torch.equal(table.correct[t, s], right)
                assert float(table.accuracy[t, s]) == pytest.approx(float(right.double().mean()))
                assert table.low[t, s] <= table.accuracy[t, s] + 1e-12 <= table.high[t, s] + 1e-9
        clean = model(batch.inputs).argmax(1) == batch.targets
    assert table.clean == pytest.approx(float(clean.double().mean()))
    assert table.mean == pytest.approx(float(table.accuracy.mean()))
    assert table.relative == pytest.approx(table.mean / table.clean)
    assert table.by_type == pytest.approx([float(row.mean()) for row in table.accuracy])
    assert table.mean_interval[0] <= table.mean <= table.mean_interval[1]
    assert seen[-1] == (60, 60)
    whole = corrupted_accuracy(model, source, types, severities, frost_textures=frost, batch_size=60)
    assert torch.equal(whole.correct, table.correct)
    columns = table.columns()
    assert columns["type"][:2] == ["brightness", "brightness"] and columns["severity"][:2] == [1, 5]
    assert {len(c) for c in columns.values()} == {8}


def test_tables_of_single_types_join_to_the_whole_table() -> None:
    model, source = Brightness(), shaded()
    whole = corrupted_accuracy(model, source, ("brightness", "contrast"), (1, 5))
    parts = [corrupted_accuracy(model, source, (name,), (1, 5)) for name in ("brightness", "contrast")]
    found = joined(parts)
    assert found.columns() == whole.columns() and torch.equal(found.correct, whole.correct)
    assert (found.mean, found.mean_interval, found.relative) == (
        whole.mean,
        whole.mean_interval,
        whole.relative,
    )
    with pytest.raises(DataError, match="in two of the tables"):
        joined([whole, parts[0]])


def test_intervals_come_from_the_images_not_from_the_cells() -> None:
    """Bootstrap over images: every cell holds the same images, so 75 cells are no 75-fold sample."""
    table = corrupted_accuracy(Brightness(), shaded(200), ("gaussian_noise", "brightness"), (1, 2, 3))
    by_image = table.correct.double().mean((0, 1))
    g = torch.Generator().manual_seed(0)
    means = [float(by_image[torch.randint(200, (200,), generator=g)].mean()) for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert table.mean_interval == pytest.approx((low, high), abs=0.01)
    with torch.no_grad():
        batch = next(iter(shaded(200).batches(200)))
        clean = (Brightness()(batch.inputs).argmax(1) == batch.targets).double()
    ratios = []
    for _ in range(2000):
        pick = torch.randint(200, (200,), generator=g)
        ratios.append(float(by_image[pick].mean() / clean[pick].mean()))
    assert table.relative_interval == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=0.015)


def test_frost_without_textures_is_listed_as_skipped() -> None:
    table = corrupted_accuracy(Brightness(), shaded(), ("contrast", "frost"), (1,))
    assert table.types == ("contrast",)
    assert table.skipped == (("frost", "no folder of frost textures was given"),)
    with pytest.raises(ConfigError, match="nothing to measure"):
        corrupted_accuracy(Brightness(), shaded(), ("frost",), (1,))


# ---- files


def write_files(folder: Path, n: int = 4, **changes: np.ndarray) -> None:
    x = np.arange(5 * n * 16 * 16 * 3, dtype=np.uint32).reshape(5 * n, 16, 16, 3) % 251
    arrays = {
        "fog": x.astype(np.uint8),
        "contrast": (250 - x).astype(np.uint8),
        "labels": np.tile(np.arange(n) % 2, 5),
    }
    for name, array in (arrays | changes).items():
        np.save(folder / f"{name}.npy", array)


def test_files_give_the_severity_asked_for(tmp_path) -> None:
    write_files(tmp_path)
    assert corruption_files(tmp_path) == ("contrast", "fog")
    raw, labels = np.load(tmp_path / "fog.npy"), np.load(tmp_path / "labels.npy")
    for severity in SEVERITIES:
        source = corruption_file(tmp_path, "fog", severity, classes=("a", "b"))
        batch = next(iter(source.batches(10)))
        part = slice(4 * (severity - 1), 4 * severity)
        assert np.array_equal((batch.inputs.numpy() * 255).round(), raw[part].transpose(0, 3, 1, 2))
        assert batch.targets.tolist() == labels[part].tolist()
    np.save(tmp_path / "labels.npy", labels[:4].astype(np.uint8))
    assert next(iter(corruption_file(tmp_path, "fog", 5).batches(10))).targets.tolist() == [0, 1, 0, 1]


def test_accuracy_on_files(tmp_path) -> None:
    write_files(tmp_path)
    table = corrupted_file_accuracy(Brightness(), tmp_path, severities=(1, 3))
    assert table.types == ("contrast", "fog") and table.n == 4
    assert math.isnan(table.clean) and math.isnan(table.relative)
    assert len(table.skipped) == 13 and ("frost", "no frost.npy in the folder") in table.skipped
    clean = array_source(images(4, 3, 16), [0, 1, 0, 1])
    assert not math.isnan(corrupted_file_accuracy(Brightness(), tmp_path, ["fog"], clean=clean).clean)
    with pytest.raises(DataError, match="3 clean images cannot be compared with 4"):
        corrupted_file_accuracy(Brightness(), tmp_path, ["fog"], clean=clean.take(range(3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fog": np.zeros((19, 16, 16, 3), np.uint8)}, "holds 19 images.*cut short"),
        ({"fog": np.zeros((20, 3, 16, 16), np.uint8)}, "must hold uint8 images"),
        ({"fog": np.zeros((20, 16, 16, 3), np.float32)}, "must hold uint8 images.*float32"),
        ({"labels": np.zeros(19, np.int64)}, "must hold 20 or 4 whole numbers"),
        ({"labels": np.zeros(20)}, "must hold 20 or 4 whole numbers"),
        ({"fog": np.array([{}], dtype=object)}, "not a whole .npy array"),
    ],
)
def test_wrong_files_are_refused(tmp_path, changes, message) -> None:
    write_files(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        corruption_file(tmp_path, "fog", 1)


def test_missing_and_truncated_files_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="no corruption files"):
        corruption_files(tmp_path / "nowhere")
    write_files(tmp_path)
    with pytest.raises(ConfigError, match=r"no frog\.npy.*nearest: \['fog'"):
        corruption_file(tmp_path, "frog", 1)
    with pytest.raises(ConfigError, match="severity must be"):
        corruption_file(tmp_path, "fog", 6)
    whole = (tmp_path / "fog.npy").read_bytes()
    (tmp_path / "fog.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"not a whole \.npy array"):
        corruption_file(tmp_path, "fog", 1)
    (tmp_path / "labels.npy").unlink()
    (tmp_path / "fog.npy").write_bytes(whole)
    with pytest.raises(DataError, match=r"labels\.npy is missing"):
        corruption_file(tmp_path, "fog", 1)


# ---- bad input


def test_bad_input_is_told_apart(tmp_path, monkeypatch) -> None:
    x = images(2)
    with pytest.raises(ConfigError, match="nearest: 'gaussian_noise'"):
        corrupt(x, "gausian_noise", 1)
    for severity in (0, 6, -1):
        with pytest.raises(ConfigError, match="severity must be 1, 2, 3, 4 or 5"):
            corrupt(x, "fog", severity)
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
        corrupt(x * 255, "fog", 1)
    with pytest.raises(DataError, match="at least 8 px"):
        corrupt(images(1, 3, 7), "fog", 1)
    with pytest.raises(DataError, match=r"greyscale \(1\) or RGB \(3\) images, got 2"):
        corrupt(images(1, 2), "fog", 1)
    with pytest.raises(ConfigError, match="frost_textures=FOLDER"):
        corrupt(x, "frost", 1)
    with pytest.raises(DataError, match="no frost textures in"):
        corrupt(x, "frost", 1, frost_textures=tmp_path)
    with pytest.raises(DataError, match="no frost textures in"):
        corrupted_accuracy(Brightness(), shaded(), ("frost",), frost_textures=tmp_path)
    with pytest.raises(ConfigError, match="severity must be"):
        corrupted_accuracy(Brightness(), shaded(), ("fog",), (0, 1))
    with pytest.raises(DataError, match="no labels"):
        corrupted_accuracy(Brightness(), array_source(x), ("fog",))
    monkeypatch.setattr(needs_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'pellucid\[corruptions\]'"):
        corrupted_accuracy(Brightness(), shaded(), ("brightness",))
    assert corrupted_accuracy(Brightness(), shaded(), ("contrast",), (1,)).n == 60


# ---- real networks


@pytest.mark.data
@pytest.mark.slow
def test_resnet20_loses_accuracy_under_every_corruption(data_root: Path) -> None:
    from pellucid.preprocess import normalize
    from pellucid.weights import apply_weights, load_weights
    from pellucid.zoo import resnet20

    with seeded(0):
        model = resnet20()
    apply_weights(model, load_weights(data_root / "weights" / "cifar10_resnet" / "resnet20-12fca82f.th"))
    normalize(model, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    source = open_source(f"cifar10:{data_root / 'cifar10'}", split="test").take(range(0, 10000, 80))
    table = corrupted_accuracy(model.eval(), source, severities=(1, 5), frost_textures=data_root / "frost")
    assert table.clean == pytest.approx(0.81, abs=0.06)
    assert not table.skipped
    assert 0.3 < table.relative < 0.9
    easy, hard = table.accuracy.mean(0).tolist()
    assert hard < easy - 0.1
    assert float(table.accuracy[TYPES.index("gaussian_noise"), 1]) < 0.5
    assert float(table.accuracy[TYPES.index("brightness"), 0]) > 0.7
