"""Compiled programs are freed with the functions that they were made for."""

import functools
import gc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.programs import compiled
from innerloop.programs.compiled import compiled_while_used, if_concrete

KEY, META = jax.random.key(0), {"w": jnp.ones(3)}
EPISODES = il.Episode(jnp.zeros((4, 3)), jnp.zeros((4, 3)))


def programs():
    gc.collect()
    return len(jax.devices()[0].client.live_executables())


@pytest.fixture
def few_kept(monkeypatch):
    """Only the last one."""
    few = functools.lru_cache(maxsize=1)(compiled._program.__wrapped__)
    monkeypatch.setattr(compiled, "_program", few)


def parts(steps=2):
    """Their loss is a new function each time."""
    loss = lambda params, meta, batch, key: jnp.mean((params["w"] - batch) ** 2)
    init = lambda meta, support, key: meta
    return il.Problem(init, loss, loss), il.GradientDescent(optax.sgd(0.1), steps)


def tasks():
    return il.tasks.IndependentTasks(lambda key: il.Episode(jnp.zeros(3), jnp.zeros(3)))


def fit():
    estimator = il.WholeTasks(*parts(1), il.Unroll(), tasks(), batch=2)
    options = {"optimizer": optax.sgd(0.1), "steps": 1, "key": KEY}
    il.fit(estimator, META, **options, validation=il.Validation(EPISODES, 1))


def eager(gradient, chunk=None):
    return lambda: il.meta_value_and_grad(*parts(), gradient, chunk=chunk)(META, EPISODES, KEY)


CALLS = {
    "fit": fit,
    "evaluate": lambda: il.evaluate(il.Learner(*parts()), META, EPISODES, KEY),
    "adapt": lambda: il.adapt(*parts(), META, jnp.zeros(3), KEY),
    "evaluation_episodes": lambda: il.tasks.evaluation_episodes(tasks(), 2, 1),
    "plan": lambda: il.plan(*parts(1), META, EPISODES, "1GiB", gradients=[il.Unroll()]),
    "check": lambda: il.check(*parts(1), META, EPISODES, KEY, run=False),
    "unroll": eager(il.Unroll(), chunk=1),
    "binomial": eager(il.Unroll(loop=il.gradients.Binomial(2))),
    "forward mode": eager(il.ForwardMode(il.gradients.RandomDirections(2))),
    "evolution": eager(il.EvolutionStrategies(4, 0.1, chunk=1)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_programs_of_new_functions_do_not_pile_up(call, few_kept):
    call()
    before = programs()
    call()
    assert programs() <= before


def test_a_call_with_the_same_parts_finds_its_program():
    traced = []

    def loss(params, meta, batch, key):
        traced.append(batch)
        return jnp.mean((params["w"] - batch) ** 2)

    problem = il.Problem(lambda meta, support, key: meta, loss, loss)
    learn = il.GradientDescent(optax.sgd(0.1), 1)
    f = il.meta_value_and_grad(problem, learn)
    calls = [
        lambda meta: il.evaluate(il.Learner(problem, learn), meta, EPISODES, KEY).mean["loss"],
        lambda meta: f(meta, EPISODES, KEY)[1],
        lambda meta: il.adapt(problem, learn, meta, EPISODES.support[0], KEY)[0],
    ]
    for call in calls:
        before = call(META)
        traced.clear()
        after = call(jax.tree.map(lambda leaf: 2 * leaf, META))
        assert not traced
        jax.tree.map(lambda a, b: np.testing.assert_array_less(a, b), before, after)


def test_the_last_program_stays(few_kept):
    traced = []

    def doubled(x, name):
        traced.append(name)
        return 2 * x

    call = compiled.compiled(doubled)
    for name in "aabba":
        assert call(jnp.float32(3), name) == 6
    assert traced == ["a", "b", "a"]


def test_a_runtime_error_is_equinoxs():
    """Its message says what failed, and JAX's own is that of a callback."""
    fails = lambda x: eqx.error_if(x, x > 2, "too large")
    for call in (compiled.compiled(fails), if_concrete(compiled_while_used, fails)):
        with pytest.raises(eqx.EquinoxRuntimeError, match="too large"):
            call(jnp.float32(3))


def test_a_number_among_the_meta_parameters_is_no_part_of_the_program():
    """A loop over numbers compiled a program for each of them."""
    traced = []

    def loss(params, meta, batch, key):
        traced.append(meta)
        return jnp.mean((params * meta - batch) ** 2)

    problem = il.Problem(lambda meta, support, key: jnp.ones(3), loss, loss)
    learn = il.GradientDescent(optax.sgd(0.1), 1)
    f, learner = il.meta_value_and_grad(problem, learn), il.Learner(problem, learn)
    for call in (f, functools.partial(il.evaluate, learner)):
        call(0.1, EPISODES, KEY)
        before = len(traced)
        call(0.2, EPISODES, KEY)
        assert len(traced) == before


def test_what_cannot_be_compiled_is_learned_as_it_is_written():
    """And an error is that of the run in which the values are known."""
    fitted = lambda meta, support, key: {"w": meta["w"] + np.asarray(support).mean(axis=0)}
    problem = il.Problem(None, None, lambda params, meta, batch, key: jnp.sum(params["w"]))
    params, _ = il.adapt(problem, il.Procedure(fitted), META, jnp.ones((2, 3)), KEY)
    np.testing.assert_array_equal(params["w"], 2 * jnp.ones(3))

    def refuses(meta, support, key):
        raise ValueError(f"the mean is {float(jnp.mean(support))}")

    with pytest.raises(il.errors.StructureError, match=r"the mean is 1\.0"):
        il.adapt(problem, il.Procedure(refuses), META, jnp.ones((2, 3)), KEY)


def test_values_are_checked_where_a_compiled_result_is_not_finite():
    features = lambda meta, batch, key: batch.inputs * meta["w"][None]
    wrong = il.Examples(jnp.ones((2, 3)), jnp.array([0, 5]))
    loss = lambda params, meta, batch, key: jnp.sum(params)
    adapt = lambda head, rows: il.adapt(il.Problem(None, None, loss), head, META, rows, KEY)
    for head in (il.heads.Prototypes(features, ways=2), il.heads.RidgeHead(features, 1.0, ways=2)):
        with pytest.raises(il.errors.StructureError, match="a label is not a class"):
            adapt(head, wrong)
    sound = il.Examples(jnp.ones((2, 3)), jnp.array([0, 1]))
    negative = il.heads.RidgeHead(features, lambda meta: -meta["w"][0], ways=2)
    with pytest.raises(il.errors.StructureError, match="must be a finite number above 0"):
        adapt(negative, sound)


def test_a_diverged_task_is_no_error():
    problem, learn = parts()
    params, _ = il.adapt(problem, learn, META, jnp.full(3, jnp.nan), KEY)
    assert jnp.isnan(params["w"]).all()


def test_adapt_gives_the_bits_of_its_program():
    problem, learn = parts(5)
    program = jax.jit(lambda meta, support, key: il.adapt(problem, learn, meta, support, key))
    support = jax.random.normal(KEY, (3,))
    for a, b in zip(
        *map(
            jax.tree.leaves,
            (il.adapt(problem, learn, META, support, KEY), program(META, support, KEY)),
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
