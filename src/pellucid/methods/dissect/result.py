"""What pass 2 gives: for every unit its best concepts, how sure they are, and why there may be no label at all."""

import dataclasses as dc
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pellucid._checks import ConfigError, check_range, nearest
from pellucid.methods.dissect.collected import VERSION, Collected
from pellucid.methods.dissect.concepts import Concepts

Status = Literal["ok", "below_null", "dead", "too_few_active", "degenerate"]
FEWEST_ACTIVE = 5
CANDIDATES = 10
SHOWN = 16  # images a unit's record names


@dc.dataclass(frozen=True, eq=False)
class Prior:
    """What SoftWPMI and WPMI take off: log of the mean likelihood of every concept over the units scored together.

    By layer (or one entry "" for all layers), frozen so that other units can be scored against it.
    """

    values: Mapping[str, Float[Tensor, " concepts"]]
    concepts: str
    similarity: str


@dc.dataclass(frozen=True, eq=False)
class Descriptions:
    """Descriptions of units, one row a unit, layers side by side.

    `candidates` are concepts by falling score (equal ones by lower number) with `scores`; the first is the label of a unit
    whose `status` is "ok". `p` is (1 + number of null units that score at least as high) / (1 + null units); NaN where no
    null was drawn. Statuses, the first that holds:

    - dead: 0 for every image;
    - degenerate: one other value for every image, or scores that tell no concept from another;
    - too_few_active: fewer than 5 images above the unit's resting value;
    - below_null: p above `level`;
    - ok.

    Scores compare within one call only: they move with the concepts, the number of images listed and the units scored
    together. `constants` holds all that was set.
    """

    layers: tuple[str, ...]
    unit: tuple[int, ...]
    block: tuple[int, ...]
    candidates: Int64[Tensor, "units candidates"]
    scores: Float64[Tensor, "units candidates"]
    p: Float64[Tensor, " units"]
    status: tuple[Status, ...]
    active: Int64[Tensor, " units"]
    images: Int64[Tensor, "units shown"]
    concepts: tuple[str, ...]
    similarity: str
    constants: Mapping[str, Any]
    encoder: str
    hashes: Mapping[str, str]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    prior: Prior | None = None
    p_prior: Float64[Tensor, " units"] | None = None

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def best(self) -> tuple[str, ...]:
        """The best concept of every unit, whatever its status."""
        return tuple(self.concepts[i] for i in self.candidates[:, 0].tolist())

    @property
    def labels(self) -> tuple[str, ...]:
        """The best concept of units whose status is ok, "" for the others."""
        return tuple(b if s == "ok" else "" for b, s in zip(self.best, self.status, strict=True))

    @property
    def margin(self) -> Float64[Tensor, " units"]:
        """Score of the best concept minus that of the runner-up."""
        return self.scores[:, 0] - self.scores[:, 1]

    @property
    def key(self) -> str:
        """SHA-256 of all that these descriptions depend on: inputs, concepts, similarity and its constants, facts."""
        parts = [VERSION, self.similarity, dict(self.constants), dict(self.hashes), dict(self.facts)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def of(self, layer: str, unit: int) -> dict[str, Any]:
        """One unit's record: label, status, p, candidates with their scores, active images, strongest images."""
        rows = [i for i, at in enumerate(zip(self.layers, self.unit, strict=True)) if at == (layer, unit)]
        if not rows:
            known = dict.fromkeys(self.layers)
            raise ConfigError(
                f"no unit {unit} of layer {layer!r} here; nearest layers: {nearest(layer, known)}"
            )
        i = rows[0]
        names = [self.concepts[c] for c in self.candidates[i].tolist()]
        return {
            "layer": layer,
            "unit": unit,
            "label": self.labels[i],
            "status": self.status[i],
            "p": float(self.p[i]),
            "candidates": list(zip(names, self.scores[i].tolist(), strict=True)),
            "active": int(self.active[i]),
            "images": [image for image in self.images[i].tolist() if image >= 0],
        }

    def to_table(self) -> dict[str, list[Any]]:
        """Columns for `Run.save_table` or a CSV file, one row a unit; lists become text."""
        text = [
            [f"{self.concepts[c]} ({s:.3f})" for c, s in zip(row, scores, strict=True)]
            for row, scores in zip(self.candidates.tolist(), self.scores.tolist(), strict=True)
        ]
        n = len(self)
        return {
            "layer": list(self.layers),
            "unit": list(self.unit),
            "block": list(self.block),
            "label": list(self.labels),
            "best": list(self.best),
            "score": self.scores[:, 0].tolist(),
            "p": self.p.tolist(),
            "p_prior": [math.nan] * n if self.p_prior is None else self.p_prior.tolist(),
            "status": list(self.status),
            "margin": self.margin.tolist(),
            "runners_up": ["; ".join(row[1:]) for row in text],
            "n_active": self.active.tolist(),
            "images": [" ".join(str(i) for i in row if i >= 0) for row in self.images.tolist()],
            **{name: [value] * n for name, value in self.provenance.items()},
        }

    @property
    def provenance(self) -> dict[str, str]:
        """What the descriptions were made of, the same for every unit: rule, constants, pooling, sets and their hashes.

        Source: specification of DISCOVER's output record (section 4.5): similarity and its constants (the prior's scope among
        them), pooling and winners of competing layers, encoder, hashes of concepts and of the images, and a key from all of it.
        """

        def text(values: Mapping[str, Any]) -> str:
            return json.dumps(dict(values), sort_keys=True, default=str)

        return {
            "similarity": self.similarity,
            "constants": text(self.constants),
            "encoder": self.encoder,
            "encoder_hash": self.hashes["encoder"],
            "concept_set": self.hashes["concepts"],
            "probe_set": self.hashes["probe"],
            "facts": text(self.facts),
            "key": self.key,
        }


@dc.dataclass(frozen=True, eq=False)
class Ranking:
    """Best concepts so far, and the scores of null units, before p-values and statuses."""

    candidates: Int64[Tensor, "units candidates"]
    scores: Float64[Tensor, "units candidates"]
    fit: Float64[Tensor, "units candidates"]

    @classmethod
    def empty(cls, units: int, candidates: int) -> "Ranking":
        """Nothing seen yet."""
        worst = torch.full((units, candidates), -torch.inf, dtype=torch.float64)
        return cls(torch.full((units, candidates), -1), worst, worst * torch.nan)

    def and_(
        self,
        scores: Float[Tensor, "units some"],
        first: int,
        *,
        fit: Callable[[Tensor], Tensor] | None = None,
    ) -> "Ranking":
        """With the scores of concepts `first`, `first` + 1, ..., numbers above all before.

        Args:
            fit: what else to keep of chosen concepts [units, chosen] of this piece.
        """
        keep = self.scores.shape[1]
        found = scores.topk(min(keep, scores.shape[1]), dim=1)
        both = torch.cat([self.scores, found.values.double()], dim=1)
        ids = torch.cat([self.candidates, found.indices + first], dim=1)
        # By number first, then stably by score: equal scores keep the order of the concepts.
        by_id = ids.argsort(dim=1)
        by_score = both.gather(1, by_id).argsort(dim=1, descending=True, stable=True)
        order = by_id.gather(1, by_score)[:, :keep]
        fits = (
            torch.full_like(both, torch.nan)
            if fit is None
            else torch.cat([self.fit, fit(found.indices)], dim=1)
        )
        return Ranking(ids.gather(1, order), both.gather(1, order), fits.gather(1, order))


def null_p(
    scores: Float64[Tensor, " units"], null: Float64[Tensor, "_ draws"], which: Int64[Tensor, " units"]
) -> Float64[Tensor, " units"]:
    """(1 + number of null scores >= score) / (1 + draws), against row `which` of `null`."""
    draws = null.shape[1]
    ordered = null.sort(dim=1).values
    below = torch.empty(len(scores), dtype=torch.float64)
    for row in which.unique().tolist():
        units = which == row
        below[units] = torch.searchsorted(ordered[row], scores[units].contiguous(), side="left").double()
    return (1 + draws - below) / (1 + draws)


def check_null(*, null: int, level: float, candidates: int) -> None:
    """Raise for settings out of range; warn where no unit can get a label: the smallest p is 1 / (null + 1)."""
    check_range(level, 0.0, 1.0, "level")
    if null < 0 or candidates < 2:
        raise ConfigError(f"null must be at least 0 and candidates at least 2, got {null} and {candidates}")
    if null and level * (null + 1) < 1 - 1e-9:
        least = f"at least {math.ceil(1 / level - 1 - 1e-9)} null draws" if level > 0 else "a level above 0"
        warnings.warn(
            f"with {null} null draws no p lies below {1 / (null + 1):.3g}, so that no unit can get a label at level "
            f"{level:g}: that takes {least}, or none for no test",
            UserWarning,
            stacklevel=3,
        )


def check_match(collected: Collected, concepts: Concepts) -> None:
    """Raise unless images and concepts are embedded in one space by one encoder."""
    from pellucid._checks import DataError, StaleResultError

    dim = collected.embeddings.rows.shape[1]
    if concepts.vectors.shape[1] != dim:
        raise DataError(
            f"images are embedded in {dim} dimensions and concepts in {concepts.vectors.shape[1]}: "
            "use the encoder that embedded the images (for a concept table: one column for each concept)"
        )
    ours, theirs = collected.encoder_fingerprint, concepts.encoder
    if ours and theirs and ours != theirs:
        raise StaleResultError(
            f"the images were embedded by encoder {collected.encoder!r} ({ours[:12]}) and the concepts by another one "
            f"({theirs[:12]}): embed the concepts again, or collect again"
        )


def conclude(
    collected: Collected,
    concepts: Concepts,
    ranking: Ranking,
    *,
    p: Float64[Tensor, " units"],
    similarity: str,
    constants: Mapping[str, Any],
    level: float,
    degenerate: Tensor | None = None,
    notes: tuple[str, ...] = (),
    prior: Prior | None = None,
    p_prior: Float64[Tensor, " units"] | None = None,
) -> Descriptions:
    """Descriptions from a ranking: statuses, hashes, and what else stands in a unit's record."""
    activity = collected.activity
    flat = (
        ranking.scores[:, 0] == ranking.scores[:, -1]
        if ranking.scores.shape[1] > 1
        else torch.zeros_like(p) > 0
    )
    flat = flat | ~torch.isfinite(ranking.scores[:, 0]) | (activity.constant & ~activity.dead)
    flat = flat if degenerate is None else flat | degenerate
    layers = [layer for layer, units in collected.layers.items() for _ in range(units)]
    unit = [u for units in collected.layers.values() for u in range(units)]
    sizes = [collected.blocks.get(layer, 0) for layer in layers]
    return Descriptions(
        layers=tuple(layers),
        unit=tuple(unit),
        block=tuple(u // size if size else -1 for u, size in zip(unit, sizes, strict=True)),
        candidates=ranking.candidates,
        scores=ranking.scores,
        p=p,
        status=_statuses(collected, flat, p, level),
        active=activity.active,
        images=_lifting(collected),
        concepts=concepts.names,
        similarity=similarity,
        constants={**constants, "level": level},
        encoder=collected.encoder,
        hashes={
            **collected.inputs,
            "concepts": concepts.fingerprint,
            "probe": collected.fingerprint,
            "encoder": collected.encoder_fingerprint,
        },
        facts=collected.facts,
        notes=notes,
        prior=prior,
        p_prior=p_prior,
    )


def _lifting(collected: Collected) -> Int64[Tensor, "units shown"]:
    """The strongest images of every unit, -1 in place of those that do not lift it above rest."""
    lifted = collected.top.values[:, :SHOWN] > collected.activity.resting.unsqueeze(1)
    return collected.top.index[:, :SHOWN].masked_fill(~lifted, -1)


def _statuses(collected: Collected, flat: Tensor, p: Tensor, level: float) -> tuple[Status, ...]:
    activity = collected.activity
    found: list[Status] = []
    for dead, nothing, active, chance in zip(
        activity.dead.tolist(), flat.tolist(), activity.active.tolist(), p.tolist(), strict=True
    ):
        if dead:
            found.append("dead")
        elif nothing:
            found.append("degenerate")
        elif active < FEWEST_ACTIVE:
            found.append("too_few_active")
        else:
            found.append("below_null" if chance > level else "ok")
    return tuple(found)
