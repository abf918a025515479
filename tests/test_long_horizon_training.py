"""`fit` with inner runs that span outer steps: a part of the state, like any other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il

PROBLEM, DYNAMICS, TASKS = il.tasks.influence_balancing()
ESTIMATORS = {
    "persistent": il.estimators.PersistentES(5, 100, pairs=8, sigma=0.1),
    "truncated": il.estimators.TruncatedUnroll(5, 100),
}


def recipe(name="persistent", problem=PROBLEM):
    gradient = ESTIMATORS[name] if isinstance(name, str) else name
    return il.recipes.Recipe(problem, DYNAMICS, gradient, lambda key: jnp.float32(0.5))


def train(recipe, tasks=TASKS, **options):
    reports = []
    given = {"optimizer": optax.adam(0.01), "steps": 6, "batch": 4, "key": jax.random.key(0)}
    given |= {"per_call": 3, "report": reports.append}
    return il.fit(recipe, tasks, **(given | options)), reports


def test_training_finds_the_optimum_which_truncation_runs_away_from():
    """The optimum of the mean of 100 losses, by NumPy."""
    matrix, push = (np.eye(23) + np.eye(23, k=1)) / 2, np.array(10 * [1.0] + 13 * [-1.0])
    rest, slope, rests, slopes = np.ones(23), np.zeros(23), [], []
    for _ in range(100):
        rest, slope = matrix @ rest, matrix @ slope + push
        rests.append(rest[0] - 1)
        slopes.append(slope[0])
    optimum = -np.dot(rests, slopes) / np.dot(slopes, slopes)
    found = [float(train(recipe(name), steps=200, per_call=200)[0].meta) for name in ESTIMATORS]
    assert abs(found[0] - optimum) < 0.02 and abs(optimum - 0.5) > 0.5
    assert found[1] > 0.55  # away from where it began, and from the optimum


def test_a_run_that_goes_on_is_the_same_to_the_bit(tmp_path):
    whole, reports = train(recipe())
    saved = il.training.Checkpoints(tmp_path / "run", every=3)
    train(recipe(), steps=3, checkpoints=saved)
    on, rest = train(recipe(), checkpoints=saved, resume=True)
    assert np.array_equal(on.last, whole.last)
    for name, values in reports[-1].metrics.items():
        np.testing.assert_array_equal(rest[-1].metrics[name], values)
    with pytest.raises(il.RunError, match="another training state"):
        other = il.estimators.PersistentES(5, 100, pairs=4, sigma=0.1)
        train(recipe(other), steps=9, checkpoints=saved, resume=True)


# The losses of some tasks are not finite, whatever they learn.
BLOWN_UP = il.Problem(
    init=lambda meta, support, key: meta + 1,
    inner_loss=lambda params, meta, batch, key: jnp.sum(params) * 0,
    outer_loss=lambda params, meta, batch, key: (params**2 * batch, {"size": params}),
    step_weights=lambda steps: jnp.full(steps + 1, 1 / (steps + 1)),
)


def blown_up(share):
    """Runs of which this share goes wrong at once."""
    draw = lambda key: il.Episode(
        jnp.ones(()), jnp.where(jax.random.uniform(key) < share, jnp.inf, 1.0)
    )
    still = il.GradientDescent(optax.sgd(1.0), 1)
    gradient = il.estimators.TruncatedUnroll(2, 4)
    made = il.recipes.Recipe(BLOWN_UP, still, gradient, lambda key: jnp.float32(0.5))
    return functools.partial(train, made, il.tasks.IndependentTasks(draw))


def test_runs_that_diverge_are_counted_and_training_goes_on():
    outcome, reports = blown_up(0.3)(batch=8)
    assert outcome.faults == 0
    assert np.isfinite(np.concatenate([report.metrics["loss"] for report in reports])).all()
    assert np.isfinite(np.concatenate([report.metrics["size"] for report in reports])).all()


def test_where_no_run_is_finite_the_policy_decides():
    with pytest.raises(il.RunError, match=r"no longer finite.*task 0 with key.*task 1 with key"):
        blown_up(1.0)(batch=2)
    outcome, reports = blown_up(1.0)(batch=2, non_finite=il.training.Skip(in_a_row=10))
    assert outcome.faults == outcome.step == 6
    keys = [report.fault.keys for report in reports]
    assert len(set(map(str, keys))) == 6  # every step had new runs
    assert float(outcome.last) == 0.5


CASES = {
    "check": ({"check": True}, r"check=True.*whole tasks.*steps=5"),
    "memory": ({"memory": "1GiB"}, r"memory=.*whole tasks.*steps=5"),
    "streamed": (
        {"tasks": il.tasks.StreamedTasks(print)},
        "draw their tasks on the device.*StreamedT",
    ),
}


@pytest.mark.parametrize(("options", "message"), CASES.values(), ids=CASES)
def test_what_is_for_whole_tasks_is_refused(options, message):
    with pytest.raises(il.StructureError, match=message):
        train(recipe(), **options)


# --- a mixture: each kind has inner runs of its own ----------------------------------------------


def scaled(factor):
    """Influence balancing with its losses in another unit."""
    loss = lambda params, meta, batch, key: factor * PROBLEM.outer_loss(params, meta, batch, key)
    return il.Problem(PROBLEM.init, PROBLEM.inner_loss, loss, PROBLEM.step_weights)


def mixed(factor, gradient="truncated"):
    kinds = [(PROBLEM, DYNAMICS, TASKS, 3.0), (scaled(factor), DYNAMICS, TASKS, 1.0)]
    problems, adaptations, tasks = il.tasks.mixture(*kinds)
    made = recipe(gradient, problems)
    return made._replace(adaptation=adaptations), tasks


def test_a_step_of_a_mixture_is_the_weighted_mean_over_its_kinds():
    """Truncation of influence balancing has no randomness but where runs are: all at their begin"""
    alone = il.estimators.TruncatedUnroll(5, 5)
    losses = {factor: train(recipe(alone, scaled(factor)), steps=1)[1] for factor in (1.0, 10.0)}
    one, ten = (losses[factor][0].metrics["loss"][0] for factor in (1.0, 10.0))
    _, (report,) = train(*mixed(10.0, alone), steps=1)
    np.testing.assert_allclose(report.metrics["loss"], 0.75 * one + 0.25 * ten, rtol=1e-5)
    assert report.metrics["diverged"] == 0


def test_a_kind_that_is_not_finite_is_left_out():
    alone = il.estimators.TruncatedUnroll(5, 5)
    _, (sound,) = train(recipe(alone), steps=1)
    made, tasks = mixed(np.inf, alone)
    outcome, (report,) = train(made, tasks, steps=1)
    np.testing.assert_allclose(report.metrics["loss"], sound.metrics["loss"], rtol=1e-5)
    assert outcome.faults == 0 and np.isfinite(outcome.last) and outcome.last != 0.5


def test_a_mixture_goes_on_to_the_same_bits(tmp_path):
    whole, _ = train(*mixed(2.0, "persistent"))
    saved = il.training.Checkpoints(tmp_path / "run", every=3)
    train(*mixed(2.0, "persistent"), steps=3, checkpoints=saved)
    on, _ = train(*mixed(2.0, "persistent"), checkpoints=saved, resume=True)
    assert np.array_equal(on.last, whole.last)


def test_a_mixture_of_runs_needs_the_tasks_of_each_kind():
    made, tasks = mixed(2.0)
    with pytest.raises(il.StructureError, match=r"tasks of their own each.*2 problems"):
        train(made, TASKS)
    with pytest.raises(il.StructureError, match="a task of every kind"):
        train(made, tasks, batch=1)


def test_a_mixture_is_validated_on_the_tasks_of_all_kinds():
    made, tasks = mixed(10.0)
    episodes = il.tasks.evaluation_episodes(tasks, 4, 0, "validation")
    outcome, reports = train(
        made, tasks, steps=3, validation=il.Validation(episodes, every=3, steps=4)
    )
    found = reports[-1].evaluation
    of_kinds = [
        il.evaluate(problem, DYNAMICS, outcome.last, own, jax.random.key(0), steps=4)
        for problem, own in zip(made.problem.problems, episodes, strict=True)
    ]
    expected = sum(each.mean["loss"][-1:] * each.tasks for each in of_kinds) / 4
    assert found.tasks == 4 and [each.tasks for each in of_kinds] == [3, 1]
    np.testing.assert_allclose(found.mean["loss"], expected, rtol=1e-5)
