"""Validation during training: what is kept, and how several decide together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from points import HELD_OUT, KEY, POINTS, assert_same_bits, point_recipe, train

import innerloop as il
from innerloop.errors import StructureError
from innerloop.estimators import WeightedSum
from innerloop.training import Validation, evaluate
from innerloop.training._fit import run_keys


def test_the_best_by_validation_is_kept_though_it_worsens_later():
    rate = lambda count: jnp.where(count < 4, 0.2, 3.0)
    outcome, reports = train(
        optimizer=optax.sgd(rate), steps=8, validation=Validation(HELD_OUT, every=1, steps=2)
    )
    scores = [progress.evaluation.mean["loss"][-1] for progress in reports]
    assert scores[-1] > 2 * min(scores)
    assert outcome.best_step == int(np.argmin(scores)) + 1 < outcome.step == 8
    assert_same_bits(outcome.meta, reports[outcome.best_step - 1].meta)
    assert_same_bits(outcome.last, reports[-1].meta)
    running = np.minimum.accumulate([np.inf, *scores])
    assert [progress.best for progress in reports] == list(np.array(scores) < running[:-1])


def test_a_validation_judges_the_last_inner_step_alone():
    recipe = point_recipe(steps=3)
    _, reports = train(recipe, validation=Validation(HELD_OUT, every=7))
    validated, meta = reports[-1].evaluation, reports[-1].meta
    whole = evaluate(recipe.learner, meta, HELD_OUT, run_keys(KEY)[2])
    for name in ("loss", "distance"):
        assert validated.mean[name].shape == validated.interval[name].shape == (1,)
        np.testing.assert_allclose(validated.mean[name], whole.mean[name][-1:], rtol=1e-6)
        np.testing.assert_allclose(validated.interval[name], whole.interval[name][-1:], rtol=1e-5)
    assert whole.mean["loss"].shape == (4,)


def test_a_metric_to_maximise_is_maximised():
    validation = Validation(HELD_OUT, every=1, metric="distance", maximise=True)
    outcome, reports = train(validation=validation)
    scores = [progress.evaluation.mean["distance"][-1] for progress in reports]
    assert outcome.best_step == int(np.argmax(scores)) + 1
    assert outcome.best_step < outcome.step


def test_averaging_is_an_exponential_moving_average():
    _, raw = train(per_call=1)
    outcome, averaged = train(per_call=1, averaging=0.9)
    average = point_recipe().init_meta(jax.random.split(KEY, 3)[0])["x"]
    for plain, smooth in zip(raw, averaged, strict=True):
        average = 0.9 * average + 0.1 * plain.meta["x"]
        np.testing.assert_allclose(smooth.meta["x"], average, rtol=1e-5)
    np.testing.assert_allclose(outcome.meta["x"], average, rtol=1e-5)


def test_reports_come_after_each_call_and_validations_when_due():
    outcome, reports = train(steps=10, per_call=4, validation=Validation(HELD_OUT, every=5))
    assert [progress.step for progress in reports] == [4, 5, 9, 10]
    assert [len(progress.metrics["loss"]) for progress in reports] == [4, 1, 4, 1]
    assert [progress.evaluation is not None for progress in reports] == [False, True, False, True]
    seconds = [progress.seconds for progress in reports]
    assert seconds == sorted(seconds)
    assert {"loss", "distance", "gradient_norm"} <= set(reports[0].metrics)
    assert outcome.step == 10


def test_the_last_step_is_validated_though_none_is_due():
    outcome, reports = train(steps=7, validation=Validation(HELD_OUT, every=5))
    assert [p.step for p in reports if p.evaluation is not None] == [5, 7]
    assert outcome.best_step in (5, 7)


def test_minutes_stop_the_run_after_a_validation():
    outcome, reports = train(
        steps=1000, per_call=2, minutes=0.0, validation=Validation(HELD_OUT, every=50)
    )
    assert outcome.step == outcome.best_step == 2
    assert len(reports) == 1
    assert reports[0].evaluation is not None


def test_several_validations_decide_together_by_their_weights():
    learner = point_recipe(steps=2).learner
    far = jax.tree.map(lambda leaf: leaf + 1, HELD_OUT)
    named = {
        "near": Validation(HELD_OUT, every=1, weight=3.0),
        "far": Validation(far, every=1, learner=learner, metric="distance", maximise=False),
    }
    outcome, reports = train(validation=named)
    key = run_keys(KEY)[2]
    scores = []
    for report in reports:
        mean = report.evaluation.mean
        for name, episodes, by in (
            ("near", HELD_OUT, point_recipe().learner),
            ("far", far, learner),
        ):
            alone = evaluate(by, report.meta, episodes, key)
            for metric in ("loss", "distance"):
                np.testing.assert_allclose(
                    mean[f"{name}/{metric}"], alone.mean[metric][-1:], rtol=1e-6
                )
        scores.append(0.75 * mean["near/loss"][-1] + 0.25 * mean["far/distance"][-1])
        assert report.evaluation.tasks == 10
    assert outcome.best_step == int(np.argmin(scores)) + 1


def test_validations_that_are_due_apart_are_refused():
    named = {"a": Validation(HELD_OUT, every=1), "b": Validation(HELD_OUT, every=2)}
    with pytest.raises(StructureError, match=r"due together.*a: every=1, b: every=2.*every=2\)"):
        train(validation=named)


def test_an_estimator_of_several_learners_needs_to_be_told_whom_to_validate():
    recipe, other = point_recipe(), point_recipe(steps=2)
    both = WeightedSum((recipe.estimator(POINTS, 1), 1.0), (other.estimator(POINTS, 1), 1.0))
    options = {"optimizer": optax.sgd(0.1), "steps": 1, "key": KEY}
    with pytest.raises(StructureError, match=r"more than one learner.*learner=Learner\("):
        il.fit(both, recipe.init_meta, validation=Validation(HELD_OUT, every=1), **options)
    told = Validation(HELD_OUT, every=1, learner=recipe.learner)
    assert il.fit(both, recipe.init_meta, validation=told, **options).best_step == 1
    same = WeightedSum((recipe.estimator(POINTS, 1), 1.0), (recipe.estimator(POINTS, 2), 1.0))
    untold = Validation(HELD_OUT, every=1)
    assert il.fit(same, recipe.init_meta, validation=untold, **options).best_step == 1


def test_a_metric_that_no_validation_gives_is_named_with_those_that_are_there():
    recipe = point_recipe()
    validation = il.Validation(POINTS.sample(KEY, 2), every=2, metric="accuracy")
    options = {
        "optimizer": optax.adam(0.1),
        "steps": 2,
        "per_call": 1,
        "key": KEY,
        "validation": validation,
    }
    reports = []
    with pytest.raises(StructureError, match=r"metric='accuracy'.*one of .*'loss'.*Write: Valid"):
        il.fit(recipe.estimator(POINTS, 2), recipe.init_meta, report=reports.append, **options)
    assert not reports, "it is said before the first step"


def test_whether_more_of_a_metric_is_better_must_be_said():
    """By default the smallest accuracy would be kept."""
    with pytest.raises(StructureError, match=r"'distance' without maximise.*maximise=True"):
        train(validation=Validation(HELD_OUT, every=1, metric="distance"))
