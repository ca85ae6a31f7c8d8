"""Layers by name, their units, and the reduction to one number a unit."""

import collections
import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pellucid._checks import ConfigError, LayerNotFound
from pellucid.taps import (
    LayerInfo,
    Tap,
    activation_layers,
    find_layers,
    layers,
    unit_axis_of,
    unit_mean,
    watch,
)
from pellucid.taps.find import walk
from tap_nets import Net, Pairs, built, draw, hooks_of

pytestmark = pytest.mark.usefixtures("untouched_rng")


@pytest.fixture
def net() -> nn.Module:
    return built(Net)


@pytest.fixture
def images() -> Tensor:
    return draw(6, 3, 5, 5)


# -- walking -------------------------------------------------------------------------------------------------------


def test_the_quick_walk_is_the_one_of_torch() -> None:
    shared = built(nn.Linear, 2, 2)
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared, built(Net), built(Pairs))
    model.register_module("twice", shared)
    model.register_module("none", None)
    slow = list(model.named_modules(remove_duplicate=False))
    assert [(name, id(module)) for name, module in walk(model)] == [(n, id(m)) for n, m in slow]


# -- reductions ----------------------------------------------------------------------------------------------------


def slow_mean(activation: Tensor, axis: int) -> Tensor:
    """r[b, u]: the mean of every entry with that batch and unit index, in float64, one entry at a time."""
    batch, units = activation.shape[0], activation.shape[axis]
    total, count = torch.zeros(batch, units, dtype=torch.float64), 0
    for place in itertools.product(*(range(n) for n in activation.shape)):
        total[place[0], place[axis]] += activation[place].double()
        count += 1
    return total / (count / (batch * units))


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=5), data=st.data())
def test_reduction_agrees_with_its_slow_twin(shape: list[int], data: st.DataObject) -> None:
    activation = draw(*shape, dtype=torch.float64)
    given_axis = data.draw(st.none() | st.integers(1, len(shape) - 1) | st.integers(1 - len(shape), -1))
    axis = unit_axis_of(len(shape), given_axis)
    reduced = unit_mean(activation, given_axis)
    assert torch.allclose(reduced, slow_mean(activation, axis), atol=1e-12)
    assert reduced.untyped_storage().data_ptr() != activation.untyped_storage().data_ptr()


@pytest.mark.parametrize(("ndim", "axis"), [(2, 1), (3, 2), (4, 1), (5, 1)])
def test_unit_axis_by_rank(ndim: int, axis: int) -> None:
    assert unit_axis_of(ndim) == axis
    assert unit_axis_of(ndim, -1) == ndim - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    activation = torch.full((1, 2, 64, 64), 1.0 / 3.0, dtype=dtype)
    activation[0, 1] = 40000.0  # a sum in half precision overflows, or stops growing
    reduced = unit_mean(activation)
    assert reduced.dtype is dtype
    assert torch.equal(reduced[0], activation[0, :, 0, 0])


@pytest.mark.parametrize("bad", [0, 4, -4, 7])
def test_unit_axis_out_of_range(bad: int) -> None:
    with pytest.raises(ConfigError, match=r"must be one of 1\.\.3"):
        unit_axis_of(4, bad)


def test_what_has_no_units_is_refused(images: Tensor) -> None:
    with pytest.raises(ConfigError, match="batch axis and a unit axis"):
        unit_mean(torch.zeros(3))
    with pytest.raises(ConfigError, match="floating point"):
        unit_mean(torch.zeros(3, 2, dtype=torch.int64))
    flat = nn.Sequential(nn.Flatten(0))
    with (
        watch(flat, {"a": Tap("0")}),
        pytest.raises(ConfigError, match=r"output of layer '0', of shape \(450,\)"),
    ):
        flat(images)
    assert hooks_of(flat) == 0


# -- finding -------------------------------------------------------------------------------------------------------


def nested() -> nn.Module:
    block = lambda: nn.ModuleDict({"conv": nn.Conv2d(2, 2, 1), "act": nn.ReLU()})  # noqa: E731
    return built(lambda: nn.ModuleDict({"stem": block(), "layer1": nn.ModuleList([block(), block()])}))


def test_globs_and_names_in_model_order() -> None:
    model = nested()
    assert find_layers(model, ["layer1.*.act", "stem.conv"]) == ["stem.conv", "layer1.0.act", "layer1.1.act"]
    assert find_layers(model, ["*.act", "stem.act"]) == ["stem.act", "layer1.0.act", "layer1.1.act"]
    assert find_layers(model, [""]) == [""]
    assert "" not in find_layers(model, ["*"])
    assert find_layers(model, "stem.act") == ["stem.act"]
    assert find_layers(model, ["stem.act#1", "stem.act#0", "st*"]) == [
        "stem", "stem.conv", "stem.act", "stem.act#0", "stem.act#1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["layer1.2.act"], r"no layer 'layer1\.2\.act' in ModuleDict; nearest: \['layer1\.[01]\.act'"),
        (["layer9.*"], r"no layer matches 'layer9\.\*' in ModuleDict; nearest: \["),
        ([], "give a name or a glob"),
        (["stem.act", "nothing#1"], "no layer 'nothing' in"),
    ],
)
def test_no_match_names_the_nearest(patterns: list[str], message: str) -> None:
    with pytest.raises(LayerNotFound, match=message):
        find_layers(nested(), patterns)


def test_a_module_under_two_names_is_one_layer() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(collections.OrderedDict(a=shared, b=nn.Identity(), c=shared))
    assert find_layers(model, ["c", "a"]) == ["a"]
    assert find_layers(model, ["*"]) == ["a", "b"]
    with watch(model, {"one": Tap("c#0"), "two": Tap("c", call=1)}) as seen:
        model(torch.tensor([[-1.0, 2.0]]))
    assert seen["one"].tolist() == seen["two"].tolist() == [[0.0, 2.0]]


def test_activation_layers_by_type(net: nn.Module) -> None:
    assert activation_layers(net) == ["relu"]
    assert activation_layers(net, types=(nn.Conv2d,)) == ["conv1", "conv2"]
    model = nn.Sequential(nn.Flatten(), nn.GELU(), nn.Softmax(-1), nn.SiLU(), nn.Sequential(nn.Tanh()))
    assert activation_layers(model) == ["1", "3", "4.0"]


# -- listing -------------------------------------------------------------------------------------------------------


def test_layers_lists_every_call(net: nn.Module, images: Tensor) -> None:
    net.unused = built(nn.Linear, 2, 2)
    net.norm = nn.BatchNorm1d(2)
    net.head = nn.Sequential(net.head, net.norm, nn.Dropout(0.5))
    net.train()
    net.conv1.eval()
    state = copy.deepcopy(net.state_dict())
    rows = layers(net, images[:1])
    assert rows[0] == LayerInfo("", "Net", (2,), 2, 1, 1)
    table = {row.name: row for row in rows}
    assert table["conv2"] == LayerInfo("conv2", "Conv2d", (5, 5, 5), 5, 1, 1)
    assert table["relu#0"] == LayerInfo("relu#0", "ReLU", (4, 5, 5), 4, 1, 2)
    assert table["relu#1"].units == 5
    assert table["unused"] == LayerInfo("unused", "Linear", (), 0, None, 0)
    assert [row.name for row in rows][:6] == ["", "conv1", "conv2", "relu#0", "relu#1", "head"]
    assert net.training
    assert not net.conv1.training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert hooks_of(net) == 0
    taps = {row.name: Tap(row.name) for row in rows if row.units}
    with watch(net.eval(), taps) as seen:
        net(images)
    assert {name: value.shape[1] for name, value in seen.items()} == {
        r.name: r.units for r in rows if r.units
    }


def test_layers_of_tuples_and_after_an_error(net: nn.Module, images: Tensor) -> None:
    table = {row.name: row for row in layers(built(Pairs), (draw(1, 4, 2),))}
    assert (table["lstm"].units, table["lstm"].calls) == (0, 1)
    assert table["one"] == LayerInfo("one", "One", (4, 3), 3, 2, 1)
    net.train()
    with pytest.raises(RuntimeError):
        layers(net, images[:, :2])
    assert net.training
    assert hooks_of(net) == 0


def test_layers_borrows_the_random_state() -> None:
    """A layer that draws in evaluation mode; the fixture compares the global generator."""

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    assert [row.units for row in layers(nn.Sequential(Noise()), torch.ones(1, 3))] == [3, 3]
