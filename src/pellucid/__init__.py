"""Pellucid: what the internal units of a vision network encode, and how far to trust the answer.

Names resolve on first use, so that `import pellucid` costs nothing but itself.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Batch": "pellucid.data",
    "Claim": "pellucid.claims",
    "ClassMoments": "pellucid.stats",
    "Covariance": "pellucid.stats",
    "CrossEntropy": "pellucid.train",
    "History": "pellucid.train",
    "Moments": "pellucid.stats",
    "PellucidError": "pellucid._checks",
    "Quantiles": "pellucid.stats",
    "Rates": "pellucid.stats",
    "Run": "pellucid.store",
    "SelectivityTerm": "pellucid.methods.selectivity.regularise",
    "Source": "pellucid.data",
    "Step": "pellucid.train",
    "Tap": "pellucid.taps",
    "Term": "pellucid.train",
    "TopExamples": "pellucid.stats",
    "ablate": "pellucid.taps",
    "accuracy": "pellucid.evals.classify",
    "activation_layers": "pellucid.taps",
    "adversarial": "pellucid.attack",
    "apply_weights": "pellucid.weights",
    "attack_curve": "pellucid.evals.attack",
    "check": "pellucid.claims",
    "class_selectivity": "pellucid.methods.selectivity",
    "corrupt": "pellucid.evals.corrupt",
    "corrupted_accuracy": "pellucid.evals.corrupt",
    "dimensionality": "pellucid.evals.dimension",
    "edit": "pellucid.taps",
    "fgsm": "pellucid.attack",
    "find_layers": "pellucid.taps",
    "fit": "pellucid.train",
    "layer_selectivity": "pellucid.methods.selectivity",
    "layers": "pellucid.taps",
    "linear_probe": "pellucid.evals.probe",
    "load_weights": "pellucid.weights",
    "network_selectivity": "pellucid.methods.selectivity",
    "normalize": "pellucid.preprocess",
    "open_model": "pellucid.recipe",
    "open_source": "pellucid.data",
    "pgd": "pellucid.attack",
    "record": "pellucid.record",
    "register": "pellucid.claims",
    "resolve": "pellucid.recipe",
    "seeded": "pellucid.train",
    "selectivity_taps": "pellucid.methods.selectivity.regularise",
    "watch": "pellucid.taps",
    "write_report": "pellucid.report",
}

__all__ = sorted(["__version__", *_HOME])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    from pellucid._checks import nearest

    raise AttributeError(f"pellucid has no public name {name!r}; nearest: {nearest(name, _HOME)}")


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """`record` is a function and the file it lives in: importing the file must not hide the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
