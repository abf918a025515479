"""Checks that run the inner loop to see whether it learns."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from innerloop.adaptation import InnerRule, Origin
from innerloop.diagnostics.checks.subject import Subject, jit_quickly
from innerloop.diagnostics.findings import Finding, NotChecked, Severity
from innerloop.fidelity import EXACT
from innerloop.gradients import Implicit
from innerloop.gradients.conditions import Condition, stationarity
from innerloop.problem import parameters, task_keys
from innerloop.trees import all_finite, norm

_DIVERGED = 2.0
"""An inner loop diverges if it increases the mean loss over tasks by this factor."""
_ZERO = float(np.finfo(np.float32).eps)
"""A loss up to this size counts as zero, up to rounding."""
_STATIONARY = 0.01
"""`Implicit` is nearly exact if the inner gradient falls below this fraction of its start value."""


def inner_loss_falls(subject: Subject) -> Iterator[Finding]:
    """Checks that the inner loss does not diverge and that the parameters move."""
    if subject.problem.inner_loss is None or not subject.steps:
        return
    if not subject.learns_params:
        raise NotChecked("inner_loss reads other parameters than the adaptation returns")
    loss = subject.loss("inner_loss")

    def learn(meta, support, key):
        key = task_keys(key).adapt
        look = lambda params, t: (loss(params, meta, support, key), parameters(params))
        _, _, (losses, path) = subject.run(meta, support, key, observe=look)
        apart = jax.tree.map(lambda leaf: jnp.any(leaf[-1] != leaf[0]), path)
        return losses, jax.tree.reduce(jnp.logical_or, apart)

    losses, moved = _on_each_task(subject, learn)
    weights = np.asarray(subject.weights, np.float64)
    losses = np.average(np.asarray(losses, np.float64)[weights > 0], 0, weights[weights > 0])
    curve = f"{losses[0]:.4g} to {losses[-1]:.4g} in {len(losses) - 1} steps"
    # A loss that is not finite from the start has not diverged. Growth relative to a loss of zero
    # is not defined, so later losses are compared with the first loss that is not zero.
    finite = losses[np.isfinite(losses)]
    first = finite[np.abs(finite) > _ZERO][:1]
    if np.any(finite[-1:] > first) and np.any(np.abs(finite[-1:]) > _DIVERGED * np.abs(first)):
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
        whole = subject.problem.whole(meta)
        return norm(condition(params, whole, support, jax.random.fold_in(key, steps)))

    return float(jnp.mean(_on_each_task(subject, residual)))


class _Given(InnerRule):
    """An inner gradient that is given and not computed."""

    gradient: PyTree

    def at(self, t):
        return lambda loss: lambda params, *rest: (loss(params, *rest), self.gradient)

    def fidelity(self, adaptation, problem=None):
        return EXACT


def steep_at_zero(subject: Subject) -> Iterator[Finding]:
    """Checks the optimizer's derivative at a zero gradient, such as that of a dead ReLU unit.

    The derivative is taken in reverse mode, because forward mode does not see a NaN in the branch
    that a `where` does not select.
    """
    if not subject.steps or "inner_loss" not in subject.given:
        return
    (params, *_), (episode, key) = subject.given["inner_loss"], subject.task()

    def slope(gradient):
        run = lambda gradient: subject.run(
            subject.meta, episode.support, key, inner=_Given(gradient), steps=1
        )[0]
        learned = lambda gradient: parameters(subject.adaptation.params(run(gradient)))
        after, pull_back = jax.vjp(learned, gradient)
        return all_finite(pull_back(jax.tree.map(jnp.ones_like, after)))

    is_finite = jit_quickly(slope)
    of_ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), params)
    of_zeros = jax.tree.map(np.zeros_like, of_ones)
    one_zero = jax.tree.map(_with_a_zero, of_ones)
    if not is_finite(of_ones) or (is_finite(of_zeros) and is_finite(one_zero)):
        return  # if it has no derivative anywhere, the meta-gradient is not finite either
    meets_zero = np.all if is_finite(one_zero) else np.any
    zeros = _zero_gradients(subject)
    worst = Severity.WARNING if zeros is None or np.any(meets_zero(zeros, -1)) else Severity.NOTE
    yield Finding(
        subject.severity(2, worst),
        "the optimizer has no derivative at a gradient of zero",
        "the adaptation's optimizer",
        "it divides by the root of a second moment or by a norm, whose derivative at zero is not "
        "finite; "
        + (
            "no gradient of these tasks is zero, but one dead rectifier would make the whole "
            "meta-gradient NaN"
            if worst is Severity.NOTE
            else "one dead rectifier can make the whole meta-gradient NaN"
        ),
        "eps_root=1e-8 where the optimizer has it, as in optax.adam(rate, eps_root=1e-8); "
        "optax.clip(1.0) where it clips by a norm; or an optimizer without roots and norms of "
        "gradients",
    )


def _with_a_zero(leaf: np.ndarray) -> np.ndarray:
    leaf = leaf.copy()
    leaf.flat[0] = 0
    return leaf


def _zero_gradients(subject: Subject) -> np.ndarray | None:
    """Whether each component of the inner gradients is zero: `(..., components)`.

    None if the inner loss reads other parameters than the adaptation returns.
    """
    if not subject.learns_params:
        return None
    loss = subject.loss("inner_loss")

    def learn(meta, support, key):
        key = task_keys(key).adapt
        gradient = lambda params, t: jax.grad(loss)(params, meta, support, key)
        _, _, path = subject.run(meta, support, key, observe=gradient)
        return [leaf[:-1].reshape(len(leaf) - 1, -1) == 0 for leaf in jax.tree.leaves(path)]

    return np.concatenate(_on_each_task(subject, learn), axis=-1)
