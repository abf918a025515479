"""Adaptation by an optax optimizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from innerloop.adaptation.base import Adaptation, Info, Origin
from innerloop.arguments import at_least, either, function, instance
from innerloop.checks import describe, failures_explained
from innerloop.errors import StructureError
from innerloop.problem import initial_params, loss_function

MetaOptimizer = Callable[[PyTree], optax.GradientTransformation]


class GradientDescentState(NamedTuple):
    """The parameters and the optimizer's state."""

    params: PyTree
    optimizer: PyTree


class GradientDescent(Adaptation):
    r"""K steps of an optimizer on the inner loss.

    $$u_t,\, s_{t+1} = \text{update}(\nabla_\theta L_\text{inner}(\theta_t), s_t, \theta_t),
      \qquad \theta_{t+1} = \theta_t + u_t$$

    An optimizer that takes the square root of the gradient's second moment, such as Adam, has an
    infinite second derivative at a zero gradient unless its `eps_root` is positive.

    Args:
        optimizer: Any `optax.GradientTransformation`, or a function `meta ->
            GradientTransformation`, which makes learning rates and learned optimizers
            meta-parameters. Transformations with extra arguments receive `value`, `grad` and
            `value_fn`.
        steps: The number of steps K, at least 0.

    Raises:
        StructureError: If `optimizer` is not an optimizer or `steps` is negative, and while tracing
            if the parameters are not floating-point.
    """

    # `only` tells `lambda meta: ...` from a factory such as `optax.adam` that was not called.
    optimizer: optax.GradientTransformation | MetaOptimizer = either(
        instance(
            optax.GradientTransformation, what="an optax transformation", such_as="optax.sgd(0.1)"
        ),
        function("meta", gives="optax transformation", only=True),
    )
    steps: int = at_least(0, such_as=5)
    origin: Origin = eqx.field(default=Origin.STEPS, init=False, static=True)

    def init(self, problem, meta, support, key) -> GradientDescentState:
        """Parameters from the problem's `init`, and a fresh optimizer state."""
        params = initial_params(problem, needed_by="GradientDescent")(meta, support, key)
        with _optax(params=params, meta=meta):
            return GradientDescentState(params, self._transformation(meta).init(params))

    def step(self, problem, meta, support, state, key, inner_gradient) -> tuple[PyTree, Info]:
        """One update. `support` may be a mini-batch of the support set."""
        loss = loss_function("inner_loss", problem.inner_loss, needed_by="GradientDescent")
        params = state.params
        value_and_gradient = inner_gradient(loss)
        (value, aux), gradient = value_and_gradient(params, meta, support, key)
        with _optax(params=params, meta=meta):
            updates, optimizer = self._transformation(meta).update(
                gradient,
                state.optimizer,
                params,
                value=value,
                grad=gradient,
                # through the hook, so that the meta-gradient decides about this derivative too
                value_fn=lambda params: value_and_gradient(params, meta, support, key)[0][0],
            )
            self._require_real(updates, params)
            params = optax.apply_updates(params, updates)
        return GradientDescentState(params, optimizer), Info(value, aux)

    def _require_real(self, updates: PyTree, params: PyTree) -> None:
        complex_of = lambda tree: [jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(tree)]
        if any(complex_of(updates)) and not any(complex_of(params)):
            raise StructureError(
                "the optimizer makes complex updates of real parameters",
                got=describe(updates),
                expected="updates of the parameters' type, so rates that are real numbers",
            )

    def params(self, state: GradientDescentState) -> PyTree:
        """The parameters after the steps taken so far."""
        return state.params

    def _transformation(self, meta: PyTree) -> optax.GradientTransformationExtraArgs:
        optimizer = self.optimizer
        if not isinstance(optimizer, optax.GradientTransformation):
            optimizer = optimizer(meta)
            if not isinstance(optimizer, optax.GradientTransformation):
                raise StructureError(
                    "the function of meta returns no optimizer",
                    got=describe(optimizer),
                    expected="an optax transformation",
                    write="GradientDescent(lambda meta: optax.sgd(meta['rate']), steps=5)",
                )
        return optax.with_extra_args_support(optimizer)


@contextmanager
def _optax(**given: PyTree) -> Iterator[None]:
    """Lets optax promote ranks and dtypes; strict promotion is meant for the user's losses."""
    explained = failures_explained("the optimizer", **given)
    with explained, jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
