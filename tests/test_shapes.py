"""The generated world: its factors, its determinism, and that the pictures show what the factors say."""

import math
import time

import pytest
import torch

from pellucid._checks import ConfigError
from pellucid.data import concepts, open_source, shapes_source
from pellucid.data.shapes import DRAWS, FACTORS, SIZES, Captions
from pellucid.data.shapes_draw import DISTANCES, PLAIN, coverage, draw, uniform

pytestmark = pytest.mark.usefixtures("untouched_rng")


def pixels(source, n=None):
    return next(source.batches(n or len(source))).inputs


# --- determinism


def test_example_depends_on_seed_and_place_alone():
    long, short = shapes_source(300, seed=5), shapes_source(7, seed=5)
    assert torch.equal(pixels(long)[:7], pixels(short))
    for i in (0, 3, 250):
        assert torch.equal(long[i][0], pixels(shapes_source(300, seed=5).take([i]))[0])
    assert list(long.captions)[:7] == list(short.captions)
    for key in long.factors:
        assert torch.equal(long.factors[key][:7], short.factors[key])


@pytest.mark.parametrize("other", [{"seed": 6}, {"split": "train"}])
def test_seeds_and_splits_are_other_streams(other):
    one, two = shapes_source(200, seed=5), shapes_source(200, **{"seed": 5, **other})
    same = (one.factors["x"][:, None] == two.factors["x"][None, :]).sum()
    assert int(same) == 0 and one.fingerprint() != two.fingerprint()


def test_drawing_alone_or_together_is_the_same_to_the_bit():
    source = shapes_source(150, size=33)
    scene = source.examples.world.scene
    together = draw(scene, 33)
    for i in range(0, 150, 7):
        assert torch.equal(draw(scene.part(slice(i, i + 1)), 33)[0], together[i])


def test_draws_against_the_published_generator():
    """SplitMix64 (Steele, Lea & Flood 2014) again, in Python's integers."""
    mask = 2**64 - 1
    for key in (0, 1234567, -5):
        state, expected = key & mask, []
        for _ in range(4):
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            expected.append(((z ^ (z >> 31)) >> 40) / 2**24)
        assert uniform(torch.tensor([key]), 4)[0].tolist() == expected


def test_fingerprint_follows_the_recipe():
    base = shapes_source(20)
    changed = [
        shapes_source(21),
        shapes_source(20, size=48),
        shapes_source(20, seed=1),
        shapes_source(20, target="colour"),
        shapes_source(20, fixed={"colour": "red"}),
        base.take(range(1, 20)),
    ]
    assert len({base.fingerprint(), *(source.fingerprint() for source in changed)}) == 7
    assert base.fingerprint() == shapes_source(20).fingerprint()


# --- factors


def test_factors_are_even_and_independent():
    source = shapes_source(6000)
    for key, names in FACTORS.items():
        counts = torch.bincount(source.factors[key], minlength=len(names)).double()
        expected = 6000 / len(names)
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        df = len(names) - 1
        assert chi2 < df + 5 * math.sqrt(2 * df), (key, counts)  # five standard deviations
    present = concepts(source)[1].double()
    centred = present - present.mean(0)
    z = (centred.T @ centred) / torch.outer(centred.norm(dim=0), centred.norm(dim=0)) * math.sqrt(6000)
    start = 0
    for names in FACTORS.values():
        z[start : start + len(names), start : start + len(names)] = (
            0  # values of one factor exclude each other
        )
        start += len(names)
    assert z.abs().max() < 5


def test_places_and_sizes_are_what_they_are_called():
    source = shapes_source(2000)
    f = source.factors
    column, row = (f["x"] * 3).long(), (f["y"] * 3).long()
    assert torch.equal(row * 3 + column, f["place"])
    for code, (low, high) in enumerate(SIZES.values()):
        radius = f["radius"][f["size"] == code]
        assert low <= radius.min() and radius.max() <= high
    for centre in (f["x"], f["y"]):
        assert (centre - f["radius"]).min() > 0 and (centre + f["radius"]).max() < 1
    assert f["turn"].abs().max() <= 20


def test_targets_are_the_factor_asked_for():
    for target in FACTORS:
        source = shapes_source(30, target=target)
        assert source.classes == FACTORS[target] and torch.equal(source.targets, source.factors[target])
    batch = next(shapes_source(30).batches(30, shuffle=True))
    assert torch.equal(batch.targets, shapes_source(30).factors["shape"][batch.index])


def test_captions_say_the_factors():
    source = shapes_source(200)
    for i in (0, 50, 199):
        words = {key: names[int(source.factors[key][i])] for key, names in FACTORS.items()}
        where = "in the centre" if words["place"] == "centre" else f"at the {words['place']}"
        assert source.captions[i] == (
            f"a {words['size']} {words['colour']} {words['texture']} {words['shape']} {where} "
            f"on a {words['background']} background"
        )
    assert isinstance(source.captions, Captions) and source.captions[:2][1] == source.captions[1]
    assert source.take([7]).captions == [source.captions[7]]


def test_concepts_cover_every_value():
    source = shapes_source(100)
    names, present = concepts(source)
    assert len(names) == sum(len(values) for values in FACTORS.values()) == present.shape[1]
    assert "colour=red" in names and "place=top left" in names
    assert (present.sum(1) == len(FACTORS)).all()


@pytest.mark.parametrize(("factor", "value"), [("colour", "red"), ("size", "large"), ("background", "noisy")])
def test_fixing_a_factor_changes_nothing_else(factor, value):
    free, held = shapes_source(200), shapes_source(200, fixed={factor: value})
    code = FACTORS[factor].index(value)
    assert (held.factors[factor] == code).all()
    for key in FACTORS.keys() - {factor}:
        assert torch.equal(free.factors[key], held.factors[key])
    same = free.factors[factor] == code
    assert torch.equal(pixels(free)[same], pixels(held)[same])  # those that had it anyway are untouched
    assert (pixels(free)[~same] != pixels(held)[~same]).flatten(1).any(1).all()


# --- the pictures


def test_pictures_show_their_factors():
    """Inside the mask the colour is the named one, outside it the background's grey."""
    source = shapes_source(400, size=48)
    images, f = pixels(source), source.factors
    masks = source.examples.masks(torch.arange(400))
    from pellucid.data.shapes_draw import COLOURS

    palette = torch.tensor(list(COLOURS.values()))
    plain_texture = f["texture"] == 0
    for i in plain_texture.nonzero().flatten().tolist():
        seen = images[i][:, masks[i] == 1].mean(1)
        assert int((palette - seen).norm(dim=1).argmin()) == f["colour"][i]
    outside = [images[i][:, masks[i] == 0] for i in range(400)]
    assert all(torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2]) for grey in outside)
    for code, level in enumerate(PLAIN):
        for i in (f["background"] == code).nonzero().flatten().tolist():
            assert outside[i].std() < 1e-6 and abs(float(outside[i].mean()) - level) < 0.04
    for i in (f["background"] >= 3).nonzero().flatten().tolist():
        assert outside[i].std() > 0.05


def test_textures_darken_part_of_the_object():
    source = shapes_source(300, size=64, fixed={"shape": "square", "size": "large", "colour": "cyan"})
    images, masks = pixels(source), source.examples.masks(torch.arange(300))
    level = torch.stack([images[i][2, masks[i] == 1].mean() for i in range(300)]) / 0.85
    texture = source.factors["texture"]
    assert level[texture == 0].min() > 0.94  # solid, up to the tint
    for code in (1, 2, 3):
        assert 0.5 < level[texture == code].mean() < 0.9


def test_masks_have_the_area_and_centre_of_the_object():
    source = shapes_source(500, size=64, fixed={"shape": "circle"})
    masks, f = source.examples.masks(torch.arange(500)), source.factors
    area = masks.sum((1, 2)) / 64**2
    assert torch.allclose(area, math.pi * (0.9 * f["radius"]) ** 2, rtol=0.02)
    centres = (torch.arange(64) + 0.5) / 64
    x = (masks * centres).sum((1, 2)) / masks.sum((1, 2))
    y = (masks * centres[:, None]).sum((1, 2)) / masks.sum((1, 2))
    assert torch.allclose(x, f["x"], atol=1e-3) and torch.allclose(y, f["y"], atol=1e-3)


@pytest.mark.parametrize("name", DISTANCES)
def test_shapes_lie_in_the_unit_circle(name):
    line = torch.linspace(-1.3, 1.3, 261)
    x, y = torch.meshgrid(line, line, indexing="xy")
    distance = DISTANCES[name](x[None], y[None])[0]
    inside = distance < 0
    assert ((x * x + y * y)[inside] <= 1.02).all()
    assert 0.2 < float(inside.double().mean()) * 2.6**2 / math.pi < 0.9  # neither a speck nor the whole disc
    step = float(line[1] - line[0])
    slope = (distance[:, 1:] - distance[:, :-1]).abs() / step
    assert slope.max() < 1.01  # never steeper than a distance, so edges are never sharper than a pixel


def test_star_against_its_corners():
    """A pentagram drawn as polygon, point by point."""
    corners = [(math.sin(2 * math.pi * k / 5), math.cos(2 * math.pi * k / 5)) for k in range(5)]
    inner = math.cos(2 * math.pi / 5) / math.cos(math.pi / 5)
    notches = [
        (inner * math.sin(2 * math.pi * (k + 0.5) / 5), inner * math.cos(2 * math.pi * (k + 0.5) / 5))
        for k in range(5)
    ]
    outline = [point for pair in zip(corners, notches, strict=True) for point in pair]

    def within(px, py):
        found = False
        for (ax, ay), (bx, by) in zip(outline, outline[1:] + outline[:1], strict=True):
            if (ay > py) != (by > py) and px < (bx - ax) * (py - ay) / (by - ay) + ax:
                found = not found
        return found

    line = torch.linspace(-1.03, 1.07, 41)
    for py in line.tolist():
        d = DISTANCES["star"](line.view(1, 1, -1), torch.full((1, 1, 41), py))[0, 0]
        assert [value < 0 for value in d.tolist()] == [within(px, py) for px in line.tolist()]


def test_coverage_against_loops():
    """The anti-aliased circle again, pixel by pixel in float64."""
    source = shapes_source(10, size=32, fixed={"shape": "circle"})
    scene = source.examples.world.scene
    found = coverage(scene, 32)
    for n in range(10):
        x, y, r = (float(value[n]) for value in (scene.x, scene.y, scene.radius))
        for i in range(0, 32, 3):
            for j in range(32):
                d = (math.hypot((j + 0.5) / 32 - x, (i + 0.5) / 32 - y) - 0.9 * r) * 32
                assert float(found[n, i, j]) == pytest.approx(min(max(0.5 - d, 0), 1), abs=2e-4)


@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_sizes(size):
    images = pixels(shapes_source(8, size=size))
    assert images.shape == (8, 3, size, size) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1


def test_large_sets_are_drawn_again_rather_than_kept(monkeypatch):
    kept = shapes_source(20)
    monkeypatch.setattr("pellucid.data.shapes.KEEP", 0)
    fresh = shapes_source(20)
    assert fresh.examples._kept is None and torch.equal(pixels(fresh), pixels(kept))
    assert len(list(fresh.take([]).batches(4))) == 0


def test_reading_a_place_outside():
    source = shapes_source(4)
    assert torch.equal(source.examples[-1][0], source.examples[3][0])
    with pytest.raises(IndexError, match="has 4 examples, got 4"):
        source.examples[4]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": 8}, r"size of shapes must lie in \[16.0, 128.0\]"),
        ({"length": 0}, "length of shapes"),
        ({"fixed": {"color": "red"}}, "nearest: 'colour'"),
        ({"fixed": {"colour": "rde"}}, r"colour of shapes cannot be 'rde'; nearest: \['red'"),
    ],
)
def test_bad_worlds(bad, message):
    with pytest.raises(ConfigError, match=message):
        shapes_source(**bad)


def test_spec_of_shapes():
    source = open_source("shapes?target=colour", split="train", size=40, length=9, seed=3)
    same = shapes_source(9, split="train", size=40, seed=3, target="colour")
    assert source.fingerprint() == same.fingerprint()
    assert open_source("shapes", channels="grey")[0][0].shape == (1, 32, 32)
    with pytest.raises(ConfigError, match="no split 'all'"):
        open_source("shapes", split="all")
    with pytest.raises(ConfigError, match="shapes are square"):
        open_source("shapes", size=(32, 48))


def test_numbers_behind_a_picture_suffice():
    assert len(FACTORS) + 15 <= DRAWS


@pytest.mark.slow
def test_drawing_is_fast():
    """Measured 10,000 images a second and more at 32 px on one core; a busy machine may take five times as long."""
    source = shapes_source(4000)
    begun = time.perf_counter()
    pixels(source, 500)
    for _ in source.batches(500):
        pass
    assert 4000 / (time.perf_counter() - begun) > 2000
