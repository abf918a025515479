"""What is checked: a problem with everything that is needed to trace and to run it."""

from collections.abc import Callable
from functools import cached_property, partial

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation
from innerloop.diagnostics.given import exact_gradient
from innerloop.errors import DetachedError, InnerloopError
from innerloop.gradients import MetaGradient
from innerloop.objective import adapt, meta_objective, meta_value_and_grad
from innerloop.problem import Episode, Loss, Problem, initial_params, loss_function
from innerloop.trees import leaf_names

NO_RULE = (TypeError, ValueError, NotImplementedError)
"""What JAX raises for a derivative that does not exist."""

jit_quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
"""Compiling takes longer here than the few runs do. (Level 0 miscompiles a maximum.)"""


class Subject:
    """A problem, how it is learned, and a batch of its episodes.

    - `gradient`: the estimator that is going to be used
    - `exact`: one that drops nothing, to tell the problem's faults from the estimator's
    """

    def __init__(
        self,
        problem: Problem,
        adaptation: Adaptation,
        meta: PyTree,
        episodes: Episode,
        key: PRNGKeyArray,
        gradient: MetaGradient | None,
    ):
        self.problem = problem
        self.adaptation = adaptation
        self.meta = jax.tree.map(jnp.asarray, meta)
        self.episodes = episodes
        self.key = key
        self.gradient = gradient or exact_gradient(adaptation)

    @cached_property
    def missing(self) -> Exception | None:
        """What stands against the exact meta-gradient of this problem."""
        return self.failure(exact_gradient(self.adaptation))

    @property
    def exact(self) -> MetaGradient:
        """The exact estimator; where the losses lack its derivatives, the one in use."""
        return exact_gradient(self.adaptation) if self.missing is None else self.gradient

    def failure(self, gradient: MetaGradient) -> Exception | None:
        """What tracing the meta-gradient of one task raises."""
        objective, task = self.objective(gradient), self.task()
        try:
            jax.eval_shape(jax.grad(lambda meta: objective(meta, *task)[0]), self.meta)
        except DetachedError:
            return None  # which leaf is cut off, and where, is a check's to say
        except (InnerloopError, *NO_RULE) as error:
            return error
        return None

    @cached_property
    def unreached(self) -> list[str]:
        """The leaves of meta that the exact estimator's backward pass does not reach."""
        return self.unreached_by(self.exact)

    def unreached_by(self, gradient: MetaGradient) -> list[str]:
        """The leaves of meta that the backward pass of an estimator does not reach."""
        f = meta_value_and_grad(self.problem, self.adaptation, gradient)
        try:
            (_, aux), _ = jax.eval_shape(f, self.meta, self.episodes, self.key)
        except DetachedError:
            return leaf_names(self.meta)
        return list(aux.diagnostics["unreached"])

    @property
    def takes_derivatives(self) -> bool:
        """Whether the estimator that is going to be used differentiates the losses."""
        return self._takes > 0

    @property
    def takes_second_derivatives(self) -> bool:
        """Whether it differentiates the inner loss twice."""
        return self._takes > 1

    @property
    def _takes(self) -> int:
        return self.gradient.fidelity(self.adaptation, self.problem).takes

    @property
    def tasks(self) -> int:
        """How many episodes there are."""
        return jnp.shape(jax.tree.leaves(self.episodes)[0])[0]

    @property
    def keys(self) -> Array:
        """One key per task, as `meta_value_and_grad` splits them."""
        return jax.random.split(self.key, self.tasks)

    def task(self, index: int = 0) -> tuple[Episode, PRNGKeyArray]:
        """One episode and its key."""
        return jax.tree.map(lambda leaf: leaf[index], (self.episodes, self.keys))

    def objective(self, gradient: MetaGradient | None = None) -> Callable[..., tuple]:
        """The meta-objective of one task: `(meta, episode, key) -> (loss, aux)`."""
        return meta_objective(self.problem, self.adaptation, gradient or self.gradient)

    @cached_property
    def program(self) -> core.ClosedJaxpr:
        """The loss of the first task as a program of the meta leaves."""
        return self.trace_loss()

    def trace_loss(self) -> core.ClosedJaxpr:
        """The same, traced again."""
        objective, task = self.objective(exact_gradient(self.adaptation)), self.task()
        return jax.make_jaxpr(lambda meta: objective(meta, *task)[0])(self.meta)

    def loss(self, name: str) -> Loss:
        """A loss of the problem in its normal form."""
        return loss_function(name, getattr(self.problem, name), needed_by="check")

    @cached_property
    def given(self) -> dict[str, tuple]:
        """What each loss that there is would be given, as shapes: `(params, meta, batch, key)`."""
        return jax.eval_shape(self.arguments, self.meta, *self.task())

    def arguments(self, meta: PyTree, episode: Episode, key: PRNGKeyArray) -> dict[str, tuple]:
        """The same as arrays."""
        problem = self.problem
        adapted, _ = adapt(problem, self.adaptation, meta, episode.support, key)
        given = {"outer_loss": (adapted, meta, episode.query, key)}
        if problem.inner_loss is not None and problem.init is not None:
            start = initial_params(problem, needed_by="check")(meta, episode.support, key)
            given["inner_loss"] = (start, meta, episode.support, key)
        return given

    @property
    def weights(self) -> Array:
        """One per task."""
        weight = self.episodes.weight
        return jnp.ones(self.tasks) if weight is None else weight
