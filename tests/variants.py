"""The table: every adaptation and every meta-gradient. A new variant joins the laws by one line."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
from heads import (
    CLASSES,
    OnClasses,
    class_means,
    features,
    head_problem,
    head_reference,
    logistic_slope,
    means_out,
    narrow_features,
    newton,
    normal_equations,
    squared_hinge_slope,
    strength,
    weights_out,
)
from optimizer_oracle import adam_controller, alone, lstm, small_mlp
from oracle import Task, adam, momentum, sgd
from predictions import (
    bounded,
    clipped,
    dropped,
    evolution,
    exact,
    implicit,
    neumann,
    projected,
    random_directions,
    reptile,
)
from quadratic import (
    descent_reference,
    minimum_reference,
    procedure,
    procedure_reference,
    quadratic_meta,
    quadratic_problem,
)

import innerloop as il
from innerloop import gradients as g


class Variant(NamedTuple):
    """An adaptation with a problem it solves, and its oracle.

    - `reference`: (meta, episode, key) -> `Task`, in NumPy
    - `float64_only`: it does not run in lower precision
    """

    name: str
    problem: il.Problem
    adaptation: il.extend.Adaptation
    reference: Callable[..., Task]
    float64_only: bool = False


def _rate(meta):
    return jnp.exp(meta["rate"])


def _weights(steps):
    return np.linspace(0.1, 1.0, steps + 1)


def _descent(name, optimizer, update, steps, weights=None):
    problem = quadratic_problem(weights)
    adaptation = il.GradientDescent(optimizer, steps)
    return Variant(name, problem, adaptation, descent_reference(update, steps, weights))


def _adam(meta):
    return optax.adam(_rate(meta), eps_root=1e-8)


def _parameter_rates(meta):
    learned = il.optimizers.ParameterRates(partial(optax.scale_by_adam, eps_root=1e-8))
    return learned({"log_rates": meta["rates"]})


def _drawn(learned):
    """A learned optimizer's weights at random, and how they change with meta's rate."""
    rng = np.random.default_rng(3)
    like = jax.eval_shape(learned.init, jax.random.key(0), jnp.zeros(3))
    draw = lambda leaf: rng.normal(size=leaf.shape) / 2
    return jax.tree.map(draw, like), jax.tree.map(draw, like)


def _network(learned):
    """Its optimizer as a function of the quadratic problem's meta, and its weights in NumPy."""
    at, slope = _drawn(learned)
    weights = lambda meta: jax.tree.map(lambda a, b: a + b * meta["rate"], at, slope)

    def optimizer(meta):
        cast = lambda leaf: jnp.asarray(leaf, meta["rate"].dtype)
        start, tangent = jax.tree.map(cast, (at, slope))
        return learned(jax.tree.map(lambda a, b: a + b * meta["rate"], start, tangent))

    return optimizer, weights


_MLP, _MLP_WEIGHTS = _network(il.optimizers.SmallMLP(3, (0.5, 0.9), (0.9,), 0.1, 0.5))
_LSTM, _LSTM_WEIGHTS = _network(il.optimizers.CoordinateLSTM(3, 2, 0.3))
_CONTROLLER, _CONTROLLER_WEIGHTS = _network(il.optimizers.AdamController(4, 3, 0.1))
_SGD = sgd(lambda meta: np.exp(meta["rate"]))

ADAPTATIONS = [
    _descent("sgd-0", lambda meta: optax.sgd(_rate(meta)), _SGD, 0),
    _descent("sgd-1", lambda meta: optax.sgd(_rate(meta)), _SGD, 1),
    _descent("sgd-12-scanned", lambda meta: optax.sgd(_rate(meta)), _SGD, 12),
    _descent("sgd-fixed-rate", optax.sgd(0.1), sgd(lambda meta: 0.1), 3),
    _descent("parameter-rates", _parameter_rates, adam("rates"), 3),
    _descent("momentum", lambda meta: optax.sgd(_rate(meta), 0.9), momentum(0.9), 5),
    _descent("adam", _adam, adam(), 4),
    _descent("small-mlp", _MLP, small_mlp(_MLP_WEIGHTS, (0.5, 0.9), (0.9,), 0.1, 0.5), 2),
    _descent(
        "adam-controller",
        _CONTROLLER,
        alone(adam_controller(_CONTROLLER_WEIGHTS, 4, 0.1)),
        3,
    ),
    _descent("lstm", _LSTM, lstm(_LSTM_WEIGHTS, 3, 0.3), 2),
    _descent("multi-step-loss", lambda meta: optax.sgd(_rate(meta)), _SGD, 3, _weights),
    _descent("multi-step-loss-scanned", lambda meta: optax.sgd(_rate(meta)), _SGD, 9, _weights),
    Variant(
        "mini-batches",
        quadratic_problem(),
        il.MiniBatches(il.GradientDescent(lambda meta: optax.sgd(_rate(meta)), 4), 2),
        descent_reference(_SGD, 4, batched=2),
    ),
    Variant(
        "procedure",
        il.Problem(None, None, quadratic_problem().outer_loss),
        il.Procedure(procedure),
        procedure_reference,
        float64_only=True,  # LAPACK knows no bfloat16
    ),
    Variant(
        "minimise",
        quadratic_problem(),
        # No line search, whose end would depend on how the loss is rounded.
        il.Minimise(optx.GradientDescent(0.1, rtol=1e-13, atol=1e-13), max_steps=4000),
        minimum_reference,
        float64_only=True,  # the solver's tolerance
    ),
    Variant(
        "ridge-more-rows",
        head_problem(narrow_features, weights_out),
        il.heads.RidgeHead(narrow_features, strength),
        head_reference(normal_equations, weights_out, 3),
    ),
    Variant(
        "ridge-more-features",
        head_problem(features, weights_out),
        il.heads.RidgeHead(features, strength),
        head_reference(normal_equations, weights_out, 6),
    ),
    Variant(
        "prototypes",
        head_problem(features, means_out),
        OnClasses(il.heads.Prototypes(features, CLASSES)),
        head_reference(class_means, means_out, 6),
    ),
    Variant(
        "logistic-head",
        head_problem(features, weights_out),
        OnClasses(il.heads.ConvexHead(features, strength, il.heads.logistic, CLASSES)),
        head_reference(newton(logistic_slope), weights_out, 6),
    ),
    Variant(
        "svm-head",
        head_problem(narrow_features, weights_out),
        OnClasses(il.heads.ConvexHead(narrow_features, strength, il.heads.squared_hinge, CLASSES)),
        head_reference(newton(squared_hinge_slope), weights_out, 3),
    ),
]


class GradientCase(NamedTuple):
    """A meta-gradient and the gradient that its formula predicts.

    - `predict`: (task, meta) -> gradient, in NumPy
    - `draws`: whether it draws random numbers of its own, which differ between dtypes
    - `scales`: whether it grows with the outer loss; None where that depends on how large it is
    - `float64_only`: its solver's tolerance, or LAPACK, asks for it
    """

    name: str
    gradient: il.extend.MetaGradient
    predict: Callable[[Task, dict], dict]
    draws: bool = False
    scales: bool | None = True
    float64_only: bool = False


def _basis():
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: rng.normal(size=(3, *leaf.shape)), quadratic_meta())


BASIS = _basis()


class Slot(NamedTuple):
    """One value of a slot of `Unroll`, and what it drops.

    - `drops`: the changes to the oracle's inner loop, as `predictions.dropped` takes them
    - `norm`: of what goes back through an inner gradient
    """

    value: Any
    drops: dict | None = None
    norm: float | None = None


_always, _first_two = {"hold": lambda t: True}, {"hold": lambda t: t < 2}

INNER = {
    "exact": Slot(g.Exact()),
    "mixed": Slot(g.MixedMode()),
    "held": Slot(g.HoldConstant(), _always),
    "held-everywhere": Slot(g.HoldConstant(lambda t, params: True), _always),
    "held-2": Slot(g.HoldConstant(lambda t, params: t < 2), _first_two),
    "bound": Slot(g.Bound(0.1), norm=0.1),
    "bound-by-much": Slot(g.Bound(1e6), norm=1e6),
    "bound-mixed": Slot(g.Bound(0.02, of=g.MixedMode()), norm=0.02),
    "bound-held-2": Slot(g.Bound(0.1, of=g.HoldConstant(lambda t, p: t < 2)), _first_two, 0.1),
}

LOOPS = {
    "all": Slot(g.StoreAll()),
    "segments": Slot(g.Segments()),
    "segments-1": Slot(g.Segments(1)),
    "segments-5": Slot(g.Segments(5)),
    "kept": Slot(g.Segments(2, keep_inner_gradients=True)),
    "offload": Slot(g.Segments(2, keep_inner_gradients=True, offload=True)),
    "binomial": Slot(g.Binomial(2)),
    "last-0": Slot(g.Last(0), {"last": 0}),
    "last-2": Slot(g.Last(2), {"last": 2}),
    "last-3-segments": Slot(g.Last(3, of=g.Segments(1)), {"last": 3}),
    "last-3-binomial": Slot(g.Last(3, of=g.Binomial(2)), {"last": 3}),
    "last-99": Slot(g.Last(99)),
}


def unrolled(inner: str, loop: str, name: str | None = None) -> GradientCase:
    """One setting of `Unroll`, and what the oracle makes of it."""
    one, other = INNER[inner], LOOPS[loop]
    drops = (one.drops or {}) | (other.drops or {})
    if one.norm is not None:
        predict = bounded(one.norm, **drops)
    else:
        predict = dropped(**drops) if drops else exact
    return GradientCase(
        name or f"{inner}-{loop}",
        il.Unroll(one.value, other.value),
        predict,
        scales=True if one.norm in (None, 1e6) else None,
    )


CROSS = {
    inner: [
        unrolled(inner, loop) for loop in LOOPS if loop not in ("segments-5", "offload", "last-99")
    ]
    for inner in ("exact", "mixed", "held", "held-2", "bound", "bound-mixed")
}
"""Every inner gradient in every loop, by inner gradient."""

# Each inner gradient and each loop at least once, with different partners.
GRADIENTS = [
    unrolled("exact", "all", "unroll"),
    unrolled("mixed", "all"),
    unrolled("exact", "segments-1"),
    unrolled("exact", "segments"),
    unrolled("exact", "binomial"),
    unrolled("mixed", "segments-5"),
    unrolled("mixed", "kept"),
    unrolled("mixed", "offload"),
    unrolled("mixed", "binomial"),
    unrolled("held", "all", "first-order"),
    unrolled("held", "segments-1"),
    unrolled("held-everywhere", "all"),
    unrolled("held-2", "all"),
    unrolled("held-2", "binomial"),
    unrolled("bound", "all", "bounded"),
    unrolled("bound", "last-2"),
    unrolled("bound-by-much", "all"),
    unrolled("bound-mixed", "segments-1"),
    unrolled("bound-held-2", "all"),
    unrolled("exact", "last-2", "truncated"),
    unrolled("exact", "last-0"),
    unrolled("mixed", "last-3-segments"),
    unrolled("held-2", "last-3-binomial"),
    unrolled("exact", "last-99"),
    GradientCase("forward-mode", il.ForwardMode(), exact),
    GradientCase("forward-mode-chunks", il.ForwardMode(chunk=2), exact),
    GradientCase("forward-mode-basis", il.ForwardMode(il.gradients.Basis(BASIS)), projected(BASIS)),
    GradientCase(
        "forward-mode-random",
        il.ForwardMode(il.gradients.RandomDirections(3)),
        random_directions(3),
        draws=True,
    ),
    GradientCase("clipped", il.Clipped(il.Unroll(), 1e-3), clipped(exact, 1e-3), scales=False),
    GradientCase("clipped-first-order", il.Clipped(il.FirstOrder(), 99.0), dropped(**_always)),
    GradientCase("reptile", il.Reptile(), reptile, scales=False),
    GradientCase("evolution", il.EvolutionStrategies(3, 0.1), evolution(3, 0.1), draws=True),
    GradientCase("evolution-chunks", il.EvolutionStrategies(3, 0.1, 2), evolution(3, 0.1), True),
    GradientCase(
        "implicit",
        il.Implicit(lx.CG(1e-13, 1e-13)),
        implicit(np.linalg.solve),
        float64_only=True,
    ),
    GradientCase(
        "implicit-damped",
        il.Implicit(lx.LU(), damping=0.5),
        implicit(lambda h, g: np.linalg.solve(h + 0.5 * np.eye(3), g)),
        float64_only=True,
    ),
    GradientCase(
        "implicit-neumann", il.Implicit(il.gradients.Neumann(7, 0.3)), implicit(neumann(7, 0.3))
    ),
]
