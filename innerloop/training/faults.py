"""The checks that run nothing, before the first step."""

import warnings

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
    kinds = [(problem, adaptation, episodes)]
    if isinstance(problem, ProblemMixture):
        kinds = zip(problem.problems, adaptation, episodes, strict=True)  # pyright: ignore
    for problem, adaptation, episodes in kinds:
        report = diagnostics.check(
            problem,  # pyright: ignore[reportArgumentType]
            adaptation,  # pyright: ignore[reportArgumentType]
            meta,
            episodes,
            key,
            gradient,
            run=False,
        )
        report.raise_errors()
        for finding in report.findings:
            if finding.severity is not Severity.NOTE:
                warnings.warn(str(finding), stacklevel=3)
