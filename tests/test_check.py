"""`check` names each planted fault, with its place."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from checking import KEY, LEARN, META, checked, episodes, fit, inner, outer, start

import innerloop as il
from innerloop.diagnostics import Severity
from innerloop.trees import element

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
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    slope = jax.pure_callback(lambda x: np.asarray(3 * x**2), shape, x, vmap_method="sequential")
    return (bar * slope,)


host_energy.defvjp(lambda x: (jnp.sum(x**3), x), _host_slope)


def with_energy(function):
    return lambda params, meta, batch, key: inner(params, meta, batch, key) + function(params)


def called_back(params, meta, batch, key):
    shape = jax.ShapeDtypeStruct((), params.dtype)
    square = lambda x: np.sum(x**2, dtype=x.dtype)
    penalty = jax.pure_callback(square, shape, params, vmap_method="sequential")
    return inner(params, meta, batch, key) + penalty


def looped(params, meta, batch, key):
    halve = lambda x: x / 2
    return inner(params, meta, batch, key) + jax.lax.while_loop(
        lambda x: x > 1.0, halve, jnp.sum(params**2)
    )


def dead_unit(params, meta, batch, key):
    """The last parameter has a gradient of zero."""
    return inner(params * jnp.array([1.0, 1.0, 0.0]), meta, batch, key)


def labelled_from_one(params, meta, batch, key):
    """Three classes, and the labels 1 ... 3, in a loss that does not refuse them."""
    logits, labels = jnp.stack([params] * 3), jnp.array([1, 2, 3])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def with_norm(params, meta, batch, key):
    return inner(params, meta, batch, key) + jnp.linalg.norm(params - meta["w"])


def host_random(params, meta, batch, key):
    return inner(params, meta, batch, key) * np.random.default_rng().uniform(0.5, 1.5)


@jax.jit
def jitted_random(params, meta, batch, key):
    return host_random(params, meta, batch, key)


def drawn_by_a_callback(params, meta, batch, key):
    shape = jax.ShapeDtypeStruct((), params.dtype)
    draw = lambda: np.float32(np.random.default_rng().normal())
    noise = jax.pure_callback(draw, shape, vmap_method="sequential")
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


def signed(params, meta, batch, key):
    return outer(params, meta, batch, key) + jnp.sum(jnp.sign(meta["scale"]))


def branching(params, meta, batch, key):
    return inner(params, meta, batch, key) * (2.0 if params[0] > 0 else 1.0)


def with_a_hole():
    one = episodes()
    return il.Episode(
        one.support, il.Examples(one.query.inputs.at[2].set(jnp.nan), one.query.targets)
    )


def singular(params, meta, batch, key):
    nothing = jnp.zeros((3, 3)) * params[0]
    return outer(params, meta, batch, key) + jnp.sum(jnp.linalg.solve(nothing, params))


class Recorder:
    def __init__(self):
        self.seen = {"losses": []}

    def loss(self, params, meta, batch, key):
        self.seen["losses"].append(inner(params, meta, batch, key))
        return self.seen["losses"][-1]


def one_episode():
    return element(episodes(), 0)


def copies():
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 3, axis=0), episodes())


UNREAD = {**META, "idle": jnp.ones(2)}
ADAM = il.GradientDescent(optax.adam(0.1), 2)
ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

FAULTS = {
    "a label that is no class": (
        {"inner": labelled_from_one, "outer": labelled_from_one},
        Severity.ERROR,
        r"index outside the array, such as a label.*numpy\.unique",
    ),
    "stop_gradient": ({"inner": stopped}, ERROR, r"\['scale'\].*test_check.py:\d+ \(stopped\)"),
    "stop_gradient in part": (
        {"inner": half_stopped},
        WARNING,
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
    "adam elsewhere": ({"learn": ADAM}, NOTE, r"gradient of zero.*eps_root=1e-8"),
    "norm at zero": (
        {"inner": with_norm},
        ERROR,
        r"not finite on 3 of 3.*test_check.py:\d+ \(with_norm\).*root or norm",
    ),
    "norm at zero in a scan": (
        {"inner": with_norm, "learn": il.GradientDescent(optax.sgd(0.1), 12)},
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
        r"a different function each time.*\(host_random\).*jax.random",
    ),
    "host random number in a jitted function": (
        {"inner": jitted_random},
        ERROR,
        r"a different function each time.*\(host_random\)",
    ),
    "callback random number": (
        {"outer": drawn_by_a_callback, "gradient": il.EvolutionStrategies(2, 0.1)},
        ERROR,
        r"a different loss each time",
    ),
    "captured list": ({"inner": remembering}, ERROR, r"inner_loss changes history.*list"),
    "captured counter": ({"inner": counting()}, WARNING, r"inner_loss changes calls"),
    "captured counter, read": ({"inner": counting()}, ERROR, r"a different function each time"),
    "overlap": ({"data": overlapping()}, WARNING, r"share rows in 3 of 3 tasks"),
    "one task": ({"data": copies()}, WARNING, r"all 3 tasks are the same"),
    "early argmax": (
        {"learn": il.Procedure(nearest)},
        ERROR,
        r"\['w'\].*argmax at test_check.py:\d+ \(nearest\)",
    ),
    "float16 overflow": ({"outer": in_half}, ERROR, r"not finite.*65504.*float16"),
    "nested state": (
        {"inner": Recorder().loss},
        ERROR,
        r"inner_loss changes self.seen\['losses'\]",
    ),
    "sign": ({"outer": signed}, WARNING, r"sign cuts a path.*\(signed\)"),
    "python if": ({"inner": branching}, ERROR, r"cannot be traced.*\(branching\).*jnp.where"),
    "NaN in the data": (
        {"data": with_a_hole()},
        ERROR,
        r"not finite on 1 of 3.*episodes.query.inputs, task 2.*the given values already",
    ),
    "singular system": ({"outer": singular}, ERROR, r"\(singular\).*linear system"),
    "no task axis": ({"data": one_episode()}, WARNING, r"no row axis.*leaf\[None\]"),
    "params unread within": (
        {"inner": lambda p, m, b, k: jnp.sum(m["w"] ** 2)},
        ERROR,
        r"inner_loss does not depend on params",
    ),
    "params unread without": (
        {"outer": lambda p, m, b, k: fit(m["w"], b)},
        ERROR,
        r"outer_loss does not depend on the adapted params.*inner loop has no effect",
    ),
    "rounding": ({"init": biased_start}, ERROR, r"\['w'\].*round at test_check.py"),
    "argsort": ({"outer": ordered}, WARNING, r"sort cuts a path.*\(ordered\)"),
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
        r"Reptile\(\) gives meta\['scale'\] no gradient",
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


@pytest.mark.parametrize(
    ("given", "gradient"),
    [
        ({"outer": looped}, il.EvolutionStrategies(2, 0.1)),
        ({"outer": looped}, il.ForwardMode()),
        ({"outer": called_back}, il.EvolutionStrategies(2, 0.1, chunk=1)),
        ({"inner": with_energy(host_energy)}, il.FirstOrder()),
        ({"inner": with_energy(energy)}, il.FirstOrder()),
        ({"inner": with_energy(energy)}, il.Clipped(il.Clipped(il.FirstOrder(), 1.0), 1.0)),
    ],
)
def test_a_missing_derivative_that_is_not_taken_is_a_note(given, gradient):
    report = checked(**given, gradient=gradient)
    assert report.findings, str(report)
    assert not report.errors, str(report)
    assert not checked(**given, gradient=gradient, run=False).errors


# --- use ----------------------------------------------------------------------------------------


def test_the_cheap_checks_run_nothing():
    def tripwire(x):
        raise AssertionError("was run")

    def wired(params, meta, batch, key):
        jax.debug.callback(tripwire, params)
        return inner(params, meta, batch, key)

    assert not checked(inner=wired, run=False)


def test_it_says_what_it_checks(capsys):
    checked(run=False, report=print)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "captured state"
    assert {"unreached leaves", "overlap"} < set(lines)


def test_errors_can_be_raised():
    with pytest.raises(
        il.errors.GradientError, match=r"cut off.*\(stopped\).*Write: a path without"
    ):
        checked(inner=stopped).raise_errors()
    checked().raise_errors()


def test_broken_parts_raise_as_they_do_elsewhere():
    with pytest.raises(il.errors.StructureError, match="inner_loss failed"):
        checked(inner=lambda p, m, b, k: p["missing"])
    with pytest.raises(il.errors.GradientError, match="Implicit"):
        checked(learn=il.Minimise(optx.BFGS(1e-6, 1e-6)), gradient=il.Unroll())
    with pytest.raises(il.errors.StructureError, match="floating-point"):
        checked(meta={**META, "name": "a"})
    with pytest.raises(il.errors.StructureError, match="task axis"):
        checked(data=il.Episode({"x": jnp.ones((2, 3))}, {"x": jnp.ones((3, 3))}))


# --- before training ----------------------------------------------------------------------------


def trained(inner=inner, meta=META, **options):
    def sample_one(key):
        one = one_episode()
        x = jax.random.normal(key, one.query.inputs.shape)
        return il.Episode(one.support, il.Examples(x, jnp.sin(3 * x[..., 0])))

    tasks = il.tasks.IndependentTasks(sample_one)
    whole = il.WholeTasks(il.Problem(start, inner, outer), LEARN, il.Unroll(), tasks, batch=2)
    with jax.numpy_dtype_promotion("standard"):
        return il.fit(whole, meta, optimizer=optax.sgd(0.1), steps=2, key=KEY, **options)


def test_fit_stops_at_errors_and_warns_of_the_rest():
    with pytest.raises(il.errors.GradientError, match=r"cut off.*\(stopped\)"):
        trained(inner=stopped, check=True)
    with pytest.warns(UserWarning, match=r"nothing reads meta\['idle'\]"):
        trained(meta=UNREAD, check=True)
    trained(inner=stopped)  # unasked, it lets the user's choice stand
    np.testing.assert_array_equal(trained(check=True).meta["w"], trained().meta["w"])


def test_fit_checks_every_part_of_a_weighted_sum():
    sinusoids = il.tasks.SinusoidTasks(3, 3)
    recipes = [
        il.recipes.maml(il.models.mlp([1, 4, 1]), il.models.mean_squared_error, rate, 1)
        for rate in (0.01, 0.02)
    ]
    cut = il.Problem(
        lambda meta, support, key: jax.lax.stop_gradient(meta),
        recipes[1].problem.inner_loss,
        recipes[1].problem.outer_loss,
    )
    parts = (recipes[0], recipes[1]._replace(problem=cut))
    both = il.estimators.WeightedSum(*((part.estimator(sinusoids, 1), 1.0) for part in parts))
    options = {"optimizer": optax.sgd(0.1), "steps": 1, "key": KEY}
    with pytest.raises(il.errors.GradientError, match=r"cut off.*stop_gradient at test_check.py"):
        il.fit(both, recipes[0].init_meta, check=True, **options)
