"""Linear dimensionality of a layer: how many directions its responses take up, and how many a change of input moves.

From the eigenvalues lam_1 >= lam_2 >= ... of the covariance between units:

    dim_q = smallest k with (lam_1 + ... + lam_k) / sum lam >= q        PR = (sum lam)^2 / sum lam^2

References: Leavitt and Morcos, "On the relationship between class selectivity, dimensionality, and robustness", 2020.
"""

import dataclasses as dc
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn

from pellucid._checks import ConfigError, DataError, NumericError
from pellucid.data import Batch, Source
from pellucid.record.recording import evaluating
from pellucid.rng import rng
from pellucid.stats import Covariance, CovarianceResult
from pellucid.taps import Tap, watch

VERSION = "1"

# Fewer samples than this for each unit and chance correlations fill the small eigenvalues: a null is measured too.
ENOUGH = 10
# A total variance below this share of the squared means is rounding: float32 responses carry up to 1e-14.
ROUNDING = 1e-12


@dc.dataclass(frozen=True)
class Dimensions:
    """Numbers of directions, between 0 (all units constant) and the number of units; `pr` is a real number."""

    dim_90: int
    dim_95: int
    dim_99: int
    pr: float


@dc.dataclass(frozen=True)
class Dimensionality:
    """Dimensionality of one layer over `n` samples.

    `eigenvalues` of the covariance, largest first. `null` is what the same units would read if they had nothing to
    do with each other (their columns permuted); None with at least 10 samples for each unit (`enough`). Compare
    conditions at the same `n`: dim_q grows with it.
    """

    dim_90: int
    dim_95: int
    dim_99: int
    pr: float
    eigenvalues: Float64[Tensor, " units"]
    n: int
    null: Dimensions | None
    version: str

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.eigenvalues)

    @property
    def samples_per_unit(self) -> float:
        """n / units: to be reported with the numbers when it is below 10."""
        return self.n / self.units

    @property
    def enough(self) -> bool:
        """Whether there are at least 10 samples for each unit."""
        return self.n >= ENOUGH * self.units


def dimensionality(covariance: CovarianceResult, *, seed: int = 0) -> Dimensionality:
    """dim_0.90, dim_0.95, dim_0.99 and participation ratio of a layer, from its streamed covariance.

    All 0 for constant responses, all 1 for units that rise and fall together. With fewer than 10 samples for each
    unit the null is measured too: one covariance of as many samples of independent normal units with the same
    variances, which is what permuting every unit's responses by itself leaves.

    Raises:
        DataError: fewer than two samples.
        NumericError: the covariance has NaN or infinity.
    """
    n, cov = covariance.count, covariance.cov
    if n < 2:
        raise DataError(f"dimensionality needs at least 2 samples, got {n}")
    if not cov.isfinite().all():
        raise NumericError("the covariance has NaN or infinity: record with such samples left out")
    noise = ROUNDING * float(covariance.mean.square().sum())
    eigenvalues = _eigenvalues(cov)
    found = _dimensions(eigenvalues, noise)
    null = None
    if n < ENOUGH * len(cov):
        null = _dimensions(_eigenvalues(_independent(cov.diagonal(), n, seed)), noise)
    return Dimensionality(**dc.asdict(found), eigenvalues=eigenvalues, n=n, null=null, version=VERSION)


def change_covariance(
    model: nn.Module,
    source: Source,
    taps: Mapping[str, Tap],
    change: Callable[[Batch], Shaped[Tensor, "batch ..."]],
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, CovarianceResult]:
    """Covariance of Delta = responses to changed images - responses to the images, for perturbation dimensionality.

    `dimensionality(change_covariance(...)["late"])` says in how many directions a corruption or an attack moves a
    layer. Each tap is measured on the same images.

    Args:
        change: from a batch (on the model's device) to its changed inputs: a corruption, an attack.

    Raises:
        DataError: `change` gives inputs of another shape, or the source is empty.
    """
    if len(source) == 0:
        raise DataError(f"source {source.name!r} has no examples: nothing to change")
    if device is not None:
        model.to(device)
    place = next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    fitters = {name: Covariance() for name in taps}
    done = 0
    with evaluating(model):
        for batch in source.batches(batch_size):
            batch = batch.to(place)
            changed = change(batch)
            if changed.shape != batch.inputs.shape:
                raise DataError(
                    f"a change must keep the shape of its images: {tuple(batch.inputs.shape)} became {tuple(changed.shape)}"
                )
            clean, moved = (_responses(model, inputs, taps) for inputs in (batch.inputs, changed))
            for name, fitter in fitters.items():
                fitter.update(moved[name].double() - clean[name].double(), batch)
            done += len(batch.index)
            if progress is not None:
                progress(done, len(source))
    return {name: fitter.result() for name, fitter in fitters.items()}


def random_projection(width: int = 512, *, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A tap's `reduce` that keeps space: the whole map, flattened and projected to `width` numbers.

    Every entry of the map is added, with a random sign, to one random place of the result (a count sketch), which
    keeps distances and variances to about sqrt(2 / width) and costs one addition an entry. The projection depends on
    `seed` and the size of the map alone.

    References: Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009.
    """
    if width < 1:
        raise ConfigError(f"random_projection needs a width of at least 1, got {width}")

    def reduce(activations: Tensor) -> Tensor:
        flat = activations.flatten(1)
        draw = rng(seed, "random_projection", flat.shape[1])
        place = torch.randint(width, (flat.shape[1],), generator=draw).to(flat.device)
        sign = 2 * torch.randint(2, (flat.shape[1],), generator=draw).to(flat) - 1
        return flat.new_zeros(len(flat), width).index_add_(1, place, flat * sign)

    return reduce


def _responses(
    model: nn.Module, inputs: Shaped[Tensor, "batch ..."], taps: Mapping[str, Tap]
) -> Mapping[str, Shaped[Tensor, "batch units"]]:
    with torch.no_grad(), watch(model, taps, stop=True) as seen:
        model(inputs)
        return dict(seen)


def _eigenvalues(cov: Float64[Tensor, "units units"]) -> Float64[Tensor, " units"]:
    return torch.linalg.eigvalsh(cov).flip(0).clamp_min(0)


def _dimensions(eigenvalues: Float64[Tensor, " units"], noise: float) -> Dimensions:
    total = float(eigenvalues.sum())
    if total <= noise:
        return Dimensions(0, 0, 0, 0.0)
    share = eigenvalues.cumsum(0) / total
    # The last digits of a cumulative sum must not add a direction: 9 of 10 equal eigenvalues are 0.90.
    d90, d95, d99 = (int((share < q - 1e-9).sum()) + 1 for q in (0.90, 0.95, 0.99))
    return Dimensions(d90, d95, d99, total**2 / float(eigenvalues.square().sum()))


def _independent(var: Float64[Tensor, " units"], n: int, seed: int) -> Float64[Tensor, "units units"]:
    """A covariance of n samples of independent normal units: Wishart, by Bartlett's triangle where n allows."""
    units, degrees = len(var), n - 1
    generator = rng(seed, "dimensionality", "null")
    if degrees < units:
        rows = torch.randn(degrees, units, dtype=var.dtype, generator=generator)
        scatter = rows.T @ rows
    else:
        triangle = torch.randn(units, units, dtype=var.dtype, generator=generator).tril(-1)
        for i in range(units):
            chi = torch.randn(degrees - i, dtype=var.dtype, generator=generator).square().sum().sqrt()
            triangle[i, i] = chi
        scatter = triangle @ triangle.T
    scale = var.clamp_min(0).sqrt()
    return scatter / degrees * scale * scale[:, None]
