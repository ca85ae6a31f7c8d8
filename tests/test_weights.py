"""Weights are read without running code, fit whole or not at all, and have a name."""

import argparse
import collections
import copy
import hashlib
import os
import pathlib
import pickle
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from pellucid._checks import WeightsError
from pellucid.rng import rng
from pellucid.weights import StateDict, apply_weights, load_weights, weights_hash

pytestmark = pytest.mark.usefixtures("untouched_rng")


class Net(nn.Module):
    """A convolution, a batch norm and two linear layers that share their weight."""

    def __init__(self, *, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.head = nn.Linear(2, classes)
        self.tied = nn.Linear(2, classes)
        self.tied.weight = self.head.weight


def net(seed: int = 0, **options: int) -> Net:
    generator = rng(seed, "weights")
    with torch.random.fork_rng():
        model = Net(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.norm.running_mean.fill_(seed + 1.0)
    return model


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


STATE = net(7).state_dict()


# -- reading -------------------------------------------------------------------------------------------------------


def test_safetensors_and_checkpoints_give_the_same(tmp_path: Path) -> None:
    plain = {key: value.clone() for key, value in STATE.items()}
    save_file(plain, tmp_path / "a.safetensors")
    save_file(plain, tmp_path / "named_otherwise.pth")
    torch.save(STATE, tmp_path / "b.pth")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "named_otherwise.pth", "b.pth", "old.pth"):
        state = load_weights(tmp_path / name)
        assert state.keys() == STATE.keys(), name
        assert all(torch.equal(state[key], STATE[key]) for key in STATE), name
        assert (state.place, state.others, state.ignored) == ("", (), ())
        assert not any(value.requires_grad for value in state.values())


OTHER = {"x.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("content", "place", "others", "ignored"),
    [
        ({"state_dict": STATE, "epoch": 3}, "state_dict", (), ("epoch",)),
        ({"model": STATE, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, "model", (), ("optimizer",)),
        ({"model_state_dict": STATE, "loss": torch.tensor(0.5)}, "model_state_dict", (), ("loss",)),
        ({"net": STATE, "acc": 91.0}, "net", (), ("acc",)),
        ({"ema": STATE}, "ema", (), ()),
        ({"state_dict_ema": OTHER, "state_dict": STATE}, "state_dict", ("state_dict_ema",), ()),
        ({"model_ema": OTHER, "model": {"state_dict": STATE}}, "model > state_dict", ("model_ema",), ()),
        ({"epoch": 1, "my_network": STATE}, "my_network", (), ("epoch",)),
        ({**STATE, "epoch": 4, "best": 0.9}, "", (), ("epoch", "best")),
        ({"discriminator": OTHER, "step": 1, "weights": STATE}, "weights", (), ("step",)),
    ],
)
def test_usual_wrappings(content, place: str, others: tuple, ignored: tuple, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    state = load_weights(tmp_path / "a.pth")
    assert (state.place, state.others, state.ignored) == (place, others, ignored)
    assert state.keys() == STATE.keys()
    report = apply_weights(net(), state)
    assert any(f"taken from {place!r}" in note for note in report.notes) is bool(place)
    assert any("were not used" in note for note in report.notes) is bool(others)


def test_a_key_is_chosen(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": OTHER, "state_dict_ema": STATE, "generator": STATE, "critic": OTHER},
        tmp_path / "a.pth",
    )
    assert load_weights(tmp_path / "a.pth", key="state_dict_ema").keys() == STATE.keys()
    assert load_weights(tmp_path / "a.pth", key="generator").place == "generator"
    with pytest.raises(WeightsError, match=r"no key 'stat_dict'; nearest: \['state_dict'"):
        load_weights(tmp_path / "a.pth", key="stat_dict")
    with pytest.raises(WeightsError, match=r"the file holds weights under \['state_dict_ema'\] too"):
        apply_weights(net(), load_weights(tmp_path / "a.pth"))
    torch.save({"generator": STATE, "critic": OTHER}, tmp_path / "b.pth")
    with pytest.raises(
        WeightsError, match=r"under several keys, \['generator', 'critic'\]; choose with key="
    ):
        load_weights(tmp_path / "b.pth")


def test_harmless_extras_are_ignored(tmp_path: Path) -> None:
    extras = {
        "args": argparse.Namespace(
            lr=0.1, out=pathlib.Path("runs/1"), device=torch.device("cpu"), dtype=torch.float16
        ),
        "more": types.SimpleNamespace(a=[1, 2]),
        "best": np.float64(91.5),
        "flag": np.bool_(True),
        "step": np.int64(7),
        "history": np.arange(4.0),
        "name": np.str_("run"),
        "log": collections.defaultdict(list, {"loss": [1.0]}),
        "counts": collections.Counter("abc"),
        "none": None,
    }
    before = torch.serialization.get_safe_globals()
    for old in (False, True):
        torch.save(
            {"state_dict": STATE, **extras}, tmp_path / "a.pth", _use_new_zipfile_serialization=not old
        )
        assert load_weights(tmp_path / "a.pth").ignored == tuple(extras)
    assert torch.serialization.get_safe_globals() == before


class Custom:
    pass


class Malicious:
    """Runs a command as soon as an ordinary unpickler reads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "inside"])
def test_code_in_a_file_is_refused_and_does_not_run(how: str, tmp_path: Path) -> None:
    target, file = tmp_path / "executed", tmp_path / "a.pth"
    content = {"state_dict": STATE, "args": Malicious(target)}
    if how == "pickle":
        file.write_bytes(pickle.dumps(Malicious(target), protocol=2))
    elif how == "inside":
        torch.save({"state_dict": {**STATE, "evil": Malicious(target)}}, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(
        WeightsError, match=r"holds (posix|os|nt)\.system, which cannot be loaded without running code"
    ):
        load_weights(file)
    assert not target.exists()
    if how == "pickle":  # the file is what it claims to be
        pickle.loads(file.read_bytes())
        assert target.exists()


def test_other_classes_are_named(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "args": Custom()}, tmp_path / "a.pth")
    with pytest.raises(
        WeightsError, match=r"holds test_weights\.Custom, .*save its weights alone: torch\.save"
    ):
        load_weights(tmp_path / "a.pth")
    torch.save(net(), tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=r"holds test_weights\.Net"):
        load_weights(tmp_path / "b.pth")


def damaged(kind: str, folder: Path) -> Path:
    """A file that is no checkpoint, in one of many ways."""
    path = folder / f"{kind}.pth"
    torch.save(STATE, folder / "whole.pth")
    save_file({"a": torch.ones(100)}, folder / "whole.safetensors")
    whole = (folder / "whole.pth").read_bytes()
    tensors = (folder / "whole.safetensors").read_bytes()
    content = {
        "empty": b"",
        "text": b"not weights at all\n" * 10,
        "cut": whole[: len(whole) // 2],
        "cut pickle": pickle.dumps({"a": 1}, protocol=2)[:-4],
        "flipped": whole[:200] + bytes(b ^ 255 for b in whole[200:600]) + whole[600:],
        "keras": b"\x89HDF\r\n\x1a\n" + bytes(200),
        "numbers": pickle.dumps([1, 2], protocol=2),
        "cut safetensors": tensors[:100],
        "header alone": tensors[:8],
    }[kind]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "kind",
    ["empty", "text", "cut", "cut pickle", "flipped", "keras", "numbers", "cut safetensors", "header alone"],
)
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    path = damaged(kind, tmp_path)
    with pytest.raises(WeightsError, match=path.name) as caught:
        load_weights(path)
    assert len(str(caught.value)) < 400
    assert "weights_only" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        load_weights(path)


def test_other_files_are_called_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is empty \(0 bytes\)"):
        load_weights(damaged("empty", tmp_path))
    with pytest.raises(
        WeightsError, match=r"is not a checkpoint: it begins with b'not weights.*expected a safetens"
    ):
        load_weights(damaged("text", tmp_path))
    with pytest.raises(WeightsError, match="cut short"):
        load_weights(damaged("cut", tmp_path))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist; give a safetensors file or a torch checkpoint"):
        load_weights(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        load_weights(str(tmp_path))
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"a\.safetensors is damaged or no safetensors file"):
        load_weights(tmp_path / "a.safetensors")
    for number, content in enumerate([torch.ones(2), [torch.ones(2)], {"a": 1}, {1: torch.ones(2)}, {}]):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(WeightsError, match=r"not weights by name|no tensors by name"):
            load_weights(tmp_path / f"{number}.pth")
    torch.save({"a": torch.ones(3).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(WeightsError, match=r"quantised or sparse weights \('a'\)"):
        load_weights(tmp_path / "sparse.pth")


def test_torchscript_archives_are_named(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.ReLU()).save(tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="is a TorchScript archive; save its weights"):
        load_weights(tmp_path / "a.pt")


# -- fitting -------------------------------------------------------------------------------------------------------


def renamed(before: str, after: str = "") -> dict[str, Tensor]:
    return {before + key.removeprefix(after): value for key, value in STATE.items()}


@pytest.mark.parametrize(
    ("state", "prefix"),
    [
        (dict(STATE), ""),
        (renamed("module."), "module."),
        (renamed("_orig_mod."), ""),
        (renamed("module._orig_mod."), "module."),
        (renamed("model."), "model."),
        (renamed("backbone.body."), "backbone.body."),
        ({key.replace("conv.", "conv._fsdp_wrapped_module."): value for key, value in STATE.items()}, ""),
        ({**renamed("model."), "model.total_ops": torch.zeros(1)}, "model."),
        ({**renamed("model."), "total_params": torch.zeros(1)}, "model."),
    ],
)
def test_prefixes_come_off(state: dict[str, Tensor], prefix: str) -> None:
    model = net()
    report = apply_weights(model, state)
    assert same(model, STATE)
    assert (report.prefix, report.added) == (prefix, "")
    assert set(report.matched) == set(STATE)
    assert any(prefix in note for note in report.notes) or not prefix


def test_an_averaged_model_loads() -> None:
    model = net()
    report = apply_weights(model, {"n_averaged": torch.tensor(3), **renamed("module.")})
    assert same(model, STATE)
    assert (report.prefix, report.unexpected) == ("module.", ("n_averaged",))


def test_the_models_own_prefix_goes_on() -> None:
    holder = nn.ModuleDict({"inner": net()})
    report = apply_weights(holder, renamed("module."))
    assert (report.prefix, report.added) == ("module.", "inner.")
    assert same(holder["inner"], STATE)


def test_wrapped_models_are_seen_through() -> None:
    parallel = nn.DataParallel(net())
    apply_weights(parallel, STATE)
    assert same(parallel.module, STATE)


def test_every_key_that_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    state = dict(STATE)
    state["extra.weight"] = torch.zeros(2, 2)
    del state["norm.weight"]
    model = net(classes=5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError) as caught:
        apply_weights(model, state)
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "the checkpoint does not fit Net: keys 1 missing, 1 unexpected, 4 other shape; nothing was loaded"
    )
    assert "  missing: norm.weight [2]" in lines
    assert "  unexpected: extra.weight [2, 2]" in lines
    assert "  other shape: head.bias: the model has shape [5], the checkpoint [3]" in lines
    assert "number of classes" in lines[-1]
    assert same(model, before)


def test_long_lists_are_cut_with_their_counts() -> None:
    with pytest.raises(WeightsError) as caught:
        apply_weights(net(), {f"layer{i}.weight": torch.zeros(1) for i in range(100)})
    text = str(caught.value)
    assert "keys 10 missing, 100 unexpected, 0 other shape" in text
    assert "unexpected: and 90 more" in text
    assert len(text.splitlines()) < 26


def test_majority_prefix_leaves_the_rest_to_be_named() -> None:
    with pytest.raises(WeightsError, match=r"keys 0 missing, 1 unexpected, 0 other") as caught:
        apply_weights(net(), {**renamed("model."), "criterion.weight": torch.ones(3)})
    assert "unexpected: criterion.weight [3]" in str(caught.value)


def test_the_same_key_twice_is_refused() -> None:
    with pytest.raises(WeightsError, match="the same key twice"):
        apply_weights(net(), {**STATE, **renamed("_orig_mod.")})


def test_counters_and_tied_weights_may_be_absent() -> None:
    state = {k: v for k, v in STATE.items() if k not in ("norm.num_batches_tracked", "tied.weight")}
    state["relative_position_index"] = torch.zeros(4)
    model = net()
    model.norm.num_batches_tracked += 5
    report = apply_weights(model, state)
    assert set(report.missing) == {"norm.num_batches_tracked", "tied.weight"}
    assert report.unexpected == ("relative_position_index",)
    assert model.norm.num_batches_tracked == 5
    assert torch.equal(model.tied.weight, STATE["head.weight"])
    assert len(report.notes) == 2
    with pytest.raises(WeightsError, match="1 missing"):
        apply_weights(net(), {k: v for k, v in STATE.items() if k != "norm.running_var"})


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_said(half: torch.dtype) -> None:
    state = {k: v.to(half) if v.is_floating_point() else v for k, v in STATE.items()}
    model = net()
    report = apply_weights(model, state)
    assert report.upcast
    assert "Half-precision weights were widened" in report.notes[0]
    assert model.conv.weight.dtype is torch.float32
    assert torch.equal(model.conv.weight, STATE["conv.weight"].to(half).float())
    assert not apply_weights(net(), STATE).upcast
    report = apply_weights(net().half(), STATE)
    assert not report.upcast
    assert report.notes == ("Weights were rounded to the model's lower precision.",)
    assert not apply_weights(net().to(half), state).notes


def test_other_kinds_of_numbers_do_not_fit() -> None:
    with pytest.raises(
        WeightsError, match=r"conv\.bias: the model has torch\.float32, the checkpoint torch\.int8"
    ):
        apply_weights(net(), {**STATE, "conv.bias": torch.zeros(2, dtype=torch.int8)})
    with torch.random.fork_rng(), pytest.raises(WeightsError, match=r"'0\.weight' has no shape yet"):
        apply_weights(nn.Sequential(nn.LazyLinear(2)), STATE)


def test_modes_gradients_and_identity_stay() -> None:
    model = net().eval()
    model.conv.weight.requires_grad_(False)
    kept = model.head.weight
    apply_weights(model, STATE)
    assert not model.training
    assert not model.conv.weight.requires_grad
    assert model.head.weight is kept is model.tied.weight


# -- hashing -------------------------------------------------------------------------------------------------------


def slow_hash(model: nn.Module) -> str:
    """SHA-256 over the text and bytes of each tensor, put together by hand."""
    whole = b""
    for name, value in sorted(model.state_dict().items()):
        whole += f"{name}\n{value.dtype}\n{list(value.shape)}\n".encode() + value.detach().numpy().tobytes()
    return hashlib.sha256(whole).hexdigest()


def test_hash_agrees_with_its_slow_twin_and_sees_one_bit() -> None:
    model = net()
    first = weights_hash(model)
    assert first == slow_hash(model) == weights_hash(net()) == weights_hash(nn.DataParallel(net()))
    assert first == weights_hash(nn.ModuleDict({"_orig_mod": net()}))
    with torch.no_grad():
        model.conv.weight.view(-1).view(torch.int32)[3] ^= 1
    assert weights_hash(model) != first
    assert weights_hash(net().double()) != first
    assert weights_hash(net(classes=4)) != first
    weights_hash(net().bfloat16())
    strided = net()
    strided.conv.weight.data = strided.conv.weight.data.to(memory_format=torch.channels_last)
    assert weights_hash(strided) == first


def test_a_state_dict_behaves_as_a_dict() -> None:
    state = StateDict(STATE, place="model")
    assert dict(state).keys() == STATE.keys()
    assert StateDict({}).others == ()


# -- real files ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, width, 3, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width)


def cifar_resnet(n: int) -> nn.Module:
    """The keys and shapes of the CIFAR ResNet with parameter-free shortcuts; its forward is not needed here."""
    widths = (16, 16, 32, 64)
    parts = {"conv1": nn.Conv2d(3, 16, 3, bias=False), "bn1": nn.BatchNorm2d(16), "linear": nn.Linear(64, 10)}
    for i in (1, 2, 3):
        blocks = [Block(widths[i - 1] if b == 0 else widths[i], widths[i]) for b in range(n)]
        parts[f"layer{i}"] = nn.Sequential(*blocks)
    return nn.ModuleDict(parts)


@pytest.mark.data
@pytest.mark.parametrize(("name", "n"), [("resnet20-12fca82f.th", 3), ("resnet32-d509ac18.th", 5)])
def test_cifar_resnets(name: str, n: int, data_root: Path) -> None:
    state = load_weights(data_root / "weights" / "cifar10_resnet" / name)
    assert state.place == "state_dict"
    assert state.ignored == ("best_prec1",)
    with torch.random.fork_rng():
        model = cifar_resnet(n)
    report = apply_weights(model, state)
    assert report.prefix == "module."
    assert not report.missing or all(key.endswith("num_batches_tracked") for key in report.missing)
    assert torch.equal(model["conv1"].weight, state["module.conv1.weight"])
    with torch.random.fork_rng(), pytest.raises(WeightsError, match="does not fit ModuleDict"):
        apply_weights(cifar_resnet(9), state)


@pytest.mark.data
def test_half_precision_mobilenet(data_root: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng():
        model = torchvision.models.mobilenet_v2()
    report = apply_weights(
        model, load_weights(data_root / "weights/imagenet_mobilenet/mobilenet_v2_1.0_224.pth")
    )
    assert report.upcast
    assert len(report.matched) == 262
    assert all(p.dtype is torch.float32 for p in model.parameters())


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist.pth", "fashion_mnist.pth"])
def test_robust_nets(name: str, data_root: Path) -> None:
    with torch.random.fork_rng():
        layers = [nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))
    report = apply_weights(model, load_weights(data_root / "weights" / "robust_small" / name))
    assert len(report.matched) == 8
    assert report.notes == ()
