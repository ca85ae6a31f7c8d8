"""The optional package that some corruptions run on."""

import importlib
import importlib.util
from types import ModuleType

from pellucid._checks import ConfigError

NEED_KORNIA = frozenset({"brightness", "defocus_blur"})


def kornia() -> ModuleType:
    """kornia, or how to get it."""
    if importlib.util.find_spec("kornia") is None:
        raise ConfigError(
            f"the corruptions {sorted(NEED_KORNIA)} run on kornia, which is not installed: "
            "pip install 'pellucid[corruptions]'"
        )
    return importlib.import_module("kornia")
