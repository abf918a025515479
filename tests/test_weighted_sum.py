"""A weighted sum of estimators is the weighted sum of its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import config

import innerloop as il
from innerloop.tasks import IndependentTasks, SinusoidTasks


def sine_problem():
    def loss(params, meta, batch, key):
        x = batch.inputs[:, 0]
        features = jnp.stack([jnp.sin(x), jnp.cos(x), jnp.ones_like(x)], 1)
        return jnp.mean((features @ params - batch.targets[:, 0]) ** 2)

    return il.Problem(lambda meta, support, key: meta["shared"], loss, loss)


def line_problem():
    def loss(params, meta, batch, key):
        return jnp.mean((batch["x"] @ params - batch["y"]) ** 2), {"size": jnp.sum(params**2)}

    return il.Problem(lambda meta, support, key: meta["shared"] * meta["scale"], loss, loss)


def line(key):
    x_key, slope_key = jax.random.split(key)
    x = jax.random.normal(x_key, (6, 3))
    y = x @ jax.random.normal(slope_key, (3,))
    return il.Episode({"x": x[:4], "y": y[:4]}, {"x": x[4:], "y": y[4:]})


SINES, LINES = SinusoidTasks(5, 7), IndependentTasks(line)
LEARN_SINE = il.GradientDescent(optax.sgd(0.05), steps=2)
LEARN_LINE = il.GradientDescent(optax.sgd(0.05, momentum=0.9), steps=1)
META = {"shared": jnp.array([0.3, -0.2, 0.5]), "scale": jnp.array(1.5)}
KEY = jax.random.key(1)


def sines(gradient=il.Unroll(), batch=6, **options):
    return il.WholeTasks(sine_problem(), LEARN_SINE, gradient, SINES, batch, **options)


def lines(gradient=il.Unroll(), batch=2, **options):
    return il.WholeTasks(line_problem(), LEARN_LINE, gradient, LINES, batch, **options)


def step(estimator, outer_step=3):
    def run(meta, key):
        state = estimator.init(meta, key)
        data = estimator.feed(key, outer_step, 1)
        return estimator.step(meta, state, data, key, jnp.int32(outer_step))[0]

    return jax.jit(run)(META, KEY) if isinstance(estimator, il.WholeTasks) else run(META, KEY)


@pytest.mark.parametrize(
    ("of_sines", "of_lines", "chunk"),
    [
        (il.Unroll(), il.Unroll(), None),
        (il.FirstOrder(), il.FirstOrder(), 2),
        (il.Unroll(), il.FirstOrder(), None),
    ],
    ids=["unroll", "first order in chunks", "one of each"],
)
def test_value_and_gradient_are_the_weighted_sum_of_the_parts(of_sines, of_lines, chunk):
    parts = {"sines": sines(of_sines, chunk=chunk), "lines": lines(of_lines, chunk=chunk)}
    weights = {"sines": 3.0, "lines": 1.0}
    both = il.estimators.WeightedSum(**{name: (parts[name], weights[name]) for name in parts})
    found = step(both)
    alone = {}
    for name, key in zip(parts, jax.random.split(KEY, 2), strict=True):
        part = parts[name]
        run = lambda meta, key, part=part: part.step(meta, (), None, key, jnp.int32(3))[0]
        alone[name] = jax.jit(run)(META, key)
    mixed = lambda a, b: 0.75 * a + 0.25 * b
    np.testing.assert_allclose(
        found.loss, mixed(alone["sines"].loss, alone["lines"].loss), rtol=1e-5
    )
    expected = jax.tree.map(mixed, alone["sines"].grads, alone["lines"].grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found.grads, expected
    )
    assert set(found.metrics) == {"sines/loss", "lines/loss", "lines/size"}
    for name in parts:
        np.testing.assert_allclose(found.metrics[f"{name}/loss"], alone[name].loss, rtol=1e-5)
    # The sine tasks do not read the scale: zero in their part, and said so there alone.
    assert list(found.aux["sines"].diagnostics["unreached"]) == ["['scale']"]
    assert found.aux["lines"].diagnostics["unreached"] == {}
    assert found.grads["scale"] != 0


def test_a_sum_of_one_part_is_that_part():
    found = step(il.estimators.WeightedSum((sines(), 5.0)))
    alone, _ = sines().step(META, (), None, jax.random.split(KEY, 1)[0], jnp.int32(3))
    np.testing.assert_allclose(found.loss, alone.loss, rtol=1e-6)
    np.testing.assert_allclose(found.grads["shared"], alone.grads["shared"], rtol=1e-5)
    assert list(found.metrics) == ["0/loss"]


def test_the_tasks_of_a_step_are_those_of_the_parts():
    inner = il.estimators.WeightedSum((lines(), 1.0))
    both = il.estimators.WeightedSum(a=(sines(), 1.0), b=(inner, 2.0))
    found = both.tasks_of_step(KEY, 5)
    of_sines, of_inner = jax.random.split(KEY, 2)
    of_lines = jax.random.split(of_inner, 1)[0]
    own = sines().tasks_of_step(of_sines, 5), lines().tasks_of_step(of_lines, 5)
    assert list(found) == ["a", "b/0"]
    for tasks, expected in zip(found.values(), own, strict=True):
        jax.tree.map(np.testing.assert_array_equal, tasks.episodes, expected.episodes)


def test_a_part_that_is_not_finite_is_left_out_of_loss_and_gradient():
    """Also one whose loss is finite and whose gradient is not."""
    steep = lambda params, meta, batch, key: jnp.sqrt(jnp.sum(params * 0))
    problem = il.Problem(lambda meta, support, key: meta["shared"], steep, steep)
    broken = il.WholeTasks(problem, LEARN_SINE, il.Unroll(), SINES, 2)
    found = step(il.estimators.WeightedSum((sines(), 1.0), (broken, 9.0)))
    alone, _ = sines().step(META, (), None, jax.random.split(KEY, 2)[0], jnp.int32(3))
    np.testing.assert_allclose(found.loss, alone.loss, rtol=1e-6)
    np.testing.assert_allclose(found.grads["shared"], alone.grads["shared"], rtol=1e-5)
    none = step(il.estimators.WeightedSum((broken, 1.0)))
    assert np.isnan(none.loss)


def test_a_clipped_step_of_a_sum_is_the_weighted_sum_of_clipped_parts():
    both = il.estimators.WeightedSum((sines(), 3.0), (lines(), 1.0))
    found = both.apart(META, both.init(META, KEY), (None, None), KEY, jnp.int32(3), 0.1)
    keys = jax.random.split(KEY, 2)
    parts = [
        part.apart(META, (), None, key, jnp.int32(3), 0.1)
        for part, key in zip((sines(), lines()), keys, strict=True)
    ]
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, *(part.grads for part in parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found.grads, expected)
    assert [len(faults.finite) for faults in found.faults.values()] == [6, 2]


BAD = [
    (),
    ((sines(), 0.0),),
    ((sines(), -1.0),),
    ((sines(), float("nan")),),
    ((sines(), float("inf")),),
    ((sines(), True),),
    (sines(),),
    ((il.Unroll(), 1.0),),
]


@pytest.mark.parametrize("parts", BAD, ids=range(len(BAD)))
def test_no_parts_or_weights_that_are_not_positive_are_refused(parts):
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(
            il.errors.StructureError, match=r"estimators with weights.*Write: WeightedSum"
        ):
            il.estimators.WeightedSum(*parts)
    finally:
        config.update("jaxtyping_disable", False)


def test_a_sum_of_different_adaptations_trains():
    both = il.estimators.WeightedSum(sines=(sines(), 1.0), lines=(lines(batch=6), 1.0))
    outcome = il.fit(both, META, key=KEY, optimizer=optax.adam(0.05), steps=150, per_call=50)

    def losses(meta):
        parts = (sines().learner, SINES), (lines().learner, LINES)
        held_out = [il.tasks.evaluation_episodes(tasks, 200, seed=1) for _, tasks in parts]
        found = [
            il.evaluate(learner, meta, episodes, KEY).mean["loss"][-1]
            for (learner, _), episodes in zip(parts, held_out, strict=True)
        ]
        return sum(found)

    assert losses(outcome.last) < losses(META)
    assert not np.allclose(outcome.last["scale"], META["scale"])


def test_a_name_that_two_parts_have_is_refused():
    """Neither part is lost."""
    with pytest.raises(il.errors.StructureError, match=r"the same name.*Got: 0\."):
        il.estimators.WeightedSum((sines(), 1.0), **{"0": (lines(), 1.0)})


def test_an_error_names_what_is_long_by_its_class():
    with pytest.raises(il.errors.StructureError, match=r"Got: \(a WholeTasks, 0\.0\)\."):
        il.estimators.WeightedSum((sines(), 0.0))
