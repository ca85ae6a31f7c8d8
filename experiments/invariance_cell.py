"""One inversion cell of the invariance study: search, check the gates, let every metric judge, return numbers."""

import dataclasses as dc
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from invariance_data import ATTACKED, members, natural_of, targets_of
from invariance_nets import folded, network
from invariance_setup import (
    ADVERSARY,
    ARCHITECTURES,
    HUMAN,
    L2_TRAINED,
    ON_JPEG,
    PUBLISHED,
    STANDARD,
    Setup,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pellucid.evals.alignment import Items, clustering, credit_of, distances, share_of
from pellucid.evals.alignment_committee import Member, subsets_of
from pellucid.evals.cka import linear_cka
from pellucid.evals.trunk import tensor_hashes
from pellucid.methods.invert import (
    FREE,
    HUMAN_LEANING,
    Inverted,
    NaturalNull,
    Prior,
    Representation,
    Validity,
    adversarial_curve,
    invert,
    natural_null,
    starts,
    validity,
)
from pellucid.methods.invert.descent import State
from pellucid.methods.invert.validity import to_bytes
from pellucid.sweep import Cell

BATCH = 100
"""Images that are judged together."""
SHOWN = 8
KEEP_EVERY = 60.0


@dc.dataclass(frozen=True)
class Subject:
    """A network with what it is asked about."""

    setup: Setup
    architecture: str
    paradigm: str
    model: nn.Module
    targets: Tensor
    classes: Tensor
    folder: Path

    @property
    def representation(self) -> Representation:
        return Representation(self.model, ARCHITECTURES[self.architecture].features)

    @property
    def quick(self) -> Representation:
        """The same function of a copy that is cheaper to search; gates are decided by `representation`."""
        return Representation(folded(self.model), ARCHITECTURES[self.architecture].features)

    @property
    def batch(self) -> int:
        return ARCHITECTURES[self.architecture].batch


def run_inversion(
    cell: Cell, scratch: Path, *, setup: Setup, folder: Path, pictures: Path
) -> dict[str, float]:
    """Search and judge one cell; the search resumes in `scratch`, free results stay in `folder` for the adversary."""
    architecture, paradigm = str(cell.settings["architecture"]), str(cell.settings["paradigm"])
    model = network(setup, architecture, paradigm, replicate=cell.replicate, seed=cell.seed, folder=folder)
    source = targets_of(setup, paradigm)
    batch = next(source.batches(len(source)))
    assert batch.targets is not None
    subject = Subject(setup, architecture, paradigm, model, batch.inputs, batch.targets, folder)
    null = natural_null(subject.representation.values(natural_of(setup, paradigm)))
    judges, refused = members(setup, folder, tested=tensor_hashes(model))
    shared = folder / "free" / f"{architecture}_{paradigm}_{cell.replicate}.safetensors".replace(" ", "_")
    picture = pictures / picture_name(cell.name) if cell.replicate == 0 else None
    found = {f"refused.{name}": 1.0 for name in refused}
    if cell.settings["regulariser"] == ADVERSARY:
        return found | oppose(subject, judges, null, shared=shared, picture=picture)
    human = cell.settings["regulariser"] == HUMAN
    count, n_starts = setup.priored if human else (setup.targets, setup.starts)
    prior = HUMAN_LEANING if human else FREE
    inverted = search(subject, prior, count=count, n_starts=n_starts, scratch=scratch)
    if not human:
        shared.parent.mkdir(exist_ok=True)
        save_file({"images": inverted.images, "starts": inverted.starts}, shared)
        found |= shared_with(subject, inverted, cell)
    return found | judged(subject, inverted, judges, null, count=count, picture=picture)


def picture_name(cell: str) -> str:
    """A file name that needs no escaping in a link."""
    return f"{cell.replace('+', 'and')}.png"


def rows_of(count: int, n_starts: int) -> tuple[Tensor, Tensor]:
    """Which target and which start each row is, starts outermost."""
    return torch.arange(count).repeat(n_starts), torch.arange(n_starts).repeat_interleave(count)


def search(subject: Subject, prior: Prior, *, count: int, n_starts: int, scratch: Path) -> Inverted:
    """Identically represented inputs of the first `count` targets from several starts, resumable."""
    target, _ = rows_of(count, n_starts)
    shape = subject.targets.shape[1:]
    begun = torch.cat([starts(shape, range(count), start=k) for k in range(n_starts)])
    state = scratch / "state.safetensors"
    found = invert(
        subject.quick, subject.targets[target], begun, preset=subject.setup.preset, prior=prior,
        batch_size=subject.batch, keep=keeper(state), resume=load_file(state) if state.exists() else None,
    )  # fmt: skip
    state.unlink(missing_ok=True)
    return found


def keeper(path: Path) -> Callable[[State], None]:
    """Writes the state of a search at most once a minute."""
    last = time.monotonic()

    def keep(state: State) -> None:
        nonlocal last
        if time.monotonic() - last > KEEP_EVERY:
            part = path.with_suffix(".part")
            save_file({name: value.contiguous() for name, value in state.items()}, part)
            part.replace(path)
            last = time.monotonic()

    return keep


def judged(
    subject: Subject,
    inverted: Inverted,
    judges: list[Member],
    null: NaturalNull,
    *,
    count: int,
    picture: Path | None,
) -> dict[str, float]:
    """Gates and alignment of one search."""
    target, start = rows_of(count, len(inverted.images) // count)
    goals = subject.targets[target]
    gates = validity(subject.representation, goals, inverted, null=null, batch_size=BATCH)
    items = Items(
        to_bytes(inverted.images), to_bytes(inverted.starts), subject.targets[:count], target, start,
        subject.classes[:count],
    )  # fmt: skip
    if picture is not None:
        show(picture, [goals, inverted.starts, inverted.images])
    found = gate_numbers(gates, null, inverted)
    for member in judges:
        found |= alignment(member, items, gates)
    return found | means(found, judges)


def gate_numbers(gates: Validity, null: NaturalNull, inverted: Inverted) -> dict[str, float]:
    """What the gates say, as shares, and the distances behind them."""
    tiers = torch.tensor([("tight", "loose", "failed").index(tier) for tier in gates.tier])
    found = {f"gate.{name}": share(passed) for name, passed in gates.gates.items()}
    return found | {
        "valid": share(gates.valid), "valid_but_rank": share(but_rank(gates)), "tight": share(tiers == 0), "loose": share(tiers == 1), "failed": share(tiers == 2),
        "rho": float(gates.rho.median()), "rho_90": float(gates.rho.double().quantile(0.9)),
        "null_relative": float(gates.null_relative.median()), "natural_median": null.median,
        "natural_first": null.first_percentile, "rank": float(gates.rank.median()),
        "steps": float(inverted.steps.double().mean()), "items": float(len(gates.rho)),
    }  # fmt: skip


def but_rank(gates: Validity) -> Tensor:
    """Items that pass every gate but V3, whose null maximum few results reach where a layer is sparse."""
    return torch.stack([passed for name, passed in gates.gates.items() if name != "v3"]).all(0)


def share(passed: Tensor) -> float:
    return float(passed.double().mean())


def alignment(member: Member, items: Items, gates: Validity) -> dict[str, float]:
    """Two alternatives (all, tight, tight and loose items) and clustering of one member, with intervals over targets."""
    near = distances(member.metric, items.results, items.targets[items.target], batch_size=BATCH)
    credit = credit_of(near, distances(member.metric, items.results, items.starts, batch_size=BATCH))
    name, found = member.name, dict[str, float]()
    for subset, rows in {**subsets_of(gates), "valid_but_rank": but_rank(gates)}.items():
        one = share_of(credit[rows], items.target[rows], items.start[rows], chance=50.0)
        key = "afc" if subset == "all" else f"afc_{subset}"
        found |= {f"{key}.{name}": one.percent, f"{key}_n.{name}": float(one.items)}
        if subset == "all":
            found |= {
                f"afc_low.{name}": one.low,
                f"afc_high.{name}": one.high,
                f"afc_starts.{name}": one.spread,
            }
    cluster = clustering(member.metric, items, count=len(items.targets) // 3, batch_size=BATCH)
    found |= {
        f"cluster.{name}": cluster.percent, f"cluster_low.{name}": cluster.low, f"cluster_high.{name}": cluster.high
    }  # fmt: skip
    return {key: value for key, value in found.items() if value == value}


def means(
    found: Mapping[str, float], judges: list[Member], keys: tuple[str, ...] = ("afc", "cluster")
) -> dict[str, float]:
    """The committee's mean over its voting members, and that of its trunks."""
    out: dict[str, float] = {}
    for key in keys:
        voting = {m.name: found[f"{key}.{m.name}"] for m in judges if m.votes and f"{key}.{m.name}" in found}
        trunks = [value for name, value in voting.items() if name.startswith("self-trained")]
        if voting:
            out[f"{key}.mean"] = sum(voting.values()) / len(voting)
            out[f"{key}.disagreement"] = max(voting.values()) - min(voting.values())
        if trunks:
            out[f"{key}.trunks"] = sum(trunks) / len(trunks)
    return out


def oppose(
    subject: Subject, judges: list[Member], null: NaturalNull, *, shared: Path, picture: Path | None
) -> dict[str, float]:
    """The constrained adversary against one trunk: alignment by tolerance, as the attacked and every held-out metric see it."""
    setup, count = subject.setup, subject.setup.opposed
    goals = subject.targets[:count]
    if shared.exists():
        kept = load_file(shared)
        warm, begun = kept["images"][:count], kept["starts"][:count]
    else:
        begun = starts(goals.shape[1:], range(count))
        free = invert(subject.quick, goals, begun, preset=setup.preset, batch_size=subject.batch)
        warm, begun = free.images, free.starts
    judge = next((member for member in judges if member.name == ATTACKED), None)
    if judge is None:
        raise ValueError(
            f"the attacked metric {ATTACKED!r} broke an axiom, so there is nothing to work against"
        )
    curve = adversarial_curve(
        subject.quick, goals, warm, metric=judge.metric, tolerances=setup.tolerances, preset=setup.gentle,
        batch_size=subject.batch,
    )  # fmt: skip
    judges = [dc.replace(member, attacked=member.name == ATTACKED) for member in judges]
    found = afc_columns("free", warm, begun, goals, judges)
    for one in curve:
        found |= afc_columns(f"{one.tolerance:g}", one.images, begun, goals, judges, chosen=one.feasible)
        found |= {
            f"feasible.{one.tolerance:g}": share(one.feasible),
            f"rho.{one.tolerance:g}": float(one.rho.median()),
        }
    if picture is not None:
        show(picture, [goals, warm, *[one.images for one in curve]])
    return found | {"items": float(count), "natural_first": null.first_percentile}


def afc_columns(
    label: str,
    images: Tensor,
    begun: Tensor,
    goals: Tensor,
    judges: list[Member],
    chosen: Tensor | None = None,
) -> dict[str, float]:
    """2AFC in percent by member; only of feasible items, none where there are none."""
    rows = torch.ones(len(images), dtype=torch.bool) if chosen is None else chosen.cpu()
    if not bool(rows.any()):
        return {}
    shown, start, target = to_bytes(images)[rows], to_bytes(begun)[rows], goals[rows]
    found = {
        f"afc_at_{label}.{m.name}": 100
        * float(credit_of(distances(m.metric, shown, target), distances(m.metric, shown, start)).mean())
        for m in judges
    }
    return found | means(found, judges, (f"afc_at_{label}",))


def shared_with(subject: Subject, inverted: Inverted, cell: Cell) -> dict[str, float]:
    """STIR of the standard and the adversarially trained network of the same replicate on these results, beside plain CKA."""
    if subject.paradigm in (PUBLISHED, ON_JPEG) or subject.setup.dataset == "cifar10":
        return {}
    rows, found = len(subject.targets), dict[str, float]()
    layer = ARCHITECTURES[subject.architecture].features
    own = subject.representation.values(subject.targets)
    for name in (STANDARD, L2_TRAINED):
        other = network(
            subject.setup,
            subject.architecture,
            name,
            replicate=cell.replicate,
            seed=cell.seed,
            folder=subject.folder,
        )
        g = Representation(other, layer)
        seen = g.values(subject.targets)
        scores = [linear_cka(seen, g.values(part)) for part in inverted.images.split(rows)]
        found |= {f"stir.{name}": sum(scores) / len(scores), f"cka.{name}": linear_cka(own, seen)}
    return found


def show(path: Path, rows: list[Tensor]) -> None:
    """A strip: one column a target, one row for each of the sets of images, enlarged twice."""
    picked = [row[:SHOWN].clamp(0, 1) for row in rows]
    grid = torch.cat([torch.cat(list(row), 2) for row in picked], 1)
    data = (grid.repeat_interleave(2, 1).repeat_interleave(2, 2) * 255).round().byte()
    array = data.permute(1, 2, 0).expand(-1, -1, 3).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, optimize=True)
