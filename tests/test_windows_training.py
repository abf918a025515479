"""`fit` with inner runs that span outer steps: a part of the state, like any other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il

PROBLEM, DYNAMICS, TASKS = il.tasks.influence_balancing()
# The losses of some tasks are not finite, whatever they learn.
BLOWN_UP = il.Problem(
    init=lambda meta, support, key: meta + 1,
    inner_loss=lambda params, meta, batch, key: jnp.sum(params) * 0,
    outer_loss=lambda params, meta, batch, key: (params**2 * batch, {"size": params}),
    step_weights=lambda steps: jnp.full(steps + 1, 1 / (steps + 1)),
)
META = lambda key: jnp.float32(0.5)


def persistent(problem=PROBLEM, batch=4, pairs=8, **settings):
    parts = (problem, DYNAMICS, TASKS, 5, 100, batch)
    return il.estimators.PersistentES(*parts, pairs=pairs, sigma=0.1, **settings)


def truncated(problem=PROBLEM, batch=4, horizon=100):
    return il.estimators.TruncatedUnroll(problem, DYNAMICS, TASKS, 5, horizon, batch)


def train(estimator, **options):
    reports = []
    given = {"optimizer": optax.adam(0.01), "steps": 6, "key": jax.random.key(0)}
    given |= {"per_call": 3, "report": reports.append}
    return il.fit(estimator, META, **(given | options)), reports


def test_training_finds_the_optimum_which_truncation_runs_away_from():
    """The optimum of the mean of 100 losses, by NumPy."""
    matrix, push = (np.eye(23) + np.eye(23, k=1)) / 2, np.array(10 * [1.0] + 13 * [-1.0])
    rest, slope, rests, slopes = np.ones(23), np.zeros(23), [], []
    for _ in range(100):
        rest, slope = matrix @ rest, matrix @ slope + push
        rests.append(rest[0] - 1)
        slopes.append(slope[0])
    optimum = -np.dot(rests, slopes) / np.dot(slopes, slopes)
    estimators = (persistent(), truncated())
    found = [float(train(each, steps=200, per_call=200)[0].meta) for each in estimators]
    assert abs(found[0] - optimum) < 0.02 and abs(optimum - 0.5) > 0.5
    assert found[1] > 0.55  # away from where it began, and from the optimum


def test_a_run_that_goes_on_is_the_same_to_the_bit(tmp_path):
    whole, reports = train(persistent())
    saved = il.training.Checkpoints(tmp_path / "run", every=3)
    train(persistent(), steps=3, checkpoints=saved)
    on, rest = train(persistent(), checkpoints=saved, resume=True)
    assert np.array_equal(on.last, whole.last)
    for name, values in reports[-1].metrics.items():
        np.testing.assert_array_equal(rest[-1].metrics[name], values)


CHANGED = {
    "pairs": {"pairs": 4},
    "sigma": {"sigma": 0.2},
    "window": {"window": 10},
    "horizon": {"horizon": 200},
    "batch": {"batch": 8},
    "clip": {"clip": 3.0},
    "adaptation.steps": {"adaptation": il.GradientDescent(optax.sgd(0.1), 7)},
    "problem.outer_loss": {"problem": dataclasses.replace(PROBLEM, outer_loss=BLOWN_UP.outer_loss)},
    "tasks": {"tasks": il.tasks.SinusoidTasks(3, 3)},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = il.training.Checkpoints(tmp_path_factory.mktemp("saved") / "run", every=3)
    train(persistent(), steps=3, checkpoints=folder)
    return folder


@pytest.mark.parametrize(("name", "changes"), CHANGED.items(), ids=CHANGED)
def test_each_field_that_was_changed_is_refused_by_its_name(saved, name, changes):
    other = dataclasses.replace(persistent(), **changes)
    with pytest.raises(il.errors.RunError, match=rf"settings that it began with. Got: .*\b{name}="):
        train(other, steps=9, checkpoints=saved, resume=True)


def test_what_changes_no_number_may_change(saved):
    whole, _ = train(persistent(), steps=4)
    other = persistent(chunk=2, pairs_at_once=3)
    on, _ = train(other, steps=4, checkpoints=saved, resume=True)
    np.testing.assert_allclose(on.last, whole.last, rtol=1e-6)


def blown_up(share, batch, **options):
    """Runs of which this share goes wrong at once."""
    draw = lambda key: il.Episode(
        jnp.ones(()), jnp.where(jax.random.uniform(key) < share, jnp.inf, 1.0)
    )
    parts = (BLOWN_UP, il.GradientDescent(optax.sgd(1.0), 1), il.tasks.IndependentTasks(draw))
    return train(il.estimators.TruncatedUnroll(*parts, 2, 4, batch), **options)


def test_runs_that_diverge_are_counted_and_training_goes_on():
    outcome, reports = blown_up(0.3, batch=8)
    assert outcome.faults == 0
    assert np.isfinite(np.concatenate([report.metrics["loss"] for report in reports])).all()
    assert np.isfinite(np.concatenate([report.metrics["size"] for report in reports])).all()


def test_where_no_run_is_finite_the_policy_decides():
    with pytest.raises(
        il.errors.RunError, match=r"no longer finite.*task 0 with key.*task 1 with key"
    ):
        blown_up(1.0, batch=2)
    outcome, reports = blown_up(1.0, batch=2, non_finite=il.training.Skip(in_a_row=10))
    assert outcome.faults == outcome.step == 6
    keys = [report.fault.keys for report in reports]
    assert len(set(map(str, keys))) == 6  # every step had new runs
    assert float(outcome.last) == 0.5


@pytest.mark.parametrize("options", [{"check": True}, {"memory": "1GiB"}], ids=str)
def test_what_is_for_whole_tasks_is_refused(options):
    with pytest.raises(
        il.errors.StructureError, match=r"fit\(.*whole tasks.*PersistentES.*WholeTasks\("
    ):
        train(persistent(), **options)


# --- a weighted sum: each part has inner runs of its own -----------------------------------------


def scaled(factor):
    """Influence balancing with its losses in another unit."""
    loss = lambda params, meta, batch, key: factor * PROBLEM.outer_loss(params, meta, batch, key)
    return il.Problem(PROBLEM.init, PROBLEM.inner_loss, loss, PROBLEM.step_weights)


def mixed(factor, of=truncated, **settings):
    parts = {"one": (of(**settings), 3.0), "other": (of(scaled(factor), **settings), 1.0)}
    return il.estimators.WeightedSum(**parts)


def test_a_step_of_a_sum_is_the_weighted_mean_over_its_parts():
    """Truncation of influence balancing has no randomness but where runs are: all at their begin"""
    alone = {"horizon": 5}
    losses = {f: train(truncated(scaled(f), **alone), steps=1)[1] for f in (1.0, 10.0)}
    one, ten = (losses[factor][0].metrics["loss"][0] for factor in (1.0, 10.0))
    _, (report,) = train(mixed(10.0, **alone), steps=1)
    np.testing.assert_allclose(report.metrics["loss"], 0.75 * one + 0.25 * ten, rtol=1e-5)
    np.testing.assert_allclose(report.metrics["other/loss"], ten, rtol=1e-5)
    assert report.metrics["one/diverged"] == report.metrics["other/diverged"] == 0


def test_a_part_that_is_not_finite_is_left_out():
    _, (sound,) = train(truncated(horizon=5), steps=1)
    outcome, (report,) = train(mixed(np.inf, horizon=5), steps=1)
    np.testing.assert_allclose(report.metrics["loss"], sound.metrics["loss"], rtol=1e-5)
    assert np.isnan(report.metrics["other/loss"])
    assert outcome.faults == 0 and np.isfinite(outcome.last) and outcome.last != 0.5


def test_a_sum_goes_on_to_the_same_bits(tmp_path):
    both = mixed(2.0, persistent)
    whole, _ = train(both)
    saved = il.training.Checkpoints(tmp_path / "run", every=3)
    train(both, steps=3, checkpoints=saved)
    on, _ = train(both, checkpoints=saved, resume=True)
    assert np.array_equal(on.last, whole.last)
