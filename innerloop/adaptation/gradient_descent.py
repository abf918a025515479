"""Adaptation by an optax optimizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PyTree, Scalar

from innerloop.adaptation.base import Adaptation, Info, Origin
from innerloop.arguments import at_least, either, function, or_none
from innerloop.checks import describe, failures_explained
from innerloop.errors import StructureError
from innerloop.normal_form import at_state, initial_params, loss_function, next_state
from innerloop.problem import with_state
from innerloop.transformations import (
    JUDGED,
    Judged,
    Offers,
    Transformation,
    begin,
    curved,
    is_transformation,
    lenient_promotion,
    other_optimizer,
    sloped,
    take_step,
    transformation,
)
from innerloop.trees import cast_like, definite

MetaOptimizer = Callable[[PyTree], Transformation]


class GradientDescentState(NamedTuple):
    """The parameters, the optimizer's state, and the model state if there is one."""

    params: PyTree
    optimizer: PyTree
    model: PyTree = None


class GradientDescent(Adaptation):
    r"""K steps of an optimizer on the inner loss.

    $$u_t,\, s_{t+1} = \text{update}(\nabla_\theta L_\text{inner}(\theta_t), s_t, \theta_t),
      \qquad \theta_{t+1} = \theta_t + u_t$$

    An optimizer that takes the square root of the gradient's second moment, such as Adam, has an
    infinite second derivative at a zero gradient unless its `eps_root` is positive.

    Args:
        optimizer: Any optax transformation, or a function `meta -> transformation`, with which
            learning rates and the weights of learned optimizers become meta-parameters. The
            `update` of the transformation receives those of the keyword arguments `value`, `grad`,
            `value_fn`, `grad_fn` and `obj_fn` that its signature names.
        steps: The number of steps K, at least 0.
        judged: `(optimizer_state, params) -> params`, which returns the parameters at which the
            outer loss is evaluated and which `adapt` returns, such as
            `optax.contrib.schedule_free_eval_params`. By default these are the parameters at which
            the inner gradient is taken.

    Raises:
        StructureError: If `optimizer` is not an optimizer or `steps` is negative, and while tracing
            if the parameters are not floating-point.
    """

    # `only` tells `lambda meta: ...` from a factory such as `optax.adam` that was not called.
    optimizer: Transformation | MetaOptimizer = either(
        transformation(such_as="optax.sgd(0.1)"),
        function("meta", gives="optax transformation", only=True),
    )
    steps: int = at_least(0, such_as=5)
    judged: Judged | None = or_none(JUDGED, default=None, kw_only=True)
    origin: Origin = eqx.field(default=Origin.STEPS, init=False, static=True)

    def init(self, problem, meta, support, key) -> GradientDescentState:
        """Parameters from the problem's `init`, and a fresh optimizer state."""
        params = initial_params(problem, needed_by="GradientDescent")(meta, support, key)
        with self._explained(params=params, meta=meta):
            optimizer = begin(self._transformation(meta), params)
        return GradientDescentState(params, optimizer, jax.tree.map(definite, problem.state))

    def step(self, problem, meta, support, state, key, inner_gradient) -> tuple[PyTree, Info]:
        """One update. `support` may be a mini-batch of the support set."""
        loss = loss_function("inner_loss", problem, needed_by="GradientDescent")
        loss = at_state(loss, state.model)
        # The optimizer's own calls go through the hook too, so that the meta-gradient decides about
        # their derivatives.
        at = lambda params: inner_gradient(loss)(params, meta, support, key)
        (value, aux), gradient = at(state.params)

        def again(params: PyTree) -> Scalar:
            (found, _), slope = at(params)
            return sloped(found, slope, params)

        def objective(params: PyTree) -> Scalar:
            return curved(at(params)[0][0], params)

        slope = lambda params: at(params)[1]
        offers = Offers.of(value, gradient, again, slope, objective)
        with self._explained(params=state.params, meta=meta):
            optimizer = self._transformation(meta)
            after = take_step(optimizer, state.optimizer, state.params, offers)
        aux, model = next_state(problem, aux)
        return GradientDescentState(*after, model), Info(value, aux)

    def params(self, state: GradientDescentState) -> PyTree:
        """The parameters after the steps so far; if `judged` is given, its result."""
        params = state.params
        if self.judged is not None:
            with self._explained(params=params, state=state.optimizer):
                params = cast_like(self.judged(state.optimizer, params), params)
        return with_state(params, state.model)

    def _transformation(self, meta: PyTree) -> Transformation:
        optimizer: Any = self.optimizer
        if not is_transformation(optimizer):
            optimizer = optimizer(meta)
        if is_transformation(optimizer):
            return optimizer
        raise StructureError(
            "the function of meta returns no optimizer",
            got=describe(optimizer),
            expected="an optax transformation",
            write="GradientDescent(lambda meta: optax.sgd(meta['rate']), steps=5)",
        )

    @contextmanager
    def _explained(self, **given: PyTree) -> Iterator[None]:
        """Explain failures of the optimizer, and let optax promote ranks and dtypes.

        Users who make promotion strict mean their own losses.
        """
        # If a function of meta makes the optimizer, meta may be the reason for the failure.
        write = other_optimizer if is_transformation(self.optimizer) else None
        with failures_explained("the optimizer", write=write, **given), lenient_promotion():
            yield
