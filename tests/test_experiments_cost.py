"""What a run cost, by its log and by its program."""

import jax
import jax.numpy as jnp
import optax

import innerloop as il
from innerloop.lab.experiments.base import Parts
from innerloop.lab.experiments.cost import meta_gradient_record, training_cost

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
    parts = Parts(recipe, tasks, tasks, tasks, "loss", False, "none")
    outcome = il.training.Fit(None, None, step=0, best_step=0, faults=0, chunk=None, plan=None)
    few, many = (meta_gradient_record(parts, outcome, batch) for batch in (2, 4))
    assert few["unreached"] == many["unreached"] == ["['idle']"]
    assert 0 < 1.9 * few["flops_per_step"] < many["flops_per_step"] < 2.1 * few["flops_per_step"]
    episodes, key = tasks.sample(jax.random.key(0), 2), jax.random.key(1)
    assert not few["flops_are_lower_bound"]
    (_, aux), _ = il.meta_value_and_grad(*recipe[:3])(start(key), episodes, key)
    assert list(aux.diagnostics["unreached"]) == few["unreached"]


def test_what_is_counted_is_the_first_step_of_a_schedule():
    """With the losses on the way, of which the end has none."""
    tasks, outcome = (
        il.tasks.SinusoidTasks(10, 10),
        il.training.Fit(None, None, 0, 0, 0, None, None),
    )

    def operations(**settings):
        recipe = il.recipes.maml_plus_plus(
            il.models.mlp([1, 8, 1]), il.models.mean_squared_error, **settings
        )
        parts = Parts(recipe, tasks, tasks, tasks, "loss", False, "none")
        return meta_gradient_record(parts, outcome, 2)["flops_per_step"]

    assert operations(annealed_over=10) > 1.2 * operations(annealed_over=0)


def test_each_kind_of_a_mixture_is_counted_with_its_own_gradient():
    """Second derivatives of one kind, of the other, of both: the sum of the kinds."""
    model = il.models.mlp([1, 8, 1])
    loss = il.models.supervised_loss(model, il.models.mean_squared_error)
    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    short, long = (il.GradientDescent(optax.sgd(0.1), steps) for steps in (1, 5))
    tasks, outcome = (
        il.tasks.SinusoidTasks(10, 10),
        il.training.Fit(None, None, 0, 0, 0, None, None),
    )
    problems, adaptations, mixed = il.tasks.mixture((problem, short, tasks), (problem, long, tasks))

    def operations(*gradients):
        recipe = il.recipes.Recipe(problems, adaptations, gradients, model.init)
        parts = Parts(recipe, mixed, mixed, mixed, "loss", False, "none")
        return meta_gradient_record(parts, outcome, 2)["flops_per_step"]

    unroll, first = il.Unroll(), il.FirstOrder()
    neither, both = operations(first, first), operations(unroll, unroll)
    of_short, of_long = operations(unroll, first), operations(first, unroll)
    assert neither < of_short < of_long < both
    assert of_short + of_long == neither + both
