"""`fit` with inner runs that span outer steps: a part of the state, like any other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import config

import innerloop as il

PROBLEM, DYNAMICS, TASKS = il.influence_balancing()
ESTIMATORS = {
    "persistent": il.PersistentES(5, 100, pairs=8, sigma=0.1),
    "truncated": il.TruncatedUnroll(5, 100),
}


def recipe(name="persistent", problem=PROBLEM):
    gradient = ESTIMATORS[name] if isinstance(name, str) else name
    return il.Recipe(problem, DYNAMICS, gradient, lambda key: jnp.float32(0.5))


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
    saved = il.Checkpoints(tmp_path / "run", every=3)
    train(recipe(), steps=3, checkpoints=saved)
    on, rest = train(recipe(), checkpoints=saved, resume=True)
    assert np.array_equal(on.last, whole.last)
    for name, values in reports[-1].metrics.items():
        np.testing.assert_array_equal(rest[-1].metrics[name], values)
    with pytest.raises(il.RunError, match="another training state"):
        other = il.PersistentES(5, 100, pairs=4, sigma=0.1)
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
    gradient = il.TruncatedUnroll(2, 4)
    made = il.Recipe(BLOWN_UP, still, gradient, lambda key: jnp.float32(0.5))
    return functools.partial(train, made, il.IndependentTasks(draw))


def test_runs_that_diverge_are_counted_and_training_goes_on():
    outcome, reports = blown_up(0.3)(batch=8)
    assert outcome.faults == 0
    assert np.isfinite(np.concatenate([report.metrics["loss"] for report in reports])).all()
    assert np.isfinite(np.concatenate([report.metrics["size"] for report in reports])).all()


def test_where_no_run_is_finite_the_policy_decides():
    with pytest.raises(il.RunError, match=r"no longer finite.*task 0 with key.*task 1 with key"):
        blown_up(1.0)(batch=2)
    outcome, reports = blown_up(1.0)(batch=2, non_finite=il.Skip(in_a_row=10))
    assert outcome.faults == outcome.step == 6
    keys = [report.fault.keys for report in reports]
    assert len(set(map(str, keys))) == 6  # every step had new runs
    assert float(outcome.last) == 0.5


CASES = {
    "check": ({"check": True}, r"check=True.*whole tasks.*steps=5"),
    "memory": ({"memory": "1GiB"}, r"memory=.*whole tasks.*steps=5"),
    "streamed": ({"tasks": il.StreamedTasks(print)}, "draw their tasks on the device.*StreamedT"),
}


@pytest.mark.parametrize(("options", "message"), CASES.values(), ids=CASES)
def test_what_is_for_whole_tasks_is_refused(options, message):
    with pytest.raises(il.StructureError, match=message):
        train(recipe(), **options)


def test_a_mixture_is_refused():
    mixed = il.mixture((PROBLEM, DYNAMICS, TASKS, 1.0), (PROBLEM, DYNAMICS, TASKS, 1.0))
    made = il.Recipe(*mixed[:2], ESTIMATORS["truncated"], lambda key: jnp.float32(0.5))
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(il.StructureError, match=r"inner runs are made of .*ProblemMixture"):
            train(made, mixed[2])
    finally:
        config.update("jaxtyping_disable", False)
