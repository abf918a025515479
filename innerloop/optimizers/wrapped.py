"""Optax optimizers in the form that inner loops and `fit` need."""

from typing import Any, NamedTuple

import optax
from jaxtyping import PyTree

from innerloop.transformations import Transformation, arguments_asked_by


def named_arguments(optimizer: Transformation) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, for use in `optax.chain` and other wrappers.

    A wrapper passes all keyword arguments on to every part that takes any. Some optimizers, such as
    `optax.contrib.sam`, refuse arguments that they do not know. The optimizer that this function
    returns passes on only the arguments that the signature of `optimizer.update` names.

    ```python
    sam = il.optimizers.named_arguments(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), sam)
    ```

    Args:
        optimizer: An optax transformation.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **offered: Any):
        asked = arguments_asked_by(optimizer.update, offered)
        return optimizer.update(updates, state, params, **asked)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


class LookaheadState(NamedTuple):
    """The state of `optax.lookahead`, and the slow parameters."""

    pair: Any
    slow: PyTree


def lookahead(
    fast_optimizer: optax.GradientTransformation,
    sync_period: int,
    slow_step_size: Any,
    reset_state: bool = False,
) -> optax.GradientTransformation:
    """`optax.lookahead` on the fast parameters; the slow parameters are in the optimizer's state.

    The gradient is taken at the fast parameters. Evaluate the slow parameters with `judged`:

    ```python
    optimizer = il.optimizers.lookahead(optax.sgd(0.1), sync_period=5, slow_step_size=0.5)
    learn = il.GradientDescent(optimizer, steps=10, judged=il.optimizers.slow_params)
    ```

    Args:
        fast_optimizer: The optimizer of the fast parameters.
        sync_period: The number of fast steps before each step of the slow parameters, at least 1.
        slow_step_size: The size of a slow step; 1 moves the slow parameters to the fast ones.
        reset_state: Whether the state of the fast optimizer is reset after each slow step.
    """
    pair = optax.lookahead(fast_optimizer, sync_period, slow_step_size, reset_state)

    def init(params: PyTree) -> LookaheadState:
        return LookaheadState(pair.init(optax.LookaheadParams.init_synced(params)), params)

    def update(updates: PyTree, state: Any, params: PyTree = None):
        both: Any = optax.LookaheadParams(params, state.slow)
        moves: Any
        moves, after = pair.update(updates, state.pair, both)
        return moves.fast, LookaheadState(after, optax.apply_updates(state.slow, moves.slow))

    return optax.GradientTransformation(init, update)


def slow_params(optimizer_state: LookaheadState, params: PyTree) -> PyTree:
    """The slow parameters of `lookahead`, for the argument `judged` of `GradientDescent` and `fit`.

    Args:
        optimizer_state: The state of `lookahead`.
        params: The fast parameters, which are not read.
    """
    return optimizer_state.slow
