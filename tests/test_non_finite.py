"""Outer steps whose loss, meta-gradient or state is not finite: what is done, counted and found."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fitting import fit
from jaxtyping import config

import innerloop as il
from innerloop.errors import RunError, StructureError

KEY, BATCH, STEPS = jax.random.key(7), 4, 30
OPTIMIZER = optax.adam(0.1)
LIMIT = 1.6


def loss(params, meta, batch, key):
    """A parabola around the task's point; NaN for a point beyond the limit."""
    return jnp.where(batch[0] > LIMIT, jnp.nan, 1.0) * jnp.sum((params["x"] - batch) ** 2)


RECIPE = il.recipes.Recipe(
    il.Problem(lambda meta, support, key: meta, loss, loss),
    il.GradientDescent(optax.sgd(0.1), 1),
    il.Unroll(),
    lambda key: {"x": jax.random.normal(key, (2,))},
)


def sample_point(key):
    point = jax.random.normal(key, (2,))
    return il.Episode(point, point)


TASKS = il.tasks.IndependentTasks(sample_point)
ESTIMATOR = RECIPE.estimator(TASKS, BATCH)


def train(non_finite, **changed):
    reports = []
    options = {"optimizer": OPTIMIZER, "steps": STEPS, "batch": BATCH, "key": KEY, "per_call": 7}
    options |= {"report": reports.append}
    outcome = fit(RECIPE, TASKS, non_finite=non_finite, **(options | changed))
    return outcome, [progress.fault for progress in reports if progress.fault], reports


def poisoned():
    """Step -> the places of the tasks beyond the limit, by the tasks alone."""
    found = {}
    for step in range(STEPS):
        episodes, _ = il.training.tasks_of_step(ESTIMATOR, KEY, step)
        places = np.flatnonzero(np.asarray(episodes.support[:, 0]) > LIMIT)
        if len(places):
            found[step] = tuple(places.tolist())
    return found


POISONED = poisoned()


def by_hand(gradient):
    """The outer loop written out: `gradient(meta, points, sound)`, None for a step left out."""
    meta = RECIPE.init_meta(jax.random.split(KEY, 3)[0])
    state = OPTIMIZER.init(meta)
    for step in range(STEPS):
        episodes, _ = il.training.tasks_of_step(ESTIMATOR, KEY, step)
        sound = np.asarray(episodes.support[:, 0]) <= LIMIT
        grads = gradient(np.asarray(meta["x"]), np.asarray(episodes.support), sound)
        if grads is not None:
            with jax.numpy_dtype_promotion("standard"):  # optax's own
                updates, state = OPTIMIZER.update({"x": jnp.asarray(grads)}, state, meta)
            meta = optax.apply_updates(meta, updates)
    return meta["x"]


def task_gradients(x, points):
    """Of |x - 0.2 (x - p) - p|² in x: 0.2 is twice the inner rate."""
    return 2 * 0.8 * 0.8 * (x - points)


def test_the_tasks_hold_what_is_tested():
    assert 3 <= len(POISONED) <= STEPS - 10
    assert any(step + 1 in POISONED for step in POISONED)  # two in a row
    assert any(len(places) < BATCH for places in POISONED.values())


def test_stop_names_the_step_the_tasks_and_their_keys():
    """And is the default."""
    first = min(POISONED)
    with pytest.raises(RunError, match=f"no longer finite.*at outer step {first}") as error:
        fit(RECIPE, TASKS, optimizer=OPTIMIZER, steps=STEPS, batch=BATCH, key=KEY)
    _, keys = il.training.tasks_of_step(ESTIMATOR, KEY, first)
    for place in POISONED[first]:
        assert f"task {place} with key {jax.random.key_data(keys)[place].tolist()}" in str(
            error.value
        )


@pytest.mark.parametrize("per_call", [1, 7, 100])
def test_skip_leaves_the_step_out(per_call):
    outcome, faults, reports = train(il.training.Skip(), per_call=per_call)
    expected = by_hand(lambda x, p, sound: task_gradients(x, p).mean(0) if sound.all() else None)
    np.testing.assert_allclose(outcome.meta["x"], expected, rtol=1e-5)
    assert {fault.step: fault.tasks for fault in faults} == POISONED
    assert outcome.faults == len(POISONED)
    assert all(fault.policy == "skip" and not np.isfinite(fault.loss) for fault in faults)
    # Every step is reported once, those that were left out with the loss that they had.
    losses = np.concatenate([progress.metrics["loss"] for progress in reports])
    assert np.flatnonzero(~np.isfinite(losses)).tolist() == list(POISONED)
    assert len(losses) == STEPS


def test_clip_steps_along_the_mean_of_clipped_gradients():
    norm = 0.5

    def clipped(x, points, sound):
        grads = task_gradients(x, points)
        if sound.all():
            return grads.mean(0)
        scale = np.minimum(1, norm / np.linalg.norm(grads, axis=1, keepdims=True))
        return np.where(sound[:, None], grads * scale, 0).mean(0)

    outcome, faults, _ = train(il.training.Clip(norm))
    np.testing.assert_allclose(outcome.meta["x"], by_hand(clipped), rtol=1e-5)
    assert {fault.policy for fault in faults} == {"clip"}


@pytest.mark.parametrize("policy", [il.training.Skip(in_a_row=1), il.training.Clip(in_a_row=1)])
def test_too_many_in_a_row_end_the_run(policy):
    second = min(step for step in POISONED if step - 1 in POISONED)
    with pytest.raises(RunError, match=f"at outer step {second}"):
        train(policy)


def test_a_step_is_played_again_by_hand():
    """From its number, the run's key, and the meta-parameters that it came from."""
    _, faults, _ = train(il.training.Skip())
    fault = faults[-1]
    before, *_ = train(il.training.Skip(), steps=fault.step)
    episodes, keys = il.training.tasks_of_step(ESTIMATOR, KEY, fault.step)
    objective = il.meta_objective(*RECIPE[:3])
    for place in range(BATCH):
        episode = jax.tree.map(lambda leaf, i=place: leaf[i], episodes)
        value, _ = objective(before.last, episode, keys[place])
        assert np.isfinite(value) == (place not in fault.tasks)


def test_what_stopped_goes_on_under_another_policy(tmp_path):
    saved = il.training.Checkpoints(tmp_path, every=100)
    with pytest.raises(RunError, match="no longer finite"):
        train(il.training.Stop(), checkpoints=saved)
    again, faults, _ = train(il.training.Skip(), checkpoints=saved, resume=True)
    whole, *_ = train(il.training.Skip())
    np.testing.assert_array_equal(again.meta["x"], whole.meta["x"])
    assert [fault.step for fault in faults] == list(POISONED)
    assert again.faults == whole.faults


def test_the_log_of_a_run_that_stopped_and_went_on_has_every_step_once(tmp_path):
    saved = il.training.Checkpoints(tmp_path / "checkpoints", every=100)
    for resume in (False, True):
        with (
            il.logging.JsonLines(tmp_path / "log.jsonl") as log,
            pytest.raises(RunError, match="no longer finite"),
        ):
            train(il.training.Stop(), checkpoints=saved, resume=resume, report=log)
    stopped = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert stopped[-1]["step"] == stopped[-1]["faults"][0]["step"] == min(POISONED)
    with il.logging.JsonLines(tmp_path / "log.jsonl") as log:
        train(il.training.Skip(), checkpoints=saved, resume=True, report=log)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum(len(line["losses"]) for line in lines) == STEPS
    faults = [fault["step"] for line in lines for fault in line.get("faults", ())]
    assert faults == list(POISONED)
    assert all(line["losses"] for line in lines)  # none is left of what was tried again
    # What a call's means are of: its sound steps.
    assert all(np.isfinite(float(line["loss"])) for line in lines if len(line["losses"]) > 1)


def test_large_gradients_of_a_narrow_type_are_no_fault():
    """Their squares go beyond float16, they themselves do not."""
    steep = lambda params, meta, batch, key: jnp.sum(params["x"]) * 3000
    recipe = RECIPE._replace(
        problem=il.Problem(lambda meta, support, key: meta, None, steep),
        adaptation=il.Procedure(lambda meta, support, key: meta),
        init_meta=lambda key: {"x": jnp.ones(2, jnp.float16)},
    )
    options = {"optimizer": optax.sgd(1e-4), "steps": 2, "batch": 2, "key": KEY}
    assert fit(recipe, TASKS, **options).faults == 0


def test_a_task_without_weight_does_no_harm():
    """It alone would make the step not finite."""

    def sample(key):
        return il.Episode(jnp.full(2, 2 * LIMIT), jnp.zeros(2), weight=jnp.zeros(()))

    def sound(key):
        return il.Episode(jnp.zeros(2), jnp.zeros(2), weight=jnp.ones(()))

    def either(key):
        first = jnp.array_equal(jax.random.key_data(key), jax.random.key_data(first_key))
        return jax.tree.map(lambda a, b: jnp.where(first, a, b), sample(key), sound(key))

    steps_key = jax.random.split(KEY, 3)[1]
    sample_key, _ = jax.random.split(jax.random.fold_in(steps_key, 0))
    first_key = jax.random.split(sample_key, 3)[0]
    tasks = il.tasks.IndependentTasks(either)
    outcome = fit(RECIPE, tasks, optimizer=OPTIMIZER, steps=2, batch=3, key=KEY)
    assert outcome.step == 2
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(outcome.meta))


def test_a_task_without_weight_has_no_part_in_a_clipped_step():
    """Its gradient is shortened to nothing, which is no division of nothing by nothing."""

    def either(key):
        first = jnp.array_equal(jax.random.key_data(key), jax.random.key_data(first_key))
        poisoned = il.Episode(jnp.full(2, 2 * LIMIT), jnp.zeros(2), weight=jnp.ones(()))
        without = il.Episode(jnp.zeros(2), jnp.zeros(2), weight=jnp.zeros(()))
        return jax.tree.map(lambda a, b: jnp.where(first, a, b), poisoned, without)

    steps_key = jax.random.split(KEY, 3)[1]
    sample_key, _ = jax.random.split(jax.random.fold_in(steps_key, 0))
    first_key = jax.random.split(sample_key, 3)[0]
    options = {"optimizer": OPTIMIZER, "steps": 1, "batch": 3, "key": KEY}
    outcome = fit(
        RECIPE, il.tasks.IndependentTasks(either), non_finite=il.training.Clip(), **options
    )
    assert outcome.faults == 1
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(outcome.last))


@pytest.mark.parametrize(
    "make",
    [
        lambda: il.training.Skip(0),
        lambda: il.training.Clip(0.0),
        lambda: il.training.Clip(-1.0),
        lambda: il.training.Clip(float("nan")),
        lambda: il.training.Clip(None),
        lambda: il.training.Clip(True),
        lambda: il.training.Clip(1.0, 0),
    ],
)
def test_policies_out_of_range_are_refused(make):
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(StructureError):
            make()
    finally:
        config.update("jaxtyping_disable", False)


def test_counts_survive_a_resume(tmp_path):
    saved = il.training.Checkpoints(tmp_path, every=5)
    train(il.training.Skip(), checkpoints=saved, steps=20)
    again, *_ = train(il.training.Skip(), checkpoints=saved, resume=True)
    whole, *_ = train(il.training.Skip())
    np.testing.assert_array_equal(again.meta["x"], whole.meta["x"])
    assert again.faults == whole.faults == len(POISONED)


def test_a_weighted_sum_names_part_and_place():
    """Of the steps that no part is finite at: where one is, it is followed alone."""

    def often(params, meta, batch, key):
        return jnp.where(batch[0] > 0.5, jnp.nan, 1.0) * jnp.sum((params["x"] - batch) ** 2)

    problem = il.Problem(lambda meta, support, key: meta, often, often)
    part = RECIPE._replace(problem=problem).estimator(TASKS, BATCH)
    both = il.estimators.WeightedSum(left=(part, 1.0), right=(part, 1.0))
    reports = []
    options = {"optimizer": OPTIMIZER, "steps": STEPS, "key": KEY, "report": reports.append}
    il.fit(both, RECIPE.init_meta, non_finite=il.training.Skip(), **options)
    found = {p.fault.step: set(p.fault.tasks) for p in reports if p.fault}
    expected = {}
    for step in range(STEPS):
        places = {
            name: np.flatnonzero(np.asarray(tasks.episodes.support[:, 0]) > 0.5).tolist()
            for name, tasks in il.training.tasks_of_step(both, KEY, step).items()
        }
        if all(places.values()):
            expected[step] = {(name, place) for name in places for place in places[name]}
    assert found == expected
    assert STEPS > len(expected) > 3


def test_a_sum_that_overflows_has_no_single_cause():
    def sample(key):
        return il.Episode(jnp.zeros(1), jnp.zeros(1), weight=jnp.float32(3e38))

    outer = lambda params, meta, batch, key: 1.0 + 1e-25 * jnp.sum(params["x"])
    recipe = RECIPE._replace(
        problem=il.Problem(lambda meta, support, key: meta, None, outer),
        adaptation=il.Procedure(lambda meta, support, key: meta),
    )
    with pytest.raises(RunError, match="at outer step 0, caused by no single task"):
        fit(
            *(recipe, il.tasks.IndependentTasks(sample)),
            optimizer=optax.sgd(1.0),
            steps=3,
            batch=2,
            key=KEY,
        )
