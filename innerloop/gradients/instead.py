"""Meta-gradients to use instead of one whose derivatives do not exist."""

import jax

from innerloop.adaptation import Adaptation
from innerloop.errors import InnerloopError
from innerloop.gradients.base import MetaGradient
from innerloop.gradients.evolution import EvolutionStrategies
from innerloop.gradients.forward_mode import ForwardMode
from innerloop.gradients.mixed_mode import MixedMode
from innerloop.gradients.names import gradient_name
from innerloop.gradients.settings import FirstOrder
from innerloop.gradients.unroll import Unroll
from innerloop.problem import Problem
from innerloop.trees import abstract

_ESTIMATES = FirstOrder(), EvolutionStrategies(pairs=64, sigma=0.01)
_CANDIDATES: dict[str, tuple[MetaGradient, ...]] = {
    "while_loop": (Unroll(MixedMode()), ForwardMode(), *_ESTIMATES),
    "custom_vjp": (Unroll(), *_ESTIMATES),
}
"""The meta-gradients that may exist without a derivative, by the kind of the derivative.

Exact ones come first."""


def gradient_instead(
    problem: Problem, adaptation: Adaptation, task: tuple, missing: str
) -> str | None:
    """The first meta-gradient that exists for a problem, found by tracing; None if there is none.

    Args:
        problem: What is optimised.
        adaptation: How the task is learned.
        task: `(meta, episode, key)` of one task, or their shapes.
        missing: The kind of the derivative that is missing.

    Returns:
        The code that constructs the meta-gradient, and its fidelity if it is not exact.
    """
    for candidate in _CANDIDATES.get(missing, _ESTIMATES):
        kind = candidate.fidelity(adaptation, problem).kind
        if kind == "undefined":
            continue
        objective = candidate.objective(problem, adaptation)
        try:
            jax.eval_shape(jax.grad(objective, has_aux=True), *abstract(task))
        except (InnerloopError, TypeError, ValueError, NotImplementedError):
            continue
        return gradient_name(candidate) + ("" if kind == "exact" else f" ({kind})")
    return None
