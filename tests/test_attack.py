"""The attack engine: formulas against loops, planted boundaries, parity with foolbox, invariants, bad input."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.attack import (
    L2,
    Linf,
    adversarial,
    attack_mode,
    bim,
    cross_entropy,
    fgsm,
    margin,
    maximize,
    minimal_l2,
    normalized_cross_entropy,
    pgd,
)
from pellucid.attack.ascent import as_index, check_images
from pellucid.data import Batch
from pellucid.train import CrossEntropy, fit, seeded

pytestmark = pytest.mark.usefixtures("untouched_rng")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_net(seed: int = 0, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    with seeded(seed):
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)
        )
    return net.to(dtype)


def predicted(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with attack_mode(net), torch.no_grad():
        return net(images).argmax(1)


@pytest.fixture
def net() -> nn.Module:
    return small_net().eval()


@pytest.fixture
def images() -> torch.Tensor:
    return draw(12, 1, 6, 6)


@pytest.fixture
def targets(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return predicted(net, images)


# ---- slow twin


def twin_pgd(
    net: nn.Module, image: torch.Tensor, target: int, *, norm: str, radius: float, steps: int, size: float
):
    """Projected gradient ascent on one image from the image itself, pixel by pixel."""
    x = image.clone()
    for _ in range(steps):
        x.requires_grad_()
        logits = net(x[None])[0]
        loss = logits.logsumexp(0) - logits[target]
        (g,) = torch.autograd.grad(loss, x)
        gradient, points, clean = (
            g.flatten().tolist(),
            x.detach().flatten().tolist(),
            image.flatten().tolist(),
        )
        length = math.sqrt(sum(v * v for v in gradient))
        moved = []
        for p, v in zip(points, gradient, strict=True):
            step = (v > 0) - (v < 0) if norm == "linf" else v / length
            moved.append(p + size * step)
        delta = [m - c for m, c in zip(moved, clean, strict=True)]
        if norm == "linf":
            delta = [min(max(d, -radius), radius) for d in delta]
        elif (far := math.sqrt(sum(d * d for d in delta))) > radius:
            delta = [d * radius / far for d in delta]
        x = torch.tensor(
            [min(max(c + d, 0), 1) for c, d in zip(clean, delta, strict=True)], dtype=torch.float64
        )
        x = x.view_as(image)
    return x


@pytest.mark.parametrize(
    ("ball", "size"), [(Linf(0.1), 0.03), (Linf(0.9), 0.4), (L2(0.5), 0.2), (L2(3.0), 2.0)]
)
def test_bim_equals_a_slow_twin(net, images, targets, ball, size) -> None:
    found = bim(net, images, targets, ball=ball, steps=5, step_size=size, early_stop=False).inputs
    for x, image, target in zip(found, images, targets.tolist(), strict=True):
        twin = twin_pgd(net, image, target, norm=ball.name, radius=ball.radius, steps=5, size=size)
        assert torch.allclose(x, twin, atol=1e-12, rtol=0)


def test_losses_equal_slow_twins() -> None:
    logits, targets = draw(7, 5, seed=1) * 6 - 3, torch.tensor([0, 1, 2, 3, 4, 0, 1])
    for row, t, ce, m, norm in zip(
        logits.tolist(), targets.tolist(), cross_entropy(logits, targets), margin(logits, targets),
        normalized_cross_entropy(logits, targets), strict=True,
    ):  # fmt: skip
        assert float(ce) == pytest.approx(math.log(sum(math.exp(z) for z in row)) - row[t], abs=1e-12)
        assert float(m) == pytest.approx(max(z for k, z in enumerate(row) if k != t) - row[t], abs=1e-12)
        mean = sum(row) / 5
        spread = math.sqrt(sum((z - mean) ** 2 for z in row) / 5)
        unit = [(z - mean) / spread for z in row]
        assert float(norm) == pytest.approx(math.log(sum(math.exp(z) for z in unit)) - unit[t], abs=1e-12)


def test_normalized_loss_ignores_the_scale_of_the_logits(net, images, targets) -> None:
    class Louder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x):
            return 300 * self.net(x) + 5

    plain = pgd(net, images, targets, ball=Linf(0.05), loss=normalized_cross_entropy, early_stop=False)
    loud = pgd(Louder(), images, targets, ball=Linf(0.05), loss=normalized_cross_entropy, early_stop=False)
    assert torch.allclose(plain.inputs, loud.inputs, atol=1e-9)


# ---- planted truth: a linear network's distance to its boundary is known


class Linear(nn.Module):
    """Two classes, logits (0, w x + b): the boundary lies |w x + b| / ||w||_1 (L-inf) or / ||w||_2 (L2) away."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(draw(9, seed=3) - 0.5)
        self.b = nn.Parameter(0.02 - self.w.detach().sum() / 2)  # images are grey: near the boundary

    def forward(self, x):
        z = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(z), z], 1)


def planted() -> tuple[Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    model, x = Linear(), 0.4 + 0.2 * draw(30, 1, 3, 3, seed=4)
    with torch.no_grad():
        logits = model(x)
    return model, x, logits.argmax(1), logits[:, 1].abs()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_planted_boundary_is_crossed_exactly_where_it_is(norm: str) -> None:
    model, x, y, distance = planted()
    ball, dual = (Linf, model.w.abs().sum()) if norm == "linf" else (L2, model.w.norm())
    threshold = (distance / dual).detach()
    near = threshold < 0.2  # further away [0, 1] would cut the step off
    assert int(near.sum()) > 8
    for i in torch.nonzero(near).flatten().tolist():
        one, label, r = x[i : i + 1], y[i : i + 1], float(threshold[i])
        assert not fgsm(model, one, label, ball=ball(r * 0.999)).reached.item()
        assert fgsm(model, one, label, ball=ball(r * 1.001)).reached.item()
        assert not pgd(model, one, label, ball=ball(r * 0.999)).reached.item()
        assert pgd(model, one, label, ball=ball(r * 1.02)).reached.item()


def test_minimal_l2_finds_the_planted_distance() -> None:
    model, x, y, distance = planted()
    truth = (distance / model.w.norm()).detach()
    found = minimal_l2(model, x, y, steps=200)
    assert float(truth.max()) < 0.3
    assert bool((found.distance >= truth - 1e-9).all())
    assert float((found.distance / truth).max()) < 1.03
    assert bool((predicted(model, found.inputs) != y).all())
    assert torch.allclose((found.inputs - x).flatten(1).norm(dim=1), found.distance)


def test_minimal_l2_of_images_already_wrong_is_zero(net, images, targets) -> None:
    found = minimal_l2(net, images, (targets + 1) % 4, steps=3)
    assert float(found.distance.max()) == 0
    assert torch.equal(found.inputs, images)


# ---- parity with an independent library


@pytest.fixture(scope="module")
def foolbox():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its imports are older than SciPy's namespaces
        return pytest.importorskip("foolbox")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_and_fgsm_equal_foolbox(foolbox, norm: str) -> None:
    with seeded(5):
        net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)).eval()
    x = draw(20, 3, 16, 16, seed=6).float()
    y = predicted(net, x)
    radius, size = (0.03, 0.01) if norm == "linf" else (0.8, 0.2)
    ball = Linf(radius) if norm == "linf" else L2(radius)
    kinds = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    theirs, _, fooled = kinds(abs_stepsize=size, steps=10, random_start=False)(model, x, y, epsilons=radius)
    ours = bim(net, x, y, ball=ball, steps=10, step_size=size, early_stop=False)
    assert torch.allclose(ours.inputs, theirs, atol=1e-5)
    assert torch.equal(ours.reached, fooled)
    assert int(fooled.sum()) > 0
    one = foolbox.attacks.FGSM() if norm == "linf" else foolbox.attacks.FGM()
    theirs, _, fooled = one(model, x, y, epsilons=radius)
    ours = fgsm(net, x, y, ball=ball, early_stop=False)
    assert torch.allclose(ours.inputs, theirs, atol=1e-5)
    assert torch.equal(ours.reached, fooled)


def test_minimal_l2_is_as_short_as_foolbox(foolbox, net, images, targets) -> None:
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    state = torch.random.get_rng_state()  # foolbox draws on the global generator
    _, theirs, fooled = foolbox.attacks.DDNAttack(steps=100)(model, images, targets, epsilons=None)
    torch.random.set_rng_state(state)
    their_distance = (theirs - images).flatten(1).norm(dim=1)
    ours = minimal_l2(net, images, targets)
    assert bool(fooled.all())
    assert float(ours.distance.median()) <= float(their_distance.median()) * 1.02


# ---- what an attack returns


@pytest.mark.parametrize("ball", [Linf(0.08), L2(0.6)])
def test_images_stay_in_the_ball_and_in_range(net, images, targets, ball) -> None:
    found = pgd(net, images, targets, ball=ball, restarts=2)
    assert float(ball.length(found.inputs - images).max()) <= ball.radius * (1 + 1e-9)
    assert float(found.inputs.min()) >= 0 and float(found.inputs.max()) <= 1
    assert torch.equal(found.reached, predicted(net, found.inputs) != targets)
    with torch.no_grad():
        assert torch.allclose(found.score, cross_entropy(net(found.inputs), targets))


@pytest.mark.parametrize("ball", [Linf(0.04), L2(0.5)])
def test_batch_size_and_order_do_not_matter(net, images, targets, ball) -> None:
    index = torch.arange(100, 112)
    whole = pgd(net, images, targets, ball=ball, restarts=2, index=index, seed=3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for part in (order[:5], order[5:6], order[6:]):
        some = pgd(net, images[part], targets[part], ball=ball, restarts=2, index=index[part], seed=3)
        assert torch.allclose(some.inputs, whole.inputs[part], atol=1e-12)
        assert torch.equal(some.reached, whole.reached[part])
    other = pgd(net, images, targets, ball=ball, index=index, seed=4)
    assert not torch.equal(other.inputs, whole.inputs)


def test_images_leave_when_they_fall(net, images, targets) -> None:
    rows = []
    handle = net.register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    wrong = targets.clone()
    wrong[:5] = (wrong[:5] + 1) % 4
    found = bim(net, images, wrong, ball=Linf(0.1), steps=20)
    handle.remove()
    assert rows[0] == 12 and rows[1] <= 7
    assert rows == sorted(rows, reverse=True)
    assert bool(found.reached[:5].all())
    assert torch.equal(found.inputs[:5], images[:5])


def test_more_restarts_never_help_the_network(net, images, targets) -> None:
    counts = [
        int(pgd(net, images, targets, ball=Linf(0.03), steps=3, restarts=r).reached.sum()) for r in (1, 2, 5)
    ]
    assert counts == sorted(counts)
    single = pgd(net, images, targets, ball=Linf(0.005), restarts=1)
    many = pgd(net, images, targets, ball=Linf(0.005), restarts=4)
    assert bool((many.score >= single.score)[~single.reached & ~many.reached].all())


def test_goals_are_reached(net, images, targets) -> None:
    goals = (targets + 1) % 4
    found = pgd(net, images, targets, ball=Linf(0.5), goals=goals, steps=40)
    assert int(found.reached.sum()) >= 9
    assert torch.equal(found.reached, predicted(net, found.inputs) == goals)
    with torch.no_grad():
        assert torch.allclose(found.score, -cross_entropy(net(found.inputs), goals))


def test_radius_zero_changes_nothing(net, images, targets) -> None:
    for ball in (Linf(0.0), L2(0.0)):
        found = pgd(net, images, targets, ball=ball, steps=2)
        assert torch.equal(found.inputs, images)
        assert not bool(found.reached.any())


def test_start_noise_is_uniform_in_the_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([L2(2.0).noise((1, 1, 4), generator) for _ in range(4000)]).flatten(1)
    share = (
        draws.norm(dim=1).div(2).pow(4)
    )  # uniform in [0, 1] when the points are uniform in four dimensions
    assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(share.var()) == pytest.approx(1 / 12, abs=0.006)
    assert float(draws.mean(0).abs().max()) < 0.06
    flat = torch.stack([Linf(0.3).noise((1, 1, 4), generator) for _ in range(4000)])
    assert float(flat.abs().max()) <= 0.3
    assert float(flat.var()) == pytest.approx(0.09 / 3, rel=0.05)


def test_a_ball_of_your_own(net, images, targets) -> None:
    class Uniform:
        """Every pixel moves by the same amount."""

        name, radius = "uniform", 0.2

        def length(self, delta):
            return delta.flatten(1).abs().amax(1)

        def direction(self, gradient):
            return gradient.flatten(1).sum(1).sign().view(-1, 1, 1, 1).expand_as(gradient).clone()

        def project(self, delta):
            return delta.clamp(-self.radius, self.radius)

        def noise(self, shape, generator):
            return torch.zeros(tuple(shape))

    found = pgd(net, 0.3 + 0.4 * images, targets, ball=Uniform(), steps=8, early_stop=False)
    delta = (found.inputs - 0.3 - 0.4 * images).flatten(1)
    assert float((delta - delta[:, :1]).abs().max()) < 1e-9


# ---- invariants


def snapshot(net: nn.Module) -> tuple:
    return (
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
        [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        copy.deepcopy(net.state_dict()),
    )


def same(a: tuple, b: tuple) -> bool:
    grads = all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a[2], b[2], strict=True))
    states = all(torch.equal(x, b[3][key]) for key, x in a[3].items())
    return a[0] == b[0] and a[1] == b[1] and grads and states


def mixed(images: torch.Tensor, targets: torch.Tensor) -> nn.Module:
    """A network in train mode with one part in eval mode, one frozen parameter and gradients left from a step."""
    net = small_net().train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    cross_entropy(net(images), targets).sum().backward()
    return net


def attacks():
    return {
        "pgd": lambda m, x, y: pgd(m, x, y, ball=Linf(0.1), steps=3),
        "fgsm": lambda m, x, y: fgsm(m, x, y, ball=L2(0.1)),
        "minimal": lambda m, x, y: minimal_l2(m, x, y, steps=3),
        "maximize": lambda m, x, y: maximize(m, x, lambda f, z: f(z)[:, 0], ball=Linf(0.1), steps=2),
    }


@pytest.mark.parametrize("name", list(attacks()))
def test_the_model_is_left_as_it_was(images, targets, name) -> None:
    net = mixed(images, targets)
    before = snapshot(net)
    attacks()[name](net, images, targets)
    assert same(before, snapshot(net))
    net[3].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attacks()[name](net, images, targets)
    assert same(before, snapshot(net))


def test_attacks_work_where_gradients_are_off(net, images, targets) -> None:
    expected = pgd(net, images, targets, ball=Linf(0.05)).inputs
    with torch.no_grad():
        assert torch.equal(pgd(net, images, targets, ball=Linf(0.05)).inputs, expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(pgd(net, images, targets, ball=Linf(0.05)).inputs, expected)


def test_inputs_and_their_gradient_are_untouched(net, images, targets) -> None:
    x = images.clone().requires_grad_()
    found = pgd(net, x, targets, ball=Linf(0.05))
    assert x.grad is None and torch.equal(x.detach(), images)
    assert not found.inputs.requires_grad


def test_models_that_return_tuples_or_mappings(net, images, targets) -> None:
    class Wrapped(nn.Module):
        def __init__(self, pack) -> None:
            super().__init__()
            self.net, self.pack = net, pack

        def forward(self, x):
            return self.pack(self.net(x))

    expected = pgd(net, images, targets, ball=Linf(0.05)).inputs
    for pack in (lambda z: (z, None), lambda z: {"logits": z}):
        assert torch.equal(pgd(Wrapped(pack), images, targets, ball=Linf(0.05)).inputs, expected)


# ---- any objective


def test_maximize_raises_a_detector_score_and_never_lowers_it(net, images) -> None:
    def energy(model, x):
        return model(x).logsumexp(1)

    found = maximize(net, images, energy, ball=Linf(0.05), steps=10, restarts=2)
    assert bool((found.score > found.clean_score).all())
    with torch.no_grad():
        assert torch.allclose(energy(net, found.inputs), found.score)
    hidden = maximize(net, images, lambda m, x: -energy(m, x), ball=Linf(0.05), steps=10)
    assert bool((-hidden.score < found.clean_score).all())


def test_maximize_does_not_depend_on_the_batch(net, images) -> None:
    def energy(model, x):
        return model(x).logsumexp(1)

    index = torch.arange(12)
    whole = maximize(net, images, energy, ball=L2(0.5), index=index)
    part = maximize(net, images[4:7], energy, ball=L2(0.5), index=index[4:7])
    assert torch.allclose(part.inputs, whole.inputs[4:7], atol=1e-12)


def test_maximize_finds_the_planted_maximum() -> None:
    model, x, _, _ = planted()
    found = maximize(model, x, lambda m, z: m(z)[:, 1], ball=Linf(0.1), steps=20)
    truth = x + 0.1 * model.w.detach().sign().view(1, 1, 3, 3)
    assert torch.allclose(found.inputs, truth, atol=1e-12)


# ---- inside training


def test_adversarial_batches_for_fit(net, images, targets) -> None:
    prepare = adversarial(Linf(0.1), steps=4)
    net.train()
    before = snapshot(net)
    batch = Batch(images, targets, torch.arange(12))
    moved = prepare(net, batch, torch.Generator().manual_seed(1))
    assert same(before, snapshot(net))
    assert torch.equal(moved.targets, targets) and torch.equal(moved.index, batch.index)
    assert 0.05 < float(Linf(1.0).length(moved.inputs - images).mean()) <= 0.1 + 1e-12
    with attack_mode(net), torch.no_grad():
        assert (
            float((cross_entropy(net(moved.inputs), targets) - cross_entropy(net(images), targets)).min()) > 0
        )
    part = prepare(
        net, Batch(images[3:6], targets[3:6], torch.arange(3, 6)), torch.Generator().manual_seed(1)
    )
    assert torch.allclose(part.inputs, moved.inputs[3:6], atol=1e-12)
    again = prepare(net, batch, torch.Generator().manual_seed(2))
    assert not torch.equal(again.inputs, moved.inputs)
    with pytest.raises(DataError, match="labels"):
        prepare(net, Batch(images, None, torch.arange(12)), torch.Generator())


class CentredLinear(nn.Module):
    """Logits W (x - 0.5), starting at 0."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, pixels))

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


def test_adversarial_training_makes_a_network_robust() -> None:
    """Planted: a strong feature inside the ball, a weak feature outside it; only the weak one is robust."""
    from pellucid.data import array_source

    n = 400
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (n,), generator=generator)
    sign = (2 * y - 1).float()
    x = (
        0.5 + 0.06 * sign.view(n, 1, 1, 1).expand(n, 1, 7, 7).clone()
    )  # 48 pixels, always right, within the radius
    keep = torch.rand(n, generator=generator) < 0.9
    x[:, 0, 3, 3] = 0.5 + 0.3 * torch.where(
        keep, sign, -sign
    )  # one pixel, right nine times in ten, out of reach
    source = array_source(x, y)
    fell = {}
    for name, prepare in (("plain", None), ("robust", adversarial(Linf(0.1), steps=5))):
        model = CentredLinear(49)
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
        fit(
            model,
            source,
            optimizer,
            {"task": CrossEntropy()},
            epochs=8,
            batch_size=100,
            prepare=prepare,
            device="cpu",
        )
        fell[name] = float(pgd(model, x, y, ball=Linf(0.1)).reached.float().mean())
    assert fell["plain"] > 0.9
    assert fell["robust"] < 0.2


# ---- bad input


def test_a_radius_in_grey_levels_is_refused(net, images, targets) -> None:
    with pytest.raises(ConfigError, match=r"outside the pixel range.*8 / 255"):
        Linf(8.0)
    with pytest.raises(ConfigError, match="at most 6 apart"):
        pgd(net, images, targets, ball=L2(128.0))
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="finite number >= 0"):
            L2(bad)
    assert pgd(net, images, targets, ball=L2(6.0), steps=2).inputs.shape == images.shape


def test_probabilities_are_refused(images, targets) -> None:
    with pytest.raises(ConfigError, match=r"returns probabilities.*drop the model's last softmax"):
        pgd(nn.Sequential(small_net(), nn.Softmax(1)), images, targets, ball=Linf(0.1))
    with_log = nn.Sequential(small_net(), nn.LogSoftmax(1))
    assert pgd(with_log, images, targets, ball=Linf(0.1)).inputs.shape == images.shape


def test_outputs_that_are_no_logits_are_refused(images, targets) -> None:
    with seeded(0):
        one, maps = nn.Sequential(nn.Flatten(), nn.Linear(36, 1)).double(), nn.Conv2d(1, 2, 3).double()
    with pytest.raises(ConfigError, match="at least two classes"):
        pgd(one, images, targets * 0, ball=Linf(0.1))
    with pytest.raises(ConfigError, match="expected logits"):
        pgd(maps, images, targets, ball=Linf(0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x * 255).to(torch.uint8), "must be floats"),
        (lambda x: x * 255, r"must lie in \[0, 1\].*normalise"),
        (lambda x: (x - 0.5) / 0.25, r"must lie in \[0, 1\].*pellucid.normalize"),
        (lambda x: x * float("nan"), r"must lie in \[0, 1\]"),
        (lambda x: x[:0], "no image to attack"),
    ],
)
def test_bad_images_are_refused(net, images, targets, change, message) -> None:
    x = change(images)
    with pytest.raises(DataError, match=message):
        check_images(x)
    if x.is_floating_point():
        with pytest.raises(DataError, match=message):
            pgd(net, x, targets[: len(x)], ball=Linf(0.1))


def test_wrong_lengths_and_steps_are_refused(net, images, targets) -> None:
    with pytest.raises(ConfigError, match="steps and restarts"):
        pgd(net, images, targets, ball=Linf(0.1), steps=0)
    with pytest.raises(DataError, match="one sample for each of the 12"):
        as_index(torch.arange(3), 12)


class Rounded(nn.Module):
    """Quantises its input: the gradient is zero almost everywhere, the network is as weak as before."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net((x * 16).round() / 16)


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x.detach())


class Loud(nn.Module):
    """Logits so large that the softmax is exactly one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return 1e6 * self.net(x)


class Broken(nn.Module):
    """sqrt at 0: a finite output with an infinite gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x) + (x.flatten(1)[:, :1] * 0).sqrt()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Rounded, "exactly zero for all 12 images.*nothing about robustness"),
        (Loud, "exactly zero for all 12 images.*loss=margin"),
        (Detached, "does not depend on the input through autograd.*detach"),
        (Broken, "NaN or infinite for 12 of 12 images"),
    ],
)
def test_masked_gradients_are_told_apart(images, model, message) -> None:
    net = model()
    y = predicted(net, images)
    for attack in (pgd, fgsm, bim):
        with pytest.raises(NumericError, match=message):
            attack(net, images, y, ball=Linf(0.1))
    if model is not Detached:
        with pytest.raises(NumericError, match=message):
            minimal_l2(net, images, y, steps=3)


def test_margin_attacks_a_loud_network(images) -> None:
    net = Loud()
    y = predicted(net, images)
    assert int(pgd(net, images, y, ball=Linf(0.1), loss=margin).reached.sum()) > 6


def test_infinite_logits_are_refused(images, targets) -> None:
    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            return self.net(x) * float("inf")

    with pytest.raises(NumericError, match="NaN or infinite logits"):
        pgd(Overflow(), images, targets, ball=Linf(0.1))


def test_bad_objectives_are_refused(net, images) -> None:
    with pytest.raises(ConfigError, match="one score for each of 12 images"):
        maximize(net, images, lambda m, x: m(x).sum(), ball=Linf(0.1))
    with pytest.raises(NumericError, match="does not depend on the input"):
        maximize(net, images, lambda m, x: m(x)[:, 0].detach(), ball=Linf(0.1))
    with pytest.raises(NumericError, match="exactly zero"):
        maximize(net, images, lambda m, x: m(x)[:, 0] * 0, ball=Linf(0.1))
