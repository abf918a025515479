"""The checks that run nothing, before the first step."""

import warnings
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from innerloop import diagnostics
from innerloop.diagnostics import Severity
from innerloop.problem import ProblemMixture
from innerloop.recipes import Recipe
from innerloop.tasks import StreamedTasks, TaskDistribution
from innerloop.training.arguments import of_whole_tasks


def stop_at_faults(
    recipe: Recipe, tasks: TaskDistribution | StreamedTasks, batch: int, key: PRNGKeyArray
) -> None:
    """Raise `GradientError` for the first error that `check` finds by tracing; warn of the rest."""
    meta_key, sample_key = jax.random.split(key)
    meta, episodes = recipe.init_meta(meta_key), tasks.sample(sample_key, batch)
    problem, adaptation = recipe.at(0)
    gradient = of_whole_tasks(recipe, "fit(check=True)")
    kinds: list[tuple[Any, ...]] = [(problem, adaptation, episodes, gradient)]
    if isinstance(problem, ProblemMixture):
        kinds = problem.kinds(adaptation, episodes, gradient)
    for problem, adaptation, episodes, gradient in kinds:
        report = diagnostics.check(problem, adaptation, meta, episodes, key, gradient, run=False)
        report.raise_errors()
        for finding in report.findings:
            if finding.severity is not Severity.NOTE:
                warnings.warn(str(finding), stacklevel=3)
