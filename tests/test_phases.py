"""What changes during meta-training: problem and adaptation by a schedule, estimators by phases."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import config
from points import KEY, POINTS, assert_same_bits, point_loss, point_recipe
from quick import without

import innerloop as il
from innerloop.training._fit import run_keys

RATE, STEPS, BATCH = 0.1, 7, 3
RECIPE = point_recipe(steps=2)
GRADIENTS = {2: il.FirstOrder(), 5: il.Truncated(0), STEPS + 1: il.Unroll()}
Phases = il.estimators.Phases


def weighted(outer_step):
    """The losses after each step, the last more and more; and a rate that falls."""
    outer_step = outer_step.astype(jnp.float32)
    share = outer_step / (outer_step + 1)
    weights = lambda steps: jnp.full(steps + 1, 1 - share).at[-1].set(share)
    learn = il.GradientDescent(optax.sgd(0.1 / (outer_step + 1)), 2)
    return dataclasses.replace(RECIPE.problem, step_weights=weights), learn


def in_phases(recipe):
    """Three meta-gradients, one after the other."""
    first, second, last = (
        recipe._replace(gradient=gradient).estimator(POINTS, BATCH)
        for gradient in GRADIENTS.values()
    )
    ends = list(GRADIENTS)
    return Phases(first, Phases(second, last, until=ends[1]), until=ends[0])


def of_phase(step):
    return next(gradient for end, gradient in GRADIENTS.items() if step < end)


def by_hand(recipe, estimator, gradient_of_step):
    """Outer steps one after the other, each with its own program."""
    meta = recipe.init_meta(run_keys(KEY)[0])
    for step in range(STEPS):
        episodes, keys = il.training.tasks_of_step(estimator, KEY, step)
        objective = il.meta_objective(
            *recipe.estimator(POINTS, BATCH).at(step), gradient_of_step(step)
        )
        tasks = [jax.tree.map(lambda leaf, i=i: leaf[i], episodes) for i in range(BATCH)]
        grads = [
            jax.grad(objective, has_aux=True)(meta, task, key)[0]
            for task, key in zip(tasks, keys, strict=True)
        ]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / BATCH, *grads)
        meta = jax.tree.map(lambda leaf, slope: leaf - RATE * slope, meta, mean)
    return meta


def trained(estimator, init_meta=RECIPE.init_meta, **changed):
    options = {"optimizer": optax.sgd(RATE), "steps": STEPS, "key": KEY, "per_call": 3}
    return il.fit(estimator, init_meta, **(options | changed))


SCHEDULED = RECIPE._replace(schedule=weighted)


@pytest.mark.parametrize(
    ("recipe", "estimator", "gradient"),
    [
        (SCHEDULED, SCHEDULED.estimator(POINTS, BATCH), lambda step: il.Unroll()),
        (RECIPE, in_phases(RECIPE), of_phase),
        pytest.param(SCHEDULED, in_phases(SCHEDULED), of_phase, marks=pytest.mark.full),
    ],
    ids=["schedule", "phases", "both"],
)
def test_each_step_is_that_of_its_problem_and_its_gradient(recipe, estimator, gradient):
    expected = by_hand(recipe, estimator, gradient)
    np.testing.assert_allclose(trained(estimator).last["x"], expected["x"], rtol=1e-5)
    unchanged = by_hand(RECIPE, estimator, lambda step: il.Unroll())
    assert not np.allclose(expected["x"], unchanged["x"], rtol=1e-2)


def test_a_run_goes_on_in_the_phase_that_it_was_in(tmp_path):
    estimator = in_phases(SCHEDULED)
    saved = il.training.Checkpoints(tmp_path, every=2)
    whole = trained(estimator)
    trained(estimator, steps=3, checkpoints=saved)
    assert_same_bits(trained(estimator, checkpoints=saved, resume=True).last, whole.last)


def test_the_recipe_of_maml_plus_plus_follows_phases():
    model = il.models.mlp([1, 4, 1])
    recipe = il.recipes.maml_plus_plus(model, il.models.mean_squared_error, first_order_until=7)
    estimator = recipe.estimator(il.tasks.SinusoidTasks(3, 3), 2)
    assert isinstance(estimator, Phases) and estimator.until == 7
    assert "held constant" in estimator.first.fidelity().sentence
    assert estimator.then.fidelity().kind == "exact"
    plain = il.recipes.maml_plus_plus(model, il.models.mean_squared_error)
    assert isinstance(plain.estimator(il.tasks.SinusoidTasks(3, 3), 2), il.WholeTasks)


def test_a_fault_is_found_in_every_phase():
    """One task of each step has a loss that is not a number."""

    def broken(params, meta, batch, key):
        loss, metrics = point_loss(params, meta, batch, key)
        return jnp.where(batch[0] > 0.5, jnp.nan, loss), metrics

    estimator, reports = in_phases(point_recipe(broken, steps=2)), []
    trained(estimator, non_finite=il.training.Skip(in_a_row=STEPS), report=reports.append)
    found = {report.fault.step: report.fault.tasks for report in reports if report.fault}
    points = [
        il.training.tasks_of_step(estimator, KEY, step).episodes.query[:, 0]
        for step in range(STEPS)
    ]
    spoiled = {step: tuple(np.flatnonzero(row > 0.5)) for step, row in enumerate(points)}
    assert found == {step: tasks for step, tasks in spoiled.items() if tasks}
    assert len({step < 2 for step in found}) == 2


# --- phases whose states differ -------------------------------------------------------------------

PROBLEM, DYNAMICS, INFLUENCE = il.tasks.influence_balancing()
RUNS = (PROBLEM, DYNAMICS, INFLUENCE, 5, 20)
WINDOWS = il.estimators.TruncatedUnroll(*RUNS, 4)
PERSISTENT = il.estimators.PersistentES(*RUNS, 2, pairs=3, sigma=0.1)
WHOLE = il.WholeTasks(PROBLEM, il.GradientDescent(DYNAMICS.optimizer, 4), il.Unroll(), INFLUENCE, 2)
STATES = {
    "windows, then evolution": Phases(WINDOWS, PERSISTENT, until=3),
    "whole tasks, then windows": Phases(WHOLE, WINDOWS, until=3),
    "windows beside whole tasks": il.estimators.WeightedSum((WINDOWS, 3.0), (WHOLE, 1.0)),
    "phases beside windows": il.estimators.WeightedSum(
        phases=(Phases(WINDOWS, PERSISTENT, until=3), 1.0), windows=(WINDOWS, 1.0)
    ),
    "a sum in the second phase": Phases(
        WINDOWS, il.estimators.WeightedSum((WHOLE, 1.0), (PERSISTENT, 1.0)), until=3
    ),
}
INIT = jnp.float32(0.5)


@pytest.mark.parametrize(
    "name", without({"phases beside windows", "a sum in the second phase"}, STATES)
)
@pytest.mark.parametrize("saved_at", without({2, 4}, [2, 3, 4]))
def test_states_are_renewed_at_the_boundary_also_by_a_run_that_goes_on(name, saved_at, tmp_path):
    estimator = STATES[name]
    whole = trained(estimator, INIT)
    saved = il.training.Checkpoints(tmp_path, every=100)
    trained(estimator, INIT, steps=saved_at, checkpoints=saved)
    on = trained(estimator, INIT, checkpoints=saved, resume=True)
    assert_same_bits(on.last, whole.last)


def test_the_second_phase_is_a_run_that_begins_at_its_step():
    """By hand: its first state is of the meta-parameters at the boundary."""
    init_key, step_key, _ = run_keys(KEY)
    estimator = STATES["windows, then evolution"]
    meta = trained(estimator, INIT, steps=3).last
    own_key = jax.random.fold_in(jax.random.fold_in(init_key, 1), 3)
    state = PERSISTENT.init(meta, own_key)
    for step in (3, 4):
        found, state = PERSISTENT.step(meta, state, None, step_key, jnp.int32(step))
        meta = meta - RATE * found.grads
    np.testing.assert_allclose(trained(estimator, INIT, steps=5).last, meta, rtol=1e-5)


def test_metrics_are_those_of_the_phase():
    reports = []
    trained(STATES["whole tasks, then windows"], INIT, report=reports.append)
    assert [("diverged" in report.metrics) for report in reports] == [False, True, True]
    assert [report.step for report in reports] == [3, 6, 7]


def test_fidelity_is_the_least_of_the_parts_and_names_them():
    fidelity = STATES["phases beside windows"].fidelity()
    assert fidelity.kind == "biased"
    assert "phases: until step 3: " in fidelity.sentence and "windows: " in fidelity.sentence
    assert STATES["whole tasks, then windows"].fidelity().sentence.startswith("until step 3: Noth")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Phases(WHOLE, WINDOWS, until=0), "until must be a whole number of at least 1"),
        (
            lambda: Phases(WHOLE, il.Unroll(), until=2),
            r"then must be an estimator.*Unroll.*Whole",
        ),
        (lambda: trained(Phases(WHOLE, WHOLE, until=2), INIT, memory="1GiB"), "whole tasks"),
    ],
    ids=["empty", "a meta-gradient", "budget"],
)
def test_what_phases_cannot_be_is_refused(make, message):
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(il.errors.StructureError, match=message):
            make()
    finally:
        config.update("jaxtyping_disable", False)


def test_a_pair_that_makes_no_sense_is_refused_before_anything_is_trained():
    recipe = RECIPE._replace(gradient=il.Implicit(), schedule=weighted)
    with pytest.raises(il.errors.GradientError, match="does not exist"):
        recipe.estimator(POINTS, BATCH)


@pytest.mark.parametrize("asked", [{"memory": "1GiB"}, {"check": True}], ids=["budget", "check"])
def test_what_is_looked_at_beforehand_is_the_first_step(asked):
    """A first step whose inner loop has no derivative is told from a last one that has."""

    def detached(outer_step):
        cut = lambda meta, support, key: jax.lax.stop_gradient(meta)
        return il.Problem(cut, point_loss, point_loss), RECIPE.adaptation

    with pytest.raises(il.errors.GradientError, match=r"cut off|detached|reach"):
        trained(RECIPE._replace(schedule=detached).estimator(POINTS, BATCH), **asked)
    trained(RECIPE.estimator(POINTS, BATCH), **asked)


def test_every_part_is_checked_with_its_own_gradient():
    """A gradient of one part that no meta-parameter reaches is found, and named."""
    cut = lambda meta, support, key: jax.lax.stop_gradient(meta)
    detached = RECIPE._replace(problem=il.Problem(cut, point_loss, point_loss))
    both = [each.estimator(POINTS, BATCH) for each in (RECIPE, detached)]
    for estimator in (
        il.estimators.WeightedSum((both[0], 1.0), (both[1], 1.0)),
        Phases(*both, until=2),
    ):
        with pytest.raises(il.errors.GradientError, match=r"cut off|detached|reach"):
            trained(estimator, check=True)
