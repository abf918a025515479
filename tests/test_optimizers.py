"""Learned optimizers: each equals its formula in NumPy, and learns to optimise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizer_oracle
import pytest
from oracle import adam

import innerloop as il

ADAM = functools.partial(optax.scale_by_adam, eps_root=1e-16)
PARAMS = {"a": jnp.array([[0.5, -1.0], [2.0, 0.3]]), "b": jnp.array([0.1, -0.2])}


def optax_loop(optimizer, gradient, params, steps):
    """Any optax training loop, compiled. (optax promotes dtypes by itself.)"""

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
        for _ in range(steps):
            params, state = step(params, state)
    return params


def bowl(params):
    """Gradient of a quadratic with another curvature in each coordinate."""
    return {"a": jnp.array([[1.0, 2.0], [3.0, 0.5]]) * params["a"], "b": 4 * params["b"] - 1}


@pytest.mark.parametrize(
    "kind", [il.optimizers.ScalarRate, il.optimizers.LayerRates, il.optimizers.ParameterRates]
)
def test_rates_before_meta_training_are_the_optimizer_of_that_rate(kind):
    for direction, reference in ((optax.identity, optax.sgd(0.05)), (ADAM, None)):
        learned = kind(direction, rate=0.05)
        optimizer = learned(learned.init(jax.random.key(0), PARAMS))
        reference = reference or optax.adam(0.05, eps_root=1e-16)
        got, expected = (optax_loop(each, bowl, PARAMS, 5) for each in (optimizer, reference))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


@pytest.mark.usefixtures("x64")
def test_each_rate_moves_what_it_belongs_to():
    rates = {"a": jnp.log(jnp.array([[0.1, 0.2], [0.3, 0.4]])), "b": jnp.log(jnp.array(0.5))}
    gradient = {"a": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([5.0, -6.0])}
    got, _ = il.optimizers.ParameterRates()({"log_rates": rates}).update(
        gradient, (optax.EmptyState(),) * 2
    )
    np.testing.assert_allclose(got["a"], [[-0.1, -0.4], [-0.9, -1.6]], rtol=1e-12)
    np.testing.assert_allclose(got["b"], [-2.5, 3.0], rtol=1e-12)


def _adam_direction(t, gradient, state):
    moved, state = adam("one", eps_root=1e-16)(t, 0, state, gradient, {"one": 0.0})
    return -moved, state


_ITSELF = lambda meta: meta
ORACLES = {
    "schedule": (il.optimizers.LearnedSchedule(horizon=5, knots=3), optimizer_oracle.schedule(5)),
    "sgd-hd": (
        il.optimizers.Hypergradient(hyper_rate=0.003),
        optimizer_oracle.hypergradient(lambda t, gradient, state: (gradient, None)),
    ),
    "adam-hd": (
        il.optimizers.Hypergradient(ADAM, hyper_rate=0.003),
        optimizer_oracle.hypergradient(_adam_direction),
    ),
    "small-mlp": (
        il.optimizers.SmallMLP(6, (0.5, 0.9, 0.99), (0.8, 0.95), 0.1, 0.5),
        optimizer_oracle.small_mlp(_ITSELF, (0.5, 0.9, 0.99), (0.8, 0.95), 0.1, 0.5),
    ),
    "celo2": (il.optimizers.Celo2(width=5, rate=0.1), optimizer_oracle.celo2),
    "adam-controller": (
        il.optimizers.AdamController(5, 4, 0.1),
        optimizer_oracle.alone(optimizer_oracle.adam_controller(_ITSELF, 5, 0.1)),
    ),
    "lstm": (il.optimizers.CoordinateLSTM(4, 3, 0.2), optimizer_oracle.lstm(_ITSELF, 4, 0.2)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("param", ["matrix", "vector"])
@pytest.mark.parametrize(("learned", "update"), ORACLES.values(), ids=ORACLES)
def test_seven_steps_are_those_of_the_formula(learned, update, param):
    """Seven, so that steps beyond a schedule's horizon are among them."""
    rng = np.random.default_rng(0)
    curvature = rng.uniform(0.1, 3, (3, 4) if param == "matrix" else 5)
    theta = rng.normal(size=curvature.shape)
    theta[-1] = 0  # some gradients are zero, some tiny
    theta[0] *= 1e-6
    meta = learned.init(jax.random.key(1), jnp.asarray(theta))
    # Away from the initialisation, where biases are zero and rates are all the same.
    meta = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), meta)
    got = optax_loop(learned(meta), lambda p: jnp.asarray(curvature) * p, jnp.asarray(theta), 7)

    numpy_meta, state = jax.tree.map(np.array, meta), None
    for t in range(7):
        theta, state = update(t, theta, state, curvature * theta, numpy_meta)
    np.testing.assert_allclose(got, theta, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_the_controller_sees_all_arrays():
    """What it is shown of the others is theirs: four arrays of several sizes, five steps."""
    rng = np.random.default_rng(1)
    curvatures = [rng.uniform(0.1, 3, shape) for shape in [(), (4,), (3, 2), (3, 3, 2, 4)]]
    thetas = [rng.normal(size=np.shape(each)) for each in curvatures]
    learned = il.optimizers.AdamController(3, 4, 0.1)
    start = jax.tree.map(jnp.asarray, thetas)
    meta = learned.init(jax.random.key(1), start)
    meta = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), meta)
    gradients = lambda params: jax.tree.map(lambda a, p: jnp.asarray(a) * p, curvatures, params)
    got = optax_loop(learned(meta), gradients, start, 5)
    update = optimizer_oracle.adam_controller(_ITSELF, 3, 0.1)
    numpy_meta, state = jax.tree.map(np.array, meta), None
    for t in range(5):
        slopes = [a * theta for a, theta in zip(curvatures, thetas, strict=True)]
        thetas, state = update(t, thetas, state, slopes, numpy_meta)
    for one, other in zip(got, thetas, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_nothing_to_optimise_is_optimised():
    learned = il.optimizers.AdamController()
    optimizer = learned(learned.init(jax.random.key(0), PARAMS))
    updates, _ = optimizer.update({}, optimizer.init({}), {})
    assert updates == {}
    empty = jnp.zeros((0, 3))
    updates, _ = optimizer.update(empty, optimizer.init(empty), empty)
    assert updates.shape == (0, 3)


@pytest.mark.parametrize(
    "shapes", [[(300, 200), (200,)], [(5, 5, 16, 32), (40, 10), (32,), ()]], ids=["dense", "conv"]
)
def test_the_first_step_is_as_large_as_glorots_initialisation(shapes):
    """Whatever the parameters are when the run begins: they are zero here."""
    learned, glorot = il.optimizers.AdamController(rate=0.05), jax.nn.initializers.glorot_uniform()
    zeros = {str(shape): jnp.zeros(shape) for shape in shapes}
    optimizer = learned(learned.init(jax.random.key(0), PARAMS))
    ones = jax.tree.map(jnp.ones_like, zeros)
    updates, _ = optimizer.update(ones, optimizer.init(zeros), zeros)
    matrices = [shape for shape in shapes if len(shape) > 1]
    drawn = [np.ravel(glorot(jax.random.key(1), shape)) for shape in matrices]
    size = np.sqrt(np.mean(np.concatenate(drawn) ** 2))
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.05 * size, rtol=0.02)


def test_without_matrices_the_first_step_is_the_rate():
    learned = il.optimizers.AdamController(rate=0.05)
    optimizer, params = learned(learned.init(jax.random.key(0), PARAMS)), jnp.zeros(3)
    updates, _ = optimizer.update(jnp.ones(3), optimizer.init(params), params)
    np.testing.assert_allclose(updates, -0.05, rtol=1e-5)


def test_the_controller_begins_as_adam():
    learned = il.optimizers.AdamController(rate=0.05)
    optimizer = learned(learned.init(jax.random.key(0), PARAMS))
    reference = optax.chain(
        optax.scale_by_adam(0.9, 0.99, 0, 1e-16),
        optax.scale((2 / (2 + 2)) ** 0.5),  # Glorot's, of the one matrix
        optax.add_decayed_weights(0.01),
        optax.scale_by_schedule(lambda step: -0.05 * 0.1 ** jnp.minimum(step / 100, 1)),
    )
    got, expected = (optax_loop(each, bowl, PARAMS, 5) for each in (optimizer, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


@pytest.mark.parametrize("kind", [il.optimizers.AdamController, il.optimizers.SmallMLP])
def test_a_gradient_of_other_parameters_is_refused(kind):
    learned = kind()
    optimizer = learned(learned.init(jax.random.key(0), PARAMS))
    state, wrong = optimizer.init(PARAMS), PARAMS | {"a": jnp.ones(2)}  # would be broadcast
    for gradient in (wrong, {"a": PARAMS["a"]}):
        with pytest.raises(il.errors.StructureError, match=r"not of these parameters.*jax\.grad"):
            optimizer.update(gradient, state, PARAMS)


@pytest.mark.parametrize("kind", il.optimizers.OPTIMIZERS)
def test_dtype_and_structure_of_the_parameters_are_kept(kind):
    params = {"half": jnp.ones((2, 3), jnp.bfloat16), "list": [jnp.ones(()), jnp.ones((2, 2, 3))]}
    learned = kind()
    optimizer = learned(learned.init(jax.random.key(0), params))
    moved = optax_loop(optimizer, lambda params: params, params, 2)
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)
    assert shapes(moved) == shapes(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(moved))


@pytest.mark.parametrize("kind", il.optimizers.OPTIMIZERS)
def test_a_gradient_of_zero_gives_no_nan_in_the_meta_gradient(kind):
    """A dead unit's weights have one: second moments, norms and logarithms must bear it."""
    learned, params = kind(), {"dead": jnp.ones((2, 2)), "live": jnp.ones(3)}
    loss = lambda p, meta, batch, key: jnp.sum(p["live"] ** 2) + 0 * jnp.sum(p["dead"] ** 2)
    problem = il.Problem(lambda meta, support, key: params, loss, loss)
    objective = il.meta_objective(problem, il.GradientDescent(learned, 2))
    meta = learned.init(jax.random.key(0), params)
    episode = il.Episode(jnp.ones(1), jnp.ones(1))
    grads, _ = jax.jit(jax.grad(objective, has_aux=True))(meta, episode, jax.random.key(0))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    assert any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(grads))


def test_sizes_that_the_documentation_names():
    size = lambda learned: sum(
        leaf.size for leaf in jax.tree.leaves(learned.init(jax.random.key(0), PARAMS))
    )
    each = (
        il.optimizers.Celo2(),
        il.optimizers.Celo2(8),
        il.optimizers.SmallMLP(),
        il.optimizers.CoordinateLSTM(),
        il.optimizers.AdamController(),
    )
    assert [size(it) for it in each] == [150, 330, 2082, 5141, 628]
    for kind, count in (
        (il.optimizers.Celo2, "150"),
        (il.optimizers.SmallMLP, "2,082"),
        (il.optimizers.CoordinateLSTM, "5,141"),
    ):
        assert count in kind.__doc__


def test_the_steps_size_of_celo2_is_its_rate():
    learned = il.optimizers.Celo2(rate=0.05)
    optimizer = learned(learned.init(jax.random.key(0), PARAMS))
    updates, _ = optimizer.update(bowl(PARAMS), optimizer.init(PARAMS), PARAMS)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(jnp.sqrt(jnp.mean(update**2)), 0.05, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: il.optimizers.SmallMLP(width=0), "width must be a whole number"),
        (
            lambda: il.optimizers.SmallMLP(decays=(0.9, 1.0)),
            "decays must be a tuple .*below 1.*Write: SmallMLP.*decays=",
        ),
        (lambda: il.optimizers.CoordinateLSTM(layers=0), "layers must be a whole number"),
        (lambda: il.optimizers.Celo2(rate=-1.0), "rate must be a finite number above 0"),
        (lambda: il.optimizers.LearnedSchedule(knots=1), "knots must be a whole number"),
        (
            lambda: il.optimizers.Hypergradient(hyper_rate=0.0),
            "hyper_rate must be a finite number above 0",
        ),
        (
            lambda: il.optimizers.SmallMLP(8)(
                il.optimizers.SmallMLP(4).init(jax.random.key(0), PARAMS)
            ),
            "not the meta-parameters of this SmallMLP",
        ),
        (
            lambda: il.optimizers.Celo2(8)(il.optimizers.Celo2(4).init(jax.random.key(0), PARAMS)),
            "not the meta-parameters of this Celo2",
        ),
        (
            lambda: il.optimizers.CoordinateLSTM()(
                il.optimizers.SmallMLP().init(jax.random.key(0), PARAMS)
            ),
            "not the meta-parameters of this CoordinateLSTM",
        ),
        (
            lambda: il.optimizers.SmallMLP()(
                il.optimizers.SmallMLP().init(jax.random.key(0), PARAMS)
            ).update(*(PARAMS, None)),
            "reads the parameters.*Write: optimizer.update",
        ),
        (lambda: il.optimizers.AdamController(horizon=0), "horizon must be a whole number"),
        (lambda: il.optimizers.AdamController(rate=0.0), "rate must be a finite number above 0"),
        (
            lambda: il.optimizers.AdamController(width=4)(
                il.optimizers.AdamController().init(jax.random.key(0), PARAMS)
            ),
            "not the meta-parameters of this AdamController",
        ),
        (lambda: il.optimizers.ScalarRate(rate=0.0), "rate must be a finite number above 0"),
        (
            lambda: il.optimizers.ParameterRates(rate=jnp.inf),
            "rate must be a finite number above 0",
        ),
        (
            lambda: il.optimizers.LayerRates()({"rates": 1.0}),
            "not the meta-parameters of this LayerRates",
        ),
        (
            lambda: optax_loop(
                il.optimizers.ParameterRates()({"log_rates": jnp.zeros(3)}), bowl, PARAMS, 1
            ),
            "rates do not fit the parameters.*Write: ParameterRates",
        ),
        (
            lambda: optax_loop(
                il.optimizers.LayerRates()({"log_rates": {"a": jnp.zeros(())}}), bowl, PARAMS, 1
            ),
            "rates do not fit the parameters",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(il.errors.StructureError, match=message):
        call()
