"""Online estimators refuse what makes no sense, with the cure, and say what they drop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from halving import ALL, DRAWN, HALVE, HALVED, begun
from jaxtyping import config

import innerloop as il


def refused(**changes):
    """A call with some of its parts changed."""
    given = {"problem": HALVED, "adaptation": HALVE, "tasks": DRAWN, "estimator": ALL["persistent"]}
    given |= {"meta": jnp.float32(1), "batch": 2} | changes
    parts = (given["problem"], given["adaptation"], given["tasks"])
    return lambda: given["estimator"].init(*parts, given["meta"], jax.random.key(0), given["batch"])


def with_other_carry():
    step, _, carry = begun(ALL["persistent"])
    step(jnp.ones(3), carry, jax.random.key(0))


CASES = {
    "shorter": (
        lambda: il.estimators.TruncatedUnroll(20, 10),
        "whole windows.*horizon=10.*horizon=20",
    ),
    "uneven": (
        lambda: il.estimators.PersistentES(20, 210, 1, 0.1),
        "whole windows.*horizon=210.*=200",
    ),
    "uneven_overlap": (lambda: il.estimators.TruncatedUnroll(20, 200, 15), None),
    "uneven_stride": (
        lambda: il.estimators.TruncatedUnroll(20, 201, 15),
        "whole windows.*overlap=15.*multiple of 5 more.*horizon=200",
    ),
    "one_of_many": (
        lambda: il.estimators.TruncatedES(4, (8, 9), 1, 0.1),
        "whole windows.*horizon=9",
    ),
    "no_horizon": (lambda: il.estimators.TruncatedUnroll(4, ()), "horizon must be a whole number"),
    "window_0": (lambda: il.estimators.TruncatedUnroll(0, 4), "window must be a whole number"),
    "all_overlap": (lambda: il.estimators.TruncatedUnroll(4, 8, 4), "not all of them.*window=5"),
    "pairs_0": (lambda: il.estimators.NoiseReuseES(4, 8, 0, 0.1), "pairs must be a whole number"),
    "sigma_0": (
        lambda: il.estimators.PersistentES(4, 8, 1, 0.0),
        "needs a width.*sigma=0.0.*PersistentES",
    ),
    "clip_nan": (lambda: il.estimators.PersistentES(4, 8, 1, 0.1, clip=float("nan")), "clip"),
    "pair_chunk": (
        lambda: il.estimators.PersistentES(4, 8, 2, 0.1, 0),
        "chunk must be a whole number",
    ),
    "low": (
        lambda: il.estimators.log_uniform(5, 100, window=10),
        "low must be a whole number of at least 10",
    ),
    "no_unroll": (
        lambda: il.estimators.TruncatedUnroll(4, 8, unroll=il.FirstOrder()),
        "by Unroll.*FirstO",
    ),
    "batch_0": (refused(batch=0), "batch must be a whole number"),
    "swapped": (refused(problem=HALVE, adaptation=HALVED), "made of.*GradientDescent, Problem"),
    "no_steps": (
        refused(adaptation=il.Procedure(lambda meta, support, key: meta)),
        "no steps to stop between.*horizon",
    ),
    "integer_meta": (refused(meta=jnp.int32(1)), "meta is not a floating-point array"),
    "no_tasks": (refused(tasks=None), "NoneType.*task distribution"),
    "other_meta": (
        with_other_carry,
        r"other meta-parameters.*state.noise: float32\[2\].*\[2, 3\].*init\(problem",
    ),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES)
def test_bad_input_is_refused_with_the_cure(call, message):
    if message is None:
        assert call().overlap == 15
        return
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(il.InnerloopError, match=message) as caught:
            call()
    finally:
        config.update("jaxtyping_disable", False)
    assert caught.value.write in str(caught.value)


def test_an_estimator_says_what_it_drops():
    kinds = {name: estimator.fidelity(HALVE).kind for name, estimator in ALL.items()}
    assert kinds == {
        "unroll": "biased",
        "persistent": "unbiased",
        "noise_reuse": "unbiased",
        "truncated": "biased",
    }
    assert il.estimators.TruncatedUnroll(8, 8).fidelity(HALVE).kind == "exact"
    assert il.estimators.TruncatedES(8, 8, 1, 0.1).fidelity(HALVE).kind == "unbiased"


def test_a_meta_parameter_that_nothing_reads_is_named_and_one_alone_is_refused():
    problem = il.Problem(
        lambda meta, support, key: meta["start"],
        HALVED.inner_loss,
        lambda params, meta, batch, key: params**2 * batch,
    )
    estimator = il.estimators.TruncatedUnroll(2, 2)
    parts = (problem, HALVE, DRAWN)
    meta = {"start": jnp.float32(1), "idle": jnp.ones(2)}
    carry = estimator.init(*parts, meta, jax.random.key(0), batch=2)
    ((_, aux), grads), _ = estimator.value_and_grad(*parts)(meta, carry, jax.random.key(0))
    assert list(aux.diagnostics["unreached"]) == ["['idle']"] and not np.any(grads["idle"])
    dead = il.Problem(lambda meta, support, key: support, HALVED.inner_loss, problem.outer_loss)
    carry = estimator.init(dead, HALVE, DRAWN, meta, jax.random.key(0), batch=2)
    with pytest.raises(il.DetachedError, match="no meta-parameter reaches"):
        estimator.value_and_grad(dead, HALVE, DRAWN)(meta, carry, jax.random.key(0))
