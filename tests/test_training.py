"""The outer loop and evaluation."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fitting import fit
from jaxtyping import config
from points import (
    HELD_OUT,
    KEY,
    POINTS,
    assert_same_bits,
    losses,
    point_loss,
    point_recipe,
    train,
)

import innerloop as il
from innerloop.adaptation import Procedure
from innerloop.errors import RunError, StructureError
from innerloop.estimators import WeightedSum, WholeTasks
from innerloop.gradients import FirstOrder, Unroll
from innerloop.models import mean_squared_error, mlp
from innerloop.problem import Episode, Problem
from innerloop.recipes import maml
from innerloop.tasks import IndependentTasks, SinusoidTasks, evaluation_episodes
from innerloop.training import Skip, Validation, evaluate
from innerloop.training._fit import run_keys
from innerloop.training.outer_loop import Program, init_state, outer_steps

# --- fit: determinism and compilation -----------------------------------------------------------


def test_the_same_key_gives_the_same_bits_and_another_key_does_not():
    first, second = train()[0], train()[0]
    assert_same_bits(first.meta, second.meta)
    other = train(key=jax.random.key(1))[0]
    assert not np.array_equal(first.meta["x"], other.meta["x"])


@pytest.mark.parametrize("per_call", [3, 7, 20])
def test_how_steps_are_divided_over_calls_changes_nothing(per_call):
    one, by_one = train(per_call=1)
    more, reports = train(per_call=per_call)
    np.testing.assert_allclose(losses(reports), losses(by_one), rtol=1e-5)
    np.testing.assert_allclose(more.meta["x"], one.meta["x"], rtol=1e-5)


def test_validation_does_not_change_the_training():
    plain, reports = train()
    validated, more = train(validation=Validation(HELD_OUT, every=2))
    np.testing.assert_allclose(losses(more), losses(reports), rtol=1e-5)
    np.testing.assert_allclose(validated.last["x"], plain.last["x"], rtol=1e-5)


def test_everything_is_traced_in_the_first_call_only():
    traces = []

    def loss(*arguments):
        traces.append(None)
        return point_loss(*arguments)

    counts = []
    fit(
        point_recipe(loss),
        POINTS,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 11)),
        steps=11,
        batch=2,
        key=KEY,
        per_call=3,
        averaging=0.5,
        validation=Validation(HELD_OUT, every=2),
        report=lambda progress: counts.append(len(traces)),
    )
    assert counts[0] > 0
    assert len(set(counts)) == 1


def test_one_compilation_serves_every_number_of_steps():
    recipe, optimizer = point_recipe(), optax.adam(optax.cosine_decay_schedule(0.1, 11))
    traces = []

    def loss(*arguments):
        traces.append(None)
        return point_loss(*arguments)

    program = Program(point_recipe(loss).estimator(POINTS, 2), optimizer, 0.5)
    state, counts = init_state(recipe.init_meta(KEY), optimizer), []
    for n in (4, 1, 3):
        state, metrics, sound = outer_steps(program, state, None, KEY, jnp.int32(n), 4)
        assert sound == n
        assert np.isfinite(metrics["loss"]).sum() == n
        counts.append(len(traces))
    assert counts[0] > 0 and len(set(counts)) == 1
    assert int(state.step) == 8


def test_a_second_run_of_the_same_estimator_compiles_nothing():
    traces = []

    def loss(*arguments):
        traces.append(None)
        return point_loss(*arguments)

    estimator, optimizer = point_recipe(loss).estimator(POINTS, 2), optax.adam(0.1)
    init = point_recipe().init_meta
    counts = []
    for seed in (0, 1):
        il.fit(estimator, init, optimizer=optimizer, steps=2, key=jax.random.key(seed))
        counts.append(len(traces))
    assert counts[0] == counts[1] > 0


def test_meta_parameters_or_a_function_that_makes_them():
    recipe, options = point_recipe(), {"optimizer": optax.sgd(0.1), "steps": 2, "key": KEY}
    estimator = recipe.estimator(POINTS, 3)
    made = il.fit(estimator, recipe.init_meta, **options)
    given = il.fit(estimator, recipe.init_meta(run_keys(KEY)[0]), **options)
    assert_same_bits(made.last, given.last)


def test_arrays_of_an_estimator_are_no_constants_of_the_program():
    """Half a megabyte of data, which is an argument."""

    class Stored(eqx.Module):
        data: jax.Array

        def sample(self, key, n):
            rows = jax.random.randint(key, (n,), 0, len(self.data))
            return Episode(self.data[rows], self.data[rows])

    tasks = Stored(jnp.ones((2**16, 2)))
    program = Program(point_recipe().estimator(tasks, 2), optax.sgd(0.1), 0.0)
    state = init_state(point_recipe().init_meta(KEY), optax.sgd(0.1))
    lowered = eqx.filter_jit(outer_steps.__wrapped__).lower(
        program, state, None, KEY, jnp.int32(1), 4
    )
    assert len(lowered.as_text()) < 2**17


# --- fit: errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("per_call", [1, 3, 20])
def test_a_loss_that_is_not_finite_names_its_step(per_call):
    rate = lambda count: jnp.where(count == 3, jnp.inf, 0.1)  # steps 0 ... 3 have finite losses
    with pytest.raises(RunError, match="at outer step 4"):
        train(optimizer=optax.sgd(rate), per_call=per_call)


def test_the_average_of_a_narrow_type_moves():
    recipe = point_recipe()._replace(init_meta=lambda key: {"x": jnp.ones(2, jnp.bfloat16)})
    far = lambda params, meta, batch, key: jnp.sum(params["x"]).astype(jnp.float32)
    recipe = recipe._replace(problem=Problem(lambda meta, support, key: meta, None, far))
    recipe = recipe._replace(adaptation=Procedure(lambda meta, support, key: meta))
    outcome = train(recipe, optimizer=optax.sgd(1.0), steps=50, averaging=0.99)[0]
    mean = 1 - sum(k * 0.01 * 0.99 ** (50 - k) for k in range(1, 51))
    assert outcome.last["x"].dtype == jnp.bfloat16
    np.testing.assert_allclose(outcome.last["x"].astype(jnp.float32), mean, rtol=1e-2)


def test_whole_numbers_among_the_metrics_are_weighted():
    def sample(key):
        point = jax.random.normal(key, (2,))
        return Episode(point, point, weight=jnp.float32(0.25))

    def loss(params, meta, batch, key):
        return jnp.sum(params["x"] ** 2), {"count": jnp.int32(3), "right": jnp.bool_(True)}

    _, reports = train(point_recipe(loss), IndependentTasks(sample))
    assert np.all(reports[0].metrics["count"] == 3)
    assert np.all(reports[0].metrics["right"] == 1)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("non_finite", "skip"),
        ("non_finite", Skip),
        ("checkpoints", "folder"),
        ("averaging", 1.0),
        ("averaging", -0.1),
        ("minutes", float("nan")),
    ],
)
def test_arguments_of_another_kind_are_refused(name, given):
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(StructureError, match=f"{name} must be .*Write: fit\\(.*{name}="):
            train(**{name: given})
    finally:
        config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", ["steps", "batch", "per_call"])
@pytest.mark.parametrize("count", [0, -1, True])
def test_counts_below_one_are_refused(name, count):
    with pytest.raises(StructureError, match=name):
        train(**{name: count})


def test_validation_every_no_steps_is_refused():
    with pytest.raises(StructureError, match="every"):
        train(validation=Validation(HELD_OUT, every=0))


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(StructureError, match="chunk"):
        train(chunk=0)


def test_the_leaves_of_aux_are_logged_and_validated_by_their_paths():
    def loss(params, meta, batch, key):
        value = point_loss(params, meta, batch, key)[0]
        return value, {"error": {"twice": 2 * value, "parts": (value, 3 * value)}}

    validation = Validation(HELD_OUT, every=2, metric="error.twice", maximise=False)
    _, reports = train(point_recipe(loss), steps=2, validation=validation)
    for found in (reports[0].metrics, reports[0].evaluation.mean):
        for name, factor in {"twice": 2, "parts.0": 1, "parts.1": 3}.items():
            np.testing.assert_allclose(found[f"error.{name}"], factor * found["loss"], rtol=1e-6)


def test_training_refuses_an_aux_that_is_no_number():
    def loss(params, meta, batch, key):
        return point_loss(params, meta, batch, key)[0], {"each": jnp.zeros(3)}

    with pytest.raises(StructureError, match="real scalars"):
        train(point_recipe(loss), steps=2)


def test_logged_metrics_are_weighted_as_the_loss_is():
    """A masked task counts in neither; weight 3 counts three times."""
    weights = jnp.array([1.0, 0.0, 3.0])

    class Weighted(NamedTuple):
        def sample(self, key, n):
            episodes = POINTS.sample(key, n)
            return Episode(episodes.support, episodes.query, weights)

    recipe = point_recipe()
    outer_loss = lambda params, meta, batch, key: (
        recipe.problem.outer_loss(params, meta, batch, key)[0],
        {"same": recipe.problem.outer_loss(params, meta, batch, key)[0]},
    )
    problem = dataclasses.replace(recipe.problem, outer_loss=outer_loss)
    _, reports = train(recipe._replace(problem=problem), Weighted())
    metrics = reports[0].metrics
    np.testing.assert_allclose(metrics["same"], metrics["loss"], rtol=1e-6)


# --- fit: it learns -----------------------------------------------------------------------------


def test_a_weighted_sum_trains():
    recipe = point_recipe()
    near = IndependentTasks(lambda key: Episode(jnp.ones(2), jnp.ones(2)))
    both = WeightedSum((recipe.estimator(POINTS, 1), 1.0), (recipe.estimator(near, 3), 3.0))
    reports, options = [], {"optimizer": optax.sgd(0.2), "steps": 30, "per_call": 10, "key": KEY}
    outcome = il.fit(both, recipe.init_meta, report=reports.append, **options)
    assert losses(reports)[-1] < 0.5 * losses(reports)[0]
    np.testing.assert_allclose(outcome.meta["x"], 0.75, atol=0.5)


def test_sinusoids_are_learned_to_be_learned():
    recipe = maml(mlp([1, 20, 20, 1]), mean_squared_error, 0.02, 1)
    held_out = evaluation_episodes(SinusoidTasks(10, 20), 100, 0)
    outcome = fit(
        recipe,
        SinusoidTasks(10, 10),
        optimizer=optax.adam(3e-3),
        steps=1500,
        batch=8,
        key=KEY,
        per_call=500,
    )
    before = recipe.init_meta(jax.random.split(KEY, 3)[0])
    curves = [
        evaluate(recipe.learner, meta, held_out, KEY, steps=5).mean["loss"]
        for meta in (before, outcome.meta)
    ]
    assert curves[1][5] < 0.7 * curves[1][0]  # it adapts
    assert curves[1][5] < 0.7 * curves[0][5]  # better than without meta-training


# --- fit: a budget of memory --------------------------------------------------------------------


@pytest.mark.full
def test_a_budget_gives_what_its_plan_gives_by_hand():
    recipe = maml(mlp([1, 16, 1]), mean_squared_error, 0.01, 2)
    tasks, options = SinusoidTasks(5, 5), {"batch": 8, "steps": 2}
    budgeted = train(recipe, tasks, memory="1GiB", **options)[0]
    plan = budgeted.plan
    assert budgeted.estimator.chunk == (plan.chunk or 8)
    by_hand = recipe._replace(gradient=plan.gradient)
    assert_same_bits(budgeted.meta, train(by_hand, tasks, chunk=plan.chunk, **options)[0].meta)
    exact = train(recipe, tasks, **options)[0]
    for a, b in zip(jax.tree.leaves(budgeted.meta), jax.tree.leaves(exact.meta), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_budget_holds_the_trainers_own_state():
    recipe = maml(mlp([1, 64, 64, 1]), mean_squared_error, 0.01, 1)
    optimizer, memory = optax.adam(0.1), 600 * 1024
    outcome, _ = train(recipe, SinusoidTasks(5, 5), batch=8, steps=1, memory=memory)
    program = Program(outcome.estimator, optimizer, 0.5)
    state = init_state(recipe.init_meta(KEY), optimizer)
    compiled = (
        eqx.filter_jit(outer_steps.__wrapped__)
        .lower(program, state, None, KEY, jnp.int32(4), 4)
        .compile()
    )
    sizes = compiled.compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    assert outcome.plan.memory < memory
    assert held + sizes.temp_size_in_bytes <= memory


def test_a_biased_gradient_is_kept_and_its_chunk_planned():
    recipe = point_recipe()._replace(gradient=FirstOrder())
    planned = train(recipe, memory="1GiB", steps=1)[0].estimator
    assert eqx.tree_equal(planned.gradient, FirstOrder())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"memory": "1GiB", "chunk": 1}, "by hand or by a budget"),
        ({"memory": "a lot"}, "not an amount of memory"),
        ({"memory": 10}, "what the trainer keeps"),
        ({"memory": 170}, "no meta-gradient"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(changed, message):
    with pytest.raises(StructureError, match=message):
        train(**changed)


def test_a_weighted_sum_has_no_budget():
    recipe = point_recipe()
    alone = WeightedSum((recipe.estimator(POINTS, 2), 1.0))
    options = {"optimizer": optax.sgd(0.1), "steps": 1, "key": KEY}
    with pytest.raises(StructureError, match=r"whole tasks.*WeightedSum.*Write: WholeTasks\("):
        il.fit(alone, recipe.init_meta, memory="1GiB", **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"key": 0}, r"random key.*Write: .*jax.random.key"),
        ({"optimizer": 0.01}, r"optimizer must be.*optimizer=0.01.*optax.adam"),
        ({"estimator": [1, 2]}, r"estimator must be.*WholeTasks"),
        ({"validation": "episodes"}, r"validation must be.*Validation\(episodes"),
        ({"validation": {}}, r"several validations.*at least one"),
        ({"validation": {"a": 1}}, r"several validations.*'a': 1"),
    ],
)
def test_arguments_of_another_kind_are_named(given, message):
    recipe = maml(mlp([1, 4, 1]), mean_squared_error, 0.01, 1)
    options = {"estimator": recipe.estimator(SinusoidTasks(3, 3), 1), "optimizer": optax.sgd(0.1)}
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(StructureError, match=message):
            il.fit(init_meta=recipe.init_meta, steps=1, **({"key": KEY} | options | given))
    finally:
        config.update("jaxtyping_disable", False)


def test_tasks_are_drawn_from_a_distribution():
    recipe = point_recipe()
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(StructureError, match=r"tasks must be a task dist.*tasks=\[1, 2"):
            WholeTasks(recipe.problem, recipe.adaptation, Unroll(), [1, 2], 3)
    finally:
        config.update("jaxtyping_disable", False)


def test_meta_without_a_gradient_is_refused_before_anything_is_made_of_it():
    estimator = point_recipe().estimator(POINTS, 2)
    options = {"optimizer": optax.adam(0.1), "steps": 1, "key": KEY}
    with pytest.raises(StructureError, match=r"meta\['x'\] is not a floating-point array"):
        il.fit(estimator, {"x": jnp.arange(2)}, **options)
