"""`constrain` on any optimizer: what it moves, what it leaves alone, what it refuses."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from pellucid._checks import ConfigError
from pellucid.methods.bort import (
    Matrix,
    constrain,
    constrain_coupled,
    keep_norm,
    matrices,
    orthogonality,
    pull_full_,
    pull_full_bfloat16_,
    pull_rows_,
    pull_signs_,
)
from pellucid.methods.bort.constrain import check_optimizer
from pellucid.rng import rng

BUILD = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), foreach=False),
    "AdamW maximize": lambda p: torch.optim.AdamW(p, lr=0.01, maximize=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "Muon": lambda p: torch.optim.Muon(p, lr=0.01),
}


def weight(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(0.3 * torch.randn(*shape, generator=rng(seed, "weight")))


def gradients(params: list[nn.Parameter], step: int) -> None:
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=rng(step, "gradient", i))


def pulled(w: Tensor, step: float) -> Tensor:
    flat = w.double().flatten(1)
    return (flat - step * (flat @ flat.T @ flat - flat)).reshape(w.shape).float()


@pytest.mark.parametrize("name", BUILD)
def test_A6_the_pull_comes_before_the_step_of_any_optimizer(name: str) -> None:
    """The twin pulls by hand, then steps the bare optimizer: the same weights after three steps."""
    mine, twin = [weight(6, 10), weight(10, 6)], [weight(6, 10), weight(10, 6)]
    optimizer, bare = BUILD[name](mine), BUILD[name](twin)
    handle = constrain(optimizer, [mine[0]], strength=2.0)
    for step in range(3):
        gradients(mine, step), gradients(twin, step)
        twin[0].data.copy_(pulled(twin[0].data, float(bare.param_groups[0]["lr"]) * 2.0))
        optimizer.step(), bare.step()
    torch.testing.assert_close(mine[0].data, twin[0].data, rtol=1e-5, atol=1e-6)
    assert torch.equal(mine[1].data, twin[1].data), "what was not chosen is not touched"
    assert handle.budget == pytest.approx(3 * 0.01 * 2.0, rel=1e-5)


@pytest.mark.parametrize("name", ["AdamW", "SGD fused", "AdamW tensor lr", "Muon"])
@pytest.mark.parametrize("how", ["strength 0", "removed", "lr 0"])
def test_A7_without_a_pull_the_steps_are_bitwise_those_of_the_bare_optimizer(
    name, how, untouched_rng
) -> None:
    mine, twin = [weight(6, 10)], [weight(6, 10)]
    optimizer, bare = BUILD[name](mine), BUILD[name](twin)
    before = copy.deepcopy(optimizer.state_dict())
    handle = constrain(optimizer, mine, strength=0.0 if how == "strength 0" else 2.0, every=1)
    if how == "removed":
        handle.remove()
        assert optimizer.state_dict().keys() == before.keys()
    for step in range(3):
        gradients(mine, step), gradients(twin, step)
        if how == "lr 0":
            for one in (optimizer, bare):
                one.param_groups[0]["lr"] = one.param_groups[0]["lr"] * 0.0
        kept = mine[0].grad.clone()
        optimizer.step(), bare.step()
        assert torch.equal(mine[0].grad, kept) and mine[0].requires_grad and mine[0].is_leaf
    assert torch.equal(mine[0].data, twin[0].data)


def test_gradients_are_left_alone_by_a_pull() -> None:
    p = weight(4, 6)
    optimizer = torch.optim.AdamW([p], lr=0.01)
    constrain(optimizer, [p], strength=1.0)
    gradients([p], 0)
    kept, tensor = p.grad.clone(), p.grad
    optimizer.step()
    assert p.grad is tensor and torch.equal(p.grad, kept)


def test_each_group_has_its_own_rate_and_constraints_of_unlike_strength_live_together() -> None:
    a, b, c = weight(4, 6), weight(4, 6, seed=1), weight(4, 6, seed=2)
    twins = [p.data.clone() for p in (a, b, c)]
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b, c], "lr": 0.1}], lr=0.01)
    constrain(optimizer, [a, b], strength=1.0)
    constrain(optimizer, [c], strength=3.0)
    optimizer.step()
    for p, twin, step in zip((a, b, c), twins, (0.01, 0.1, 0.3), strict=True):
        torch.testing.assert_close(p.data, pulled(twin, step))


@pytest.mark.parametrize("by", ["plain", "cosine"])
def test_a_schedule_anneals_the_pull(by: str) -> None:
    p = weight(4, 6)
    twin = p.data.clone()
    optimizer = torch.optim.SGD([p], lr=0.1)
    schedule = CosineAnnealingLR(optimizer, 5) if by == "cosine" else LambdaLR(optimizer, lambda i: 0.5**i)
    constrain(optimizer, [p], strength=1.0)
    for _ in range(4):
        twin = pulled(twin, optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(p.data, twin)


def test_a_warm_up_that_passes_the_bound_is_told_at_the_step_that_does() -> None:
    p = weight(4, 6)
    optimizer = torch.optim.SGD([p], lr=0.01)
    schedule = LambdaLR(optimizer, lambda i: float(i))
    constrain(optimizer, [Matrix(p, "fc")], strength=20.0)
    for _ in range(3):  # 0, 0.2, 0.4
        optimizer.step()
        schedule.step()
    kept = p.data.clone()
    with pytest.raises(ConfigError, match=r"layer 'fc': lr 0.03 x strength 20 .*= 0.6, beyond 0.5"):
        optimizer.step()
    assert torch.equal(p.data, kept)


def test_closures_pull_once_a_step() -> None:
    for build in (
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4),
    ):
        p = weight(4, 6)
        twin = pulled(p.data, 0.1)
        optimizer = build([p])
        constrain(optimizer, [p], strength=1.0)
        seen = []

        def closure(p=p, seen=seen, optimizer=optimizer):
            optimizer.zero_grad()
            seen.append(p.data.clone())
            loss = p.square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure).item() == pytest.approx(float(twin.square().sum()), rel=1e-5)
        torch.testing.assert_close(seen[0], twin)


def test_maximize_still_lowers_the_defect() -> None:
    for make in (constrain, constrain_coupled):
        p = weight(4, 6)
        optimizer = torch.optim.SGD([p], lr=0.1, maximize=True)
        make(optimizer, [p], strength=1.0)
        for _ in range(300):
            p.grad = torch.zeros_like(p)
            optimizer.step()
        assert orthogonality([p])["tensor 0 (4x6)"].defect < 1e-5


def test_state_round_trip_and_plain_checkpoints() -> None:
    def train(p, optimizer, steps) -> None:
        for step in steps:
            gradients([p], step)
            optimizer.step()

    for every in (1, 3):
        p, q = weight(4, 6), weight(4, 6)
        whole, first = (torch.optim.AdamW([x], lr=0.01) for x in (p, q))
        constrain(whole, [p], strength=2.0, every=every)
        constrain(first, [q], strength=2.0, every=every)
        train(p, whole, range(8))
        train(q, first, range(4))
        r = nn.Parameter(q.data.clone())
        second = torch.optim.AdamW([r], lr=0.01)
        constrain(second, [r], strength=2.0, every=every)
        second.load_state_dict(first.state_dict())
        train(r, second, range(4, 8))
        assert torch.equal(p.data, r.data), f"every={every}: a resumed training is the undisturbed one"
        plain = torch.optim.AdamW([weight(4, 6)], lr=0.01)
        plain.load_state_dict(first.state_dict())
        plain.step()
    p = weight(4, 6)
    bare = torch.optim.AdamW([p], lr=0.01)
    train(p, bare, range(2))
    optimizer = torch.optim.AdamW([p], lr=0.01)
    constrain(optimizer, [p], strength=2.0, every=2)
    optimizer.load_state_dict(bare.state_dict())
    train(p, optimizer, range(2, 4))
    assert set(bare.state_dict()["param_groups"][0]) <= set(optimizer.state_dict()["param_groups"][0])


def test_every_spreads_the_matrices_and_goes_as_far() -> None:
    params = [weight(4, 6, seed=i) for i in range(4)]
    kept = [p.data.clone() for p in params]
    optimizer = torch.optim.SGD(params, lr=0.01)
    handle = constrain(optimizer, params, strength=1.0, every=4)
    moved = []
    for _ in range(4):
        before = [p.data.clone() for p in params]
        optimizer.step()
        moved.append([i for i, p in enumerate(params) if not torch.equal(p.data, before[i])])
    assert sorted(i for turn in moved for i in turn) == [0, 1, 2, 3] and all(len(turn) == 1 for turn in moved)
    for p, start in zip(params, kept, strict=True):
        torch.testing.assert_close(p.data, pulled(start, 0.04))
    handle.remove()
    assert "turns_0" not in optimizer.param_groups[0]


def test_a_constraint_put_on_later_has_turns_of_its_own() -> None:
    params = [weight(4, 6, seed=i) for i in range(6)]
    optimizer = torch.optim.SGD(params, lr=0.01)
    first = constrain(optimizer, params[:2], strength=1.0, every=2)
    constrain(optimizer, params[2:4], strength=1.0, every=2)
    first.remove()
    constrain(optimizer, params[4:], strength=1.0, every=2)
    kept = [p.data.clone() for p in params]
    for _ in range(2):
        optimizer.step()
    for i, (p, start) in enumerate(zip(params, kept, strict=True)):
        torch.testing.assert_close(p.data, start if i < 2 else pulled(start, 0.02))


def test_a_counter_from_another_every_stops_nothing() -> None:
    p = weight(4, 6)
    optimizer = torch.optim.SGD([p], lr=0.01)
    constrain(optimizer, [p], strength=1.0, every=2)
    optimizer.param_groups[0]["turns_0"], kept = 6, p.data.clone()
    optimizer.step()
    torch.testing.assert_close(p.data, pulled(kept, 0.02))


def test_nothing_to_constrain_is_a_warning_and_steps_go_on() -> None:
    model = nn.Linear(4, 2)  # a head and nothing else
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="no matrix was chosen"):
        handle = constrain(optimizer, matrices(model), strength=1.0, every=4)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert handle.budget == 0.0 and handle.describe()["matrices"] == 0


def test_every_follows_the_same_flow() -> None:
    found = []
    for every in (1, 4, 16):
        p = nn.Parameter(weight(16, 40).data / 2)
        optimizer = torch.optim.SGD([p], lr=0.01)
        constrain(optimizer, [p], strength=1.0, every=every)
        for _ in range(400):
            optimizer.step()
        found.append(orthogonality([p])["tensor 0 (16x40)"].defect)
    assert max(found) / min(found) < 3 and max(found) < 1e-3


def test_turns_cost_alike() -> None:
    sizes = [8, 8, 8, 8, 16, 16, 32, 40]
    params = [weight(n, 64, seed=n) for n in sizes]
    handle = constrain(torch.optim.SGD(params, lr=0.01), params, strength=1.0, every=2)
    cost = [0, 0]
    for matrix in handle.matrices:
        cost[handle._turns[id(matrix)]] += matrix.flops
    assert abs(cost[0] - cost[1]) / sum(cost) < 0.15


def test_small_weights_of_one_shape_are_pulled_together_as_if_alone() -> None:
    params = [weight(6, 10, seed=i) for i in range(5)] + [weight(10, 6), weight(6, 10, seed=9)]
    params[1].data = params[1].data.T.contiguous().T
    alone = [pulled(p.data, 0.1) for p in params]
    optimizer = torch.optim.SGD(params, lr=0.1)
    constrain(optimizer, params, strength=1.0)
    params[3].requires_grad_(False)
    kept = params[3].data.clone()
    optimizer.step()
    for i, (p, wanted) in enumerate(zip(params, alone, strict=True)):
        torch.testing.assert_close(p.data, kept if i == 3 else wanted, rtol=1e-5, atol=1e-6)


# -- precision, memory, compilation --------------------------------------------------------------------------


def test_A8_channels_last_is_bitwise_contiguous() -> None:
    for make in (constrain, constrain_coupled):
        results = []
        for layout in (torch.contiguous_format, torch.channels_last):
            p = nn.Parameter(weight(8, 4, 3, 3).data.to(memory_format=layout))
            optimizer = torch.optim.SGD([p], lr=0.1)
            make(optimizer, [p], strength=1.0)
            for _ in range(3):
                p.grad = torch.zeros_like(p)
                optimizer.step()
            assert p.data.is_contiguous(memory_format=layout)
            results.append(p.data.contiguous())
        assert torch.equal(*results)


def test_A8_a_step_under_autocast_is_computed_in_full_precision() -> None:
    results = []
    for on in (False, True):
        p = weight(16, 32)
        optimizer = torch.optim.SGD([p], lr=0.1)
        constrain(optimizer, [p], strength=1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            optimizer.step()
        results.append(p.data)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_A8_numbers_too_coarse_to_move_are_refused(dtype) -> None:
    p = nn.Parameter(weight(4, 6).data.to(dtype))
    with pytest.raises(ConfigError, match=r"layer 'fc' is (torch.*lost to rounding|complex)"):
        constrain(torch.optim.SGD([p], lr=0.1), [Matrix(p, "fc")], strength=1.0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("make", [constrain, constrain_coupled])
def test_a_step_that_the_scaler_skips_does_not_pull(make, fused: bool) -> None:
    p = weight(4, 6)
    optimizer = torch.optim.SGD([p], lr=0.1, fused=fused)
    make(optimizer, [p], strength=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    kept = p.data.clone()
    scaler.scale(p.sum()).backward()
    p.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p.data, kept)
    optimizer.zero_grad()
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(p.data, pulled(kept, 0.1) - 0.1, rtol=1e-4, atol=1e-5)


def test_gradient_accumulation_pulls_once_a_step() -> None:
    p = weight(4, 6)
    twin = pulled(p.data, 0.1) - 0.1
    optimizer = torch.optim.SGD([p], lr=0.1)
    constrain(optimizer, [p], strength=1.0)
    for _ in range(4):
        (p.sum() / 4).backward()
    optimizer.step()
    torch.testing.assert_close(p.data, twin)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [1, 2])
def test_a_compiled_step_pulls(every: int) -> None:
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        p = weight(6, 10)
        optimizer = torch.optim.AdamW([p], lr=torch.tensor(0.01))
        handle = constrain(optimizer, [p], strength=2.0, every=every)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for number in range(6):
            gradients([p], number)
            step()
        assert handle.budget == pytest.approx(6 * 0.02, rel=1e-4)
        results.append(p.data.clone())
    torch.testing.assert_close(*results)


# -- optimizers around optimizers ----------------------------------------------------------------------------


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it is usually written, around a base optimizer."""

    def __init__(self, params, base, radius=0.05):
        super().__init__(params, {})
        self.base_optimizer, self.radius = base, radius
        self.param_groups = base.param_groups

    @torch.no_grad()
    def first_step(self):
        self.kept = [p.detach().clone() for g in self.param_groups for p in g["params"]]
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(self.radius * p.grad / p.grad.norm())

    @torch.no_grad()
    def second_step(self):
        for p, kept in zip((p for g in self.param_groups for p in g["params"]), self.kept, strict=True):
            p.copy_(kept)
        self.base_optimizer.step()


def test_sam_is_pulled_once_at_its_second_step() -> None:
    p = weight(4, 6)
    base = torch.optim.SGD([p], lr=0.1)
    sam = Sam([p], base)
    with pytest.raises(ConfigError, match=r"Sam wraps another optimizer: constrain its \.base_optimizer"):
        constrain(sam, [p], strength=1.0)
    constrain(base, [p], strength=1.0)
    twin = pulled(p.data, 0.1) - 0.1
    p.grad = torch.ones_like(p)
    sam.first_step()
    p.grad = torch.ones_like(p)
    sam.second_step()
    torch.testing.assert_close(p.data, twin)


def test_averaged_weights_follow() -> None:
    model = nn.Linear(6, 4, bias=False)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constrain(optimizer, [model.weight], strength=1.0)
    for _ in range(200):
        optimizer.step()
        average.update_parameters(model)
    assert matrices(average, [""])[0].param is average.module.weight
    assert orthogonality([average.module.weight])["tensor 0 (4x6)"].defect < 1e-3


class Lookahead:
    """Slow weights that follow the fast ones, as it is usually written."""

    def __init__(self, optimizer, k=5):
        self.optimizer, self.k, self.count = optimizer, k, 0
        self.slow = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self):
        self.optimizer.step()
        self.count += 1
        if self.count % self.k == 0:
            for slow, p in zip(
                self.slow, (p for g in self.optimizer.param_groups for p in g["params"]), strict=True
            ):
                slow.lerp_(p, 0.5)
                p.copy_(slow)


def test_lookahead_is_pulled_at_each_fast_step() -> None:
    p = weight(4, 6)
    lookahead = Lookahead(torch.optim.SGD([p], lr=0.1))
    with pytest.raises(ConfigError, match=r"Lookahead wraps another optimizer: constrain its \.optimizer"):
        check_optimizer(lookahead)
    handle = constrain(lookahead.optimizer, [p], strength=1.0)
    for _ in range(200):
        lookahead.step()
    assert handle.budget == pytest.approx(20.0)
    assert orthogonality([p])["tensor 0 (4x6)"].defect < 1e-3


# -- guards --------------------------------------------------------------------------------------------------


def spectrum(*values: float) -> nn.Parameter:
    u, v = (
        torch.linalg.qr(torch.randn(len(values), len(values), generator=rng(s), dtype=torch.float64)).Q
        for s in (1, 2)
    )
    return nn.Parameter((u * torch.tensor(values, dtype=torch.float64)) @ v.T)


def test_A3_a_start_inside_the_bound_converges_and_one_outside_is_refused() -> None:
    bound = (1 + 2 / 0.2) ** 0.5
    inside, outside = spectrum(0.999 * bound, 1.0, 0.5), spectrum(1.001 * bound, 1.0, 0.5)
    optimizer = torch.optim.SGD([inside, outside], lr=0.1)
    with pytest.warns(UserWarning, match=r"layer 'in': .* flips the sign"):
        constrain(optimizer, [Matrix(inside, "in")], strength=2.0)
    for _ in range(400):
        optimizer.step()
    assert orthogonality([inside])["tensor 0 (3x3)"].defect < 1e-6
    with pytest.raises(ConfigError, match="layer 'out': its largest squared singular value is 11"):
        constrain(optimizer, [Matrix(outside, "out")], strength=2.0)
    w = outside.data.clone()
    for _ in range(30):
        pull_full_(w, 0.2, 1.0)
    assert not w.isfinite().all() or w.abs().max() > 1e6, "and it would indeed diverge"


def test_A3_products_in_bfloat16_have_the_bound_of_the_full_pull_and_take_effect() -> None:
    outside, p = spectrum(3.4, 1.0, 0.5), weight(24, 60)
    optimizer = torch.optim.SGD([outside, p], lr=0.1)
    with pytest.raises(ConfigError, match="layer 'out': its largest squared singular value is 11"):
        constrain(optimizer, [Matrix(outside, "out")], strength=2.0, pull=pull_full_bfloat16_)
    handle = constrain(optimizer, [p], strength=0.5, pull=pull_full_bfloat16_)
    for _ in range(400):
        optimizer.step()
    assert handle.budget == pytest.approx(20.0)
    assert orthogonality([p])["tensor 0 (24x60)"].defect < 0.004


def test_A3_rows_have_their_own_bound() -> None:
    p = nn.Parameter(torch.tensor([[3.0, 0.0], [3.0, 0.1]]))  # s_max^2 is 18, the row norms 9
    optimizer = torch.optim.SGD([p], lr=0.1)
    constrain(optimizer, [p], strength=1.0, pull=pull_rows_).remove()
    with pytest.raises(ConfigError, match="largest squared row norm is 25"):
        q = nn.Parameter(torch.tensor([[5.0, 0.0]]))
        constrain(torch.optim.SGD([q], lr=0.1), [q], strength=1.0, pull=pull_rows_)


def test_A3_a_rate_that_grows_is_looked_at_again() -> None:
    p = spectrum(4.0, 1.0)
    optimizer = torch.optim.SGD([p], lr=0.0)
    constrain(optimizer, [Matrix(p, "fc")], strength=1.0)
    optimizer.param_groups[0]["lr"] = 0.2
    with pytest.raises(ConfigError, match="layer 'fc': its largest squared singular value is 16, beyond"):
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.1, 0.2])
@pytest.mark.parametrize("make", [constrain, constrain_coupled])
def test_A4_decay_moves_the_target_as_predicted(make, strength: float) -> None:
    p = weight(4, 6)
    decay = 0.05
    optimizer = torch.optim.SGD([p], lr=0.1, weight_decay=decay)
    with pytest.warns(UserWarning, match=r"weight decay 0.05 takes (50|25)% of the pull's target"):
        make(optimizer, [p], strength=strength)
    for _ in range(1500):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    found = torch.linalg.svdvals(p.data).square()
    assert (found / (1 - decay / strength) - 1).abs().max() < 0.01


def test_A4_decay_as_strong_as_the_pull_is_refused_where_the_weights_are_decayed() -> None:
    a, b = weight(4, 6), weight(4, 6)
    optimizer = torch.optim.AdamW(
        [{"params": [a]}, {"params": [b], "weight_decay": 0.0}], lr=0.01, weight_decay=0.5
    )
    with pytest.raises(
        ConfigError, match=r"layer 'a': weight decay 0.5 is at least amplitude x strength = 0.4"
    ):
        constrain(optimizer, [Matrix(a, "a"), Matrix(b, "b")], strength=0.4)
    constrain(optimizer, [Matrix(b, "b")], strength=0.4)
    optimizer.param_groups[1]["weight_decay"] = 0.5
    with pytest.raises(ConfigError, match="layer 'b': weight decay"):
        optimizer.step()


def test_a_refused_constraint_leaves_no_hook() -> None:
    p = weight(4, 6)
    optimizer = torch.optim.SGD([p], lr=0.1)
    with pytest.raises(ConfigError):
        constrain(optimizer, [p], strength=50.0)
    assert not optimizer._optimizer_step_pre_hooks
    handle = constrain(optimizer, [p], strength=1.0)
    handle.remove(), handle.remove()
    assert not optimizer._optimizer_step_pre_hooks
    with constrain(optimizer, [p], strength=1.0):
        assert optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -1.0}, "strength must be a finite number of at least 0"),
        ({"strength": float("nan")}, "strength must be a finite number"),
        ({"strength": 1.0, "amplitude": 0.0}, "amplitude must be a finite number above 0"),
        ({"strength": 1.0, "every": 0}, "every must be at least 1"),
        ({"strength": 1.0, "amplitude": keep_norm, "pull": pull_signs_}, "signs needs a number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message: str) -> None:
    p = weight(4, 6)
    with pytest.raises(ConfigError, match=message):
        constrain(torch.optim.SGD([p], lr=0.1), [p], **settings)


def test_parameters_that_cannot_be_constrained_are_named() -> None:
    p, q = weight(4, 6), weight(4, 6)
    optimizer = torch.optim.SGD([p], lr=0.1)
    with pytest.raises(ConfigError, match="layer 'fc' is not in the optimizer"):
        constrain(optimizer, [Matrix(q, "fc")], strength=1.0)
    with pytest.raises(ConfigError, match=r"tensor 0 \(6\): a weight matrix needs at least 2 axes"):
        constrain(optimizer, [torch.zeros(6)], strength=1.0)
    with pytest.raises(ConfigError, match="is named twice"):
        constrain(optimizer, [p, p], strength=1.0)
    constrain(optimizer, [p], strength=1.0)
    with pytest.raises(ConfigError, match=r"is constrained already; remove\(\)"):
        constrain(optimizer, [Matrix(p, "fc")], strength=2.0)
    with pytest.warns(UserWarning, match="nothing to constrain"):
        constrain(optimizer, [], strength=1.0)
    optimizer.step()
    with pytest.raises(ConfigError, match=r"expected a torch\.optim\.Optimizer, got int"):
        check_optimizer(3)


def test_a_differentiable_optimizer_is_refused() -> None:
    p = weight(4, 6)
    optimizer = torch.optim.SGD([p], lr=0.1, differentiable=True)
    with pytest.raises(ConfigError, match="the optimizer is differentiable"):
        constrain(optimizer, [p], strength=1.0)


def test_frozen_parameters_stay() -> None:
    p = weight(4, 6)
    optimizer = torch.optim.SGD([p], lr=0.1)
    constrain(optimizer, [p], strength=1.0)
    p.requires_grad_(False)
    kept = p.data.clone()
    optimizer.step()
    assert torch.equal(p.data, kept)
    p.requires_grad_(True)
    optimizer.step()
    assert not torch.equal(p.data, kept)


def test_nothing_keeps_an_optimizer_alive() -> None:
    p = weight(4, 6)
    optimizer = torch.optim.SGD([p], lr=0.1)
    constrain(optimizer, [p], strength=1.0)
    seen = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert seen() is None


# -- the coupled form ----------------------------------------------------------------------------------------


def test_the_coupled_form_gives_gradients_back() -> None:
    p = weight(4, 6)
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    handle = constrain_coupled(optimizer, [p], strength=1.0)
    p.grad = torch.ones_like(p)
    tensor, start = p.grad, p.data.clone()
    optimizer.step()
    assert p.grad is tensor and torch.equal(p.grad, torch.ones_like(p))
    torch.testing.assert_close(p.data, pulled(start, 0.1) - 0.1)
    handle.remove()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_what_the_coupled_form_cannot_do_is_refused() -> None:
    p = weight(4, 6)
    with pytest.raises(ConfigError, match=r"the coupled form is that of torch\.optim\.SGD, got AdamW"):
        constrain_coupled(torch.optim.AdamW([p]), [p], strength=1.0)
    optimizer = torch.optim.SGD([p], lr=0.1)
    with pytest.raises(ConfigError, match="a number as amplitude"):
        constrain_coupled(optimizer, [p], strength=1.0, amplitude=keep_norm)
    constrain_coupled(optimizer, [p], strength=1.0)
    with pytest.raises(ConfigError, match="cannot be stepped with a closure"):
        optimizer.step(lambda: p.sum())
    with pytest.raises(ConfigError, match="cannot be stepped with a closure"):
        optimizer.step(closure=lambda: p.sum())


def test_a_tensor_rate_beyond_the_bound_is_clipped() -> None:
    p = weight(4, 6)
    optimizer = torch.optim.AdamW([p], lr=torch.tensor(0.1), foreach=False)
    constrain(optimizer, [p], strength=1000.0)
    for _ in range(60):
        optimizer.step()
    with warnings.catch_warnings():
        assert orthogonality([p])["tensor 0 (4x6)"].defect < 1e-6
