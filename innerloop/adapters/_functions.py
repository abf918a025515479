"""Models from a pair of functions."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.adapters._network import (
    MODES,
    NORMALISATION,
    Mode,
    Outcome,
    learnable,
    named,
    policy,
    put_together,
    require_call,
    require_mode,
)
from innerloop.arguments import checked, function, optional
from innerloop.checks import explained, require_arrays
from innerloop.models import Model

NAMES = ("state", "key")


@checked(init=function("key"), state=optional(function("key")), normalisation=NORMALISATION)
def from_functions(
    init: Callable[[PRNGKeyArray], PyTree],
    apply: Callable[..., Any],
    learn: Callable[..., Any] | None = None,
    *,
    state: Callable[[PRNGKeyArray], PyTree] | None = None,
    normalisation: str | None = None,
) -> Model:
    """A model from two functions: one makes the parameters of a network, one its outputs.

    ```python
    model = il.adapters.from_functions(init, lambda params, inputs: jnp.tanh(inputs @ params["w"]))
    ```

    Networks of Haiku are such functions: `from_functions(lambda key: network.init(key, inputs),
    network.apply)`, with `network = hk.without_apply_rng(hk.transform(...))`.

    `apply` and `learn` may take two further arguments by their names: `key`, the random key (None
    where no key is given), and `state`, the model state.

    Args:
        init: `key -> params`, a pytree of arrays. Floating-point arrays are learned. Other arrays,
            such as integers, are frozen with the values of `init(jax.random.key(0))`.
        apply: `(params, inputs) -> outputs`, `(rows, ...) -> (rows, ...)`, the network in
            prediction. The inputs are zero in padded rows.
        learn: `(params, inputs) -> outputs`, the network while it is trained on a support set; with
            `state`, `-> (outputs, state)`. If it is None, `apply` takes its place and the state
            does not change.
        state: `key -> state`, the model state before training, a pytree of arrays; None if the
            network has none.
        normalisation: The name of the policy, which is written into results. `"transductive"` says
            that outputs depend on the other rows of a batch; a mask is then refused. `"carried"`
            says that `learn` uses the statistics of its rows and `apply` those in the state. None
            if the network treats each row independently. Required with `state`.

    Returns:
        The model.

    Raises:
        StructureError: If the functions do not take these arguments or do not return arrays, or if
            the policy is missing.
    """
    for each in (apply, *([] if learn is None else [learn])):
        require_call(
            "from_functions",
            *(each, "params", "inputs"),
            offered=NAMES,
            example="apply=lambda params, inputs, key: apply(params, key, inputs)",
        )
    if learn is None:
        require_mode("from_functions", apply, _learn_with_mode)
    keeps = state is not None
    policy_name = policy("from_functions", normalisation, keeps)
    whole = explained("init", init, "key")(jax.random.key(0))
    require_arrays("what init returns", whole)
    frozen = jax.tree.map(lambda leaf: None if learnable(leaf) else leaf, whole)
    learned_part = lambda tree: jax.tree.map(lambda leaf: leaf if learnable(leaf) else None, tree)

    def run(whole: PyTree, before: PyTree, inputs: PyTree, key: Any, mode: Mode) -> Outcome:
        chosen = learn if mode.training and learn is not None else apply
        result = chosen(whole, inputs, **named(chosen, state=before, key=key))
        outputs, after = result if keeps and chosen is learn else (result, before)
        return Outcome(outputs, after, updated=None)

    start = None if state is None else explained("state", state, "key")(jax.random.key(0))
    require_arrays("what state returns", start)
    return put_together(
        *(lambda key: learned_part(init(key)), run, policy_name, frozen, start),
        has_modes=learn is not None,
    )


def _learn_with_mode(name: str) -> str:
    in_training = MODES[name] == "training"
    return f"learn=lambda params, inputs: apply(params, inputs, {name}={in_training})"
