"""Laws of every task distribution: pure, and made of tasks that know nothing of each other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from innerloop.errors import StructureError
from innerloop.problem import Episode, Examples
from innerloop.tasks import (
    ClassificationTasks,
    IndependentTasks,
    SinusoidTasks,
    TaskDistribution,
    digits,
    evaluation_episodes,
    with_quarter_turns,
)


def _constant_task(key):
    inputs = jax.random.normal(key, (2, 1))
    return Episode(Examples(inputs, inputs), Examples(inputs, inputs))


_IMAGES = np.random.RandomState(0).randint(0, 256, (3, 4, 2, 2)).astype(np.uint8)
DISTRIBUTIONS = {
    "sinusoid": SinusoidTasks(shots=3, queries=2),
    "classification": ClassificationTasks(with_quarter_turns(_IMAGES), ways=2, shots=1, queries=2),
    "own": IndependentTasks(_constant_task),
}
every_distribution = pytest.mark.parametrize("tasks", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


@eqx.filter_jit
def sample(tasks, key, n):
    return tasks.sample(key, n)


def leaves(episode):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(episode)]


def assert_same_bits(first, second):
    assert all(np.array_equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))


def inputs_differ(first, second):
    return not np.array_equal(first.support.inputs, second.support.inputs)


@every_distribution
def test_is_a_task_distribution(tasks):
    assert isinstance(tasks, TaskDistribution)
    assert not isinstance(object(), TaskDistribution)


@every_distribution
def test_same_key_same_bits_and_another_key_other_tasks(tasks):
    first = sample(tasks, jax.random.key(0), 4)
    assert_same_bits(first, sample(tasks, jax.random.key(0), 4))
    assert inputs_differ(first, sample(tasks, jax.random.key(1), 4))


@every_distribution
def test_jit_equals_eager(tasks):
    compiled, eager = sample(tasks, jax.random.key(0), 2), tasks.sample(jax.random.key(0), 2)
    for a, b in zip(leaves(compiled), leaves(eager), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@every_distribution
def test_task_depends_on_its_own_key_only(tasks):
    key = jax.random.key(3)
    four = sample(tasks, key, 4)
    assert_same_bits(jax.tree.map(lambda leaf: leaf[:2], four), sample(tasks, key, 2))
    block = eqx.filter_jit(eqx.filter_vmap(tasks.sample_one))(jax.random.split(key, 4)[2:])
    assert_same_bits(jax.tree.map(lambda leaf: leaf[2:], four), block)


@every_distribution
def test_tasks_of_a_batch_differ(tasks):
    batch = sample(tasks, jax.random.key(5), 4)
    assert len(np.unique(np.asarray(batch.support.inputs).reshape(4, -1), axis=0)) == 4


@every_distribution
def test_evaluation_set_is_fixed_by_its_seed(tasks):
    episodes = evaluation_episodes(tasks, 4, 0)
    assert all(len(leaf) == 4 for leaf in leaves(episodes))
    assert_same_bits(episodes, evaluation_episodes(tasks, 4, 0))
    first = jax.tree.map(lambda leaf: leaf[:2], episodes)
    assert_same_bits(first, evaluation_episodes(tasks, 2, 0))
    assert inputs_differ(episodes, evaluation_episodes(tasks, 4, 1))
    assert inputs_differ(episodes, evaluation_episodes(tasks, 4, 0, "validation"))
    assert_same_bits(episodes, evaluation_episodes(tasks, 4, 0, "test"))


@every_distribution
def test_evaluation_set_is_not_the_first_training_batch_of_the_same_seed(tasks):
    assert inputs_differ(evaluation_episodes(tasks, 4, 0), sample(tasks, jax.random.key(0), 4))


@pytest.mark.parametrize("n", [0, -1])
@every_distribution
def test_fewer_than_one_task_is_refused(tasks, n):
    with pytest.raises(StructureError, match=f"n={n}"):
        tasks.sample(jax.random.key(0), n)
    with pytest.raises(StructureError, match=f"n={n}"):
        evaluation_episodes(tasks, n, 0)


@every_distribution
def test_double_precision_gives_doubles_and_int32_labels(tasks, x64):
    batch = sample(tasks, jax.random.key(0), 2)
    types = {leaf.dtype for leaf in leaves(batch)}
    assert batch.support.inputs.dtype == jnp.float64
    assert types <= {np.dtype("float64"), np.dtype("int32")}


def test_data_are_arguments_of_a_compiled_function_and_not_constants():
    tasks = ClassificationTasks(digits().train, ways=5, shots=1, queries=1)
    program = jax.make_jaxpr(lambda tasks, key: tasks.sample(key, 2))(tasks, jax.random.key(0))
    constants = sum(np.asarray(constant).nbytes for constant in program.consts)
    assert constants < tasks.classes.rows.nbytes / 100
