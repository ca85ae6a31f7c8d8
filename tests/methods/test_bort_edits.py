"""Edits: nothing at strength 0, the formula again with loops, contributions, baselines at equal size."""

import pytest
import torch
from torch import nn

from pellucid._checks import ConfigError, DataError
from pellucid.data import Batch, digits_source
from pellucid.methods.bort import constrain, matrices, orthogonality
from pellucid.methods.bort.backtrack import trace
from pellucid.methods.bort.backtrack_errors import reconstruction
from pellucid.methods.bort.edits import (
    apply_edit,
    contributions,
    edit_towards,
    plan_edit,
    predict,
    relative_size,
)
from pellucid.methods.bort.edits_baselines import blended, gradient_signed, stretched
from pellucid.rng import rng
from pellucid.train import seeded
from pellucid.zoo.traceable import traceable_net


def images(n: int, name: str = "edits") -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=rng(0, name))


def network(**options) -> nn.Module:
    with seeded(0):
        return traceable_net(widths=(9, 16), kernels=(3, 2), strides=(1, 2), **options).eval()


TARGETS = torch.tensor([1, 2, 3, 4])


def test_T15_strength_zero_returns_the_image_to_the_bit() -> None:
    x = images(4)
    edited = edit_towards(network(), x, images(4, "other"), TARGETS, layer="act2", alpha=0.0)
    assert torch.equal(edited.inputs, x) and not edited.added.any() and not edited.size.any()


def test_the_edit_is_the_formula() -> None:
    """z_s + alpha (z_t on top - z_s on top), backtracked, minus g(z_s); again with loops."""
    model, x, other, alpha, k = network().double(), images(4).double(), images(4, "other").double(), 0.7, 5
    edited = edit_towards(model, x, other, TARGETS, layer="act2", alpha=alpha, k=k)
    head, path = model.linear.weight.detach(), trace(model, x, "act2")
    z_s, z_t = path.features, trace(model, other, "act2").features
    source = model(x).argmax(1)
    z_new = z_s.clone()
    for i in range(4):

        def top(z, c):
            return sorted(range(16), key=lambda u: float(z[i, u].max() * head[c, u]), reverse=True)[:k]  # noqa: B023

        for u in top(z_t, int(TARGETS[i])):
            z_new[i, u] += alpha * z_t[i, u]
        for u in top(z_s, int(source[i])):
            z_new[i, u] -= alpha * z_s[i, u]
    expected = (x + path.back(z_new) - path.back(z_s)).clamp(0, 1)
    torch.testing.assert_close(edited.inputs, expected)
    torch.testing.assert_close(edited.size, (expected - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1))
    assert torch.equal(edited.predicted, model(expected).argmax(1))
    assert torch.equal(edited.reached, edited.predicted == TARGETS)


def test_contributions_add_up_where_the_way_back_is_linear() -> None:
    model, x = network(slope=1.0), images(4)
    plan = plan_edit(model, x, images(4, "other"), TARGETS, layer="act2", k=4)
    channels, pictures = contributions(plan, 2, alpha=0.5, most=99)
    whole = plan.path.back(plan.path.features + 0.5 * plan.change) - plan.rebuilt
    torch.testing.assert_close(pictures.sum(0), whole[2], atol=1e-5, rtol=1e-4)
    assert set(channels) <= {*plan.put_in[2].tolist(), *plan.taken_out[2].tolist()}
    sizes = pictures.flatten(1).norm(dim=1)
    assert torch.equal(sizes, sizes.sort(descending=True).values)


def test_baselines_have_the_size_they_were_asked_for() -> None:
    model, x, other = network(), images(4), images(4, "other")
    size = torch.tensor([0.05, 0.2, 0.0, 0.3])
    blend, push = blended(x, other, size), gradient_signed(model, x, TARGETS, size)
    torch.testing.assert_close(relative_size(blend - x, x), size, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(relative_size(push - x, x), size, atol=1e-4, rtol=1e-3)
    assert float(push.min()) >= 0 and float(push.max()) <= 1
    far = torch.full((4,), 9.0)
    assert torch.equal(blended(x, other, far), x + (other - x)), "blending stops at the exemplar"
    walls = stretched(x, torch.ones_like(x), far)
    torch.testing.assert_close(walls, torch.ones_like(x))
    assert torch.equal(stretched(x, torch.zeros_like(x), far), x), "no direction, no change"


def test_the_gradient_baseline_goes_towards_its_target() -> None:
    model, x = network(), images(4)

    def score(images: torch.Tensor) -> torch.Tensor:
        return model(images).log_softmax(1).gather(1, TARGETS[:, None])[:, 0]

    push = gradient_signed(model, x, TARGETS, torch.full((4,), 0.05))
    assert bool((score(push) > score(x)).all())
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_explained() -> None:
    model, x = network(), images(4)
    with pytest.raises(DataError, match="exemplar and a target"):
        edit_towards(model, x, x[:2], TARGETS, layer="act2")
    with pytest.raises(ConfigError, match="alpha"):
        edit_towards(model, x, x, TARGETS, layer="act2", alpha=-1.0)
    with pytest.raises(ConfigError, match="takes 16 numbers"):
        edit_towards(model, x, x, TARGETS, layer="act1")
    with pytest.raises(ConfigError, match="k of at least 1"):
        edit_towards(model, x, x, TARGETS, layer="act2", k=0)
    plan = plan_edit(model, x, x, TARGETS, layer="act2")
    with pytest.raises(ConfigError, match="one of 4 images"):
        contributions(plan, 4, alpha=1.0)
    with pytest.raises(DataError, match="relative size"):
        blended(x, x, torch.tensor([-1.0, 0, 0, 0]))


def test_a_black_image_has_no_size_and_baselines_say_so() -> None:
    model, x = network(), torch.cat([torch.zeros_like(images(1)), images(3)])
    still, moved = (
        edit_towards(model, x, images(4, "other"), TARGETS, layer="act2", alpha=a) for a in (0.0, 1.0)
    )
    assert still.size.tolist() == [0.0] * 4 and torch.equal(blended(x, x, still.size), x)
    assert moved.size[0] == float("inf") and bool(moved.size[1:].isfinite().all())
    for baseline in (
        lambda: blended(x, x, moved.size),
        lambda: gradient_signed(model, x, TARGETS, moved.size),
    ):
        with pytest.raises(DataError, match="black images have none"):
            baseline()


# -- the digits network of the specification -----------------------------------------------------------------------


def trained(train: Batch, *, strength: float, seed: int) -> nn.Module:
    """CNN 9-24-144 with leaky 0.5, AdamW lr 2e-3 cosine, 30 epochs, batch 64, head free; a bare loop, for speed."""
    with seeded(seed):
        model = traceable_net(widths=(9, 24, 144), kernels=(3, 2, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    if strength:
        constrain(optimizer, matrices(model), strength=strength)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for epoch in range(30):
        for rows in torch.randperm(len(train), generator=rng(seed, epoch)).split(64):
            loss = nn.functional.cross_entropy(model(train.inputs[rows]), train.targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        cosine.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_T12_T15_on_digits_the_constraint_makes_the_transpose_an_inverse_and_edits_gain_one(
    seed: int,
) -> None:
    train, batch = (next(iter(digits_source(split=part).batches(2000))) for part in ("train", "test"))
    x = batch.inputs
    error, success, sizes = {}, {}, {}
    for strength in (0.0, 10.0):
        model = trained(train, strength=strength, seed=seed)
        said = predict(model, x)
        assert strength == 0 or float((said == batch.targets).float().mean()) >= 0.97
        defects = [one.defect for one in orthogonality(matrices(model)).values()]
        assert strength == 0 or max(defects) < 0.2
        error[strength] = float(reconstruction(model, x)["act3"].error.mean())
        some, targets = x[:200], (said[:200] + 1 + torch.arange(200) % 9) % 10
        exemplars = torch.stack([x[(said == t).nonzero()[i % 20, 0]] for i, t in enumerate(targets.tolist())])
        plan = plan_edit(model, some, exemplars, targets, layer="act3")
        edited = {alpha: apply_edit(model, plan, alpha=alpha) for alpha in (0.2, 0.5, 2.0)}
        success[strength] = {alpha: float(one.reached.float().mean()) for alpha, one in edited.items()}
        sizes[strength] = {alpha: float(one.size.mean()) for alpha, one in edited.items()}
    assert error[10.0] < 0.8 and error[10.0] < error[0.0] / 10
    assert success[10.0][0.5] < 0.5 < success[10.0][2.0], "half succeed between 0.5 and 2"
    assert success[0.0][0.2] >= 0.5, "without the constraint half succeed at 0.2 already"
    assert success[10.0][2.0] >= 0.9 and sizes[10.0][2.0] < 1
