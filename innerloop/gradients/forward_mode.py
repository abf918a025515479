"""The meta-gradient by forward mode, which carries tangents along with the inner loop."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from innerloop.adaptation import Adaptation
from innerloop.arguments import CheckedModule, at_least, instance, optional
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.fidelity import ESTIMATE, Fidelity, combined
from innerloop.gradients.base import Aux, MetaGradient, TaskObjective, held_state, run_task
from innerloop.gradients.forward import jvp
from innerloop.gradients.reach import detached, require_reach
from innerloop.gradients.surrogate import known_gradient
from innerloop.gradients.unroll import after_steps
from innerloop.problem import Episode, Problem, task_keys
from innerloop.trees import add, cast_like, drawn_like, widened

Slopes = Callable[[Callable[[Array], list[Array]], int], Array]
"""`slopes(direction, n)`: the n derivatives of the meta-objective along `direction(i)`."""


class Directions(CheckedModule):
    """The directions of meta that tangents are carried along, and the gradient made from them."""

    @abc.abstractmethod
    def fidelity(self) -> Fidelity:
        """How far the gradient is from the exact one."""

    @abc.abstractmethod
    def gradient(self, slopes: Slopes, leaves: list[Array], key: PRNGKeyArray) -> list[Array]:
        """The gradient, one array per leaf."""


class Coordinates(Directions):
    """All coordinates of meta, which give the exact gradient."""

    def fidelity(self) -> Fidelity:
        """See `Directions`."""
        return Fidelity("exact", "One tangent per meta-parameter is carried along.")

    def gradient(self, slopes: Slopes, leaves: list[Array], key: PRNGKeyArray) -> list[Array]:
        """See `Directions`."""
        ends = np.cumsum([leaf.size for leaf in leaves])

        def shaped(flat: Array) -> list[Array]:
            parts = zip(jnp.split(flat, ends[:-1]), leaves, strict=True)
            return [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in parts]

        count = int(ends[-1])
        return shaped(slopes(lambda i: shaped(jnp.arange(count, dtype=jnp.int32) == i), count))


class Basis(Directions):
    r"""The span of given directions: the gradient is projected onto it orthogonally.

    $$B^\top (B B^\top)^{-1} B\, \nabla L$$

    Fidelity: biased, by the part of the gradient outside the span.

    Args:
        vectors: A tree like meta with one more leading axis n on every leaf, which holds n linearly
            independent directions.
    """

    vectors: PyTree

    def fidelity(self) -> Fidelity:
        """See `Directions`."""
        return Fidelity("biased", "The part of the gradient outside the given span is dropped.")

    def gradient(self, slopes: Slopes, leaves: list[Array], key: PRNGKeyArray) -> list[Array]:
        """See `Directions`."""
        vectors = jax.tree.leaves(self.vectors)
        shapes = [jnp.shape(v)[1:] for v in vectors]
        counts = {jnp.shape(v)[:1] for v in vectors}
        if shapes != [leaf.shape for leaf in leaves] or len(counts) != 1:
            raise StructureError(
                "the basis does not fit meta",
                got=f"vectors {describe(self.vectors)} for leaves {describe(leaves)}",
                expected="meta with one more leading axis, the same on every leaf",
                write="Basis(jax.tree.map(lambda *v: jnp.stack(v), *directions))",
            )
        vectors = [jnp.asarray(v, leaf.dtype) for v, leaf in zip(vectors, leaves, strict=True)]
        n = counts.pop()[0]
        along = slopes(lambda i: [v[i] for v in vectors], n)
        # LAPACK has no bfloat16.
        wide = along.dtype if jnp.finfo(along.dtype).bits >= 32 else jnp.float32
        flat = [v.reshape(n, -1).astype(wide) for v in vectors]
        gram = jax.tree.reduce(jnp.add, [v @ v.T for v in flat])
        weights = jnp.linalg.solve(gram, along.astype(wide))
        return [jnp.tensordot(weights.astype(v.dtype), v, axes=1) for v in vectors]


class RandomDirections(Directions):
    r"""Random signs $v_i$: the gradient is $\frac{1}{n} \sum_i (v_i \cdot \nabla L)\, v_i$.

    Direction i uses the key `fold_in(task_keys(key).gradient, i)`.

    Fidelity: unbiased, with a variance of about dim(meta)/n times the squared gradient (forward
    gradients: Baydin et al. 2022, arXiv 2202.08587).

    Args:
        count: The number of directions n >= 1.

    Raises:
        StructureError: If `count` is below 1.
    """

    count: int = at_least(1, such_as=16)

    def fidelity(self) -> Fidelity:
        """See `Directions`."""
        return Fidelity(
            "unbiased", f"The gradient is seen along {self.count} random directions.", draws=True
        )

    def gradient(self, slopes: Slopes, leaves: list[Array], key: PRNGKeyArray) -> list[Array]:
        """See `Directions`."""

        def direction(i):
            return drawn_like(jax.random.fold_in(key, i), leaves, jax.random.rademacher)

        weights = slopes(direction, self.count) / self.count

        # Each direction is drawn again, so that none is kept.
        added = lambda total, i: (add(total, widened(direction(i)), weights[i]), None)
        zeros = widened([jnp.zeros_like(leaf) for leaf in leaves])
        total, _ = jax.lax.scan(added, zeros, jnp.arange(self.count, dtype=jnp.int32))
        return cast_like(total, leaves)


class ForwardMode(MetaGradient):
    r"""Derivatives along directions of meta, computed together with the inner loop.

    $$\dot\theta_{t+1} = \frac{\partial \theta_{t+1}}{\partial \theta_t}\, \dot\theta_t
      + \frac{\partial \theta_{t+1}}{\partial \phi}\, v$$

    These forward-mode hypergradients (Franceschi et al. 2017, arXiv 1703.01785) suit problems with
    few meta-parameters and many inner steps.

    Fidelity: that of `directions`. Memory: `chunk` copies of a step's state, for any K. Time: that
    of a forward pass times the number of directions.

    Args:
        directions: `Coordinates()` for the exact gradient, `Basis(vectors)` for its projection, or
            `RandomDirections(n)` for an unbiased estimate.
        chunk: How many directions are carried at a time; None for all at once.

    Raises:
        StructureError: If `directions` is something else, or `chunk` is below 1.
        GradientError: If differentiated twice or in anything but meta, or if no meta-parameter
            reaches the loss.
    """

    directions: Directions = instance(
        Directions,
        what="Coordinates(), Basis(vectors) or RandomDirections(count)",
        such_as="gradients.RandomDirections(16)",
        default=Coordinates(),
    )
    chunk: int | None = optional(at_least(1, such_as=8))

    def fidelity(self, adaptation: Adaptation, problem: Problem | None = None) -> Fidelity:
        """The fidelity of the directions; undefined after a solver."""
        own = self.directions.fidelity()._replace(derivatives=ESTIMATE)
        return after_steps(adaptation) or combined([own, held_state(problem)])

    def objective(self, problem: Problem, adaptation: Adaptation) -> TaskObjective:
        """The meta-objective's value, with the gradient made from directional derivatives."""

        def objective(meta: PyTree, episode: Episode, key: PRNGKeyArray) -> tuple[Scalar, Aux]:
            fixed = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, meta))

            def value(meta):
                loss, aux, _ = run_task(problem, adaptation, meta, episode, key)
                return require_reach(loss, meta, detached), aux

            def slopes(direction, n):
                def slope(i):
                    tangent = jax.tree.unflatten(jax.tree.structure(fixed), direction(i))
                    return jvp(lambda meta: value(meta)[0], fixed, tangent)[1]

                size = min(self.chunk or n, n)
                return jax.lax.map(slope, jnp.arange(n, dtype=jnp.int32), batch_size=size)

            draws = task_keys(key).gradient
            gradient = self.directions.gradient(slopes, jax.tree.leaves(fixed), draws)
            loss, aux = value(fixed)
            return known_gradient("ForwardMode()", loss, gradient, meta), aux

        return objective
