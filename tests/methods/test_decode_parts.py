"""Decodings looked at, asserted on and chained: likelihoods, traces, prototypes, assertions, guards, chains."""

import dataclasses
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from pellucid import zoo
from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.data import Batch, array_source, table_source
from pellucid.methods.decode import (
    Assertion,
    AssertionFailed,
    BernoulliImages,
    Categorical,
    Chain,
    Columns,
    Decodable,
    DecodeTerm,
    Guarded,
    Plain,
    RecursiveTerm,
    Spectrogram,
    Standardised,
    UnitImages,
    agrees_with,
    calibrated,
    check_assertions,
    decode_between,
    decode_edited,
    first_flip,
    freeze,
    in_range,
    keeps_label,
    make_decodable,
    mlp_generator,
    model,
    prototypes,
    raise_failures,
    residual_below,
    strip,
    table_likelihood,
    trace,
    uniform,
    value_between,
    warn_failures,
)
from pellucid.methods.decode.decoded import Decoded
from pellucid.methods.decode.likelihood import SquaredError
from pellucid.rng import rng
from pellucid.taps import ablate, watch
from pellucid.train import Step, seeded

LAYERS = ("relu1", "relu2", "relu3")
K = 4


def images(n: int = 12, *, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 6, 6, generator=rng(seed, "images"))


def net(*, seed: int = 0, classes: int = K) -> nn.Sequential:
    with seeded(seed):
        return zoo.mlp(image_size=6, classes=classes, hidden=(16, 16, 16))


def decodable() -> Decodable:
    return make_decodable(net(), LAYERS, images())


def number(value: Tensor) -> float:
    return float(value.detach())


# -- likelihoods ----------------------------------------------------------------------------------------------------


def test_likelihoods_by_loops() -> None:
    draw = rng(0, "likelihoods")
    x, raw = torch.rand(3, 5, generator=draw).double(), torch.randn(3, 5, generator=draw).double()
    for i in range(3):
        for j in range(5):
            a, r = float(x[i, j]), float(raw[i, j])
            p = 1 / (1 + math.exp(-r))
            expected = {
                UnitImages(): (a - p) ** 2,
                BernoulliImages(): -a * math.log(p) - (1 - a) * math.log(1 - p),
                Plain(): (a - r) ** 2,
                Standardised(): (a - r) ** 2,
                Standardised((1.0,) * 5, (2.0,) * 5): ((a - 1) / 2 - r) ** 2,
            }
            for likelihood, value in expected.items():
                assert number(likelihood.loss(x, raw)[i, j]) == pytest.approx(value), likelihood
                if isinstance(likelihood, SquaredError):
                    layers = torch.stack([raw, raw])
                    rows, mean = likelihood.mean_loss(x, layers), likelihood.loss(x, raw).mean(1)
                    assert torch.equal(rows, torch.cat([mean, mean])), likelihood
                    assert torch.equal(layers, torch.stack([raw, raw])), "what was drawn is still needed"
    assert torch.equal(UnitImages().decoding(raw), raw.sigmoid())
    large = torch.full((1, 2, 150_000), 3.0).half()  # the sum of squares is beyond half precision
    assert torch.equal(
        Plain().mean_loss(torch.zeros(2, 150_000).half(), large), torch.tensor([9.0, 9.0]).half()
    )
    assert torch.equal(Standardised((1.0,) * 5, (2.0,) * 5).decoding(raw), raw * 2 + 1)


def test_a_likelihood_may_have_weights_of_its_own() -> None:
    class Sharpened(UnitImages):
        slope = torch.tensor(2.0, requires_grad=True)

        def drawn(self, raw: Tensor) -> Tensor:
            return (raw * self.slope).sigmoid()

    made, x, own = decodable(), images(), Sharpened()
    made.decoder.likelihood = own
    raw = made.decoder.raw(made.activations(x))[0].detach()
    expected = torch.autograd.grad(own.loss(x.repeat(3, 1, 1, 1), raw).mean(1).sum(), own.slope)[0]
    found = torch.autograd.grad(made.decoder.residual(x, raw).sum(), own.slope)[0]
    assert torch.allclose(found, expected, rtol=1e-4)


def test_residuals_follow_a_loss_that_a_subclass_brings() -> None:
    class Absolute(UnitImages):
        def loss(self, inputs: Tensor, raw: Tensor) -> Tensor:
            return (raw.sigmoid() - inputs).abs().flatten(1)

    x = images(3)
    made = make_decodable(net(), LAYERS, x, likelihood=Absolute())
    raw = torch.randn(6, 1, 6, 6, generator=rng(0, "raw"))
    expected = (raw.sigmoid() - torch.cat([x, x])).abs().flatten(1).mean(1)
    assert torch.allclose(made.decoder.residual(x, raw), expected)


def test_categorical_fields_by_loops() -> None:
    likelihood = Categorical((2, 3))
    x = torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 1]]).double()
    raw = torch.randn(2, 5, generator=rng(0, "fields")).double()
    likelihood.check(x)
    found, decoding = likelihood.loss(x, raw), likelihood.decoding(raw)
    for i, (a, b) in enumerate([(0, 1), (1, 2)]):
        first = [math.exp(v) for v in raw[i, :2].tolist()]
        second = [math.exp(v) for v in raw[i, 2:].tolist()]
        assert number(found[i, 0]) == pytest.approx(-math.log(first[a] / sum(first)))
        assert number(found[i, 1]) == pytest.approx(-math.log(second[b] / sum(second)))
        assert decoding[i].tolist() == pytest.approx(
            [v / sum(first) for v in first] + [v / sum(second) for v in second]
        )
    with pytest.raises(DataError, match=r"field 1 of row 0 sums to 2"):
        likelihood.check(torch.tensor([[1.0, 0, 1, 1, 0]]))
    with pytest.raises(DataError, match="rows of 5 columns"):
        likelihood.check(torch.rand(2, 4))
    with pytest.raises(ConfigError, match="number of values of each field"):
        Categorical(())


def test_a_table_gets_the_likelihood_of_its_columns(tmp_path) -> None:
    file = tmp_path / "t.csv"
    rows = ["age,colour,score,label"]
    rows += [f"{20 + i % 30},{['red', 'green', 'blue'][i % 3]},{i % 7},{i % 2}" for i in range(60)]
    file.write_text("\n".join(rows))
    source = table_source(file, target="label")
    likelihood = table_likelihood(source)
    assert [(type(part), width) for part, width in likelihood.parts] == [
        (Standardised, 1),
        (Categorical, 3),
        (Standardised, 1),
    ]
    batch = next(source.batches(60))
    with seeded(0):
        model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    made = make_decodable(model, ["1", "2"], batch.inputs, likelihood=likelihood)
    found = trace(made, batch.inputs, batch.targets)
    assert found.decodings.shape == (2, 60, 5)
    assert torch.allclose(found.decodings[..., 1:4].sum(-1), torch.ones(2, 60))
    mean = batch.inputs[:, 0].double().mean()
    assert likelihood.parts[0][0].mean[0] == pytest.approx(float(mean))
    with pytest.raises(DataError, match="no named columns"):
        table_likelihood(array_source(torch.rand(4, 3)))


def test_spectrograms_take_any_level_and_need_maps() -> None:
    x = torch.randn(2, 1, 8, 8, generator=rng(0, "mel")) * 30 - 60
    with seeded(0):
        model = zoo.conv_net(classes=K, widths=(4,), pool_after=())
    made = make_decodable(model, ["relu1"], x, likelihood=Spectrogram())
    assert made.decodings(x).shape == (1, 2, 1, 8, 8)
    with pytest.raises(DataError, match="needs maps"):
        Spectrogram().check(torch.zeros(3, 4))
    assert Columns(((Plain(), 2), (Plain(), 1))).decoding(torch.ones(1, 3)).shape == (1, 3)


# -- traces ---------------------------------------------------------------------------------------------------------


def flip_by_loops(labels: list[int], predicted: int, target: int) -> int:
    if predicted == target:
        return -1
    for start in range(len(labels)):
        if all(label == predicted for label in labels[start:]):
            return start
    return -1


def test_the_first_flip_is_where_the_wrong_label_begins_to_stay() -> None:
    draw = rng(0, "flips")
    labels = torch.randint(2, (4, 200), generator=draw)
    predicted, targets = (torch.randint(2, (200,), generator=draw) for _ in range(2))
    found = first_flip(labels, predicted, targets)
    expected = [flip_by_loops(labels[:, i].tolist(), int(predicted[i]), int(targets[i])) for i in range(200)]
    assert found.tolist() == expected and len(set(expected)) == 5


def test_a_trace_is_decoding_and_running_again_layer_by_layer() -> None:
    made, x, y = decodable(), images(), torch.arange(12) % K
    found = trace(made, x, y)
    made.eval()
    for i, layer in enumerate(LAYERS):
        decoding = made.decode(made.activations(x)[layer], layer)
        assert torch.allclose(found.decodings[i], decoding, atol=1e-6)
        assert torch.allclose(found.probs[i], made(decoding).softmax(1), atol=1e-6)
        assert torch.allclose(found.residual[i], (x - decoding).square().flatten(1).mean(1), atol=1e-6)
    assert torch.allclose(found.prob_true[1], found.probs[1][torch.arange(12), y])
    assert torch.equal(found.wrong, (made(x).argmax(1) != y).nonzero().flatten())
    assert not found.decodings.requires_grad
    with pytest.raises(DataError, match="without targets"):
        _ = trace(made, x).wrong


def test_the_strip_holds_the_input_and_every_decoding() -> None:
    made, x = decodable(), images()
    picture = strip(trace(made, x), 3, gap=2)
    assert picture.shape == (6, 4 * 6 + 3 * 2, 3)
    assert picture[:, :6, 0].tolist() == (x[3, 0] * 255).round().byte().tolist()
    assert (picture[:, 6:8] == 255).all()
    table = Decodable(nn.Sequential(nn.Linear(3, 3)), ["0"], nn.Identity(), likelihood=Plain())
    with pytest.raises(DataError, match="images of 1 or 3 channels"):
        strip(trace(table, torch.rand(2, 3)), 0)


def test_an_ablated_unit_changes_its_layer_and_those_behind_it() -> None:
    made, x = decodable(), images()
    before, after = made.decodings(x), decode_edited(made, x, {"relu2": ablate([0, 1, 2, 3])})
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1]) and not torch.equal(before[2], after[2])
    h = made.activations(x)["relu2"].clone()
    h[:, :4] = 0
    assert torch.allclose(after[1], made.decode(h, "relu2"), atol=1e-6)


def test_between_two_inputs_the_ends_are_their_decodings() -> None:
    made, a, b = decodable(), images(3), images(3, seed=1)
    found = decode_between(made, a, b, steps=5)
    assert found.shape == (3, 5, 3, 1, 6, 6)
    assert torch.allclose(found[:, 0], made.decodings(a), atol=1e-6)
    assert torch.allclose(found[:, 4], made.decodings(b), atol=1e-6)
    middle = (made.activations(a)["relu2"] + made.activations(b)["relu2"]) / 2
    assert torch.allclose(found[1, 2], made.decode(middle, "relu2"), atol=1e-6)
    with pytest.raises(ConfigError, match="at least 2 steps"):
        decode_between(made, a, b, steps=1)


@pytest.mark.parametrize("size", [5, 12])
def test_prototypes_are_class_means_whatever_the_batch(size: int) -> None:
    made, x, y = decodable(), images(), torch.arange(12) % 3
    source = array_source(x, y, classes=["a", "b", "c", "none"])
    found = prototypes(made, source, batch_size=size)
    assert found.count.tolist() == [4, 4, 4, 0]
    decodings = made.decodings(x)
    for c in range(3):
        mean = made.activations(x)["relu3"][y == c].double().mean(0, keepdim=True).float()
        assert torch.allclose(found.of_mean[2, c], made.decode(mean, "relu3")[0], atol=1e-5)
        assert torch.allclose(found.mean_of[1, c], decodings[1][y == c].mean(0), atol=1e-6)
    assert bool(found.mean_of[:, 3].isnan().all())
    distance = found.distance(decodings, y)
    expected = (decodings[2, 7] - found.mean_of[2, 1]).square().mean().sqrt()
    assert number(distance[2, 7]) == pytest.approx(number(expected))
    with pytest.raises(DataError, match="need labels"):
        prototypes(made, array_source(x))


# -- assertions -----------------------------------------------------------------------------------------------------


def test_built_in_distances_by_hand() -> None:
    made, x = decodable(), images()
    made.eval()
    m = freeze(net(seed=7))
    found = check_assertions(
        made,
        x,
        {
            "uniform": uniform(m, tolerance=0.01),
            "agrees": agrees_with(m),
            "label": keeps_label(),
            "residual": residual_below(0.1),
            "range": in_range(0.0, 0.5),
            "mean": value_between(lambda d: d.flatten(1).mean(1), 0.0, 0.3),
        },
    )
    decodings, logits = made.decodings(x), made(x)
    for i in range(3):
        again, theirs = made(decodings[i]), m(decodings[i])
        log_m = theirs.log_softmax(1)
        assert torch.allclose(found["uniform"].distance[i], -log_m.mean(1) - math.log(K), atol=1e-5)
        kl = (log_m.exp() * (log_m - again.log_softmax(1))).sum(1)
        assert torch.allclose(found["agrees"].distance[i], kl, atol=1e-5)
        assert torch.equal(found["label"].failed[i], again.argmax(1) != logits.argmax(1))
        flat = decodings[i].flatten(1)
        assert torch.allclose(found["range"].distance[i], (flat.amax(1) - 0.5).clamp_min(0), atol=1e-6)
        assert torch.allclose(found["mean"].distance[i], (flat.mean(1) - 0.3).clamp_min(0), atol=1e-6)
    assert torch.equal(found["uniform"].margin, 0.01 - found["uniform"].distance)
    assert torch.equal(found["range"].passed, ~(found["range"].distance > 0).any(0))
    assert torch.allclose(found["residual"].distance, trace(made, x).residual)


@pytest.mark.parametrize("numbers", [1, 100, 36 * 5, 36 * 12, 36 * 25])
def test_parts_that_fit_the_caches_change_nothing(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row, a few rows, a layer or two layers at a time: the same distances, and no call beyond what was allowed."""
    made, x = decodable(), images()
    asked = {
        "all": residual_below(),
        "label": keeps_label(),
        "two": dataclasses.replace(residual_below(), layers=("relu3", "relu1")),
    }
    whole = check_assertions(made, x, asked)
    drawn: list[int] = []
    made.decoder.generator.register_forward_hook(lambda _module, _args, output: drawn.append(output.numel()))
    monkeypatch.setattr(model, "AT_ONCE", numbers)
    for name, found in check_assertions(made, x, asked).items():
        assert found.layers == whole[name].layers
        assert torch.allclose(found.distance, whole[name].distance, atol=1e-6), name
    assert max(drawn) <= max(numbers, 36)
    assert sum(drawn) == 3 * x.numel()
    guarded = Guarded(made, asked)
    assert torch.equal(guarded(x), made(x))
    assert torch.allclose(guarded.results["all"].distance, whole["all"].distance, atol=1e-6)


def test_an_assertion_gives_one_distance_a_row() -> None:
    class Whole(Assertion):
        def __call__(self, decoded):
            return decoded.decoding

    expected = r"'whole' must return one distance for each of 36 decodings, came \(36, 1, 6, 6\)"
    with pytest.raises(ConfigError, match=expected):
        check_assertions(decodable(), images(), {"whole": Whole(lambda decoded: decoded.residual)})


def test_a_distance_may_be_infinite_but_not_nan() -> None:
    made, x = decodable(), images()

    def far(decoded: Decoded) -> Tensor:
        return torch.full((len(decoded.raw),), torch.inf) * (-1.0) ** torch.arange(len(decoded.raw))

    assert (
        check_assertions(made, x, {"far": Assertion(far)})["far"].failed.sum()
        == len(made.layers) * len(x) // 2
    )
    with pytest.raises(NumericError, match=r"'gone' gives NaN for 1 examples"):
        check_assertions(
            made, x, {"gone": Assertion(lambda d: torch.where(torch.arange(len(d.raw)) == 5, torch.nan, 0.0))}
        )


@pytest.mark.parametrize("term", [DecodeTerm, RecursiveTerm])
def test_an_assertion_is_enforced_by_its_gradient(term: type[nn.Module]) -> None:
    """A generator trained on nothing but `mean <= 0.2` comes to fulfil it; the checker stays as it is."""
    made = decodable()
    dark = value_between(lambda d: d.flatten(1).mean(1), 0.0, 0.2, weight=2.0)
    loss = term(made, beta=0.0, demands={"dark": dark})
    optimizer = torch.optim.Adam(made.decoder.parameters(), 1e-2)
    x, y = images(), torch.arange(12) % K
    for iteration in range(60):
        with watch(made.model, made.taps, grad=True) as seen:
            output = made.model(x)
        step = Step(
            made.model, Batch(x, y, torch.arange(12)), output, 0, iteration, rng(0, "step", iteration)
        )
        optimizer.zero_grad()
        loss(step, dict(seen)).backward()
        optimizer.step()
    assert bool(check_assertions(made, x, {"dark": dark})["dark"].passed.all())


def test_a_demand_enters_with_its_weight_and_the_discount() -> None:
    made, x, y = decodable(), images(), torch.arange(12) % K
    asked = residual_below(weight=3.0)
    with watch(made.model, made.taps, grad=True) as seen:
        output = made.model(x)

    def value(**options) -> float:
        step = Step(made.model, Batch(x, y, torch.arange(12)), output, 0, 0, rng(0, "step"))
        return number(RecursiveTerm(made, alpha=0.5, beta=1.0, path=("relu2",), **options)(step, dict(seen)))

    extra = 0.5 * 3.0 * number(trace(made, x).residual[1].mean())
    assert value(demands={"a": asked}) - value() == pytest.approx(extra, rel=1e-4)


def test_a_checker_must_be_frozen_and_let_gradients_through() -> None:
    with pytest.raises(ConfigError, match=r"not frozen .* give freeze\(model\)"):
        uniform(net())
    made, x, y = decodable(), images(), torch.arange(12) % K
    blind = value_between(lambda d: (d > 0.5).float().flatten(1).mean(1), 0.0, 0.1)
    with watch(made.model, made.taps, grad=True) as seen:
        output = made.model(x)
    step = Step(made.model, Batch(x, y, torch.arange(12)), output, 0, 0, rng(0))
    with pytest.raises(ConfigError, match="no gradient path from 'blind'"):
        RecursiveTerm(made, demands={"blind": blind})(step, dict(seen))
    with pytest.raises(ConfigError, match="one number for each of"):
        check_assertions(made, x, {"bad": value_between(lambda d: d.mean(), 0.0, 1.0)})
    with pytest.raises(ConfigError, match="gives 3 classes, the classifier 4"):
        check_assertions(made, x, {"bad": agrees_with(freeze(net(classes=3)))})


def test_a_checker_in_training_mode_is_run_in_evaluation_mode_and_given_back() -> None:
    m = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, K)).requires_grad_(False)
    m.train()
    made = decodable()
    first, second = (check_assertions(made, images(), {"u": uniform(m)})["u"].distance for _ in range(2))
    assert torch.equal(first, second) and m.training


def test_tolerances_come_from_held_out_quantiles() -> None:
    made = decodable()
    held_out = array_source(images(200, seed=3))
    made_for = calibrated(residual_below(), made, held_out, quantile=0.95, batch_size=64)
    found = check_assertions(made, images(200, seed=3), {"r": made_for})["r"]
    assert found.failed.sum(1).tolist() == [10, 10, 10] or bool((found.failed.sum(1) <= 10).all())
    assert bool((found.failed.double().mean(1) >= 0.04).all())
    fresh = check_assertions(made, images(400, seed=4), {"r": made_for})["r"]
    assert bool((fresh.failed.double().mean(1) < 0.12).all())
    only = calibrated(Assertion(lambda d: d.residual, layers=("relu2",)), made, held_out, quantile=0.9)
    assert list(only.tolerances(("relu2",))) == [only.tolerance["relu2"]]
    with pytest.raises(ConfigError, match="no tolerance for layers"):
        only.tolerances(("relu1",))
    with pytest.raises(ConfigError, match="held-out examples cannot give"):
        calibrated(residual_below(), made, held_out, quantile=0.999)


def test_a_guard_gives_plain_logits_and_records_warns_or_raises() -> None:
    made, x = decodable(), images()
    made.eval()
    strict = {"residual": residual_below(0.0), "fine": residual_below(10.0)}
    guarded = Guarded(made, strict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(guarded(x), made.model(x))
    assert guarded.results["residual"].failed.shape == (3, 12) and bool(
        guarded.results["residual"].failed.all()
    )
    assert bool(guarded.results["fine"].passed.all())
    with pytest.warns(UserWarning, match="assertion 'residual' fails for 12 of 12 examples; worst: example"):
        Guarded(made, strict, on_failure=warn_failures)(x)
    with pytest.raises(AssertionFailed, match="against 0") as caught:
        Guarded(made, strict, on_failure=raise_failures)(x)
    assert "fine" not in str(caught.value) and set(caught.value.results) == set(strict)
    Guarded(made, {"fine": strict["fine"]}, on_failure=raise_failures)(x)


def test_a_guard_stays_attackable_and_keeps_modes() -> None:
    made = decodable()
    made.train()
    guarded = Guarded(made, {"r": residual_below(0.1)})
    x = images().requires_grad_()
    guarded(x).sum().backward()
    assert x.grad is not None and bool(x.grad.any())
    assert all(module.training for module in guarded.modules())


# -- chains ---------------------------------------------------------------------------------------------------------


def test_a_decoding_goes_into_any_callable() -> None:
    made, x = decodable(), images()
    other = freeze(zoo.conv_net(classes=7, widths=(4,), pool_after=()))
    doubled = Chain(made, "relu2", other, prepare=lambda d: d.repeat_interleave(2, 2).repeat_interleave(2, 3))
    decoding = made.decode(made.activations(x)["relu2"], "relu2")
    expected = other(decoding.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.allclose(doubled(x), expected, atol=1e-6) and doubled(x).shape == (12, 7)
    x.requires_grad_()
    assert bool(torch.autograd.grad(doubled(x).sum(), x)[0].any())
    words = Chain(made, "relu1", lambda d: [f"{float(v):.1f}" for v in d.flatten(1).mean(1)])
    assert len(words(images())) == 12


def test_a_generator_for_a_table_shape_is_checked() -> None:
    with pytest.raises(ConfigError, match="sizes of at least 1"):
        mlp_generator(0, (1, 6, 6))
