"""Recipes: the parts of a named algorithm, put together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.estimators import OnlineGradient
from innerloop.gradients import MetaGradient
from innerloop.heads.base import Features
from innerloop.models import ExamplesLoss, Model
from innerloop.problem import Examples, Problem, ProblemMixture

Predict = Callable[[PyTree, PyTree, Examples, PRNGKeyArray], Array]
"""`(params, meta, batch, key) -> predictions` for the rows of `batch`, whose targets are not read.
"""


class Phase(NamedTuple):
    """A meta-gradient that is used at the beginning.

    Args:
        until: The first outer step that does not use this meta-gradient.
        gradient: A meta-gradient of whole tasks.
    """

    until: int
    gradient: MetaGradient | tuple[MetaGradient, ...]


class Recipe(NamedTuple):
    """A named algorithm as its parts; replace any of them with `recipe._replace(...)`.

    Args:
        problem: What is optimised.
        adaptation: How a task is learned.
        gradient: A meta-gradient of whole tasks, or of inner runs that span outer steps; for a
            mixture also a tuple of one for each kind, of whole tasks.
        init_meta: `key -> meta`, the meta-parameters before meta-training.
        predict: `(params, meta, batch, key) -> predictions` after adaptation; None where the
            problem says all.
        tested: The problem and adaptation by which new tasks are learned, where meta-training has
            others (pretraining); None where they are the same.
        schedule: `outer step -> (problem, adaptation)` where they change during meta-training; the
            step is a traced number, so they may differ in numbers and not in shapes. `problem` and
            `adaptation` are those that it comes to.
        phases: Other meta-gradients that come before `gradient`, in their order.
    """

    problem: Problem | ProblemMixture
    adaptation: Adaptation | tuple[Adaptation, ...]
    gradient: MetaGradient | tuple[MetaGradient, ...] | OnlineGradient
    init_meta: Callable[[PRNGKeyArray], PyTree]
    predict: Predict | None = None
    tested: tuple[Problem, Adaptation] | None = None
    schedule: Callable[[Int[Array, ""]], tuple[Problem, Adaptation]] | None = None
    phases: tuple[Phase, ...] = ()

    def at(self, step: int | Int[Array, ""]) -> tuple[Any, Any]:
        """Problem and adaptation of an outer step; tuples of them for a mixture."""
        here = (self.problem, self.adaptation)
        return here if self.schedule is None else self.schedule(jnp.asarray(step, jnp.int32))

    @property
    def at_test(self) -> tuple[Any, Any]:
        """Problem and adaptation by which new tasks are learned; tuples of them for a mixture."""
        return self.tested or (self.problem, self.adaptation)


def model_predictions(model: Model) -> Predict:
    """The predictions of a model whose parameters are the adapted ones."""
    return lambda params, meta, batch, key: model.apply(params, batch.inputs, key, batch.mask)


def model_features(model: Model, of_meta: Callable[[PyTree], PyTree]) -> Features:
    """The features for a head: the outputs of a model whose parameters are a part of meta."""
    return lambda meta, batch, key: model.apply(of_meta(meta), batch.inputs, key, batch.mask)


def prediction_loss(predict: Predict, loss: ExamplesLoss) -> Callable:
    """The loss of predictions, with the signature of a `Problem`'s losses."""

    def judged(params: PyTree, meta: PyTree, batch: Examples, key: PRNGKeyArray):
        return loss(predict(params, meta, batch, key), batch)

    return judged


def learned_head(
    adaptation: Adaptation,
    init_meta: Callable[[PRNGKeyArray], PyTree],
    predict: Predict,
    loss: ExamplesLoss,
    gradient: MetaGradient,
) -> Recipe:
    """A recipe whose adaptation builds its own parameters: no initialisation, no inner loss."""
    problem = Problem(None, None, prediction_loss(predict, loss))
    return Recipe(problem, adaptation, gradient, init_meta, predict)
