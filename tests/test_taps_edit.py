"""Changes of activations: each against its slow twin, in every kind of layer, and what follows from them."""

import collections
import itertools

import pytest
import torch
from torch import Tensor, nn

from pellucid._checks import ConfigError, LayerNotFound
from pellucid.rng import rng
from pellucid.taps import (
    Tap,
    ablate,
    clamp_units,
    edit,
    keep,
    patch,
    resample,
    set_mean,
    unit_axis_of,
    watch,
)
from tap_nets import Net, Pairs, built, draw, hooks_of

pytestmark = pytest.mark.usefixtures("untouched_rng")


@pytest.fixture
def net() -> nn.Module:
    return built(Net)


@pytest.fixture
def images() -> Tensor:
    return draw(6, 3, 5, 5)


# -- editing -------------------------------------------------------------------------------------------------------


SHAPES = [((4, 5), None), ((4, 3, 5), None), ((4, 5, 2, 3), None), ((4, 2, 3, 5), -1), ((4, 5, 3), 1)]


@pytest.mark.parametrize(("shape", "unit_axis"), SHAPES)
def test_changes_agree_with_their_slow_twins(shape: tuple[int, ...], unit_axis: int | None) -> None:
    axis = unit_axis_of(len(shape), unit_axis)
    x, other, units = draw(*shape), draw(*shape, seed=1), [3, 0]
    pool, means = draw(7, *shape[1:], seed=2), [2.5, -1.0]
    donors = torch.randint(7, (shape[0],), generator=rng(5, "resample", 0)).tolist()
    twins = {
        "ablate": (ablate(units, unit_axis=unit_axis), lambda p, v: 0.0),
        "set_mean": (set_mean(units, means, unit_axis=unit_axis), lambda p, v: means[units.index(p[axis])]),
        "clamp": (clamp_units(units, -0.1, 0.2, unit_axis=unit_axis), lambda p, v: min(max(v, -0.1), 0.2)),
        "patch": (patch(units, other, unit_axis=unit_axis), lambda p, v: other[p].item()),
        "patch one": (patch(units, other[:1], unit_axis=unit_axis), lambda p, v: other[(0, *p[1:])].item()),
        "resample": (resample(units, pool, seed=5, unit_axis=unit_axis), lambda p, v: pool[(donors[p[0]], *p[1:])].item()),
    }  # fmt: skip
    for name, (change, rule) in twins.items():
        before, want = x.clone(), x.clone()
        for place in itertools.product(*(range(n) for n in shape)):
            if place[axis] in units:
                want[place] = rule(place, x[place].item())
        got = change(x)
        assert torch.equal(got, want), name
        assert torch.equal(x, before), f"{name} worked in place"


def test_changes_of_all_units_and_of_none() -> None:
    x, other = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    assert torch.equal(ablate()(x), torch.zeros_like(x))
    assert torch.equal(patch(None, other)(x), other)
    assert torch.equal(set_mean(None, [1.0, 2.0, 3.0])(x)[:, 1], torch.full((2, 4, 4), 2.0))
    assert torch.equal(clamp_units(None, high=0.0)(x), x.clamp(max=0))
    assert torch.equal(ablate([])(x), x)
    assert torch.equal(ablate(torch.tensor([1]))(x)[:, 1], torch.zeros(2, 4, 4))


def test_resample_draws_anew_and_repeats_with_its_seed() -> None:
    pool, x = draw(50, 3), draw(8, 3)
    one, same, other = resample([0], pool, seed=1), resample([0], pool, seed=1), resample([0], pool, seed=2)
    first, second = one(x), one(x)
    assert torch.equal(first, same(x))
    assert torch.equal(second, same(x))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: ablate([4]), r"units must lie in 0\.\.3, got 4"),
        (lambda: ablate([-1]), "list of positions from 0"),
        (lambda: ablate(torch.tensor([[1]]).flatten() * 9), r"units must lie in 0\.\.3, got 9"),
        (lambda: ablate([True, False]), "list of positions from 0"),
        (lambda: set_mean([0, 1], [1.0]), "one mean for each of 2 units"),
        (lambda: patch([0], draw(6, 4, 3, 3)), "must have the layer's shape"),
        (lambda: patch([0], draw(2, 4, 5, 5)), "must hold 1 or 6 samples"),
        (lambda: resample([0], draw(0, 4, 5, 5)), "must have the layer's shape"),
        (lambda: ablate([0], unit_axis=0), "unit_axis must be one of"),
        (
            lambda: lambda x: x[:, :2],
            r"shape \(6, 4, 5, 5\) for the output of layer 'conv1', got \(6, 2, 5, 5\)",
        ),
        (lambda: lambda x: None, "got NoneType"),
    ],
)
def test_bad_changes(change, message: str, net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ConfigError, match=message), edit(net, {"conv1": change()}):
        net(images)
    assert hooks_of(net) == 0


def test_clamp_needs_bounds() -> None:
    for bounds in ((), (1.0, 0.0), (float("nan"), 0.0)):
        with pytest.raises(ConfigError, match="low <= high"):
            clamp_units([0], *bounds)


@pytest.mark.parametrize("outside", ["watch", "edit"])
def test_taps_see_edited_activations(outside: str, net: nn.Module, images: Tensor) -> None:
    taps, changes = {"a": Tap("conv1"), "b": Tap("relu#0", side="in", reduce=keep)}, {"conv1": ablate([1, 2])}
    if outside == "watch":
        with watch(net, taps) as seen, edit(net, changes):
            net(images)
    else:
        with edit(net, changes), watch(net, taps) as seen:
            net(images)
    assert torch.equal(seen["a"][:, 1:3], torch.zeros(6, 2))
    assert seen["a"][:, 0].abs().min() > 0
    assert torch.equal(seen["b"][:, 1:3], torch.zeros(6, 2, 5, 5))
    with watch(net, taps) as seen:
        net(images)
    assert seen["a"][:, 1].abs().min() > 0


def test_planted_unit_is_found_by_ablation() -> None:
    """A head that reads unit 2 alone: its ablation removes the logit, another unit's does nothing."""
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1, bias=False)))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    x = draw(9, 3)
    plain = model(x)
    for unit in range(4):
        with edit(model, {"1": ablate([unit])}):
            assert torch.equal(model(x), torch.zeros(9, 1) if unit == 2 else plain)


def test_the_inner_edit_acts_first(images: Tensor) -> None:
    model = built(lambda: nn.Sequential(nn.Identity(), nn.Flatten()))
    with edit(model, {"0": lambda x: x * 2}), edit(model, {"0": lambda x: x + 1}):
        assert torch.equal(model(images), ((images + 1) * 2).flatten(1))


def test_edit_one_call_the_output_and_gradients(net: nn.Module, images: Tensor) -> None:
    x = images.clone().requires_grad_()
    with edit(net, {"relu#1": ablate([0]), "": lambda logits: logits * 3}):
        net(x).sum().backward()
    y = images.clone().requires_grad_()
    second = net.conv2(net.conv1(y).relu()).relu() * torch.tensor([0.0, 1, 1, 1, 1]).view(1, -1, 1, 1)
    (net.head(second.mean((2, 3))) * 3).sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-6)
    with edit(net, {"relu": ablate([0])}), pytest.raises(LayerNotFound, match="runs 2 times"):
        net(images)


def test_edit_inside_tuples_and_dicts() -> None:
    model, x = built(Pairs), draw(2, 4, 2)
    with edit(model, {"one": ablate()}):
        assert torch.equal(model(x)["aux"], torch.zeros(2, 4, 3))
    with edit(model, {"named": ablate()}), pytest.raises(ConfigError, match="say which tensor"):
        model(x)
    keyed = nn.Sequential(collections.OrderedDict(a=AsDict()))
    with edit(keyed, {"a": ablate([0])}):
        output = keyed(torch.ones(1, 2))
    assert type(output) is collections.OrderedDict
    assert output["out"].tolist() == [[0.0, 1.0]]
    assert output["n"] == 1


class AsDict(nn.Module):
    def forward(self, x: Tensor) -> collections.OrderedDict[str, object]:
        return collections.OrderedDict(out=x, n=1)


def test_a_change_that_is_not_applied_is_an_error(net: nn.Module, images: Tensor) -> None:
    net.unused = nn.Identity()
    with (
        edit(net, {"unused": ablate()}),
        pytest.raises(LayerNotFound, match="'unused' was not applied: the layer ran 0"),
    ):
        net(images)
    with (
        edit(net, {"relu#2": ablate()}),
        pytest.raises(LayerNotFound, match="'relu#2' was not applied: the layer ran 2"),
    ):
        net(images)
    with edit(net, {"head": ablate()}), watch(net, {"a": Tap("conv1")}, stop=True) as seen:
        assert net(images) is None  # stopped before the edited layer: nothing to be misread
    assert "a" in seen
    with (
        pytest.warns(UserWarning, match="nothing was edited: Net was not called"),
        edit(net, {"head": ablate()}),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="two changes for layer 'relu'"),
        edit(net, {"relu": ablate(), "relu#1": ablate()}),
    ):
        pass
    assert hooks_of(net) == 0


def test_patching_from_another_input(net: nn.Module, images: Tensor) -> None:
    """Patching every unit of a layer gives the other input's output; patching none changes nothing."""
    other = draw(6, 3, 5, 5, seed=9)
    with watch(net, {"a": Tap("conv2", reduce=keep)}) as seen:
        wanted = net(other)
    source = seen["a"].clone()
    for units in (None, range(5)):
        with edit(net, {"conv2": patch(units, seen["a"])}):
            assert torch.equal(net(images), wanted)
    with edit(net, {"conv2": patch(None, seen["a"][:1])}):
        assert torch.allclose(net(images), wanted[:1].expand(6, 2), atol=1e-6)
    assert torch.equal(seen["a"], source)  # the in-place ReLU behind it works on a copy
    with edit(net, {"conv2": patch([], seen["a"])}):
        assert torch.equal(net(images), net(images))
