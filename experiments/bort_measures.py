"""What is measured of a trained network: accuracy, defect, reconstruction, deletion and insertion, edits.

Columns end in the layer, the saliency or the strength of the edit that they are about: `error.act3`, `deletion.SAT`,
`edit.1`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from bort_setup import Setup
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid._checks import ConfigError
from pellucid.data import Source
from pellucid.evals.saliency import SaliencyMap, faithfulness
from pellucid.evals.saliency_maps import centre, edges, gradient_times_input
from pellucid.methods.bort import Orthogonality
from pellucid.methods.bort.backtrack import backtrack, depths, trace
from pellucid.methods.bort.backtrack_errors import by_gradient, closeness, noise_gain, reconstruction
from pellucid.methods.bort.backtrack_rules import pseudo_inverse, transposed
from pellucid.methods.bort.edits import apply_edit, plan_edit, predict, relative_size
from pellucid.methods.bort.edits_baselines import blended, gradient_signed, stretched
from pellucid.methods.bort.saliency import sat
from pellucid.rng import rng
from pellucid.train import logits_of

ALPHAS = (0.25, 0.5, 1.0, 2.0)
PICTURES = 8
NOISE = 1e-3


def defects(before: Mapping[str, Orthogonality], after: Mapping[str, Orthogonality]) -> dict[str, float]:
    """The defect of every matrix at the start and the end, their means, and the range of singular values."""
    found = {f"defect_before.{name}": one.defect for name, one in before.items()}
    found |= {f"defect.{name}": one.defect for name, one in after.items()}
    found |= {f"s_min.{name}": one.s_min for name, one in after.items()}
    found |= {f"s_max.{name}": one.s_max for name, one in after.items()}
    return found | {
        "defect_before": sum(one.defect for one in before.values()) / len(before),
        "defect": sum(one.defect for one in after.values()) / len(after),
        "defect_worst": max(one.defect for one in after.values()),
    }


@torch.no_grad()
def accuracy(model: nn.Module, source: Source) -> tuple[float, float]:
    """Share of right answers and mean cross-entropy."""
    model.eval()
    right, loss = 0.0, 0.0
    for batch in source.batches(250):
        assert batch.targets is not None
        logits = logits_of(model(batch.inputs))
        right += float((logits.argmax(1) == batch.targets).sum())
        loss += float(F.cross_entropy(logits, batch.targets, reduction="sum"))
    return right / len(source), loss / len(source)


def measures(
    model: nn.Module, test: Source, setup: Setup, *, layer: str, seed: int, scratch: Path
) -> dict[str, float]:
    """Everything about a trained network; networks without a way back (`layer` empty) have accuracy alone."""
    share, loss = accuracy(model, test)
    found = {"accuracy": share, "test_cross_entropy": loss}
    if not layer:
        return found
    most = min(len(test), max(setup.rebuilt, setup.watched, 3 * setup.edited + 200))
    batch = next(test.batches(most))
    assert batch.targets is not None
    images = batch.inputs
    found |= rebuilding(model, images, setup, layer=layer, seed=seed)
    found |= pointing(model, images[: setup.watched], setup, layer=layer, seed=seed)
    found |= editing(model, images, batch.targets, setup, layer=layer, seed=seed)
    some = images[:PICTURES]
    pictures = {"images": some.contiguous(), "rebuilt": backtrack(model, some, layer).contiguous()}
    save_file(pictures, scratch / "pictures.safetensors")
    return {name: value for name, value in found.items() if value == value}


def rebuilding(model: nn.Module, images: Tensor, setup: Setup, *, layer: str, seed: int) -> dict[str, float]:
    """Error and cosine by depth: of the transpose, of each layer's pseudo-inverse, of a search by gradients."""
    some, few = images[: setup.rebuilt], images[: setup.searched]
    layers = depths(model, some)
    found: dict[str, float] = {}
    for suffix, inverse in (("", transposed), ("_pinv", pseudo_inverse)):
        close = reconstruction(model, some, layers, inverse=inverse)
        for name, one in close.items():
            found[f"error{suffix}.{name}"] = float(one.error.nanmean())
            found[f"error{suffix}_median.{name}"] = float(one.error.nanmedian())
            found[f"cosine{suffix}.{name}"] = float(one.cosine.nanmean())
        path = trace(model, some, layer, inverse=inverse)
        calm = noise_gain(path, size=NOISE, generator=rng(seed, "noise"))
        found[f"noise_gain{suffix}"] = float(calm.nanmean())
    for name in layers:
        one = closeness(by_gradient(model, few, name, steps=setup.search_steps), few)
        found[f"error_search.{name}"] = float(one.error.nanmean())
        found[f"cosine_search.{name}"] = float(one.cosine.nanmean())
    return found


def pointing(model: nn.Module, images: Tensor, setup: Setup, *, layer: str, seed: int) -> dict[str, float]:
    """Deletion and insertion (probability, over that of the clean image) of SAT and of what it is compared with."""
    compared: dict[str, SaliencyMap] = {
        "gradient": gradient_times_input(model),
        "centre": centre,
        "edges": edges,
    }
    try:
        maps = sat(trace(model, images, layer)).maps
        compared["SAT"] = lambda _images, _classes: maps
    except ConfigError:  # no channel has its maximum off the border: there is no map
        pass
    pixels = images.shape[2] * images.shape[3]
    rows = faithfulness(model, images, compared, step=max(1, pixels // setup.stages), seed=seed)
    found: dict[str, float] = {}
    for row in rows:
        name = "random" if row.name == "random order" else row.name
        found |= {f"deletion.{name}": row.deletion.mean, f"insertion.{name}": row.insertion.mean}
    return found


def editing(
    model: nn.Module, images: Tensor, labels: Tensor, setup: Setup, *, layer: str, seed: int
) -> dict[str, float]:
    """How often an edit reaches its target, and what blending, a gradient step and noise of its size do."""
    said = predict(model, images)
    n = min(setup.edited, len(images) // 2)
    some, targets = images[:n], (said[:n] + 1 + torch.arange(n) % 9) % 10
    places = exemplars(said[n:], labels[n:], targets)
    chosen = images[n:][places]
    plan = plan_edit(model, some, chosen, targets, layer=layer)
    sign = torch.rand(some.shape, generator=rng(seed, "noise of a size")).sub(0.5).sign()
    found: dict[str, float] = {}
    for alpha in ALPHAS:
        edited = apply_edit(model, plan, alpha=alpha)
        size = edited.size
        rivals = {
            "edit": edited.inputs,
            "blend": blended(some, chosen, size),
            "step": gradient_signed(model, some, targets, size),
            "noise": stretched(some, sign, size),
        }
        for name, moved in rivals.items():
            found[f"{name}.{alpha:g}"] = float((predict(model, moved) == targets).float().mean())
            found[f"{name}_size.{alpha:g}"] = float(relative_size(moved - some, some).mean())
    return found


def exemplars(said: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """For each target an image of that class, one that the network knows where there is one; they take turns."""
    found: list[int] = []
    for i, target in enumerate(targets.tolist()):
        known = ((labels == target) & (said == target)).nonzero().flatten()
        pool = known if len(known) else (labels == target).nonzero().flatten()
        found.append(int(pool[i % len(pool)]))
    return torch.tensor(found)
