"""Alignment by metrics: two alternatives, clustering (test 14), the committee, trunks, heads, and what each refuses."""

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError, NumericError, WeightsError
from pellucid.data import Source, open_source, shapes_source
from pellucid.evals.alignment import (
    Items,
    clustering,
    credit_of,
    distance_matrix,
    hard_triples,
    independent,
    nearness_of,
    one_to_one,
    paired_difference,
    random_triples,
    share_of,
    two_afc,
)
from pellucid.evals.alignment_committee import (
    AFC,
    CLUSTER,
    HARD,
    MATCHED,
    Member,
    committee,
    judge,
)
from pellucid.evals.classify import wilson
from pellucid.evals.heads import CALIBRATED, calibrate_heads
from pellucid.evals.perceptual import check_axioms, lpips_distance, ssim_distance
from pellucid.evals.trunk import (
    LEAST_IMAGES,
    SELF_TRAINED,
    STAGES,
    UNTRAINED,
    contrastive,
    members_of,
    self_trained,
    small_trunk,
    tensor_hashes,
    untrained,
    user_trunk,
)
from pellucid.rng import rng


def pixel_l2(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).sum(1).add(1e-12).sqrt()


def coin(a: Tensor, b: Tensor) -> Tensor:
    """A metric that knows nothing: a number from a hash of both images."""
    return ((a.flatten(1).double() * 7919 + b.flatten(1).double() * 104729).sum(1) * 1e4).frac().abs().float()


@functools.cache
def pictures(n: int) -> Tensor:
    """Large patches, so that a blur keeps most of them."""
    small = torch.rand(n, 1, 2, 2, generator=rng(0, "pictures"))
    return nn.functional.interpolate(small, size=8, mode="bilinear").clamp(0, 1)


def items(n: int = 12, n_starts: int = 2, *, mix: float = 0.8) -> Items:
    """Results that are `mix` of their target and the rest of their start."""
    targets = pictures(n)
    target = torch.arange(n).repeat(n_starts)
    start = torch.arange(n_starts).repeat_interleave(n)
    begun = torch.rand(len(target), 1, 8, 8, generator=rng(0, "begun"))
    results = mix * targets[target] + (1 - mix) * begun
    return Items(results, begun, targets, target, start, torch.arange(n) % 3)


def test_two_afc_counts_ties_half_and_targets_alike() -> None:
    near, far = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 1.0])
    assert credit_of(near, far).tolist() == [1.0, 0.5, 0.0]
    assert two_afc(pixel_l2, items(mix=0.8)).percent == 100
    assert two_afc(pixel_l2, items(mix=0.2)).percent == 0
    assert two_afc(lambda a, b: torch.ones(len(a)), items()).percent == 50
    # Target 0 has three items, target 1 one: each counts one half.
    share = share_of(
        torch.tensor([1.0, 1.0, 0.0, 0.0]),
        torch.tensor([0, 0, 0, 1]),
        torch.tensor([0, 1, 2, 0]),
        chance=50.0,
    )
    assert share.percent == pytest.approx(100 / 3) and (share.items, share.targets) == (4, 2)
    assert share.by_start == {0: 50.0, 1: 100.0, 2: 0.0} and share.spread == pytest.approx(50.0)


def test_wilson_is_over_targets() -> None:
    share = two_afc(pixel_l2, items(12, 3))
    low, high = wilson(12, 12)
    assert (share.low, share.high) == (100 * low, 100 * high) and share.items == 36
    none = two_afc(pixel_l2, items(), chosen=torch.zeros(24, dtype=torch.bool))
    assert np.isnan(none.percent) and none.items == none.targets == 0 and np.isnan(none.spread)


def twin_independent(d: np.ndarray) -> list[float]:
    return [float(d[r][r] == min(d[r])) / list(d[r]).count(min(d[r])) for r in range(3)]


def twin_matched(d: np.ndarray) -> list[float]:
    totals = {p: sum(d[r][p[r]] for r in range(3)) for p in itertools.permutations(range(3))}
    best = [p for p, total in totals.items() if total == min(totals.values())]
    return [sum(p[r] == r for p in best) / len(best) for r in range(3)]


def test_assignments_equal_their_slow_twins_ties_included() -> None:
    drawn = np.random.default_rng(0).integers(0, 4, (200, 3, 3)).astype(float)
    nearness = torch.from_numpy(drawn)
    for mine, twin in ((independent, twin_independent), (one_to_one, twin_matched)):
        expected = np.array([twin(d) for d in drawn])
        np.testing.assert_allclose(mine(nearness).numpy(), expected, atol=1e-12)


def test_A14_a_perfect_metric_clusters_everything_and_a_random_one_a_third() -> None:
    aligned = items(30, 2, mix=0.9)
    for assign in (independent, one_to_one):
        assert clustering(pixel_l2, aligned, assign=assign).percent == 100
        assert clustering(pixel_l2, aligned, assign=assign, classes=aligned.classes).percent == 100
    nearness = torch.rand(4000, 3, 3, generator=rng(0, "random metric"), dtype=torch.float64)
    for assign, sd in ((independent, (1 / 3 * 2 / 3 / 3) ** 0.5), (one_to_one, 1 / 3)):
        found = float(assign(nearness).mean())
        assert abs(found - 1 / 3) <= 3 * sd / 4000**0.5
    right = one_to_one(nearness).sum(1).round().long()
    counts = torch.bincount(right, minlength=4).tolist()
    assert counts[2] == 0, "two of three can never be right alone"
    for number, p in ((0, 2 / 6), (1, 3 / 6), (3, 1 / 6)):
        assert abs(counts[number] / 4000 - p) <= 3 * (p * (1 - p) / 4000) ** 0.5
    whole = clustering(coin, aligned, count=400)
    assert abs(whole.percent - 100 / 3) <= 3 * 100 * (2 / 9 / 60) ** 0.5


def test_the_two_questions_differ_for_a_faint_trace() -> None:
    faint = items(24, 1, mix=0.3)
    assert two_afc(pixel_l2, faint).percent == 0
    assert clustering(pixel_l2, faint).percent > 55


def test_triples_use_every_target_alike_and_stay_in_their_class() -> None:
    triples = random_triples(torch.arange(10, 21), 22, seed=3)
    assert triples.shape == (22, 3) and all(len(set(row)) == 3 for row in triples.tolist())
    counts = torch.bincount(triples.flatten() - 10)
    assert int(counts.sum()) == 66 and int(counts.min()) >= 1
    assert torch.equal(triples, random_triples(torch.arange(10, 21), 22, seed=3))
    classes = torch.tensor([0] * 4 + [1] * 2 + [2] * 5)
    hard = hard_triples(torch.arange(11), classes, 9)
    assert len(hard) == 9 and all(len(set(classes[row].tolist())) == 1 for row in hard)
    assert 1 not in classes[hard]
    with pytest.raises(ConfigError, match="at least 3 targets"):
        random_triples(torch.arange(2), 5)
    with pytest.raises(ConfigError, match="no class has three"):
        hard_triples(torch.arange(4), torch.tensor([0, 0, 1, 1]), 5)


def test_only_the_pairs_of_the_triples_are_computed() -> None:
    asked: list[int] = []

    def counting(a: Tensor, b: Tensor) -> Tensor:
        asked.append(len(a))
        return pixel_l2(a, b)

    targets = pictures(30)
    triples = torch.tensor([[0, 1, 2], [0, 1, 2], [2, 4, 5]])
    matrix = distance_matrix(counting, targets.flip(3), targets, triples)
    assert sum(asked) == 17 and int(matrix.isfinite().sum()) == 17
    assert float(nearness_of(matrix, triples)[2, 1, 0]) == pytest.approx(
        float(pixel_l2(targets.flip(3)[4:5], targets[2:3])), rel=1e-6
    )


def test_paired_difference_resamples_targets_together() -> None:
    first, second = torch.ones(40), torch.cat([torch.zeros(10), torch.ones(30)])
    found = paired_difference(first, second)
    assert found.points == 25 and 8 < found.low < 25 < found.high < 42 and found.targets == 40
    assert paired_difference(second, second).low == 0
    with pytest.raises(DataError, match="same targets"):
        paired_difference(first, second[:5])


def blurry(a: Tensor, b: Tensor) -> Tensor:
    return pixel_l2(a.mean((2, 3), keepdim=True), b.mean((2, 3), keepdim=True))


def test_a_committee_shows_every_column_and_warns_when_members_differ() -> None:
    def member(name: str, percent: float, **more: bool) -> tuple[Member, object]:
        share = share_of(
            torch.tensor([percent / 100]), torch.zeros(1).long(), torch.zeros(1).long(), chance=50.0
        )
        return Member(name, pixel_l2, "weight-free", **more), share

    rows = [
        member("a", 80.0),
        member("b", 50.0),
        member("control", 0.0, control=True),
        member("hit", 5.0, attacked=True),
    ]
    found = committee({m.name: s for m, s in rows}, [m for m, _ in rows])
    assert found.columns == pytest.approx({"a": 80, "b": 50, "control": 0, "hit": 5})
    assert found.mean == pytest.approx(65) and found.sd == pytest.approx(30 / 2**0.5)
    assert found.warning == "members differ by 30 points: a says 80.0 %, b 50.0 %"
    close = [member("a", 60.0), member("b", 45.0)]
    assert committee({m.name: s for m, s in close}, [m for m, _ in close]).warning == ""
    with pytest.raises(ConfigError, match="no member votes"):
        committee({rows[2][0].name: rows[2][1]}, [rows[2][0]])
    with pytest.raises(ConfigError, match="no share of"):
        committee({}, [rows[0][0]])


def test_judging_gives_every_measure_for_every_subset() -> None:
    judged = items(12, 2)
    half = judged.start == 0
    few = torch.zeros(24, dtype=torch.bool)
    few[:2] = True
    found = judge(
        Member("l2", pixel_l2, "weight-free"),
        judged,
        {"all": torch.ones(24, dtype=torch.bool), "half": half, "few": few},
    )
    assert {key for key in found.shares if key[1] == "all"} == {
        (m, "all") for m in (AFC, CLUSTER, MATCHED, HARD)
    }
    assert found.shares[AFC, "half"].items == 12 and found.shares[AFC, "few"].targets == 2
    assert found.shares[CLUSTER, "few"].items == 0 and np.isnan(found.shares[CLUSTER, "few"].percent)
    direct = clustering(pixel_l2, judged, assign=one_to_one, chosen=half)
    assert found.shares[MATCHED, "half"] == direct
    assert found.credits.mean() == 1


def test_A13_a_metric_that_is_none_is_refused_before_it_judges() -> None:
    def signed(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).flatten(1).sum(1)

    everything = {"all": torch.ones(24, dtype=torch.bool)}
    with pytest.raises(ConfigError, match="'signed' is no perceptual distance"):
        judge(Member("signed", signed, "user files"), items(), everything)
    with pytest.raises(NumericError, match="NaN"):
        two_afc(lambda a, b: pixel_l2(a, b) * float("nan"), items())


def test_items_that_do_not_belong_together_are_refused() -> None:
    good = items(3, 1)
    with pytest.raises(DataError, match="one result, start"):
        Items(good.results[:2], good.starts, good.targets, good.target, good.start)
    with pytest.raises(DataError, match="none of the 3 targets"):
        Items(good.results, good.starts, good.targets, good.target + 1, good.start)
    with pytest.raises(DataError, match="same target and the same start"):
        Items(good.results, good.starts, good.targets, good.target * 0, good.start)


def small_source(n: int = 60) -> Source:
    return shapes_source(n, size=16, target="shape")


def test_self_trained_trunks_are_distances_and_three_at_least(tmp_path) -> None:
    source = small_source()
    made = self_trained(source, epochs=1, batch_size=20, checkpoint=tmp_path)
    assert [t.metric.name for t in made] == ["self-trained 1", "self-trained 2", "self-trained 3"]
    assert len({t.metric.fingerprint for t in made}) == 3 and made[0].metric.rung == SELF_TRAINED
    images = next(source.batches(6)).inputs
    assert float(made[0].metric(images, images).abs().max()) == 0
    again = self_trained(source, epochs=1, batch_size=20, checkpoint=tmp_path)
    assert again[2].metric.fingerprint == made[2].metric.fingerprint, "found again, not trained again"
    control = untrained(source)
    assert control.rung == UNTRAINED and control.fingerprint not in {t.metric.fingerprint for t in made}
    with pytest.raises(ConfigError, match="at least 3 trunks"):
        self_trained(source, replicates=2)
    bare = Source("bare", [(images[i], None) for i in range(6)])
    with pytest.raises(ConfigError, match="no labels"):
        self_trained(bare)


def unlabelled(n: int, *, size: int = 16) -> Source:
    source = shapes_source(n, size=size)
    return Source("photographs", [(source[i][0], None) for i in range(n)])


def test_trunks_are_trained_by_contrast_where_there_are_no_labels(tmp_path, untouched_rng: None) -> None:
    source = unlabelled(33)
    made = contrastive(source, epochs=1, batch_size=16, checkpoint=tmp_path)
    assert [t.metric.name for t in made] == ["contrastive 1", "contrastive 2", "contrastive 3"]
    assert len({t.metric.fingerprint for t in made}) == 3 and {t.metric.rung for t in made} == {SELF_TRAINED}
    assert all(member.votes for member in members_of(made)) and all(np.isfinite(t.loss) for t in made)
    first = small_trunk(3, 2, seed=0, replicate=0)
    assert not torch.equal(made[0].metric.trunk[0].weight, first[0].weight), "it was trained"
    images = next(source.batches(6)).inputs
    assert check_axioms(made[0].metric, images).failed == ()
    again = contrastive(source, epochs=1, batch_size=16, checkpoint=tmp_path)
    assert again[2].metric.fingerprint == made[2].metric.fingerprint, "found again, not trained again"
    with pytest.raises(ConfigError, match="at least 3 trunks"):
        contrastive(source, replicates=1)
    with pytest.raises(ConfigError, match=f"at least {LEAST_IMAGES} images"):
        contrastive(unlabelled(5))
    tested = tensor_hashes(made[1].metric.trunk)
    with pytest.raises(ConfigError, match="cannot be its own judge"):
        contrastive(source, epochs=1, batch_size=16, checkpoint=tmp_path, tested=tested)


@pytest.mark.slow
def test_a_contrastive_trunk_knows_a_shifted_image_again_better_than_an_untrained_one() -> None:
    """The same picture moved by some pixels is nearer than another picture: what the views taught it."""
    from pellucid.methods.paradigms import blur, resized_crop

    source = unlabelled(240, size=20)
    (trained, *_) = contrastive(source, changes=(resized_crop(0.3), blur()), epochs=6, batch_size=40)
    x = next(source.batches(60)).inputs
    moved, other = x.roll((3, 3), (2, 3)), x.roll(7, 0)

    def share(metric) -> float:
        return float((metric(moved, x) < metric(other, x)).double().mean())

    assert trained.loss < np.log(79)
    assert share(trained.metric) > share(untrained(source)) - 0.02 and share(trained.metric) > 0.6


def test_a_network_is_not_its_own_judge() -> None:
    tested = small_trunk(3, 4, seed=5, replicate=0)
    with pytest.raises(ConfigError, match="cannot be its own judge"):
        user_trunk(tested, STAGES, heads=None, trained=True, name="mine", tested=tensor_hashes(tested))
    cut = nn.Sequential(tested.conv1, nn.ReLU())
    with pytest.raises(ConfigError, match="shares 1 weight tensors"):
        user_trunk(cut, ["1"], heads=None, trained=True, name="cut", tested=tensor_hashes(tested))
    other = small_trunk(3, 4, seed=6, replicate=0)
    member = user_trunk(other, STAGES, heads=None, trained=True, name="mine", tested=tensor_hashes(tested))
    assert member.votes and member.rung == "user files" and len(member.fingerprint) == 64
    control = user_trunk(other, STAGES, heads=None, trained=False, name="mine")
    assert control.control and control.rung == UNTRAINED and not control.votes
    with pytest.raises(WeightsError, match="negative"):
        user_trunk(other, ["relu1"], heads=[torch.randn(16) - 1], trained=True, name="signed")


def planted(n: int = 80) -> tuple[Tensor, Tensor, Tensor, np.ndarray, object]:
    """Results between a target and a start; people look at the first stage only."""
    base = lpips_distance(
        small_trunk(3, 4, seed=1, replicate=0),
        STAGES,
        heads=None,
        name="trunk",
        rung=SELF_TRAINED,
        preprocess=False,
    )
    images = next(shapes_source(3 * n, size=16).batches(3 * n)).inputs
    results, targets, starts = images.split(n)
    with torch.no_grad():
        near, far = base.parts(results, targets)[0].sum(1), base.parts(results, starts)[0].sum(1)
    return results, targets, starts, (near < far).numpy().astype(float), base


@pytest.mark.slow
def test_heads_are_fitted_to_people_and_judged_on_items_left_out() -> None:
    results, targets, starts, chose, base = planted()
    plain = (base(results, targets) < base(results, starts)).numpy()
    found = calibrate_heads(
        base,
        results,
        targets,
        starts,
        chose=chose,
        answers=np.full(80, 5),
        groups=np.arange(80) // 2,
        per_stage=True,
    )
    assert found.metric.rung == CALIBRATED and (found.items, found.answers) == (80, 400)
    assert found.ceiling == 1 and found.baseline == pytest.approx((plain == (chose == 1)).mean())
    assert found.agreement > 0.9 and found.agreement >= found.baseline - 0.02
    heads = found.metric.heads
    assert heads is not None and float(heads[0].min()) > 0 and min(float(h.min()) for h in heads) >= 0
    assert float(heads[0][0]) * float(base.parts(results, targets)[0].mean()) > 0
    by_channel = calibrate_heads(base, results, targets, starts, chose=chose, answers=np.full(80, 5))
    assert by_channel.agreement > 0.8 and len(by_channel.metric.heads[2]) == 64


def test_answers_that_cannot_be_fitted_are_named() -> None:
    results, targets, starts, chose, base = planted(24)
    fit = functools.partial(calibrate_heads, base, results, targets, starts)
    with pytest.raises(DataError, match="at least 20 items"):
        calibrate_heads(base, results[:5], targets[:5], starts[:5], chose=chose[:5], answers=np.ones(5, int))
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        fit(chose=chose * 2, answers=np.ones(24, int))
    with pytest.raises(DataError, match="at least one answer"):
        fit(chose=chose, answers=np.zeros(24, int))
    with pytest.raises(ConfigError, match="folds"):
        fit(chose=chose, answers=np.ones(24, int), folds=30)


@pytest.mark.data
@pytest.mark.slow
def test_A13_staged_heads_on_a_random_trunk_are_a_control(data_root) -> None:
    from torchvision.models import squeezenet1_1

    from pellucid.evals.perceptual import load_heads
    from pellucid.evals.trunk import KNOWN_STAGES
    from pellucid.train import seeded

    heads = load_heads(data_root / "weights" / "lpips_heads_v0.1" / "squeeze.pth")
    with seeded(0):
        trunk = squeezenet1_1(weights=None)
    member = user_trunk(trunk, KNOWN_STAGES["squeezenet1_1"], heads=heads, trained=False, name="squeeze")
    digits = next(open_source("digits", split="test").batches(6)).inputs
    big = nn.functional.interpolate(digits.expand(-1, 3, -1, -1), size=48, mode="nearest")
    judged = Items(big.flip(3), 1 - big, big, torch.arange(6), torch.zeros(6).long())
    found = judge(member, judged, {"all": torch.ones(6, dtype=torch.bool)}, count=6)
    assert member.control and found.shares[AFC, "all"].targets == 6


def test_ssim_of_a_committee_is_the_public_function() -> None:
    judged = items(8, 1)
    found = judge(
        Member("ssim", ssim_distance, "weight-free"), judged, {"all": torch.ones(8, dtype=torch.bool)}
    )
    assert found.shares[AFC, "all"] == two_afc(ssim_distance, judged)
