"""The subject of the checks: a problem with everything that is needed to trace and run it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation, InnerGradient, InnerRule, Origin, run
from innerloop.batches import task_count
from innerloop.diagnostics.candidates import exact_gradient
from innerloop.diagnostics.checks.loss_program import LossProgram
from innerloop.diagnostics.findings import Severity
from innerloop.errors import DetachedError, InnerloopError
from innerloop.fidelity import EXACT, Fidelity
from innerloop.gradients import Exact, MetaGradient, StoreAll
from innerloop.normal_form import at_state, initial_params, loss_function
from innerloop.objective import adapt, meta_objective, meta_value_and_grad
from innerloop.problem import Episode, Loss, Problem, parameters, task_keys
from innerloop.trees import abstract, element, elements, leaf_names

NO_RULE = (TypeError, ValueError, NotImplementedError)
"""The errors that JAX raises for a derivative that does not exist."""

jit_quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
"""Compiles fast, because the programs run only a few times. (Level 0 miscompiles a maximum.)"""


class _Recorded(InnerRule):
    """The exact inner gradient, which also records the arguments of each call."""

    calls: list[tuple]

    def at(self, t: Any) -> InnerGradient:
        gradient_of = Exact().at(t)

        def operator(loss: Loss):
            def call(*arguments):
                self.calls.append(arguments)
                return gradient_of(loss)(*arguments)

            return call

        return operator

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        return EXACT


class Outcome(NamedTuple):
    """The result of tracing a meta-gradient.

    Attributes:
        error: The error that tracing raises; None if there is none.
        unreached: The leaves of meta that its backward pass does not reach.
    """

    error: Exception | None
    unreached: list[str]


@dataclass(eq=False)
class Subject:
    """A problem, how it is learned, and a batch of its episodes.

    `gradient` is the meta-gradient that will be used. `exact` drops nothing, and so separates
    errors of the problem from those of the meta-gradient in use.
    """

    problem: Problem
    adaptation: Adaptation
    meta: PyTree
    episodes: Episode
    key: PRNGKeyArray
    gradient: MetaGradient

    @cached_property
    def of_exact(self) -> "Outcome":
        """The result of tracing the exact meta-gradient of this problem."""
        return self._outcome(exact_gradient(self.adaptation))

    @cached_property
    def of_used(self) -> "Outcome":
        """The result of tracing the meta-gradient in use."""
        used, exact = self.gradient, exact_gradient(self.adaptation)
        return self.of_exact if used == exact else self._outcome(used)

    @property
    def missing(self) -> Exception | None:
        """The error of the exact meta-gradient of this problem; None if it exists."""
        return self.of_exact.error

    @property
    def exact(self) -> MetaGradient:
        """The exact meta-gradient, or the one in use if the losses lack its derivatives."""
        return exact_gradient(self.adaptation) if self.missing is None else self.gradient

    @property
    def unreached(self) -> list[str]:
        """The leaves of meta that the backward pass of `exact` does not reach."""
        return (self.of_exact if self.missing is None else self.of_used).unreached

    def _outcome(self, gradient: MetaGradient) -> "Outcome":
        # Some operations have a derivative, but not under `jax.vmap`, which maps over the tasks. A
        # batch of one task is not vmapped, so it is traced as two tasks.
        rows = np.zeros(2, int) if self.tasks == 1 else np.arange(self.tasks)
        f = meta_value_and_grad(self.problem, self.adaptation, gradient)
        try:
            (_, aux), _ = jax.eval_shape(f, self.meta, elements(self.episodes, rows), self.key)
        except DetachedError:  # a check reports which leaf is cut off, and where
            return Outcome(None, leaf_names(self.meta))
        except (InnerloopError, *NO_RULE) as error:
            return Outcome(error, [])
        return Outcome(None, list(aux.diagnostics["unreached"]))

    def severity(self, order: int, worst: Severity = Severity.ERROR) -> Severity:
        """`worst` if the meta-gradient in use needs derivatives of this order, or else a note."""
        return worst if self.fidelity.takes >= order else Severity.NOTE

    @property
    def fidelity(self) -> Fidelity:
        """The fidelity of the meta-gradient in use."""
        return self.gradient.fidelity(self.adaptation, self.problem)

    @property
    def holds_state(self) -> bool:
        """Whether the meta-gradient holds a model state constant."""
        return self.problem.state is not None and not self.problem.through_state

    @property
    def steps(self) -> int:
        """The number of inner steps to differentiate; 0 if a task is learned in another way."""
        return (self.adaptation.steps or 0) if self.adaptation.origin is Origin.STEPS else 0

    def run(
        self,
        meta: PyTree,
        support: PyTree,
        key: Any,
        observe=None,
        inner: InnerRule = Exact(),
        steps=None,
    ) -> tuple[PyTree, PyTree, PyTree]:
        """`run` of the inner loop, with its own or another rule for its gradients."""
        task = (self.problem, self.adaptation, meta, support, key)
        return run(*task, inner, StoreAll(), observe, steps=steps)

    @property
    def tasks(self) -> int:
        """The number of episodes."""
        return task_count(self.episodes)

    @property
    def keys(self) -> Array:
        """One key per task, as `meta_value_and_grad` splits them."""
        return jax.random.split(self.key, self.tasks)

    def task(self, index: int = 0) -> tuple[Episode, PRNGKeyArray]:
        """One episode and its key."""
        return element((self.episodes, self.keys), index)

    def objective(self, gradient: MetaGradient | None = None) -> Callable[..., tuple]:
        """The meta-objective of one task: `(meta, episode, key) -> (loss, aux)`."""
        return meta_objective(self.problem, self.adaptation, gradient or self.gradient)

    @cached_property
    def program(self) -> core.ClosedJaxpr:
        """The loss of the first task as a program whose inputs are the meta leaves."""
        return self.trace_loss()

    def trace_loss(self) -> core.ClosedJaxpr:
        """`program`, traced again."""
        objective, task = self.objective(exact_gradient(self.adaptation)), self.task()
        return jax.make_jaxpr(lambda meta: objective(meta, *task)[0])(self.meta)

    def loss(self, name: str) -> Callable[..., Scalar]:
        """One of the losses of the problem: `(params, meta, batch, key) -> value`.

        A model state is the one at the beginning of a task.
        """
        loss = loss_function(name, self.problem, needed_by="check")
        loss = at_state(loss, self.problem.state)
        return lambda *arguments: loss(*arguments)[0]

    @cached_property
    def programs(self) -> dict[str, LossProgram]:
        """Each loss that exists, traced."""
        return {name: LossProgram(self.loss(name), given) for name, given in self.given.items()}

    @cached_property
    def given(self) -> dict[str, tuple]:
        """The arguments of each loss that exists, as shapes: `(params, meta, batch, key)`."""
        return self._given(jax.eval_shape, self.meta, *self.task())

    def given_at(self, meta: PyTree, episode: Episode, key: PRNGKeyArray) -> dict[str, tuple]:
        """The same as arrays, for these meta-parameters and this task."""
        return self._given(lambda f, *task: jit_quickly(f)(*task), meta, episode, key)

    def _given(self, call: Callable, *task: Any) -> dict[str, tuple]:
        """`given`, with the initial parameters if those of the adaptation cannot be traced.

        An adaptation may compute inner gradients in a loop, whose values cannot leave it.
        """
        try:
            return call(self.arguments, *task)
        except (InnerloopError, *NO_RULE):
            if self.problem.init is None:
                return {}
            return call(partial(self.arguments, adapted=False), *task)

    @property
    def learns_params(self) -> bool:
        """Whether the inner loss reads the parameters that the adaptation returns."""
        adapted, read = (self.given.get(name, (None,))[0] for name in ("outer_loss", "inner_loss"))
        return read is not None and bool(eqx.tree_equal(abstract(adapted), abstract(read)))

    def arguments(self, meta: PyTree, episode: Episode, key: PRNGKeyArray, adapted: bool = True):
        """`given` as arrays.

        An adaptation may give the inner loss other parameters than `init` returns, and other rows
        than the whole support set, so the arguments of its first inner gradient are used.
        """
        problem, support = self.problem, episode.support
        start = lambda: initial_params(problem, needed_by="check")(meta, support, key)
        params = adapt(problem, self.adaptation, meta, support, key)[0] if adapted else start()
        given = {"outer_loss": (parameters(params), meta, episode.query, key)}
        calls: list[tuple] = []
        if adapted and self.steps:
            self.run(meta, support, task_keys(key).adapt, inner=_Recorded(calls), steps=1)
        if problem.inner_loss is not None and (calls or problem.init is not None):
            read, _, batch, of_step = calls[0] if calls else (start(), meta, support, key)
            given["inner_loss"] = (read, meta, batch, of_step)
        return given

    @property
    def weights(self) -> Array:
        """The weight of each task."""
        weight = self.episodes.weight
        return jnp.ones(self.tasks) if weight is None else jnp.asarray(weight)
