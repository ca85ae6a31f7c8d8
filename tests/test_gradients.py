"""Gradient variability: against loops, on planted units, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor, nn

from pellucid._checks import DataError
from pellucid.data import array_source
from pellucid.evals.gradients import gradient_variability
from pellucid.rng import rng
from pellucid.taps import Tap, watch
from pellucid.train import seeded


def test_it_is_what_the_loops_give(untouched_rng: None) -> None:
    with seeded(0):
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.Conv2d(3, 4, 3), nn.Softplus()
        )
    model.double().train()
    images = torch.rand(5, 1, 6, 6, dtype=torch.float64, generator=rng(1))
    taps = {"early": Tap("2"), "late": Tap("4")}
    found = gradient_variability(model, array_source(images, torch.arange(5) % 3), taps, batch_size=2)
    assert model.training and all(p.requires_grad for p in model.parameters())
    model.eval()
    for name, tap in taps.items():
        gradients: list[list[Tensor]] = []
        for image in images:
            x = image[None].clone().requires_grad_()
            with watch(model, {"r": tap}, grad=True) as seen:
                model(x)
            row = seen["r"][0]
            gradients.append([torch.autograd.grad(u, x, retain_graph=True)[0].flatten() for u in row])
        result = found[name]
        for u in range(len(gradients[0])):
            norms = [float(g[u].norm()) for g in gradients]
            assert float(result.over_images[u]) == pytest.approx(spread(norms), rel=1e-9)
            pairs = [
                float(gradients[i][u] @ gradients[j][u]) / (norms[i] * norms[j])
                for i in range(5)
                for j in range(5)
                if i != j
            ]
            assert float(result.cosine[u]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)
        for i in range(5):
            assert float(result.over_units[i]) == pytest.approx(
                spread([float(g.norm()) for g in gradients[i]]), rel=1e-9
            )
        assert result.n == 5 and set(result.summary) == {"cv_images", "cv_units", "cosine"}


def spread(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) / mean


def test_a_linear_unit_does_not_vary_and_a_silent_one_is_left_out() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 0]]))
    source = array_source(torch.rand(6, 1, 2, 2, generator=rng(2)), torch.arange(6) % 2)
    found = gradient_variability(model, source, {"all": Tap("1")})["all"]
    assert found.silent == 1
    assert found.over_images[:2].tolist() == pytest.approx([0, 0], abs=1e-6) and found.over_images[2].isnan()
    assert found.cosine[:2].tolist() == pytest.approx([1, 1])
    assert found.over_units.tolist() == pytest.approx([math.sqrt(0.5) / 1.5] * 6)


def test_one_image_is_refused() -> None:
    source = array_source(torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64), classes="ab")
    with pytest.raises(DataError, match="at least 2 images"):
        gradient_variability(nn.Flatten(), source, {"all": Tap("")})
