"""System figures: what a step takes, apart from compilation."""

import itertools
import time

import jax
import jax.numpy as jnp
import optax
import pytest

import innerloop as il
from innerloop.training.system import Meter


def listeners():
    return list(jax._src.monitoring.get_event_duration_listeners())


def run(**changed):
    reports = []
    recipe = il.recipes.maml(
        il.models.mlp([1, 4, 1]), il.models.mean_squared_error, rate=0.01, steps=1
    )
    options = {"optimizer": optax.sgd(0.1), "steps": 4, "per_call": 2}
    estimator = recipe.estimator(il.tasks.SinusoidTasks(2, 2), batch=3)
    key = jax.random.key(0)
    il.fit(estimator, recipe.init_meta, key=key, **(options | changed), report=reports.append)
    return [progress.system for progress in reports]


def test_fit_reports_a_step_without_its_compilation():
    begin = time.perf_counter()
    first, second = run()
    seconds = time.perf_counter() - begin
    assert first["compile_seconds"] > 0
    assert second["compile_seconds"] == first["compile_seconds"]  # nothing was compiled again
    assert 0 < 2 * first["step_seconds"] < seconds - first["compile_seconds"]
    # Tracing and compiling take hundreds of steps: left in, the first call would stand out.
    assert first["step_seconds"] < 0.1 * first["compile_seconds"]
    assert first["tasks_per_second"] == pytest.approx(3 / first["step_seconds"])
    assert first["peak_memory_bytes"] <= second["peak_memory_bytes"]
    assert 50e6 < second["peak_memory_bytes"] < 1e12  # bytes: Python and JAX alone are more


def test_nothing_listens_after_the_run_however_it_ends():
    before = listeners()
    run()
    with pytest.raises(ZeroDivisionError):
        run(steps=4, optimizer=optax.sgd(lambda count: 1 / 0))
    assert listeners() == before


def test_a_trace_within_a_trace_counts_once():
    inner = jax.jit(lambda x: sum(jnp.sin(i * x) for i in range(200)))
    outer = jax.jit(lambda x: inner(x) + 1)
    x = jnp.float32(1)
    with Meter(batch=1) as meter:
        meter.begin()
        begin = time.perf_counter()
        jax.block_until_ready(outer(x))
        seconds = time.perf_counter() - begin
        meter.end(1)
        spans = sorted(meter._spans)
    assert 0 < sum(end - begin for begin, end in spans) < seconds
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))


@pytest.mark.parametrize("peaks", [(3, 7), (7, 3)])
def test_devices_that_tell_are_asked(monkeypatch, peaks):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(peak) for peak in peaks])
    with Meter(batch=1) as meter:
        meter.begin()
        meter.end(1)
    assert meter.figures()["peak_memory_bytes"] == 7
