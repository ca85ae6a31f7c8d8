"""Weights from a file into a model: read without running code, matched key by key, never loaded in part.

state = load_weights("resnet20.th")          # safetensors or a torch checkpoint, on the CPU
report = apply_weights(model, state)         # or a WeightsError that lists every key that does not fit
weights_hash(model)                          # names what a result was computed with
"""

from pellucid.weights.fitting import WeightsReport, apply_weights
from pellucid.weights.hashing import weights_hash
from pellucid.weights.reading import StateDict, load_weights

__all__ = ["StateDict", "WeightsReport", "apply_weights", "load_weights", "weights_hash"]
