"""What `PersistentES` costs: an outer step of it next to the same written by hand in JAX.

`python benchmarks/persistent_es.py [--rounds 1.0]` writes `results/persistent-es.json`. Both sides
take 8 inner runs of a network of 32 units on the digits, learned by `SmallMLP`, a window of 20 of
their 200 steps further, with 2 pairs each, and take a step of Adam. The loop by hand knows this
one computation, checks nothing, and leaves out no run that diverged. Compiled beforehand, warm,
the two in turn; a second compilation of the loop by hand says how far a ratio can be trusted.

learned_optimization, which has this estimator too, cannot be installed beside a present JAX: see
docs/long-horizons.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from overhead import interleaved, ratio

import innerloop as il
from innerloop.lab.run_folder import environment
from innerloop.storage.files import strict_json

RESULTS = Path(__file__).parent / "results" / "persistent-es.json"
RUNS, PAIRS, WINDOW, HORIZON, SIGMA, ROWS = 8, 2, 20, 200, 0.01, 32
WINDOWS = HORIZON // WINDOW
OUTER_STEPS, ROUNDS = 10, 60
"""Outer steps per call, which hide the cost of the call, and calls of each side."""

MODEL = il.models.mlp([64, 32, 10])
TASKS = il.tasks.optimization.TableTasks(il.tasks.optimization.digits_table(), ROWS)
LEARNED = il.optimizers.SmallMLP()
OUTER = optax.adam(1e-3)


def by_library():
    """`(meta, carry, key) -> (loss, gradient, carry)`, and the first carry."""
    family = il.tasks.optimization.supervised_family(
        "digits", MODEL, il.models.cross_entropy, TASKS
    )
    even = lambda steps: np.full(steps + 1, 1 / (steps + 1))
    plain = family.problem
    problem = il.Problem(plain.init, plain.inner_loss, plain.outer_loss, even)
    estimator = il.estimators.PersistentES(
        *(problem, family.adaptation(LEARNED, WINDOW), TASKS),
        *(WINDOW, HORIZON, RUNS, PAIRS, SIGMA),
    )

    def value_and_grad(meta, carry, key):
        estimate, carry = estimator.step(meta, carry, None, key, jnp.int32(0))
        return estimate.loss, estimate.grads, carry

    return value_and_grad, lambda meta, key: estimator.init(meta, key)


class Run(NamedTuple):
    """One inner run by hand: its task, where it ends and is, and `(PAIRS, 2, ...)` particles."""

    key: Any
    episode: il.Episode
    end: Any
    step: Any
    params: PyTree
    memory: PyTree
    noise: PyTree


def by_hand():
    """The same, from the same keys."""

    def loss_of(params, rows):
        logits = MODEL.apply(params, rows.inputs, None, None)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, rows.targets))

    def begun(meta, key):
        sample_key, task_key, _ = jax.random.split(key, 3)
        episode = jax.tree.map(lambda leaf: leaf[0], TASKS.sample(sample_key, 1))
        init_key = jax.random.fold_in(jax.random.split(task_key, 3)[0], 0)
        params = MODEL.init(jax.random.split(init_key)[0])
        both = (params, LEARNED(meta).init(params))
        stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (PAIRS, 2, *leaf.shape)), both)
        noise = jax.tree.map(lambda leaf: jnp.zeros((PAIRS, *leaf.shape)), meta)
        return Run(key, episode, jnp.int32(HORIZON), jnp.int32(0), *stacked, noise)

    def first(meta, key):
        runs = jax.vmap(begun, (None, 0))(meta, jax.random.split(key, RUNS))
        return runs._replace(end=runs.end - WINDOW * (jnp.arange(RUNS) * WINDOWS // RUNS))

    def particle(meta, params, memory, run):
        optimizer = LEARNED(meta)
        start = jnp.where(run.step == 0, loss_of(params, run.episode.query), 0)

        def inner_step(state, _):
            params, memory = state
            grads = jax.grad(loss_of)(params, run.episode.support)
            updates, memory = optimizer.update(grads, memory, params)
            params = optax.apply_updates(params, updates)
            return (params, memory), loss_of(params, run.episode.query)

        state, losses = jax.lax.scan(inner_step, (params, memory), length=WINDOW)
        return WINDOWS * (start + jnp.sum(losses)) / (HORIZON + 1), state

    def pair(meta, params, memory, noise, key, run):
        leaves, treedef = jax.tree.flatten(meta)
        keys = jax.random.split(key, len(leaves))
        draws = [SIGMA * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        drawn = treedef.unflatten(draws)
        shift = lambda sign: jax.tree.map(lambda leaf, draw: leaf + sign * draw, meta, drawn)
        follow = lambda sign, params, memory: particle(shift(sign), params, memory, run)
        (plus, minus), state = jax.vmap(follow)(jnp.array([1.0, -1.0]), params, memory)
        noise = jax.tree.map(jnp.add, noise, drawn)
        slope = (plus - minus) / (2 * SIGMA**2)
        return (plus + minus) / 2, jax.tree.map(lambda leaf: slope * leaf, noise), state, noise

    def one_run(meta, run, key):
        noise_key, new_key = jax.random.split(key)
        own = (run.params, run.memory, run.noise, jax.random.split(noise_key, PAIRS))
        follow = lambda *own: pair(meta, *own, run)
        losses, slopes, state, noise = jax.vmap(follow)(*own)
        after = run._replace(step=run.step + WINDOW, params=state[0], memory=state[1], noise=noise)
        fresh, ended = begun(meta, new_key), after.step >= run.end
        after = jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, after)
        return jnp.mean(losses), jax.tree.map(lambda leaf: jnp.mean(leaf, 0), slopes), after

    def value_and_grad(meta, runs, key):
        key = jax.random.fold_in(key, 0)  # the number of the outer step, as the library does
        found = jax.vmap(one_run, (None, 0, 0))(meta, runs, jax.random.split(key, RUNS))
        losses, grads, runs = found
        return jnp.mean(losses), jax.tree.map(lambda leaf: jnp.mean(leaf, 0), grads), runs

    return value_and_grad, first


def outer_steps(value_and_grad):
    """`OUTER_STEPS` steps of Adam in one call."""

    def step(state, key):
        meta, moments, carry = state
        loss, grads, carry = value_and_grad(meta, carry, key)
        updates, moments = OUTER.update(grads, moments)
        return (optax.apply_updates(meta, updates), moments, carry), loss

    return lambda state, key: jax.lax.scan(step, state, jax.random.split(key, OUTER_STEPS))


def measure(rounds: int) -> dict:
    """Times, their ratios, and how far the meta-parameters of the two sides come apart."""
    sides = {"library": by_library(), "hand": by_hand(), "hand again": by_hand()}
    meta, key = LEARNED.init(jax.random.key(0), None), jax.random.key(1)
    calls, record = {}, {}
    for name, (value_and_grad, first) in sides.items():
        state = (meta, OUTER.init(meta), jax.jit(first)(meta, jax.random.key(2)))
        begin = time.perf_counter()
        traced = jax.jit(outer_steps(value_and_grad)).lower(state, key)
        traced_at = time.perf_counter()
        program = traced.compile()
        record[name] = {
            "trace_seconds": traced_at - begin,
            "compile_seconds": time.perf_counter() - traced_at,
            "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        }
        calls[name] = lambda program=program, state=state: program(state, key)
    results = {name: jax.device_get(call()) for name, call in calls.items()}
    wall, processor = interleaved(calls, (), rounds)
    for name in calls:
        record[name]["milliseconds"] = 1e3 * float(np.median(wall[name])) / OUTER_STEPS
    losses = [results[name][1] for name in ("library", "hand")]
    record["losses"] = [each.tolist() for each in losses]
    record["largest_difference"] = float(np.max(np.abs(losses[0] - losses[1])))
    for clock, seconds in (("wall", wall), ("processor", processor)):
        record[f"{clock}_ratio"] = ratio(seconds["library"], seconds["hand"])
        record[f"{clock}_ratio_of_hand_to_itself"] = ratio(seconds["hand again"], seconds["hand"])
    return record | {"rounds": len(wall["hand"])}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=float, default=1.0, help="scales the number of calls")
    record = measure(int(ROUNDS * parser.parse_args().rounds))
    print({name: each for name, each in record.items() if name != "losses"})
    RESULTS.write_text(strict_json(record | {"environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
