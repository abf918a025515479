"""How results print: tables without arrays."""

import numpy as np
import optax
import pytest
from points import HELD_OUT, KEY, POINTS, point_recipe

from innerloop.diagnostics.text import plus_minus
from innerloop.training import Evaluation, Validation, evaluate, fit


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_an_evaluation_prints_each_inner_step():
    values = {"loss": np.array([2.0, 0.5]), "accuracy": np.array([0.25, 0.75])}
    halves = {"loss": np.array([0.25, 0.125]), "accuracy": np.array([0.0123, 0.0456])}
    shown = str(Evaluation(values, halves, 1200, np.array([0.5, 0.25])))
    assert lines(shown)[:2] + lines(shown)[3:] == [
        "1,200 tasks, mean ± 95% interval",
        "inner steps loss accuracy calibration error",
        "0 2.000 ± 0.250 0.2500 ± 0.0123 0.5000",
        "1 0.500 ± 0.125 0.7500 ± 0.0456 0.2500",
    ]


def test_many_inner_steps_are_shown_in_part():
    steps = np.arange(101.0)
    shown = lines(str(Evaluation({"loss": steps}, {"loss": steps}, 3)))
    assert [line.split()[0] for line in shown[3:]] == ["0", "1", "2", "5", "10", "20", "50", "100"]


def test_an_evaluation_after_one_step_prints_a_row_per_metric():
    one = np.ones(1)
    shown = lines(str(Evaluation({"loss": one, "mse": one}, {"loss": one, "mse": one}, 3)))
    assert shown[3:] == ["loss 1.00 ± 1.00", "mse 1.00 ± 1.00"]
    assert str(Evaluation({}, {}, 0)).startswith("0 tasks")


@pytest.mark.parametrize(
    ("mean", "half", "shown"),
    [
        (0.91234, 0.01234, "0.9123 ± 0.0123"),
        (12345.6, 234.5, "12,346 ± 234"),
        (1.23456e-5, 1.5e-7, "0.000012346 ± 0.000000150"),
        (1.0, 0.0, "1.0000 ± 0.0000"),
        (np.nan, np.nan, "nan ± nan"),
        (1.0, np.inf, "1.0000 ± inf"),
    ],
)
def test_a_mean_is_shown_as_far_as_its_interval_tells(mean, half, shown):
    assert plus_minus([mean], [half]) == [shown]


def test_the_means_of_a_column_have_the_same_number_of_decimals():
    """That of the largest interval that is finite."""
    shown = plus_minus(np.array([2.9988, 0.27944, 1.0]), np.array([0.0566, 0.00985, np.inf]))
    assert shown == ["2.9988 ± 0.0566", "0.2794 ± 0.0098", "1.0000 ± inf"]


def test_the_outcome_and_the_reports_of_fit_print_without_arrays(capsys):
    recipe = point_recipe()
    options = {"optimizer": optax.adam(0.1), "steps": 4, "key": KEY, "per_call": 2, "report": print}
    estimator, held_out = recipe.estimator(POINTS, batch=3), Validation(HELD_OUT, 4)
    outcome = fit(estimator, recipe.init_meta, validation=held_out, **options)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 2, ")
    assert last.startswith("step 4, ")
    assert ", validation loss " in last
    assert last.endswith("the best so far")
    assert "loss " in first and "validation" not in first
    rows = lines(str(outcome))[2:]
    assert rows[:3] == ["outer steps 4", "best after step 4", "steps that were not finite 0"]
    assert rows[3] == "meta-parameters 2, 8 B"
    assert repr(outcome).startswith("Fit(meta={'x': f32[2]}")
    assert "array(" not in repr(outcome) + repr(
        evaluate(recipe.learner, outcome.meta, HELD_OUT, KEY)
    )
