"""What taps read is what a layer gave, and the model is left as it was."""

import copy
import gc
import itertools
import threading
import weakref

import pytest
import torch
from torch import Tensor, nn

from pellucid._checks import ConfigError, LayerNotFound
from pellucid.taps import (
    Seen,
    Tap,
    ablate,
    edit,
    find_layers,
    keep,
    layers,
    watch,
)
from tap_nets import Bomb, Net, Pairs, built, draw, hooks_of

pytestmark = pytest.mark.usefixtures("untouched_rng")


@pytest.fixture
def net() -> nn.Module:
    return built(Net)


@pytest.fixture
def images() -> Tensor:
    return draw(6, 3, 5, 5)


# -- watching ------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_what_the_layer_gave(images: Tensor) -> None:
    """An in-place ReLU right behind a tapped convolution reaches neither maps nor views nor their gradients."""
    ours, plain = built(lambda: Net(inplace=True)), built(lambda: Net(inplace=False))
    truth = plain.conv1(images)
    assert (truth - truth.relu()).abs().max() > 0.5  # what keeping the output itself would be wrong by
    taps = {
        "map": Tap("conv1", reduce=keep),
        "view": Tap("conv1", reduce=lambda x: x.flatten(1)[:, ::2]),
        "mean": Tap("conv1"),
        "input": Tap("relu#0", reduce=keep, side="in"),
        "last": Tap("relu#1", reduce=keep),
    }
    for grad in (False, True):
        with watch(ours, taps, grad=grad) as seen:
            ours(images)
        assert torch.equal(seen["map"], truth)
        assert torch.equal(seen["input"], truth)
        assert torch.equal(seen["view"], truth.flatten(1)[:, ::2])
        assert torch.equal(seen["mean"], truth.mean((2, 3)))
        assert torch.equal(seen["last"], plain.conv2(truth.relu()).relu())
        assert all(value.requires_grad is grad for value in seen.values())


def test_linear_followed_by_an_inplace_layer() -> None:
    model = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)))
    x = draw(5, 3)
    with watch(model, {"a": Tap("0")}) as seen, torch.no_grad():
        model(x)
    assert torch.equal(seen["a"], model[0](x).detach())


def test_gradients_through_what_was_seen(images: Tensor) -> None:
    """d(loss on seen)/d(input) through an in-place net equals that of the same net without in-place layers."""
    taps = {
        "square": Tap("conv1", reduce=lambda x: x.pow(2).mean((2, 3))),
        "map": Tap("conv2", reduce=keep),
        "act": Tap("relu#0"),
    }
    gradients = []
    for model in (built(lambda: Net(inplace=True)), built(lambda: Net(inplace=False))):
        x = images.clone().requires_grad_()
        with watch(model, taps, grad=True) as seen:
            model(x)
        loss = seen["square"].sum() + seen["map"].pow(2).sum() + seen["act"].sum()
        gradients.append(torch.autograd.grad(loss, x)[0])
        assert all(p.grad is None for p in model.parameters())
    x = images.clone().requires_grad_()
    first = model.conv1(x)
    slow = (
        first.pow(2).mean((2, 3)).sum()
        + model.conv2(first.relu()).pow(2).sum()
        + first.relu().mean((2, 3)).sum()
    )
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    assert torch.allclose(gradients[0], torch.autograd.grad(slow, x)[0], rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was(net: nn.Module, images: Tensor) -> None:
    net.train()
    net.head.eval()
    net.conv1.weight.requires_grad_(False)
    net.extra = nn.BatchNorm2d(4)
    state = copy.deepcopy(net.state_dict())
    before = net(images)
    for grad, stop in itertools.product((False, True), repeat=2):
        with watch(net, {"a": Tap("conv1"), "b": Tap("relu#1")}, grad=grad, stop=stop):
            after = net(images)
        assert after is None if stop else torch.equal(after, before)
        assert hooks_of(net) == 0
    assert [m.training for m in net.children()] == [True, True, True, False, True]
    assert [p.requires_grad for p in net.parameters()][:2] == [False, True]
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert "forward" not in vars(net)


def test_hooks_come_off_after_an_error_and_nothing_stale_remains(net: nn.Module, images: Tensor) -> None:
    with watch(net, {"a": Tap("conv1")}) as seen:
        net(images)
        assert "a" in seen
        with pytest.raises(RuntimeError):
            net(images[:, :2])
        assert "a" not in seen
        with pytest.raises(LayerNotFound, match="did not run in the last forward of Net"):
            seen["a"]
        net(images)
        assert "a" in seen
    with (
        pytest.raises(ZeroDivisionError) as caught,
        watch(net, {"a": Tap("conv1", reduce=lambda x: x / (1 // 0))}),
    ):
        net(images)
    assert any("layer 'conv1'" in note for note in caught.value.__notes__)
    with (
        pytest.raises(KeyboardInterrupt),
        watch(net, {"a": Tap("conv1")}, stop=True),
        edit(net, {"conv1": ablate()}),
    ):
        raise KeyboardInterrupt
    assert hooks_of(net) == 0


def test_a_layer_that_runs_twice_needs_its_call(net: nn.Module, images: Tensor) -> None:
    with watch(net, {"a": Tap("relu")}) as seen:
        with pytest.raises(
            LayerNotFound, match=r"'relu' runs 2 times in one forward of Net; say which: 'relu#0', 'relu#1'"
        ):
            net(images)
        assert not seen
    with watch(net, {"a": Tap("relu#0"), "b": Tap("relu", call=1), "c": Tap("relu#2")}) as seen:
        net(images)
    first = net.conv1(images).relu()
    assert torch.equal(seen["a"], first.mean((2, 3)))
    assert torch.equal(seen["b"], net.conv2(first).relu().mean((2, 3)))
    with pytest.raises(
        LayerNotFound, match=r"has no call 2 in the last forward of Net; it ran 2 times: 'relu#0'"
    ):
        seen["c"]


def test_bad_taps(net: nn.Module) -> None:
    with pytest.raises(ConfigError, match="counts from 0 and must agree"):
        Tap("relu#1", call=0)
    with pytest.raises(ConfigError, match="counts from 0"):
        Tap("relu", call=-1)
    with (
        pytest.raises(LayerNotFound, match="no layer 'conv3' in Net; nearest: "),
        watch(net, {"a": Tap("conv3")}),
    ):
        pass
    with pytest.raises(ConfigError, match="at least one tap"), watch(net, {}, stop=True):
        pass


def test_reading_says_why_there_is_nothing(net: nn.Module, images: Tensor) -> None:
    net.unused = nn.Identity()
    with watch(net, {"a": Tap("unused"), "b": Tap("conv1")}) as seen:
        with pytest.raises(LayerNotFound, match="no call of Net began inside the watch block"):
            seen["b"]
        net.forward(images)  # not a call: the hooks of the model itself do not run
        with pytest.raises(LayerNotFound, match=r"call the object that is watched, model\(inputs\)"):
            seen["b"]
        net(images)
        with pytest.raises(LayerNotFound, match="'unused' did not run in the last forward"):
            seen["a"]
        with pytest.raises(LayerNotFound, match=r"no tap 'c'; taps: \['a', 'b'\]"):
            seen["c"]
        assert seen.get("a") is None
        assert list(seen) == ["b"]
        assert seen.forwards == 1
    assert isinstance(seen, Seen)
    assert seen["b"].shape == (6, 4)


class Branch(nn.Module):
    """Runs its layer for positive inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


def test_nothing_is_left_from_the_forward_before() -> None:
    model = built(Branch)
    with watch(model, {"a": Tap("layer")}) as seen:
        model(torch.ones(1, 2))
        assert seen["a"].shape == (1, 2)
        model(-torch.ones(1, 2))
        with pytest.raises(LayerNotFound, match="a branch not taken"):
            seen["a"]


@pytest.mark.parametrize("grad", [False, True])
def test_nothing_waits_for_pythons_collector(grad: bool, images: Tensor) -> None:
    """Activations of a training step that outlived it until the next collection would cost as much as the step."""
    gc.collect()
    gc.disable()
    try:
        net = built(Net)
        with watch(net, {"first": Tap("conv2", reduce=keep)}, grad=grad) as seen:
            output = net(images)
        with edit(net, {"conv1": ablate([0])}), watch(net, {"first": Tap("conv2")}, stop=True):
            net(images)
        layers(net, images[:1])
        left = [weakref.ref(seen["first"]), weakref.ref(net)]
        del seen, output, net
        assert [ref() for ref in left] == [None, None]
    finally:
        gc.enable()


def test_the_model_itself_and_its_inputs(net: nn.Module, images: Tensor) -> None:
    with watch(net, {"logits": Tap(""), "pixels": Tap("", side="in", reduce=keep)}) as seen:
        logits = net(images)
    assert torch.equal(seen["logits"], logits)
    assert torch.equal(seen["pixels"], images)


def test_tuples_and_dicts() -> None:
    model, x = built(Pairs), draw(2, 4, 2)
    taps = {
        "states": Tap("lstm", item=0, reduce=keep),
        "last": Tap("lstm", item=-2, reduce=keep),
        "one": Tap("one", reduce=keep),
        "b": Tap("named", item=1, reduce=keep),
        "x": Tap("mix", side="in", item=0, reduce=keep),
        "scale": Tap("mix", side="in", item="scale", reduce=keep),
        "logits": Tap("", item="logits", reduce=keep),
    }
    with watch(model, taps) as seen:
        output = model(x)
    states = model.lstm(x)[0].detach()
    assert torch.equal(seen["states"], states)
    assert torch.equal(seen["last"], states)
    assert torch.equal(seen["one"], states + 1)
    assert torch.equal(seen["b"], (states + 1) * 3)
    assert torch.equal(seen["scale"], seen["b"])
    assert torch.equal(seen["x"], (states + 1) * 2)
    assert torch.equal(seen["logits"], output["logits"])


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (Tap("lstm"), r"layer 'lstm' is a tuple of \{0: \(2, 4, 3\), 1: tuple\}; say which tensor with Tap"),
        (Tap("named"), r"a Two of \{0: \(2, 4, 3\), 1: \(2, 4, 3\)\}; say which"),
        (Tap(""), r"a dict of \{'logits': .*; say which"),
        (Tap("", item="logit"), r"no tensor at item='logit'; it has a dict"),
        (Tap("named", item=2), r"no tensor at item=2"),
        (Tap("one", side="in", item=0), "is one tensor of shape .* leave item=0 out"),
        (Tap("mix", side="in"), r"input of layer 'mix' is a dict of \{0: .*'scale'"),
    ],
)
def test_which_tensor_is_meant(tap: Tap, message: str) -> None:
    model = built(Pairs)
    with pytest.raises(ConfigError, match=message), watch(model, {"a": tap}):
        model(draw(2, 4, 2))
    assert hooks_of(model) == 0


def test_blocks_inside_each_other(net: nn.Module, images: Tensor) -> None:
    with watch(net, {"a": Tap("conv1")}) as outer, watch(net, {"b": Tap("conv2")}) as inner:
        net(images)
    assert set(outer) == {"a"}
    assert set(inner) == {"b"}
    with watch(net, {"a": Tap("conv2"), "b": Tap("head")}) as outer:
        with watch(net, {"b": Tap("conv1")}, stop=True):
            assert net(images) is None
        with pytest.raises(LayerNotFound, match="stopped by another tap"):
            outer["a"]
        net(images)
        assert "a" in outer
        assert "b" in outer


def test_many_taps_at_one_place(net: nn.Module, images: Tensor) -> None:
    taps = {f"p{p}": Tap("conv1", reduce=lambda x, p=p: x.abs().pow(p).mean((2, 3))) for p in (1, 2, 3)}
    with watch(net, taps) as seen:
        net(images)
    assert torch.equal(seen["p2"], net.conv1(images).abs().pow(2).mean((2, 3)))
    with pytest.raises(ConfigError, match="must return a tensor, got float"), watch(
        net, {"a": Tap("conv1", reduce=lambda x: x.sum().item())}
    ):  # fmt: skip
        net(images)


def test_two_threads_are_refused(net: nn.Module, images: Tensor) -> None:
    raised: list[BaseException] = []
    inside, leave = threading.Event(), threading.Event()

    def wait(x: Tensor) -> Tensor:
        inside.set()
        leave.wait(10)
        return x

    def call() -> None:
        inside.wait(10)
        try:
            net(images)
        except ConfigError as error:
            raised.append(error)
        leave.set()

    other = threading.Thread(target=call)
    with watch(net, {"a": Tap("conv1", reduce=wait)}):
        other.start()
        net(images)
    other.join()
    assert "two threads call Net" in str(raised[0])


def test_replicas_are_refused(net: nn.Module, images: Tensor) -> None:
    replica = net._replicate_for_data_parallel()
    with watch(net, {"a": Tap("conv1")}), pytest.raises(ConfigError, match="DataParallel replicas"):
        replica(images)
    parallel = nn.DataParallel(net)
    parallel.device_ids = [0, 1]
    with (
        pytest.raises(ConfigError, match="DataParallel over 2 devices"),
        watch(parallel, {"a": Tap("conv1")}),
    ):
        pass


@pytest.mark.parametrize("stop", [False, True])
def test_activation_checkpointing_recomputes_the_same_graph(stop: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    model = built(Again)
    taps = {"a": Tap("body.1", reduce=lambda x: x.pow(3)), "b": Tap("body.0", reduce=torch.sin)}
    x = draw(5, 3).requires_grad_()
    with watch(model, taps, grad=True, stop=stop) as seen, edit(model, {"body.0": ablate([1])}):
        model(x)
        (got,) = torch.autograd.grad(seen["a"].sum() + seen["b"].sum(), x)
    hidden = model.body[0](x) * torch.tensor([1.0, 0.0, 1.0, 1.0])
    (want,) = torch.autograd.grad(hidden.tanh().pow(3).sum() + hidden.sin().sum(), x)
    assert torch.allclose(got, want, atol=1e-6)


def test_parametrised_and_frozen_layers(images: Tensor) -> None:
    model = built(Net).requires_grad_(False)
    with torch.random.fork_rng():
        nn.utils.parametrizations.weight_norm(model.conv1)
    assert not [name for name in find_layers(model, ["*"]) if "parametrizations" in name]
    x = images.clone().requires_grad_()
    with watch(model, {"a": Tap("conv1")}, grad=True, stop=True) as seen:
        model(x)
    seen["a"].sum().backward()
    assert x.grad is not None
    assert not any(p.requires_grad for p in model.conv2.parameters())
    assert [row.name for row in layers(model, images[:1])][:2] == ["", "conv1"]


# -- stopping ------------------------------------------------------------------------------------------------------


def test_stop_computes_nothing_behind_the_last_tap(images: Tensor) -> None:
    model = built(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), Bomb())
    )
    x = images.clone().requires_grad_()
    taps = {"a": Tap("1"), "b": Tap("2", reduce=keep), "c": Tap("2", side="in")}
    with watch(model, taps, stop=True, grad=True) as seen:
        for _ in range(3):
            assert model(x) is None
    full = model[:3](x)
    (got,) = torch.autograd.grad(seen["b"].pow(2).sum() + seen["a"].sum(), x, retain_graph=True)
    (want,) = torch.autograd.grad(full.pow(2).sum() + model[:2](x).mean((2, 3)).sum(), x)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(seen["b"], full)
    with pytest.raises(AssertionError, match="behind the last tap"):
        model(images)


def test_stop_at_an_input_and_at_the_ends(images: Tensor) -> None:
    model = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Bomb()))
    with watch(model, {"a": Tap("1", side="in")}, stop=True) as seen:
        assert model(images) is None
    assert torch.equal(seen["a"], model[0](images).mean((2, 3)))
    with watch(model, {"a": Tap("", side="in", reduce=keep)}, stop=True) as seen:
        assert model(images) is None
    assert torch.equal(seen["a"], images)
    whole = built(Net)
    with watch(whole, {"a": Tap(""), "b": Tap("relu#0")}, stop=True) as seen:
        logits = whole(images)  # nothing lies behind the output, so it is given
    assert torch.equal(seen["a"], logits)


def test_stop_at_a_named_call(net: nn.Module, images: Tensor) -> None:
    ran: list[str] = []
    handles = [m.register_forward_hook(lambda m, a, o, n=n: ran.append(n)) for n, m in net.named_children()]
    with watch(net, {"a": Tap("relu#1"), "b": Tap("conv1")}, stop=True) as seen:
        assert net(images) is None
    assert ran == ["conv1", "relu", "conv2", "relu"]
    ran.clear()
    with watch(net, {"a": Tap("relu#0")}, stop=True):
        assert net(images) is None
    assert ran == ["conv1", "relu"]
    ran.clear()
    with watch(net, {"a": Tap("conv2")}, stop=True):
        assert net(images) is None
    assert ran == ["conv1", "relu", "conv2"]
    assert torch.equal(seen["a"], net.conv2(net.conv1(images).relu()).relu().mean((2, 3)))
    for handle in handles:
        handle.remove()


def test_stop_looks_once_whether_a_layer_without_weights_runs_again(net: nn.Module, images: Tensor) -> None:
    with watch(net, {"a": Tap("relu")}, stop=True), pytest.raises(LayerNotFound, match="runs 2 times"):
        net(images)
    net.act = nn.Identity()
    net.conv2 = nn.Sequential(net.conv2, net.act)
    ran: list[str] = []
    handle = net.head.register_forward_hook(lambda m, a, o: ran.append("head"))
    with watch(net, {"a": Tap("act")}, stop=True) as seen:
        assert net(images) is None  # runs to its end to count
        first = seen["a"]
        assert net(images) is None
        assert torch.equal(seen["a"], first)
    handle.remove()
    assert ran == ["head"]


def test_stop_passes_a_model_that_catches_exceptions(images: Tensor) -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.conv(x)
            except Exception:
                raise AssertionError("the model saw the stop") from None

    model = built(Careful)
    own = model.forward
    model.forward = own  # an instance's own forward, as accelerate and others set
    with watch(model, {"a": Tap("conv")}, stop=True) as seen:
        assert model(images) is None
    assert seen["a"].shape == (6, 2)
    assert model.forward is own
