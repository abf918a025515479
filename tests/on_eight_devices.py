"""Run by test_sharding.py in a process with eight host devices: prints what it found as JSON.

What is trained on several devices is held against one device, in float64, from the same key.
"""

import json
import sys
import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
from halving import ESTIMATORS, assert_same_step
from jax.sharding import NamedSharding, PartitionSpec

import innerloop as il
from innerloop.devices.sharding import placement
from innerloop.storage.packing import pack, unpack

KEY, STEPS = jax.random.key(0), 12
TASKS = il.tasks.SinusoidTasks(shots=3, queries=3)
RECIPE = il.recipes.maml(
    il.models.mlp([1, 16, 1]), il.models.mean_squared_error, rate=0.01, steps=2
)
MESH = placement("all").mesh


def spread_where_possible(leaf, devices):
    """A rule of one's own: an axis that the devices divide, whatever the leaf's size."""
    return next((i for i, size in enumerate(leaf.shape) if size % devices == 0), None)


IN_PARTS = il.training.Sharding(MESH, spread_where_possible)


def train(devices, recipe=RECIPE, tasks=TASKS, batch=8, chunk=None, estimator=None, **changed):
    reports = []
    options = {"optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))}
    options |= {"steps": STEPS, "key": KEY, "per_call": 5, "averaging": 0.9}
    options |= {"report": reports.append}
    estimator = estimator or recipe.estimator(tasks, batch, chunk)
    return il.fit(estimator, recipe.init_meta, devices=devices, **(options | changed)), reports


def distance(several, one):
    """How far losses, gradient norms and parameters are from those of one device, relatively."""
    (fit, reports), (expected_fit, expected) = several, one
    pairs = [
        *zip(
            *(jax.tree.leaves((each.meta, each.last)) for each in (fit, expected_fit)), strict=True
        ),
        *(
            (report.metrics[name], other.metrics[name])
            for report, other in zip(reports, expected, strict=True)
            for name in other.metrics
        ),
    ]
    apart = [np.abs(np.asarray(a) - np.asarray(b)) / (1 + np.abs(np.asarray(b))) for a, b in pairs]
    return max(float(np.max(each)) for each in apart)


def validated():
    episodes = il.tasks.evaluation_episodes(TASKS, 5, 1)
    return {"validation": il.Validation(episodes, every=6, steps=3)}


RUNS = (RECIPE.problem, RECIPE.adaptation, TASKS, 1, 2, 8)
WINDOWS = il.estimators.TruncatedUnroll(*RUNS)
PERSISTENT = il.estimators.PersistentES(*RUNS, pairs=2, sigma=0.1)


def beside_each_other():
    """Whole tasks, whose number the devices do not divide, beside windows."""
    whole = RECIPE.estimator(il.tasks.SinusoidTasks(shots=5, queries=5), 7)
    return il.estimators.WeightedSum(whole=(whole, 2.0), windows=(WINDOWS, 1.0))


def one_after_the_other():
    return il.estimators.Phases(WINDOWS, PERSISTENT, until=6)


def with_weights():
    def sample(key):
        episode = jax.tree.map(lambda leaf: leaf[0], TASKS.sample(key, 1))
        return il.Episode(episode.support, episode.query, weight=jax.random.uniform(key))

    return {"tasks": il.tasks.IndependentTasks(sample), "batch": 6}


def with_faults():
    """The loss of a task whose first input is large is NaN."""

    def loss(params, meta, batch, key):
        value, aux = RECIPE.problem.inner_loss(params, meta, batch, key)
        return value * jnp.where(batch.inputs[0, 0] > 4.5, jnp.nan, 1.0), aux

    problem = il.Problem(RECIPE.problem.init, loss, loss)
    return {"recipe": RECIPE._replace(problem=problem), "non_finite": il.training.Clip()}


def by(gradient):
    return {"recipe": RECIPE._replace(gradient=gradient)}


CASES = (
    # what is trained, and on which devices
    (
        validated(),
        {
            "all devices": "all",
            "tasks that three devices do not share evenly": 3,
            "a mesh of two axes": jax.make_mesh((4, 2), ("a", "b")),
            "meta in parts": IN_PARTS,
        },
    ),
    ({"batch": 1}, {"one task on eight devices": "all"}),
    ({"chunk": 1}, {"chunks": 2}),
    ({"memory": "1GiB"}, {"a budget": 2}),
    ({"estimator": beside_each_other()}, {"whole tasks beside windows": 4}),
    ({"estimator": one_after_the_other()}, {"windows, then evolution": 4}),
    (with_weights(), {"weights": 4}),
    (by(il.Unroll(il.MixedMode(), il.Segments(1))), {"checkpointed, mixed mode": 2}),
    (by(il.EvolutionStrategies(2, 0.1)), {"evolution": 2}),
    (by(il.Unroll(il.MixedMode(), il.gradients.Last(1))), {"truncated, mixed mode": 2}),
    (
        by(il.Unroll(il.gradients.HoldConstant(), il.Segments(1))),
        {"first order, checkpointed": "all"},
    ),
)
QUICK = ("all devices",)
"""The placements of a run without `--all`."""


def faults():
    """The same tasks are named, and the run goes on to the same parameters."""
    (several, reports), (one, expected) = (train(n, **with_faults()) for n in (4, None))
    named = [[p.fault.tasks for p in each if p.fault] for each in (reports, expected)]
    return {
        "named alike": named[0] == named[1],
        "count": len(named[0]),
        "distance": max(
            float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
            for a, b in zip(jax.tree.leaves(several.meta), jax.tree.leaves(one.meta), strict=True)
        ),
    }


def resumed(**options):
    """Begun on two devices, gone on with on eight in parts, ended on one."""
    whole, _ = train(None, **options)
    with tempfile.TemporaryDirectory() as folder:
        saved = il.training.Checkpoints(folder, every=4)
        train(2, steps=4, checkpoints=saved, **options)
        train(IN_PARTS, steps=8, checkpoints=saved, resume=True, **options)
        last, _ = train(None, checkpoints=saved, resume=True, **options)
    leaves = zip(jax.tree.leaves(last.last), jax.tree.leaves(whole.last), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in leaves)


def held_in_parts():
    """The spec of each leaf of the state, while it is trained."""
    place = placement(IN_PARTS)
    optimizer = optax.adam(1e-2)
    from innerloop.training.outer_loop import init_state

    meta = RECIPE.init_meta(KEY)
    state = place.place_state(init_state(meta, optimizer))
    spread = lambda tree: sum(
        leaf.sharding.spec != PartitionSpec() for leaf in jax.tree.leaves(tree)
    )
    moments = state.optimizer[0]
    return [spread(tree) for tree in (state.meta, state.average, moments.mu, moments.nu)]


def packed_of_a_state_in_parts():
    """Of leaves that are small, all but whole ones: what is packed, and what comes back."""
    mesh = jax.make_mesh((8,), ("tasks",))
    place = lambda leaf, *spec: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))
    leaves = {"parts": place(jnp.arange(16.0), "tasks"), "whole": place(jnp.arange(3.0))}
    arrays, packed = pack(leaves)
    back = unpack(arrays, leaves, packed)
    same = all(
        np.array_equal(back[name], leaf) and back[name].sharding == leaf.sharding
        for name, leaf in leaves.items()
    )
    return [packed, sorted(arrays), same]


def drawn_on_each_device():
    """The share of a batch of eight that one device computes while it is drawn."""
    place = placement("all")
    draw = lambda place: jax.jit(
        lambda key: RECIPE.estimator(TASKS, 8).drawn(None, key, 0, place)[0]
    )
    operations = lambda place, key: (
        draw(place).lower(key).compile().cost_analysis()["transcendentals"]
    )
    return operations(place, place.place(KEY)) / operations(placement(None), KEY)


def evaluated():
    episodes = validated()["validation"].episodes
    both = [
        il.evaluate(RECIPE.learner, RECIPE.init_meta(KEY), episodes, KEY, devices=n)
        for n in (None, 3)
    ]
    return float(np.abs(both[0].mean["loss"] - both[1].mean["loss"]).max())


def broken_laws():
    """The adaptations, meta-gradients and estimators that come to something else on devices."""
    broken, held = {}, 0
    for name, law in (*laws_of_pairs(), *laws_of_estimators()):
        try:
            law()
            held += 1
        except Exception as error:
            broken[name] = f"{type(error).__name__}: {error}"
    return {"broken": broken, "held": held}


def laws_of_pairs():
    for variant, case in laws.pairs_on_devices():
        yield f"{variant.name}-{case.name}", partial(laws.over_devices, variant, case, devices=4)


def laws_of_estimators():
    for name, estimator in ESTIMATORS.items():
        yield name, partial(assert_same_step, estimator, devices=3)


def main():
    jax.config.update("jax_enable_x64", True)
    if "--laws" in sys.argv:
        print(json.dumps(broken_laws()))
        return
    is_quick = "--all" not in sys.argv
    distances = {}
    for options, placements in CASES:
        chosen = {n: d for n, d in placements.items() if n in QUICK or not is_quick}
        alone = train(None, **options) if chosen else None
        for name, devices in chosen.items():
            distances[name] = distance(train(devices, **options), alone)
    report = {
        "leaves in parts": held_in_parts(),
        "packed": packed_of_a_state_in_parts(),
        "share of the draw": drawn_on_each_device(),
    }
    if not is_quick:
        distances |= {"evaluate": evaluated(), "resumed": resumed()}
        distances["resumed in phases"] = resumed(estimator=one_after_the_other())
        report["faults"] = faults()
    print(json.dumps(report | {"distances": distances}))


if __name__ == "__main__":
    main()
