"""`check` says nothing of clean problems, and of what looks like a fault and is none."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from checking import KEY, LEARN, META, checked, episodes, fit, inner, outer, start

import innerloop as il
from innerloop.diagnostics import check
from innerloop.lab.experiments.digits import Digits
from innerloop.lab.experiments.sinusoid import Sinusoid


def experiment(kind):
    made = kind(batch=3)
    estimator, meta = made.parts().estimator, made.init_meta(jax.random.key(0))
    return estimator, meta, estimator.tasks.sample(jax.random.key(1), 3)


def recipe_on_sinusoids(make, **options):
    recipe = make(il.models.mlp([1, 10, 1]), il.models.mean_squared_error, 0.01, 2, **options)
    return (
        recipe,
        recipe.init_meta(jax.random.key(0)),
        il.tasks.SinusoidTasks(5, 5).sample(jax.random.key(1), 3),
    )


def small_transformer():
    model = il.models.transformer(vocabulary=7, width=8, depth=1, heads=2, length=6)
    recipe = il.recipes.maml(model, il.models.cross_entropy, 0.01, 1)
    tokens = jax.random.randint(jax.random.key(1), (3, 4, 2, 7), 0, 7)
    half = lambda t: il.Examples(t[..., :-1], t[..., 1:])
    return (
        recipe,
        recipe.init_meta(jax.random.key(0)),
        il.Episode(*map(half, (tokens[:, :, 0], tokens[:, :, 1]))),
    )


def parts_of(problem, learn, gradient=None):
    return il.recipes.Recipe(problem, learn, gradient, None), META, episodes()


CLEAN = {
    "sinusoid": lambda: experiment(Sinusoid),
    "digits": lambda: experiment(Digits),
    "maml": lambda: recipe_on_sinusoids(il.recipes.maml),
    "fomaml": lambda: recipe_on_sinusoids(il.recipes.fomaml),
    "transformer": small_transformer,
    "learned rate": lambda: parts_of(
        il.Problem(start, inner, outer),
        il.GradientDescent(
            lambda meta: optax.adam(0.05 * jnp.exp(meta["scale"]), eps_root=1e-8), 12
        ),
    ),
    "mini-batches": lambda: parts_of(il.Problem(start, inner, outer), il.MiniBatches(LEARN, 2)),
    "minimise": lambda: parts_of(
        il.gradients.proximal(il.Problem(start, inner, outer), 1.0),
        il.Minimise(optx.BFGS(1e-4, 1e-4)),
    ),
    "implicit": lambda: parts_of(
        il.gradients.proximal(il.Problem(start, inner, outer), 1.0),
        il.GradientDescent(optax.sgd(0.1), 60),
        il.Implicit(),
    ),
    "procedure": lambda: parts_of(
        il.Problem(None, None, outer),
        il.Procedure(
            lambda meta, support, key: meta["w"] + jnp.exp(meta["scale"]) * support.targets[0]
        ),
    ),
    "evolution": lambda: parts_of(
        il.Problem(start, inner, outer), LEARN, il.EvolutionStrategies(4, 0.1)
    ),
}


def kinked(params, meta, batch, key):
    """Kinks just where it starts: dead rectifiers, and the distance to the start."""
    hidden = jax.nn.relu(batch.inputs.at[0].set(0.0) @ jnp.diag(params))
    away = jnp.sum(jnp.abs(params - meta["w"]))
    return inner(params, meta, batch, key) + jnp.mean(hidden) + away


def half_precision(params, meta, batch, key):
    predictions = batch.inputs.astype(jnp.bfloat16) @ params.astype(jnp.bfloat16)
    error = jnp.mean((predictions.astype(jnp.float32) - batch.targets) ** 2)
    return error + inner(params, meta, batch, key)


def single_precision_only(params, meta, batch, key):
    total = jax.lax.fori_loop(
        0, 3, lambda i, a: a + inner(params, meta, batch, key), jnp.zeros((), jnp.float32)
    )
    return jax.lax.cond(total > 1e9, lambda: jnp.float32(0), lambda: total / 3)


def stable_logsumexp(params, meta, batch, key):
    scores = batch.inputs @ params
    top = jax.lax.stop_gradient(jnp.max(scores))
    return jnp.log(jnp.sum(jnp.exp(scores - top))) + top + jnp.exp(meta["scale"])


@jax.custom_jvp
def newton_root(a):
    return jax.lax.while_loop(lambda x: jnp.abs(x * x - a) > 1e-6 * a, lambda x: (x + a / x) / 2, a)


newton_root.defjvp(lambda p, t: (newton_root(*p), t[0] / (2 * newton_root(*p))))


def masked_by_infinity(params, meta, batch, key):
    scores = jnp.where(jnp.arange(5) < 3, batch.inputs @ params, -jnp.inf)
    return fit(params, batch) - jax.nn.log_softmax(scores)[0]


def by_matrix_exponential(params, meta, batch, key):
    turn = jax.scipy.linalg.expm(jnp.outer(params, params))
    return inner(turn @ params, meta, batch, key)


class Model:
    @functools.cached_property
    def signs(self):
        return np.array([1.0, -1.0, 1.0], np.float32)

    def loss(self, params, meta, batch, key):
        return inner(params * self.signs, meta, batch, key)


def categories():
    inputs = jax.random.randint(jax.random.key(1), (3, 10, 3), 0, 2).astype(jnp.float32)
    rows = il.Examples(inputs, jnp.sum(inputs, -1))
    return il.Episode(
        *(
            jax.tree.map(lambda leaf, part=part: leaf[:, part], rows)
            for part in (slice(5), slice(5, 10))
        )
    )


def padded():
    one = episodes()
    hole = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), (one.support, one.query))
    return il.Episode(*hole, jnp.array([1.0, 0.0, 1.0]))


INNOCENT = {
    "kinks": {"inner": kinked},
    "half precision": {"inner": half_precision},
    "single precision only": {"inner": single_precision_only},
    "stop_gradient without effect": {"outer": stable_logsumexp},
    "loop under a rule": {"inner": lambda p, m, b, k: inner(p, m, b, k) + newton_root(1 + p @ p)},
    "mask of infinities": {"outer": masked_by_infinity},
    "library that rounds": {"outer": by_matrix_exponential},
    "cached property": {"inner": Model().loss},
    "categories": {"data": categories()},
    "padded task": {"data": padded()},
}


@pytest.mark.parametrize("given", INNOCENT.values(), ids=INNOCENT)
def test_what_looks_like_a_fault_and_is_none_is_let_through(given):
    report = checked(**given)
    assert not report, str(report)


def test_a_check_that_cannot_be_made_is_named():
    assert str(checked(inner=half_precision)) == (
        "No findings.\nnot checked: finite differences, since "
        + re.search(
            r"test_check_clean.py:\d+ \(half_precision\)", str(checked(inner=half_precision))
        )[0]
        + " computes in bfloat16"
    )
    assert checked(inner=single_precision_only).left_out == (
        "finite differences, since the losses cannot be differentiated in float64",
    )


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            make,
            id=name,
            marks=[pytest.mark.full] * (name in ("sinusoid", "digits", "transformer")),
        )
        for name, make in CLEAN.items()
    ],
)
def test_nothing_is_said_of_a_clean_problem(make):
    recipe, meta, data = make()
    report = check(recipe.problem, recipe.adaptation, meta, data, KEY, recipe.gradient)
    assert not report, str(report)
    assert str(report) == "No findings."


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_inputs_are_searched_for_rows_that_occur_twice(dtype):
    size = lambda batch: jnp.abs(batch.inputs[..., 0]).astype("float32")
    loss = lambda params, meta, batch, key: jnp.mean((params * size(batch) - batch.targets) ** 2)
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)

    def rows(seed):
        a, b, c = np.random.default_rng(seed).normal(size=(3, 2, 4))
        return il.Examples((a + 1j * b)[..., None].astype(dtype), c.astype("float32"))

    found = lambda support, query: check(
        problem, LEARN, jnp.ones((), "float32"), il.Episode(support, query), KEY, run=False
    )
    assert not any("share rows" in each.problem for each in found(rows(0), rows(1)).findings)
    assert any("share rows" in each.problem for each in found(rows(0), rows(0)).findings)


class InALoop(il.extend.Adaptation):
    """Each step takes three steps of its own, in a loop whose values cannot leave it."""

    steps: int = 2
    origin: il.extend.Origin = eqx.field(default=il.extend.Origin.STEPS, static=True)

    def init(self, problem, meta, support, key):
        return problem.init(meta, support, key)

    def step(self, problem, meta, support, state, key, inner_gradient):
        of = inner_gradient(lambda *given: (problem.inner_loss(*given), None))

        def descend(params, _):
            return params - 0.1 * of(params, meta, support, key)[1], None

        return jax.lax.scan(descend, state, length=3)[0], None

    def params(self, state):
        return state


def test_inner_gradients_in_a_loop_of_the_adaptation():
    loss = lambda params, meta, batch, key: il.models.mean_squared_error(
        batch.inputs @ params, batch
    )
    inner_loss = lambda *given: loss(*given)[0]
    problem = il.Problem(lambda meta, support, key: meta, inner_loss, loss)

    def rows(seed):
        inputs, targets = jax.random.split(jax.random.key(seed))
        mask = jnp.arange(12).reshape(3, 4) % 4 < 3
        shapes = jax.random.normal(inputs, (3, 4, 2)), jax.random.normal(targets, (3, 4))
        return il.Examples(*shapes, mask)

    report = check(problem, InALoop(), jnp.ones(2), il.Episode(rows(0), rows(1)), KEY)
    assert report.findings == () and report.left_out == ()
