"""Adversarial training: the attack as the `prepare` step of `fit`."""

import dataclasses as dc
from collections.abc import Callable

import torch
from torch import nn

from pellucid._checks import DataError
from pellucid.attack.ball import Ball
from pellucid.attack.classifier import Loss, Plan, run_plan
from pellucid.attack.losses import cross_entropy
from pellucid.data import Batch
from pellucid.taps import unwrap

Prepare = Callable[[nn.Module, Batch, torch.Generator], Batch]


def adversarial(
    ball: Ball, *, steps: int = 7, step_size: float | None = None, loss: Loss = cross_entropy
) -> Prepare:
    """`prepare` for `fit`: every batch is replaced by its PGD images before the training step.

    min over weights of the mean of max over the ball of loss(model(x + delta), target). The attack sees the model in
    evaluation mode (batch norm uses its running statistics and does not update them) and never touches `.grad`; the
    training step that follows sees it in the mode `fit` chose. The whole trajectory is run and its last point kept.

    Args:
        steps: 7 is the usual number for training; the step is radius / 4 unless you say otherwise.

    References: Madry et al., ICLR 2018, equation 2.1.
    """
    plan = Plan(ball, steps, step_size, loss=loss, early_stop=False)

    def prepare(model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        if batch.targets is None:
            raise DataError("adversarial training needs labels, and this source has none")
        seed = int(torch.randint(2**62, (), generator=generator))
        # Inside DistributedDataParallel a forward with frozen parameters would wait for gradients that never come.
        attacked = run_plan(
            unwrap(model), batch.inputs, batch.targets, plan=plan, index=batch.index, seed=seed
        )
        return dc.replace(batch, inputs=attacked.inputs)

    return prepare
