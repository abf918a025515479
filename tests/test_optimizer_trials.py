"""Learned optimizers against tuned ones: every curve is what it says it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.lab.experiments import optimizer_trials as trials

STEPS, TASKS = 6, 5
SETTINGS = {"steps": STEPS, "tasks": TASKS, "seed": 0}
RATES = np.logspace(-3, 1, 9)


@pytest.fixture(scope="module")
def family():
    return il.tasks.optimization.quadratic_family(np.logspace(-1, 0, 4))


@pytest.fixture(scope="module")
def tuned(family):
    return trials.tuned_trials(family, **SETTINGS, rates=RATES)


def test_curves_are_those_of_a_loop_by_hand(family):
    episodes = il.tasks.evaluation_episodes(family.tasks, TASKS, 0, "test")
    sgd, rate = lambda rate: optax.sgd(rate), jnp.asarray(0.3)
    (got,) = trials.loss_curves(family, sgd, STEPS)([rate], episodes, jax.random.key(0))
    for i, key in enumerate(jax.random.split(jax.random.key(0), TASKS)):
        task = jax.tree.map(lambda leaf, i=i: np.array(leaf[i], float), episodes.query)
        at = jax.random.fold_in(il.extend.task_keys(key).adapt, 0)
        distance = (
            np.array(family.problem.init(None, episodes.support | {}, at)[0], float)
            if False
            else (np.array(jax.random.normal(at, (4,)), float) - task["centre"])
        )
        for t in range(STEPS + 1):
            expected = distance @ task["hessian"] @ distance / 2
            np.testing.assert_allclose(got[i, t], expected, rtol=1e-4)
            distance = distance - 0.3 * task["hessian"] @ distance


def test_the_rate_of_a_family_is_the_best_on_tasks_of_its_own(family, tuned):
    """Found again by trying each rate on the tuning tasks."""
    episodes = il.tasks.evaluation_episodes(family.tasks, TASKS, 0, "tuning")

    metas, sgd = [jnp.float32(rate) for rate in RATES], lambda rate: optax.sgd(rate)
    losses = trials.loss_curves(family, sgd, STEPS)(metas, episodes, jax.random.key(0))
    medians = lambda score: [np.median(score(tried)) for tried in losses]
    best = [RATES[np.argmin(medians(score))] for score in (trials.last, trials.area)]
    np.testing.assert_allclose(tuned["SGD"].rates, best)
    assert not tuned["SGD"].at_the_edge
    assert set(tuned) == {"SGD", "momentum", "Adam", "AdamW", "Adam, cosine", trials.PER_TASK}


def test_no_rate_of_a_family_beats_a_rate_for_each_task(tuned):
    each, adam = tuned[trials.PER_TASK], tuned["Adam"]
    assert (trials.last(each.losses) <= trials.last(adam.losses) + 1e-9).all()
    assert (trials.area(each.by_area) <= trials.area(adam.by_area) + 1e-9).all()
    assert (trials.last(each.losses) < trials.last(adam.losses)).any()


def test_a_learned_optimizer_is_tried_on_the_same_tasks(family, tuned):
    """One that is Adam with the tuned rate gives Adam's own curves."""
    rate = tuned["Adam"].rates[0]
    learned = il.optimizers.ScalarRate(optax.scale_by_adam, rate)
    meta = learned.init(jax.random.key(0), jnp.zeros(4))
    trial = trials.learned_trial(family, learned, meta, **SETTINGS)
    np.testing.assert_allclose(trial.losses, tuned["Adam"].losses, rtol=1e-4)


def test_what_diverges_is_infinite_and_never_chosen(family, monkeypatch):
    episodes = il.tasks.evaluation_episodes(family.tasks, TASKS, 0, "test")
    wild = [jnp.float32(1e30), jnp.float32(0.1)]
    curves = trials.loss_curves(family, lambda rate: optax.sgd(rate), STEPS)
    losses = curves(wild, episodes, jax.random.key(0))
    assert np.isinf(losses[0, :, -1]).all() and np.isfinite(losses[1]).all()
    two = {name: trials.BASELINES[name] for name in ("SGD", "Adam")}
    monkeypatch.setattr(trials, "BASELINES", two)
    found = trials.tuned_trials(family, **SETTINGS, rates=np.array([0.1, 1e30]))
    assert found["SGD"].rates == (0.1, 0.1) and found["SGD"].at_the_edge


def test_a_record_holds_the_quartiles_over_tasks():
    losses = np.arange(5.0)[:, None] * np.array([[4.0, 2.0, 1.0]])
    got = trials.trial_record(trials.OptimizerTrial(losses, losses))
    assert got["final"] == [1.0, 2.0, 3.0]
    assert got["area"] == [1.5, 3.0, 4.5]
    assert got["curve"][1] == [8.0, 4.0, 2.0]
    assert got["tasks"]["final"] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert got["tasks"]["area"] == [0.0, 1.5, 3.0, 4.5, 6.0]
    assert "rates" not in got


def test_seconds_are_of_one_step(family):
    seconds = trials.seconds_per_step(
        family, lambda rate: optax.sgd(rate), jnp.float32(0.1), steps=50
    )
    assert 0 < seconds < 0.1
