"""Learned optimizers: functions from meta-parameters to optax transformations."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.arguments import CheckedModule
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.models import Model

Direction = Callable[[], optax.GradientTransformation]
"""Makes the direction that a rate multiplies: a function without arguments that returns an optax
transformation without a rate, such as `optax.identity` (SGD), `functools.partial(optax.trace,
decay=0.9)` (momentum) or `optax.scale_by_adam`."""


class LearnedOptimizer(CheckedModule):
    """An inner optimizer with meta-parameters.

    A learned optimizer is a function `meta -> optax.GradientTransformation`:
    `GradientDescent(learned, steps)` accepts it, and after meta-training `learned(meta)` is an
    optimizer for any optax loop.
    Its fields are its settings: numbers, tuples of them, and directions, all static, so that
    `save_optimizer` can write them.
    """

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray, params: PyTree[Array]) -> PyTree[Array]:
        """Meta-parameters before meta-training, for an inner problem with such parameters."""

    @abc.abstractmethod
    def __call__(self, meta: PyTree) -> optax.GradientTransformation:
        """The optimizer that these meta-parameters make.

        Raises:
            StructureError: Here, or when the transformation first receives parameters, if the
                meta-parameters do not have the structure that `init` makes.
        """


def part_of(learned: LearnedOptimizer, meta: PyTree, *names: str) -> Any:
    """The named parts of meta: one, or a list of several. Raises `StructureError` without them."""
    if isinstance(meta, Mapping) and set(meta) == set(names):
        parts = [meta[name] for name in names]
        return parts if len(parts) > 1 else parts[0]
    raise _not_of(learned, meta, "{" + ", ".join(f"'{name}': ..." for name in names) + "}")


def require_like(learned: LearnedOptimizer, expected: PyTree, meta: PyTree) -> None:
    """Raise `StructureError` unless meta has the structure and the shapes of `expected`."""
    shaped = lambda tree: jax.tree.map(lambda leaf: (leaf.shape,), tree)
    if jax.tree.structure(meta) != jax.tree.structure(expected) or shaped(meta) != shaped(expected):
        raise _not_of(learned, meta, describe(expected))


def network_of(learned: LearnedOptimizer, network: Model, weights: PyTree) -> Callable:
    """The network with these weights, `rows -> outputs`; `StructureError` unless they fit it."""
    require_like(learned, jax.eval_shape(network.init, jax.random.key(0)), weights)
    return lambda rows: network.apply(weights, rows, None, None)


def _not_of(learned: LearnedOptimizer, meta: PyTree, expected: str) -> StructureError:
    name = type(learned).__name__
    return StructureError(
        f"these are not the meta-parameters of this {name}",
        got=describe(meta),
        expected=expected,
    )


def scale_by_rates(rates: PyTree[Array]) -> optax.GradientTransformation:
    r"""$u = -\alpha \odot g$, where α is a tree of rates.

    `rates` is a prefix of the parameters: one number for all, one for each array, or an array of
    the shape of each parameter array.

    Raises:
        StructureError: While tracing, if the rates do not fit the parameters.
    """
    return optax.stateless(lambda updates, params: _scaled(rates, updates))


def scale_by_scheduled_rates(
    rates_at: Callable[[Array], PyTree[Array]],
) -> optax.GradientTransformation:
    """`scale_by_rates` by `rates_at(steps)`, where `steps` counts the steps taken, from 0."""

    def update(updates: PyTree, state: Any, params: PyTree = None):
        return _scaled(rates_at(state), updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def _scaled(rates: PyTree, updates: PyTree) -> PyTree:
    try:
        return jax.tree.map(_times, jax.tree.broadcast(rates, updates), updates)
    except ValueError as error:
        raise StructureError(
            "the learned rates do not fit the parameters",
            got=f"rates {describe(rates)}, parameters {describe(updates)}",
            expected="one rate, one for each array, or one for each number of the parameters",
            write="ParameterRates(...).init(key, params), or ScalarRate(...).init(key, params)",
        ) from error


def _times(rate: Array, update: Array) -> Array:
    if jnp.shape(rate) not in ((), jnp.shape(update)):
        raise ValueError(f"a rate of shape {jnp.shape(rate)} for an array {jnp.shape(update)}")
    return -jnp.asarray(rate).astype(update.dtype) * update
