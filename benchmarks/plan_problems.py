"""Eight problems for `plan.py`: small and large arrays, short and long loops, a closed form.

The last three were chosen before any variant of `plan` was measured on them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import innerloop as il


class Case(NamedTuple):
    """What `plan` is asked."""

    problem: il.Problem
    adaptation: il.extend.Adaptation
    meta: Any
    episodes: il.Episode


KEY = jax.random.key(0)


def sinusoid() -> Case:
    """MAML on a 2 x 40 network, 6000 tasks of 10 rows, K = 3."""
    model = il.models.mlp([1, 40, 40, 1])
    recipe = il.recipes.maml(model, il.models.mean_squared_error, 0.01, steps=3)
    return _case(recipe, il.tasks.SinusoidTasks(10, 10).sample(KEY, 6000))


def images() -> Case:
    """MAML on 24 tasks of 5-way 1-shot images, 28 x 28, four layers of 64 filters, K = 2."""
    recipe = il.recipes.maml(il.models.conv4(5, filters=64), il.models.cross_entropy, 0.1, steps=2)

    def rows(key, per_class):
        inputs = jax.random.normal(key, (24, 5 * per_class, 28, 28, 1))
        targets = jnp.tile(jnp.repeat(jnp.arange(5), per_class), (24, 1))
        return il.Examples(inputs, targets)

    return _case(recipe, il.Episode(rows(KEY, 1), rows(jax.random.key(1), 5)))


def tokens() -> Case:
    """MAML on a transformer of 4 blocks x 128, 4 sequences of 128, K = 2."""
    recipe = il.recipes.maml(
        il.models.transformer(256, 128, 4, 4, 128), il.models.cross_entropy, 0.01, steps=2
    )

    def rows(key):
        text = jax.random.randint(key, (4, 1, 129), 0, 256)
        return il.Examples(text[..., :-1], text[..., 1:])

    return _case(recipe, il.Episode(rows(KEY), rows(jax.random.key(1))))


def rates() -> Case:
    """A learned rate, decay and momentum for 256 steps on a 3-layer network, 8 tasks of 64 rows."""
    model = il.models.mlp([16, 64, 64, 1])
    model_loss = il.models.supervised_loss(model, il.models.mean_squared_error)
    start = model.init(KEY)

    def inner_loss(params, meta, batch, key):
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return model_loss(params, meta, batch, key)[0] + jnp.exp(meta["decay"]) * squares

    problem = il.Problem(lambda meta, support, key: start, inner_loss, model_loss)
    learn = il.GradientDescent(
        lambda meta: optax.sgd(jnp.exp(meta["rate"]), jnp.exp(meta["momentum"])), steps=256
    )
    meta = {"rate": jnp.log(0.01), "decay": jnp.log(1e-3), "momentum": jnp.log(0.5)}
    inputs = jax.random.normal(KEY, (8, 64, 16))
    examples = il.Examples(inputs, jnp.sin(jnp.sum(inputs, -1, keepdims=True)))
    return Case(problem, learn, meta, il.Episode(examples, examples))


def ridge() -> Case:
    """Ridge regression in closed form on learned features, 128 tasks of 256 rows, 256 features."""
    model = il.models.mlp([32, 256, 256])

    def features(meta, batch):
        return jnp.tanh(model.apply(meta["features"], batch.inputs, KEY, None))

    def solve(meta, support, key):
        rows = features(meta, support)
        gram = rows.T @ rows + jnp.exp(meta["strength"]) * jnp.eye(256)
        return jnp.linalg.solve(gram, rows.T @ support.targets)

    def outer_loss(params, meta, batch, key):
        return jnp.mean((features(meta, batch) @ params - batch.targets) ** 2)

    meta = {"features": model.init(KEY), "strength": jnp.zeros(())}
    inputs = jax.random.normal(KEY, (128, 256, 32))
    examples = il.Examples(inputs, jnp.sin(jnp.sum(inputs, -1, keepdims=True)))
    problem = il.Problem(None, None, outer_loss)
    return Case(problem, il.Procedure(solve), meta, il.Episode(examples, examples))


def head() -> Case:
    """ANIL: the head alone is adapted, 64 tasks of 50 rows, 256 features, K = 10."""
    model = il.models.mlp([64, 256, 256, 5])
    recipe = il.recipes.anil(model, il.models.cross_entropy, 0.1, steps=10)

    def rows(key):
        inputs = jax.random.normal(key, (64, 50, 64))
        return il.Examples(inputs, jax.random.randint(key, (64, 50), 0, 5))

    return _case(recipe, il.Episode(rows(KEY), rows(jax.random.key(1))))


def adam() -> Case:
    """MAML with Adam as the inner optimizer for 40 steps on a 3-layer network, 16 tasks."""
    model = il.models.mlp([32, 128, 128, 1])
    recipe = il.recipes.maml(model, il.models.mean_squared_error, 0.01, steps=40)
    learn = il.GradientDescent(optax.adam(1e-3, eps_root=1e-8), steps=40)
    inputs = jax.random.normal(KEY, (16, 64, 32))
    examples = il.Examples(inputs, jnp.sin(jnp.sum(inputs, -1, keepdims=True)))
    episodes = il.Episode(examples, examples)
    return Case(recipe.problem, learn, recipe.init_meta(KEY), episodes)


def quadratics() -> Case:
    """One learned rate for each of 32 coordinates, 200 steps on 256 dense quadratics."""

    def inner_loss(params, meta, batch, key):
        return jnp.sum((batch @ (params - 1)) ** 2)

    problem = il.Problem(lambda meta, support, key: jnp.zeros(32), inner_loss, inner_loss)

    def scale_by_meta(meta):
        return optax.stateless(
            lambda updates, params: jax.tree.map(lambda leaf: -jnp.exp(meta) * leaf, updates)
        )

    learn = il.GradientDescent(scale_by_meta, steps=200)
    batch = jax.random.normal(KEY, (256, 32, 32)) / 8
    return Case(problem, learn, jnp.full(32, jnp.log(0.05)), il.Episode(batch, batch))


def _case(recipe: il.recipes.Recipe, episodes: il.Episode) -> Case:
    return Case(recipe.problem, recipe.adaptation, recipe.init_meta(KEY), episodes)


CASES: dict[str, tuple[Callable[[], Case], list[str]]] = {
    "sinusoid": (sinusoid, ["1GiB", "4MiB", "2MiB"]),
    "images": (images, ["1GiB", "24MiB", "16MiB"]),
    "transformer": (tokens, ["1GiB", "128MiB", "80MiB"]),
    "rates": (rates, ["1GiB", "16MiB", "2MiB"]),
    "ridge": (ridge, ["1GiB", "32MiB", "14MiB"]),
    "head": (head, ["1GiB", "16MiB", "4MiB"]),
    "adam": (adam, ["1GiB", "32MiB", "8MiB"]),
    "quadratics": (quadratics, ["1GiB", "8MiB", "3MiB"]),
}
"""Each with three budgets: ample, some, little."""
