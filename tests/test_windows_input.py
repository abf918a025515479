"""Online estimators refuse what makes no sense, with the cure, and say what they drop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from halving import ALL, DRAWN, HALVE, HALVED, begun, stepped
from jaxtyping import config

import innerloop as il
from innerloop.devices.placement import OneDevice


def made(kind, *sizes, **settings):
    """A call that makes an estimator of two runs, with some of its parts changed."""
    parts = {"problem": HALVED, "adaptation": HALVE, "tasks": DRAWN, "batch": 2}
    named = dict(zip(("window", "horizon"), sizes, strict=True))
    return lambda: getattr(il.estimators, kind)(**(parts | named | settings))


def refused(**changes):
    return made("PersistentES", 2, 8, **changes)


def begins(meta):
    return lambda: ALL["persistent"].init(meta, jax.random.key(0))


def with_other_state():
    step, _, state = begun(ALL["persistent"])
    step(jnp.ones(3), state, jax.random.key(0))


class TwoDevices(OneDevice):
    @property
    def devices(self):
        return 2


TWO_DEVICES = TwoDevices()
CASES = {
    "shorter": (
        made("TruncatedUnroll", 20, 10),
        "whole windows.*horizon=10.*horizon=20",
    ),
    "uneven": (
        made("PersistentES", 20, 210, pairs=1, sigma=0.1),
        "whole windows.*horizon=210.*=200",
    ),
    "uneven_overlap": (made("TruncatedUnroll", 20, 200, overlap=15), None),
    "uneven_stride": (
        made("TruncatedUnroll", 20, 201, overlap=15),
        "whole windows.*overlap=15.*multiple of 5 more.*horizon=200",
    ),
    "one_of_many": (
        made("TruncatedES", 4, (8, 9), pairs=1, sigma=0.1),
        "whole windows.*horizon=9",
    ),
    "no_horizon": (made("TruncatedUnroll", 4, ()), "horizon must be a whole number"),
    "window_0": (made("TruncatedUnroll", 0, 4), "window must be a whole number"),
    "all_overlap": (made("TruncatedUnroll", 4, 8, overlap=4), "not all of them.*window=5"),
    "pairs_0": (made("NoiseReuseES", 4, 8, pairs=0, sigma=0.1), "pairs must be a whole number"),
    "sigma_0": (
        made("PersistentES", 4, 8, pairs=1, sigma=0.0),
        "sigma must be a finite number above 0.*sigma=0.0.*PersistentES",
    ),
    "clip_nan": (made("PersistentES", 4, 8, pairs=1, sigma=0.1, clip=float("nan")), "clip"),
    "pair_chunk": (
        made("PersistentES", 4, 8, pairs=2, sigma=0.1, pairs_at_once=0),
        "pairs_at_once must be a whole number",
    ),
    "low": (
        lambda: il.estimators.log_uniform(5, 100, window=10),
        "low must be a whole number of at least 10",
    ),
    "no_unroll": (
        made("TruncatedUnroll", 4, 8, unroll=il.Reptile()),
        "unroll must be an Unroll.*Reptile",
    ),
    "batch_0": (refused(batch=0), "batch must be a whole number"),
    "swapped": (
        refused(problem=HALVE, adaptation=HALVED),
        "problem must be a Problem.*Descent",
    ),
    "no_steps": (
        refused(adaptation=il.Procedure(lambda meta, support, key: meta)),
        "no steps to stop between.*horizon",
    ),
    "integer_meta": (begins(jnp.int32(1)), "meta is not a floating-point array"),
    "no_tasks": (refused(tasks=None), "tasks must be a task distribution.*None"),
    "streamed": (
        refused(tasks=il.tasks.StreamedTasks(print)),
        "draw new tasks on the device.*StreamedT",
    ),
    "chunk_0": (refused(chunk=0), "chunk must be a whole number"),
    "devices": (
        lambda: refused(batch=3)().on(TWO_DEVICES),
        "share the inner runs evenly.*batch=3 on 2 devices",
    ),
    "other_meta": (
        with_other_state,
        r"other meta-parameters.*state.noise: float32\[2\].*\[2, 3\].*init\(meta",
    ),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES)
def test_bad_input_is_refused_with_the_cure(call, message):
    if message is None:
        assert call().overlap == 15
        return
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(il.errors.InnerloopError, match=message) as caught:
            call()
    finally:
        config.update("jaxtyping_disable", False)
    assert (caught.value.write or "") in str(caught.value)


def test_an_estimator_says_what_it_drops():
    kinds = {name: estimator.fidelity().kind for name, estimator in ALL.items()}
    assert kinds.items() >= {
        ("unroll", "biased"),
        ("persistent", "unbiased"),
        ("noise_reuse", "unbiased"),
        ("truncated", "biased"),
    }
    assert made("TruncatedUnroll", 8, 8)().fidelity().kind == "exact"
    assert made("TruncatedES", 8, 8)().fidelity().kind == "unbiased"


def test_a_meta_parameter_that_nothing_reads_is_named_and_one_alone_is_refused():
    problem = il.Problem(
        lambda meta, support, key: meta["start"],
        HALVED.inner_loss,
        lambda params, meta, batch, key: params**2 * batch,
    )
    meta = {"start": jnp.float32(1), "idle": jnp.ones(2)}
    estimator = made("TruncatedUnroll", 2, 2, problem=problem)()
    state = estimator.init(meta, jax.random.key(0))
    found, _ = stepped(estimator)(meta, state, jax.random.key(0))
    assert list(found.aux.diagnostics["unreached"]) == ["['idle']"]
    assert not np.any(found.grads["idle"])
    dead = il.Problem(lambda meta, support, key: support, HALVED.inner_loss, problem.outer_loss)
    estimator = made("TruncatedUnroll", 2, 2, problem=dead)()
    state = estimator.init(meta, jax.random.key(0))
    with pytest.raises(il.errors.DetachedError, match="no meta-parameter reaches"):
        stepped(estimator)(meta, state, jax.random.key(0))
