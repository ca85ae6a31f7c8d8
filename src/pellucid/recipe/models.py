"""Models by name."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pellucid._checks import ConfigError, PellucidError
from pellucid.recipe.names import LIBRARIES, check_arguments, error_line, resolve

if TYPE_CHECKING:
    from torch import nn

DOWNLOADS = ("pretrained", "weights", "weights_backbone", "checkpoint_path")


def open_model(
    spec: str, *, classes: int | None = None, arguments: Mapping[str, Any] | None = None, seed: int = 0
) -> "nn.Module":
    """Build the untrained model that `spec` names: `module:function`, `timm:NAME`, `torchvision:NAME`.

    Args:
        classes: Given to the builder where it has an argument `classes` or `num_classes`.
        arguments: Keyword arguments of the builder.
        seed: Of the initial weights; the global generator is left as it was.

    Raises:
        ConfigError: A name that cannot be resolved, arguments that the builder does not take, a builder that
            fails (with its own error) or returns no `nn.Module`.
    """
    from torch import nn

    from pellucid.train import seeded

    builder, given = resolve(spec), dict(arguments or {})
    if isinstance(builder, nn.Module):
        if given:
            raise ConfigError(f"{spec} is a model already and takes no arguments, got {sorted(given)}")
        return builder
    library = spec.partition(":")[0] in LIBRARIES
    if library and (stray := sorted(set(given) & set(DOWNLOADS))):
        raise ConfigError(f"{spec} is built untrained, without {stray[0]!r}; weights are read from a file")
    if classes is not None and (name := _classes_argument(builder, library=library)):
        given.setdefault(name, classes)
    check_arguments(builder, given, f"the model {spec}")
    with seeded(seed, "model"):
        try:
            model = builder(**given)
        except PellucidError:
            raise
        except Exception as error:
            raise ConfigError(f"building {spec} with {given} failed: {error_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{spec} must give an nn.Module, came {type(model).__name__}")
    return model


def _classes_argument(builder: Any, *, library: bool) -> str | None:
    if library:
        return "num_classes"
    try:
        parameters = inspect.signature(builder).parameters
    except (TypeError, ValueError):
        return None
    return next((name for name in ("classes", "num_classes") if name in parameters), None)
