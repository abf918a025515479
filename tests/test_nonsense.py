"""What once gave zeros or other nonsense without a word: it is refused, or NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.gradients import Neumann, proximal

KEY, META = jax.random.key(0), {"w": jnp.ones(3), "b": jnp.zeros(2)}


def loss(params, meta, batch, key):
    return jnp.mean((params["w"] - batch) ** 2)


PROBLEM = il.Problem(lambda meta, support, key: meta, loss, loss)
EPISODES = il.Episode(jnp.zeros((4, 3)), jnp.zeros((4, 3)))
SINES = il.tasks.SinusoidTasks(2, 2)


class Three:
    def sample(self, key, n):
        return il.Episode(jnp.zeros((3, 3)), jnp.zeros((3, 3)))


def of_a_rate(rate):
    learn = il.GradientDescent(optax.sgd(rate), 2)
    return il.meta_value_and_grad(PROBLEM, learn)(META, EPISODES, KEY)


def trained(tasks):
    learn = il.GradientDescent(optax.sgd(0.1), 1)
    estimator = il.WholeTasks(PROBLEM, learn, il.Unroll(), tasks, batch=2)
    return il.fit(estimator, META, optimizer=optax.sgd(0.1), steps=1, key=KEY)


REFUSED = {
    "a series with rate 0": (lambda: Neumann(5, rate=0.0), "rate must be"),
    "a series with a negative rate": (lambda: Neumann(5, rate=-1.0), "rate must be"),
    "a pull of 0": (lambda: proximal(PROBLEM, 0.0), "strength must be"),
    "a negative pull": (lambda: proximal(PROBLEM, -1.0), "strength must be"),
    "a pull of NaN": (lambda: proximal(PROBLEM, float("nan")), "strength must be"),
    "a complex rate": (lambda: of_a_rate(0.1 + 0.1j), "complex updates of real parameters"),
    "a leaf twice": (lambda: il.subset(META, lambda m: (m, m["w"])), "selects a leaf twice"),
    "a seed that wraps": (lambda: il.tasks.evaluation_episodes(SINES, 2, 2**32), "seed must be"),
    "another number of tasks": (lambda: trained(Three()), "3 tasks from Three"),
    "parts in the wrong order": (
        lambda: il.Learner(il.GradientDescent(optax.sgd(0.1), 1), PROBLEM),
        "problem must be a Problem",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_is_refused(call, message):
    with pytest.raises(il.errors.StructureError, match=f"{message}.*Write: "):
        call()


def test_what_is_nearly_refused_is_not():
    assert proximal(PROBLEM, lambda meta: 1.0) and proximal(PROBLEM, jnp.array(0.5))
    part, merge = il.subset(META, lambda meta: (meta["w"], meta["b"]))
    jax.tree.map(np.testing.assert_array_equal, merge(part), META)
    seeds = [il.tasks.evaluation_episodes(SINES, 2, seed) for seed in (0, 2**32 - 1)]
    assert not np.array_equal(*(each.support.inputs for each in seeds))


@pytest.mark.parametrize("sigma", [1e-12, 1e-3])
def test_a_perturbation_below_the_precision_gives_nan_and_not_zero(sigma):
    learn = il.GradientDescent(optax.sgd(0.1), 1)
    meta = {"w": jnp.ones(3), "b": jnp.ones(2)}
    gradient = il.EvolutionStrategies(2, sigma)
    _, grads = il.meta_value_and_grad(PROBLEM, learn, gradient)(meta, EPISODES, KEY)
    assert np.all(np.isnan(grads["w"])) == (sigma < 1e-7)
    one = jax.tree.map(lambda leaf: leaf[0], EPISODES)
    parts = (PROBLEM, learn, il.tasks.IndependentTasks(lambda key: one))
    sizes = {"window": 1, "horizon": 2, "batch": 2, "pairs": 2}
    runs = il.estimators.PersistentES(*parts, **sizes, sigma=sigma)
    estimate, _ = runs.step(meta, runs.init(meta, KEY), None, KEY, jnp.int32(0))
    assert np.isfinite(estimate.loss) == (sigma > 1e-7)
