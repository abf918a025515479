"""The calibration of a run: a temperature, and a threshold for unknown classes."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from innerloop.lab.experiments.base import HeldOut
from innerloop.lab.experiments.few_shot import learned
from innerloop.storage.kinds import amount, anything, fields
from innerloop.tasks import evaluation_episodes

TASKS = 50
"""The number of validation tasks that calibrate the probabilities."""
DOUBTFUL = 0.05
"""The fraction of the validation images that fall below the threshold for unknown classes."""

TEMPERATURES = np.geomspace(0.05, 20, 121)


class Calibration(NamedTuple):
    """How scores become probabilities, and which of them are doubtful.

    Attributes:
        temperature: The scores are divided by it.
        unknown_below: An image whose largest probability is below this is of no known class.
    """

    temperature: float
    unknown_below: float


def read_calibration(value: Any) -> Calibration:
    """A kind of JSON value, as in `storage.kinds`."""
    kinds = dict.fromkeys(Calibration._fields, amount)
    return Calibration(**fields(kinds, rest=anything)(value))


def calibrated(scores: np.ndarray, targets: np.ndarray) -> Calibration:
    """The temperature that maximises the likelihood of the correct classes, and the threshold.

    Source: Guo et al. 2017, "On calibration of modern neural networks".

    Args:
        scores: Logits, `(rows, classes)`.
        targets: The correct classes, int `(rows,)`.

    Returns:
        The calibration. The fraction `DOUBTFUL` of these rows falls below its threshold.
    """

    def log_probabilities(temperature: float) -> np.ndarray:
        return np.asarray(jax.nn.log_softmax(np.asarray(scores, np.float64) / temperature))

    rows = np.arange(len(targets))
    likelihood = [log_probabilities(each)[rows, targets].mean() for each in TEMPERATURES]
    best = float(TEMPERATURES[int(np.argmax(likelihood))])
    largest = np.exp(log_probabilities(best)).max(axis=1)
    return Calibration(best, float(np.quantile(largest, DOUBTFUL)))


def calibrate(held_out: HeldOut, meta: PyTree, seed: int) -> Calibration:
    """The calibration of a classifier, by its validation tasks.

    Args:
        held_out: The validation tasks and the learner.
        meta: The meta-parameters.
        seed: The seed of the tasks.
    """
    episodes = evaluation_episodes(held_out.validation, TASKS, seed, "calibration")
    keys = jax.random.split(jax.random.key(seed), TASKS)

    @jax.jit
    def scores(meta, episodes):
        def of_task(task):
            episode, key = task
            return learned(held_out.learner, meta, episode, key, held_out.steps)[-1]

        return jax.lax.map(of_task, (episodes, keys))

    ways = episodes.query.ways
    found = np.asarray(scores(meta, episodes))[..., :ways].reshape(-1, ways)
    return calibrated(found, np.asarray(episodes.query.targets).reshape(-1))
