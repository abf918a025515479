"""Checks that run the inner loop to see whether it learns."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from innerloop.adaptation import Origin
from innerloop.diagnostics.checks.subject import Subject, jit_quickly
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.gradients import Implicit
from innerloop.gradients.conditions import Condition, stationarity
from innerloop.gradients.inner import Exact
from innerloop.problem import task_keys
from innerloop.trees import all_finite, norm

_DIVERGED = 2.0
"""An inner loop diverges if it increases the mean loss over tasks by this factor."""
_STATIONARY = 0.01
"""`Implicit` is nearly exact if the inner gradient falls below this fraction of its start value."""


def inner_loss_falls(subject: Subject) -> Iterator[Finding]:
    """Checks that the inner loss does not diverge and that the parameters move."""
    if subject.problem.inner_loss is None or not subject.steps:
        return
    loss = subject.loss("inner_loss")

    def learn(meta, support, key):
        key = task_keys(key).adapt
        look = lambda params, t: (loss(params, meta, support, key), params)
        _, _, (losses, path) = subject.run(meta, support, key, observe=look)
        apart = jax.tree.map(lambda leaf: jnp.any(leaf[-1] != leaf[0]), path)
        return losses, jax.tree.reduce(jnp.logical_or, apart)

    losses, moved = _on_each_task(subject, learn)
    weights = np.asarray(subject.weights, np.float64)
    losses = np.average(np.asarray(losses, np.float64)[weights > 0], 0, weights[weights > 0])
    curve = f"{losses[0]:.4g} to {losses[-1]:.4g} in {len(losses) - 1} steps"
    # A loss that is not finite from the start has not diverged.
    last = losses[np.isfinite(losses)][-1:]
    if np.any(last > losses[0]) and np.any(np.abs(last) > _DIVERGED * abs(losses[0])):
        yield Finding(
            Severity.ERROR if not np.isfinite(losses[-1]) else Severity.WARNING,
            "the inner loop diverges",
            "inner_loss on the support sets",
            f"it goes from {curve}",
            "a lower inner learning rate",
        )
    elif not np.any(np.asarray(moved)):
        yield Finding(
            Severity.WARNING,
            "the inner loop does not move the parameters",
            "the adaptation",
            f"after all steps they are what init gave, and inner_loss goes from {curve}",
            "a higher inner learning rate, or an inner loss that reads params",
        )


def _on_each_task(subject: Subject, function: Callable) -> Any:
    """`function(meta, support, key)` for each task."""
    each = jit_quickly(jax.vmap(function, (None, 0, 0)))
    return each(subject.meta, subject.episodes.support, subject.keys)


def stationary(subject: Subject) -> Iterator[Finding]:
    """Checks that the inner problem is solved, if `Implicit` is used."""
    gradient = subject.gradient
    if not isinstance(gradient, Implicit) or subject.adaptation.origin is not Origin.STEPS:
        return
    condition = gradient.condition or stationarity(subject.problem)
    residual, start = (_residual(subject, condition, steps) for steps in (subject.steps, 1))
    if residual > _STATIONARY * start:
        yield Finding(
            Severity.WARNING,
            "Implicit() is used although the inner problem is not solved",
            "aux.diagnostics['inner_residual']",
            f"the residual is {residual:.2g} after all steps and {start:.2g} after the first; the "
            "error of the meta-gradient is of its order",
            "more inner steps, Minimise(solver), or proximal(problem, strength)",
        )


def _residual(subject: Subject, condition: Condition, steps: int) -> float:
    def residual(meta, support, key):
        key = task_keys(key).adapt
        state, _, _ = subject.run(meta, support, key, steps=steps)
        params = subject.adaptation.params(state)
        return norm(condition(params, meta, support, jax.random.fold_in(key, steps)))

    return float(jnp.mean(_on_each_task(subject, residual)))


class _OfSize(Exact):
    """An inner gradient whose components all have the same given value."""

    size: Array

    def at(self, t):
        gradient = lambda params: jax.tree.map(lambda leaf: jnp.full_like(leaf, self.size), params)
        return lambda loss: lambda params, *rest: (loss(params, *rest), gradient(params))


def steep_at_zero(subject: Subject) -> Iterator[Finding]:
    """Checks the optimizer's derivative at a zero gradient, as of a dead ReLU unit."""
    if not subject.steps:
        return
    episode, key = subject.task()

    def parameters(size):
        task = (subject.meta, episode.support, key)
        return subject.adaptation.params(subject.run(*task, inner=_OfSize(size), steps=1)[0])

    slope_at = jit_quickly(lambda size: jax.jvp(parameters, (size,), (jnp.ones_like(size),))[1])
    slope = slope_at(jnp.float32(0))
    if all_finite(slope):
        return
    yield Finding(
        subject.severity(2, Severity.WARNING),
        "the optimizer has no derivative at a gradient of zero",
        "the adaptation's optimizer",
        "it divides by the root of a second moment or by a norm, whose derivative at zero is not "
        "finite; one dead rectifier can make the whole meta-gradient NaN",
        "eps_root=1e-8 where the optimizer has it, as in optax.adam(rate, eps_root=1e-8), or one "
        "without roots and norms of gradients",
    )
