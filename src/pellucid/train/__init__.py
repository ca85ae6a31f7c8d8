"""Training: `fit`, a loop you can read in a minute, and loss terms for it or for your own loop."""

from pellucid.train.history import History
from pellucid.train.loop import fit
from pellucid.train.randomness import seeded
from pellucid.train.step import CrossEntropy, Step, Term, logits_of

__all__ = ["CrossEntropy", "History", "Step", "Term", "fit", "logits_of", "seeded"]
