"""Deliberately wrong meta-gradients, and the law that each must break: they test the tests."""

import jax
import jax.numpy as jnp
import laws

import innerloop as il
from innerloop.adaptation import run
from innerloop.gradients.base import objective_after_run
from innerloop.gradients.inner import exact_inner_gradient
from innerloop.normal_form import loss_function
from innerloop.problem import task_keys


class _Mutant(il.extend.MetaGradient):
    def fidelity(self, adaptation, problem=None):
        return il.extend.Fidelity("exact", "A lie.")


class DetachedStart(_Mutant):
    """Adapts from a copy of meta that no gradient flows back to."""

    def objective(self, problem, adaptation):
        outer_loss = loss_function("outer_loss", problem, "the mutant")

        def objective(meta, episode, key):
            keys = task_keys(key)
            stopped = jax.lax.stop_gradient(meta)
            state, info, _ = run(
                problem,
                adaptation,
                stopped,
                episode.support,
                keys.adapt,
                il.gradients.Exact(),
                il.gradients.StoreAll(),
            )
            params = adaptation.params(state)
            loss, metrics = outer_loss(params, meta, episode.query, keys.outer)
            return loss, il.extend.Aux(metrics, info, {})

        return objective


class KeyReused(_Mutant):
    """Gives every task, and every part of a task, one and the same key."""

    def objective(self, problem, adaptation):
        objective = il.Unroll().objective(problem, adaptation)

        def reused(meta, episode, key):
            fixed = jax.random.wrap_key_data(jnp.zeros_like(jax.random.key_data(key)))
            return objective(meta, episode, fixed)

        return reused


class AuxAveraged(_Mutant):
    """Averages metrics over the tasks that run together."""

    def objective(self, problem, adaptation):
        objective = il.Unroll().objective(problem, adaptation)

        def averaged(meta, episode, key):
            loss, aux = objective(meta, episode, key)
            return loss, aux._replace(metrics=_mean_over_tasks(jax.lax.stop_gradient(aux.metrics)))

        return averaged


@jax.custom_batching.custom_vmap
def _mean_over_tasks(tree):
    return tree


@_mean_over_tasks.def_vmap
def _(axis_size, in_batched, tree):
    mean = lambda leaf: jnp.broadcast_to(jnp.mean(leaf, axis=0, keepdims=True), leaf.shape)
    return jax.tree.map(lambda leaf: mean(leaf).astype(leaf.dtype), tree), in_batched[0]


class _Flipped(il.gradients.Exact):
    def at(self, t):
        def operator(loss):
            gradient = exact_inner_gradient(loss)

            def call(*args):
                result = gradient(*args)
                stopped = jax.lax.stop_gradient(result)
                return jax.tree.map(_flip, stopped, result)

            return call

        return operator


class HessianSignFlipped(_Mutant):
    """I + alpha H in place of I - alpha H: the second derivative with its sign turned."""

    def objective(self, problem, adaptation):
        return objective_after_run(problem, adaptation, _Flipped(), il.gradients.StoreAll())


def _flip(stopped, leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return stopped - (leaf - stopped)  # the value of leaf, minus its derivative


class LastStepOnly(_Mutant):
    """Differentiates the last inner step only, and calls it exact."""

    def objective(self, problem, adaptation):
        return objective_after_run(problem, adaptation, il.gradients.Exact(), _LastOfAll())


class _LastOfAll(il.gradients.StoreAll):
    def __call__(self, step, state, steps):
        outputs = []
        for t in range(steps):
            if t == steps - 1:
                state = jax.tree.map(_identity_bridge, state)
            state, output = step(state, jnp.int32(t))
            outputs.append(output)
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def _identity_bridge(leaf):
    return jax.lax.stop_gradient(leaf)


MUTANTS = [
    (DetachedStart(), laws.oracle),
    (KeyReused(), laws.determinism),
    (KeyReused(), laws.oracle),
    (AuxAveraged(), laws.isolation),
    (AuxAveraged(), laws.one_task_at_a_time),
    (HessianSignFlipped(), laws.oracle),
    (LastStepOnly(), laws.oracle),
]
