"""The problem of learning a network on labelled rows, and the functions that it is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray, PyTree

from innerloop.arguments import checked, function, or_none
from innerloop.errors import StructureError
from innerloop.models.base import MODEL, Model, require_state
from innerloop.models.losses import ExamplesLoss
from innerloop.problem import (
    Examples,
    Problem,
    learned_part,
    parameters,
    state_of,
    subset,
    with_state,
)

Part = Callable[[PyTree], PyTree]
"""`tree -> part`, a part of a tree or a tuple of parts, as in `subset`."""


class Network(NamedTuple):
    """A model whose parameters are a part of meta, as the functions of a problem.

    Args:
        start: `(meta, support, key) -> params`, the part of the parameters that is adapted.
        outputs: `(params, meta, batch, key) -> outputs` of the model at prediction.
        trained: `(params, meta, batch, key) -> (outputs, state)` of the model in training.
    """

    start: Callable[..., PyTree]
    outputs: Callable[..., Array]
    trained: Callable[..., tuple[Array, PyTree]]


def network(model: Model, of_meta: Part = lambda meta: meta, where: Part | None = None) -> Network:
    """The functions of a model whose parameters are `of_meta(meta)`.

    Args:
        model: The network.
        of_meta: Selects the parameters of the model in meta.
        where: Selects which of the learned parameters are adapted; by default all of them.
    """
    learn = model.learn
    if learn is None:
        learn = lambda params, *given: (model.apply(params, *given), None)

    def learned(meta: PyTree) -> PyTree:
        return learned_part(of_meta(meta), model.frozen)

    def start(meta: PyTree, support: PyTree, key: PRNGKeyArray) -> PyTree:
        params = learned(meta)
        return params if where is None else subset(params, where)[0]

    def whole(adapted: PyTree, meta: PyTree) -> PyTree:
        if model.state is not None:
            require_state(adapted)
        params = parameters(adapted)
        if where is not None:
            params = subset(learned(meta), where)[1](params)
        if model.frozen is not None:
            params = eqx.combine(params, of_meta(meta))
        return with_state(params, state_of(adapted))

    def outputs(params: PyTree, meta: PyTree, batch: Examples, key: PRNGKeyArray) -> Array:
        return model.apply(whole(params, meta), batch.inputs, key, batch.mask)

    def trained(params: PyTree, meta: PyTree, batch: Examples, key: PRNGKeyArray):
        return learn(whole(params, meta), batch.inputs, key, batch.mask)

    return Network(start, outputs, trained)


def losses(
    parts: Network, loss: ExamplesLoss, has_state: bool
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The inner and the outer loss of a network, with the signatures of a `Problem`'s losses."""

    def inner(params: PyTree, meta: PyTree, batch: Examples, key: PRNGKeyArray):
        outputs, state = parts.trained(params, meta, batch, key)
        value, aux = loss(outputs, batch)
        return (value, aux, state) if has_state else (value, aux)

    def outer(params: PyTree, meta: PyTree, batch: Examples, key: PRNGKeyArray):
        return loss(parts.outputs(params, meta, batch, key), batch)

    return inner, outer


@checked(
    model=MODEL,
    step_weights=or_none(function("steps", gives="(steps + 1,) weights")),
)
def supervised_problem(
    model: Model,
    loss: ExamplesLoss,
    where: Part | None = None,
    step_weights: Callable[[int], Any] | None = None,
) -> Problem:
    """The problem of learning a network on tasks of `Examples`, from a learned initialisation.

    Meta is what `model.init` returns. The frozen arrays and the model state of the network become
    `Problem.frozen` and `Problem.state`. The inner loss uses `model.learn`, if the model has one.

    Args:
        model: The network.
        loss: The loss of its outputs, such as `cross_entropy`.
        where: Selects the parameters that are adapted, as in `subset`; by default all that are
            learned.
        step_weights: Weights of the query losses after each step, as in `Problem`.

    Returns:
        The problem.
    """
    parts = network(model, where=where)
    inner, outer = losses(parts, loss, model.state is not None)
    return Problem(
        *(parts.start, inner, outer, step_weights), frozen=model.frozen, state=model.state
    )


def stateless(model: Model, needed_by: str) -> Model:
    """The model; raises `StructureError` if it has a model state, which nothing would carry."""
    if model.state is None:
        return model
    raise StructureError(
        f"{needed_by} takes no inner steps, so nothing would carry the model state",
        got=f"a model with a state and the policy {model.normalisation!r}",
        expected='a model without a state, such as normalisation="transductive" or "frozen"',
    )
