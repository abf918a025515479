"""The inner loop: its driver, its keys, its optimizers and its wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import innerloop as il
from innerloop.gradients.inner import exact_inner_gradient

KEY = jax.random.key(7)
META = jnp.array([0.5, -1.0])
SUPPORT = il.Examples(jnp.array([[1.0, 2.0], [0.0, 1.0], [-1.0, 1.0]]), jnp.array([1.0, 0.0, 2.0]))


def loss(params, meta, batch, key):
    value = jnp.mean((batch.inputs @ params - batch.targets) ** 2)
    return value, {"key": jax.random.key_data(key)}


PROBLEM = il.Problem(lambda meta, support, key: meta, loss, loss)
LEARN = il.GradientDescent(optax.adam(0.1), steps=2)


def inner(adaptation, observe=None, problem=PROBLEM, support=SUPPORT, **options):
    """`run` with the exact inner gradient, compiled."""

    def call(support, key):
        return il.extend.run(
            problem,
            adaptation,
            META,
            support,
            key,
            il.gradients.Exact(),
            il.gradients.StoreAll(),
            observe,
            **options,
        )

    return jax.jit(call)(support, KEY)


# Optimizers.


def asking(init, names):
    """An optimizer that keeps what it was passed."""

    def update(gradient, state, params, *, value=None, grad=None, value_fn=None, **_):
        seen = {"value": value, "grad": grad, "again": value_fn(params)}
        return jax.tree.map(lambda g: -0.1 * g, gradient), {name: seen[name] for name in names}

    return optax.GradientTransformationExtraArgs(init, update)


def test_optimizers_that_ask_are_passed_value_grad_and_value_fn():
    empty = {"value": jnp.float32(0), "grad": jnp.zeros(2), "again": jnp.float32(0)}
    optimizer = optax.chain(optax.identity(), asking(lambda params: empty, tuple(empty)))
    state, info, _ = inner(il.GradientDescent(optimizer, steps=1))
    expected, gradient = jax.value_and_grad(lambda p: loss(p, META, SUPPORT, KEY)[0])(META)
    seen = state.optimizer[1]
    np.testing.assert_allclose(seen["value"], expected, rtol=1e-6)
    np.testing.assert_allclose(seen["again"], expected, rtol=1e-6)
    np.testing.assert_allclose(seen["grad"], gradient, rtol=1e-6)
    np.testing.assert_allclose(state.params, META - 0.1 * gradient, rtol=1e-6)
    np.testing.assert_allclose(info.loss, [expected], rtol=1e-6)


def test_value_fn_sees_the_step_s_own_batch_and_key():
    """What a line search minimises is the very loss whose gradient it was given."""

    def noisy(params, meta, batch, key):
        return loss(params, meta, batch, key)[0] + jax.random.normal(key, (2,)) @ params

    zero = {"value": jnp.float32(0), "again": jnp.float32(0)}
    learn = il.GradientDescent(asking(lambda params: zero, ("value", "again")), steps=3)
    problem = il.Problem(lambda meta, support, key: meta, noisy, loss)
    state, _, _ = inner(il.MiniBatches(learn, size=2), problem=problem)
    np.testing.assert_allclose(state.optimizer["again"], state.optimizer["value"], rtol=1e-6)


def test_plain_optimizers_and_functions_of_meta_are_alike():
    plain, _, _ = inner(LEARN)
    learned, _, _ = inner(il.GradientDescent(lambda meta: optax.adam(0.1), steps=2))
    jax.tree.map(np.testing.assert_array_equal, plain, learned)


# The driver.


@pytest.mark.parametrize("steps", [0, 3, 10], ids=["none", "unrolled", "scan"])
def test_observations_are_those_of_separate_runs(steps):
    _, info, observed = inner(LEARN, lambda params, t: {"params": params, "t": t}, steps=steps)
    assert observed["params"].shape == (steps + 1, 2)
    np.testing.assert_array_equal(observed["t"], np.arange(steps + 1))
    assert info is None if steps == 0 else info.loss.shape == (steps,)
    for t in {0, 1, steps} if steps else {0}:
        state, _, nothing = inner(LEARN, steps=t)
        assert nothing is None
        np.testing.assert_allclose(observed["params"][t], state.params, rtol=1e-5)


@pytest.mark.parametrize("steps", [0, 5, 12])
def test_steps_beyond_the_trained_number(steps):
    override = inner(LEARN, steps=steps)
    trained = inner(il.GradientDescent(optax.adam(0.1), steps=steps))
    jax.tree.map(np.testing.assert_array_equal, override, trained)


@pytest.mark.parametrize("steps", [-1, True])
def test_an_override_is_checked(steps):
    with pytest.raises(il.errors.StructureError, match=r"steps must be a whole number"):
        inner(LEARN, steps=steps)


@pytest.mark.parametrize("steps", [3, 10], ids=["unrolled", "scan"])
def test_keys(steps):
    """init: fold_in(adapt, 0); step t: fold_in(adapt, t + 1); outer: one key for all steps."""
    learn = il.GradientDescent(optax.sgd(0.1), steps)
    problem = il.Problem(
        lambda meta, support, key: meta + jax.random.normal(key, (2,)),
        loss,
        loss,
        step_weights=lambda steps: jnp.ones(steps + 1),
    )
    keys = il.extend.task_keys(KEY)
    fold = lambda t: jax.random.key_data(jax.random.fold_in(keys.adapt, t))
    expected = np.stack([fold(t + 1) for t in range(steps)])
    _, aux = jax.jit(il.meta_objective(problem, learn))(META, il.Episode(SUPPORT, SUPPORT), KEY)
    np.testing.assert_array_equal(aux.info.aux["key"], expected)
    np.testing.assert_array_equal(aux.metrics["key"], jax.random.key_data(keys.outer))
    _, info = jax.jit(lambda key: il.adapt(problem, learn, META, SUPPORT, key))(KEY)
    np.testing.assert_array_equal(info.aux["key"], expected)
    np.testing.assert_allclose(info.loss, aux.info.loss, rtol=1e-6)
    start = il.adapt(problem, il.GradientDescent(optax.sgd(0.1), 0), META, SUPPORT, KEY)[0]
    draw = jax.random.normal(jax.random.fold_in(keys.adapt, 0), (2,))
    np.testing.assert_allclose(start, META + draw, rtol=1e-6)


class Rows(il.extend.Adaptation):
    """Takes no gradient: a step counts itself and tells which support set it saw."""

    steps: int | None = None
    origin: il.extend.Origin = il.extend.Origin.STEPS

    def init(self, problem, meta, support, key):
        return jnp.int32(0)

    def step(self, problem, meta, support, state, key, inner_gradient):
        return state + 1, support

    def params(self, state):
        return state


def test_no_number_of_steps_means_one_call_of_step():
    state, info, observed = inner(Rows(), lambda params, t: params)
    assert state == 1
    np.testing.assert_array_equal(info.targets, SUPPORT.targets[None])
    np.testing.assert_array_equal(observed, [0, 1])
    with pytest.raises(
        il.errors.StructureError, match=r"no steps to count.*Write: leave steps out"
    ):
        inner(Rows(), steps=2)


# MiniBatches.


def draw(support, size, key=KEY, **options):
    """The rows that one step sees."""
    mini = il.MiniBatches(Rows(), size, **options)
    return mini.step(PROBLEM, META, support, jnp.int32(0), key, exact_inner_gradient)[1]


def rows_of(mask, dtype=jnp.int32):
    """A support set whose rows carry their own number."""
    index = jnp.arange(len(mask), dtype=dtype)
    return il.Examples({"x": index[:, None]}, index, jnp.array(mask))


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.booleans(), min_size=1, max_size=4).filter(any), st.data())
def test_mini_batches_draw_valid_rows_without_replacement(mask, data):
    size = data.draw(st.integers(1, len(mask)))
    key = jax.random.key(data.draw(st.integers(0, 2**16)))
    batch = draw(rows_of(mask), size, key)
    assert batch.targets.shape == (size,)
    assert np.all(np.asarray(mask)[batch.targets]) and np.all(batch.mask)
    np.testing.assert_array_equal(batch.inputs["x"][:, 0], batch.targets)
    counts = np.bincount(batch.targets, minlength=len(mask))[np.asarray(mask)]
    assert counts.max() - counts.min() <= 1  # so: no row twice while there are enough
    np.testing.assert_array_equal(draw(rows_of(mask), size, key).targets, batch.targets)


@pytest.mark.parametrize("mask", [None, [True, False, True, True, True, False]])
def test_mini_batches_draw_uniformly(mask):
    valid = np.ones(6, bool) if mask is None else np.array(mask)
    support = rows_of(valid) if mask else il.Examples(jnp.arange(6), jnp.arange(6))
    draws, size = 2000, 2
    keys = jax.random.split(KEY, draws)
    targets = jax.jit(jax.vmap(lambda key: draw(support, size, key).targets))(keys)
    p = size / valid.sum()
    counts = np.bincount(np.ravel(targets), minlength=6)
    assert np.all(np.abs(counts[valid] - draws * p) < 5 * np.sqrt(draws * p * (1 - p)))
    assert not counts[~valid].any()
    first = np.bincount(targets[:, 0], minlength=6)[valid]
    p = 1 / valid.sum()
    assert np.all(np.abs(first - draws * p) < 5 * np.sqrt(draws * p * (1 - p)))


def test_mini_batches_in_the_loop():
    """Another draw each step, the whole support set for init, the mask of any pytree."""
    support = {"row": jnp.arange(8), "valid": jnp.arange(8) % 2 == 0}
    learn = il.MiniBatches(Rows(steps=6), 2, mask=lambda support: support["valid"])
    state, info, _ = inner(learn, support=support)
    assert learn.steps == 6 and learn.params(state) == 6
    assert info["row"].shape == (6, 2) and np.all(info["row"] % 2 == 0)
    assert len({tuple(rows) for rows in np.asarray(info["row"])}) > 1
    whole = il.Problem(lambda meta, s, key: meta + s.inputs.shape[0], loss, loss)
    start, _, _ = inner(il.MiniBatches(LEARN, 1), problem=whole, steps=0)
    np.testing.assert_allclose(start.params, META + 3)


def test_a_mini_batch_of_all_rows_is_the_whole_set():
    mini, _, _ = inner(il.MiniBatches(LEARN, size=3))
    full, _, _ = inner(LEARN)
    np.testing.assert_allclose(mini.params, full.params, rtol=1e-5)


@pytest.mark.parametrize("size", [0, -1, True])
def test_a_mini_batch_has_a_row(size):
    with pytest.raises(
        il.errors.StructureError, match=r"size must be a whole number.*Write: MiniBatches"
    ):
        il.MiniBatches(LEARN, size)


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (SUPPORT, "larger than the support set"),
        (il.Examples(jnp.ones((4, 2)), jnp.ones(5)), "one row axis"),
        (il.Examples(jnp.ones((4, 2)), jnp.float32(1)), "one row axis"),
        ({}, "one row axis"),
    ],
)
def test_a_mini_batch_fits_its_support_set(support, message):
    with pytest.raises(il.errors.StructureError, match=message):
        inner(il.MiniBatches(LEARN, size=4), support=support)


MASKS = {
    "a column": lambda mask: mask[:, None],
    "a square": lambda mask: jnp.stack([mask] * 4),
    "too short": lambda mask: mask[:3],
    "too long": lambda mask: jnp.append(mask, True),
    "one": lambda mask: mask[0],
    "numbers": lambda mask: mask.astype(int),
    "a list": lambda mask: mask.tolist(),
}


@pytest.mark.parametrize("wrong", MASKS.values(), ids=MASKS)
def test_a_mask_of_mini_batches_holds_one_boolean_per_row(wrong):
    """A column would broadcast, and masked rows would be drawn."""
    support = {"row": jnp.arange(4)}
    mask = jnp.array([True, False, True, False])
    with pytest.raises(il.errors.StructureError, match="mask does not fit the rows"):
        draw(support, 2, mask=lambda support: wrong(mask))
    assert set(draw(support, 4, mask=lambda support: np.asarray(mask))["row"].tolist()) == {0, 2}


# Procedure.


def test_procedure_is_its_function():
    learn = il.Procedure(lambda meta, support, key: meta * jnp.mean(support.targets))
    problem = il.Problem(None, None, loss)
    params, info = il.adapt(problem, learn, META, SUPPORT, KEY)
    np.testing.assert_allclose(params, META, rtol=1e-6)  # the targets' mean is 1
    assert info is None and learn.steps == 0
    objective = il.meta_objective(problem, learn)
    gradient, _ = jax.grad(objective, has_aux=True)(META, il.Episode(SUPPORT, SUPPORT), KEY)
    expected = jax.grad(lambda p: loss(p, META, SUPPORT, KEY)[0])(META)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert il.FirstOrder().fidelity(learn).kind == "exact"


def test_procedure_is_given_the_key_of_init():
    learn = il.Procedure(lambda meta, support, key: jax.random.key_data(key))
    data, _ = il.adapt(PROBLEM, learn, META, SUPPORT, KEY)
    expected = jax.random.fold_in(il.extend.task_keys(KEY).adapt, 0)
    np.testing.assert_array_equal(data, jax.random.key_data(expected))


def test_procedure_refuses_steps_and_other_signatures():
    learn = il.Procedure(lambda meta, support, key: meta)
    with pytest.raises(il.errors.StructureError, match=r"no steps to count"):
        inner(learn, steps=1)
    with pytest.raises(il.errors.StructureError, match=r"no inner steps"):
        learn.step(PROBLEM, META, SUPPORT, META, KEY, exact_inner_gradient)
    with pytest.raises(
        il.errors.StructureError,
        match=r"fn must be a function of .meta, support, key.*Write: Procedure.*fn=lambda",
    ):
        il.Procedure(lambda support: support)
