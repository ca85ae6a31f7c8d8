"""Pass 2 against the formulas written again in float64, on the planted world, and on bad input."""

import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pellucid._checks import ConfigError, DataError, NumericError, StaleResultError
from pellucid.methods.dissect import (
    Collected,
    Concepts,
    Descriptions,
    collect_arrays,
    concept_table,
    correlation,
    cosine,
    cosine_cubed,
    merge,
    rank_reorder,
    raw_cosine,
    soft_wpmi,
    wpmi,
)
from pellucid.methods.dissect.result import Ranking
from pellucid.methods.dissect.wpmi import _lists

sys.path.insert(0, str(Path(__file__).parent))
from dissect_worlds import CONCEPTS, World, normed, recovered, world


@pytest.fixture(scope="module")
def low() -> World:
    return world(0.6)


@pytest.fixture(scope="module")
def high() -> World:
    return world(1.5)


# The formulas again, whole matrices in float64: the slow twins. Ties: value falling, then lower image index.


def softmax_rows(e: Tensor, t: Tensor, a: float) -> Tensor:
    return (a * e.double() @ t.double().T).softmax(1)


def strongest(q: Tensor, n: int) -> Tensor:
    return q.argsort(dim=0, descending=True, stable=True)[:n]


def twin_soft_wpmi(q: Tensor, e: Tensor, t: Tensor, *, n=100, a=10.0, lam=1.0, eps=1e-7) -> Tensor:
    s, found = softmax_rows(e, t, a), []
    for k in range(q.shape[1]):
        total = torch.zeros(len(t), dtype=torch.float64)
        for r, i in enumerate(strongest(q[:, k], n).tolist()):
            p = 0.998 - (r / n) * (0.998 - 0.97)
            total += (1 + p * (s[i] - 1) + eps).log()
        found.append(total)
    ell = torch.stack(found)
    return ell - lam * (ell.logsumexp(0) - math.log(q.shape[1]))


def twin_wpmi(q: Tensor, e: Tensor, t: Tensor, *, n=28, a=2.0, lam=0.6, eps=1e-7) -> Tensor:
    s = softmax_rows(e, t, a)
    ell = torch.stack([(s[strongest(q[:, k], n)] + eps).log().sum(0) for k in range(q.shape[1])])
    return ell - lam * (ell.logsumexp(0) - math.log(q.shape[1]))


def twin_raw_cosine(q: Tensor, e: Tensor, t: Tensor) -> Tensor:
    p, q = e.double() @ t.double().T, q.double()
    return q.T @ p / q.norm(dim=0).unsqueeze(1) / p.norm(dim=0)


def twin_cosine(q: Tensor, e: Tensor, t: Tensor) -> Tensor:
    return twin_raw_cosine(q.double() - q.double().mean(0), e, t)


def twin_correlation(q: Tensor, e: Tensor, t: Tensor) -> Tensor:
    p = e.double() @ t.double().T
    return torch.corrcoef(torch.cat([q.double(), p], dim=1).T)[: q.shape[1], q.shape[1] :]


def twin_cubed(q: Tensor, e: Tensor, t: Tensor) -> Tensor:
    p, q = e.double() @ t.double().T, q.double()
    p, q = (p - p.mean(0)) ** 3, (q - q.mean(0)) ** 3
    return (q / q.norm(dim=0).clamp_min(1e-3)).T @ (p / p.norm(dim=0).clamp_min(1e-3))


def twin_rank_reorder(q: Tensor, e: Tensor, t: Tensor) -> Tensor:
    n = int(0.05 * len(q))
    p_all, found = e.double() @ t.double().T, torch.empty(q.shape[1], len(t), dtype=torch.float64)
    for k in range(q.shape[1]):
        top = strongest(q[:, k], n)
        v, s = q[top, k].double(), q[top, k].double().flip(0)
        base = sum(float((x - y).abs() ** 3) for x in s for y in s) / n**2
        for m in range(len(t)):
            rank = p_all[top, m].argsort(stable=True).argsort(stable=True)
            err = (v - s[rank]).abs().pow(3).mean()
            found[k, m] = -(err / base) / p_all[top, m].mean().sqrt()
    return found


def everything(found: Descriptions) -> Tensor:
    """The whole matrix [units, concepts] of a call that kept all candidates."""
    return torch.empty_like(found.scores).scatter_(1, found.candidates, found.scores)


TWINS: dict[str, tuple[Callable[..., Descriptions], Callable[..., Tensor]]] = {
    "soft_wpmi": (soft_wpmi, twin_soft_wpmi),
    "wpmi": (wpmi, twin_wpmi),
    "cosine": (cosine, twin_cosine),
    "raw_cosine": (raw_cosine, twin_raw_cosine),
    "correlation": (correlation, twin_correlation),
    "cosine_cubed": (cosine_cubed, twin_cubed),
    "rank_reorder": (rank_reorder, twin_rank_reorder),
}


def small(
    dtype=torch.float64, *, seed: int = 0, images: int = 400, ties: bool = True
) -> tuple[World, Tensor]:
    """A small world and eight units, two of them with many equal responses."""
    found = world(1.0, seed=seed, concepts=23, images=images, dtype=dtype)
    q = found.units["noisy"][:, :8].clone()
    if ties:
        q[:, 1] = (2 * q[:, 1]).round() / 2
        q[:, 5] = (2 * q[:, 5]).round() / 2
    return found, q


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_T13_each_similarity_is_its_formula(name: str, dtype: torch.dtype, within: float) -> None:
    ours, twin = TWINS[name]
    w, q = small(dtype)
    # Without a resting level, so that every strongest image is listed as in the plain formula.
    q = q + 1e-3 * torch.arange(len(q)).unsqueeze(1) if name.endswith("wpmi") else q
    collected = collect_arrays({"l": q}, w.embeddings, keep_responses=True)
    options = {"among": 23} if name == "rank_reorder" else {}
    found = everything(ours(collected, w.concepts, candidates=23, **options))
    wanted = twin(q.float() if name == "cosine_cubed" else q, w.embeddings, w.concepts.vectors)
    # responses are kept in float32
    scale = 1 if name != "cosine_cubed" else 1e3
    assert (found - wanted).abs().max() < within * scale * (
        5 if dtype == torch.float32 and name == "rank_reorder" else 1
    )
    assert torch.equal(found.argmax(1), wanted.argmax(1))


def parts_of(w: World, q: Tensor, index: Tensor, **options) -> Collected:
    return collect_arrays({"a": q[index, :3], "b": q[index, 3:]}, w.embeddings[index], index=index, **options)


@pytest.fixture(scope="module")
def ways() -> list[Collected]:
    """The same 130 images and 8 units, ties included, collected in every way."""
    w, q = small(images=130)
    whole = torch.arange(130)
    shuffled = torch.randperm(130, generator=torch.Generator().manual_seed(1))
    keep = {"keep_responses": True}
    return [
        parts_of(w, q, whole, **keep),
        parts_of(w, q, whole, batch_size=1, **keep),
        parts_of(w, q, whole, batch_size=7, **keep),
        parts_of(w, q, shuffled, **keep),
        merge([parts_of(w, q, part, **keep) for part in shuffled.split(47)]),
        merge([parts_of(w, q, part, **keep) for part in reversed(shuffled.split(29))]),
    ]


@pytest.mark.parametrize("name", TWINS)
def test_T13_T15_batch_split_and_order_change_nothing(name: str, ways: list[Collected]) -> None:
    w, _ = small(images=130)
    first, *others = [TWINS[name][0](way, w.concepts) for way in ways]
    for other in others:
        assert torch.equal(other.candidates, first.candidates)
        torch.testing.assert_close(other.scores, first.scores, rtol=0, atol=1e-9)
        torch.testing.assert_close(other.p, first.p, rtol=0, atol=0, equal_nan=True)
        assert other.status == first.status and other.key == first.key
        assert torch.equal(other.images, first.images)


@pytest.mark.parametrize("name", TWINS)
def test_T15_permuting_concepts_permutes_labels(name: str) -> None:
    w, q = small()
    collected = parts_of(w, q, torch.arange(400), keep_responses=True)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(2))
    other = Concepts(tuple(w.concepts.names[i] for i in order), w.concepts.vectors[order])
    first, second = (TWINS[name][0](collected, c) for c in (w.concepts, other))
    assert first.best == second.best
    assert first.key != second.key, "another order is another concept set"


def test_concept_chunks_change_nothing() -> None:
    w, q = small()
    collected = parts_of(w, q, torch.arange(400))
    whole = soft_wpmi(collected, w.concepts)
    chunked = soft_wpmi(collected, w.concepts, budget=2 * 508 * 8 * 5)
    torch.testing.assert_close(whole.scores, chunked.scores, rtol=0, atol=1e-9)
    assert torch.equal(whole.candidates, chunked.candidates) and torch.equal(whole.p, chunked.p)


def test_ranking_keeps_the_best_and_breaks_ties_by_number() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, 0.0]])
    ranking = Ranking.empty(1, 3)
    for start in range(0, 6, 2):
        ranking = ranking.and_(scores[:, start : start + 2], start)
    assert ranking.candidates.tolist() == [[1, 2, 4]]


# Acceptance on the planted world.


@pytest.mark.parametrize("kind", ["clean", "noisy"])
@pytest.mark.parametrize("noise", ["low", "high"])
def test_T8_labels_are_recovered(noise: str, kind: str, request: pytest.FixtureRequest) -> None:
    w = request.getfixturevalue(noise)
    collected = w.collect(kind, keep_responses=True)
    assert recovered(soft_wpmi(collected, w.concepts, null=0).candidates[:, 0]) >= 0.99
    # Reported for the released functions on other draws of this world; ours must not fall short by more than sampling.
    least = {
        ("low", "clean"): (0.98, 0.98, 0.98), ("high", "clean"): (0.98, 0.98, 0.95),
        ("low", "noisy"): (0.97, 0.97, 0.90), ("high", "noisy"): (0.88, 0.84, 0.42),
    }[noise, kind]  # fmt: skip
    found = (wpmi, cosine_cubed, cosine)
    for similarity, share in zip(found, least, strict=True):
        assert recovered(similarity(collected, w.concepts, null=0).candidates[:, 0]) >= share, similarity


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "kind", "least"), [("low", "clean", 0.98), ("low", "noisy", 0.88), ("high", "noisy", 0.84)]
)
def test_T8_rank_reorder_recovers_labels(
    noise: str, kind: str, least: float, request: pytest.FixtureRequest
) -> None:
    w = request.getfixturevalue(noise)
    found = rank_reorder(w.collect(kind, top_k=200), w.concepts, null=0)
    assert recovered(found.candidates[:, 0]) >= least


def test_T9_offset_units_lose_only_the_raw_cosine(low: World) -> None:
    collected = low.collect("offset", top_k=200, keep_responses=True)
    for similarity in (soft_wpmi, wpmi, cosine_cubed, cosine, correlation):
        assert recovered(similarity(collected, low.concepts, null=0).candidates[:, 0]) >= 0.98, similarity
    half = collect_arrays({"o": low.units["offset"][:, :40]}, low.embeddings, top_k=200)
    found = rank_reorder(half, low.concepts, null=0, among=40)
    assert float((found.candidates[:, 0] == torch.arange(40)).double().mean()) >= 0.98
    assert recovered(raw_cosine(collected, low.concepts).candidates[:, 0]) <= 0.10


def mixed(w: World, kind: str) -> Collected:
    """A layer of 200 units, of which the first half are sparse."""
    q = w.units["clean"].clone()
    q[:, : CONCEPTS // 2] = w.units[kind][:, : CONCEPTS // 2]
    return collect_arrays({"l": q}, w.embeddings)


@pytest.mark.slow
def test_T10_sparse_units_are_recovered_and_counted(low: World, high: World) -> None:
    for w, least in ((low, 0.85), (high, 0.75)):
        found = soft_wpmi(mixed(w, "sparse"), w.concepts)
        right = found.candidates[:, 0] == torch.arange(CONCEPTS)
        assert 8 <= found.active[:100].double().median() <= 11
        assert right[:100].double().mean() >= 0.99 and right[100:].double().mean() >= 0.99
        assert torch.equal(found.active[:100], (w.units["sparse"][:, :100] > 0).sum(0))
        fewer = soft_wpmi(mixed(w, "sparser"), w.concepts)
        assert fewer.active[:100].double().median() == 4
        right = fewer.candidates[:100, 0] == torch.arange(100)
        assert right.double().mean() >= least
        few = fewer.active < 5
        assert {s for s, is_few in zip(fewer.status, few, strict=True) if is_few} <= {
            "too_few_active",
            "dead",
        }


def test_T11_random_units_get_no_label_and_planted_ones_do(low: World, high: World) -> None:
    for w in (low, high):
        for kind, least, most in (("noisy", 0.95, 1.0), ("clean", 0.95, 1.0), ("random", 0.0, 0.02)):
            found = soft_wpmi(w.collect(kind), w.concepts)
            share = found.status.count("ok") / len(found)
            assert least <= share <= most, (kind, share)
            assert set(found.status) <= {"ok", "below_null"}
            assert [bool(label) for label in found.labels] == [s == "ok" for s in found.status]


def test_T11_a_small_layer_keeps_its_power_and_its_level(low: World, high: World) -> None:
    for w in (low, high):
        few = {kind: w.units[kind][:, :16] for kind in ("noisy", "random")}
        found = soft_wpmi(collect_arrays(few, w.embeddings), w.concepts)
        assert found.status[:16].count("ok") >= 15 and found.status[16:].count("ok") <= 2
        # Scored with the prior of units that cover 16 of 200 concepts, random lists beat every unit.
        assert found.p_prior is not None and float(found.p_prior[:16].min()) > 0.05


def test_T11_the_null_of_the_prior_holds_where_units_cover_the_concepts(low: World) -> None:
    for kind, least, most in (("noisy", 0.95, 1.0), ("random", 0.0, 0.02)):
        p = soft_wpmi(low.collect(kind), low.concepts).p_prior
        assert p is not None and least <= float((p <= 0.01).double().mean()) <= most


def test_T11_fits_are_those_of_a_loop() -> None:
    w, q = small(images=130)
    collected = parts_of(w, q, torch.arange(130))
    found = soft_wpmi(collected, w.concepts, n=20, null=30, level=0.2)
    lists, sizes = _lists(collected, 20, null=30, seed=0)
    assert sizes == (20,)
    s = softmax_rows(w.embeddings, w.concepts.vectors, 10.0)
    ell = []
    for row in lists.rows.tolist():
        p = [0.998 - (r / 20) * (0.998 - 0.97) for r in range(20)]
        ell.append(sum((1 + p[r] * (s[i] - 1) + 1e-7).log() for r, i in enumerate(row)))
    units, null = torch.stack(ell[:8]), torch.stack(ell[8:])
    worst = []
    for j in range(30):
        others = torch.cat([null[:j], null[j + 1 :]])
        worst.append(float(((null[j] - others.mean(0)) / others.std(0)).max()))
    for k in range(8):
        m = int(found.candidates[k, 0])
        z = float((units[k, m] - null[:, m].mean()) / null[:, m].std())
        assert float(found.p[k]) == pytest.approx((1 + sum(x >= z for x in worst)) / 31)


def test_T11_random_sparse_units_are_held_to_their_own_null(low: World) -> None:
    g = torch.Generator().manual_seed(5)
    q = low.units["clean"].clone()
    for k in range(100):
        q[:, k] = 0
        q[torch.randperm(len(q), generator=g)[: 5 + k % 12], k] = 1 + torch.rand(5 + k % 12, generator=g)
    found = soft_wpmi(collect_arrays({"l": q}, low.embeddings), low.concepts)
    assert found.status[:100].count("ok") <= 3
    assert found.status[100:].count("ok") >= 95


@pytest.mark.parametrize("similarity", [correlation, cosine, cosine_cubed, wpmi])
def test_T11_nulls_of_the_other_similarities_keep_their_level(similarity, low: World) -> None:
    found = similarity(low.collect("random", keep_responses=True), low.concepts, level=0.05)
    assert found.status.count("ok") <= 20  # 200 x 0.05, and 3 standard deviations
    assert (found.p > 0).all() and (found.p <= 1).all()


def test_T12_scores_are_at_most_log_C_and_labels_ignore_rising_maps(low: World) -> None:
    found = soft_wpmi(low.collect("clean", "random"), low.concepts)
    assert found.scores.max() <= math.log(200) + 1e-4
    noisy = low.units["noisy"].double()
    e = low.embeddings.double()
    concepts = Concepts(low.concepts.names, low.concepts.vectors.double())
    first, second = (soft_wpmi(collect_arrays({"l": q}, e), concepts, null=0) for q in (noisy, noisy.exp()))
    assert torch.equal(first.candidates, second.candidates)


def test_prior_over_the_layer_the_call_or_stored(low: World) -> None:
    both = low.collect("clean", "noisy")
    apart = soft_wpmi(both, low.concepts)
    alone = soft_wpmi(low.collect("noisy"), low.concepts)
    torch.testing.assert_close(apart.scores[200:], alone.scores, rtol=0, atol=1e-3)
    together = soft_wpmi(both, low.concepts, prior="call")
    assert (together.scores - apart.scores).abs().max() > 0.1
    assert apart.prior is not None and set(apart.prior.values) == {"clean", "noisy"}
    q = {"noisy": low.units["noisy"][:, :5]}
    few = soft_wpmi(collect_arrays(q, low.embeddings), low.concepts, prior=apart.prior)
    torch.testing.assert_close(few.scores, apart.scores[200:205], rtol=0, atol=1e-3)
    other = Concepts(low.concepts.names[:50], low.concepts.vectors[:50])
    with pytest.raises(StaleResultError, match="other concepts"):
        soft_wpmi(both, other, prior=apart.prior)


# Section 11, row by row, and other bad input.


def test_T16_dead_constant_and_all_negative_units() -> None:
    w, q = small(ties=False)
    q[:, 0], q[:, 1] = 0.0, 3.0
    q[:, 2] = q[:, 2] - q[:, 2].max() - 1
    collected = parts_of(w, q, torch.arange(400), keep_responses=True)
    for ours, _ in TWINS.values():
        found = ours(collected, w.concepts)
        assert found.status[:2] == ("dead", "degenerate"), ours
        assert found.labels[:2] == ("", "")
        assert found.images[2].tolist() == strongest(q[:, 2], found.images.shape[1]).tolist()
    found = soft_wpmi(collected, w.concepts)
    assert found.best[2] == "concept 2" and found.active[2] == 400


def test_T16_negative_winners_are_not_active_and_zeros_are_rest() -> None:
    w, q = small(ties=False)
    won = w.presence[:, 0] > 0
    q[:, 0] = torch.where(won, 1 + q[:, 0].abs(), 0.0)
    q[::20, 0] = torch.where(won[::20], q[::20, 0], -1.0)  # a competing unit that won with a negative value
    found = soft_wpmi(parts_of(w, q, torch.arange(400)), w.concepts)
    assert found.active[0] == int(won.sum()) and found.best[0] == "concept 0"


def test_T16_fewer_images_than_n() -> None:
    w, q = small(ties=False)
    with pytest.warns(UserWarning, match="only 60"):
        found = soft_wpmi(parts_of(w, q, torch.arange(60)), w.concepts)
    assert found.constants["n"] == 60 and "only 60" in found.notes[0]
    wanted = twin_soft_wpmi(q[:60, :3], w.embeddings[:60], w.concepts.vectors, n=60)
    torch.testing.assert_close(found.scores[:3, 0], wanted.max(1).values, rtol=0, atol=1e-9)
    with pytest.raises(ConfigError, match="top_k=100"):
        soft_wpmi(parts_of(w, q, torch.arange(400), top_k=50), w.concepts)


def test_T16_rank_reorder_needs_two_images_floors_negative_cosines_and_is_deterministic() -> None:
    w, q = small()
    with pytest.raises(ConfigError, match="at least 2"):
        rank_reorder(parts_of(w, q, torch.arange(30)), w.concepts)
    with pytest.raises(ConfigError, match="top_k=20"):
        rank_reorder(parts_of(w, q, torch.arange(400), top_k=5), w.concepts)
    against = Concepts(w.concepts.names, torch.cat([-w.concepts.vectors[:3], w.concepts.vectors[3:]]))
    collected = parts_of(w, q, torch.arange(400))
    with pytest.warns(UserWarning, match="below 0.001"):
        found = rank_reorder(collected, against)
    assert found.scores.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(rank_reorder(collected, against).scores, found.scores)


def test_T16_nan_is_refused_where_it_is() -> None:
    w, q = small()
    q[17, 4] = math.nan
    with pytest.raises(NumericError, match="unit 1 to sample 17"):
        parts_of(w, q, torch.arange(400))
    e = w.embeddings.clone()
    e[5, 0] = math.inf
    with pytest.raises(NumericError, match="image 5"):
        collect_arrays({"l": w.units["clean"]}, e)
    with pytest.raises(NumericError, match="'concept 1'"):
        Concepts(("concept 0", "concept 1"), torch.tensor([[1.0, 0.0], [math.nan, 0.0]]))


def test_T16_what_needs_every_response_is_refused_with_the_reason() -> None:
    w, q = small()
    with pytest.raises(ConfigError, match="keep_responses=True"):
        cosine_cubed(parts_of(w, q, torch.arange(400)), w.concepts)


def test_T16_concepts_and_images_of_different_encoders(low: World) -> None:
    class Encoder:
        name, fingerprint, dim, scale = "one", "1" * 64, 128, 10.0

        def images(self, inputs: Tensor) -> Tensor: ...
        def texts(self, texts: list[str]) -> Tensor: ...

    collected = collect_arrays({"l": low.units["clean"]}, low.embeddings, encoder=Encoder())
    theirs = Concepts(low.concepts.names, low.concepts.vectors, "2" * 64)
    for ours, _ in TWINS.values():
        with pytest.raises(StaleResultError, match="another one"):
            ours(collected, theirs)
    with pytest.raises(DataError, match="128 dimensions"):
        soft_wpmi(collected, Concepts(("a", "b"), torch.eye(2)))


def test_too_few_null_draws_for_any_label_are_said(low: World) -> None:
    with pytest.warns(
        UserWarning, match="no unit can get a label at level 0.01: that takes at least 99 null draws"
    ):
        found = correlation(low.collect("clean"), low.concepts, null=98)
    assert set(found.status) == {"below_null"}
    assert "ok" in correlation(low.collect("clean"), low.concepts, null=99).status


def test_a_sparse_units_images_are_those_that_lift_it(low: World) -> None:
    responses = torch.zeros(len(low.embeddings), 2)
    responses[[7, 3, 11, 2, 5, 8], 0] = torch.arange(6.0, 0.0, -1)
    responses[:, 1] = torch.rand(len(low.embeddings), generator=torch.Generator().manual_seed(0))
    found = correlation(collect_arrays({"l": responses}, low.embeddings), low.concepts)
    assert found.of("l", 0)["images"] == [7, 3, 11, 2, 5, 8]
    assert len(found.of("l", 1)["images"]) == 16


def test_bad_arguments_say_what_was_expected(low: World) -> None:
    collected = low.collect("clean")
    with pytest.raises(ConfigError, match="candidates at least 2"):
        soft_wpmi(collected, low.concepts, candidates=1)
    with pytest.raises(ConfigError, match="level must lie"):
        correlation(collected, low.concepts, level=2.0)
    with pytest.raises(ConfigError, match="at least 2 concepts"):
        Concepts(("one",), torch.ones(1, 3))
    with pytest.raises(DataError, match="seen twice"):
        merge([collected, collected])
    with pytest.raises(StaleResultError, match="differ in layers"):
        merge([collected, low.collect("noisy")])
    with pytest.raises(ConfigError, match="nearest layers"):
        soft_wpmi(collected, low.concepts, null=0).of("cleam", 3)
    with pytest.raises(DataError, match="one row for each image"):
        collect_arrays({"l": torch.ones(3, 2)}, torch.ones(4, 2))


def test_one_unit_alone_is_degenerate_unless_a_prior_is_given(low: World) -> None:
    q = {"l": low.units["clean"][:, :1]}
    found = soft_wpmi(collect_arrays(q, low.embeddings), low.concepts)
    assert found.status == ("degenerate",) and "its own prior" in found.notes[0]


def test_identical_concepts_tell_nothing() -> None:
    w, q = small()
    same = Concepts(("a", "b", "c"), w.concepts.vectors[:1].expand(3, -1).clone())
    found = soft_wpmi(parts_of(w, q, torch.arange(400)), same)
    assert set(found.status) == {"degenerate"}


# Known concepts in place of an encoder.


def test_a_table_of_known_concepts_stands_in_for_the_encoder(low: World) -> None:
    names = [f"c{m}" for m in range(CONCEPTS)]
    collected = collect_arrays({"l": low.units["noisy"]}, low.presence, keep_responses=True)
    table = concept_table(names)
    found = correlation(collected, table, candidates=CONCEPTS)
    wanted = torch.corrcoef(torch.cat([low.units["noisy"], low.presence], 1).double().T)[:CONCEPTS, CONCEPTS:]
    torch.testing.assert_close(everything(found), wanted, rtol=0, atol=1e-9)
    assert recovered(found.candidates[:, 0]) == 1.0 and set(found.status) == {"ok"}
    assert recovered(soft_wpmi(collected, table).candidates[:, 0]) >= 0.99
    with pytest.raises(DataError, match="different names"):
        concept_table(["red", "Red"])


def test_records_and_tables(low: World) -> None:
    collected = low.collect("clean", blocks={"clean": 4}, facts={"mode": "argmax"})
    found = soft_wpmi(collected, low.concepts)
    table = found.to_table()
    assert {len(column) for column in table.values()} == {200}
    assert table["block"][:9] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    record = {name: column[7] for name, column in table.items()}
    assert (record["concept_set"], record["probe_set"]) == (low.concepts.fingerprint, collected.fingerprint)
    constants = json.loads(record["constants"])
    assert (
        constants["prior"] == "layer"
        and constants["n"] > 0
        and json.loads(record["facts"]) == {"mode": "argmax"}
    )
    one = found.of("clean", 7)
    assert (
        one["label"] == "concept 7" == table["label"][7]
        and one["status"] == "ok"
        and len(one["candidates"]) == 10
    )
    assert one["images"] == collected.top.index[7, :16].tolist()
    assert (found.margin > 0).all()
    assert table["p_prior"] == found.p_prior.tolist()  # pyright: ignore[reportOptionalMemberAccess]  # WPMI has one
    other = soft_wpmi(low.collect("clean", blocks={"clean": 4}, facts={"mode": "sample"}), low.concepts)
    assert other.key != found.key, "how units compete is part of the key"
    assert soft_wpmi(collected, low.concepts, scale=11.0).key != found.key
    assert soft_wpmi(collected, low.concepts).key == found.key


def test_half_precision_embeddings_move_scores_little(low: World) -> None:
    q = {"l": low.units["noisy"]}
    full = soft_wpmi(collect_arrays(q, low.embeddings), low.concepts, null=0)
    half = soft_wpmi(collect_arrays(q, low.embeddings, dtype=torch.float16), low.concepts, null=0)
    assert (full.candidates[:, 0] == half.candidates[:, 0]).double().mean() >= 0.99
    assert (full.scores[:, 0] - half.scores[:, 0]).abs().max() < 0.05


def test_nothing_global_is_touched(low: World) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    soft_wpmi(low.collect("clean"), low.concepts)
    assert torch.equal(before, torch.random.get_rng_state())


def test_planted_rows_are_unit_vectors(low: World) -> None:
    torch.testing.assert_close(low.embeddings, normed(low.embeddings))
