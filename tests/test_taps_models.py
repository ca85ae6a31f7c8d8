"""Taps on wrapped, compiled, fused, scripted and well-known networks."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import swa_utils

from pellucid._checks import ConfigError, LayerNotFound
from pellucid.taps import (
    LayerInfo,
    Tap,
    ablate,
    activation_layers,
    edit,
    find_layers,
    keep,
    layers,
    set_mean,
    unwrap,
    watch,
)
from tap_nets import Net, Wrapper, built, draw, find_module, hooks_of

pytestmark = pytest.mark.usefixtures("untouched_rng")


@pytest.fixture
def net() -> nn.Module:
    return built(Net)


@pytest.fixture
def images() -> Tensor:
    return draw(6, 3, 5, 5)


@pytest.mark.parametrize("wrap", [
    nn.DataParallel,
    swa_utils.AveragedModel,
    lambda m: Wrapper("_fsdp_wrapped_module", m),
    lambda m: nn.DataParallel(Wrapper("_fsdp_wrapped_module", m)),
])  # fmt: skip
def test_wrappers_are_seen_through(wrap, net: nn.Module, images: Tensor) -> None:
    with watch(net, {"a": Tap("conv2")}) as seen:
        net(images)
    net.conv1 = Wrapper("_checkpoint_wrapped_module", net.conv1)
    wrapped = wrap(net)
    net = unwrap(wrapped)  # averaging keeps a copy
    assert type(net) is Net
    assert find_layers(wrapped, ["conv*"]) == ["conv1", "conv2"]
    taps = {"a": Tap("conv2"), "b": Tap("module.conv1._checkpoint_wrapped_module"), "c": Tap("conv1")}
    before = seen["a"]
    with watch(wrapped, taps) as seen:
        wrapped(images)
    assert torch.equal(seen["a"], before)
    assert torch.equal(seen["b"], seen["c"])
    assert type(find_module(wrapped, "conv1")) is nn.Conv2d


@pytest.mark.slow
def test_ddp_is_seen_through(net: nn.Module, images: Tensor, tmp_path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        ddp = nn.parallel.DistributedDataParallel(net)
        with watch(ddp, {"a": Tap("module.conv1")}, grad=True) as seen:
            loss = ddp(images).sum() + seen["a"].sum()
        loss.backward()
        assert net.conv1.weight.grad.abs().sum() > 0
        with torch.no_grad(), watch(ddp, {"b": Tap("conv1")}, stop=True) as again:
            assert ddp(images) is None
        assert torch.equal(again["b"], seen["a"].detach())
        with (
            pytest.raises(ConfigError, match="must finish its forward"),
            watch(ddp, {"a": Tap("")}, stop=True, grad=True),
        ):
            pass
    finally:
        dist.destroy_process_group()


# -- compiled, fused, scripted, and real architectures ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "method", "part"])
def test_compiled_models_run_uncompiled(how: str, images: Tensor) -> None:
    net = built(Net)
    want = net(images)
    model = net
    if how == "whole":
        model = torch.compile(net, backend="eager")
    elif how == "method":
        net.compile(backend="eager")
    else:
        net.conv1 = torch.compile(net.conv1, backend="eager")
    model(images)  # the graph is made before there are hooks
    taps = {"a": Tap("conv1"), "b": Tap("relu#0", side="in")}
    warned = pytest.warns(UserWarning, match="Net is compiled; inside this block it runs uncompiled")
    with warned, watch(model, taps) as seen:
        model(images)
    assert torch.equal(seen["a"], unwrap(find_module(net, "conv1"))(images).mean((2, 3)))
    with pytest.warns(UserWarning, match="is compiled"), edit(model, {"": ablate()}):
        assert torch.equal(model(images), torch.zeros(6, 2))
    with pytest.warns(UserWarning, match="is compiled"), watch(model, {"a": Tap("conv1")}, stop=True):
        assert model(images) is None
    assert torch.allclose(model(images), want)
    assert hooks_of(net) == 0
    if (
        how == "whole"
    ):  # the plain model watched, its compiled copy called: nothing read, nothing edited, and said so
        with watch(net, {"a": Tap("conv1")}) as seen:
            model(images)
            with pytest.raises(LayerNotFound, match="a compiled copy of the model"):
                seen["a"]
        with edit(net, {"conv1": ablate()}), pytest.raises(LayerNotFound, match="was not applied"):
            model(images)


def encoder(norm_first: bool = False) -> nn.Module:
    layer = lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)  # noqa: E731
    model = nn.TransformerEncoder(layer(), 2, enable_nested_tensor=not norm_first)
    return nn.Sequential(model).eval()


def test_fused_transformer_layers_are_read(untouched_rng: None) -> None:
    model, x = built(encoder), draw(2, 3, 8)
    taps = {
        "hidden": Tap("0.layers.1.linear1", reduce=keep),
        "attention": Tap("0.layers.0.self_attn", item=0),
    }
    with torch.no_grad(), watch(model, taps) as seen:
        output = model(x)
    with torch.no_grad():
        fused = model(x)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.allclose(output, fused, atol=1e-5)
    assert seen["hidden"].shape == (2, 3, 16)
    assert seen["attention"].shape == (2, 8)
    with (
        pytest.raises(
            ConfigError, match=r"'0.layers.0.self_attn.out_proj' is never called.*name '0.layers.0.self_attn'"
        ),
        watch(model, {"a": Tap("0.layers.0.self_attn.out_proj")}),
    ):
        pass
    table = {row.name: row for row in layers(model, x)}
    assert table["0.layers.1.linear1"].units == 16
    assert table["0.layers.1.self_attn.out_proj"].calls == 0


def test_padding_masks_take_the_unfused_path() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(x.shape[:2], dtype=torch.bool)
            mask[:, -1] = True
            return self.encoder(x, src_key_padding_mask=mask)

    model, x = built(Masked).eval(), draw(2, 3, 8)
    with torch.no_grad(), watch(model, {"a": Tap("encoder.layers.0.linear1")}) as seen:
        model(x)
    assert seen["a"].shape == (2, 16)


def test_torchscript_is_refused(images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(built(Net))
    with (
        pytest.raises(ConfigError, match="is TorchScript, which takes no hooks"),
        watch(scripted, {"a": Tap("conv1")}),
    ):
        pass
    holder = nn.Sequential(scripted)
    with watch(holder, {"a": Tap("")}) as seen:
        holder(images)
    assert seen["a"].shape == (6, 2)
    with pytest.raises(ConfigError, match="'0' is TorchScript"), edit(holder, {"0": ablate()}):
        pass
    assert layers(holder, images)[0].units == 2


def test_vision_transformer_of_timm() -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    x = draw(2, 3, 32, 32)
    names = activation_layers(model)
    assert names == ["blocks.0.mlp.act", "blocks.1.mlp.act"]
    with (
        torch.no_grad(),
        watch(model, {n: Tap(n) for n in names} | {"map": Tap(names[0], reduce=keep)}) as seen,
    ):
        model(x)
    assert seen["map"].shape == (2, 5, 768)
    assert torch.allclose(seen[names[0]], seen["map"].mean(1))
    with (
        torch.no_grad(),
        edit(model, {"blocks.1": set_mean([0, 5], [1.0, 2.0])}),
        watch(model, {"a": Tap("norm", side="in")}) as seen,
    ):
        model(x)
    assert torch.allclose(seen["a"][:, [0, 5]], torch.tensor([[1.0, 2.0]]).expand(2, 2))
    assert {row.name: row.unit_axis for row in layers(model, x)}["blocks.0.mlp.act"] == 2


def test_residual_network_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng():
        model = torchvision.models.resnet18(num_classes=4).eval()
    x = draw(1, 3, 32, 32)
    rows = [row for row in layers(model, x) if row.type == "ReLU"]
    assert len(rows) == 17
    assert rows[-1] == LayerInfo("layer4.1.relu#1", "ReLU", (512, 1, 1), 512, 1, 2)
    with (
        torch.no_grad(),
        watch(model, {row.name: Tap(row.name) for row in rows} | {"gap": Tap("avgpool")}) as seen,
    ):
        model(x)
    assert torch.allclose(seen["layer4.1.relu#1"], seen["gap"], atol=1e-6)
    assert all(value.min() >= 0 for value in seen.values())


@settings(max_examples=15, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["conv", "relu", "norm", "pool"]), min_size=1, max_size=5),
    inplace=st.booleans(),
    grad=st.booleans(),
)
def test_any_stack_is_read_as_it_runs(kinds: list[str], inplace: bool, grad: bool) -> None:
    """Planted truth: run a stack layer by layer on copies; taps on the whole must read the same."""
    make = {
        "conv": lambda: nn.Conv2d(3, 3, 3, padding=1),
        "relu": lambda: nn.ReLU(inplace=inplace),
        "norm": lambda: nn.BatchNorm2d(3),
        "pool": lambda: nn.MaxPool2d(2, 1, padding=1),
    }
    model = built(lambda: nn.Sequential(*(make[kind]() for kind in kinds))).eval()
    x = draw(2, 3, 4, 4)
    want = [x]
    for layer in model:
        want.append(layer(want[-1].clone()))
    taps = {
        (side, i): Tap(str(i), reduce=keep, side=side) for i in range(len(kinds)) for side in ("in", "out")
    }
    with watch(model, {str(k): v for k, v in taps.items()}, grad=grad) as seen:
        model(x.clone())
    for side, i in taps:
        assert torch.equal(seen[str((side, i))], want[i + (side == "out")])
    last = str(len(kinds) - 1)
    with watch(model, {"a": Tap(last)}, stop=True, grad=grad) as seen:
        model(x.clone())
    assert torch.equal(seen["a"], want[-1].mean((2, 3)))
    assert hooks_of(model) == 0
