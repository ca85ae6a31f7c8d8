"""Inversion: acceptance tests 1-12 of the specification, on networks whose answer is known and on digits."""

import dataclasses as dc
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError, LayerNotFound, NumericError
from pellucid.attack import L2, adversarial
from pellucid.data import open_source
from pellucid.evals.perceptual import Metric, ssim_distance
from pellucid.methods.invert import (
    FAST,
    FREE,
    HUMAN_LEANING,
    Preset,
    Prior,
    Representation,
    adversarial_curve,
    balanced_weight,
    constrained_adversary,
    descend,
    fourier,
    incomparable,
    invert,
    maximise_units,
    natural_null,
    priors,
    relative_distance,
    shared_starts,
    starts,
    towards_start,
    validity,
    weighted_adversary,
)
from pellucid.methods.invert.starts import black, grey_noise, light_noise, white
from pellucid.methods.invert.validity import tier_of, to_bytes
from pellucid.taps import Tap
from pellucid.train import CrossEntropy, fit, seeded

DIGIT = (1, 12, 12)
SHORT = Preset(steps=200, eta=1.0, halve_every=20, tolerance=1e-3)
MEDIUM = Preset(steps=400, eta=1.0, halve_every=40)
STEADY = Preset(steps=300, eta=0.5)  # no halvings, as the released code has it


def pixel_l2(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).sum(1).add(1e-12).sqrt()


def conv_net() -> nn.Module:
    """For 12 x 12 images; its 32 pooled features see far fewer directions than there are pixels."""

    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *block(1, 12), nn.MaxPool2d(2), *block(12, 24), nn.MaxPool2d(2), *block(24, 32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


LATE = "12"  # the flattened pooled features of conv_net


def enlarged(image: Tensor) -> Tensor:
    return F.interpolate(image[None], size=12, mode="bilinear")[0]


@functools.cache
def trained(robust: bool, seed: int) -> nn.Module:
    train = open_source("digits", split="train").map(enlarged, "12 px")
    with seeded(seed):
        model = conv_net()
    prepare = adversarial(L2(1.5), steps=3) if robust else None
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    fit(
        model,
        train,
        optimizer,
        {"task": CrossEntropy()},
        epochs=8 if robust else 14,
        batch_size=64,
        seed=seed,
        prepare=prepare,
    )
    return model.eval()


def digits(n: int, start: int = 0) -> Tensor:
    test = open_source("digits", split="test").map(enlarged, "12 px")
    return next(test.take(torch.arange(start, start + n)).batches(n)).inputs


def afc(found: Tensor, targets: Tensor, begun: Tensor, metric: Metric = pixel_l2) -> float:
    return float((metric(found, targets) < metric(found, begun)).double().mean())


def test_A1_the_identity_is_inverted_to_the_target() -> None:
    targets = torch.rand(5, 3, 8, 8)
    g = Representation(nn.Sequential(nn.Flatten(), nn.Identity()), "1")
    found = invert(g, targets, starts((3, 8, 8), range(5)), preset=dc.replace(FAST, tolerance=0.0))
    assert float((to_bytes(found.images) - targets).abs().max()) <= 1 / 255
    assert afc(found.images, targets, found.starts) == 1
    assert torch.equal(found.steps, torch.full((5,), 600))


def test_A2_a_linear_layer_leaves_its_null_space_free() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(6, 16, dtype=torch.float64)
    layer = nn.Linear(16, 6, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(matrix)
    model = nn.Sequential(nn.Flatten(), layer)
    targets = 0.3 + 0.4 * torch.rand(4, 1, 4, 4, dtype=torch.float64)
    begun = 0.3 + 0.4 * torch.rand(4, 1, 4, 4, dtype=torch.float64)
    preset = Preset(steps=800, eta=0.5, halve_every=40)
    found = invert(Representation(model, "1"), targets, begun, preset=preset)
    moved = (found.images - targets).flatten(1)
    assert float((moved @ matrix.T).norm(dim=1).max()) < 1e-4
    assert float(moved.norm(dim=1).min()) > 0.05, "what the layer does not see stays as the start left it"
    closed = (moved @ matrix.T).norm(dim=1) / (targets.flatten(1) @ matrix.T).norm(dim=1)
    torch.testing.assert_close(found.rho, closed, atol=1e-12, rtol=1e-9)


class Constant(nn.Module):
    """The same representation, and the same logits, for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.features(0 * x.flatten(1)[:, :5] + torch.arange(1.0, 6.0))


def test_A3_a_constant_representation_is_invalid_and_never_aligned() -> None:
    targets = torch.rand(4, *DIGIT)
    g = Representation(Constant(), "features")
    found = invert(g, targets, starts(DIGIT, range(4)), preset=Preset(steps=5, eta=1.0))
    assert float(found.rho.max()) == 0 and not found.moved.any()
    checked = validity(g, targets, found, null=natural_null(g.values(torch.rand(30, *DIGIT))))
    assert not checked.v1.any() and not checked.v6.any() and not checked.valid.any()
    assert "valid" in incomparable({"constant": checked})[0]


@pytest.mark.slow
def test_A4_A6_a_standard_network_is_misaligned_and_a_prior_makes_it_seem_aligned() -> None:
    model, targets = trained(False, 0), digits(24)
    g, begun = Representation(model, LATE), starts(DIGIT, range(24))
    free = invert(g, targets, begun, preset=MEDIUM)
    checked = validity(g, targets, free, null=natural_null(g.values(digits(150, 100))))
    assert float(free.rho.median()) <= 0.1
    assert checked.v4 is not None and float(checked.v4.double().mean()) >= 0.95
    assert float(checked.v7.double().mean()) == 1
    assert afc(free.images, targets, free.starts) <= 0.15
    assert afc(free.images, targets, free.starts, ssim_distance) <= 0.15
    plain = invert(g, targets, begun, preset=STEADY)
    leaning = invert(g, targets, begun, preset=STEADY, prior=priors.total_variation_prior(0.01))
    assert float(leaning.rho.median()) <= 1.5 * float(plain.rho.median())
    assert afc(leaning.images, targets, leaning.starts) >= afc(plain.images, targets, plain.starts) + 0.3


@pytest.mark.slow
def test_A5_an_adversarially_trained_twin_is_better_aligned() -> None:
    targets, gain = digits(16), []
    for seed in (0, 1):
        shares = []
        for robust in (False, True):
            g = Representation(trained(robust, seed), LATE)
            found = invert(g, targets, starts(DIGIT, range(16)), preset=MEDIUM)
            shares.append(afc(found.images, targets, found.starts))
        gain.append(shares[1] - shares[0])
    assert sum(gain) / 2 >= 0.3


@pytest.mark.slow
def test_A7_the_weighted_adversary_leaves_the_constraint_and_the_constrained_one_does_not() -> None:
    targets = digits(16)
    g = Representation(trained(True, 0), LATE)
    begun = starts(DIGIT, range(16))
    loose = invert(g, targets, begun, preset=SHORT, extra=weighted_adversary(pixel_l2, targets, weight=10.0))
    assert sum(tier_of(float(r)) == "failed" for r in loose.rho) >= 8
    free = invert(g, targets, begun, preset=MEDIUM)
    curve = adversarial_curve(
        g, targets, free.images, metric=pixel_l2, tolerances=(0.1, 0.2), preset=Preset(60, 0.1, 30)
    )
    before = pixel_l2(free.images, targets)
    for one in curve:
        assert bool((one.rho[one.feasible] <= one.tolerance).all())
        assert bool((one.distance[one.feasible] >= before[one.feasible] - 1e-6).all())
    means = [float(one.distance.mean()) for one in curve]
    assert means[0] < means[1], "more room, more distance"
    shares = [afc(one.images, targets, free.starts) for one in curve]
    assert shares[0] >= shares[1]


@pytest.mark.slow
def test_A8_an_untrained_network_passes_the_absolute_gate_and_is_worse_against_natural_pairs() -> None:
    with seeded(0):
        raw = conv_net().eval()
    targets, natural = digits(16), digits(150, 100)
    relative = {}
    for name, model in (("untrained", raw), ("trained", trained(False, 0))):
        g = Representation(model, LATE)
        found = invert(g, targets, starts(DIGIT, range(16)), preset=SHORT)
        relative[name] = validity(g, targets, found, null=natural_null(g.values(natural)))
    assert bool(relative["untrained"].v2.all())
    assert relative["untrained"].null_relative.median() > relative["trained"].null_relative.median()


def small() -> nn.Module:
    with seeded(0):
        return conv_net().double().eval()


@pytest.mark.slow
def test_A9_batches_and_interruptions_change_nothing() -> None:
    targets = torch.rand(9, *DIGIT, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    begun = starts(DIGIT, range(9)).double()
    preset = Preset(steps=40, eta=1.0, halve_every=10, tolerance=0.05, repack_every=10)
    search = functools.partial(invert, Representation(small(), LATE), targets, begun, preset=preset)
    whole = search(batch_size=9, prior=priors.TRANSFORMED)
    for size in (1, 4, 32):
        found = search(batch_size=size, prior=priors.TRANSFORMED)
        torch.testing.assert_close(found.images, whole.images, atol=1e-4, rtol=0)
    states: list[dict[str, Tensor]] = []
    search(batch_size=4, keep=lambda state: states.append({k: v.clone() for k, v in state.items()}))
    plain = search(batch_size=4)
    for state in states[1::3]:
        resumed = search(batch_size=4, resume=state)
        assert torch.equal(resumed.images, plain.images) and torch.equal(resumed.steps, plain.steps)
    with pytest.raises(ConfigError, match="belongs to another search"):
        invert(Representation(small(), LATE), targets[:3], begun[:3], preset=preset, resume=states[0])


def test_A10_the_best_iterate_is_returned_and_the_start_left_alone() -> None:
    targets, begun = torch.rand(3, *DIGIT), starts(DIGIT, range(3))
    copy, log = begun.clone(), []
    g = Representation(small().float(), LATE)
    goals = g.values(targets)

    def loss(images: Tensor, rows: Tensor, step: int) -> Tensor:
        found = relative_distance(g(images), goals[rows])
        log.append(found.detach())
        return found

    with g.open():
        found = descend(loss, begun, preset=Preset(30, 2.0))
    assert torch.equal(torch.stack(log).min(0).values, found.losses)
    assert torch.equal(torch.stack(log).argmin(0), found.best_step) and len(log) == 31
    assert torch.equal(begun, copy)
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1


def twin_terms(x: Tensor) -> tuple[float, float, float]:
    """TV, blur and L1 of one image, pixel by pixel."""
    channels, height, width = x.shape
    tv = blur = grey = 0.0
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                v = float(x[c, i, j])
                grey += abs(v - 0.5)
                tv += (float(x[c, i + 1, j]) - v) ** 2 if i + 1 < height else 0
                tv += (float(x[c, i, j + 1]) - v) ** 2 if j + 1 < width else 0
                total = weight = 0.0
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        if 0 <= i + di < height and 0 <= j + dj < width:
                            w = 1.0 if di == dj == 0 else 0.5
                            total, weight = total + w * float(x[c, i + di, j + dj]), weight + w
                blur += 0.5 * (v - total / weight) ** 2
    return tv, blur, grey


def test_A11_pixel_terms_equal_their_slow_twins_and_finite_differences() -> None:
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    for i in range(2):
        tv, blur, grey = twin_terms(x[i])
        assert float(priors.total_variation(x)[i]) == pytest.approx(tv, abs=1e-12)
        assert float(priors.blur_distance(x)[i]) == pytest.approx(blur, abs=1e-12)
        assert float(priors.grey_distance(x)[i]) == pytest.approx(grey, abs=1e-12)
    x.requires_grad_(True)
    for term in (priors.total_variation, priors.grey_distance, priors.six_norm):
        assert torch.autograd.gradcheck(term, (x,), eps=1e-7, atol=1e-6)
    (gradient,) = torch.autograd.grad(priors.blur_distance(x).sum(), x)
    torch.testing.assert_close(gradient, (x - priors.blur(x)).detach(), atol=1e-12, rtol=0)
    g = Representation(small(), LATE)
    images = torch.rand(2, *DIGIT, dtype=torch.float64).requires_grad_(True)
    goals = g.values(torch.rand(2, *DIGIT, dtype=torch.float64))
    with g.open():
        assert torch.autograd.gradcheck(
            lambda z: relative_distance(g(z), goals), (images,), eps=1e-7, atol=1e-5
        )


def test_A12_transforms_touch_the_network_alone_and_fourier_parameters_are_unclamped() -> None:
    seen: list[Tensor] = []

    def spy(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.flatten(1).sum(1)

    blank = Prior(
        "spy", terms=((0.0, spy),), transform=lambda images, rng: torch.zeros_like(images) + 0 * images
    )
    targets = torch.rand(2, *DIGIT)
    model = nn.Sequential(nn.Flatten(), nn.Identity())
    begun = torch.rand(2, *DIGIT)
    invert(Representation(model, "1"), targets, begun, preset=Preset(2, 1.0), prior=blank)
    assert torch.equal(seen[0], begun), "pixel terms see the image, not its transform"
    space, images = fourier(12, 12), 0.05 + 0.9 * torch.rand(2, 3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(space.to_image(space.from_image(images)), images, atol=1e-9, rtol=0)
    far = space.from_image(images) * 50
    assert torch.equal(space.project(far), far)
    found = invert(Representation(model, "1"), images[:, :1].float(), torch.full((2, *DIGIT), 0.5), preset=SHORT,
                   prior=Prior("fourier", space=space))  # fmt: skip
    assert float(found.rho.max()) < 0.5 * float(found.rho_start.max())


def test_transforms_do_not_depend_on_the_batch_and_keep_the_size() -> None:
    images = torch.rand(4, 3, 32, 32)

    def moved(x: Tensor, seed: int) -> Tensor:
        return priors.small_transform(x, torch.Generator().manual_seed(seed))

    for seed in range(10):
        torch.testing.assert_close(moved(images, seed)[1:2], moved(images[1:2], seed))
        assert moved(images, seed).shape == images.shape
    assert priors.large_transform(images, torch.Generator().manual_seed(0)).shape == (4, 3, 56, 56)


def test_starts_belong_to_their_target_and_shared_ones_to_the_run() -> None:
    every = starts(DIGIT, [4, 7, 9])
    assert torch.equal(starts(DIGIT, [9])[0], every[2]) and not torch.equal(every[0], every[1])
    assert not torch.equal(starts(DIGIT, [4], start=1)[0], every[0])
    shared = shared_starts(DIGIT, 3)
    assert torch.equal(shared[0], shared[2])
    generator = torch.Generator().manual_seed(0)
    assert float(white(DIGIT, generator).min()) == 1 and float(black(DIGIT, generator).max()) == 0
    assert float(light_noise(DIGIT, generator).abs().max()) < 0.1
    assert float(grey_noise(DIGIT, generator).min()) > 0.2
    with pytest.raises(ConfigError, match="no targets"):
        starts(DIGIT, [])


def test_the_same_search_maximises_a_unit() -> None:
    patterns = torch.rand(3, 144) - 0.5
    layer = nn.Linear(144, 3, bias=False)
    layer.weight.data.copy_(patterns)
    model = nn.Sequential(nn.Flatten(), layer)
    found = maximise_units(model, "1", [2, 0], torch.full((2, *DIGIT), 0.5), preset=SHORT)
    for row, unit in enumerate((2, 0)):
        best = (patterns[unit] > 0).float()
        assert float(-found.losses[row]) == pytest.approx(float(best @ patterns[unit]), rel=1e-2)
    with pytest.raises(ConfigError, match="units 0 to 2"):
        maximise_units(model, "1", [3], torch.full((1, *DIGIT), 0.5), preset=SHORT)
    with pytest.raises(ConfigError, match="one start image for each unit"):
        maximise_units(model, "1", [0, 1], torch.full((1, *DIGIT), 0.5), preset=SHORT)


def test_only_the_layers_up_to_the_tap_run_and_everything_is_put_back() -> None:
    model = conv_net().train()
    ran: list[int] = []
    model[12].register_forward_hook(lambda *_: ran.append(1))
    g = Representation(model, Tap("2"))
    statistics = {k: v.clone() for k, v in model.state_dict().items()}
    found = invert(g, torch.rand(2, *DIGIT), starts(DIGIT, range(2)), preset=Preset(3, 1.0))
    assert not ran and found.rho.shape == (2,)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, statistics[k]) for k, v in model.state_dict().items())
    assert not model[2]._forward_hooks


def test_identity_backward_reaches_through_a_dead_relu() -> None:
    shy = nn.Linear(144, 4)  # fires for the white target, is dead for the black start
    nn.init.constant_(shy.weight, 1.0)
    nn.init.constant_(shy.bias, -100.0)
    model = nn.Sequential(nn.Flatten(), shy, nn.ReLU(inplace=True), nn.Linear(4, 4))
    targets, begun = torch.ones(2, *DIGIT), torch.zeros(2, *DIGIT)
    stuck = invert(Representation(model, "3"), targets, begun, preset=Preset(3, 1.0))
    assert not stuck.moved.any()
    passed = invert(Representation(model, "3", identity_relus=["2"]), targets, begun, preset=Preset(3, 1.0))
    assert passed.moved.all() and not model[2]._forward_hooks
    with pytest.raises(LayerNotFound, match=r"must name nn\.ReLU"):
        Representation(model, "3", identity_relus=["1"])


def test_validity_numbers_against_their_definitions() -> None:
    g = Representation(small().float(), LATE)
    natural = torch.rand(25, *DIGIT)
    values = g.values(natural).double()
    null = natural_null(g.values(natural))
    every = [
        float((values[i] - values[j]).norm() / values[j].norm())
        for i in range(25)
        for j in range(25)
        if i != j
    ]
    assert null.pairs == 600 and null.minimum == pytest.approx(min(every), rel=1e-4)
    assert null.median == pytest.approx(float(torch.tensor(every).median()), rel=0.02)
    from scipy.stats import spearmanr

    best = max(spearmanr(values[i], values[j]).statistic for i in range(25) for j in range(i))
    assert null.rank_max == pytest.approx(float(best), abs=1e-6)
    assert [tier_of(r) for r in (0.1, 0.2, 0.21, float("nan"))] == ["tight", "loose", "failed", "failed"]


def test_weights_and_extras() -> None:
    targets, begun = torch.rand(2, *DIGIT), starts(DIGIT, range(2))
    rows = torch.tensor([1])
    assert float(weighted_adversary(pixel_l2, targets, weight=3.0)(begun[1:], rows)) == pytest.approx(
        -3 * float(pixel_l2(begun[1:], targets[1:]))
    )
    assert float(towards_start(pixel_l2, begun)(begun[1:].clamp(0, 1), rows)) < 1e-4
    assert balanced_weight(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5])) == 4
    with pytest.raises(ConfigError, match="balance"):
        balanced_weight(torch.ones(2), torch.zeros(2))
    assert HUMAN_LEANING.weight == 10 and FREE.terms == ()


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x.flatten(1) - x.flatten(1).detach()).sqrt() + 1)


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1).detach() + 1)


def test_bad_input_is_named() -> None:
    targets, begun = torch.rand(2, *DIGIT), starts(DIGIT, range(2))
    model = nn.Sequential(nn.Flatten(), nn.Identity())
    search = functools.partial(invert, Representation(model, "1"), preset=Preset(2, 1.0))
    with pytest.raises(DataError, match="equal to its start"):
        search(targets, targets)
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        search(targets * 255, begun)
    with pytest.raises(DataError, match="one start image"):
        search(targets, begun[:1])
    with pytest.raises(DataError, match="finite"):
        search(targets, begun * float("nan"))
    with pytest.raises(NumericError, match="zero"):
        search(torch.zeros(2, *DIGIT), begun)
    with pytest.raises(LayerNotFound):
        Representation(model, "nothing").values(targets)
    with pytest.raises(NumericError, match="NaN or infinite"):
        invert(Representation(Broken(), "out"), targets, begun, preset=Preset(2, 1.0))
    with pytest.raises(NumericError, match="path to the input"):
        invert(Representation(Cut(), "out"), targets, begun, preset=Preset(2, 1.0))
    with pytest.raises(ConfigError, match=r"with g\.open"):
        Representation(model, "1")(targets)
    with pytest.raises(ConfigError, match="tolerance must be positive"):
        constrained_adversary(Representation(model, "1"), targets, targets, metric=pixel_l2, tolerance=0.0)
    with pytest.raises(ConfigError, match="grow strictly"):
        adversarial_curve(
            Representation(model, "1"), targets, targets, metric=pixel_l2, tolerances=(0.2, 0.1)
        )
    with pytest.raises(DataError, match="20 images"):
        natural_null(torch.rand(5, 3))
    with pytest.raises(ConfigError, match="steps must be"):
        Preset(0, 1.0)


def test_search_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    model = nn.Sequential(nn.Flatten(), nn.Identity())
    targets = torch.rand(3, *DIGIT)
    preset = Preset(100, 1.0, halve_every=5, tolerance=0.05, repack_every=25)
    invert(Representation(model, "1"), targets, starts(DIGIT, range(3)), preset=preset, batch_size=2,
           progress=lambda done, total: told.append((done, total)))  # fmt: skip
    assert told[-1] == (300, 300) and all(a[0] < b[0] for a, b in itertools.pairwise(told))
