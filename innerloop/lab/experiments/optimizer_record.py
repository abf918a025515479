"""A learned optimizer against tuned ones, on new tasks of families."""

import dataclasses
import zlib
from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from innerloop.lab.experiments.learned_optimizer import OptimizerTraining, named_families
from innerloop.lab.experiments.optimizer_trials import (
    LEARNED,
    baselines,
    family_record,
    seconds_per_step,
)

TASKS = 20
"""The default number of tasks of each family."""
TIMED_RATE = 0.01


def optimizer_record(
    experiment: OptimizerTraining,
    meta: PyTree,
    *,
    tasks: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    families: tuple[str, ...] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Evaluate a learned optimizer and tuned ones.

    Args:
        experiment: The experiment that the optimizer was learned by.
        meta: The meta-parameters of the optimizer.
        tasks: Tasks of each family, `TASKS` by default.
        steps: Inner steps, the horizon by default.
        seed: The seed of the tasks, the run's by default.
        families: Names of training and held-out families; those it was trained on by default.

    Returns:
        The name of the file for it, and the record: `"settings"`, the three numbers; `"families"`,
        by family and by optimizer what `trial_record` gives; and `"seconds_per_step"` on the first
        family, by optimizer.
    """
    chosen = experiment.training_families() if families is None else named_families(families)
    settings: dict[str, Any] = {
        "steps": experiment.horizon if steps is None else steps,
        "tasks": TASKS if tasks is None else tasks,
        "seed": experiment.seed if seed is None else seed,
    }
    # An optimizer may know when the run ends.
    learned = dataclasses.replace(experiment, horizon=settings["steps"]).learned()
    found = {each.name: family_record(each, learned, meta, **settings) for each in chosen}
    tuned, rate = baselines(settings["steps"]), jnp.asarray(TIMED_RATE)
    optimizers = {LEARNED: (learned, meta)} | {name: (each, rate) for name, each in tuned.items()}
    name = "optimizers-seed{seed}-steps{steps}-tasks{tasks}".format(**settings)
    if families is not None:  # The names of all could be too long for a file name.
        names = " ".join(family.name for family in chosen)
        name += f"-{len(chosen)}-families-{zlib.crc32(names.encode()):08x}"
    return name, {
        "optimizer": repr(learned),
        "settings": settings,
        "families": found,
        "seconds_per_step": {
            name: seconds_per_step(chosen[0], *each, steps=settings["steps"])
            for name, each in optimizers.items()
        },
    }
