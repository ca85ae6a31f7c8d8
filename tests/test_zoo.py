"""The zoo: shapes, names that taps can use, keys of the published weights, and what those weights reach."""

import pytest
import torch
from torch import nn

from pellucid import zoo
from pellucid._checks import ConfigError
from pellucid.data import open_source
from pellucid.preprocess import normalize
from pellucid.taps import Tap, activation_layers, layers, watch
from pellucid.weights import apply_weights, load_weights

BUILDERS = {
    "mlp": (lambda **k: zoo.mlp(image_size=16, in_channels=3, **k), 16),
    "conv_net": (lambda **k: zoo.conv_net(in_channels=3, **k), 16),
    "vit": (lambda **k: zoo.vit(image_size=16, **k), 16),
    "resnet8": (zoo.resnet8, 16),
    "resnet20": (zoo.resnet20, 32),
}


@pytest.fixture(params=BUILDERS)
def net(request):
    build, side = BUILDERS[request.param]
    torch.manual_seed(0)
    return build(classes=7).eval(), torch.rand(2, 3, side, side)


def test_logits_have_the_asked_classes(net) -> None:
    model, x = net
    assert model(x).shape == (2, 7)


def test_every_activation_is_its_own_module_run_once(net) -> None:
    model, x = net
    names = activation_layers(model)
    assert names
    rows = {row.name: row for row in layers(model, x)}
    assert set(names) <= set(rows), "an activation that never runs, or runs several times"
    assert all(not getattr(model.get_submodule(name), "inplace", False) for name in names)


def test_taps_read_what_the_network_computes(net) -> None:
    model, x = net
    name = activation_layers(model)[-1]
    with watch(model, {"late": Tap(name), "logits": Tap("")}) as seen:
        output = model(x)
    assert torch.equal(seen["logits"], output)
    assert seen["late"].shape[0] == 2 and seen["late"].ndim == 2


def test_rows_do_not_depend_on_their_batch(net) -> None:
    model, x = net
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(8, 75_290), (20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)],
)
def test_resnet_has_the_published_number_of_parameters(depth: int, parameters: int) -> None:
    """0.27, 0.46, 0.66 and 0.85 M of He et al., table 6; counted again from n blocks a stage."""
    model = zoo.resnet(depth)
    assert sum(p.numel() for p in model.parameters()) == parameters
    n = (depth - 2) // 6
    convolutions = 9 * (3 * 16 + 2 * n * 16**2)
    convolutions += 9 * (16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2)
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    assert convolutions + norms + 64 * 10 + 10 == parameters
    named = {8: zoo.resnet8, 20: zoo.resnet20, 32: zoo.resnet32, 44: zoo.resnet44, 56: zoo.resnet56}
    assert named[depth]().state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("widths", [(16, 32, 64), (8, 16, 32), (4, 7, 7)])
def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides(widths) -> None:
    """Option A, written again with loops: with the residual branch at zero a block is ReLU of its shortcut."""
    block = zoo.resnet8(widths=widths).layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, widths[0], 6, 6)
    y = block.eval()(x)
    before = (widths[1] - widths[0]) // 2
    expected = torch.zeros(2, widths[1], 3, 3)
    for channel in range(widths[0]):
        for row in range(3):
            for column in range(3):
                value = x[:, channel, 2 * row, 2 * column]
                expected[:, before + channel, row, column] = value.clamp(min=0)
    assert torch.equal(y, expected)


def test_vit_attends_as_the_formula_says() -> None:
    """softmax(q k^T / sqrt(d)) v for each head, with loops in float64."""
    attention = zoo.vit(dim=8, heads=2, depth=1, image_size=8).blocks[0].attn.double()
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    qkv = attention.qkv(x)[0]
    heads = []
    for head in range(2):
        q, k, v = (qkv[:, part * 8 + head * 4 : part * 8 + head * 4 + 4] for part in range(3))
        rows = []
        for token in range(4):
            weights = torch.stack([q[token] @ k[other] / 2.0 for other in range(4)]).exp()
            rows.append(sum(w * v[other] for other, w in enumerate(weights / weights.sum())))
        heads.append(torch.stack(rows))
    torch.testing.assert_close(attention(x)[0], attention.proj(torch.cat(heads, 1)))


def test_vit_tokens_are_places_of_the_image() -> None:
    model = zoo.vit(image_size=16, patch=4, in_channels=1, depth=1, activation=nn.ReLU)
    x = torch.zeros(1, 1, 16, 16)
    x[0, 0, 8:12, 4:8] = 1  # row 2, column 1 of 4 x 4 patches
    with watch(model, {"tokens": Tap("patches", reduce=lambda a: a.flatten(2).transpose(1, 2))}) as seen:
        model(x)
        lit = seen["tokens"].clone()
        model(torch.zeros_like(x))
    changed = (lit != seen["tokens"]).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [2 * 4 + 1]


def test_conv_net_is_the_network_of_the_digits_study() -> None:
    kinds = [type(m).__name__ for m in zoo.conv_net()]
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds == [*block, *block, "MaxPool2d", *block, "AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert [c.out_channels for c in zoo.conv_net() if isinstance(c, nn.Conv2d)] == [16, 32, 64]
    assert zoo.conv_net()(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_dropout_and_batch_norm_are_there_only_when_asked() -> None:
    kinds = {type(m) for m in [*zoo.mlp(dropout=0.1), *zoo.conv_net(dropout=0.1, batch_norm=False)]}
    assert nn.Dropout in kinds and nn.BatchNorm2d not in kinds
    assert not any(isinstance(m, nn.Dropout) for m in [*zoo.mlp(), *zoo.conv_net()])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: zoo.resnet(18), r"depth of 6n \+ 2"),
        (lambda: zoo.resnet(20, widths=(16, 32)), "three widths"),
        (lambda: zoo.resnet(20, widths=(64, 32, 16)), "do not fall"),
        (lambda: zoo.vit(image_size=30), "multiple of patch"),
        (lambda: zoo.vit(heads=0), "heads of at least 1"),
        (lambda: zoo.conv_net(widths=()), "at least one block"),
        (lambda: zoo.conv_net(pool_after=(4,)), r"blocks 1 to 3, got \[4\]"),
        (lambda: zoo.mlp(hidden=(0,)), "at least 1"),
    ],
)
def test_bad_sizes_are_explained(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


# -- the published CIFAR-10 weights --------------------------------------------------------------------------

WEIGHTS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th"}


def published(data_root, depth: int) -> nn.Module:
    model = zoo.resnet(depth)
    apply_weights(model, load_weights(data_root / "weights" / "cifar10_resnet" / WEIGHTS[depth]))
    normalize(model, zoo.CIFAR_RESNET_MEAN, zoo.CIFAR_RESNET_STD)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, source) -> float:
    correct = sum(int((model(b.inputs).argmax(1) == b.targets).sum()) for b in source.batches(250))
    return 100 * correct / len(source)


@pytest.mark.data
def test_published_weights_load_and_classify_lossless_images(data_root) -> None:
    source = open_source(f"cifar10:{data_root / 'cifar10'}?images=lossless", split="train", length=500)
    assert accuracy(published(data_root, 20), source) > 99


@pytest.mark.data
@pytest.mark.slow
def test_resnet20_reaches_its_published_accuracy(data_root) -> None:
    """81.0 +- 0.2 % on the JPEG test set and 99.8 % on the lossless training images, all of them."""
    model, root = published(data_root, 20), data_root / "cifar10"
    train = open_source(f"cifar10:{root}?images=lossless", split="train")
    test = open_source(f"cifar10:{root}?images=jpeg", split="test")
    assert (len(train), len(test)) == (4000, 10000)
    assert accuracy(model, train) == pytest.approx(99.8, abs=0.1)
    assert accuracy(model, test) == pytest.approx(81.0, abs=0.2)


@pytest.mark.data
@pytest.mark.slow
def test_resnet32_reaches_its_published_accuracy(data_root) -> None:
    """82.6 % and 100.0 %; on 1,000 of the test images, whose standard error is 1.2 %."""
    model, root = published(data_root, 32), data_root / "cifar10"
    train = open_source(f"cifar10:{root}?images=lossless", split="train", length=500)
    test = open_source(f"cifar10:{root}?images=jpeg", split="test", length=1000)
    assert accuracy(model, train) == 100.0
    assert accuracy(model, test) == pytest.approx(82.6, abs=3.0)
