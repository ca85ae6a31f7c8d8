"""What every measure of accuracy here shares: class scores, labels, where the model lives."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid._checks import DataError
from pellucid.data import Batch, ClassMap, Source
from pellucid.train import logits_of


class MappedLogits(nn.Module):
    """A model whose outputs are regrouped by a class map: log of the mean probability over each class's outputs."""

    def __init__(self, model: nn.Module, class_map: ClassMap):
        super().__init__()
        self.model = model
        self.outputs = [list(outputs) for outputs in class_map.outputs]

    def forward(self, inputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        log_probs = logits_of(self.model(inputs)).log_softmax(-1)
        widest = max(max(outputs) for outputs in self.outputs)
        if widest >= log_probs.shape[1]:
            raise DataError(
                f"the class map names output {widest}, but the model has {log_probs.shape[1]} outputs"
            )
        means = [
            torch.logsumexp(log_probs[:, o], 1) - float(torch.tensor(len(o)).log()) for o in self.outputs
        ]
        return torch.stack(means, 1)


def class_logits(model: nn.Module, source: Source) -> nn.Module:
    """`model`, or a view of it with one logit for each class of the source where the source has a class map."""
    if source.class_map is None:
        return model
    return MappedLogits(model, source.class_map.align(source.classes))


def labelled(source: Source, batch_size: int, device: torch.device) -> Iterator[tuple[Batch, Tensor]]:
    """Batches on `device` with their targets; `DataError` where the source has none."""
    for batch in source.batches(batch_size):
        if batch.targets is None:
            raise DataError(f"source {source.name!r} has no labels, so there is no accuracy to measure")
        moved = batch.to(device)
        assert moved.targets is not None
        yield moved, moved.targets


def model_device(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU for a model that has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
