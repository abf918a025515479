"""Every cure of a finding is one after which the finding is gone, or counts no more."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from checking import LEARN, META, checked, episodes, inner, outer, start
from quick import without
from test_check import FAULTS, with_energy

import innerloop as il
from innerloop.diagnostics import Severity


@jax.custom_jvp
def energy(x):
    """With a rule that is differentiable itself."""
    return jnp.sum(x**3)


energy.defjvp(
    lambda primals, tangents: (energy(*primals), jnp.sum(3 * primals[0] ** 2 * tangents[0]))
)


@jax.custom_vjp
def read_back(x):
    """With a backward pass that reads its inputs, in jax.numpy."""
    return jnp.sum(x**3)


read_back.defvjp(lambda x: (read_back(x), x), lambda x, bar: (bar * 3 * x**2,))


@jax.custom_jvp
def host_sum(x):
    """A sum of squares on the host, with its derivative."""
    shape = jax.ShapeDtypeStruct((), x.dtype)
    square = lambda x: np.sum(x**2, dtype=x.dtype)
    return jax.pure_callback(square, shape, x, vmap_method="sequential")


host_sum.defjvp(lambda primals, tangents: (host_sum(*primals), 2 * primals[0] @ tangents[0]))


def halved(loop):
    """The inner loss with a sum that is halved thrice."""
    return lambda p, m, b, k: inner(p, m, b, k) + loop(lambda x: x / 2, jnp.sum(p**2))


of_scan = lambda step, x: jax.lax.scan(lambda x, _: (step(x), None), x, None, 3)[0]
of_fori = lambda step, x: jax.lax.fori_loop(0, 3, lambda _, x: step(x), x)


def with_norm(eps):
    return lambda p, m, b, k: inner(p, m, b, k) + jnp.sqrt(jnp.sum((p - m["w"]) ** 2) + eps)


def labelled_from_zero(params, meta, batch, key):
    labels = np.unique([1, 2, 3], return_inverse=True)[1]
    examples = il.Examples(jnp.zeros(3), jnp.asarray(labels))
    return il.models.cross_entropy(jnp.stack([params] * 3), examples)[0]


def drawn(of):
    return lambda p, m, b, k: of(p, m, b, k) * jax.random.uniform(k, minval=0.5, maxval=1.5)


def softly(meta, support, key):
    weights = jax.nn.softmax(support.inputs @ meta["w"])
    return weights @ support.inputs * jnp.exp(meta["scale"])


def scaled_in(dtype, scale):
    def loss(params, meta, batch, key):
        numbers = (scale * params).astype(dtype)
        return outer(params, meta, batch, key) + 1e-9 * jnp.sum(numbers**2).astype(jnp.float32)

    return loss


def unharmed():
    one = episodes()
    nan = one.query.inputs.at[2].set(jnp.nan)
    mask = jnp.isfinite(nan)
    return il.Episode(one.support, il.Examples(jnp.where(mask, nan, 0), one.query.targets))


def with_a_ridge(params, meta, batch, key):
    matrix = jnp.zeros((3, 3)) * params[0] + 1e-3 * jnp.eye(3)
    return outer(params, meta, batch, key) + 1e-6 * jnp.sum(jnp.linalg.solve(matrix, params))


def in_aux(params, meta, batch, key):
    value = inner(params, meta, batch, key)
    return value, {"seen": value}


def told(params, meta, batch, key):
    jax.debug.callback(lambda: None)
    return inner(params, meta, batch, key)


def branching(params, meta, batch, key):
    return inner(params, meta, batch, key) * jnp.where(params[0] > 0, 2.0, 1.0)


def reads_idle(params, meta, batch, key):
    return inner(params, meta, batch, key) + jnp.sum(meta["idle"] ** 2 * params[:2])


def stationary_part(params, meta, batch, key):
    return inner(params, meta, batch, key) + jnp.sum(params * meta["w"])


ERROR, WARNING = Severity.ERROR, Severity.WARNING
ADAM = {"learn": il.GradientDescent(optax.adam(0.1, eps_root=1e-8), 2)}
EVOLUTION = {"gradient": il.EvolutionStrategies(2, 0.1)}
SOUND, FIRST = {"inner": inner}, {"gradient": il.FirstOrder()}
LOG = ({"inner": in_aux}, {"inner": told})
MINIMISE = il.Minimise(optx.BFGS(1e-5, 1e-5), max_steps=1024)
PULLED = il.gradients.proximal(il.Problem(start, inner, outer), 100.0).inner_loss

# What the cure of each fault says, done: what replaces the faulty part. Several for alternatives.
CURED = {
    "a label that is no class": (
        "labels from 0 to classes - 1",
        {"inner": labelled_from_zero, "outer": labelled_from_zero},
    ),
    "stop_gradient": ("a path without it, or EvolutionStrategies", SOUND, EVOLUTION),
    "stop_gradient in part": ("without it", SOUND),
    "custom_vjp, silent": (
        "jax.custom_jvp, or a backward pass that reads its inputs; FirstOrder()",
        *({"inner": with_energy(energy)}, {"inner": with_energy(read_back)}, FIRST),
    ),
    "custom_vjp, host": (
        "jax.custom_jvp, or a backward pass in jax.numpy; FirstOrder()",
        *({"inner": with_energy(energy)}, {"inner": with_energy(read_back)}, FIRST),
    ),
    "pure_callback": (
        "the function in jax.numpy, or under jax.custom_jvp with its derivative",
        {"inner": lambda p, m, b, k: inner(p, m, b, k) + jnp.sum(p**2)},
        {"inner": lambda p, m, b, k: inner(p, m, b, k) + host_sum(p)},
    ),
    "while_loop": (
        "jax.lax.scan, or jax.lax.fori_loop with a fixed number of iterations",
        *({"inner": halved(of_scan)}, {"inner": halved(of_fori)}),
    ),
    "unread leaf": (
        "leave it out of meta, or read it in a loss",
        *({"meta": META}, {"inner": reads_idle}),
    ),
    "adam": ("eps_root=1e-8", ADAM),
    "adam elsewhere": ("eps_root=1e-8", ADAM),
    "norm at zero": ("jnp.sqrt(x + 1e-12)", {"inner": with_norm(1e-12)}),
    "norm at zero in a scan": ("jnp.sqrt(x + 1e-12)", {"inner": with_norm(1e-12)}),
    "diverging rate": (
        "a lower inner learning rate",
        {"learn": il.GradientDescent(optax.sgd(0.1), 5)},
    ),
    "idle rate": ("a higher inner learning rate", {"learn": LEARN}),
    "host random number": ("jax.random with the key", {"inner": drawn(inner)}),
    "host random number in a jitted function": ("jax.random with the key", {"inner": drawn(inner)}),
    "callback random number": ("jax.random with the key", {"outer": drawn(outer)}),
    "captured list": ("as a part of params, meta or aux", {"inner": in_aux}),
    "captured counter": ("jax.debug.callback to count or to log, or the value in aux", *LOG),
    "captured counter, read": ("jax.random with the key", {"inner": drawn(inner)}),
    "overlap": ("disjoint rows", {"data": episodes()}),
    "one task": (
        "tasks.sample(key, n) that draws each task with a key of its own; a batch of one episode",
        {"data": episodes()},
        {"data": jax.tree.map(lambda leaf: leaf[:1], episodes())},
    ),
    "early argmax": ("or EvolutionStrategies", EVOLUTION, {"learn": il.Procedure(softly)}),
    "float16 overflow": (
        "bfloat16 or float32 for this computation, or a smaller scale",
        {"outer": scaled_in(jnp.bfloat16, 1000)},
        {"outer": scaled_in(jnp.float32, 1000)},
        {"outer": scaled_in(jnp.float16, 1)},
    ),
    "nested state": ("as a part of params, meta or aux", {"inner": in_aux}),
    "sign": (
        "a soft choice such as jax.nn.softmax, or EvolutionStrategies",
        {"outer": lambda p, m, b, k: outer(p, m, b, k) + jnp.tanh(m["scale"])},
        EVOLUTION,
    ),
    "python if": ("jnp.where", {"inner": branching}),
    "NaN in the data": ("jnp.where(mask, x, 0)", {"data": unharmed()}),
    "singular system": ("a ridge: matrix + 1e-3 * jnp.eye(n)", {"outer": with_a_ridge}),
    "no task axis": (
        "jax.tree.map(lambda leaf: leaf[None], episode)",
        {"data": jax.tree.map(lambda leaf: leaf[:1], episodes())},
    ),
    "params unread within": ("a loss of what the model makes of params", SOUND),
    "params unread without": ("a loss of params on the query set", {"outer": outer}),
    "rounding": (
        "a path without it, or EvolutionStrategies",
        *({"init": start}, EVOLUTION),
    ),
    "argsort": (
        "a soft choice such as jax.nn.softmax, or EvolutionStrategies",
        {"outer": lambda p, m, b, k: outer(p, m, b, k) + p @ jax.nn.softmax(p)},
        EVOLUTION,
    ),
    "not stationary": (
        "more inner steps, Minimise(solver), or proximal(problem, strength)",
        {"learn": il.GradientDescent(optax.sgd(0.1), 200), "inner": stationary_part},
        {"learn": MINIMISE, "inner": stationary_part},
        {"learn": il.GradientDescent(optax.sgd(0.005), 100), "inner": PULLED},
    ),
    "no convergence": ("Minimise(solver, max_steps=1024)", {"learn": MINIMISE}),
    "estimator": (
        "Unroll(), or leave the leaf out of meta",
        {"gradient": il.Unroll()},
        {"meta": {"w": META["w"]}, "learn": LEARN, "inner": outer},
    ),
}
CASES = {
    name if len(changes) == 1 else f"{name}, {i}": (name, text, change)
    for name, (text, *changes) in CURED.items()
    for i, change in enumerate(changes, 1)
}
QUICK = {"stop_gradient, 1"}


def matching(report, message):
    return [each for each in report.findings if re.search(message, str(each), re.DOTALL)]


@pytest.mark.parametrize("case", without(CASES.keys() - QUICK, CASES))
def test_a_finding_is_gone_when_its_cure_is_done(case):
    name, text, change = CASES[case]
    given, severity, message = FAULTS[name]
    found = matching(checked(**given), message)
    assert found and all(text in finding.cure for finding in found)
    after = matching(checked(**given | change), message)
    # What is only a note counts no more, unless it was one before.
    assert not [each for each in after if each.severity in (severity, ERROR, WARNING)]


def test_every_planted_fault_has_its_cure_done():
    assert CURED.keys() == FAULTS.keys()
