"""What a run cost, by its log and by its program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import innerloop as il
from innerloop.lab.experiments.cost import outer_step_record, training_cost

SYSTEM = {"step_seconds": 0.02, "compile_seconds": 3.0, "peak_memory_bytes": 2.0**29}
COST = {"flops_per_step": 3e9, "flops_are_lower_bound": False, "unreached": []}


def test_cost_by_the_log_counts_every_process():
    record = lambda compiled, step, peak: {
        "system": {"compile_seconds": compiled, "step_seconds": step, "peak_memory_bytes": peak}
    }
    one, two = [record(3.0, 9.0, 50), record(4.0, 1.0, 60)], [record(0.5, 2.0, 40)]
    expected = {"seconds_per_step": 2.0, "compile_seconds": 4.5, "peak_memory_bytes": 60}
    assert training_cost([*one, *two]) == expected
    assert training_cost([{"step": 1}]) == {}


def test_the_meta_gradients_program_is_counted():
    """More tasks cost more, and the leaf that nothing reads is named."""
    loss = lambda params, meta, batch, key: jnp.sum((params - batch.targets) ** 2)
    problem = il.Problem(lambda meta, support, key: meta["start"], loss, loss)
    learn = il.GradientDescent(optax.sgd(0.1), steps=2)
    start = lambda key: {"start": jnp.zeros((10, 1)), "idle": jnp.ones(3)}
    tasks = il.tasks.SinusoidTasks(10, 10)
    recipe = il.recipes.Recipe(problem, learn, il.Unroll(), start)
    few, many = (outer_step_record(recipe.estimator(tasks, batch), start) for batch in (2, 4))
    assert few["unreached"] == many["unreached"] == ["['idle']"]
    assert 0 < 1.9 * few["flops_per_step"] < many["flops_per_step"] < 2.1 * few["flops_per_step"]
    episodes, key = tasks.sample(jax.random.key(0), 2), jax.random.key(1)
    assert not few["flops_are_lower_bound"]
    (_, aux), _ = il.meta_value_and_grad(*recipe[:3])(start(key), episodes, key)
    assert list(aux.diagnostics["unreached"]) == few["unreached"]


def test_what_is_counted_is_the_first_step_of_a_schedule():
    """With the losses on the way, of which the end has none."""
    tasks = il.tasks.SinusoidTasks(10, 10)

    def operations(**settings):
        recipe = il.recipes.maml_plus_plus(
            il.models.mlp([1, 8, 1]), il.models.mean_squared_error, **settings
        )
        return outer_step_record(recipe.estimator(tasks, 2), recipe.init_meta)["flops_per_step"]

    assert operations(annealed_over=10) > 1.2 * operations(annealed_over=0)


MODEL = il.models.mlp([1, 8, 1])
PROBLEM = il.recipes.maml(MODEL, il.models.mean_squared_error).problem


def whole(steps, gradient, problem=PROBLEM):
    learn = il.GradientDescent(optax.sgd(0.1), steps)
    return il.WholeTasks(problem, learn, gradient, il.tasks.SinusoidTasks(10, 10), 1)


def test_each_part_of_a_sum_is_counted_with_its_own_gradient():
    """Second derivatives of one part, of the other, of both: the sum of the parts."""

    def operations(of_short, of_long):
        parts = (whole(1, of_short), 1.0), (whole(5, of_long), 1.0)
        both = il.estimators.WeightedSum(*parts)
        return outer_step_record(both, MODEL.init)["flops_per_step"]

    unroll, first = il.Unroll(), il.FirstOrder()
    neither, both = operations(first, first), operations(unroll, unroll)
    of_short, of_long = operations(unroll, first), operations(first, unroll)
    assert neither < of_short < of_long < both
    # What both parts compute of the same values counts once, a few operations of a step.
    np.testing.assert_allclose(of_short + of_long, neither + both, rtol=1e-3)


def test_a_leaf_that_one_part_reaches_is_reached():
    """One part reads `a` alone and the other one both."""
    loss = lambda params, meta, batch, key: jnp.sum((params - batch.targets) ** 2)
    problem = lambda *read: il.Problem(
        lambda meta, support, key: sum(meta[name] for name in read), loss, loss
    )
    init = lambda key: {"a": jnp.zeros((10, 1)), "b": jnp.ones((10, 1))}
    alone, all_of_meta = (whole(1, il.Unroll(), problem(*read)) for read in (("a",), ("a", "b")))
    assert outer_step_record(alone, init)["unreached"] == ["['b']"]
    both = il.estimators.WeightedSum(alone=(alone, 1.0), all_of_meta=(all_of_meta, 1.0))
    assert outer_step_record(both, init)["unreached"] == []


def test_a_window_is_counted_as_it_is():
    """Four particles take about twice as much as two."""
    learn = il.GradientDescent(optax.sgd(0.1), steps=1)
    tasks = il.tasks.SinusoidTasks(10, 10)

    def operations(pairs):
        windows = il.estimators.PersistentES(PROBLEM, learn, tasks, 5, 10, batch=2, pairs=pairs)
        return outer_step_record(windows, MODEL.init)["flops_per_step"]

    assert 1.7 * operations(1) < operations(2) < 2.1 * operations(1)
