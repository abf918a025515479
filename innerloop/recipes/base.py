"""Recipes: the parts of a named algorithm, put together."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.estimators import Estimator, WholeTasks
from innerloop.estimators.learning import Schedule
from innerloop.gradients import MetaGradient, Unroll
from innerloop.heads.base import Features
from innerloop.labels import class_scores
from innerloop.learner import Learner, Predict
from innerloop.models import ExamplesLoss, Model
from innerloop.problem import Examples, Problem
from innerloop.tasks import StreamedTasks, TaskDistribution

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
        self, tasks: TaskDistribution | StreamedTasks, batch: int, chunk: int | None = None
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


def predict_classes(predict: Predict) -> Predict:
    """The same predictions, with -∞ at outputs that are not classes of the task."""
    return lambda params, meta, batch, key: class_scores(predict(params, meta, batch, key), batch)


def learned_head(
    adaptation: Adaptation, init_meta: InitMeta, predict: Predict, loss: ExamplesLoss
) -> Recipe:
    """A recipe whose adaptation builds its own parameters: no initialisation, no inner loss."""
    predict = predict_classes(predict)
    problem = Problem(None, None, prediction_loss(predict, loss))
    return Recipe(problem, adaptation, Unroll(), init_meta, predict)


def learned_start(
    start: Callable[..., PyTree],
    adaptation: Adaptation,
    init_meta: InitMeta,
    predict: Predict,
    loss: ExamplesLoss,
    step_weights: Callable[[int], Any] | None = None,
) -> Recipe:
    """A recipe that descends one loss of its predictions from `start(meta, support, key)`."""
    predict = predict_classes(predict)
    task_loss = prediction_loss(predict, loss)
    problem = Problem(start, task_loss, task_loss, step_weights)
    return Recipe(problem, adaptation, Unroll(), init_meta, predict)
