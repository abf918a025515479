"""The laws that every pair of adaptation and meta-gradient keeps. Each raises AssertionError."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from quadratic import TASKS, quadratic_episodes, quadratic_meta
from variants import ADAPTATIONS, GRADIENTS, GradientCase, Variant

import innerloop as il
from innerloop.devices.sharding import placement

TOLERANCE = 1e-10


def _key():
    return jax.random.key(7)


_COMPILED: dict = {}


def batched(variant: Variant, case: GradientCase, chunk=None):
    """The jitted meta_value_and_grad of a pair, compiled once per kind of input."""
    name = (variant.name, case.name, chunk)
    if name not in _COMPILED:
        _COMPILED[name] = jax.jit(
            il.meta_value_and_grad(variant.problem, variant.adaptation, case.gradient, chunk=chunk),
            compiler_options={"xla_backend_optimization_level": 1},  # most of the time is compiling
        )
    return _COMPILED[name]


def _weighted(episodes, weight=None):
    """Weights are always given, so that one compilation serves; `chunks` leaves them out."""
    weight = jnp.ones(TASKS) if weight is None else jnp.array(weight)
    return il.Episode(episodes.support, episodes.query, weight)


def _episodes():
    return _weighted(quadratic_episodes())


def _task(episodes, i):
    return jax.tree.map(lambda leaf: leaf[i], episodes)


def _assert_close(got, expected, tolerance=TOLERANCE):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        got,
        expected,
    )


def oracle(variant, case):
    """Value and gradient equal the complex-step oracle, task by task and in the mean."""
    episodes, meta = _episodes(), quadratic_meta()
    (loss, _), grads = batched(variant, case)(meta, episodes, _key())
    numpy_meta = {name: np.array(leaf) for name, leaf in meta.items()}
    keys = jax.random.split(_key(), TASKS)
    tasks = [variant.reference(meta, _task(episodes, i), key) for i, key in enumerate(keys)]
    _assert_close(float(loss), float(np.mean([task.loss(numpy_meta) for task in tasks])))
    predicted = [case.predict(task, numpy_meta) for task in tasks]
    expected = {name: np.mean([grads[name] for grads in predicted], axis=0) for name in meta}
    _assert_close(grads, expected)


def one_task_at_a_time(variant, case):
    """The batch is the mean of plain jax.grad over tasks, and aux is per task, never averaged."""
    episodes, meta, key = _episodes(), quadratic_meta(), _key()
    objective = il.meta_objective(variant.problem, variant.adaptation, case.gradient)
    single = jax.jit(jax.value_and_grad(objective, has_aux=True))
    results = [
        single(meta, _task(episodes, i), task_key)
        for i, task_key in enumerate(jax.random.split(key, TASKS))
    ]
    (losses, aux), grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
    (loss, batch_aux), batch_grads = batched(variant, case)(meta, episodes, key)
    _assert_close(loss, jnp.mean(losses))
    _assert_close(batch_grads, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads))
    _assert_close((batch_aux.metrics, batch_aux.info), (aux.metrics, aux.info))


def chunks(variant, case):
    """Any chunk gives the same loss, aux and gradient, whether or not it divides the tasks."""
    episodes, meta, key = _episodes(), quadratic_meta(), _key()
    f = batched(variant, case)
    bare = quadratic_episodes()  # without weights
    _assert_close(batched(variant, case, 1)(meta, bare, key), f(meta, episodes, key))
    uneven = _weighted(bare, [1.0, 0.0, 2.0, 0.5, 1.0])
    _assert_close(batched(variant, case, 2)(meta, uneven, key), f(meta, uneven, key))
    # One chunk of all tasks is the very program that runs without chunks.
    program = lambda chunk: batched(variant, case, chunk).lower(meta, episodes, key).as_text()
    assert program(TASKS) == program(None)


def closed_over_tracers(variant, case):
    """Values traced by an outer transformation may be closed over by the problem."""
    episodes, meta, key = _episodes(), quadratic_meta(), _key()
    problem = variant.problem

    def scaled(factor):
        def outer_loss(params, meta, batch, key):
            loss, metrics = problem.outer_loss(params, meta, batch, key)
            return factor * loss, metrics

        closed = il.Problem(problem.init, problem.inner_loss, outer_loss, problem.step_weights)
        f = il.meta_value_and_grad(closed, variant.adaptation, case.gradient)
        (loss, _), grads = f(meta, episodes, key)
        return loss, grads

    factors = jnp.array([1.0, 3.0])
    losses, grads = jax.jit(jax.vmap(scaled))(factors)
    (loss, _), expected = batched(variant, case)(meta, episodes, key)
    _assert_close(losses, factors * loss)
    if case.scales is None:
        _assert_close(jax.tree.map(lambda leaf: leaf[0], grads), expected)
        return
    factor = 3 if case.scales else 1
    expected = jax.tree.map(lambda leaf: jnp.stack([leaf, factor * leaf]), expected)
    _assert_close(grads, expected)


def weights(variant, case):
    """A weight of zero removes a task; equal weights change nothing."""
    episodes, meta, key = _episodes(), quadratic_meta(), _key()
    f = batched(variant, case)
    weighted = _weighted(episodes, [1.0, 0.0, 2.0, 0.0, 1.0])
    (loss, _), grads = f(meta, weighted, key)
    spoil = lambda targets: targets.at[1].set(jnp.nan)
    spoiled = eqx.tree_at(lambda e: e.query.targets, weighted, replace_fn=spoil)
    (loss_spoiled, _), grads_spoiled = f(meta, spoiled, key)
    _assert_close((loss_spoiled, grads_spoiled), (loss, grads))
    tripled = _weighted(episodes, [3.0] * TASKS)
    _assert_close(f(meta, tripled, key), f(meta, episodes, key))


def _cast(tree, dtype):
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float64 else leaf, tree
    )


def low_precision(variant, case):
    """Gradients have the dtype of meta, the mean loss float32, and both come near float64's."""
    episodes, meta, key = _episodes(), quadratic_meta(), _key()
    (_, _), exact = batched(variant, case)(meta, episodes, key)
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(exact)))
    for dtype, tolerance in ((jnp.float32, 1e-4), (jnp.bfloat16, 0.1)):
        floats = _cast(episodes, dtype)
        (loss, _), grads = batched(variant, case)(quadratic_meta(dtype), floats, key)
        assert loss.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}
        if case.draws:
            continue  # other random numbers, so another estimate
        gap = jax.tree.map(lambda a, b: a.astype(jnp.float64) - b, grads, exact)
        distance = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gap)))
        assert distance < tolerance * norm, f"{dtype}: {distance / norm}"


def isolation(variant, case):
    """Meta is not changed, and one task's data has no influence on another task's aux."""
    episodes, meta, key = _episodes(), quadratic_meta(), _key()
    before = jax.tree.map(np.array, meta)
    (_, aux), _ = batched(variant, case)(meta, episodes, key)
    jax.tree.map(np.testing.assert_array_equal, meta, before)
    change = lambda targets: targets.at[0].set(5.0)
    changed = eqx.tree_at(lambda e: e.support.targets, episodes, replace_fn=change)
    (_, aux_changed), _ = batched(variant, case)(meta, changed, key)
    rest = lambda aux: jax.tree.map(lambda leaf: leaf[1:], (aux.metrics, aux.info))
    jax.tree.map(np.testing.assert_array_equal, rest(aux), rest(aux_changed))


def determinism(variant, case):
    """The same key gives the same bits; another key does not."""
    episodes, meta = _episodes(), quadratic_meta()
    f = batched(variant, case)
    first, second = f(meta, episodes, _key()), f(meta, episodes, _key())
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert f(meta, episodes, jax.random.key(8))[0][0] != first[0][0]


def same_inner_loop_as_adapt(variant, case):
    """`adapt` with the task's key returns the parameters that the objective saw."""
    episodes, meta, key = _episodes(), quadratic_meta(), _key()
    (_, aux), _ = batched(variant, case)(meta, episodes, key)
    learn = jax.jit(lambda *args: il.adapt(variant.problem, variant.adaptation, *args))
    for i, task_key in enumerate(jax.random.split(key, TASKS)):
        params, info = learn(meta, _task(episodes, i).support, task_key)
        _assert_close(params, _task(aux.metrics["params"], i))
        _assert_close(info, _task(aux.info, i))


def over_devices(variant, case, devices=1):
    """Devices that share the tasks come to what one device comes to, and so does `adapt` there."""
    episodes, meta, key = quadratic_episodes(tasks=TASKS * devices), quadratic_meta(), _key()
    place = placement(devices)
    parts = (variant.problem, variant.adaptation)
    of_batch = il.meta_value_and_grad(*parts, case.gradient, spread=place.spread)
    of_task = lambda meta, support, key: il.adapt(*parts, meta, support, key)[0]
    adapted = place.each(jax.vmap(of_task, (None, 0, 0)))

    def both(meta, episodes, key):
        keys = jax.random.split(key, TASKS * devices)
        return of_batch(meta, episodes, key), adapted(meta, episodes.support, keys)

    weighted = il.Episode(episodes.support, episodes.query, jnp.ones(TASKS * devices))
    result, params = jax.jit(both)(*map(place.place, (meta, weighted, key)))
    (loss, aux), grads = batched(variant, case)(meta, weighted, key)
    _assert_close(result, ((loss, aux), grads))
    _assert_close(params, aux.metrics["params"])


def pairs_on_devices():
    """Each adaptation with the first meta-gradient it has; each meta-gradient after one of them."""
    for variant in ADAPTATIONS:
        exist = [case for case in GRADIENTS if exists(variant, case)]
        yield from ((variant, case) for case in exist[: None if variant.name == MANY else 1])


def exists(variant, case):
    """Whether the meta-gradient exists after this adaptation."""
    return case.gradient.fidelity(variant.adaptation, variant.problem).kind != "undefined"


MANY = "sgd-12-scanned"
"""The adaptation that is followed by every meta-gradient."""

LAWS = [
    one_task_at_a_time,
    chunks,
    closed_over_tracers,
    weights,
    low_precision,
    isolation,
    determinism,
    same_inner_loop_as_adapt,
]
