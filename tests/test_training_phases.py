"""What changes during meta-training: problem and adaptation by a schedule, gradients by phases."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import KEY, POINTS, assert_same_bits, point_loss, point_recipe, train

import innerloop as il
from innerloop.training.batch import run_keys

RATE, STEPS, BATCH = 0.1, 7, 3
RECIPE = point_recipe(steps=2)
ONLINE = il.estimators.PersistentES(5, 5, pairs=1, sigma=0.1)
PHASES = (il.recipes.Phase(2, il.FirstOrder()), il.recipes.Phase(5, il.Truncated(0)))


def weighted(outer_step):
    """The losses after each step, the last more and more; and a rate that falls."""
    outer_step = outer_step.astype(jnp.float32)
    share = outer_step / (outer_step + 1)
    weights = lambda steps: jnp.full(steps + 1, 1 - share).at[-1].set(share)
    learn = il.GradientDescent(optax.sgd(0.1 / (outer_step + 1)), 2)
    return dataclasses.replace(RECIPE.problem, step_weights=weights), learn


def by_hand(recipe, gradient_of_step):
    """Outer steps one after the other, each with its own program."""
    meta = recipe.init_meta(run_keys(KEY)[0])
    for step in range(STEPS):
        episodes, keys = il.training.tasks_of_step(POINTS, KEY, step, BATCH)
        objective = il.meta_objective(*recipe.at(step), gradient_of_step(step))
        tasks = [jax.tree.map(lambda leaf, i=i: leaf[i], episodes) for i in range(BATCH)]
        grads = [
            jax.grad(objective, has_aux=True)(meta, task, key)[0]
            for task, key in zip(tasks, keys, strict=True)
        ]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / BATCH, *grads)
        meta = jax.tree.map(lambda leaf, slope: leaf - RATE * slope, meta, mean)
    return meta


def trained(recipe, **changed):
    return train(recipe, optimizer=optax.sgd(RATE), steps=STEPS, batch=BATCH, **changed)[0]


def of_phase(step):
    return next((phase.gradient for phase in PHASES if step < phase.until), il.Unroll())


@pytest.mark.parametrize(
    ("recipe", "gradient"),
    [
        (RECIPE._replace(schedule=weighted), lambda step: il.Unroll()),
        (RECIPE._replace(phases=PHASES), of_phase),
        (RECIPE._replace(schedule=weighted, phases=PHASES), of_phase),
    ],
    ids=["schedule", "phases", "both"],
)
def test_each_step_is_that_of_its_problem_and_its_gradient(recipe, gradient):
    expected = by_hand(recipe, gradient)
    np.testing.assert_allclose(trained(recipe).last["x"], expected["x"], rtol=1e-5)
    unchanged = by_hand(RECIPE, lambda step: il.Unroll())
    assert not np.allclose(expected["x"], unchanged["x"], rtol=1e-2)


def test_a_run_goes_on_in_the_phase_that_it_was_in(tmp_path):
    recipe = RECIPE._replace(schedule=weighted, phases=PHASES)
    saved = il.training.Checkpoints(tmp_path, every=2)
    whole = trained(recipe)
    train(recipe, optimizer=optax.sgd(RATE), steps=3, batch=BATCH, checkpoints=saved)
    assert_same_bits(trained(recipe, checkpoints=saved, resume=True).last, whole.last)


def test_a_fault_is_found_in_every_phase():
    """One task of each step has a loss that is not a number."""

    def broken(params, meta, batch, key):
        loss, metrics = point_loss(params, meta, batch, key)
        return jnp.where(batch[0] > 0.5, jnp.nan, loss), metrics

    recipe = point_recipe(broken, steps=2)._replace(phases=PHASES)
    reports = train(recipe, batch=BATCH, non_finite=il.training.Skip(in_a_row=STEPS))[1]
    found = {report.fault.step: report.fault.tasks for report in reports if report.fault}
    points = [
        il.training.tasks_of_step(POINTS, KEY, step, BATCH)[0].query[:, 0] for step in range(STEPS)
    ]
    spoiled = {step: tuple(np.flatnonzero(row > 0.5)) for step, row in enumerate(points)}
    assert found == {step: tasks for step, tasks in spoiled.items() if tasks}
    assert len({of_phase(step) for step in found}) > 1


@pytest.mark.parametrize(
    ("recipe", "changed", "message"),
    [
        (RECIPE._replace(phases=PHASES[::-1]), {}, "phases end one after the other.*grow"),
        (RECIPE._replace(phases=(il.recipes.Phase(0, il.Unroll()),)), {}, "from 1 on"),
        (
            RECIPE._replace(phases=(il.recipes.Phase(2, (il.Unroll(), ONLINE)),)),
            {},
            "no OnlineGradient",
        ),
        (
            RECIPE._replace(phases=(il.recipes.Phase(2, ONLINE),)),
            {},
            "no OnlineGradient",
        ),
        (RECIPE._replace(phases=PHASES), {"memory": "1GiB"}, "planned for one meta-gradient"),
    ],
    ids=["order", "empty", "online of a kind", "online", "budget"],
)
def test_what_phases_cannot_be_is_refused(recipe, changed, message):
    with pytest.raises(il.StructureError, match=message):
        trained(recipe, **changed)


def test_a_pair_that_makes_no_sense_is_refused_before_anything_is_trained(tmp_path):
    recipe = RECIPE._replace(phases=(il.recipes.Phase(2, il.Implicit()),), schedule=weighted)
    with pytest.raises(il.GradientError, match="does not exist"):
        trained(recipe, checkpoints=il.training.Checkpoints(tmp_path / "run", every=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("asked", [{"memory": "1GiB"}, {"check": True}], ids=["budget", "check"])
def test_what_is_looked_at_beforehand_is_the_first_step(asked):
    """A first step whose inner loop has no derivative is told from a last one that has."""

    def detached(outer_step):
        cut = lambda meta, support, key: jax.lax.stop_gradient(meta)
        return il.Problem(cut, point_loss, point_loss), RECIPE.adaptation

    with pytest.raises(il.GradientError, match=r"cut off|detached|reach"):
        trained(RECIPE._replace(schedule=detached), **asked)
    trained(RECIPE, **asked)
