"""Validation during training: when it is due, and the best so far."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.arguments import at_least, checked, flag, instance, optional, positive
from innerloop.checks import describe
from innerloop.devices.placement import OneDevice, Placement
from innerloop.errors import StructureError
from innerloop.estimators import Estimator
from innerloop.learner import Learner
from innerloop.problem import Episode
from innerloop.recipes import Recipe
from innerloop.training._evaluate import (
    Evaluation,
    TaskResults,
    combined,
    evaluated_tasks,
    refuse_values_of,
    summarise,
)
from innerloop.training.outer_loop import Kept
from innerloop.trees import leaf_shapes


@checked(
    episodes=instance(
        *(Episode,),
        what="a batch of episodes",
        such_as="tasks.evaluation_episodes(distribution, 100, seed=1)",
    ),
    every=at_least(1, such_as=100),
    learner=optional(
        instance(
            *(Learner,),
            what="a Learner",
            such_as="Learner(problem, adaptation)",
            instead={Recipe: "recipe.learner"},
        )
    ),
    steps=optional(at_least(0)),
    chunk=optional(at_least(1)),
    weight=positive(),
    maximise=optional(flag()),
)
class Validation(NamedTuple):
    """How the best meta-parameters are chosen.

    `fit` takes one, or several by name. Several decide together, by the mean of their deciding
    metrics, weighted by `weight`; their metrics then carry their names: `"sines/loss"`. A metric
    that all of them have is reported under its own name too, as the weighted mean.

    Args:
        episodes: A fixed batch of meta-validation episodes.
        every: Outer steps between validations.
        learner: The learner that learns the episodes; the estimator's own unless given. Its tasks
            begin with the model state of the run, if its problem has a state of the same structure,
            shapes and dtypes.
        metric: The metric that decides, after `steps` inner steps; nothing is judged before.
        maximise: Whether more of it is better. It must be given for any metric but the loss.
        steps: Inner steps at validation; those of the adaptation unless given.
        chunk: Tasks that are computed at a time; as many as in training unless given, or 100.
        weight: The weight of this validation among several.
    """

    episodes: Episode
    every: int
    learner: Learner | None = None
    metric: str = "loss"
    maximise: bool | None = None
    steps: int | None = None
    chunk: int | None = None
    weight: float = 1.0


class Validator:
    """Validates when it is due, and remembers the best.

    Attributes:
        every: Outer steps between validations; None if there is nothing to validate.
        best: What is kept of the best and its step, once there is one.
        score: Its score, of which more is better.
    """

    def __init__(
        self,
        estimator: Estimator,
        validation: Validation | Mapping[str, Validation] | None,
        key: PRNGKeyArray,
        placement: Placement,
    ):
        self.best: tuple[Kept, int] | None = None
        self.score = -np.inf
        self._placement, self._key = placement, placement.place(key)
        self._named = {
            name: each._replace(
                episodes=placement.place(each.episodes),
                learner=placement.place(_learner(name, each, estimator)),
                chunk=each.chunk or estimator.tasks_at_once,
            )
            for name, each in _by_name(validation).items()
        }
        self.every = _common_every(self._named)

    def settings(self) -> dict[str, Any]:
        """What the choice of the best depends on, as JSON values."""
        named = self._named.items()
        return {
            "validation": {
                name: [each.every, each.metric, each.maximise, each.steps, each.weight]
                for name, each in named
            },
            "validation_episodes": {name: leaf_shapes(each.episodes) for name, each in named},
        }

    def __call__(self, now: Kept, step: int, last: bool) -> tuple[Evaluation | None, bool]:
        """Validate if it is due: the evaluation, and whether it is the best so far."""
        if self.every is None or not (last or step % self.every == 0):
            return None, False
        meta, model_state = now
        learners = {name: self._learner(name, model_state) for name in self._named}
        results = {
            name: self._results(name, learners[name], meta, self._placement) for name in self._named
        }
        for name, each in self._named.items():
            refuse_values_of(results[name], learners[name], meta, each.episodes, self._key)
        evaluations = {name: summarise(jax.device_get(each)) for name, each in results.items()}
        weights = {name: each.weight for name, each in self._named.items()}
        evaluation = combined(evaluations, weights)
        score = 0.0
        for name, each in self._named.items():
            value = evaluations[name].mean[each.metric][-1]
            share = each.weight / sum(weights.values())
            score += share * (value if each.maximise else -value)
        if self.best is not None and not score > self.score:
            return evaluation, False
        # The first is kept whatever it is, so that a run never ends without meta-parameters.
        self.score, self.best = float(np.nan_to_num(score, nan=-np.inf)), (now, step)
        return evaluation, True

    def require_metrics(self, meta: PyTree) -> None:
        """Raise `StructureError`, from shapes alone, if it is not clear what decides."""
        for name, each in self._named.items():
            learner = self._learner(name, None)
            results = partial(self._results, name, learner, placement=OneDevice())
            found = jax.eval_shape(results, meta)
            if each.metric not in found.metrics:
                raise StructureError(
                    "the validation does not have the metric that decides",
                    got=f"metric={each.metric!r}",
                    expected=f"one of {', '.join(map(repr, found.metrics))}",
                    write=f"Validation(..., metric={next(iter(found.metrics))!r})",
                )
            if each.maximise is None and each.metric != "loss":
                raise StructureError(
                    "a validation does not say whether more of its metric is better",
                    got=f"metric={each.metric!r} without maximise",
                    expected="maximise=True for an accuracy, maximise=False for an error",
                    write=f"Validation(..., metric={each.metric!r}, maximise=True)",
                )

    def _learner(self, name: str, model_state: PyTree) -> Learner:
        """The learner, with the model state of the run."""
        learner = self._named[name].learner
        assert learner is not None
        return learner.following(model_state)

    def _results(
        self, name: str, learner: Learner, meta: PyTree, placement: Placement
    ) -> TaskResults:
        each = self._named[name]
        return evaluated_tasks(
            *(learner, meta, each.episodes, self._key),
            steps=each.steps,
            chunk=each.chunk,
            placement=placement,
            each_step=False,
        )


def _by_name(validation: Validation | Mapping[str, Validation] | None) -> dict[str, Validation]:
    if validation is None:
        return {}
    named = dict(validation) if isinstance(validation, Mapping) else {"": validation}
    if named and all(isinstance(each, Validation) for each in named.values()):
        return named
    raise StructureError(
        "several validations are Validations by name",
        got=f"validation={describe(named)}",
        expected="a mapping from names to Validations, with at least one",
        write="fit(..., validation={'sines': Validation(episodes, every=100)})",
    )


def _common_every(named: Mapping[str, Validation]) -> int | None:
    found = {each.every for each in named.values()}
    if len(found) > 1:
        raise StructureError(
            "validations that decide together are due together",
            got=", ".join(f"{name}: every={each.every}" for name, each in named.items()),
            expected="the same number of outer steps",
            write=f"Validation(..., every={max(found)})",
        )
    return found.pop() if found else None


def _learner(name: str, validation: Validation, estimator: Estimator) -> Learner:
    learner = validation.learner or estimator.learner
    if learner is not None:
        return learner
    raise StructureError(
        "this estimator trains more than one learner, or none that it names",
        got=f"{type(estimator).__name__} and Validation(...) without a learner"
        + (f" for {name}" if name else ""),
        expected="the learner that learns the validation episodes",
        write="Validation(..., learner=Learner(problem, adaptation))",
    )
