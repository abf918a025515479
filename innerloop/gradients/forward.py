"""Forward-mode derivatives of functions that may contain a `jax.custom_vjp`."""

from collections.abc import Callable

import jax
from jax.extend import core
from jax.interpreters import partial_eval
from jaxtyping import PyTree

from innerloop.programs import operations


def jvp(function: Callable, at: PyTree, direction: PyTree) -> tuple[PyTree, PyTree]:
    """`jax.jvp` of a function of one pytree; raises while tracing if the derivative does not exist.

    A `jax.custom_vjp` function has no forward mode, but its gradient has one if its backward pass
    does. JAX leaves the tangent of the function's value in the program of the gradient. Even if
    nothing reads this tangent, `vmap` refuses the program, so an unread tangent is dropped here. If
    something reads the tangent, JAX itself would raise an error only while compiling.

    Args:
        function: The function.
        at: The point at which the derivative is taken.
        direction: A pytree like `at`.

    Returns:
        The function's result and its derivative along the direction.

    Raises:
        TypeError: JAX's own error, if the result reads the tangent of a `jax.custom_vjp`.
    """
    both = lambda at, direction: jax.jvp(function, (at,), (direction,))
    closed, shape = jax.make_jaxpr(both, return_shape=True)(at, direction)
    every = [True] * len(closed.jaxpr.outvars)
    jaxpr, *_ = partial_eval.dce_jaxpr_consts(closed.jaxpr, every, instantiate=True)
    if any(operation.name == "custom_lin" for operation in operations(jaxpr)):
        raise TypeError("can't apply forward-mode autodiff (jvp) to a custom_vjp function.")
    run = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, closed.consts))
    return jax.tree.unflatten(jax.tree.structure(shape), run(*jax.tree.leaves((at, direction))))


def has_forward_mode(function: Callable, at: PyTree) -> bool:
    """Whether `jvp` of a function of one pytree exists."""
    try:
        jax.eval_shape(lambda at: jvp(function, at, at), at)
    except TypeError as error:
        if "forward-mode" in str(error):
            return False
        raise
    return True
