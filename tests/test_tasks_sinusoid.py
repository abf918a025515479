"""The sinusoids are the formula's: amplitude and phase are recovered from the rows."""

import math
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innerloop.errors import StructureError
from innerloop.tasks import SinusoidTasks


@partial(jax.jit, static_argnums=1)
def sample(tasks, n):
    return tasks.sample(jax.random.key(0), n)


def fit(examples):
    """Amplitude, phase and largest residual of each task, by least squares on sin x and cos x."""
    fits = []
    inputs = np.asarray(examples.inputs[..., 0], float)
    targets = np.asarray(examples.targets[..., 0], float)
    for x, y in zip(inputs, targets, strict=True):
        basis = np.stack([np.sin(x), np.cos(x)], axis=1)
        sine, cosine = np.linalg.lstsq(basis, y, rcond=None)[0]
        residual = np.abs(basis @ [sine, cosine] - y).max()
        fits.append((np.hypot(sine, cosine), np.arctan2(-cosine, sine), residual))
    return np.array(fits).T


def test_shapes():
    episodes = sample(SinusoidTasks(shots=3, queries=7), 4)
    assert episodes.support.inputs.shape == episodes.support.targets.shape == (4, 3, 1)
    assert episodes.query.inputs.shape == episodes.query.targets.shape == (4, 7, 1)
    assert episodes.query.targets.dtype == np.float32


def test_targets_are_the_formula_with_one_amplitude_and_phase_per_task():
    episodes = sample(SinusoidTasks(shots=40, queries=60), 200)
    amplitude, phase, residual = fit(episodes.support)
    query_amplitude, query_phase, query_residual = fit(episodes.query)
    assert max(residual.max(), query_residual.max()) < 1e-5
    np.testing.assert_allclose(amplitude, query_amplitude, atol=1e-4)
    np.testing.assert_allclose(phase, query_phase, atol=1e-3)


def test_default_ranges_are_those_of_the_paper_and_are_filled():
    episodes = sample(SinusoidTasks(shots=40, queries=1), 500)
    amplitude, phase, _ = fit(episodes.support)
    inputs = np.asarray(episodes.support.inputs)
    for values, low, high in [(amplitude, 0.1, 5.0), (phase, 0.0, math.pi), (inputs, -5.0, 5.0)]:
        slack = 0.03 * (high - low)
        assert low - 1e-3 <= values.min() < low + slack
        assert high - slack < values.max() <= high + 1e-3
        # uniform: the mean is within 5 standard errors of the middle
        error = (high - low) / math.sqrt(12 * values.size)
        assert abs(values.mean() - (low + high) / 2) < 5 * error


@settings(max_examples=20, deadline=None)
@given(
    amplitude=st.tuples(st.floats(0.5, 1.0), st.floats(1.5, 20.0)),
    phase=st.tuples(st.floats(-1.5, 0.0), st.floats(0.5, 1.5)),
    inputs=st.tuples(st.floats(-9.0, 0.0), st.floats(3.0, 9.0)),
)
def test_ranges_are_kept(amplitude, phase, inputs):
    tasks = SinusoidTasks(3, 50, amplitude=amplitude, phase=phase, inputs=inputs)
    episodes = tasks.sample(jax.random.key(0), 20)  # not compiled: ranges are constants
    found_amplitude, found_phase, _ = fit(episodes.query)
    drawn = np.concatenate([episodes.support.inputs, episodes.query.inputs], axis=1)
    for values, (low, high) in [
        (found_amplitude, amplitude),
        (found_phase, phase),
        (drawn, inputs),
    ]:
        assert low - 1e-3 <= values.min()
        assert values.max() <= high + 1e-3


def test_support_and_query_are_different_rows():
    episodes = sample(SinusoidTasks(shots=3, queries=7), 4)
    for support, query in zip(episodes.support.inputs, episodes.query.inputs, strict=True):
        assert not np.isin(support, query).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 0}, "shots=0"),
        ({"queries": -1}, "queries=-1"),
        ({"amplitude": (5.0, 0.1)}, "amplitude"),
        ({"phase": (1.0, 1.0)}, "phase"),
        ({"inputs": (0.0, math.inf)}, "inputs"),
    ],
)
def test_faults_are_refused_with_the_number_and_the_cure(arguments, message):
    with pytest.raises(StructureError, match=message) as error:
        SinusoidTasks(**{"shots": 1, "queries": 1, **arguments})
    (name,) = arguments
    assert error.value.write.startswith(f"SinusoidTasks(..., {name}=")
