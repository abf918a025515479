"""The estimator of whole tasks: each outer step learns a batch of fresh tasks."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.arguments import at_least, instance, with_methods
from innerloop.batches import task_count
from innerloop.devices.placement import OneDevice, Placement
from innerloop.devices.sharding import round_up
from innerloop.diagnostics import Plan, plan
from innerloop.diagnostics.amounts import format_bytes, parse_bytes
from innerloop.diagnostics.known_values import first_error
from innerloop.errors import InnerloopError, StructureError
from innerloop.estimators.base import Apart, CheckedPart, Estimate, TaskFaults, TaskSet
from innerloop.estimators.learning import TASKS, LearningEstimator
from innerloop.estimators.metrics import mean_metrics, mean_state
from innerloop.gradients import Implicit, MetaGradient
from innerloop.gradients.base import Fidelity
from innerloop.learner import Learner
from innerloop.masks import padding_rows
from innerloop.objective import meta_value_and_grad
from innerloop.problem import Episode, Problem
from innerloop.sums import SumOverTasks
from innerloop.tasks import TaskDistribution
from innerloop.tasks.base import sampled, tasks_of_any_key
from innerloop.tasks.streamed import HostTasks, on_device
from innerloop.trees import (
    all_finite,
    cast_like,
    elements,
    key_numbers,
    shorten,
    tree_bytes,
    widened,
)


class WholeTasks(LearningEstimator):
    r"""A batch of fresh tasks in each outer step, learned from beginning to end.

    $$\nabla_\phi \frac{1}{\sum_i w_i} \sum_{i=1}^{B} w_i\, L_i(\phi)$$

    over the tasks i of the batch, by the given meta-gradient. The state is the model state of the
    problem, if it has one: each outer step replaces it by the mean of the states after the tasks,
    weighted like their losses.

    Args:
        problem: What is optimised.
        adaptation: How one task is learned.
        gradient: How the derivative is computed.
        tasks: A task distribution, or `StreamedTasks` or `IteratedTasks`, which the host draws.
        batch: B, tasks per outer step.
        chunk: Tasks that are computed at a time, as in `meta_value_and_grad`; None for all at once.
            On several devices it counts the tasks of one device. It changes results by rounding
            alone.
        schedule: `outer step -> (problem, adaptation)` if they change during meta-training. The
            step is a traced number, so they may differ in numbers and not in shapes; `problem` and
            `adaptation` are those at the end.
        tested: The learner of new tasks, if it differs from that of meta-training (pretraining).

    Raises:
        StructureError: A part is of another kind, or a count is below one.
        GradientError: The meta-gradient does not exist after this adaptation.
    """

    gradient: MetaGradient = instance(MetaGradient, what="a meta-gradient", such_as="Unroll()")
    tasks: TaskDistribution | HostTasks = with_methods("sample", **TASKS)
    batch: int = at_least(1, such_as=8)
    tested: Learner | None = eqx.field(default=None, kw_only=True)

    def __check_init__(self):
        meta_value_and_grad(*self.at(0), self.gradient)  # refuses now what it would refuse later

    @property
    def learner(self) -> Learner:
        return self.tested or Learner(self.problem, self.adaptation)

    @property
    def tasks_per_step(self) -> int:
        return self.batch

    def fidelity(self) -> Fidelity:
        return self.gradient.fidelity(self.adaptation, self.problem)

    def init(self, meta: PyTree, key: PRNGKeyArray, outer_step: int = 0) -> PyTree:
        return () if self.problem.state is None else self.problem.state

    def model_state(self, state: PyTree) -> PyTree:
        return None if self.problem.state is None else state

    def with_model_state(self, state: PyTree, model_state: PyTree) -> PyTree:
        return state if self.problem.state is None else model_state

    def on(self, placement: Placement) -> "WholeTasks":
        return dataclasses.replace(self, placement=placement)

    def feed(self, key: PRNGKeyArray, first_step: int, n: int) -> Any:
        if isinstance(self.tasks, HostTasks):
            return self.tasks.feed(key, first_step, n, self.batch)
        return None

    def close(self) -> None:
        if isinstance(self.tasks, HostTasks):
            self.tasks.close()

    def step(self, meta, state, data, key, outer_step) -> tuple[Estimate, PyTree]:
        episodes, task_key = self.drawn(data, key, outer_step, self.placement)
        spread = self.placement.spread
        value_and_grad = self._value_and_grad(outer_step, state, self.chunk, spread)
        (loss, aux), grads = value_and_grad(meta, episodes, task_key)
        if self.problem.state is not None:
            state = self.placement.whole(mean_state(aux.state, episodes.weight, state))
        return Estimate(loss, grads, mean_metrics(aux.metrics, episodes.weight), aux), state

    def apart(self, meta, state, data, key, outer_step, norm) -> Apart:
        # Without the tasks that fill a batch up for the devices: every device computes all tasks.
        episodes, task_key = self.drawn(data, key, outer_step, OneDevice())
        whole = self.placement.whole(episodes)
        faults: list[TaskFaults] = []
        states = len(jax.tree.leaves(self.problem.state))
        spread = _task_by_task(norm, states, faults)
        value_and_grad = self._value_and_grad(outer_step, state, None, spread)
        (loss, _), grads = value_and_grad(meta, whole, task_key)
        return Apart(grads, state, {"": faults[0]}, loss)

    def error_of_values(self, meta, state, data, key, outer_step) -> InnerloopError | None:
        episodes, task_key = self.drawn(data, key, outer_step, OneDevice())
        keys = jax.random.split(task_key, task_count(episodes))
        problem, adaptation = self._now(outer_step, state)
        return first_error(Learner(problem, adaptation), meta, episodes, keys)

    def tasks_of_step(self, key: PRNGKeyArray, outer_step: int) -> TaskSet:
        data = self.feed(key, outer_step, 1)
        of_step = jax.tree.map(lambda leaf: leaf[0], data)
        episodes, task_key = self.drawn(of_step, key, outer_step, OneDevice())
        return TaskSet(episodes, jax.random.split(task_key, task_count(episodes)))

    def within(self, memory: Any, meta: PyTree, held: int) -> tuple["WholeTasks", Plan]:
        """See `Estimator`.

        An exact meta-gradient may be replaced by another exact one. A biased or a stochastic one is
        kept, and `Implicit` too, and only the chunk is planned.
        """
        if self.chunk is not None:
            raise StructureError(
                "a chunk is chosen either by hand or by a budget",
                got=f"WholeTasks(..., chunk={self.chunk}) and fit(..., memory=...)",
                expected="one of the two",
                write=f"fit(..., memory='2GiB') without chunk={self.chunk}, or fit(...) without "
                "memory=",
            )
        here = -(-self.batch // self.placement.devices)
        like = jax.eval_shape(lambda: jax.random.key(0))
        episodes = jax.eval_shape(lambda key: sampled(self.tasks, key, here), like)
        held += tree_bytes(eqx.filter(self.tasks, eqx.is_array))
        budget = parse_bytes(memory)
        rest = budget - held + tree_bytes(meta)  # which the plan counts itself
        if rest <= 0:
            raise StructureError(
                "the budget is smaller than what the trainer keeps",
                got=f"memory={format_bytes(budget)}",
                expected=f"more than {format_bytes(held)}: meta-parameters, their average and the "
                "optimizer's state, before and after a step, and the tasks' own arrays",
                write=f"fit(..., memory='{math.ceil(2 * held / 2**20)}MiB') "
                f"(--memory {math.ceil(2 * held / 2**20)}MiB)",
            )
        problem, adaptation = self.at(0)
        # A model state that is held constant is held by every exact meta-gradient alike.
        stateless = problem.holding(problem.frozen, None)
        exact = self.gradient.fidelity(adaptation, stateless).kind == "exact"
        kept = None if exact and not isinstance(self.gradient, Implicit) else [self.gradient]
        found = plan(problem, adaptation, meta, episodes, rest, gradients=kept)
        chunk = found.chunk or self.batch
        return dataclasses.replace(self, gradient=found.gradient, chunk=chunk), found

    def checked_parts(self, key: PRNGKeyArray) -> dict[str, CheckedPart]:
        learner, tasks = Learner(*self.at(0)), self.tasks
        streamed = isinstance(tasks, HostTasks)  # which look at their draws themselves
        found = [] if streamed else tasks_of_any_key(tasks, self.batch)
        return {"": CheckedPart(learner, self.gradient, sampled(tasks, key, self.batch), found)}

    def _now(self, outer_step, state: PyTree) -> tuple[Problem, Adaptation]:
        """Problem and adaptation of an outer step, from the model state at that step."""
        problem, adaptation = self.at(outer_step)
        if problem.state is not None:
            problem = problem.holding(problem.frozen, state)
        return problem, adaptation

    def _value_and_grad(self, outer_step, state, chunk: int | None, spread: Callable):
        now = self._now(outer_step, state)
        return meta_value_and_grad(*now, self.gradient, chunk=chunk, spread=spread)

    def drawn(self, data: Any, key: PRNGKeyArray, outer_step: Any, placement: Placement):
        """The tasks of a step, and the key to learn them.

        Each device draws its own tasks. If the devices do not divide their number, the last task,
        whose numbers are as sound as any, fills the batch up with weight zero.
        """
        sample_key, task_key = jax.random.split(jax.random.fold_in(key, outer_step))
        streamed = data is not None
        episodes = on_device(data) if streamed else sampled(self.tasks, sample_key, self.batch)
        return placement.by_task(_filled(episodes, placement.devices)), task_key


def _filled(episodes: Episode, devices: int) -> Episode:
    tasks = task_count(episodes)
    rows = round_up(tasks, devices)
    if rows == tasks:
        return episodes
    if not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        raise StructureError(
            "padding the batch for the devices would change the keys of its tasks",
            got=f"{tasks} tasks on {devices} devices, with jax_threefry_partitionable=False",
            expected="JAX's default, True, with which the first keys of a larger split are the "
            f"same, or a multiple of {devices} tasks",
        )
    repeated = padding_rows(tasks, rows)
    weight = jnp.ones(tasks) if episodes.weight is None else episodes.weight
    support, query, weight = elements((episodes.support, episodes.query, weight), repeated)
    return Episode(support, query, jnp.where(jnp.arange(rows) < tasks, weight, 0))


def _task_by_task(
    norm: float, states: int, faults: list[TaskFaults]
) -> Callable[[SumOverTasks], SumOverTasks]:
    """Compute one task at a time and clip each gradient; that of a faulty task is zero.

    Args:
        norm: The norm to which gradients are clipped.
        states: The number of arrays in the model state, which are the last of an `Aux`.
        faults: Tracing the sum writes the faults of its tasks here.
    """

    def spread(sums: SumOverTasks) -> SumOverTasks:
        def run(meta: PyTree, episodes: PyTree, keys: jax.Array, weights: jax.Array):
            def add(total: PyTree, task: PyTree):
                loss, aux, grads = sums(meta, *jax.tree.map(lambda leaf: leaf[None], task))
                sound = all_finite((loss, grads, aux[len(aux) - states :]))
                short = shorten(grads, task[-1] * norm)
                clipped = jax.tree.map(lambda leaf: jnp.where(sound, leaf, 0), short)
                total = jax.tree.map(jnp.add, total, widened(clipped))
                # A task of weight zero was computed on another's data, and is not to blame.
                return total, (jnp.where(sound, loss, 0), aux, sound | (task[-1] == 0))

            zero = widened(jax.tree.map(jnp.zeros_like, meta))
            grads, (losses, aux, sound) = jax.lax.scan(add, zero, (episodes, keys, weights))
            aux = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), aux)
            faults.append(TaskFaults(sound, key_numbers(keys)))
            return jnp.sum(losses), aux, cast_like(grads, meta)

        return run

    return spread
