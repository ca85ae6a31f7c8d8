"""Class selectivity: how much a unit prefers one class over the mean of the others, with honest error bars.

    SI = (m_max - m_rest) / (m_max + m_rest + eps)

`class_selectivity` measures it for one layer from streamed per-class moments; `layer_selectivity` and
`network_selectivity` summarise. Beside each raw index stand what makes it readable: the cross-fitted index, the
index of permuted labels, the offset-free index, d' and eta squared.

References: Morcos et al., "On the importance of single directions for generalization", ICLR 2018; Leavitt and
Morcos, "Selectivity considered harmful", ICLR 2021.
"""

from pellucid.methods.selectivity.index import (
    absolute,
    offset_free_index,
    rectify,
    selectivity_index,
    shift_min,
)
from pellucid.methods.selectivity.measure import VERSION, Selectivity, class_selectivity
from pellucid.methods.selectivity.summary import (
    LayerSelectivity,
    NetworkSelectivity,
    layer_selectivity,
    network_selectivity,
)

__all__ = [
    "VERSION",
    "LayerSelectivity",
    "NetworkSelectivity",
    "Selectivity",
    "absolute",
    "class_selectivity",
    "layer_selectivity",
    "network_selectivity",
    "offset_free_index",
    "rectify",
    "selectivity_index",
    "shift_min",
]
