"""The pulls themselves, against potentials written again from the specification and differentiated in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from pellucid._checks import ConfigError
from pellucid.methods.bort import (
    Matrix,
    constrain,
    keep_norm,
    orthogonality,
    pull_column_norm_signs_,
    pull_column_signs_,
    pull_columns_,
    pull_full_,
    pull_full_bfloat16_,
    pull_row_norm_signs_,
    pull_rows_,
    pull_signs_,
)
from pellucid.methods.bort import gram as products
from pellucid.rng import rng

SHAPES = {"wide": (5, 9), "tall": (9, 5), "square": (6, 6), "conv": (4, 3, 2, 3), "strips": (150, 70)}


def dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum()


def by_pairs(rows: Tensor, a: float, size) -> Tensor:
    """Sum of size(entry) over W W^T - a I, entry by entry."""
    total = torch.zeros((), dtype=rows.dtype)
    for i, j in itertools.product(range(len(rows)), repeat=2):
        total = total + size(dot(rows[i], rows[j]) - (a if i == j else 0.0))
    return total


def by_rows(rows: Tensor, a: float, size) -> Tensor:
    return torch.stack([size(dot(row, row) - a) for row in rows]).sum()


def square(x: Tensor) -> Tensor:
    return x**2 / 4


def absolute(x: Tensor) -> Tensor:
    return x.abs() / 2


POTENTIALS = {
    pull_full_: lambda w, a: by_pairs(w, a, square),
    pull_rows_: lambda w, a: by_rows(w, a, square),
    pull_columns_: lambda w, a: by_rows(w.T, a, square),
    pull_signs_: lambda w, a: by_pairs(w, a, absolute),
    pull_column_signs_: lambda w, a: by_pairs(w.T, a, absolute),
    pull_row_norm_signs_: lambda w, a: by_rows(w, a, absolute),
    pull_column_norm_signs_: lambda w, a: by_rows(w.T, a, absolute),
}


def random_weight(*shape: int, seed: int = 0, scale: float = 0.4) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=rng(seed, "weight"))


def delta(pull, w: Tensor, a: float) -> Tensor:
    moved = w.clone()
    assert pull(moved, 1.0, a) is moved, "a pull works in place"
    return w - moved


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "strips"])
@pytest.mark.parametrize("pull", POTENTIALS, ids=lambda p: p.__name__)
def test_A1_each_pull_is_the_gradient_of_its_potential(pull, shape: str) -> None:
    w = random_weight(*SHAPES[shape]).flatten(1).requires_grad_()
    (wanted,) = torch.autograd.grad(POTENTIALS[pull](w, 0.7), w)
    assert (delta(pull, w.detach(), 0.7) - wanted).abs().max() < 1e-10


@pytest.mark.parametrize("pull", POTENTIALS, ids=lambda p: p.__name__)
def test_A1_groups_and_blocks_are_pulled_each_by_itself(pull) -> None:
    weight = random_weight(12, 2, 3)
    matrix = Matrix(weight, "grouped", groups=3, blocks=2)
    found = delta(pull, matrix.read(weight), 0.7).reshape(weight.shape)
    for part in range(6):
        rows = slice(2 * part, 2 * part + 2)
        alone = delta(pull, weight[rows].flatten(1), 0.7).reshape(weight[rows].shape)
        assert (found[rows] - alone).abs().max() < 1e-12


def test_both_sides_have_the_same_full_pull() -> None:
    w = random_weight(9, 5)
    rows, columns = w @ w.T @ w - 0.7 * w, w @ (w.T @ w) - 0.7 * w
    assert (rows - columns).abs().max() < 1e-14
    assert (delta(pull_full_, w, 0.7) - rows).abs().max() < 1e-14


@pytest.mark.parametrize("shape", [(150, 70), (70, 150), (130, 130), (64, 3000), (3000, 64), (1, 7), (7, 1)])
def test_strips_and_panels_give_the_plain_products(shape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PANEL", 5000)
    w = random_weight(*shape, scale=0.1)
    plain = w @ w.T @ w - 0.7 * w
    assert (delta(pull_full_, w, 0.7) - plain).abs().max() < 1e-12


@pytest.mark.parametrize(
    "shape", [(5, 9), (9, 5), (150, 70), (70, 150), (3000, 64), (1, 7), (7, 1), (4, 6, 9), (4, 9, 6)]
)
@pytest.mark.parametrize("amplitude", [0.7, keep_norm], ids=["number", "keep_norm"])
def test_products_in_bfloat16_give_the_pull_to_a_percent(shape, amplitude, monkeypatch) -> None:
    monkeypatch.setattr(products, "PANEL", 5000)
    w = random_weight(*shape, scale=0.1).float()
    plain, fast = (pull(w.clone(), 0.3, amplitude) for pull in (pull_full_, pull_full_bfloat16_))
    assert fast.dtype == torch.float32
    assert float((fast - plain).norm()) <= 0.01 * float((plain - w).norm()) + 1e-6


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (130, 200)])
def test_pulls_in_bfloat16_settle_near_orthogonal(shape) -> None:
    start = orthogonality([Matrix(random_weight(*shape, scale=0.1).float(), "w")])["w"]
    w = random_weight(*shape, scale=0.1).float()
    for _ in range(300):
        pull_full_bfloat16_(w, 0.3, 1.0)
    assert orthogonality([Matrix(w, "w")])["w"].defect < 0.004 < start.defect


def test_A2_singular_values_follow_their_map() -> None:
    u, v = (torch.linalg.qr(random_weight(8, 8, seed=s)).Q for s in (1, 2))
    s = torch.linspace(0.1, 1.6, 8, dtype=torch.float64)
    w = torch.cat([(u * s) @ v.T, torch.zeros(8, 3, dtype=torch.float64)], 1)
    for _ in range(20):
        pull_full_(w, 0.3, 0.8)
        s = s * (1 + 0.3 * (0.8 - s**2))
    assert (torch.linalg.svdvals(w) - s.sort(descending=True).values).abs().max() < 1e-12


def test_A2_a_default_start_is_orthogonal_after_twelve_newton_schulz_steps() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Conv2d(64, 64, 3)
    optimizer = SGD([layer.weight], lr=0.1)
    constrain(optimizer, [layer.weight], strength=5.0)
    for _ in range(12):
        optimizer.step()
    assert orthogonality([layer.weight])["tensor 0 (64x64x3x3)"].defect < 1e-6


def test_A2_larger_steps_are_refused() -> None:
    layer = nn.Linear(4, 4)
    optimizer = SGD([layer.weight], lr=0.1)
    with pytest.raises(ConfigError, match=r"'fc': lr 0.1 x strength 5.1 .* = 0.51, beyond 0.5"):
        constrain(optimizer, [Matrix(layer.weight, "fc")], strength=5.1)
    with pytest.raises(ConfigError, match=r"every 2 .*lower the strength to 2.5"):
        constrain(optimizer, [Matrix(layer.weight, "fc")], strength=4.0, every=2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (3, 8, 8)])
@pytest.mark.parametrize("pull", [pull_full_, pull_rows_])
def test_A13_keep_norm_equalises_and_keeps_the_norm(pull, shape) -> None:
    w = random_weight(*shape).float()
    before = w.norm()
    for _ in range(2000):
        pull(w, 0.01, keep_norm)
    assert abs(w.norm() / before - 1) < 0.01
    size = torch.linalg.svdvals(w) if pull is pull_full_ else torch.linalg.vector_norm(w, dim=-1)
    assert ((size.amax(-1) - size.amin(-1)) / size.mean(-1)).max() < 1e-3


def test_keep_norm_is_finite_for_a_zero_weight() -> None:
    w = torch.zeros(3, 4)
    assert bool(pull_full_(w, 0.1, keep_norm).isfinite().all())


def test_keep_norm_clips_its_step() -> None:
    w = 10 * torch.eye(3)
    assert torch.equal(pull_full_(w.clone(), 100.0, keep_norm), w)
    w[0, 0] = 11.0
    moved = pull_full_(w.clone(), 100.0, keep_norm)
    assert moved.isfinite().all() and abs(moved.norm() / w.norm() - 1) < 0.02


def test_signs_need_a_number() -> None:
    for pull in (pull_signs_, pull_column_signs_, pull_row_norm_signs_, pull_column_norm_signs_):
        with pytest.raises(ConfigError, match="a pull with signs needs a number"):
            pull(torch.ones(2, 3), 0.1, keep_norm)


def test_a_tensor_step_is_the_number() -> None:
    for pull in POTENTIALS:
        w = random_weight(5, 9)
        a, b = pull(w.clone(), 0.1, 0.7), pull(w.clone(), torch.tensor(0.1, dtype=torch.float64), 0.7)
        assert (a - b).abs().max() < 1e-15
    w = random_weight(5, 9)
    a, b = (pull_full_(w.clone(), step, keep_norm) for step in (0.1, torch.tensor(0.1, dtype=torch.float64)))
    assert torch.equal(a, b)


def test_spare_memory_is_one_gram_matrix_and_one_panel() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() != w.untyped_storage().data_ptr():
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    w = torch.randn(256, 8192, generator=rng(0))
    with Watch():
        pull_full_(w, 1e-3, 1.0)
    assert largest * 2 <= w.nbytes and largest >= 4 * 256 * 256
    largest = 0
    with Watch():
        pull_full_bfloat16_(w, 1e-3, 1.0)
    assert largest * 2 == w.nbytes, "the copy in bfloat16, and nothing larger"
    assert math.isfinite(float(w.sum()))
