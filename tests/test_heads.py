"""The heads: masks, classes without rows, agreement with other ways to the same, bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from heads import features, strength
from quadratic import quadratic_meta

import innerloop as il
from innerloop.masks import blank_rows

KEY = jax.random.key(0)
FLAT = lambda meta, batch, key: blank_rows(jnp.asarray(batch.inputs), batch.mask) * meta
META = 1.5
RNG = np.random.default_rng(3)
INPUTS = RNG.normal(size=(5, 7))
CLASSES = np.array([0, 1, 2, 0, 1])
VALUES = RNG.normal(size=(5, 2))

HEADS = {
    "prototypes": (il.heads.Prototypes(FLAT, 3), CLASSES),
    "ridge": (il.heads.RidgeHead(FLAT, 0.5), VALUES),
    "ridge-classes": (il.heads.RidgeHead(FLAT, 0.5, 3), CLASSES),
    "logistic": (il.heads.ConvexHead(FLAT, 0.5, il.heads.logistic, 3), CLASSES),
    "svm": (il.heads.ConvexHead(FLAT, 0.5, il.heads.squared_hinge, 3), CLASSES),
}
each_head = pytest.mark.parametrize(("head", "targets"), HEADS.values(), ids=HEADS)


def examples(inputs, targets, mask=None):
    """Of NumPy's arrays, in the precision of the test."""
    return il.Examples(*(None if a is None else jnp.asarray(a) for a in (inputs, targets, mask)))


def solve_and_slope(head, support):
    """The parameters, and the derivative in meta of a function of them all."""

    def total(meta):
        params = head.solve(meta, support, KEY)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(params)), params

    slope, params = jax.jit(jax.grad(total, has_aux=True))(META)
    return params, slope


@each_head
def test_padded_rows_count_for_nothing(x64, head, targets):
    """Whatever they hold, NaN included; in the derivative too."""
    few = examples(INPUTS[:4], targets[:4])
    padded = examples(np.vstack([INPUTS[:4], np.full(7, np.nan)]), targets, jnp.arange(5) < 4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        solve_and_slope(head, padded),
        solve_and_slope(head, few),
    )


def test_a_class_without_rows_has_no_mean():
    support = examples(INPUTS, CLASSES, CLASSES != 1)
    means, counts = il.heads.Prototypes(FLAT, 3).solve(META, support, KEY)
    np.testing.assert_array_equal(counts, [2, 0, 1])
    np.testing.assert_array_equal(means[1], np.zeros(7))
    np.testing.assert_allclose(means[0], 1.5 * (INPUTS[0] + INPUTS[3]) / 2, rtol=1e-5)


def test_the_convex_head_is_minimise_and_implicit(x64):
    """The same minimum by the problem's own inner loss, its gradient by `Implicit`."""
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.normal(size=(2, 6, 3))), jnp.array([[0, 1, 0, 1, 1, 0]] * 2)
    episode = il.Episode(*(il.Examples({"x": x[i]}, y[i]) for i in range(2)))
    meta = quadratic_meta()

    def inner(params, meta, batch, key):
        scores, targets = features(meta, batch, key) @ params, jax.nn.one_hot(batch.targets, 2)
        fit = jnp.sum(jax.vmap(il.heads.logistic)(scores, targets.astype(scores.dtype)))
        return fit + strength(meta) / 2 * jnp.sum(params**2)

    outer = lambda params, meta, batch, key: inner(params, meta, batch, key) + jnp.sum(params) ** 2
    # One key for both, since the steps of a solver and `init` have different ones.
    still = lambda f: lambda *args: f(*args[:-1], KEY)
    problem = il.Problem(lambda meta, support, key: jnp.zeros((6, 2)), still(inner), still(outer))
    solver = il.Minimise(optx.BFGS(1e-12, 1e-12), max_steps=500, throw=False)
    implicit = il.meta_objective(problem, solver, il.Implicit(lx.CG(1e-13, 1e-13)))
    head = il.heads.ConvexHead(still(features), strength, il.heads.logistic, 2)
    direct = il.meta_objective(problem, head)
    results = [
        jax.jit(jax.value_and_grad(f, has_aux=True))(meta, episode, KEY) for f in (direct, implicit)
    ]
    (loss, _), grads = results[0]
    (expected_loss, _), expected = results[1]
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-7)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), grads, expected
    )


def test_a_solver_that_does_not_converge_says_so():
    head = il.heads.ConvexHead(FLAT, 0.5, il.heads.logistic, 3, max_steps=1)
    support = examples(INPUTS, CLASSES)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"did not converge.*max_steps=256"):
        jax.block_until_ready(head.solve(META, support, KEY))
    quiet = il.heads.ConvexHead(FLAT, 0.5, il.heads.logistic, 3, max_steps=1, throw=False)
    assert quiet.solve(META, support, KEY).shape == (7, 3)


BAD_HEADS = {
    "one class": (
        lambda: il.heads.Prototypes(FLAT, 1),
        "ways must be a whole number of at least 2",
    ),
    "one class, ridge": (lambda: il.heads.RidgeHead(FLAT, 1.0, 1), "ways must be .* at least 2"),
    "one class, convex": (
        lambda: il.heads.ConvexHead(FLAT, 1.0, il.heads.logistic, 1),
        "ways must be .* at least 2.*Write: ConvexHead",
    ),
    "negative strength": (
        lambda: il.heads.RidgeHead(FLAT, -1.0),
        "finite number above 0.*-1.0.*Write: RidgeHead",
    ),
    "no strength": (lambda: il.heads.RidgeHead(FLAT, 0.0), "finite number above 0"),
    "infinite strength": (
        lambda: il.heads.ConvexHead(FLAT, float("inf"), il.heads.logistic, 3),
        "finite number above 0.*Write: ConvexHead",
    ),
    "text": (lambda: il.heads.RidgeHead(FLAT, "1"), "finite number above 0"),
    "features of inputs": (
        lambda: il.heads.Prototypes(lambda meta, x: x, 3),
        "features must be a function of .meta, batch, key",
    ),
    "loss of one": (
        lambda: il.heads.ConvexHead(FLAT, 1.0, lambda scores: 0.0, 3),
        "loss must be a function of .scores, target",
    ),
    "a minimiser": (
        lambda: il.heads.ConvexHead(FLAT, 1.0, il.heads.logistic, 3, optx.BFGS(1e-3, 1e-3)),
        "solver must be an Optimistix root.*Write: ConvexHead",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD_HEADS.values(), ids=BAD_HEADS)
def test_a_head_is_refused_when_it_is_made(as_users_see_it, make, message):
    with pytest.raises(il.errors.StructureError, match=message):
        make()


IMAGES = np.ones((5, 2, 2, 1))
BAD_SUPPORTS = {
    "images": (
        lambda: examples(IMAGES, CLASSES),
        r"one vector of real numbers per row.*\(rows, width\)",
    ),
    "rows": (lambda: examples(INPUTS[:4], CLASSES), "one vector of real numbers per row"),
    "a tuple": (lambda: (INPUTS, CLASSES), "learns from Examples.*tuple.*Examples"),
    "real classes": (
        lambda: examples(INPUTS, CLASSES / 2),
        "needs integer classes.*f.*from 0 to 2",
    ),
    "one-hot": (
        lambda: examples(INPUTS, np.eye(3)[CLASSES]),
        "needs integer classes.*shape .rows,",
    ),
}


@pytest.mark.parametrize(("support", "message"), BAD_SUPPORTS.values(), ids=BAD_SUPPORTS)
@pytest.mark.parametrize("name", ["prototypes", "ridge-classes", "logistic"])
def test_a_support_set_is_refused_while_tracing(as_users_see_it, name, support, message):
    with pytest.raises(il.errors.StructureError, match=message):
        jax.eval_shape(lambda meta: HEADS[name][0].solve(meta, support(), KEY), META)


@pytest.mark.parametrize("strength", [lambda meta: -1.0, lambda meta: jnp.ones(2) * meta])
def test_a_strength_of_meta_is_one_number_above_zero(as_users_see_it, strength):
    head = il.heads.RidgeHead(FLAT, strength)
    with pytest.raises(il.errors.StructureError, match="finite number above 0"):
        jax.eval_shape(lambda meta: head.solve(meta, examples(INPUTS, VALUES), KEY), META)


def test_ridge_regression_needs_real_targets(as_users_see_it):
    with pytest.raises(il.errors.StructureError, match=r"needs real targets.*ways=5"):
        il.heads.RidgeHead(FLAT, 1.0).solve(META, examples(INPUTS, CLASSES), KEY)


def test_a_head_has_no_steps(as_users_see_it):
    with pytest.raises(il.errors.StructureError, match="a Prototypes has no inner steps"):
        HEADS["prototypes"][0].step(None, META, None, None, KEY, None)
