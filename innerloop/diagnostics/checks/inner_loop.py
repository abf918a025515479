"""Does the inner loop learn? Found by running it."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from innerloop.adaptation import Origin, run
from innerloop.diagnostics.checks.subject import Subject, jit_quickly
from innerloop.diagnostics.findings import Finding, Severity
from innerloop.gradients import Implicit
from innerloop.gradients.inner import Exact
from innerloop.gradients.loops import StoreAll
from innerloop.problem import Loss, loss_function
from innerloop.trees import all_finite

_DIVERGED = 2.0
"""A loss that grows by this factor over the inner loop, in the mean over tasks, is not learned."""
_STATIONARY = 0.01
"""Inner gradient at the end relative to that at the start, below which `Implicit` is near exact."""


def inner_loss_falls(subject: Subject) -> Iterator[Finding]:
    """The inner loss over the inner steps, and how far the parameters go."""
    problem, adaptation = subject.problem, subject.adaptation
    if problem.inner_loss is None or adaptation.origin is not Origin.STEPS or not adaptation.steps:
        return
    loss = loss_function("inner_loss", problem.inner_loss, needed_by="check")
    losses, moved = jit_quickly(jax.vmap(partial(_run, subject, loss), (None, 0, 0)))(
        subject.meta, subject.episodes, subject.keys
    )
    weights = np.asarray(subject.weights, np.float64)
    losses = np.average(np.asarray(losses, np.float64)[weights > 0], 0, weights[weights > 0])
    curve = f"{losses[0]:.4g} to {losses[-1]:.4g} in {len(losses) - 1} steps"
    last = losses[np.isfinite(losses)][-1:]  # what is not finite at once has not diverged
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


def _run(subject: Subject, loss: Loss, meta, episode, key):
    keys, support = jax.random.split(key, 3), episode.support
    look = lambda params, t: (loss(params, meta, support, keys[0])[0], params)
    _, _, (losses, path) = run(
        subject.problem,
        subject.adaptation,
        meta,
        support,
        keys[0],
        Exact(),
        StoreAll(),
        look,
    )
    apart = jax.tree.map(lambda leaf: jnp.any(leaf[-1] != leaf[0]), path)
    return losses, jax.tree.reduce(jnp.logical_or, apart)


def stationary(subject: Subject) -> Iterator[Finding]:
    """Where `Implicit` is asked: is the inner problem solved?"""
    gradient = subject.gradient
    if not isinstance(gradient, Implicit) or subject.adaptation.origin is not Origin.STEPS:
        return
    residual = _residuals(subject, subject.adaptation.steps or 0)
    start = _residuals(subject, 1)
    if residual > _STATIONARY * start:
        yield Finding(
            Severity.WARNING,
            "Implicit() is asked where the inner problem is not solved",
            "aux.diagnostics['inner_residual']",
            f"the residual is {residual:.2g} after all steps and {start:.2g} after the first; the "
            "error of the meta-gradient is of its order",
            "more inner steps, Minimise(solver), or proximal(problem, strength)",
        )


def _residuals(subject: Subject, steps: int) -> float:
    from innerloop.gradients.conditions import stationarity

    problem, support = subject.problem, subject.episodes.support
    condition = subject.gradient.condition or stationarity(problem)  # pyright: ignore

    def residual(meta, support, key):
        adapt_key = jax.random.split(key, 3)[0]
        state, _, _ = run(
            problem,
            subject.adaptation,
            meta,
            support,
            adapt_key,
            Exact(),
            StoreAll(),
            steps=steps,
        )
        params = subject.adaptation.params(state)
        last_step = jax.random.fold_in(adapt_key, steps)
        leaves = jax.tree.leaves(condition(params, meta, support, last_step))
        return sum(jnp.sum(jnp.square(leaf)) for leaf in leaves) ** 0.5

    each = jit_quickly(jax.vmap(residual, (None, 0, 0)))(subject.meta, support, subject.keys)
    return float(jnp.mean(each))


class _OfSize(Exact):
    """The same number in place of every component of the inner gradient."""

    size: Array

    def at(self, t):
        def operator(loss):
            def value_and_gradient(params, meta, batch, key):
                return loss(params, meta, batch, key), jax.tree.map(
                    lambda leaf: jnp.full_like(leaf, 1) * self.size.astype(leaf.dtype), params
                )

            return value_and_gradient

        return operator


def steep_at_zero(subject: Subject) -> Iterator[Finding]:
    """The optimizer's derivative at a gradient of zero, as behind a dead rectifier."""
    if subject.adaptation.origin is not Origin.STEPS or not subject.adaptation.steps:
        return
    episode, key = subject.task()

    def parameters(size):
        state, _, _ = run(
            subject.problem,
            subject.adaptation,
            subject.meta,
            episode.support,
            key,
            _OfSize(size),
            StoreAll(),
            steps=1,
        )
        return subject.adaptation.params(state)

    _, slope = jit_quickly(lambda size: jax.jvp(parameters, (size,), (jnp.ones_like(size),)))(
        jnp.float32(0)
    )
    if all_finite(slope):
        return
    yield Finding(
        Severity.WARNING if subject.takes_second_derivatives else Severity.NOTE,
        "the optimizer has no derivative at a gradient of zero",
        "the adaptation's optimizer",
        "it divides by the root of a second moment or by a norm, whose derivative at zero is not "
        "finite; one dead rectifier can make the whole meta-gradient NaN",
        "eps_root=1e-8 where the optimizer has it, as in optax.adam(rate, eps_root=1e-8), or one "
        "without roots and norms of gradients",
    )
