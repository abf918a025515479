"""Each recipe's value and meta-gradient in float64, against its formula written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from quick import without
from test_recipes import assert_close, result, task_mean

import innerloop as il

WAYS, WIDTH, RATE = 2, 4, 0.3
MODEL = il.models.mlp([3, WIDTH, WAYS], activation=jnp.tanh)
FEATURES = il.models.mlp_features([3, WIDTH], activation=jnp.tanh)
FILM = il.models.film(FEATURES, WIDTH, il.models.mlp([WIDTH, WAYS]), context=3)
LOSS = il.models.cross_entropy


def scores_of(params, x):
    """MODEL, written out."""
    (layer,), head = params["body"], params["head"]
    hidden = jnp.tanh(x @ layer["weights"] + layer["bias"][None, :])
    return hidden @ head["weights"] + head["bias"][None, :]


def embed(params, x):
    """FEATURES, written out."""
    (layer,) = params
    return jnp.tanh(x @ layer["weights"] + layer["bias"][None, :])


def entropy(scores, batch):
    """Mean cross-entropy."""
    log_p = scores - jax.scipy.special.logsumexp(scores, axis=1, keepdims=True)
    return -jnp.mean(jnp.sum(log_p * jnp.eye(WAYS)[batch.targets], axis=1))


def fit(params, batch):
    return entropy(scores_of(params, batch.inputs), batch)


def descended(loss, start, rates):
    """Every parameter array after one step per entry of `rates`."""
    points = [start]
    for rate in rates:
        gradient = jax.grad(loss)(points[-1])
        rate = rate if isinstance(rate, dict | list) else jax.tree.map(lambda _: rate, gradient)  # noqa: B023
        points.append(jax.tree.map(lambda p, r, g: p - r * g, points[-1], rate, gradient))
    return points


def meta_sgd(meta, support, query):
    *_, last = descended(lambda p: fit(p, support), meta["start"], [meta["rates"]] * 2)
    return fit(last, query)


def maml_plus_plus(meta, support, query):
    rates = [jax.tree.map(lambda r, t=t: r[t], meta["rates"]) for t in range(2)]
    points = descended(lambda p: fit(p, support), meta["start"], rates)
    return (fit(points[1], query) + fit(points[2], query)) / 2


def partly(name):
    def loss(meta, support, query):
        whole = lambda part: {**meta, name: part}
        *_, last = descended(lambda p: fit(whole(p), support), meta[name], [RATE] * 2)
        return fit(whole(last), query)

    return loss


def cavia(meta, support, query):
    def scores(context, batch):
        film = context @ meta["film"]["weights"] + meta["film"]["bias"]
        hidden = embed(meta["body"], batch.inputs) * (1 + film[None, :WIDTH]) + film[None, WIDTH:]
        return hidden @ meta["head"]["head"]["weights"] + meta["head"]["head"]["bias"][None, :]

    at = lambda batch: lambda context: entropy(scores(context, batch), batch)
    *_, last = descended(at(support), jnp.zeros(3), [RATE] * 2)
    return at(query)(last)


def protonet(meta, support, query):
    x, z = embed(meta, support.inputs), embed(meta, query.inputs)
    means = [jnp.mean(x[support.targets == k], axis=0) for k in range(WAYS)]
    distances = [jnp.sum((z - mean[None, :]) ** 2, axis=1) for mean in means]
    return entropy(-jnp.stack(distances, axis=1), query)


def matching(meta, support, query):
    unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
    x, z = (unit(embed(meta["features"], batch.inputs)) for batch in (support, query))
    weight = jnp.exp(jnp.exp(meta["log_scale"]) * (z @ x.T))
    share = weight @ jnp.eye(WAYS)[support.targets] / weight.sum(axis=1, keepdims=True)
    return entropy(jnp.log(share), query)


def nearest_neighbour(meta, support, query):
    gaps = jnp.mean((query.inputs[:, None] - support.inputs[None]) ** 2, axis=2)
    nearest = [jnp.min(gaps[:, support.targets == k], axis=1) for k in range(WAYS)]
    return entropy(-jnp.exp(meta["sharpness"]) * jnp.stack(nearest, axis=1), query)


def with_weights(solved):
    def loss(meta, support, query):
        x, z = (embed(meta["features"], batch.inputs) for batch in (support, query))
        weights = solved(x, jnp.eye(WAYS)[support.targets], jnp.exp(meta["log_strength"]))
        return entropy(jnp.exp(meta["log_scale"]) * z @ weights + meta["offset"], query)

    return loss


def ridge(x, y, strength):
    return jnp.linalg.solve(x.T @ x + strength * jnp.eye(WIDTH), x.T @ y)


def newton(row_loss):
    """The convex problem by Newton steps that are unrolled, where the head solves implicitly."""

    def solved(x, y, strength):
        def objective(flat):
            weights = flat.reshape(WIDTH, WAYS)
            return jnp.sum(row_loss(x @ weights, y)) + strength / 2 * jnp.sum(flat**2)

        flat = jnp.zeros(WIDTH * WAYS)
        for _ in range(12):
            flat -= jnp.linalg.solve(jax.hessian(objective)(flat), jax.grad(objective)(flat))
        return flat.reshape(WIDTH, WAYS)

    return solved


def logistic_rows(scores, y):
    return jax.scipy.special.logsumexp(scores, axis=1) - jnp.sum(scores * y, axis=1)


def hinge_rows(scores, y):
    return jnp.sum(jnp.maximum(0, 1 - (2 * y - 1) * scores) ** 2, axis=1) / 2


def cnp(meta, support, query):
    x, z = (embed(meta["features"], batch.inputs) for batch in (support, query))
    h = scores_of(meta["encoder"], x)
    r = [jnp.mean(h[support.targets == k], axis=0) for k in range(WAYS)]
    known = jnp.tile(jnp.concatenate(r)[None, :], (len(z), 1))
    return entropy(scores_of(meta["decoder"], jnp.concatenate([z, known], axis=1)), query)


CNP = (
    il.models.mlp([WIDTH, 5, 3], activation=jnp.tanh),
    il.models.mlp([WIDTH + 3 * WAYS, 5, WAYS], activation=jnp.tanh),
)
BY_HAND = {
    "meta_sgd": (il.recipes.meta_sgd(MODEL, LOSS, RATE, 2), meta_sgd),
    "maml_plus_plus": (il.recipes.maml_plus_plus(MODEL, LOSS, RATE, 2), maml_plus_plus),
    "anil": (il.recipes.anil(MODEL, LOSS, RATE, 2), partly("head")),
    "boil": (il.recipes.boil(MODEL, LOSS, RATE, 2), partly("body")),
    "cavia": (il.recipes.cavia(FILM, LOSS, RATE, 2), cavia),
    "protonet": (il.recipes.protonet(FEATURES, LOSS, WAYS), protonet),
    "matching": (il.recipes.matching(FEATURES, LOSS, WAYS), matching),
    "r2d2": (il.recipes.r2d2(FEATURES, LOSS, WAYS, 0.5), with_weights(ridge)),
    "logistic_head": (
        il.recipes.logistic_head(FEATURES, LOSS, WAYS, 0.5),
        with_weights(newton(logistic_rows)),
    ),
    "svm_head": (il.recipes.svm_head(FEATURES, LOSS, WAYS, 0.5), with_weights(newton(hinge_rows))),
    "cnp": (il.recipes.cnp(FEATURES, *CNP, LOSS, WAYS), cnp),
    "nearest_neighbour": (il.recipes.nearest_neighbour(LOSS, WAYS), nearest_neighbour),
    "pretrain_finetune": (
        il.recipes.pretrain_finetune(MODEL, LOSS),
        lambda meta, _, query: fit(meta, query),
    ),
}


@pytest.fixture
def episodes(x64):
    """Two tasks of six support and eight query rows, both classes in each, in another order."""
    rng = np.random.default_rng(0)

    def rows(number):
        targets = np.stack([rng.permutation(np.arange(number) % WAYS) for _ in range(2)])
        return il.Examples(jnp.asarray(rng.normal(size=(2, number, 3))), jnp.asarray(targets))

    return il.Episode(rows(6), rows(8))


def one_by_one(f, meta, episodes):
    """The mean over tasks, without vmap: what is written by hand selects rows by their class."""
    tasks = [jax.tree.map(lambda leaf, i=i: leaf[i], episodes) for i in range(2)]
    results = [f(meta, task.support, task.query) for task in tasks]
    return jax.tree.map(lambda *leaves: sum(leaves) / 2, *results)


@pytest.mark.parametrize("name", without({"logistic_head", "svm_head"}, BY_HAND))
def test_meta_gradient_is_that_of_the_formula(name, episodes):
    recipe, written = BY_HAND[name]
    meta = recipe.init_meta(jax.random.key(3))
    value, grads = result(recipe, meta, episodes)
    expected_value, expected = one_by_one(jax.value_and_grad(written), meta, episodes)
    assert_close(value, expected_value)
    assert_close(grads, expected, rtol=1e-7)


def test_reptile_is_the_way_back_from_what_adam_reaches(episodes):
    recipe = il.recipes.reptile(MODEL, LOSS, RATE, 2)
    meta = recipe.init_meta(jax.random.key(3))

    def way(meta, support, query):
        optimizer, params = optax.adam(RATE, b1=0), meta
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(jax.grad(fit)(params, support), state)
            params = optax.apply_updates(params, updates)
        return fit(params, query), jax.tree.map(jnp.subtract, meta, params)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = task_mean(way, meta, episodes)
    assert_close(result(recipe, meta, episodes), expected)


@pytest.mark.parametrize("damping", [0.0, 22.0])
def test_imaml_solves_with_the_hessian(episodes, damping):
    """Where its steps lead: (H + (strength + damping) I) v = slope, and strength v."""
    strength, steps = 2.0, 400
    recipe = il.recipes.imaml(MODEL, LOSS, 0.1, steps, strength, solver_steps=60, damping=damping)
    meta = recipe.init_meta(jax.random.key(3))
    flat_meta, unflat = ravel_pytree(meta)

    def written(support, query):
        inner = lambda flat: (
            fit(unflat(flat), support) + strength / 2 * jnp.sum((flat - flat_meta) ** 2)
        )
        theta = jax.lax.fori_loop(
            0, steps, lambda _, theta: theta - 0.1 * jax.grad(inner)(theta), flat_meta
        )
        slope = jax.grad(lambda flat: fit(unflat(flat), query))(theta)
        matrix = jax.hessian(inner)(theta) + damping * jnp.eye(len(theta))
        return unflat(strength * jnp.linalg.solve(matrix, slope))

    _, grads = result(recipe, meta, episodes)
    expected = jax.jit(jax.vmap(written))(episodes.support, episodes.query)
    assert_close(grads, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), expected), rtol=1e-5)


def test_imaml_is_damped_where_the_support_loss_curves_down():
    """Here by as much as the pull to the initialisation curves up, so that nothing is solved."""
    line = lambda params, inputs, key, mask: inputs * params["x"][None, :]
    model = il.models.Model(lambda key: {"x": jnp.array([0.3])}, line, "none")
    downwards = lambda predictions, batch: (-jnp.mean(predictions**2), {})
    rows = il.Examples(jnp.ones((1, 1)), jnp.zeros((1, 1)))
    episodes = jax.tree.map(lambda leaf: leaf[None], il.Episode(rows, rows))

    def gradient(**damping):
        recipe = il.recipes.imaml(model, downwards, rate=0.01, strength=2.0, **damping)
        return result(recipe, recipe.init_meta(jax.random.key(0)), episodes)[1]["x"]

    assert np.isfinite(gradient()) and gradient() < 0
    assert np.isnan(gradient(damping=0.0))


def test_a_classifier_is_pretrained_on_all_classes_and_tested_with_a_new_head(episodes):
    recipe = il.recipes.pretrain_classifier(FEATURES, WIDTH, 7, WAYS, LOSS, RATE, steps=2)
    meta = recipe.init_meta(jax.random.key(3))
    assert meta["head"]["weights"].shape == (WIDTH, 7)
    task = jax.tree.map(lambda leaf: leaf[0], episodes)

    def head_fit(head, batch):
        x = embed(meta["body"], batch.inputs)
        return entropy(x @ head["weights"] + head["bias"][None, :], batch)

    zeros = {"weights": jnp.zeros((WIDTH, WAYS)), "bias": jnp.zeros(WAYS)}
    *_, head = descended(lambda head: head_fit(head, task.support), zeros, [RATE] * 2)
    params, _ = il.adapt(
        *(recipe.learner.problem, recipe.learner.adaptation),
        *(meta, task.support, jax.random.key(0)),
    )
    assert_close(params, head)
    scores = recipe.predict(params, meta, task.query, jax.random.key(0))
    assert_close(entropy(scores, task.query), head_fit(head, task.query))


@pytest.mark.parametrize(
    "recipe", [il.recipes.r2d2(FEATURES, il.models.mean_squared_error)], ids=["r2d2"]
)
def test_regression_by_a_head(recipe, episodes):
    real = jax.tree.map(lambda leaf: leaf, episodes)
    targets = lambda batch: jnp.sin(batch.inputs[..., :1])
    real = il.Episode(
        *(il.Examples(batch.inputs, targets(batch)) for batch in (episodes.support, episodes.query))
    )
    meta = recipe.init_meta(jax.random.key(3))

    def written(meta, support, query):
        x, z = (embed(meta["features"], batch.inputs) for batch in (support, query))
        weights = ridge(x, support.targets, jnp.exp(meta["log_strength"]))
        out = jnp.exp(meta["log_scale"]) * z @ weights + meta["offset"]
        return jnp.mean((out - query.targets) ** 2)

    expected = one_by_one(jax.value_and_grad(written), meta, real)
    assert_close(result(recipe, meta, real), expected)
