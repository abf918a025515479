"""A gradient that does not exist raises; one that is zero in a leaf is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il

LEARN = il.GradientDescent(optax.sgd(0.1), steps=2)
KEY = jax.random.key(0)
META = {"w": jnp.array([0.5, -1.0]), "idle": [jnp.ones(3), jnp.float32(2)]}


def fit(params, meta, batch, key):
    return jnp.mean((batch["x"] @ params - batch["y"]) ** 2)


def from_meta(meta, support, key):
    return meta["w"]


def from_zero(meta, support, key):
    return jnp.zeros(2)


def from_stopped(meta, support, key):
    return jax.lax.stop_gradient(meta["w"])


def weighted(params, meta, batch, key):
    return jnp.exp(meta["w"][0]) * fit(params, meta, batch, key)


LIVE = il.Problem(from_meta, fit, fit)
DEAD = {
    "unread": (il.Problem(from_zero, fit, fit), il.Unroll()),
    "stopped": (il.Problem(from_stopped, fit, fit), il.Unroll()),
    "first_order": (il.Problem(from_zero, weighted, fit), il.FirstOrder()),
}


def episodes(tasks=3):
    def half(key):
        x = jax.random.normal(key, (tasks, 4, 2))
        return {"x": x, "y": jnp.sin(3 * x[..., 0])}

    return il.Episode(*map(half, jax.random.split(jax.random.key(1))))


def episode():
    return jax.tree.map(lambda leaf: leaf[0], episodes())


def batched(function):
    return jax.vmap(function, (None, 0, None))


TRANSFORMS = {
    "grad": lambda f: lambda m: jax.grad(f, has_aux=True)(m, episode(), KEY),
    "jit_grad": lambda f: lambda m: jax.jit(jax.grad(f, has_aux=True))(m, episode(), KEY),
    "grad_jit": lambda f: lambda m: jax.grad(jax.jit(f), has_aux=True)(m, episode(), KEY),
    "vmap_grad": lambda f: lambda m: batched(jax.grad(f, has_aux=True))(m, episodes(), KEY),
    "grad_vmap": lambda f: jax.grad(lambda m: batched(f)(m, episodes(), KEY)[0].sum()),
    "jvp": lambda f: lambda m: jax.jvp(lambda m: f(m, episode(), KEY)[0], (m,), (m,)),
    "hessian": lambda f: jax.hessian(lambda m: f(m, episode(), KEY)[0]),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize(("problem", "gradient"), DEAD.values(), ids=DEAD)
def test_a_dead_meta_gradient_raises(problem, gradient, transform):
    derivative = transform(il.meta_objective(problem, LEARN, gradient))
    with pytest.raises(il.errors.GradientError, match=r"no meta-parameter.*\['w'\].*Write: Unroll"):
        jax.eval_shape(derivative, META)


@pytest.mark.parametrize("chunk", [None, 1, 2, 3])
@pytest.mark.parametrize(("problem", "gradient"), DEAD.values(), ids=DEAD)
def test_a_dead_meta_gradient_of_a_batch_raises(problem, gradient, chunk):
    step = il.meta_value_and_grad(problem, LEARN, gradient, chunk=chunk)
    with pytest.raises(il.errors.GradientError, match=r"no meta-parameter"):
        jax.eval_shape(step, META, episodes(), KEY)


@pytest.mark.parametrize(("problem", "gradient"), DEAD.values(), ids=DEAD)
def test_the_value_alone_is_never_refused(problem, gradient):
    loss, _ = jax.jit(il.meta_objective(problem, LEARN, gradient))(META, episode(), KEY)
    assert np.isfinite(loss)


def test_unroll_sees_what_first_order_drops():
    problem, _ = DEAD["first_order"]
    _, grads = jax.jit(il.meta_value_and_grad(problem, LEARN))(META, episodes(), KEY)
    assert grads["w"][0] != 0


@pytest.mark.parametrize("compile", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_an_unreached_leaf_is_zero_and_named(chunk, compile):
    step = compile(il.meta_value_and_grad(LIVE, LEARN, chunk=chunk))
    (_, aux), grads = step(META, episodes(), KEY)
    assert list(aux.diagnostics["unreached"]) == ["['idle'][0]", "['idle'][1]"]
    for mark in aux.diagnostics["unreached"].values():
        np.testing.assert_array_equal(mark, [True] * 3)
    for leaf, zero in zip(META["idle"], grads["idle"], strict=True):
        assert zero.shape == leaf.shape and zero.dtype == leaf.dtype and not np.any(zero)
    assert np.all(grads["w"] != 0)


def test_nothing_is_named_when_all_is_reached():
    step = il.meta_value_and_grad(LIVE, LEARN)
    (_, aux), _ = jax.jit(step)({"w": META["w"]}, episodes(), KEY)
    assert aux.diagnostics["unreached"] == {}


@pytest.mark.parametrize("argument", [0, 1], ids=["meta", "support"])
@pytest.mark.parametrize("part", ["params", "loss"])
@pytest.mark.parametrize("compile", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_adapt_has_no_derivative(argument, part, compile):
    def value(meta, support):
        params, info = compile(lambda m, s: il.adapt(LIVE, LEARN, m, s, KEY))(meta, support)
        return jnp.sum(params) if part == "params" else jnp.sum(info.loss)

    with pytest.raises(
        il.errors.GradientError, match=r"adapt has no derivative.*Write: meta_objective"
    ):
        jax.eval_shape(jax.grad(value, argument), {"w": META["w"]}, episode().support)


def test_adapt_under_jit_and_vmap():
    support = episodes().support
    keys = jax.random.split(KEY, 3)
    together, _ = jax.jit(
        jax.vmap(lambda s, k: il.adapt(LIVE, LEARN, META, s, k)),
    )(support, keys)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), support)
        params = np.asarray(META["w"], np.float64)
        for _ in range(2):
            params = params - 0.1 * 2 / 4 * one["x"].T @ (one["x"] @ params - one["y"])
        np.testing.assert_allclose(together[i], params, rtol=1e-5)


def test_adapt_beside_a_gradient_in_something_else():
    """Values of adapt may stand in a differentiated program, as long as nothing flows through."""
    support = episode().support

    def value(scale):
        params, _ = il.adapt(LIVE, LEARN, META, support, KEY)
        return scale * jnp.sum(params)

    assert np.isfinite(jax.grad(value)(1.0))


SEARCHES = {
    "backtracking": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
    ),
    "lbfgs": optax.lbfgs(),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_line_searches_adapt(search):
    learn = il.GradientDescent(search, steps=4)
    support = episode().support
    params, info = jax.jit(lambda s: il.adapt(LIVE, learn, META, s, KEY))(support)
    assert np.all(np.diff(info.loss) <= 0)
    assert fit(params, META, support, KEY) < info.loss[0]


@pytest.mark.parametrize(
    ("gradient", "chunk"),
    [
        pytest.param(il.Unroll(), None, id="unroll", marks=pytest.mark.full),
        pytest.param(il.FirstOrder(), 1, id="first, chunked"),
    ],
)
def test_a_differentiable_line_search_is_refused_by_reverse_mode(gradient, chunk):
    """The zoom search of L-BFGS interpolates, so its step lengths would need derivatives."""
    learn = il.GradientDescent(optax.lbfgs(), steps=2)
    step = il.meta_value_and_grad(LIVE, learn, gradient, chunk=chunk)
    with pytest.raises(
        il.errors.GradientError,
        match=r"until a condition holds.*GradientDescent\(.*\) in place of a line",
    ):
        jax.eval_shape(step, META, episodes(), KEY)


@pytest.mark.parametrize("gradient", [il.Unroll(), il.Unroll(il.MixedMode())])
@pytest.mark.parametrize("store_grad", [False, True])
def test_backtracking_has_a_reverse_mode(x64, gradient, store_grad):
    """A backtracked step length is piecewise constant, so JAX can differentiate around its loop."""
    search = optax.scale_by_backtracking_linesearch(15, store_grad=store_grad)
    learn = il.GradientDescent(optax.chain(optax.sgd(5.0), search), steps=2)
    step = jax.jit(il.meta_value_and_grad(LIVE, learn, gradient))
    tasks = jax.tree.map(lambda leaf: leaf.astype(float), episodes())
    meta = jnp.array([0.5, -1.0])
    _, grads = step({"w": meta}, tasks, KEY)
    value = lambda w: step({"w": w}, tasks, KEY)[0][0]
    h = 1e-6
    expected = [(value(meta + h * e) - value(meta - h * e)) / (2 * h) for e in jnp.eye(2)]
    np.testing.assert_allclose(grads["w"], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 9])
def test_what_acts_in_held_steps_alone_is_named_if_they_are_known_while_tracing(steps):
    """In a scan the number of a step is traced, so the derivative is a zero that is computed."""
    inner = lambda params, meta, batch, key: meta["scale"] * jnp.sum(params**2)
    problem = il.Problem(lambda meta, support, key: meta["w"], inner, fit)
    held = il.FirstOrder(where=lambda t, params: t < 9)
    learn = il.GradientDescent(optax.sgd(0.1), steps)
    step = il.meta_value_and_grad(problem, learn, held)
    (_, aux), grads = step({"w": META["w"], "scale": jnp.ones(())}, episodes(), KEY)
    assert grads["scale"] == 0
    assert list(aux.diagnostics["unreached"]) == ["['scale']"] * (steps == 1)


def test_hessian_is_that_of_finite_differences(x64):
    meta = jnp.array([0.5, -1.0, 0.3])

    def inner(params, meta, batch, key):
        return jnp.mean(jnp.tanh(batch["x"] @ params - batch["y"]) ** 2) + meta[2] * params @ params

    problem = il.Problem(lambda m, s, k: m[:2], inner, fit)
    objective = il.meta_objective(problem, LEARN)
    task = jax.tree.map(lambda leaf: leaf.astype(float), episode())
    gradient = jax.jit(jax.grad(lambda m: objective(m, task, KEY)[0]))
    hessian = jax.jit(jax.hessian(lambda m: objective(m, task, KEY)[0]))(meta)
    h = 1e-5
    rows = [(gradient(meta + h * e) - gradient(meta - h * e)) / (2 * h) for e in jnp.eye(3)]
    np.testing.assert_allclose(hessian, jnp.stack(rows), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-10)


def test_first_order_holds_the_slope_of_the_value_function():
    """What an optimizer computes from value_fn has the slope g: theta' = w - 0.1 g v(w)."""

    def update(gradient, state, params, *, value_fn, **unused):
        del unused
        return -0.1 * gradient * value_fn(params), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
    problem = il.Problem(
        lambda meta, support, key: meta["w"],
        lambda params, meta, batch, key: meta["reg"] * (params - 1.0) ** 2,
        lambda params, meta, batch, key: params**2,
    )
    meta = {"w": jnp.array(2.0), "reg": jnp.array(1.0)}
    episode = il.Episode(jnp.zeros(1), jnp.zeros(1))
    objective = il.meta_objective(problem, il.GradientDescent(optimizer, 1), il.FirstOrder())
    grads, _ = jax.grad(objective, has_aux=True)(meta, episode, jax.random.key(0))
    # g = 2 is constant and v = 1 has the slope g, so theta' = 1.8 and d theta' / dw = 1 - 0.1 g g.
    np.testing.assert_allclose(grads["w"], 2 * 1.8 * 0.6, rtol=1e-6)
    assert grads["reg"] == 0


@pytest.mark.parametrize(
    "gradient",
    [
        il.Unroll(),
        il.Unroll(loop=il.Segments(1)),
        il.Unroll(loop=il.Segments()),
        il.Unroll(loop=il.Binomial(2)),
        il.Unroll(il.MixedMode()),
        il.Unroll(il.MixedMode(), il.Segments(1)),
        il.Unroll(il.MixedMode(), il.Binomial(2)),
        il.FirstOrder(),
        il.Truncated(1),
        il.Reptile(),
    ],
    ids=str,
)
def test_a_leaf_that_nothing_reads_is_named_by_every_backward_pass(gradient):
    """Custom rules could pass dense zeros back, which would hide it."""
    (_, aux), _ = il.meta_value_and_grad(LIVE, LEARN, gradient)(META, episodes(), KEY)
    assert set(aux.diagnostics["unreached"]) == {"['idle'][0]", "['idle'][1]"}
