"""Tasks that differ in kind: each kind has its own data, losses and adaptation."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from innerloop.adaptation import Adaptation
from innerloop.errors import StructureError
from innerloop.problem import Episode, Problem, ProblemMixture
from innerloop.tasks.base import TaskDistribution


class Kind(NamedTuple):
    """One kind of task in a mixture.

    Args:
        problem: What is optimised.
        adaptation: How a task is learned.
        tasks: The task distribution.
        weight: The share of the kind in the meta-objective and, as nearly as whole tasks allow, in
            each batch; positive, and relative to the other kinds.
    """

    problem: Problem
    adaptation: Adaptation
    tasks: TaskDistribution
    weight: float = 1.0


class TaskMixture(eqx.Module):
    """The task distributions of a mixture: a sample is a tuple of batches, one per kind."""

    tasks: tuple[TaskDistribution, ...]
    weights: tuple[float, ...] = eqx.field(static=True)

    def sample(self, key: PRNGKeyArray, n: int) -> tuple[Episode, ...]:
        """Draw n tasks, shared out between the kinds by weight, at least one each.

        Raises:
            StructureError: For fewer tasks than kinds.
        """
        keys = jax.random.split(key, len(self.tasks))
        return tuple(
            tasks.sample(key, count)
            for tasks, key, count in zip(self.tasks, keys, self.shares(n), strict=True)
        )

    def shares(self, n: int) -> list[int]:
        """How many of n tasks each kind has. Raises `StructureError` for fewer than kinds."""
        if n < len(self.tasks):
            raise StructureError(
                "a batch from a mixture needs a task of every kind",
                got=f"{n} tasks for {len(self.tasks)} kinds",
                expected=f"at least {len(self.tasks)}",
                write=f"sample(key, {len(self.tasks)})",
            )
        return _share_out(n, self.weights)


def mixture(
    *kinds: Kind | tuple[Any, ...],
) -> tuple[ProblemMixture, tuple[Adaptation, ...], TaskMixture]:
    r"""Meta-learn over kinds of tasks at once: $\sum_i w_i L_i(\phi)$.

    Each kind is `(problem, adaptation, tasks, weight)`. Returns the three parts that
    `meta_value_and_grad` and `fit` take in place of a single problem, adaptation and task
    distribution:

    ```python
    problem, adaptation, tasks = il.tasks.mixture(
        (sines, learn, il.tasks.SinusoidTasks(10, 10), 3.0), (lines, learn, line_tasks, 1.0)
    )
    il.meta_value_and_grad(problem, adaptation)(meta, tasks.sample(key, 8), key)
    ```

    Raises:
        StructureError: Without kinds, or for a weight that is not positive and finite.
    """
    parts = [kind if isinstance(kind, Kind) else Kind(*kind) for kind in kinds]
    if not parts or not all(0 < kind.weight < math.inf for kind in parts):
        raise StructureError(
            "a mixture needs kinds of tasks with positive weights",
            got=f"weights {[kind.weight for kind in parts]}",
            expected="at least one kind, every weight > 0 and finite",
            write="mixture((problem, adaptation, tasks, 1.0), ...)",
        )
    total = sum(kind.weight for kind in parts)
    weights = tuple(kind.weight / total for kind in parts)
    return (
        ProblemMixture(tuple(kind.problem for kind in parts), weights),
        tuple(kind.adaptation for kind in parts),
        TaskMixture(tuple(kind.tasks for kind in parts), weights),
    )


def _share_out(n: int, weights: tuple[float, ...]) -> list[int]:
    """Whole numbers that sum to n, at least 1 each, the rest by largest remainder."""
    spare = n - len(weights)
    shares = [spare * weight for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: spare - sum(counts)]:
        counts[i] += 1
    return [count + 1 for count in counts]
