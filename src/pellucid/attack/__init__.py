"""Attacks by gradient ascent: on a classifier, on any objective, inside training, and the smallest that succeeds."""

from pellucid.attack.ascent import attack_mode
from pellucid.attack.ball import L2, Ball, Linf
from pellucid.attack.classifier import Attacked, Loss, bim, fgsm, pgd
from pellucid.attack.losses import cross_entropy, margin, normalized_cross_entropy
from pellucid.attack.minimal import Minimal, minimal_l2
from pellucid.attack.objective import Maximized, Objective, maximize
from pellucid.attack.training import Prepare, adversarial

__all__ = [
    "L2",
    "Attacked",
    "Ball",
    "Linf",
    "Loss",
    "Maximized",
    "Minimal",
    "Objective",
    "Prepare",
    "adversarial",
    "attack_mode",
    "bim",
    "cross_entropy",
    "fgsm",
    "margin",
    "maximize",
    "minimal_l2",
    "normalized_cross_entropy",
    "pgd",
]
