"""Recipes: the parts of a named algorithm, put together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.estimators import Estimator, WholeTasks
from innerloop.estimators.learning import Schedule
from innerloop.gradients import MetaGradient, Unroll
from innerloop.heads.base import Features
from innerloop.labels import class_scores
from innerloop.learner import Learner, Predict
from innerloop.models import ExamplesLoss, Model
from innerloop.models.supervised import Part, losses, network, stateless
from innerloop.problem import Examples, Problem
from innerloop.tasks import TaskDistribution
from innerloop.tasks.streamed import HostTasks

InitMeta = Callable[[PRNGKeyArray], PyTree]
"""`key -> meta`, the meta-parameters before meta-training."""


class Recipe(NamedTuple):
    """A named algorithm as its parts; replace any of them with `recipe._replace(...)`.

    Args:
        problem: What is optimised.
        adaptation: How one task is learned.
        gradient: The meta-gradient.
        init_meta: `key -> meta`, the meta-parameters before meta-training.
        predict: `(params, meta, batch, key) -> predictions` after adaptation, with -∞ at outputs
            that are not classes of the task; None if the recipe makes no predictions.
        tested: The learner of new tasks, if it differs from that of meta-training (pretraining).
        schedule: `outer step -> (problem, adaptation)` if they change during meta-training, as in
            `WholeTasks`. `problem` and `adaptation` are those at the end.
        follow: What an outer step follows, from the estimator of whole tasks; that estimator itself
            unless given.
    """

    problem: Problem
    adaptation: Adaptation
    gradient: MetaGradient
    init_meta: InitMeta
    predict: Predict | None = None
    tested: Learner | None = None
    schedule: Schedule | None = None
    follow: Callable[[WholeTasks], Estimator] = lambda whole: whole

    @property
    def learner(self) -> Learner:
        """The learner of new tasks."""
        return self.tested or Learner(self.problem, self.adaptation, self.predict)

    def estimator(
        self, tasks: TaskDistribution | HostTasks, batch: int, chunk: int | None = None
    ) -> Estimator:
        """What an outer step of meta-training follows.

        ```python
        il.fit(recipe.estimator(tasks, batch=8), recipe.init_meta, optimizer=optax.adam(1e-3), ...)
        ```

        Args:
            tasks: The tasks of meta-training.
            batch: Tasks per outer step.
            chunk: Tasks that are computed at a time; None for all at once.

        Raises:
            StructureError: A part is of another kind, or a count is below one.
        """
        whole = WholeTasks(
            *(self.problem, self.adaptation, self.gradient, tasks, batch),
            chunk=chunk,
            schedule=self.schedule,
            tested=self.learner,
        )
        return self.follow(whole)


def model_features(model: Model, of_meta: Callable[[PyTree], PyTree]) -> Features:
    """The features for a head: the outputs of a model whose parameters are a part of meta."""
    stateless(model, "a recipe with features")
    return lambda meta, batch, key: model.apply(of_meta(meta), batch.inputs, key, batch.mask)


def prediction_loss(predict: Predict, loss: ExamplesLoss) -> Callable:
    """The loss of predictions, with the signature of a `Problem`'s losses."""

    def judged(params: PyTree, meta: PyTree, batch: Examples, key: PRNGKeyArray):
        return loss(predict(params, meta, batch, key), batch)

    return judged


def predict_classes(predict: Predict) -> Predict:
    """The same predictions, with -∞ at outputs that are not classes of the task."""
    return lambda params, meta, batch, key: class_scores(predict(params, meta, batch, key), batch)


def predict_with(frozen: PyTree, predict: Predict) -> Predict:
    """The same predictions, also from a meta that lacks the frozen arrays, as `fit` returns it.

    Those that meta has are read, since the ones here would be constants of a compiled program.
    """
    if frozen is None:
        return predict
    is_none = lambda leaf: leaf is None
    given_or_held = lambda held, given: held if given is None else given
    filled = lambda meta: jax.tree.map(given_or_held, frozen, meta, is_leaf=is_none)
    return lambda params, meta, batch, key: predict(params, filled(meta), batch, key)


def train_classes(trained: Callable) -> Callable:
    """The same outputs in training, with -∞ at outputs that are not classes of the task."""

    def of_classes(params: PyTree, meta: PyTree, batch: Examples, key: PRNGKeyArray):
        outputs, state = trained(params, meta, batch, key)
        return class_scores(outputs, batch), state

    return of_classes


def learned_head(
    adaptation: Adaptation,
    init_meta: InitMeta,
    predict: Predict,
    loss: ExamplesLoss,
    frozen: PyTree = None,
) -> Recipe:
    """A recipe whose adaptation builds its own parameters: no initialisation, no inner loss."""
    predict = predict_classes(predict)
    problem = Problem(None, None, prediction_loss(predict, loss), frozen=frozen)
    return Recipe(problem, adaptation, Unroll(), init_meta, predict_with(frozen, predict))


def frozen_parts(init_meta: InitMeta, **models: Model) -> PyTree:
    """`Problem.frozen` if meta is a dictionary that holds the parameters of models by name."""
    if all(model.frozen is None for model in models.values()):
        return None
    names = jax.eval_shape(init_meta, jax.eval_shape(lambda: jax.random.key(0)))
    return dict.fromkeys(names) | {name: model.frozen for name, model in models.items()}


def learned_network(
    model: Model,
    adaptation: Adaptation,
    loss: ExamplesLoss,
    step_weights: Callable[[int], Any] | None = None,
    where: Part | None = None,
    init_meta: InitMeta | None = None,
) -> Recipe:
    """A recipe that descends the loss of a model from its learned initialisation.

    Meta is the parameters of the model or, if `init_meta` is given, a dictionary that holds them
    as `"start"`.
    """
    of_meta = (lambda meta: meta) if init_meta is None else (lambda meta: meta["start"])
    parts = network(model, of_meta, where)
    parts = parts._replace(
        outputs=predict_classes(parts.outputs), trained=train_classes(parts.trained)
    )
    frozen = model.frozen if init_meta is None else frozen_parts(init_meta, start=model)
    problem = Problem(
        *(parts.start, *losses(parts, loss, model.state is not None), step_weights),
        frozen=frozen,
        state=model.state,
    )
    predict = predict_with(frozen, parts.outputs)
    return Recipe(problem, adaptation, Unroll(), init_meta or model.init, predict)


def learned_start(
    start: Callable[..., PyTree],
    adaptation: Adaptation,
    init_meta: InitMeta,
    predict: Predict,
    loss: ExamplesLoss,
    frozen: PyTree = None,
) -> Recipe:
    """A recipe that descends one loss of its predictions from `start(meta, support, key)`."""
    predict = predict_classes(predict)
    task_loss = prediction_loss(predict, loss)
    problem = Problem(start, task_loss, task_loss, frozen=frozen)
    return Recipe(problem, adaptation, Unroll(), init_meta, predict_with(frozen, predict))
