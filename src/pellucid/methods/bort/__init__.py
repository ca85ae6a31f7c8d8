"""Bort: bounded, orthogonal weights from the optimizer, so that features can be read and run backwards.

`constrain` pulls weight matrices towards orthogonality at every step of any optimizer; `orthogonality` is the proof that
it took effect.

References: Zhang et al., "Bort: Towards Explainable Neural Networks with Bounded Orthogonal Constraint", ICLR 2023.
"""

from pellucid.methods.bort.budget import learning_rates, pull_budget, strength_for_budget
from pellucid.methods.bort.constrain import Constraint, constrain
from pellucid.methods.bort.coupled import constrain_coupled
from pellucid.methods.bort.finish import finish
from pellucid.methods.bort.matrices import Matrix, matrices
from pellucid.methods.bort.orthogonality import (
    VERSION,
    Orthogonality,
    check_effect,
    effect_table,
    orthogonality,
)
from pellucid.methods.bort.pull import (
    keep_norm,
    pull_column_norm_signs_,
    pull_column_signs_,
    pull_columns_,
    pull_full_,
    pull_full_bfloat16_,
    pull_row_norm_signs_,
    pull_rows_,
    pull_signs_,
)

__all__ = [
    "VERSION",
    "Constraint",
    "Matrix",
    "Orthogonality",
    "check_effect",
    "constrain",
    "constrain_coupled",
    "effect_table",
    "finish",
    "keep_norm",
    "learning_rates",
    "matrices",
    "orthogonality",
    "pull_budget",
    "pull_column_norm_signs_",
    "pull_column_signs_",
    "pull_columns_",
    "pull_full_",
    "pull_full_bfloat16_",
    "pull_row_norm_signs_",
    "pull_rows_",
    "pull_signs_",
    "strength_for_budget",
]
