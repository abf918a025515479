"""Validation during training: when it is due, and the best so far."""

import sys
from typing import NamedTuple

import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.checks import check_count
from innerloop.devices.placement import Placement
from innerloop.problem import Episode
from innerloop.recipes import Recipe
from innerloop.training._evaluate import Evaluation, evaluator, summarise


class Validation(NamedTuple):
    """How the best meta-parameters are chosen.

    - `episodes`: a fixed batch of meta-validation episodes; of a mixture a tuple, one per kind
    - `every`: outer steps between validations
    - `metric`: which metric decides, after `steps` inner steps; nothing is judged before
    - `maximise`: whether more of it is better
    - `steps`: inner steps at validation; those of the adaptation unless given
    """

    episodes: Episode | tuple[Episode, ...]
    every: int
    metric: str = "loss"
    maximise: bool = False
    steps: int | None = None


class Validator:
    """Validates when it is due, and remembers the best.

    - `best`: `(meta, step)`, once there is one; `score`: its score, of which more is better
    """

    def __init__(
        self,
        recipe: Recipe,
        validation: Validation | None,
        chunk: int | None,
        key: PRNGKeyArray,
        placement: Placement,
    ):
        self.best: tuple[PyTree, int] | None = None
        self._validation = validation
        self._key = placement.place(key)
        self.score = -np.inf
        if validation is not None:
            check_count("every", validation.every, write="Validation(episodes, every=100)")
            self._evaluate = evaluator(
                *recipe.at_test,
                steps=validation.steps,
                chunk=chunk,
                placement=placement,
                each_step=False,
            )
            self._episodes = placement.place(validation.episodes)

    def steps_until_due(self, step: int) -> int:
        if self._validation is None:
            return sys.maxsize
        return self._validation.every - step % self._validation.every

    def __call__(self, meta: PyTree, step: int, last: bool) -> tuple[Evaluation | None, bool]:
        validation = self._validation
        if validation is None or not (last or step % validation.every == 0):
            return None, False
        evaluation = summarise(self._evaluate(meta, self._episodes, self._key))
        value = evaluation.mean[validation.metric][-1]
        score = value if validation.maximise else -value
        if self.best is not None and not score > self.score:
            return evaluation, False
        # The first is kept whatever it is, so that a run never ends without meta-parameters.
        self.score, self.best = float(np.nan_to_num(score, nan=-np.inf)), (meta, step)
        return evaluation, True
