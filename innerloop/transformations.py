"""Optax transformations in the inner loop and in `fit`: their arguments and their state.

Any object with `init` and `update`, such as `optax.MultiSteps`, is a transformation. `update`
receives the keyword arguments that its signature names.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree, Scalar

from innerloop.arguments import function, requirement_of, with_methods
from innerloop.checks import describe
from innerloop.errors import GradientError, StructureError
from innerloop.tangents import is_zero, tangent_leaves
from innerloop.trees import definite

Judged = Callable[[PyTree, PyTree], PyTree]
"""`(optimizer_state, params) -> params`, which returns the parameters to be evaluated."""

JUDGED = function("optimizer_state", "params", gives="params")
"""The kind of an argument of type `Judged`."""


@runtime_checkable
class Transformation(Protocol):
    """The interface of every Optax optimizer."""

    @property
    def init(self) -> Callable[..., Any]:
        """`params -> state`."""
        ...

    @property
    def update(self) -> Callable[..., Any]:
        """`(updates, state, params, **offered) -> (updates, state)`."""
        ...


def transformation(such_as: str, **field: Any) -> Any:
    """The kind of an argument that is an optax transformation; the error shows `such_as`."""
    return with_methods("init", "update", what="an optax transformation", such_as=such_as, **field)


def is_transformation(value: Any) -> bool:
    """Whether a value has the interface of a transformation."""
    requirement = requirement_of(transformation(such_as=""))
    return requirement is not None and requirement.accepts(value)


def other_optimizer(error: Exception) -> str | None:
    """What to write in place of an optimizer that fails with this error, if the error says it."""
    if "unexpected keyword argument" in str(error):
        return "il.optimizers.named_arguments(part) around the part that refuses the argument"
    if isinstance(error, AttributeError) and "fast" in str(error):  # of `LookaheadParams`
        return "il.optimizers.lookahead(optax.sgd(0.1), 5, 0.5)"
    return None


@contextmanager
def lenient_promotion() -> Iterator[None]:
    """Lets optax promote ranks and dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Offers(NamedTuple):
    """The keyword arguments that an optimizer may ask for, by the names that Optax uses.

    Attributes:
        value: The loss before the step, a scalar.
        grad: Its gradient, in the structure of the parameters.
        value_fn: `params -> value`, the same loss at other parameters.
        grad_fn: `(params, i) -> gradient` of the same loss; i is not read.
        obj_fn: The same function as `value_fn`, for optimizers that take its second derivatives;
            None if it has no second derivatives.
    """

    value: Scalar
    grad: PyTree
    value_fn: Callable[..., Scalar]
    grad_fn: Callable[..., PyTree]
    obj_fn: Callable[..., Scalar] | None = None

    @classmethod
    def of(
        cls,
        value: Scalar,
        grad: PyTree,
        loss: Callable[[PyTree], Scalar],
        gradient: Callable[[PyTree], PyTree],
        objective: Callable[[PyTree], Scalar] | None = None,
    ) -> "Offers":
        """The offers of a loss.

        Args:
            value: The loss before the step.
            grad: Its gradient.
            loss: `params -> value`.
            gradient: `params -> gradient`.
            objective: The loss for second derivatives; None if it has none.
        """

        # Optax's line searches refuse arguments that `value_fn` does not take.
        def value_fn(params: PyTree, grad_fn: Any = None, obj_fn: Any = None) -> Scalar:
            return loss(params)

        def grad_fn(params: PyTree, i: Any = None) -> PyTree:
            return gradient(params)

        def obj_fn(params: PyTree, *_: Any, **__: Any) -> Scalar:
            return objective(params)  # pyright: ignore[reportOptionalCall]

        return cls(value, grad, value_fn, grad_fn, obj_fn if objective else None)

    def asked_by(self, update: Callable) -> dict[str, Any]:
        """The arguments that `update` asks for."""
        offered = {name: each for name, each in self._asdict().items() if each is not None}
        return arguments_asked_by(update, offered)


def arguments_asked_by(update: Callable, offered: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the signature of `update` names; all of them if it takes any."""
    parameters = inspect.signature(update).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return offered
    return {name: each for name, each in offered.items() if name in parameters}


def begin(optimizer: Transformation, params: PyTree) -> PyTree:
    """The optimizer's state before the first step, with the types that its steps keep.

    `update` may return a wider dtype than `init`, as momentum does with float64 rates and float32
    parameters. A loop must carry a state of one dtype, so the initial state is converted to the
    wider dtype, without a change of its values.

    Raises:
        StructureError: If `update` returns a state of another structure or shape than `init`.
    """
    state = jax.tree.map(definite, optimizer.init(params))
    scalar = jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))
    # Only dtypes are needed, so a sum of the parameters stands in for the loss.
    total = lambda params: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))
    loss = lambda params: jnp.asarray(total(params), scalar.dtype)
    offers = Offers.of(scalar, params, loss, lambda params: params, loss)

    def after(state: PyTree) -> PyTree:
        return optimizer.update(params, state, params, **offers.asked_by(optimizer.update))[1]

    while True:
        wider = jax.tree.map(_wider, state, _checked(jax.eval_shape(after, state), state))
        if jax.tree.map(_type, wider) == jax.tree.map(_type, state):
            return state
        state = wider


def take_step(
    optimizer: Transformation, state: PyTree, params: PyTree, offers: Offers
) -> tuple[PyTree, PyTree]:
    """One step of an optimizer.

    Args:
        optimizer: The optimizer.
        state: Its state, which `begin` made.
        params: The parameters.
        offers: The gradient, and the other arguments that the optimizer may ask for.

    Returns:
        `(params, state)` after the step, in the types that they had before.

    Raises:
        StructureError: If the updates are complex and the parameters are not, or if they do not
            have the parameters' shapes.
    """
    asked = offers.asked_by(optimizer.update)
    updates, after = optimizer.update(offers.grad, state, params, **asked)
    complex_in = lambda tree: any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(tree))
    if complex_in(updates) and not complex_in(params):
        raise StructureError(
            "the optimizer makes complex updates of real parameters",
            got=describe(updates),
            expected="updates of the parameters' type, which real learning rates give",
        )
    moved = optax.apply_updates(params, updates)
    if jax.tree.map(jnp.shape, moved) != jax.tree.map(jnp.shape, params):
        raise StructureError(
            "the optimizer changes the shapes of the parameters",
            got=f"{describe(params)} becomes {describe(moved)}",
            expected="updates of the parameters' shapes",
        )
    return moved, jax.tree.map(_as, _checked(after, state), state)


def _checked(after: PyTree, before: PyTree) -> PyTree:
    """`after`, if it has the structure and the shapes of `before`."""
    shapes = lambda tree: (jax.tree.structure(tree), [*map(jnp.shape, jax.tree.leaves(tree))])
    if shapes(after) == shapes(before):
        return after
    raise StructureError(
        "the optimizer's state changes its structure or its shapes in a step",
        got=f"init gives {describe(before)}, update gives {describe(after)}",
        expected="a state of the same structure and shapes from both",
    )


def _type(leaf: Any) -> Any:
    return jnp.result_type(leaf)


def _wider(leaf: Any, other: Any) -> Any:
    same = _type(leaf) == _type(other)
    return leaf if same else leaf.astype(jnp.promote_types(_type(leaf), _type(other)))


def _as(leaf: Any, other: Any) -> Any:
    return leaf if _type(leaf) == _type(other) else jnp.asarray(leaf).astype(_type(other))


@jax.custom_jvp
def sloped(value: Scalar, gradient: PyTree, params: PyTree) -> Scalar:
    """`value`; if it is constant in `params`, its derivative in `params` is `gradient`.

    A meta-gradient that holds the inner gradient constant also holds the value constant. An
    optimizer that differentiates the loss must still see the gradient.
    """
    return value


def _sloped_jvp(primals: Any, tangents: Any) -> tuple[Scalar, Scalar]:
    value, gradient, _ = primals
    value_dot, _, params_dot = tangents
    if not is_zero(value_dot):
        return value, value_dot
    slope = jnp.zeros_like(value)
    for leaf, dot in zip(jax.tree.leaves(gradient), tangent_leaves(params_dot), strict=True):
        if not is_zero(dot):
            slope += jnp.sum(leaf * dot).astype(slope.dtype)
    return value, slope


sloped.defjvp(_sloped_jvp, symbolic_zeros=True)


@jax.custom_jvp
def curved(value: Scalar, params: PyTree) -> Scalar:
    """`value`; a derivative in `params` is refused if the value is held constant.

    A meta-gradient that holds the inner gradient constant leaves no curvature, and an optimizer
    that reads it would take other steps than `adapt`.
    """
    return value


def _curved_jvp(primals: Any, tangents: Any) -> tuple[Scalar, Scalar]:
    value_dot, params_dot = tangents
    if is_zero(value_dot) and not all(map(is_zero, tangent_leaves(params_dot))):
        raise GradientError(
            "the optimizer takes second derivatives of an inner loss that is held constant",
            got="obj_fn, which the optimizer asks for, under a meta-gradient such as FirstOrder()",
            expected="a meta-gradient that differentiates the inner gradient, or an optimizer that "
            "does not ask for obj_fn",
        )
    return primals[0], value_dot


curved.defjvp(_curved_jvp, symbolic_zeros=True)
