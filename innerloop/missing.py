"""Derivatives that JAX does not have, explained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from innerloop.errors import GradientError

_KINDS = {
    "while_loop": (
        "Reverse-mode differentiation does not work for lax.while_loop",
        "a loop that runs until a condition holds has no derivative in reverse mode",
        "a lax.while_loop on the way from meta to the loss, as in line searches and in the default "
        "adjoint of diffrax",
        "jax.lax.scan in place of jax.lax.while_loop, GradientDescent(optax.sgd(0.01), steps=5) in "
        "place of a line search, or adjoint=diffrax.DirectAdjoint()",
    ),
    "custom_vjp": (
        "can't apply forward-mode autodiff (jvp) to a custom_vjp",
        "a jax.custom_vjp has no derivative in forward mode",
        "a jax.custom_vjp on the way from meta to the loss",
        "jax.custom_jvp in place of jax.custom_vjp, or adjoint=diffrax.DirectAdjoint()",
    ),
    "callback": (
        "allbacks do not support JVP",
        "a function that runs on the host has no derivative",
        "a callback on the way from meta to the loss",
        "the function in jax.numpy, or under jax.custom_jvp with its derivative",
    ),
    "rule": (
        "Differentiation rule for",
        "an operation has no derivative",
        "an operation on the way from meta to the loss that JAX cannot differentiate",
        "another operation, or a function under jax.custom_jvp with its derivative",
    ),
}
"""By kind: a part of JAX's message, the problem, its source, and what has the derivative."""


def missing_derivative(error: BaseException) -> str | None:
    """The kind of the derivative whose absence made JAX raise an error; None for another error."""
    return next((kind for kind, (says, *_) in _KINDS.items() if says in str(error)), None)


@contextmanager
def missing_derivatives_explained(
    instead: Callable[[str], str | None] = lambda missing: None,
) -> Iterator[None]:
    """Explain a derivative that does not exist.

    Args:
        instead: Maps the kind of a missing derivative to the call to write if the losses stay as
            they are, or to None if no such call is known.

    Raises:
        GradientError: In place of JAX's own error.
    """
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        for own in _chain(error):
            missing = missing_derivative(own)
            if missing is not None:
                _, problem, got, has_it = _KINDS[missing]
                raise GradientError(
                    problem,
                    got=got,
                    expected="operations that have this derivative, or a meta-gradient that needs "
                    "none",
                    write=", or ".join(filter(None, [instead(missing), has_it])),
                ) from own
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the errors that it was raised from; JAX may put its own errors in between."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
