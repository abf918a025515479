"""Laws of every estimator: what `fit` relies on, whichever it follows."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from halving import ESTIMATORS, assert_same_step, begun
from quick import without

every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=[*ESTIMATORS])


def typed(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)


def assert_same_bits(first, second):
    jax.tree.map(np.testing.assert_array_equal, *map(numbers, (first, second)))


def numbers(tree):
    keyed = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if keyed(x) else x, tree)


@every_estimator
def test_an_estimate_is_of_meta_and_the_state_keeps_its_structure(estimator):
    step, meta, state = begun(estimator)
    estimate, after = step(meta, state, jax.random.key(0))
    assert typed(estimate.grads) == typed(meta)
    assert jnp.shape(estimate.loss) == ()
    assert all(jnp.shape(leaf) == () for leaf in jax.tree.leaves(estimate.metrics))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert typed(after) == typed(state)


@every_estimator
def test_the_same_key_gives_the_same_bits_and_another_one_does_not(estimator):
    step, meta, state = begun(estimator)
    first, again = (step(meta, state, jax.random.key(0)) for _ in range(2))
    assert_same_bits(first, again)
    other = estimator.init(meta, jax.random.key(1))
    assert step(meta, other, jax.random.key(1))[0].loss != first[0].loss


@every_estimator
def test_what_a_run_is_compared_and_placed_by(estimator):
    """Settings are JSON, and which leaves are shared out over devices is said of every leaf."""
    json.dumps(estimator.settings())
    _, _, state = begun(estimator)
    shared = jax.tree.broadcast(estimator.per_task(state), state)
    assert all(isinstance(leaf, bool) for leaf in jax.tree.leaves(shared))
    fidelity = estimator.fidelity()
    assert fidelity.kind != "undefined"
    assert fidelity.sentence.endswith(".")


@pytest.mark.parametrize("name", without({*ESTIMATORS} - {"sum"}, ESTIMATORS))
def test_a_step_on_a_device_is_the_same(name):
    """On one, in this process; `on_eight_devices.py` runs the same on several."""
    assert_same_step(ESTIMATORS[name], 1)
