"""Sizes and normalisation as users write them, and the hook that normalises."""

import pytest
import torch
from torch import nn

from pellucid._checks import ConfigError, DataError
from pellucid.preprocess import NAMED, Preprocessing, normalize, parse_normalize, parse_size
from pellucid.rng import rng

pytestmark = pytest.mark.usefixtures("untouched_rng")


class Kept(nn.Module):
    """Returns what reaches its forward."""

    def forward(self, images):
        return images


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=rng(0))


def test_normalize_against_loops():
    model, x = Kept(), images(2, 3, 4, 5)
    mean, std = NAMED["imagenet"]
    handle = normalize(model, mean, std)
    found = model(x)
    for n in range(2):
        for c in range(3):
            for i in range(4):
                for j in range(5):
                    expected = (x[n, c, i, j].double().item() - mean[c]) / std[c]
                    assert found[n, c, i, j].item() == pytest.approx(expected, abs=1e-5)
    handle.remove()
    assert model(x) is x


def test_layer_names_and_state_stay():
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    names, state = [name for name, _ in model.named_modules()], model.state_dict()
    handle = normalize(model, (0.5,), (0.5,))
    assert [name for name, _ in model.named_modules()] == names
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == {
        key: value.data_ptr() for key, value in state.items()
    }
    assert model.training
    handle.remove()
    assert not model._forward_pre_hooks


def test_keyword_inputs_and_further_arguments():
    class Two(nn.Module):
        def forward(self, images, scale=1.0):
            return images * scale

    model, x = Two(), images(2, 1, 3, 3)
    normalize(model, (0.5,), (0.25,))
    expected = (x - 0.5) / 0.25
    assert torch.equal(model(x), expected)
    assert torch.equal(model(images=x), expected)
    assert torch.equal(model(x, 2.0), expected * 2) and torch.equal(model(x, scale=2.0), expected * 2)
    with pytest.raises(DataError, match="Two got no positional input"):
        model(scale=2.0, images=x)


def test_autocast_and_other_precisions():
    model, x = Kept(), images(2, 3, 4, 4)
    normalize(model, *NAMED["imagenet"])
    plain = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model(x)
    assert inside.dtype == torch.float32 and torch.equal(inside, plain)
    assert model(x.double()).dtype == torch.float64
    assert model(x.bfloat16()).dtype == torch.bfloat16
    assert model(x.to("meta")).is_meta


def test_gradients_reach_the_image():
    model, x = Kept(), images(1, 1, 2, 2).requires_grad_()
    normalize(model, (0.5,), (0.25,))
    model(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 4.0))


def test_tables_and_sequences():
    model = Kept()
    normalize(model, (1.0, 2.0), (1.0, 2.0))
    assert model(torch.tensor([[3.0, 4.0]])).tolist() == [[2.0, 1.0]]
    assert model(torch.ones(1, 2, 5)).shape == (1, 2, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.rand(2, 1, 4, 4, generator=rng(0)), "has 3 channels but the input has 1"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "expects floating images"),
        (torch.zeros(3), r"got torch.float32 of shape \(3,\)"),
        ("image.png", "got str"),
    ],
)
def test_wrong_inputs(given, message):
    model = Kept()
    normalize(model, *NAMED["imagenet"])
    with pytest.raises(DataError, match=message):
        model(given)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.5, 0.5), "as many means as stds, got 1 and 2"),
        ((), (), "as many means as stds"),
        ((0.5,), (0.0,), "stds above 0"),
        ((0.5,), (float("nan"),), "finite"),
        ((float("inf"),), (1.0,), "finite"),
    ],
)
def test_wrong_statistics(mean, std, message):
    with pytest.raises(ConfigError, match=message):
        normalize(Kept(), mean, std)
    with pytest.raises(ConfigError, match=message):
        Preprocessing(mean=mean, std=std)


def test_parse_normalize():
    assert (
        parse_normalize("0.485,0.456,0.406/0.229,0.224,0.225")
        == NAMED["imagenet"]
        == parse_normalize("ImageNet")
    )
    assert parse_normalize(" 0.5 / 0.5 ") == ((0.5,), (0.5,)) == parse_normalize("half")
    assert parse_normalize("none") is None
    for bad in ("", "0.5", "a/b", "0.5/", "1,2/3/4"):
        with pytest.raises(ConfigError, match=r"normalize must be MEAN/STD such as"):
            parse_normalize(bad)
    with pytest.raises(ConfigError, match="as many means"):
        parse_normalize("0.5,0.5/0.5")
    with pytest.raises(ConfigError, match="above 0"):
        parse_normalize("0.5/-1")


def test_parse_size():
    assert parse_size(None) is None
    assert parse_size("224") == parse_size(224) == (224, 224)
    assert parse_size("224x160") == parse_size(" 224 X 160 ") == parse_size((224, 160)) == (224, 160)
    for bad in ("", "big", "224,160", "224x", "-5", "1x2x3"):
        with pytest.raises(ConfigError, match="size must be a number or HEIGHTxWIDTH"):
            parse_size(bad)
    for bad in (0, "0", (10, 9000)):
        with pytest.raises(ConfigError, match="1 to 8192 pixels"):
            parse_size(bad)


def test_preprocessing_describes_itself():
    found = Preprocessing((224, 160), "stretch", (0.5,), (0.25,))
    assert found.describe() == {"size": [224, 160], "fit": "stretch", "mean": [0.5], "std": [0.25]}
    assert Preprocessing().describe() == {"size": None, "fit": "crop", "mean": None, "std": None}
    with pytest.raises(ConfigError, match="together"):
        Preprocessing(mean=(0.5,))
