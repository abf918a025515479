"""The weights of a batch of tasks: what they may be, and what does not count does no harm."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.estimators.metrics import mean_metrics

KEY, META = jax.random.key(0), {"scale": jnp.array(1.5)}
LEARN = il.GradientDescent(optax.sgd(0.1), 2)


def length(params, meta, batch, key):
    """Its derivative is infinite where all numbers are zero."""
    noise = jax.random.uniform(batch["key"], (), batch["x"].dtype)
    return jnp.sqrt(jnp.sum((params["scale"] * batch["x"]) ** 2)) + 0 * noise, None


def batch_of(rows, weight=None):
    data = {"x": jnp.array(rows), "key": jax.random.split(KEY, len(rows))}
    batch = il.Episode(data, data)
    # Past the check of types, which a user's program does not have.
    return eqx.tree_at(lambda batch: batch.weight, batch, weight, is_leaf=lambda x: x is None)


PROBLEM = il.Problem(lambda meta, support, key: meta, length, length)
ROWS = [[0.0, 0.0], [1.0, 2.0], [np.nan, 0.0], [3.0, 1.0], [np.inf, 1.0]]
COUNTED = [0.0, 1.0, 0.0, 2.0, 0.0]

GRADIENTS = [
    il.Unroll(),
    il.Unroll(il.MixedMode(), il.Segments(1)),
    il.FirstOrder(),
    il.Truncated(1),
    il.ForwardMode(),
    il.Reptile(),
    il.Clipped(il.Unroll(), 1.0),
]


CASES = [*((gradient, None) for gradient in GRADIENTS), (il.Unroll(), 1), (il.Unroll(), 2)]


@pytest.mark.parametrize(("gradient", "chunk"), CASES, ids=str)
def test_a_task_that_does_not_count_does_no_harm(gradient, chunk):
    """Its own derivative is infinite or NaN, and zero times that is NaN."""
    f = jax.jit(il.meta_value_and_grad(PROBLEM, LEARN, gradient, chunk=chunk))
    (loss, _), grads = f(META, batch_of(ROWS, jnp.array(COUNTED)), KEY)
    (expected, _), right = f(META, batch_of([ROWS[1], ROWS[3]], jnp.array([1.0, 2.0])), KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grads["scale"], right["scale"], rtol=1e-6)


def test_if_no_task_counts_the_loss_is_nan_and_the_gradient_zero():
    f = il.meta_value_and_grad(PROBLEM, LEARN)
    (loss, _), grads = f(META, batch_of(ROWS, jnp.zeros(5)), KEY)
    assert np.isnan(loss) and grads["scale"] == 0


@pytest.mark.parametrize(
    "weight",
    [np.array([0, 1, 0, 2, 0]), jnp.array(COUNTED, bool), np.array(COUNTED, np.float64)],
    ids=["whole", "truth", "float64"],
)
def test_whole_numbers_and_truth_values_are_weights(weight):
    f = il.meta_value_and_grad(PROBLEM, LEARN)
    result = f(META, batch_of(ROWS, weight), KEY)
    expected = f(META, batch_of(ROWS, jnp.array(weight, float)), KEY)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


@pytest.mark.parametrize(
    "weight",
    [
        np.ones((5, 1), np.float32),
        np.ones((5, 5), np.float32),
        np.ones(5, np.complex64),
        jax.random.split(KEY, 5),
        {"a": np.ones(5, np.float32)},
        [np.float32(1.0)] * 5,
    ],
    ids=str,
)
def test_weights_of_another_form_are_refused(weight):
    f = il.meta_value_and_grad(PROBLEM, LEARN)
    with pytest.raises(il.errors.StructureError, match=r"task.*Expected: ") as caught:
        f(META, batch_of(ROWS, weight), KEY)
    if "one real number for each task" in str(caught.value):
        cure = eval(caught.value.write, {"Episode": il.Episode, "jax": jax}, vars(batch_of(ROWS)))
        assert cure.weight.shape == (5,)


def test_weights_that_cancel_give_no_silent_zero():
    f = il.meta_value_and_grad(PROBLEM, LEARN)
    batch = batch_of([ROWS[1], ROWS[3], ROWS[1]], jnp.array([1.0, -1.0, 0.0]))
    with pytest.raises(il.errors.StructureError, match=r"no mean.*3 weights with the sum 0"):
        f(META, batch, KEY)
    with pytest.raises(il.errors.StructureError, match=r"no mean.*the sum nan"):
        f(META, batch_of(ROWS[:2], jnp.array([1.0, np.nan])), KEY)
    (loss, _), grads = jax.jit(f)(META, batch, KEY)
    assert not np.isfinite(loss) and not np.isfinite(grads["scale"])


@pytest.mark.parametrize(
    ("leaf", "weight", "mean"),
    [
        (jnp.array([3, 5, 7, 9]), jnp.array([True, True, False, True]), 17 / 3),
        (jnp.full(1000, 100.0, jnp.float16), jnp.ones(1000), 100),
        (jnp.ones(3, jnp.float16), jnp.full(3, 1e-9), 1),
        (jnp.array([1.0, np.nan]), jnp.array([2.0, 0.0]), 1),
    ],
    ids=["truth values", "many in float16", "small weights", "one without weight"],
)
def test_metrics_are_weighted_in_a_wide_type(leaf, weight, mean):
    np.testing.assert_allclose(mean_metrics({"m": leaf}, weight)["m"], mean, rtol=1e-6)


def test_a_task_without_weight_is_not_blamed_for_its_stand_in():
    """Task 1 alone counts and is not finite; task 0 was computed on its data."""
    rows = jnp.array([[1.0, 1.0], [jnp.nan, 1.0]])

    class Two(eqx.Module):
        rows: jax.Array

        def sample(self, key, n):
            data = {"x": self.rows, "key": jax.random.split(key, n)}
            return il.Episode(data, data, jnp.array([0.0, 1.0]))

    estimator = il.WholeTasks(PROBLEM, LEARN, il.Unroll(), Two(rows), batch=2)
    with pytest.raises(il.errors.RunError, match="caused by task 1 with"):
        il.fit(estimator, META, optimizer=optax.sgd(0.1), steps=1, key=KEY)


def test_a_run_of_windows_says_that_no_run_counts():
    runs = il.estimators.TruncatedUnroll(
        LINE, STILL, Weighted(lambda x: 0 * x), window=1, horizon=1, batch=2
    )
    with pytest.raises(il.errors.RunError, match=r"no single task.*weights of sum 0"):
        il.fit(runs, {"w": jnp.array(2.0)}, optimizer=optax.sgd(0.1), steps=1, key=KEY)


@pytest.mark.parametrize("weight", [[1.0, -1.0], [0.0, 0.0]], ids=["cancel", "none counts"])
def test_a_run_says_that_the_weights_have_no_mean(weight):
    class Two(eqx.Module):
        def sample(self, key, n):
            data = {"x": jnp.ones((2, 2)), "key": jax.random.split(key, n)}
            return il.Episode(data, data, jnp.array(weight))

    estimator = il.WholeTasks(PROBLEM, LEARN, il.Unroll(), Two(), batch=2)
    with pytest.raises(il.errors.RunError, match=r"no single task.*weights of sum 0"):
        il.fit(estimator, META, optimizer=optax.sgd(0.1), steps=1, key=KEY)


def test_weights_may_be_traced_where_the_data_are_numpys():
    rows = np.array(ROWS, np.float32)
    key = np.asarray(jax.random.key_data(jax.random.split(KEY, 5)))
    loss = lambda params, meta, batch, key: (length(params, meta, batch, key)[0], None)
    data = {"x": rows, "key": key}
    f = il.meta_value_and_grad(il.Problem(PROBLEM.init, loss, loss), LEARN)
    (value, _), _ = jax.jit(lambda w: f(META, il.Episode(data, data, w), KEY))(jnp.array(COUNTED))
    assert np.isfinite(value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_narrow_weights_are_summed_in_a_wide_type(dtype):
    f = il.meta_value_and_grad(PROBLEM, LEARN)
    batch = batch_of([ROWS[1]] * 3, jnp.full(3, 3e4, dtype))
    (loss, _), grads = f(META, batch, KEY)
    (expected, _), right = f(META, batch_of([ROWS[1]] * 3), KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grads["scale"], right["scale"], rtol=1e-6)


@pytest.mark.parametrize("gradient", [il.Unroll(), il.ForwardMode()], ids=str)
@pytest.mark.parametrize("weight", [1e-9, 1e-6, 1e5, 1e30])
@pytest.mark.parametrize("chunk", [None, 1])
def test_weights_beyond_the_range_of_a_narrow_loss(weight, chunk, gradient):
    """A weight multiplies the derivative of the loss, in the type of the loss."""
    narrow = lambda params, meta, batch, key: ((params["w"] * batch).astype(jnp.float16), None)
    problem = il.Problem(lambda meta, support, key: meta, narrow, narrow)
    learn, data = il.GradientDescent(optax.sgd(0.0), 1), jnp.full(3, 2.0)
    f = il.meta_value_and_grad(problem, learn, gradient, chunk=chunk)
    (loss, _), grads = f({"w": jnp.array(1.5)}, il.Episode(data, data, jnp.full(3, weight)), KEY)
    np.testing.assert_allclose([loss, grads["w"]], [3.0, 2.0], rtol=2e-3)


class Weighted(eqx.Module):
    """Tasks with a weight of their own each: the data is 1, 2 or 3, and so is the weight."""

    of: Callable = eqx.field(static=True)

    def sample(self, key, n):
        data = jax.vmap(lambda key: jax.random.randint(key, (), 1, 4))(jax.random.split(key, n))
        return il.Episode(data.astype(float), data.astype(float), self.of(data.astype(float)))


PRODUCT = lambda params, meta, batch, key: params["w"] * batch.astype(params["w"].dtype)
LINE = il.Problem(lambda meta, support, key: meta, PRODUCT, PRODUCT)
STILL = il.GradientDescent(optax.sgd(0.0), 1)
WEIGHTS = {
    "real": lambda x: x,
    "negative": lambda x: -x,
    "float16, beyond its range": lambda x: (2e4 * x).astype(jnp.float16),
    "whole": lambda x: x.astype(int),
    "tiny": lambda x: 1e-30 * x,
}


def window(weight, dtype=float, **options):
    """The loss and the gradient of windows that are the whole run, and the data."""
    runs = il.estimators.TruncatedUnroll(
        LINE, STILL, Weighted(weight), window=1, horizon=1, **{"batch": 5} | options
    )
    meta = {"w": jnp.array(2.0, dtype)}
    state = runs.init(meta, KEY)
    found, _ = runs.step(meta, state, None, KEY, 0)
    return found, np.asarray(state.episode.query, float)


@pytest.mark.parametrize("name", WEIGHTS)
def test_windows_are_weighted_as_whole_tasks_are(name):
    found, x = window(WEIGHTS[name])
    assert len(set(x)) > 1
    mean = np.average(x, weights=x)
    np.testing.assert_allclose([found.loss, found.grads["w"]], [2 * mean, mean], rtol=1e-5)


@pytest.mark.parametrize(
    "weight",
    [lambda x: x[:, None], lambda x: x[:, None, None], lambda x: x.astype(complex)],
    ids=["column", "array", "complex"],
)
def test_windows_refuse_weights_of_another_form(weight):
    with pytest.raises(il.errors.StructureError, match="one real number for each task"):
        window(weight)


def test_the_mean_over_many_windows_is_within_the_range_of_float16():
    found, x = window(lambda x: None, jnp.float16, batch=70_000)
    np.testing.assert_allclose(np.float32(found.grads["w"]), x.mean(), rtol=2e-3)


def test_a_mean_in_float16_is_finite_where_the_sum_is_not():
    product = lambda params, meta, batch, key: (params["w"] * batch, None)
    problem = il.Problem(lambda meta, support, key: meta, product, product)
    numbers = jnp.full((2000,), 100.0, jnp.float16)
    for chunk in (None, 7):
        f = il.meta_value_and_grad(problem, il.GradientDescent(optax.sgd(0.0), 1), chunk=chunk)
        _, grads = f({"w": jnp.array(1.0, jnp.float16)}, il.Episode(numbers, numbers), KEY)
        np.testing.assert_allclose(np.float32(grads["w"]), 100, rtol=1e-3)


@pytest.mark.parametrize("chunk", [None, 1, 7])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_over_many_tasks_are_kept_in_a_wide_type(dtype, chunk):
    """2,000 equal gradients: a sum in bfloat16 stops growing at 512."""
    product = lambda params, meta, batch, key: (params["w"] * batch, None)
    problem = il.Problem(lambda meta, support, key: meta, product, product)
    numbers = jnp.full((2000,), 1.9296875, dtype)
    f = il.meta_value_and_grad(problem, il.GradientDescent(optax.sgd(0.0), 1), chunk=chunk)
    meta = {"w": jnp.array(1.0, dtype)}
    (loss, _), grads = f(meta, il.Episode(numbers, numbers), KEY)
    assert grads["w"].dtype == dtype
    np.testing.assert_allclose(np.float32(loss), 1.9296875, rtol=1e-5)
    np.testing.assert_allclose(np.float32(grads["w"]), 1.9296875, rtol=5e-3)


def test_sums_over_pairs_and_directions_are_kept_in_a_wide_type():
    line = lambda params, meta, batch, key: (params["w"] * batch, None)
    problem = il.Problem(lambda meta, support, key: meta, line, line)
    episode = il.Episode(jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.bfloat16))
    meta = {"w": jnp.array(1.0, jnp.bfloat16)}
    learn = il.GradientDescent(optax.sgd(0.0), 1)
    directions = il.gradients.RandomDirections(1000)
    for gradient in (
        il.ForwardMode(directions, chunk=1),
        il.EvolutionStrategies(1000, 0.5, chunk=1),
    ):
        _, grads = il.meta_value_and_grad(problem, learn, gradient)(meta, episode, KEY)
        assert 0.85 < np.float32(grads["w"]) < 1.15


@pytest.mark.parametrize("make", [il.ForwardMode, il.EvolutionStrategies], ids=lambda m: m.__name__)
def test_the_number_of_draws_may_be_beyond_the_range_of_float16(make):
    one = jnp.ones(1, jnp.float16)
    draws = il.gradients.RandomDirections(100_000) if make is il.ForwardMode else 100_000
    rest = () if make is il.ForwardMode else (0.5,)
    f = il.meta_value_and_grad(LINE, STILL, make(draws, *rest, chunk=1000))
    _, grads = f({"w": jnp.array(1.0, jnp.float16)}, il.Episode(one, one), KEY)
    np.testing.assert_allclose(np.float32(grads["w"]), 1, rtol=0.05)


def test_the_loss_of_many_pairs_may_be_beyond_the_range_of_float16():
    runs = il.estimators.PersistentES(
        LINE, STILL, Weighted(lambda x: None), window=1, horizon=1, batch=1, pairs=40_000, sigma=0.3
    )
    meta = {"w": jnp.array(20.0, jnp.float16)}
    state = runs.init(meta, KEY)
    found, _ = runs.step(meta, state, None, KEY, 0)
    x = float(state.episode.query[0])
    np.testing.assert_allclose(found.loss, 20 * x, rtol=0.01)
    np.testing.assert_allclose(np.float32(found.grads["w"]), x, rtol=0.05)
