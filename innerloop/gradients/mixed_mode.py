"""The inner gradient as one operation whose backward pass is forward over reverse."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.adaptation import Adaptation, InnerGradient, InnerRule
from innerloop.fidelity import EXACT, Derivatives, Fidelity
from innerloop.gradients.forward import jvp
from innerloop.gradients.inner import named
from innerloop.missing import missing_derivatives_explained
from innerloop.problem import Loss, Problem
from innerloop.programs import Traced, inputs_read, traced
from innerloop.tangents import dense, is_zero

_Read = dict[int, Any]  # arrays and literals


class MixedMode(InnerRule):
    """The gradient of the inner loss, differentiated by one forward pass over a reverse pass.

    `Exact()` differentiates it by a second reverse pass, which needs the intermediate values of the
    first. Here the backward pass of a step is one `jvp` of the gradient instead, and no value of
    the inner backward pass is kept (MixFlow-MG: Kemaev et al. 2025, arXiv 2505.00793). The
    meta-gradient is the same up to rounding.

    Second derivatives are assumed to be symmetric, which they are unless the inner loss has a
    custom rule that is not its derivative (as straight-through estimators have). The meta-objective
    has no `jax.jvp`; its Hessian exists.

    Fidelity: exact.

    Raises:
        GradientError: While it is differentiated, if an operation in the inner loss has no
            forward-mode derivative.
    """

    def at(self, t: Any) -> InnerGradient:
        """See `InnerRule`."""
        return named(mixed_mode_inner_gradient)

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """Exact after any adaptation."""
        if adaptation.steps == 0:
            return EXACT
        return EXACT._replace(derivatives=Derivatives(forward=False))


def mixed_mode_inner_gradient(loss: Loss):
    r"""The gradient, differentiated by one `jvp` instead of a second reverse pass.

    The backward pass of $g = \nabla_\theta L(\theta, \phi)$ needs $(\partial_\theta g)^\top v$ and
    $(\partial_\phi g)^\top v$. Second derivatives are symmetric, so both are the tangent of
    $\nabla_{(\theta, \phi)} L$ along $(v, 0)$: one forward-mode pass over one reverse pass, which
    stores nothing between steps but $\theta$ (MixFlow-MG: Kemaev et al. 2025, arXiv 2505.00793).
    This does not hold for a custom rule in the loss that is not the derivative of what it computes,
    as in a straight-through estimator.

    Of meta, batch and closed-over values, only the floating-point arrays that the loss reads are
    differentiated, so that no dense zero cotangents are built for the others.

    Raises:
        GradientError: If the loss has no forward-mode derivative.
    """

    def value_and_gradient(params: PyTree, meta: PyTree, batch: PyTree, key: PRNGKeyArray):
        program = traced(loss, params, meta, batch, key)
        arguments = [*program.constants, *jax.tree.leaves((params, meta, batch, key))]
        arguments = [jnp.asarray(leaf) for leaf in arguments]
        first = len(program.constants)
        place = slice(first, first + len(jax.tree.leaves(params)))
        program = _Program(program, place)
        rest = {i: leaf for i, leaf in enumerate(arguments) if not place.start <= i < place.stop}
        # Inside staged loops, JAX differentiates a custom rule in all its arguments, so values that
        # the loss does not read must not be arguments.
        unread = [i for i, leaf in rest.items() if i not in program.reads and _is_inexact(leaf)]
        rest |= {i: jnp.zeros_like(jax.typeof(rest[i])) for i in unread}
        (value, aux), gradient = _operation(program)(arguments[place], rest)
        return (value, aux), jax.tree.unflatten(jax.tree.structure(params), gradient)

    return value_and_gradient


class _Program:
    """A traced loss without closed-over values: `(parameter leaves, rest by place) -> result`."""

    def __init__(self, program: Traced, place: slice):
        self._program, self._place = program, place
        self.reads = {i for i, read in enumerate(inputs_read(program.closed.jaxpr)) if read}

    def __call__(self, params: Sequence[Array], rest: _Read) -> tuple[Array, PyTree]:
        inputs = dict(rest)
        inputs.update(enumerate(params, self._place.start))
        arguments = [inputs[i] for i in range(len(inputs))]
        n = len(self._program.constants)
        return self._program(arguments[:n], *arguments[n:])


def _operation(program: _Program) -> Callable:
    gradient = lambda params, rest: jax.value_and_grad(program, has_aux=True)(params, rest)

    def forward(params: list, rest: dict):
        # The choice of live leaves must not depend on which inputs are perturbed now, because a
        # traced loop is differentiated several times with one structure of residuals. The compiler
        # drops cotangents that are not used.
        is_primal = lambda node: isinstance(node, CustomVJPPrimal)
        params, rest = jax.tree.map(lambda leaf: leaf.value, (params, rest), is_leaf=is_primal)
        live = {i: leaf for i, leaf in rest.items() if i in program.reads and _is_inexact(leaf)}
        idle = {i: leaf for i, leaf in rest.items() if i not in live}
        return gradient(params, idle | live), (params, live, idle)

    def backward(residuals: tuple[list, _Read, _Read], cotangents: Any):
        params, live, idle = residuals
        (value_bar, aux_bar), gradient_bar = cotangents
        of_loss = lambda params, live: program(params, idle | live)
        parts = [
            _through_gradient(of_loss, params, live, value_bar, gradient_bar),
            _through_aux(of_loss, params, live, aux_bar),
        ]
        parts = [part for part in parts if part is not None]
        if not parts:
            return None, dict.fromkeys(live | idle)
        params_bar, live_bar = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)
        return params_bar, dict.fromkeys(idle) | live_bar

    operation = jax.custom_vjp(gradient)
    operation.defvjp(forward, backward, symbolic_zeros=True)
    return operation


def _through_gradient(of_loss: Callable, params, live, value_bar, gradient_bar):
    """The cotangents through value and gradient, from one `jvp` for both."""
    # JAX passes a cotangent of one as a Python number.
    scaled = lambda bar, leaf: jnp.asarray(bar, leaf.dtype) * leaf
    both = lambda params: jax.grad(of_loss, argnums=(0, 1), has_aux=True)(params, live)[0]
    if all(is_zero(bar) for bar in gradient_bar):
        if is_zero(value_bar):
            return None
        return jax.tree.map(lambda first: scaled(value_bar, first), both(params))
    direction = [dense(bar) for bar in gradient_bar]
    with missing_derivatives_explained():
        first, second = jvp(both, params, direction)
    if is_zero(value_bar):
        return second
    return jax.tree.map(lambda a, b: scaled(value_bar, a) + b, first, second)


def _through_aux(of_loss: Callable, params, live, aux_bar):
    """The cotangents through aux; None, at no cost, if aux is not differentiated."""
    bars = jax.tree.leaves(aux_bar, is_leaf=is_zero)
    taken = [i for i, bar in enumerate(bars) if not is_zero(bar) and _is_inexact(bar)]
    if not taken:
        return None
    aux_leaves = lambda params, live: jax.tree.leaves(of_loss(params, live)[1])
    chosen = lambda params, live: [aux_leaves(params, live)[i] for i in taken]
    _, pull_back = jax.vjp(chosen, params, live)
    return pull_back([bars[i] for i in taken])


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
