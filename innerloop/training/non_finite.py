"""What happens at an outer step whose loss or meta-gradient is not finite."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.checks import check_count
from innerloop.errors import RunError, StructureError
from innerloop.gradients import Aux, MetaGradient
from innerloop.objective import SumOverTasks, meta_value_and_grad
from innerloop.recipes import Recipe
from innerloop.tasks import TaskDistribution
from innerloop.training.batch import batch_and_key
from innerloop.training.feed import Block
from innerloop.training.placement import OneDevice, Placement
from innerloop.training.step import TrainState, Update, global_norm, is_sound


class NonFinite(eqx.Module):
    """A policy for outer steps whose loss or meta-gradient is not finite.

    - `in_a_row`: how many such steps may follow each other; one more ends the run. The state before
      it is saved, so that the run goes on from there, under another policy if need be.
    - `norm`: None leaves meta-parameters and optimizer as they were; a number clips each task's
      gradient to this norm, leaves out those that are not finite, and steps along their mean
    """

    in_a_row: eqx.AbstractVar[int]
    norm: eqx.AbstractVar[float | None]


class Stop(NonFinite):
    """End the run at the first one."""

    in_a_row: int = eqx.field(default=0, init=False)
    norm: float | None = eqx.field(default=None, init=False)


class Skip(NonFinite):
    """Go on with the next step's tasks."""

    in_a_row: int = 10
    norm: float | None = eqx.field(default=None, init=False)

    def __check_init__(self):
        check_count("in_a_row", self.in_a_row, write="Skip(in_a_row=10)")


class Clip(NonFinite):
    r"""Step along $\frac{1}{W} \sum_i w_i\, g_i \min(1, c / \lVert g_i \rVert)$, where tasks whose
    loss or gradient $g_i$ is not finite count as zero; c is `norm`, W the sum of all weights.
    """

    norm: float = 1.0
    in_a_row: int = 10

    def __check_init__(self):
        check_count("in_a_row", self.in_a_row, write="Clip(norm=1.0, in_a_row=10)")
        if not (isinstance(self.norm, int | float) and 0 < self.norm < math.inf):
            raise StructureError(
                "gradients are clipped to a length",
                got=f"norm={self.norm!r}",
                expected="a finite number above 0",
                write="Clip(norm=1.0)",
            )


class Fault(NamedTuple):
    """An outer step whose loss or meta-gradient was not finite.

    - `step`: its number, the first being 0; `loss`: the mean loss, as it came out
    - `tasks`: the places in the batch of the tasks that caused it; of a mixture, pairs of kind and
      place. Empty where each is finite when it is computed alone.
    - `keys`: the keys that these tasks were learned with, as numbers
    - `policy`: the name of the policy; `ends`: whether the run ends here

    `tasks_of_step` gives the same tasks and keys again.
    """

    step: int
    loss: float
    tasks: tuple[Any, ...]
    keys: tuple[list[int], ...]
    policy: str
    ends: bool

    def error(self) -> RunError:
        """The error that ends a run."""
        causes = ", ".join(
            f"task {task} with key {key}" for task, key in zip(self.tasks, self.keys, strict=True)
        )
        return RunError(
            "the loss or the meta-gradient is no longer finite",
            got=f"a loss of {self.loss} at outer step {self.step}, caused by "
            + (causes or "no single task: each is finite when it is computed alone"),
            expected="finite losses and gradients",
            write="a lower inner or outer rate, or, on resuming, a policy that goes on, such as "
            "fit(..., non_finite=Skip(in_a_row=100)) (--non-finite skip); "
            f"tasks_of_step(tasks, key, {self.step}, batch) gives these tasks again",
        )


class Treatment:
    """What a policy makes of a faulty step. Compiled when the first one comes, and not before."""

    def __init__(
        self,
        recipe: Recipe,
        gradient: MetaGradient,
        policy: NonFinite,
        update: Update,
        batch: int,
        placement: Placement,
    ):
        self._policy = policy
        by_task = meta_value_and_grad(
            recipe.problem, recipe.adaptation, gradient, spread=_task_by_task(policy.norm or 1.0)
        )

        @eqx.filter_jit
        def treated(state: TrainState, tasks: TaskDistribution | Block, key: PRNGKeyArray):
            # Without what would fill the batch up for the devices: every device does it all.
            episodes, task_key = batch_and_key(tasks, key, state.step, batch, OneDevice())
            (_, aux), grads = by_task(state.meta, placement.whole(episodes), task_key)
            after = state._replace(step=state.step + 1)
            if policy.norm is not None:
                after = update(state, grads)
            faults = {"faults": state.faults + 1, "in_a_row": state.in_a_row + 1}
            of_kinds = (aux,) if isinstance(aux, Aux) else aux
            found = [kind.diagnostics[_FOUND] for kind in of_kinds]
            return after._replace(**faults), placement.whole(found)

        self._treated = treated

    def __call__(
        self, state: TrainState, tasks: TaskDistribution | Block, key: PRNGKeyArray, loss: float
    ) -> tuple[TrainState, Fault]:
        """The state after the step, or as it was where the run ends, and what was found."""
        after, found = self._treated(state, tasks, key)
        goes_on = int(state.in_a_row) < self._policy.in_a_row
        places, keys = [], []
        for kind, (finite, data) in enumerate(jax.tree.map(np.asarray, found)):
            for i in np.flatnonzero(~finite).tolist():
                places.append(i if len(found) == 1 else (kind, i))
                keys.append(data[i].tolist())
        policy = type(self._policy).__name__.lower()
        fault = Fault(int(state.step), loss, tuple(places), tuple(keys), policy, not goes_on)
        return (after if goes_on else state), fault


_FOUND = "found by task"


def _task_by_task(norm: float) -> Callable[[SumOverTasks], SumOverTasks]:
    """One task at a time, each gradient clipped; those that are not finite count as zero."""

    def spread(sums: SumOverTasks) -> SumOverTasks:
        def run(meta: PyTree, episodes: PyTree, keys: jax.Array, weights: jax.Array):
            def add(total: PyTree, task: PyTree):
                loss, aux, grads = sums(meta, *jax.tree.map(lambda leaf: leaf[None], task))
                sound = is_sound(loss, grads)
                with jax.numpy_dtype_promotion("standard"):
                    scale = jnp.minimum(1, task[-1] * norm / jnp.maximum(global_norm(grads), 1e-30))
                clipped = jax.tree.map(
                    lambda leaf: jnp.where(sound, leaf * scale.astype(leaf.dtype), 0), grads
                )
                total = jax.tree.map(jnp.add, total, clipped)
                return total, (jnp.where(sound, loss, 0), aux, sound)

            zero = jax.tree.map(jnp.zeros_like, meta)
            grads, (losses, aux, sound) = jax.lax.scan(add, zero, (episodes, keys, weights))
            aux = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), aux)
            is_typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
            found = (sound, jax.random.key_data(keys) if is_typed else keys)
            diagnostics = aux.diagnostics | {_FOUND: found}
            return jnp.sum(losses), aux._replace(diagnostics=diagnostics), grads

        return run

    return spread
