"""The table of recipes: each by its name, with the parts of a network that it uses."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from innerloop.errors import StructureError
from innerloop.models import Model, film, mlp
from innerloop.recipes._cnp import cnp
from innerloop.recipes._linear_heads import logistic_head, r2d2, svm_head
from innerloop.recipes._maml import fomaml, imaml, maml, maml_plus_plus, meta_sgd, reptile
from innerloop.recipes._partly_adapted import anil, boil, cavia
from innerloop.recipes._pretrained import pretrain_classifier, pretrain_finetune
from innerloop.recipes._similarity import matching, nearest_neighbour, protonet
from innerloop.recipes.base import ExamplesLoss, Recipe


class Network(NamedTuple):
    """The parts of a network and its tasks that a recipe may use.

    Args:
        model: The whole network, with parameters `{"body", "head"}`.
        features: The body only, with outputs `(rows, width)`.
        width: The number of features.
        outputs: The number of classes of a task, or of regressed values.
        loss: `(predictions, examples) -> (loss, metrics)`.
        classes: A function that counts all meta-training classes, which may need the data; None for
            regression.
    """

    model: Model
    features: Model
    width: int
    outputs: int
    loss: ExamplesLoss
    classes: Callable[[], int] | None = None

    @property
    def ways(self) -> int | None:
        """Classes of a task; None for regression."""
        return None if self.classes is None else self.outputs


def _with_context(network: Network) -> Model:
    head = mlp([network.width, network.width, network.outputs])
    return film(network.features, network.width, head, _CONTEXT)


def _process(network: Network) -> Callable[..., Recipe]:
    """Three networks; a target is beside the features where there are no classes."""
    width, outputs, ways = network.width, network.outputs, network.ways
    encoder = mlp([width if ways else width + outputs, _HIDDEN, _HIDDEN])
    decoder = mlp([width + _HIDDEN * (ways or 1), _HIDDEN, _HIDDEN, outputs])
    return partial(cnp, network.features, encoder, decoder, network.loss, ways)


def _pretrained(network: Network) -> Callable[..., Recipe]:
    if network.classes is None:
        return partial(pretrain_finetune, network.model, network.loss)
    sizes = (network.width, network.classes(), network.outputs)
    return partial(pretrain_classifier, network.features, *sizes, network.loss)


def _of_model(recipe: Callable[..., Recipe]) -> Callable[[Network], Callable[..., Recipe]]:
    return lambda network: partial(recipe, network.model, network.loss)


def _of_head(recipe: Callable[..., Recipe]) -> Callable[[Network], Callable[..., Recipe]]:
    return lambda network: partial(recipe, network.features, network.loss, network.ways)


_CONTEXT, _HIDDEN = 100, 128
_DESCENTS = (maml, fomaml, reptile, meta_sgd, maml_plus_plus, anil, boil, imaml)
_CLASSIFIERS = (protonet, matching, logistic_head, svm_head)

_Made = Callable[[Network], Callable[..., Recipe]]

_OF_REAL_TARGETS_TOO: dict[str, _Made] = {
    **{recipe.__name__: _of_model(recipe) for recipe in _DESCENTS},
    "cavia": lambda network: partial(cavia, _with_context(network), network.loss),
    "r2d2": _of_head(r2d2),
    "cnp": _process,
    "pretrain_finetune": _pretrained,
}
_OF_CLASSES_ALONE: dict[str, _Made] = {
    **{recipe.__name__: _of_head(recipe) for recipe in _CLASSIFIERS},
    "nearest_neighbour": lambda network: partial(nearest_neighbour, network.loss, network.outputs),
}
RECIPES: dict[str, _Made] = _OF_REAL_TARGETS_TOO | _OF_CLASSES_ALONE
"""All recipes by name: what each takes from a network, its hyper-parameters still to be given."""

if TYPE_CHECKING:  # type checkers know no names that are computed
    RegressionRecipe = RecipeName = str
else:
    RegressionRecipe = Literal[tuple(_OF_REAL_TARGETS_TOO)]
    """Names of the recipes that learn real targets too."""
    RecipeName = Literal[tuple(RECIPES)]
    """Names of all recipes."""


def hyper_parameters(name: str, network: Network) -> dict[str, Any]:
    """The hyper-parameters of a recipe of the table, and their defaults."""
    parameters = inspect.signature(RECIPES[name](network)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def named_recipe(
    name: str, network: Network, defaults: Mapping[str, Any] = MappingProxyType({}), **settings: Any
) -> Recipe:
    """A recipe of the table.

    Args:
        name: The name of the recipe.
        network: The network that it uses.
        defaults: Values for hyper-parameters that `settings` leave out or set to None.
        **settings: Hyper-parameters by name.

    Raises:
        StructureError: If the name is not in the table, if the recipe is for classification and the
            task is regression, or if the recipe does not have a hyper-parameter.
    """
    names = RECIPES if network.ways is not None else _OF_REAL_TARGETS_TOO
    if name not in names:
        kind = "regression" if name in RECIPES else "learning"
        raise StructureError(
            f"{name} is no recipe for {kind}",
            got=f"recipe={name}",
            expected="one of " + ", ".join(names),
        )
    given = {**defaults, **{key: value for key, value in settings.items() if value is not None}}
    known = hyper_parameters(name, network)
    for key in given:
        if key not in known:
            raise StructureError(
                f"{name} has no {key}",
                got=f"{key}={given[key]!r}",
                expected=f"some of {', '.join(known)}" if known else "no hyper-parameters",
            )
    return RECIPES[name](network)(**given)
