"""Names and recipes: the one place where text becomes an object, a model or a whole training."""

from pellucid.recipe.models import open_model
from pellucid.recipe.names import check_arguments, resolve
from pellucid.recipe.schema import Recipe, load_recipe, parse_recipe

__all__ = ["Recipe", "check_arguments", "load_recipe", "open_model", "parse_recipe", "resolve"]
