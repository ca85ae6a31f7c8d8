"""Figures of the paper's main text (version 1, tables read in full), beside which the page puts ours.

Three runs a method, a network of eight layers; standard deviations over runs where the tables give them. The whole training sets
were used there. How FGSM was made, and how ECE was binned, is not said; its ECE is read as percent.
"""

from collections.abc import Mapping

from decode_setup import DECNN, DROPOUT, ENSEMBLE, LINEAR, MC_DROPOUT, REDECNN, STANDARD, STRONGER

Figures = Mapping[tuple[str, str], float]
"""(method, column of cells.csv) -> figure; accuracy and ECE in %."""

VOTE = "vote_entropy"
MNIST: Figures = {
    (STANDARD, "accuracy"): 97.1, (DECNN, "accuracy"): 97.8, (REDECNN, "accuracy"): 97.5, (DROPOUT, "accuracy"): 95.9,
    (MC_DROPOUT, "accuracy"): 91.3, (ENSEMBLE, "accuracy"): 97.6, (LINEAR, "accuracy"): 97.17, (STRONGER, "accuracy"): 98.3,
    (REDECNN, f"miss.{VOTE}"): 0.869, (MC_DROPOUT, f"miss.{VOTE}"): 0.878, (ENSEMBLE, f"miss.{VOTE}"): 0.531,
    (LINEAR, f"miss.{VOTE}"): 0.904, (STRONGER, f"miss.{VOTE}"): 0.742,
    (REDECNN, f"ood.other.{VOTE}"): 0.812, (MC_DROPOUT, f"ood.other.{VOTE}"): 0.888, (ENSEMBLE, f"ood.other.{VOTE}"): 0.534,
    (LINEAR, f"ood.other.{VOTE}"): 0.845, (STRONGER, f"ood.other.{VOTE}"): 0.650,
    (REDECNN, f"fgsm.{VOTE}"): 0.787, (MC_DROPOUT, f"fgsm.{VOTE}"): 0.817, (ENSEMBLE, f"fgsm.{VOTE}"): 0.540,
    (LINEAR, f"fgsm.{VOTE}"): 0.805, (STRONGER, f"fgsm.{VOTE}"): 0.729,
    (REDECNN, f"corrupt.{VOTE}"): 0.727, (MC_DROPOUT, f"corrupt.{VOTE}"): 0.785, (ENSEMBLE, f"corrupt.{VOTE}"): 0.566,
    (LINEAR, f"corrupt.{VOTE}"): 0.790, (STRONGER, f"corrupt.{VOTE}"): 0.694,
    (REDECNN, f"corrupt_sd.{VOTE}"): 0.075, (MC_DROPOUT, f"corrupt_sd.{VOTE}"): 0.113, (ENSEMBLE, f"corrupt_sd.{VOTE}"): 0.087,
    (STANDARD, "ece"): 1.18, (REDECNN, "ece"): 0.33, (DROPOUT, "ece"): 0.63, (MC_DROPOUT, "ece"): 0.41, (ENSEMBLE, "ece"): 1.80,
    (LINEAR, "ece"): 0.296, (STRONGER, "ece"): 0.385,
}  # fmt: skip
FASHION: Figures = {
    (STANDARD, "accuracy"): 87.7, (DECNN, "accuracy"): 88.8, (REDECNN, "accuracy"): 88.1, (DROPOUT, "accuracy"): 80.7,
    (MC_DROPOUT, "accuracy"): 78.6, (ENSEMBLE, "accuracy"): 88.4,
    (REDECNN, f"miss.{VOTE}"): 0.795, (MC_DROPOUT, f"miss.{VOTE}"): 0.818, (ENSEMBLE, f"miss.{VOTE}"): 0.559,
    (REDECNN, f"ood.other.{VOTE}"): 0.793, (MC_DROPOUT, f"ood.other.{VOTE}"): 0.864, (ENSEMBLE, f"ood.other.{VOTE}"): 0.501,
    (REDECNN, f"fgsm.{VOTE}"): 0.711, (MC_DROPOUT, f"fgsm.{VOTE}"): 0.760, (ENSEMBLE, f"fgsm.{VOTE}"): 0.589,
    (REDECNN, f"corrupt.{VOTE}"): 0.676, (MC_DROPOUT, f"corrupt.{VOTE}"): 0.691, (ENSEMBLE, f"corrupt.{VOTE}"): 0.606,
    (REDECNN, f"corrupt_sd.{VOTE}"): 0.072, (MC_DROPOUT, f"corrupt_sd.{VOTE}"): 0.108, (ENSEMBLE, f"corrupt_sd.{VOTE}"): 0.106,
    (STANDARD, "ece"): 0.56, (REDECNN, "ece"): 0.21, (DROPOUT, "ece"): 0.48, (MC_DROPOUT, "ece"): 0.13, (ENSEMBLE, "ece"): 0.89,
}  # fmt: skip
FIGURES: Mapping[str, Figures] = {"mnist": MNIST, "fashion-mnist": FASHION}
"""By part of the study; the paper has no residual network."""

FAIR = {"f1": {"standard": (84.3, 77.6), "ReDecNN": (84.5, 78.0), "constrained": (83.3, 80.6)}, "ap": {"standard": (78.55, 69.36), "ReDecNN": (78.28, 70.34), "constrained": (77.36, 76.27)}}  # fmt: skip
"""CelebA, "attractive", pale and not pale skin, %: another data set, so only the direction can be compared."""
