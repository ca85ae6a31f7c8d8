"""What a name in a recipe or on the command line stands for."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from pellucid._checks import ConfigError, nearest

LIBRARIES = ("timm", "torchvision")


def resolve(text: str) -> Callable[..., Any]:
    """The function, class or module object that a name stands for.

    `module:attr` is imported, from the current directory too (`attr` may be dotted); `timm:NAME` and
    `torchvision:NAME` are builders of untrained models, and never download; anything without a colon is a
    public name of pellucid, such as `CrossEntropy`.

    Raises:
        ConfigError: A module that is not there or fails to import (with its own error), an attribute that is
            not there (with the nearest), something that cannot be called.
    """
    head, colon, name = text.partition(":")
    if not colon:
        found = _public(text)
    elif head in LIBRARIES:
        found = _builder(head, name)
    elif not head or not name:
        raise ConfigError(f"expected module:name, timm:NAME or torchvision:NAME, got {text!r}")
    else:
        found = _attribute(_import(head), name, text)
    if not callable(found):
        raise ConfigError(
            f"{text!r} is a {type(found).__name__}, which cannot be called; name a function or class"
        )
    return found


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], what: str) -> None:
    """Raise `ConfigError`, with the nearest name, unless `function` takes the keywords `given`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C, without a signature: it checks for itself
    takes = {
        name
        for name, p in signature.parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    anything = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in given:
        if name not in takes and not anything:
            hint = f"nearest: {nearest(name, sorted(takes))}" if takes else "it takes none"
            raise ConfigError(f"{what} takes no argument {name!r}; {hint}")
    missing = [
        name
        for name, p in signature.parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and name not in given
    ]
    if missing:
        raise ConfigError(f"{what} needs the argument {missing[0]!r}: {what.split(' ')[-1]}{signature}")


def error_line(error: BaseException) -> str:
    """An error as its author saw it: type, message, and the line of code that raised it."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return text
    last = next(reversed(traceback.extract_tb(error.__traceback__)), None)
    return text if last is None else f"{text} ({last.filename}, line {last.lineno}: {last.line})"


def _public(text: str) -> Any:
    import pellucid

    if text in pellucid.__all__:
        return getattr(pellucid, text)
    raise ConfigError(
        f"no public name {text!r} in pellucid; nearest: {nearest(text, pellucid.__all__)}. Your own code is "
        "named module:name, a network of the zoo pellucid.zoo:resnet20"
    )


def _import(module: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # to stay, as `python -m` does: the module may import its neighbours later
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            files = [path.stem for path in Path(here).glob("*.py")]
            near = f"; files here: {nearest(module, files)}" if files else ""
            raise ConfigError(f"no module {error.name!r}, neither installed nor in {here}{near}") from error
        raise ConfigError(f"importing {module!r} failed: {error_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"importing {module!r} failed: {error_line(error)}") from error


def _attribute(module: ModuleType, name: str, text: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [n for n in dir(found) if not n.startswith("_")]
            raise ConfigError(
                f"{text!r}: {module.__name__} has no {part!r}; nearest: {nearest(part, public)}"
            )
        found = getattr(found, part)
    return found


def _builder(library: str, name: str) -> Callable[..., Any]:
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(
            f'{library}:{name} needs {library}, which is not here ({error}); pip install "pellucid[vision]"'
        ) from error
    if library == "timm":
        import timm

        known, exists, build = (
            timm.list_models,
            timm.is_model,
            partial(timm.create_model, name, pretrained=False),
        )
    else:
        from torchvision import models

        known, exists = models.list_models, set(models.list_models()).__contains__
        build = partial(models.get_model, name, weights=None)
    if not exists(name):
        raise ConfigError(f"{library} has no model {name!r}; nearest: {nearest(name, known())}")
    return build
