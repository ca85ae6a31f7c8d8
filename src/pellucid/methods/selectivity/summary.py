"""Selectivity of a layer and of a network: means over living units, then over layers."""

import dataclasses as dc
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from pellucid._checks import ConfigError, DataError
from pellucid.methods.selectivity.interval import mean_error, quantile
from pellucid.methods.selectivity.measure import Selectivity


@dc.dataclass(frozen=True)
class LayerSelectivity:
    """Means over the living units of one layer; NaN where every unit is dead or fewer than two classes are present.

    Intervals are over samples, for this network, and take in that units answer to the same samples. `dead` counts
    dead units; `si_dead_zero` is the mean raw index with dead units at 0.
    """

    n: int
    units: int
    dead: int
    si: float
    si_lo: float
    si_hi: float
    si_cf: float
    si_cf_lo: float
    si_cf_hi: float
    si_perm: float
    si_off: float
    si_dead_zero: float

    @property
    def dead_fraction(self) -> float:
        """Share of dead units, in [0, 1]; to be printed beside every mean."""
        return self.dead / self.units

    @property
    def dead_matters(self) -> bool:
        """Whether leaving dead units out changes the mean by more than 0.01: then report both."""
        return self.dead > 0 and not abs(self.si - self.si_dead_zero) <= 0.01


@dc.dataclass(frozen=True)
class NetworkSelectivity:
    """Means over layers of layer means, so that wide layers do not dominate. Layers without a living unit are left
    out and named in `silent_layers`; dead units are counted over all layers."""

    n: int
    layers: int
    silent_layers: tuple[str, ...]
    units: int
    dead: int
    si: float
    si_lo: float
    si_hi: float
    si_cf: float
    si_cf_lo: float
    si_cf_hi: float
    si_perm: float
    si_off: float
    si_dead_zero: float

    @property
    def dead_fraction(self) -> float:
        """Share of dead units over all layers, in [0, 1]."""
        return self.dead / self.units


def layer_selectivity(units: Selectivity) -> LayerSelectivity:
    """Mean selectivity of one layer's living units, with intervals and the dead count.

    mean +- z sqrt(variance over samples of the summed linear effects of all units).
    """
    living = ~units.dead
    si, si_cf = _mean(units.si[living]), _mean(units.si_cf[living])
    si_lo, si_hi = _interval(si, units.si_influence, units, low=0.0)
    si_cf_lo, si_cf_hi = _interval(si_cf, units.si_cf_influence, units, low=-1.0)
    return LayerSelectivity(
        n=units.n,
        units=units.units,
        dead=int(units.dead.sum()),
        si=si,
        si_lo=si_lo,
        si_hi=si_hi,
        si_cf=si_cf,
        si_cf_lo=si_cf_lo,
        si_cf_hi=si_cf_hi,
        si_perm=_mean(units.si_perm[living]),
        si_off=_mean(units.si_off[living]),
        si_dead_zero=_mean(units.si_dead_zero),
    )


def network_selectivity(layers: Mapping[str, Selectivity]) -> NetworkSelectivity:
    """Selectivity of a network: the mean over layers of the mean over each layer's living units.

    Raises:
        DataError: no layer, or layers that were not measured on the same samples.
        ConfigError: layers whose intervals have different levels.
    """
    if not layers:
        raise DataError("network_selectivity needs at least one layer")
    first = next(iter(layers.values()))
    for name, layer in layers.items():
        if not torch.equal(layer.count, first.count):
            raise DataError(
                f"layer {name!r} was measured on other samples than the first: record them in one pass"
            )
        if layer.level != first.level:
            raise ConfigError(f"layer {name!r} has intervals of level {layer.level}, the first {first.level}")
    means = {name: layer_selectivity(layer) for name, layer in layers.items()}
    silent = tuple(name for name, layer in means.items() if layer.dead == layer.units)
    used = [name for name in layers if name not in silent]
    si, si_cf = (_average([getattr(means[name], key) for name in used]) for key in ("si", "si_cf"))
    si_lo, si_hi = _interval(
        si, _mean_influence([layers[name].si_influence for name in used]), first, low=0.0
    )
    cf_influence = _mean_influence([layers[name].si_cf_influence for name in used])
    si_cf_lo, si_cf_hi = _interval(si_cf, cf_influence, first, low=-1.0)
    return NetworkSelectivity(
        n=first.n,
        layers=len(layers),
        silent_layers=silent,
        units=sum(layer.units for layer in means.values()),
        dead=sum(layer.dead for layer in means.values()),
        si=si,
        si_lo=si_lo,
        si_hi=si_hi,
        si_cf=si_cf,
        si_cf_lo=si_cf_lo,
        si_cf_hi=si_cf_hi,
        si_perm=_average([means[name].si_perm for name in used]),
        si_off=_average([means[name].si_off for name in used]),
        si_dead_zero=_average([layer.si_dead_zero for layer in means.values()]),
    )


def _mean(values: Float64[Tensor, " units"]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _mean_influence(influences: Sequence[Tensor]) -> Float64[Tensor, "classes folds"] | None:
    return torch.stack([*influences]).mean(0) if influences else None


def _interval(
    mean: float, influence: Float64[Tensor, "classes folds"] | None, units: Selectivity, *, low: float
) -> tuple[float, float]:
    if influence is None or math.isnan(mean):
        return math.nan, math.nan
    reach = quantile(units.level) * mean_error(influence, units.count)
    return max(mean - reach, low), min(mean + reach, 1.0)
