"""Canonical correlation: rotations are 1, independence is low, the ratio of planted changes, and what is refused."""

import pytest
import torch

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.evals.cca import cca_ratio, pwcca
from pellucid.rng import rng


def draw(seed: int, units: int = 6, n: int = 800) -> torch.Tensor:
    return torch.randn(n, units, generator=rng(seed), dtype=torch.float64)


def test_any_invertible_map_keeps_it_at_one() -> None:
    x, turn = draw(0), draw(1, 6, 6)
    assert pwcca(x, x @ turn + 3, keep=1.0) == pytest.approx(1, abs=1e-9)
    assert pwcca(x, draw(2)) < 0.15


def test_it_is_the_weighted_mean_of_canonical_correlations() -> None:
    """The slow twin: canonical correlations from the eigenvalues of Sxx^-1 Sxy Syy^-1 Syx."""
    x = draw(3, 4)
    y = x @ draw(4, 4, 4) + 2 * draw(5, 4)
    a, b = x - x.mean(0), y - y.mean(0)
    sxx, syy, sxy = a.T @ a, b.T @ b, a.T @ b
    values, vectors = torch.linalg.eig(torch.linalg.solve(sxx, sxy) @ torch.linalg.solve(syy, sxy.T))
    weights, rho = [], values.real.sqrt()
    for i in range(4):
        variate = a @ vectors.real[:, i]
        variate = variate / variate.norm()
        weights.append(sum(abs(float(variate @ a[:, u])) for u in range(4)))
    wanted = sum(w * float(r) for w, r in zip(weights, rho, strict=True)) / sum(weights)
    assert 0.3 < wanted < 0.95 and pwcca(x, y, keep=1.0) == pytest.approx(wanted, abs=1e-9)


def test_the_ratio_sees_rotation_and_change() -> None:
    shared = draw(8, 4)
    baselines = [torch.cat([shared, draw(10 + r, 2)], 1) for r in range(3)]
    turned = [x @ draw(20, 6, 6) for x in baselines]
    other = [torch.cat([shared[:, :2], draw(30 + r, 4)], 1) for r in range(3)]
    assert cca_ratio(turned, baselines, keep=1.0).ratio == pytest.approx(0, abs=1e-6)
    found = cca_ratio(other, baselines, keep=1.0)
    assert (
        found.ratio > 1.3 and len(found.treated) == 3 and len(found.between) == 6 and found.ranks == (6, 6, 6)
    )


def test_bad_input() -> None:
    with pytest.raises(DataError, match="same items"):
        pwcca(draw(0, 3, 50), draw(0, 3, 60))
    with pytest.raises(DataError, match="constant"):
        pwcca(torch.ones(50, 3), draw(0, 3, 50))
    with pytest.raises(DataError, match="more items than directions"):
        pwcca(draw(0, 8, 8), draw(0, 8, 8), keep=1.0)
    with pytest.raises(NumericError):
        pwcca(torch.full((50, 3), float("nan")), draw(0, 3, 50))
    with pytest.raises(ConfigError, match="two or more replicates"):
        cca_ratio([draw(0)], [draw(0)])
