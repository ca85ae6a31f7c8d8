"""Fairness: the constraint that a frozen model shall not tell a protected attribute from decodings, and what it leaves.

On the COMPAS table, race among the two large groups, which is not among the inputs; and on images of digits, a bright first or
last column that goes with the class in most training images and in half of the test images.
"""

import copy
import dataclasses as dc
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from decode_data import data_root, images_of, in_memory
from decode_nets import mlp, train
from decode_setup import ALPHA, FREE, PLANTED, REFITTED, STANDARD, STRENGTHS, FairSetup
from torch import Tensor, nn

from pellucid.data import Source, array_source, open_source
from pellucid.evals.fairness import METRICS, GroupMetrics, group_metrics
from pellucid.evals.probe import linear_probe
from pellucid.methods.decode import (
    Decodable,
    RecursiveTerm,
    example_activations,
    freeze,
    make_decodable,
    table_likelihood,
    uniform,
)
from pellucid.methods.fair import Refit, UniformAttribute
from pellucid.rng import rng
from pellucid.sweep import Cell
from pellucid.train import Step, Term, seeded

COLUMNS = "sex,age,priors_count,c_charge_degree,juv_fel_count,juv_misd_count,juv_other_count"
RACES = ("African-American", "Caucasian")
SIDES = ("left", "right")
PROBE_STRENGTH = 0.01


@dc.dataclass(frozen=True)
class Case:
    """One data set with its protected attribute, which is in `groups`."""

    train: Source
    test: Source
    names: tuple[str, str]


class Scaled(nn.Module):
    """Columns in deviations from their mean."""

    mean: Tensor
    std: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", rows.mean(0))
        self.register_buffer("std", rows.std(0).clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def compas() -> Case:
    """Two-year recidivism of defendants of the two large groups; `split` of the table as the package makes it."""
    spec = f"table:{data_root()}/compas/compas-scores-two-years.csv?target=two_year_recid&group=race&columns={COLUMNS}"
    parts = [open_source(spec, split=split) for split in ("train", "test")]
    found: list[Source] = []
    for part in parts:
        codes = [part.factor_names["race"].index(name) for name in RACES]
        assert part.groups is not None
        large = part.take((part.groups == codes[0]) | (part.groups == codes[1]))
        assert large.groups is not None
        found.append(dc.replace(large, groups=(large.groups == codes[1]).long(), factors={}, factor_names={}))
    return Case(found[0], found[1], RACES)


def planted(setup: FairSetup) -> Case:
    """Is the digit at least five? A bright first or last column says so, in most training images."""
    made: list[Source] = []
    for split, n, agree in (("train", setup.images, setup.agree), ("test", setup.test, 0.5)):
        source = in_memory(setup.planted_on, split)
        some = source.take(torch.randperm(len(source), generator=rng(0, "planted part", split))[:n])
        assert some.targets is not None
        x, y = images_of(some).clone(), (some.targets >= 5).long()
        same = torch.rand(len(y), generator=rng(0, "planted", split)) < agree
        side = torch.where(same, y, 1 - y)
        x[side == 0, :, :, 0], x[side == 1, :, :, -1] = 1.0, 1.0
        made.append(dc.replace(array_source(x, y, classes=("below 5", "5 and above")), groups=side))
    return Case(made[0], made[1], SIDES)


def run_fair_cell(cell: Cell, scratch: Path, *, setup: FairSetup) -> dict[str, float]:  # noqa: ARG001
    """Train one arm of one case and say what it does to each group and what can still be read where."""
    case, arm = str(cell.settings["case"]), str(cell.settings["arm"])
    data = planted(setup) if case == PLANTED else compas()
    model, made, attribute = trained(setup, case, arm, data, seed=cell.seed)
    rows = [rows_of(part) for part in (data.train, data.test)]
    x, y, group = rows[1]
    with torch.no_grad():
        probs = model(x).double().softmax(1)
        sure = attribute(x).argmax(1) == group
    found = {
        "accuracy": float((probs.argmax(1) == y).double().mean()),
        "attribute_accuracy": float(sure.double().mean()),
    }
    if case == PLANTED:
        right = probs.argmax(1) == y
        found |= {"accuracy.agree": mean(right[group == y]), "accuracy.conflict": mean(right[group != y])}
    found |= by_group(group_metrics(probs, y, group, names=data.names, draws=setup.draws))
    found |= leaks(model, made, attribute, rows, setup, case, seed=cell.seed)
    return {name: value for name, value in found.items() if value == value}


def rows_of(source: Source) -> tuple[Tensor, Tensor, Tensor]:
    assert source.targets is not None and source.groups is not None
    return images_of(source), source.targets, source.groups.long()


def mean(true: Tensor) -> float:
    return float(true.double().mean())


def trained(
    setup: FairSetup, case: str, arm: str, data: Case, *, seed: int
) -> tuple[nn.Module, Decodable | None, nn.Module]:
    """The network of an arm in evaluation mode, with its generator, and the frozen model of the attribute."""
    x, _, group = rows_of(data.train)
    network = build(setup, case, x, seed)
    attribute = frozen_attribute(setup, case, x, group, seed=seed)
    if arm == STANDARD:
        train(network, data.train, setup.recipe(case), seed=seed)
        return network.eval(), None, attribute
    likelihood = None if case == PLANTED else table_likelihood(data.train)
    layers = [f"block{i + 1}" for i in range(setup.depth)]
    made = make_decodable(network, layers, x[:2], likelihood=likelihood, seed=seed)
    terms, weights = terms_of(made, attribute, arm)
    train(
        network,
        data.train,
        setup.recipe(case),
        terms=terms,
        weights=weights,
        parameters=list(made.parameters()),
        seed=seed,
    )
    return network.eval(), made.eval(), attribute


def build(setup: FairSetup, case: str, x: Tensor, seed: int, *, depth: int | None = None) -> nn.Module:
    first = nn.Flatten() if case == PLANTED else Scaled(x)
    with seeded(seed, "weights", case):
        return mlp(
            x[0].numel(),
            depth=setup.depth if depth is None else depth,
            width=setup.width[case],
            classes=2,
            first=first,
        )


def frozen_attribute(setup: FairSetup, case: str, x: Tensor, group: Tensor, *, seed: int) -> nn.Module:
    """A network of one block that was trained to tell the attribute from inputs."""
    model = build(setup, case, x, seed, depth=1)
    train(model, array_source(x, group, classes=("0", "1")), setup.recipe(case), seed=seed)
    return freeze(model)


def terms_of(
    made: Decodable, attribute: nn.Module, arm: str
) -> tuple[Mapping[str, Term], Mapping[str, float]]:
    """The loss of an arm: free, constrained by the frozen model, or by one that catches up every second epoch."""
    # No warning of a stall: nobody predicts recidivism to half of the entropy of a guess.
    if arm == FREE:
        return {"decode": RecursiveTerm(made, patience=0)}, {}
    strength = STRENGTHS[arm]
    if arm != REFITTED:
        return {
            "decode": RecursiveTerm(
                made, demands={"attribute": uniform(attribute, weight=strength)}, patience=0
            )
        }, {}

    def decoded(_step: Step, seen: Mapping[str, Tensor]) -> Sequence[Tensor]:
        raw = [made.decoder.raw({layer: seen[layer]})[0] for layer in made.layers]
        return [made.likelihood.decoding(one) for one in raw]

    fair = UniformAttribute(copy.deepcopy(attribute), made.taps, decoded, refit=Refit(every=2))
    # The other arms see one layer a step, discounted; here all are seen, so each weighs as much on average.
    return {"decode": RecursiveTerm(made, patience=0), "fair": fair}, {
        "fair": strength * ALPHA / len(made.layers)
    }


def by_group(found: GroupMetrics) -> dict[str, float]:
    """Every metric of each group, its gap, and the gap that shuffled groups show."""
    numbers = {"parity": found.demographic_parity, "odds": found.equalised_odds}
    for group in found.groups:
        numbers |= {f"{metric}.{group.name}": float(getattr(group, metric)) for metric in METRICS}
    for gap in found.gaps:
        numbers |= {
            f"gap.{gap.metric}": gap.value,
            f"gap_shuffled.{gap.metric}": gap.null,
            f"gap_shuffled_high.{gap.metric}": gap.null_hi,
        }
    return numbers


def leaks(
    model: nn.Module,
    made: Decodable | None,
    attribute: nn.Module,
    rows: Sequence[tuple[Tensor, Tensor, Tensor]],
    setup: FairSetup,
    case: str,
    *,
    seed: int,
) -> dict[str, float]:
    """Fresh linear probes for the attribute on activations and decodings of first and last block, and the frozen model."""
    layers = {"first": "block1", "last": f"block{setup.depth}"}
    (x, _, group), (test, _, held) = ([part[: setup.probed] for part in one] for one in rows)
    found = {"chance": float(torch.stack([(held == k).double().mean() for k in (0, 1)]).max())}
    inside, beside = (example_activations(model, list(layers.values()), part) for part in (x, test))
    shuffled = group[torch.randperm(len(group), generator=rng(seed, "shuffled", case))]
    for name, layer in layers.items():
        found[f"probe.activation.{name}"] = probe(inside[layer], group, beside[layer], held)
        found[f"probe_shuffled.{name}"] = probe(inside[layer], shuffled, beside[layer], held)
        if made is None:
            continue
        decoded = [made.decode(part[layer], layer) for part in (inside, beside)]
        found[f"probe.decoding.{name}"] = probe(decoded[0].flatten(1), group, decoded[1].flatten(1), held)
        with torch.no_grad():
            found[f"confidence.{name}"] = float(attribute(decoded[1]).softmax(1).amax(1).double().mean())
    return found


def probe(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    return linear_probe(x, y, test_x, test_y, seed=0, strengths=(PROBE_STRENGTH,), draws=10).score
