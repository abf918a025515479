"""Evolution strategies over windows: particles in antithetic pairs, and their perturbations."""

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Scalar

from innerloop.arguments import at_least, or_none, positive
from innerloop.checks import is_floating
from innerloop.estimators.online_windows import OnlineWindows, WindowResult
from innerloop.estimators.settings import NO_SETTING
from innerloop.estimators.window import Followed, Window
from innerloop.trees import add, differ, drawn_like, widened


class Particles(NamedTuple):
    """The antithetic pairs of one run, which its state carries.

    Attributes:
        states: Inner states, leaves `(pairs, 2, ...)`: with the perturbation added and subtracted.
        noise: The perturbations that a pair's losses are credited to, leaves `(pairs, ...)`, in
            units of meta.
    """

    states: PyTree
    noise: PyTree


class AntitheticPairs(OnlineWindows):
    """An estimator that reads losses alone, of meta-parameters perturbed in antithetic pairs.

    Its arguments are those of `PersistentES`.
    """

    pairs: int = at_least(1, default=1)
    sigma: float = positive(default=0.01)
    pairs_at_once: int | None = or_none(
        at_least(1), default=None, kw_only=True, metadata=NO_SETTING
    )

    def each_pair(self, function, *stacked):
        """`function` of `pairs_at_once` pairs at a time."""
        if self.pairs_at_once is None or self.pairs_at_once >= self.pairs:
            return jax.vmap(function)(*stacked)
        return jax.lax.map(lambda pair: function(*pair), stacked, batch_size=self.pairs_at_once)

    def drawn(self, key: PRNGKeyArray, meta: PyTree) -> PyTree:
        """One perturbation."""
        return jax.tree.map(lambda draw: self.sigma * draw, drawn_like(key, meta))

    def follow(self, window: Window, meta: PyTree, states: PyTree, noise: PyTree) -> Followed:
        """Run a pair, whose states are stacked, through a window."""

        def particle(sign, state):
            return window.follow(add(meta, noise, sign), state)._replace(info=None)

        both = jax.vmap(particle)(jnp.array([1.0, -1.0]), states)
        # A perturbation below the precision of meta says nothing about the slope.
        moves = differ(add(meta, noise, 1), add(meta, noise, -1))
        return both._replace(loss=jnp.where(moves, both.loss, jnp.nan))

    def gradient(
        self, losses: Float[Array, "pairs 2"], noise: PyTree
    ) -> tuple[Scalar, list[Array | None]]:
        """Loss and estimate, as means over the pairs whose losses are finite; NaN if none is."""
        plus, minus = widened(losses[:, 0]), widened(losses[:, 1])
        slopes, means = (plus - minus) / (2 * self.sigma**2), (plus + minus) / 2
        usable = jnp.isfinite(slopes) & jnp.isfinite(means)
        count = jnp.sum(usable.astype(means.dtype))
        loss = jnp.sum(jnp.where(usable, means, 0)) / count
        slopes = jnp.where(usable, slopes, 0) / count

        def sum_of(leaf: Array) -> Array:
            wide = widened(leaf)
            return jnp.tensordot(slopes.astype(wide.dtype), wide, 1).astype(leaf.dtype)

        return loss, [sum_of(leaf) for leaf in jax.tree.leaves(noise)]


class CarriedPairs(AntitheticPairs):
    """Pairs whose inner states go on, each with its own perturbation."""

    @abc.abstractmethod
    def perturb(
        self, held: PyTree, drawn: PyTree, begins: Bool[Array, ""]
    ) -> tuple[PyTree, PyTree]:
        """The perturbation of a window, and the perturbation that its losses are credited to.

        Args:
            held: The perturbation that the losses of the window before were credited to.
            drawn: A new perturbation.
            begins: Whether this window is the first of its run.
        """

    def begin(self, state: PyTree, meta: PyTree) -> Particles:
        """All particles at the same inner state, without perturbations."""
        stacked = lambda leaf: jnp.broadcast_to(leaf, (self.pairs, 2, *leaf.shape))
        noise = lambda leaf: jnp.zeros((self.pairs, *jnp.shape(leaf)), jnp.result_type(leaf))
        return Particles(jax.tree.map(stacked, state), jax.tree.map(noise, meta))

    def estimate(self, window: Window, meta: PyTree, key: PRNGKeyArray) -> WindowResult:
        """Losses of every pair, credited to its perturbations."""

        def pair(states: PyTree, noise: PyTree, key: PRNGKeyArray):
            applied, credited = self.perturb(noise, self.drawn(key, meta), window.begins)
            return self.follow(window, meta, states, applied), credited

        keys = jax.random.split(key, self.pairs)
        both, noise = self.each_pair(pair, *window.run.state, keys)
        loss, gradient = self.gradient(both.loss, noise)
        metrics = mean_of_finite(both.metrics, both.finite)
        alive = jnp.any(jnp.all(both.finite, axis=1))
        followed = Followed(loss, metrics, Particles(both.state, noise), None, alive)
        return WindowResult(followed, gradient, jnp.sum(~both.finite, dtype=jnp.int32))


def mean_of_finite(metrics: PyTree, finite: Bool[Array, "pairs 2"]) -> PyTree:
    """The metrics of a run: means over its particles that are finite."""

    def mean(leaf: Array) -> Array:
        leaf = leaf if is_floating(leaf) else leaf.astype(jnp.result_type(float))
        mask = finite.reshape(*finite.shape, *[1] * (leaf.ndim - finite.ndim))
        total = jnp.sum(jnp.where(mask, widened(leaf), 0), axis=(0, 1))
        return (total / jnp.sum(finite).astype(total.dtype)).astype(leaf.dtype)

    return jax.tree.map(mean, metrics)
