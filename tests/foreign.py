"""One network in several libraries: dense, batch norm, tanh, dropout, dense; and its formula.

`ADAPTERS` is the table of adapters: for each, a function that builds the model of the network, one
that puts given weights into its parameters, and how its library keeps running averages.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import innerloop as il
from innerloop.checks import optional_package
from innerloop.problem import Stateful, overlay

INPUTS, WIDTH, OUTPUTS = 3, 6, 2
EPSILON, MOMENTUM = 1e-5, 0.9
POLICIES = ("transductive", "carried", "frozen")


def weights(dtype=np.float32):
    """Weights of the network: `(inputs, outputs)` for dense layers."""
    rng = np.random.default_rng(0)
    shapes = {
        "weights": (INPUTS, WIDTH),
        "bias": (WIDTH,),
        "scale": (WIDTH,),
        "shift": (WIDTH,),
        "head": (WIDTH, OUTPUTS),
        "offset": (OUTPUTS,),
    }
    drawn = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    return drawn | {"scale": 1 + 0.1 * drawn["scale"]}


class EquinoxNetwork(eqx.Module):
    body: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear
    order: jax.Array

    def __init__(self, key, dropout=0.0):
        body, head = jax.random.split(key)
        self.body = eqx.nn.Linear(INPUTS, WIDTH, key=body)
        self.norm = eqx.nn.BatchNorm(WIDTH, "rows", momentum=MOMENTUM, mode="batch")
        self.dropout = eqx.nn.Dropout(dropout)
        self.head = eqx.nn.Linear(WIDTH, OUTPUTS, key=head)
        self.order = jnp.arange(WIDTH)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.body(x), state)
        return self.head(self.dropout(jnp.tanh(x), key=key)[self.order]), state


def equinox(normalisation, dropout=0.0):
    made = lambda key: EquinoxNetwork(key, dropout)
    return il.adapters.from_equinox(made, normalisation=normalisation)


def into_equinox(params, w):
    parts = lambda m: (m.body.weight, m.body.bias, m.norm.weight, m.norm.bias, *head(m))
    head = lambda m: (m.head.weight, m.head.bias)
    new = (w["weights"].T, w["bias"], w["scale"], w["shift"], w["head"].T, w["offset"])
    return eqx.tree_at(parts, params, new)


def nnx_network():
    """The class of the network."""
    nnx = optional_package("flax.nnx", "a test", extra="ecosystem")

    class Network(nnx.Module):
        def __init__(self, rngs, dropout=0.0):
            dtype = jnp.zeros(()).dtype
            self.body = nnx.Linear(INPUTS, WIDTH, param_dtype=dtype, rngs=rngs)
            self.norm = nnx.BatchNorm(WIDTH, momentum=MOMENTUM, param_dtype=dtype, rngs=rngs)
            if dtype == jnp.float64:  # its own are float32, and its update warns of float64
                self.norm.mean, self.norm.var = map(nnx.BatchStat, start().values())
            self.dropout = nnx.Dropout(dropout, rngs=rngs)
            self.head = nnx.Linear(WIDTH, OUTPUTS, param_dtype=dtype, rngs=rngs)
            self.order = jnp.arange(WIDTH)

        def __call__(self, x):
            return self.head(self.dropout(jnp.tanh(self.norm(self.body(x))))[:, self.order])

    return Network


def nnx(normalisation, dropout=0.0):
    made = lambda rngs: nnx_network()(rngs, dropout)
    return il.adapters.from_nnx(made, normalisation=normalisation)


def into_nnx(params, w):
    return params | {
        "body": {"kernel": w["weights"], "bias": w["bias"]},
        "norm": params["norm"] | {"scale": w["scale"], "bias": w["shift"]},
        "head": {"kernel": w["head"], "bias": w["offset"]},
    }


def linen_network():
    """The class of the network; its constant is a variable of a collection of its own."""
    linen = optional_package("flax.linen", "a test", extra="ecosystem")

    class Network(linen.Module):
        dropout: float = 0.0

        @linen.compact
        def __call__(self, x, train):
            dtype = jnp.zeros(()).dtype
            order = self.variable("constants", "order", lambda: jnp.arange(WIDTH)).value
            x = linen.Dense(WIDTH, param_dtype=dtype, name="body")(x)
            x = linen.BatchNorm(
                use_running_average=not train, momentum=MOMENTUM, param_dtype=dtype, name="norm"
            )(x)
            x = linen.Dropout(self.dropout, deterministic=not train)(jnp.tanh(x))
            return linen.Dense(OUTPUTS, param_dtype=dtype, name="head")(x[:, order])

    return Network


def linen(normalisation, dropout=0.0):
    return il.adapters.from_linen(
        linen_network()(dropout),
        jnp.zeros((1, INPUTS)),
        train="train",
        normalisation=normalisation,
    )


def into_linen(params, w):
    own = {
        "body": {"kernel": w["weights"], "bias": w["bias"]},
        "norm": {"scale": w["scale"], "bias": w["shift"]},
        "head": {"kernel": w["head"], "bias": w["offset"]},
    }
    return params | {"params": own}


def functions(normalisation, dropout=0.0):
    """The formula itself, as functions."""

    def init(key):
        return weights(jnp.zeros(()).dtype) | {"order": jnp.arange(WIDTH)}

    def learn(params, inputs, state, key):
        hidden, mean, var = normalised(params, inputs, state, normalisation != "frozen")
        after = running(state, mean, var)
        hidden = jnp.tanh(hidden)
        if dropout:
            kept = jax.random.bernoulli(key, 1 - dropout, hidden.shape)
            hidden = jnp.where(kept, hidden / (1 - dropout), 0)
        return read_out(params, hidden[:, params["order"]]), after

    def apply(params, inputs, state):
        hidden, _, _ = normalised(params, inputs, state, normalisation == "transductive")
        return read_out(params, jnp.tanh(hidden)[:, params["order"]])

    if normalisation == "carried":
        return il.adapters.from_functions(
            init, apply, learn, state=lambda key: start(), normalisation=normalisation
        )
    return il.adapters.from_functions(
        init,
        lambda params, inputs: apply(params, inputs, start()),
        lambda params, inputs, key: learn(params, inputs, start(), key)[0],
        normalisation="transductive" if normalisation == "transductive" else "none",
    )


def start():
    """Running averages before the first batch."""
    return {"mean": jnp.zeros(WIDTH), "var": jnp.ones(WIDTH)}


def running(state, mean, var):
    """Running averages after a batch."""
    average = lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new
    return {"mean": average(state["mean"], mean), "var": average(state["var"], var)}


def normalised(w, inputs, state, of_rows):
    """The hidden layer after normalisation, and the statistics of the rows."""
    x = inputs @ w["weights"] + w["bias"][None]
    mean, var = jnp.mean(x, 0), jnp.var(x, 0)
    used_mean, used_var = (mean, var) if of_rows else (state["mean"], state["var"])
    unit = (x - used_mean[None]) / jnp.sqrt(used_var + EPSILON)[None]
    return unit * w["scale"][None] + w["shift"][None], mean, var


def read_out(w, hidden):
    """The outputs of the head."""
    return hidden @ w["head"] + w["offset"][None]


class Foreign(NamedTuple):
    """An adapter.

    Attributes:
        model: `(normalisation, dropout) -> Model`.
        into: `(params, weights) -> params`.
        averages: `(running averages, updates) -> those that predictions use`.
    """

    model: Callable
    into: Callable
    averages: Callable = lambda state, updates: state


def of_equinox(state, updates):
    """Equinox divides by what zeros would lack, but its variance starts from ones."""
    scale = 1 - MOMENTUM**updates if updates else 1
    return jax.tree.map(lambda leaf: leaf / scale, state)


ADAPTERS = {
    "equinox": Foreign(equinox, into_equinox, of_equinox),
    "nnx": Foreign(nnx, into_nnx),
    "linen": Foreign(linen, into_linen),
    "functions": Foreign(functions, lambda params, w: params | w),
}


def whole(model, params):
    """What `apply` and `learn` are given."""
    tree = overlay(params, model.frozen)
    return tree if model.state is None else Stateful(tree, model.state)
