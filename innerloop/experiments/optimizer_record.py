"""A learned optimizer against tuned ones, on new tasks of the families that it was trained on."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from innerloop.experiments.learned_optimizer import OptimizerTraining
from innerloop.experiments.optimizer_trials import (
    BASELINES,
    LEARNED,
    family_record,
    seconds_per_step,
)

TASKS = 20
"""Of each family, where nothing else is asked for."""
TIMED_RATE = 0.01


def optimizer_record(
    experiment: OptimizerTraining,
    meta: PyTree,
    *,
    tasks: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """The name of the file for it, and the record.

    - `tasks`: of each family; `steps`: the horizon unless given; `seed`: the run's unless given

    The record holds `"settings"`, the three; `"families"`, by family and by optimizer what
    `optimizer_trials.record` gives; and `"seconds_per_step"` on the first family, by optimizer.
    """
    learned, families = experiment.learned(), experiment.training_families()
    settings: dict[str, Any] = {
        "steps": experiment.horizon if steps is None else steps,
        "tasks": TASKS if tasks is None else tasks,
        "seed": experiment.seed if seed is None else seed,
    }
    found = {each.name: family_record(each, learned, meta, **settings) for each in families}
    optimizers = {LEARNED: (learned, meta)}
    optimizers |= {name: (each, jnp.asarray(TIMED_RATE)) for name, each in BASELINES.items()}
    name = "optimizers-seed{seed}-steps{steps}-tasks{tasks}".format(**settings)
    return name, {
        "optimizer": repr(learned),
        "settings": settings,
        "families": found,
        "seconds_per_step": {
            name: seconds_per_step(families[0], *each, steps=settings["steps"])
            for name, each in optimizers.items()
        },
    }
