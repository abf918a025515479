"""`check` names each planted fault, with its place, and says nothing of clean problems."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import innerloop as il
from innerloop.diagnostics import Severity, check
from innerloop.experiments.digits import Digits
from innerloop.experiments.sinusoid import Sinusoid

KEY = jax.random.key(0)
META = {"w": jnp.array([0.5, -1.0, 0.2]), "scale": jnp.float32(0.1)}


def episodes(tasks=3, rows=5):
    def half(key):
        x = jax.random.normal(key, (tasks, rows, 3))
        return il.Examples(x, jnp.sin(3 * x[..., 0]))

    return il.Episode(*map(half, jax.random.split(jax.random.key(1))))


def fit(params, batch):
    return jnp.mean((batch.inputs @ params - batch.targets) ** 2)


def inner(params, meta, batch, key):
    return fit(params, batch) + jnp.exp(meta["scale"]) * jnp.sum(params**2)


def outer(params, meta, batch, key):
    return fit(params, batch)


def start(meta, support, key):
    return meta["w"]


LEARN = il.GradientDescent(optax.sgd(0.1), 2)


def checked(init=start, inner=inner, outer=outer, learn=LEARN, meta=META, data=None, **options):
    problem = il.Problem(init, inner, outer)
    with jax.numpy_dtype_promotion("standard"):
        return check(problem, learn, meta, data or episodes(), KEY, **options)


# --- planted faults -----------------------------------------------------------------------------


def stopped(params, meta, batch, key):
    return fit(params, batch) + jax.lax.stop_gradient(jnp.exp(meta["scale"])) * jnp.sum(params**2)


def half_stopped(params, meta, batch, key):
    return fit(jax.lax.stop_gradient(params), batch) + inner(params, meta, batch, key)


@jax.custom_vjp
def energy(x):
    return jnp.sum(x**3)


def _slope(slope, bar):
    return (bar * slope,)


energy.defvjp(lambda x: (jnp.sum(x**3), jax.lax.stop_gradient(3 * x**2)), _slope)


@jax.custom_vjp
def host_energy(x):
    return jnp.sum(x**3)


def _host_slope(x, bar):
    slope = jax.pure_callback(
        lambda x: np.asarray(3 * x**2), jax.ShapeDtypeStruct(x.shape, x.dtype), x
    )
    return (bar * slope,)


host_energy.defvjp(lambda x: (jnp.sum(x**3), x), _host_slope)


def with_energy(function):
    return lambda params, meta, batch, key: inner(params, meta, batch, key) + function(params)


def called_back(params, meta, batch, key):
    shape = jax.ShapeDtypeStruct((), params.dtype)
    penalty = jax.pure_callback(lambda x: np.sum(x**2, dtype=x.dtype), shape, params)
    return inner(params, meta, batch, key) + penalty


def looped(params, meta, batch, key):
    halve = lambda x: x / 2
    return inner(params, meta, batch, key) + jax.lax.while_loop(
        lambda x: x > 1.0, halve, jnp.sum(params**2)
    )


def dead_unit(params, meta, batch, key):
    """The last parameter has a gradient of zero."""
    return inner(params * jnp.array([1.0, 1.0, 0.0]), meta, batch, key)


def with_norm(params, meta, batch, key):
    return inner(params, meta, batch, key) + jnp.linalg.norm(params - meta["w"])


def host_random(params, meta, batch, key):
    return inner(params, meta, batch, key) * np.random.default_rng().uniform(0.5, 1.5)


def drawn_by_a_callback(params, meta, batch, key):
    shape = jax.ShapeDtypeStruct((), params.dtype)
    noise = jax.pure_callback(lambda: np.float32(np.random.default_rng().normal()), shape)
    return outer(params, meta, batch, key) * (1 + noise)


history: list = []


def remembering(params, meta, batch, key):
    loss = inner(params, meta, batch, key)
    history.append(loss)
    return loss


def counting():
    calls = [0]

    def loss(params, meta, batch, key):
        calls[0] += 1
        return inner(params, meta, batch, key) * calls[0]

    return loss


def overlapping():
    one = episodes()
    inputs = one.query.inputs.at[:, 0].set(one.support.inputs[:, 2])
    return il.Episode(one.support, il.Examples(inputs, one.query.targets))


def nearest(meta, support, key):
    best = jnp.argmax(support.inputs @ meta["w"])
    return support.inputs[best] * jnp.exp(meta["scale"])


def in_half(params, meta, batch, key):
    scaled = (1000 * params).astype(jnp.float16)
    return outer(params, meta, batch, key) + 1e-9 * jnp.sum(scaled**2).astype(jnp.float32)


def biased_start(meta, support, key):
    return jnp.round(meta["w"])


def ordered(params, meta, batch, key):
    rank = jnp.argsort(params)
    return outer(params, meta, batch, key) + params @ rank.astype(params.dtype)


UNREAD = {**META, "idle": jnp.ones(2)}
ADAM = il.GradientDescent(optax.adam(0.1), 2)
ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

FAULTS = {
    "stop_gradient": ({"inner": stopped}, ERROR, r"\['scale'\].*test_check.py:\d+ \(stopped\)"),
    "stop_gradient in part": (
        {"inner": half_stopped},
        ERROR,
        r"gradient of inner_loss.*stop_gradient at test_check.py:\d+ \(half_stopped\)",
    ),
    "custom_vjp, silent": (
        {"inner": with_energy(energy)},
        ERROR,
        r"second derivative of inner_loss.*custom_vjp at test_check.py",
    ),
    "custom_vjp, host": (
        {"inner": with_energy(host_energy)},
        ERROR,
        r"no second derivative.*test_check.py",
    ),
    "pure_callback": ({"inner": called_back}, ERROR, r"pure_callback has no derivative.*called_b"),
    "while_loop": ({"inner": looped}, ERROR, r"while_loop has no reverse.*\(looped\)"),
    "unread leaf": ({"meta": UNREAD}, WARNING, r"nothing reads meta\['idle'\]"),
    "adam": ({"inner": dead_unit, "learn": ADAM}, ERROR, r"not finite.*eps_root=1e-8"),
    "adam elsewhere": ({"learn": ADAM}, WARNING, r"gradient of zero.*eps_root=1e-8"),
    "norm at zero": (
        {"inner": with_norm},
        ERROR,
        r"not finite on 3 of 3.*test_check.py:\d+ \(with_norm\).*root or norm",
    ),
    "diverging rate": (
        {"learn": il.GradientDescent(optax.sgd(2.0), 5)},
        WARNING,
        r"inner loop diverges.*lower inner learning rate",
    ),
    "idle rate": (
        {"learn": il.GradientDescent(optax.sgd(0.0), 2)},
        WARNING,
        r"does not move the parameters",
    ),
    "host random number": (
        {"inner": host_random},
        ERROR,
        r"another function each time.*\(host_random\).*jax.random",
    ),
    "callback random number": (
        {"outer": drawn_by_a_callback, "gradient": il.EvolutionStrategies(2, 0.1)},
        ERROR,
        r"another loss each time",
    ),
    "captured list": ({"inner": remembering}, ERROR, r"inner_loss changes history.*list"),
    "captured counter": ({"inner": counting()}, WARNING, r"inner_loss changes calls"),
    "captured counter, read": ({"inner": counting()}, ERROR, r"another function each time"),
    "overlap": ({"data": overlapping()}, WARNING, r"share rows in 3 of 3 tasks"),
    "early argmax": (
        {"learn": il.Procedure(nearest)},
        ERROR,
        r"\['w'\].*argmax at test_check.py:\d+ \(nearest\)",
    ),
    "float16 overflow": ({"outer": in_half}, ERROR, r"not finite.*65504.*float16"),
    "rounding": ({"init": biased_start}, ERROR, r"\['w'\].*round at test_check.py"),
    "argsort": ({"outer": ordered}, WARNING, r"sort cuts a way.*\(ordered\)"),
    "not stationary": (
        {"gradient": il.Implicit()},
        WARNING,
        r"inner problem is not solved.*Minimise",
    ),
    "no convergence": (
        {
            "inner": lambda p, m, b, k: inner(p, m, b, k) + jnp.sum(p * m["w"]),
            "learn": il.Minimise(optx.BFGS(1e-12, 1e-12), max_steps=3),
        },
        ERROR,
        r"inner solver did not converge.*cure:  Minimise\(solver, max_steps=1024\)",
    ),
    "estimator": (
        {
            "learn": il.GradientDescent(lambda meta: optax.sgd(0.1 * jnp.exp(meta["scale"])), 400),
            "gradient": il.Reptile(),
        },
        NOTE,
        r"Reptile gives meta\['scale'\] no gradient",
    ),
}


@pytest.mark.parametrize(("given", "severity", "message"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(given, severity, message):
    report = checked(**given)
    found = [f for f in report.findings if re.search(message, str(f), re.DOTALL)]
    assert found, str(report)
    assert found[0].severity is severity
    assert all((f.problem, f.place, f.cause, f.cure) for f in report.findings)


def test_a_detached_graph_names_every_leaf_and_the_place():
    def cut(meta, support, key):
        return jax.lax.stop_gradient(meta["w"])

    only = {"w": META["w"]}
    report = checked(init=cut, inner=outer, meta=only)
    (error,) = report.errors
    assert "meta['w'] is read" in error.problem
    assert "cut)" in error.place


# --- clean problems -----------------------------------------------------------------------------


def experiment(kind):
    parts = kind(batch=3).parts()
    recipe = parts.recipe
    meta = recipe.init_meta(jax.random.key(0))
    return recipe, meta, parts.train.sample(jax.random.key(1), 3)


def recipe_on_sinusoids(make, **options):
    recipe = make(il.mlp([1, 10, 1]), il.mean_squared_error, 0.01, 2, **options)
    return (
        recipe,
        recipe.init_meta(jax.random.key(0)),
        il.SinusoidTasks(5, 5).sample(jax.random.key(1), 3),
    )


def small_transformer():
    model = il.transformer(vocabulary=7, width=8, depth=2, heads=2, length=6)
    recipe = il.maml(model, il.cross_entropy, 0.01, 2)
    tokens = jax.random.randint(jax.random.key(1), (3, 4, 2, 7), 0, 7)
    half = lambda t: il.Examples(t[..., :-1], t[..., 1:])
    return (
        recipe,
        recipe.init_meta(jax.random.key(0)),
        il.Episode(*map(half, (tokens[:, :, 0], tokens[:, :, 1]))),
    )


def parts_of(problem, learn, gradient=None):
    return il.Recipe(problem, learn, gradient, None), META, episodes()


CLEAN = {
    "sinusoid": lambda: experiment(Sinusoid),
    "digits": lambda: experiment(Digits),
    "maml": lambda: recipe_on_sinusoids(il.maml),
    "fomaml": lambda: recipe_on_sinusoids(il.fomaml),
    "transformer": small_transformer,
    "learned rate": lambda: parts_of(
        il.Problem(start, inner, outer),
        il.GradientDescent(
            lambda meta: optax.adam(0.05 * jnp.exp(meta["scale"]), eps_root=1e-8), 12
        ),
    ),
    "mini-batches": lambda: parts_of(il.Problem(start, inner, outer), il.MiniBatches(LEARN, 2)),
    "minimise": lambda: parts_of(
        il.proximal(il.Problem(start, inner, outer), 1.0), il.Minimise(optx.BFGS(1e-4, 1e-4))
    ),
    "implicit": lambda: parts_of(
        il.proximal(il.Problem(start, inner, outer), 1.0),
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


@pytest.mark.parametrize("make", CLEAN.values(), ids=CLEAN)
def test_nothing_is_said_of_a_clean_problem(make):
    recipe, meta, data = make()
    report = check(recipe.problem, recipe.adaptation, meta, data, KEY, recipe.gradient)
    assert not report, str(report)
    assert str(report) == "No findings."


# --- use ----------------------------------------------------------------------------------------


def test_the_cheap_checks_run_nothing():
    def tripwire(x):
        raise AssertionError("was run")

    def wired(params, meta, batch, key):
        jax.debug.callback(tripwire, params)
        return inner(params, meta, batch, key)

    assert not checked(inner=wired, run=False)


def test_errors_can_be_raised():
    with pytest.raises(il.GradientError, match=r"cut off.*\(stopped\).*Write: a way without"):
        checked(inner=stopped).raise_errors()
    checked().raise_errors()


def test_broken_parts_raise_as_they_do_elsewhere():
    with pytest.raises(il.StructureError, match="inner_loss failed"):
        checked(inner=lambda p, m, b, k: p["missing"])
    with pytest.raises(il.GradientError, match="Implicit"):
        checked(learn=il.Minimise(optx.BFGS(1e-6, 1e-6)), gradient=il.Unroll())
    with pytest.raises(il.StructureError, match="task axis"):
        checked(data=il.Episode({"x": jnp.ones((2, 3))}, {"x": jnp.ones((3, 3))}))


# --- before training ----------------------------------------------------------------------------


def trained(inner=inner, meta=META, **options):
    recipe = il.Recipe(
        il.Problem(start, inner, outer),
        LEARN,
        il.Unroll(),
        lambda key: jax.tree.map(jnp.copy, meta),
    )
    tasks = il.IndependentTasks(lambda key: jax.tree.map(lambda leaf: leaf[0], episodes()))
    with jax.numpy_dtype_promotion("standard"):
        return il.fit(recipe, tasks, optimizer=optax.sgd(0.1), steps=2, batch=2, key=KEY, **options)


def test_fit_stops_at_errors_and_warns_of_the_rest():
    with pytest.raises(il.GradientError, match=r"cut off.*\(stopped\)"):
        trained(inner=stopped, check=True)
    with pytest.warns(UserWarning, match=r"nothing reads meta\['idle'\]"):
        trained(meta=UNREAD, check=True)
    trained(inner=stopped)  # unasked, it lets the user's choice stand
    np.testing.assert_array_equal(trained(check=True).meta["w"], trained().meta["w"])


def test_fit_checks_every_kind_of_a_mixture():
    sinusoids = il.SinusoidTasks(3, 3)
    recipes = [il.maml(il.mlp([1, 4, 1]), il.mean_squared_error, rate, 1) for rate in (0.01, 0.02)]
    cut = il.Problem(
        lambda meta, support, key: jax.lax.stop_gradient(meta),
        recipes[1].problem.inner_loss,
        recipes[1].problem.outer_loss,
    )
    problems = (recipes[0].problem, cut)
    kinds = [(p, r.adaptation, sinusoids, 1.0) for p, r in zip(problems, recipes, strict=True)]
    problem, adaptation, tasks = il.mixture(*kinds)
    recipe = il.Recipe(problem, adaptation, il.Unroll(), recipes[0].init_meta)
    options = {"optimizer": optax.sgd(0.1), "steps": 1, "batch": 2, "key": KEY}
    with pytest.raises(il.GradientError, match=r"cut off.*stop_gradient at test_check.py"):
        il.fit(recipe, tasks, check=True, **options)
