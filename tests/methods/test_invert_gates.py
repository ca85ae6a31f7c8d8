"""The seven gates again from the specification, and searches on models and images that are unlike the usual ones."""

import dataclasses as dc
import math
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.evals.perceptual import lpips_distance
from pellucid.methods.invert import (
    Adversarial,
    Preset,
    Prior,
    Representation,
    constrained_adversary,
    invert,
    maximise_units,
    natural_null,
    starts,
    validity,
    weighted_adversary,
)
from pellucid.rng import rng
from pellucid.taps import Tap
from pellucid.train import seeded
from pellucid.zoo import conv_net

WIDE = (1, 12, 9)
FEATURES = Tap("linear", side="in")
SHORT = Preset(steps=40, eta=1.0, halve_every=4)


def net() -> nn.Module:
    with seeded(3):
        return conv_net(widths=(8, 16), pool_after=(1,)).eval()


def some(n: int, key: str, shape: tuple[int, ...] = WIDE) -> Tensor:
    return torch.rand(n, *shape, generator=rng(0, key))


def pixel_l2(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).sum(1).add(1e-12).sqrt()


# ---- the gates, from section 5 of the specification, with loops in float64


def plain(model: nn.Module, images: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    """Pooled features and logits by a hook of our own."""
    seen: list[Tensor] = []
    hook = model.get_submodule("linear").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        logits = model(images)
    hook.remove()
    return seen[0].double().tolist(), logits.double().tolist()


def rho_of(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True))) / math.sqrt(sum(q * q for q in b))


def ranks_of(values: list[float]) -> list[float]:
    return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]


def spearman(a: list[float], b: list[float]) -> float:
    x, y = ranks_of(a), ranks_of(b)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    both = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    return both / math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))


def quantile(values: list[float], q: float) -> float:
    """Linear between order statistics."""
    ordered, at = sorted(values), q * (len(values) - 1)
    low = math.floor(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(values) - 1)] - ordered[low])


@pytest.mark.parametrize("steps", [40, 3])
def test_every_gate_equals_its_slow_twin(steps: int) -> None:
    model, targets, natural = net(), some(6, "targets"), some(24, "natural")
    g = Representation(model, FEATURES)
    found = invert(g, targets, starts(WIDE, range(6)), preset=dc.replace(SHORT, steps=steps))
    checked = validity(g, targets, found, null=natural_null(g.values(natural)))
    goal, said = plain(model, targets)
    result, other = plain(model, found.images)
    begun, _ = plain(model, found.starts)
    shown, _ = plain(model, torch.tensor([[round(255 * v) / 255 for v in row] for row in found.images.flatten(1).tolist()])
                     .view(found.images.shape))  # fmt: skip
    around, _ = plain(model, natural)
    pairs = [(around[i], around[j]) for i in range(24) for j in range(24) if i != j]
    usual = [rho_of(a, b) for a, b in pairs]
    first, middle = quantile(usual, 0.01), quantile(usual, 0.5)
    highest = max(spearman(a, b) for a, b in pairs)
    for i in range(6):
        rho, by_bytes = rho_of(result[i], goal[i]), rho_of(shown[i], goal[i])
        rank = spearman(result[i], goal[i])
        wanted = {
            "v1": rho < first,
            "v2": rho <= 0.2,
            "v3": rank > highest,
            "v4": said[i].index(max(said[i])) == other[i].index(max(other[i])),
            "v5": by_bytes < first and by_bytes <= 0.2,
            "v6": rho / rho_of(begun[i], goal[i]) < 0.5 and int(found.flat[i]) < int(found.steps[i]),
            "v7": abs(rho - float(found.rho_search[i])) <= 1e-4,
        }
        assert {name: bool(gate[i]) for name, gate in checked.gates.items()} == wanted
        assert bool(checked.valid[i]) == all(wanted.values())
        assert checked.tier[i] == ("tight" if rho <= 0.1 else "loose" if rho <= 0.2 else "failed")
        assert float(checked.null_relative[i]) == pytest.approx(rho / middle, rel=1e-3)
        assert float(checked.rho[i]) == pytest.approx(rho, abs=1e-5)
        assert float(checked.rho_bytes[i]) == pytest.approx(by_bytes, abs=1e-5)
        assert float(checked.rank[i]) == pytest.approx(rank, abs=1e-6)
        assert float(checked.snr_db[i]) == pytest.approx(10 * math.log10(1 / rho), abs=1e-2)
    assert checked.v6.all() == (steps == 40), "three steps are not enough for every image, forty are"


def test_v7_finds_a_search_that_used_another_preprocessing() -> None:
    model, targets = net(), some(4, "targets")
    g = Representation(model, FEATURES)
    found = invert(g, targets, starts(WIDE, range(4)), preset=SHORT)
    null = natural_null(g.values(some(24, "natural")))
    assert validity(g, targets, found, null=null).v7.all()
    hook = model.register_forward_pre_hook(lambda _, args: ((args[0] - 0.5) / 0.25,))
    assert not validity(g, targets, found, null=null).v7.any()
    hook.remove()


def test_logits_that_are_nan_belong_to_no_class() -> None:
    model, targets = net(), some(3, "targets")
    g = Representation(model, FEATURES)
    found, null = (
        invert(g, targets, starts(WIDE, range(3)), preset=SHORT),
        natural_null(g.values(some(24, "n"))),
    )
    nn.init.constant_(cast("nn.Linear", model.get_submodule("linear")).bias, float("nan"))
    checked = validity(g, targets, found, null=null)
    assert checked.v4 is not None and not checked.v4.any() and not checked.valid.any()


def test_natural_images_that_are_nan_are_named() -> None:
    values = some(30, "values", (5,))
    values[7, 2] = float("nan")
    with pytest.raises(NumericError, match=r"1 of 30 natural images .* image 7"):
        natural_null(values)


# ---- terms beside rho


def test_a_term_below_zero_does_not_end_the_search() -> None:
    """A loss of rho - 10 D is below any tolerance from the first step on."""
    targets = some(3, "targets")
    early = Preset(60, 1.0, halve_every=10, tolerance=1e-3, repack_every=5)
    g, begun = Representation(net(), FEATURES), starts(WIDE, range(3))
    found = invert(g, targets, begun, preset=early, extra=weighted_adversary(pixel_l2, targets))
    assert found.steps.tolist() == [60, 60, 60]
    warm = (targets + 0.01).clamp(0, 1)  # at the target itself the distance has no gradient
    worst = constrained_adversary(g, targets, warm, metric=pixel_l2, tolerance=0.5, preset=early)
    assert bool((worst.distance > 2 * pixel_l2(warm, targets)).all())
    driven = maximise_units(net(), Tap("linear"), [0, 1], begun[:2], preset=early)
    assert driven.steps.tolist() == [60, 60]


def test_terms_see_what_is_shown() -> None:
    """Nothing in [0, 1] is as far from the target as the raw start is, which must not be returned for it."""
    targets, begun = some(3, "targets"), 30 * starts(WIDE, range(3))
    g = Representation(net(), FEATURES)
    extra = weighted_adversary(pixel_l2, targets, weight=10.0)
    found = invert(g, targets, begun, preset=SHORT, extra=extra)
    assert bool((found.best_step > 0).all())
    torch.testing.assert_close(
        found.losses, found.rho - 10 * pixel_l2(found.images, targets), atol=1e-4, rtol=0
    )
    seen: list[Tensor] = []

    def spy(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.flatten(1).sum(1)

    invert(g, targets, begun, preset=Preset(2, 1.0), prior=Prior("spy", terms=((0.1, spy),)))
    assert float(seen[0].min()) == 0 and float(seen[0].max()) == 1


# ---- the constrained adversary


def twin_adversary(model: nn.Module, target: Tensor, warm: Tensor, tau: float, preset: Preset) -> Tensor:
    """One image: gradient ascent on D - 50 max(rho - tau, 0), the best iterate within the constraint."""
    goal = torch.tensor(plain(model, target)[0][0]).float()
    x, best, best_distance = warm.clone(), warm.clone(), -math.inf
    features = model[:-1]  # pyright: ignore[reportIndexIssue]  # a Sequential
    for k in range(preset.steps + 1):
        x = x.detach().requires_grad_(True)
        rho = (features(x)[0] - goal).norm() / goal.norm()
        distance = pixel_l2(x, target)[0]
        far = float(distance.detach())
        if float(rho.detach()) <= tau and far > best_distance:
            best, best_distance = x.detach().clone(), far
        (u,) = torch.autograd.grad(distance - 50 * (rho - tau).clamp_min(0), x)
        x = (x + preset.length(k) * u / (u.norm() + 1e-10)).clamp(0, 1)
    return best


def test_the_constrained_adversary_equals_its_slow_twin_and_leaves_the_infeasible_alone() -> None:
    model, targets = net(), some(4, "targets")
    g = Representation(model, FEATURES)
    warm = (targets + 0.05 * some(4, "moved")).clamp(0, 1)
    warm[1] = some(1, "far")[0]
    preset = Preset(30, 0.1, halve_every=15)
    calls: list[int] = []

    def metric(a: Tensor, b: Tensor) -> Tensor:
        calls.append(len(a))
        return pixel_l2(a, b)

    goals, before = plain(model, targets)[0], plain(model, warm)[0]
    tau = sorted(rho_of(a, b) for a, b in zip(before, goals, strict=True))[2] * 1.2
    inside = [rho_of(a, b) <= tau for a, b in zip(before, goals, strict=True)]
    assert inside == [True, False, True, True]
    found = constrained_adversary(g, targets, warm, metric=metric, tolerance=tau, preset=preset)
    assert found.feasible.tolist() == inside and torch.equal(found.images[1], warm[1])
    assert max(calls[:-1]) == 3, "rows that cannot be attacked cost nothing"
    for i in (0, 2, 3):
        twin = twin_adversary(model, targets[i : i + 1], warm[i : i + 1], tau, preset)
        assert float(found.distance[i]) == pytest.approx(float(pixel_l2(twin, targets[i : i + 1])), rel=2e-2)
        assert float(found.rho[i]) <= tau
    none = constrained_adversary(g, targets, warm, metric=metric, tolerance=1e-6, preset=preset)
    assert not none.feasible.any() and torch.equal(none.images, warm)
    with pytest.raises(DataError, match=r"in \[0, 1\]"):
        constrained_adversary(g, targets, warm * float("nan"), metric=metric, tolerance=tau)


def test_a_metric_with_a_trunk_computes_fixed_targets_once() -> None:
    with seeded(0):
        trunk = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()
        )
    ran: list[int] = []
    metric = lpips_distance(trunk, ["1", "3"], heads=None, name="t", rung="untrained trunk", preprocess=False)
    targets, images = some(5, "targets"), some(5, "images")
    fixed, rows = metric.towards(targets), torch.tensor([4, 0, 2])
    trunk[0].register_forward_hook(lambda *_: ran.append(1))
    x = images[rows].requires_grad_(True)
    first = fixed(x, rows)
    torch.testing.assert_close(first, metric(images, targets)[rows])
    y = images[rows].requires_grad_(True)
    whole = metric(y, targets[rows])
    (a,), (b,) = torch.autograd.grad(first.sum(), x), torch.autograd.grad(whole.sum(), y)
    torch.testing.assert_close(a, b)
    ran.clear()
    fixed(x, rows)
    assert len(ran) == 1, "the targets' pass is kept"
    torch.testing.assert_close(fixed(images[:2], torch.tensor([0, 1])), metric(images[:2], targets[:2]))
    model = net()
    g, warm = Representation(model, FEATURES), (targets + 0.02).clamp(0, 1)
    kept, plainly = (
        constrained_adversary(g, targets, warm, metric=each, tolerance=0.3, preset=Preset(10, 0.1))
        for each in (metric, lambda a, b: metric(a, b))
    )
    assert isinstance(kept, Adversarial)
    torch.testing.assert_close(kept.distance, plainly.distance, rtol=1e-3, atol=1e-6)


# ---- models and images unlike the usual ones


class Residual(nn.Module):
    """One ReLU, in place, used twice; a shortcut around it; batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.relu = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.first(x)))
        y = self.relu(y + self.second(y))
        return self.head(y.mean((2, 3)))


class Tokens(nn.Module):
    """A transformer block over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 3, stride=3)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.block(tokens).mean(1))


UNUSUAL = {
    "residual, first use": (Residual, "relu#0", (3, 8, 5)),
    "residual, second use": (Residual, "relu#1", (3, 8, 5)),
    "residual, a map": (Residual, "second", (3, 8, 5)),
    "tokens": (Tokens, "block", (1, 9, 12)),
    "head": (Tokens, "head", (1, 9, 12)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_are_inverted_and_left_as_they_were(name: str) -> None:
    build, layer, shape = UNUSUAL[name]
    with seeded(1):
        model = build().train()  # by mistake: batch norm and dropout would answer differently each time
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    state = torch.get_rng_state()
    targets = some(4, "targets", shape)
    g, begun = Representation(model, layer), starts(shape, range(4))
    found = invert(g, targets, begun, preset=SHORT, batch_size=3)
    again = invert(g, targets, begun, preset=SHORT, batch_size=3)
    assert torch.equal(found.images, again.images)
    assert float(found.rho.max()) < 0.5 * float(found.rho_start.max())
    checked = validity(g, targets, found, null=natural_null(g.values(some(24, "n", shape))))
    assert checked.v7.all() and checked.v6.all()
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_hooks_come_off_after_an_error() -> None:
    model = net()
    g = Representation(model, FEATURES)

    def failing(*_: Tensor) -> Tensor:
        raise ValueError("a term of one's own fails")

    with pytest.raises(ValueError, match="of one's own"):
        invert(g, some(2, "t"), starts(WIDE, range(2)), preset=SHORT, extra=failing)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match=r"with g\.open"):
        g(some(2, "t"))


def test_a_representation_opened_again_inside_serves_both() -> None:
    g, images = Representation(net(), FEATURES), some(3, "t")
    with g.open():
        goals = g.values(images)
        x = images.clone().requires_grad_(True)
        assert torch.equal(g(x).detach(), goals)
        (gradient,) = torch.autograd.grad(g(x).sum(), x)
        assert float(gradient.abs().max()) > 0


def test_half_precision_is_refused_by_name() -> None:
    for kind in (torch.float16, torch.bfloat16):
        with pytest.raises(ConfigError, match=r"model\.float\(\)"):
            Representation(net().to(kind), FEATURES)
    targets = some(2, "t")
    with pytest.raises(DataError, match="half precision"):
        invert(Representation(net(), FEATURES), targets.half(), starts(WIDE, range(2)).half(), preset=SHORT)
