"""Is it an identically represented input at all? Seven gates, decided for each item.

A relative distance alone means nothing: an untrained network maps natural images so close to each other that noise
"matches" them. Each item is therefore compared with what random natural pairs do at the same layer, with fixed tiers,
with the network's own prediction, and with the bytes that people are shown.

References: specification of the inversion, section 5.
"""

import dataclasses as dc
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid._checks import DataError, NumericError
from pellucid.attack.ascent import attack_mode
from pellucid.methods.invert.iris import Inverted
from pellucid.methods.invert.representation import Representation, relative_distance
from pellucid.rng import rng
from pellucid.taps import Tap, watch
from pellucid.train import logits_of

TIGHT, LOOSE = 0.1, 0.2
PROGRESS = 0.5
INDEPENDENT = 1e-4
SPREAD, VALID_SHARE = 2.0, 0.8
AT_ONCE = 1 << 24
TIERS = ("tight", "loose", "failed")


@dc.dataclass(frozen=True)
class NaturalNull:
    """What random pairs of natural images do at a layer: quantiles of rho(x_i; x_j) and the largest rank correlation."""

    pairs: int
    first_percentile: float
    median: float
    minimum: float
    rank_max: float


def natural_null(
    values: Float[Tensor, "images features"], *, pairs: int = 10_000, seed: int = 0
) -> NaturalNull:
    """rho between random ordered pairs of different natural images, and the largest Spearman correlation among them.

    Args:
        values: g of natural images (`Representation.values`); 101 images give 10,000 pairs.

    Raises:
        DataError: fewer than 20 images.
        NumericError: an image whose representation is NaN or infinite.
    """
    n = len(values)
    check_natural(values)
    if n < 20:
        raise DataError(f"a null distribution over natural pairs needs at least 20 images, got {n}")
    first, second = _pairs(n, pairs, seed)
    size = max(
        1, AT_ONCE // values.shape[1]
    )  # maps of early layers are large: pairs in parts of bounded memory
    parts = list(zip(first.split(size), second.split(size), strict=True))
    rho = torch.cat([relative_distance(values[a], values[b]) for a, b in parts])
    ranks = _ranks(values)
    rank = torch.cat([(ranks[a] * ranks[b]).sum(1) for a, b in parts])
    ordered = rho.double().cpu()
    low, middle = torch.quantile(ordered, torch.tensor([0.01, 0.5], dtype=torch.float64)).tolist()
    return NaturalNull(len(rho), low, middle, float(ordered.min()), float(rank.max()))


def check_natural(values: Float[Tensor, "images features"]) -> None:
    """Raise `NumericError` for natural images whose representation is NaN or infinite."""
    bad = torch.nonzero(~values.isfinite().all(1)).flatten().tolist()
    if bad:
        raise NumericError(
            f"the representation of {len(bad)} of {len(values)} natural images is NaN or infinite (first: image {bad[0]}), so "
            "they say nothing about what distance is usual; leave them out, or look for overflow in the layer"
        )


def _pairs(n: int, pairs: int, seed: int) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    if n * (n - 1) <= pairs:
        every = torch.cartesian_prod(torch.arange(n), torch.arange(n))
        every = every[every[:, 0] != every[:, 1]]
        return every[:, 0], every[:, 1]
    generator = rng(seed, "natural pairs")
    first = torch.randint(n, (pairs,), generator=generator)
    return first, (first + 1 + torch.randint(n - 1, (pairs,), generator=generator)) % n


def _ranks(values: Float[Tensor, "rows features"]) -> Float[Tensor, "rows features"]:
    """Centred ranks of unit length, ties by their mean rank: their inner product is Spearman's correlation."""
    from scipy.stats import rankdata

    ranks = torch.from_numpy(np.asarray(rankdata(values.detach().double().cpu().numpy(), axis=1)))
    ranks = ranks - ranks.mean(1, keepdim=True)
    return ranks / torch.linalg.vector_norm(ranks, dim=1, keepdim=True).clamp_min(1e-12)


@dc.dataclass(frozen=True)
class Validity:
    """The seven gates of each item (row), with the numbers behind them.

    `v1` null-relative: rho below the first percentile of natural pairs. `v2` absolute: tier is tight (rho <= 0.1) or
    loose (<= 0.2). `v3` rank: Spearman correlation above the largest of natural pairs. `v4` same arg-max class (None: the
    model's output is no vector of logits). `v5` rho of the 8-bit image passes v1 and v2. `v6` progress: rho fell below half
    its start, and the gradient was not always zero. `v7` independence: rho through a plain forward pass equals the search's
    within 1e-4.
    """

    rho: Float[Tensor, " rows"]
    null_relative: Float[Tensor, " rows"]
    """rho / median of natural pairs."""
    rho_bytes: Float[Tensor, " rows"]
    rank: Float[Tensor, " rows"]
    snr_db: Float[Tensor, " rows"]
    """10 log10 of ||g_t|| / ||g_t - g_r||: a ratio of norms, not of powers, as in the model-metamer code."""
    tier: tuple[str, ...]
    v1: Bool[Tensor, " rows"]
    v2: Bool[Tensor, " rows"]
    v3: Bool[Tensor, " rows"]
    v4: Bool[Tensor, " rows"] | None
    v5: Bool[Tensor, " rows"]
    v6: Bool[Tensor, " rows"]
    v7: Bool[Tensor, " rows"]

    @property
    def gates(self) -> dict[str, Bool[Tensor, " rows"]]:
        """The gates that could be decided, by name."""
        every = {name: getattr(self, name) for name in ("v1", "v2", "v3", "v4", "v5", "v6", "v7")}
        return {name: gate for name, gate in every.items() if gate is not None}

    @property
    def valid(self) -> Bool[Tensor, " rows"]:
        """Every gate passed."""
        return torch.stack(list(self.gates.values())).all(0)

    def chosen(self, tiers: tuple[str, ...]) -> Bool[Tensor, " rows"]:
        """Items of these tiers that also pass every other gate."""
        return self.valid & torch.tensor([tier in tiers for tier in self.tier])


def validity(
    representation: Representation,
    targets: Float[Tensor, "rows ..."],
    found: Inverted,
    *,
    null: NaturalNull,
    batch_size: int = 64,
) -> Validity:
    """Decide the gates of every item. `null` comes from natural images at the same layer of the same model."""
    goals = _plain_values(representation, targets, batch_size)
    results = _plain_values(representation, found.images, batch_size)
    shown = _plain_values(representation, to_bytes(found.images), batch_size)
    rho, rho_bytes = relative_distance(results, goals).cpu(), relative_distance(shown, goals).cpu()
    searched = torch.where(found.rho_search.isfinite(), found.rho_search, found.rho).cpu()
    rank = (_ranks(results) * _ranks(goals)).sum(1)
    before, same = found.rho_start.cpu(), _same_class(representation.model, targets, found.images, batch_size)
    v1 = rho < null.first_percentile
    return Validity(
        rho=rho,
        null_relative=rho / null.median if null.median > 0 else torch.full_like(rho, float("inf")),
        rho_bytes=rho_bytes,
        rank=rank,
        snr_db=-10 * rho.clamp_min(1e-12).log10(),
        tier=tuple(tier_of(float(value)) for value in rho),
        v1=v1,
        v2=rho <= LOOSE,
        v3=rank > null.rank_max,
        v4=same,
        v5=(rho_bytes < null.first_percentile) & (rho_bytes <= LOOSE),
        v6=(rho < PROGRESS * before) & found.moved.cpu(),
        v7=(rho - searched).abs() <= INDEPENDENT,
    )


def tier_of(rho: float) -> str:
    """tight (<= 0.1), loose (<= 0.2) or failed, also for NaN."""
    return "tight" if rho <= TIGHT else "loose" if rho <= LOOSE else "failed"


def to_bytes(images: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
    """The images as an 8-bit PNG gives them back."""
    return (images * 255).round() / 255


@torch.no_grad()
def _plain_values(
    representation: Representation, images: Tensor, batch_size: int
) -> Float[Tensor, "rows features"]:
    """g by an ordinary forward pass: no clamp, no early stop, none of the search's hooks."""
    tap = Tap(
        representation.tap.layer,
        reduce=_flat,
        side=representation.tap.side,
        call=representation.tap.call,
        item=representation.tap.item,
    )
    parts: list[Tensor] = []
    with attack_mode(representation.model), torch.no_grad(), watch(representation.model, {"g": tap}) as seen:
        for part in images.split(batch_size):
            representation.model(part)
            parts.append(seen["g"])
    return torch.cat(parts)


def _flat(activations: Tensor) -> Tensor:
    return activations.flatten(1).clone()


@torch.no_grad()
def _same_class(
    model: nn.Module, targets: Tensor, images: Tensor, batch_size: int
) -> Bool[Tensor, " rows"] | None:
    def classes(x: Tensor) -> Tensor | None:
        found: list[Tensor] = []
        for part in x.split(batch_size):
            output = model(part)
            logits = output if isinstance(output, Tensor) else logits_of(output)
            if logits.ndim != 2 or logits.shape[1] < 2:
                return None
            best = logits.argmax(1).where(logits.isfinite().all(1), -1)  # NaN belongs to no class
            found.append(best.cpu())
        return torch.cat(found)

    with attack_mode(model), torch.no_grad():
        first, second = classes(targets), classes(images)
    return None if first is None or second is None else (first == second) & (first >= 0)


def incomparable(models: Mapping[str, Validity]) -> list[str]:
    """Why a comparison of these models must be refused or flagged; empty if nothing speaks against it.

    Every model needs at least 80 % valid items, and the medians of null-relative rho may differ by at most a factor 2:
    otherwise a model may seem misaligned because its search was worse.
    """
    found: list[str] = []
    medians = {name: float(v.null_relative.median()) for name, v in models.items()}
    for name, v in models.items():
        share = float(v.valid.double().mean())
        if share < VALID_SHARE:
            failed = ", ".join(
                f"{gate} {int((~passed).sum())}" for gate, passed in v.gates.items() if not bool(passed.all())
            )
            found.append(
                f"{name}: {share:.0%} of its items are valid (at least {VALID_SHARE:.0%} needed); failed gates: {failed}"
            )
    if len(medians) > 1:
        low, high = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
        if medians[high] > SPREAD * medians[low]:
            found.append(
                f"null-relative rho differs by more than a factor {SPREAD:g}: median {medians[high]:.3g} for {high}, "
                f"{medians[low]:.3g} for {low}; search longer where it is larger"
            )
    return found
