"""What a reader of an error has: packages, and the parts of a problem under their names."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import optimistix

import innerloop as il


def loss(params, meta, batch, key):
    """Linear regression."""
    return jnp.mean((batch.inputs @ params["w"] - batch.targets) ** 2)


def init(meta, support, key):
    """The part of meta that is adapted."""
    return {"w": meta["w"]}


def one_task(key):
    """A task of four rows."""
    inputs = jax.random.normal(key, (4, 2))
    rows = il.Examples(inputs, inputs @ jnp.array([1.0, -2.0]))
    return il.Episode(rows, rows)


class ReaderTasks:
    """A task distribution of the reader's, and the namespace of the library's."""

    def __init__(self):
        vars(self).update(vars(il.tasks))

    def sample(self, key, n):
        """Tasks of four rows."""
        return il.tasks.sample_each(one_task, key, n)


def trace(function, *arguments):
    """Traces a function of (meta, episodes, key), or of other arguments."""
    named = reader()
    return eqx.filter_eval_shape(
        function, *(arguments or (named["meta"], named["episodes"], named["key"]))
    )


def train(estimator, meta=None, **options):
    """`fit` for one step."""
    named = {"optimizer": optax.sgd(0.1), "steps": 1, "key": jax.random.key(0)} | options
    return il.fit(estimator, reader()["meta"] if meta is None else meta, **named)


@functools.cache
def reader():
    """The names."""
    key = jax.random.key(0)
    parts = il.Problem(init, loss, loss), il.GradientDescent(optax.sgd(0.1), 2)
    distribution = il.tasks.IndependentTasks(one_task)
    estimator = il.WholeTasks(*parts, il.Unroll(), distribution, batch=2)
    inputs = jnp.ones((3, 2))
    return {
        **vars(il),
        **vars(il.adapters),
        **vars(il.training),
        **vars(il.estimators),
        **vars(il.models),
        **vars(il.heads),
        **vars(il.gradients),
        "il": il,
        "jax": jax,
        "jnp": jnp,
        "np": np,
        "numpy": np,
        "optax": optax,
        "optimistix": optimistix,
        "lineax": lineax,
        "init": init,
        "loss": loss,
        "inner_loss": loss,
        "outer_loss": loss,
        "problem": parts[0],
        "adaptation": parts[1],
        "learner": il.Learner(*parts),
        "recipe": il.recipes.maml(
            il.models.mlp([1, 4, 1]), il.models.mean_squared_error, rate=0.1, steps=1
        ),
        "estimator": estimator,
        "another": estimator,
        "distribution": distribution,
        "tasks": ReaderTasks(),
        "sample_one": one_task,
        "key": key,
        "meta": {"w": jnp.ones(2), "rate": jnp.array(0.1), "log_strength": jnp.array(0.0)},
        "episode": one_task(key),
        "episodes": distribution.sample(key, 2),
        "inputs": inputs,
        "targets": jnp.ones(3),
        "folder": "run",
        "trace": trace,
        "train": train,
    }
