"""The cells of the table of Optax's optimizers: the library against a loop by hand in float64.

The loop by hand is plain JAX, as a user of Optax writes it. It shares with the library the
optimizers, the tasks and the keys.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from optax_rows import PARTS, ROWS, Row

import innerloop as il

KEY = jax.random.key(5)
STEPS = (3, 12)
DTYPES = ("float32", "bfloat16", "float64")
TOLERANCE = {"float64": 1e-7, "float32": 3e-3, "bfloat16": 0.1}
LAST, PAIRS, SIGMA, NORM = 2, 1, 0.125, 0.125

# Every number is an eighth, which all three types hold.
_EIGHTHS = np.random.default_rng(4).integers(-8, 9, 40) / 8
_HALF = lambda i: {
    "x": _EIGHTHS[i : i + 6].reshape(3, 2),
    "y": _EIGHTHS[i + 6 : i + 12].reshape(3, 2),
}
META = {
    "start": {"w": _EIGHTHS[24:28].reshape(2, 2), "b": np.array([0.625, -0.375])},
    "scale": np.array([0.25]),
}
EPISODE = il.Episode(_HALF(0), _HALF(12))


def _errors(params, batch):
    return batch["x"] @ params["w"] + params["b"] - batch["y"]


def inner_loss(params, meta, batch, key):
    """Convex, with a Hessian that depends on the parameters and on meta."""
    fit = jnp.mean(_errors(params, batch) ** 2) * jnp.exp(meta["scale"][0])
    return fit + sum(jnp.sum(leaf**4) for leaf in params.values()) / 16


def outer_loss(params, meta, batch, key):
    return jnp.mean(_errors(params, batch) ** 2)


PROBLEM = il.Problem(lambda meta, support, key: meta["start"], inner_loss, outer_loss)

# Meta-gradients.


def by_hand(row: Row, steps: int, meta: Any, episode: Any, of: str = "exact") -> Any:
    """The adapted parameters by a loop that a user of Optax would write.

    - `of`: what is differentiated: "exact", "first order", or "last" for the last steps
    """
    optimizer = row.make()
    stop = jax.lax.stop_gradient
    params = jax.tree.map(jnp.asarray, meta["start"])
    carry = start = (params, optimizer.init(params))
    loss = lambda params, meta: inner_loss(params, meta, episode.support, None)
    held = stop if of == "first order" else lambda tree: tree

    def value_fn(at, meta, params, **_):
        if of != "first order":
            return loss(params, at)
        value, slope = stop(jax.value_and_grad(loss)(params, at))
        ways = jax.tree.map(lambda g, p: jnp.sum(g * (p - stop(p))), slope, params)
        return value + sum(jax.tree.leaves(ways))

    def step(carry, meta):
        params, state = carry
        value, slope = held(jax.value_and_grad(loss)(params, meta))
        offers = {
            "value": value,
            "grad": slope,
            "value_fn": lambda params: value_fn(meta, meta, params),
            "obj_fn": lambda params: value_fn(meta, meta, params),
            "grad_fn": lambda params, i: held(jax.grad(loss)(params, meta)),
        }
        asked = {name: offers[name] for name in row.asks}
        updates, state = optimizer.update(slope, state, params, **asked)
        return optax.apply_updates(params, updates), state

    skipped = max(steps - LAST, 0) if of == "last" else 0
    for t in range(steps):
        carry = step(carry, meta)
        if t + 1 == skipped:
            carry = jax.tree.map(_bridge, carry, start)
    params, state = carry
    return params if row.judged is None else row.judged(state, params)


def _bridge(now: Any, first: Any) -> Any:
    """Constant, but for what the first value passes on."""
    if not jnp.issubdtype(jnp.result_type(now), jnp.floating):
        return now
    first = jnp.asarray(first)
    link = jnp.where(jnp.isfinite(first), first - jax.lax.stop_gradient(first), 0)
    return jax.lax.stop_gradient(now) + link


class Oracle:
    """The loss and the meta-gradients of a row in one type, each computed when it is asked for."""

    def __init__(self, row: Row, steps: int, dtype: str = "float64"):
        cast = lambda leaf: jnp.asarray(leaf, dtype)
        self.meta, self.episode = jax.tree.map(cast, (META, EPISODE))
        self.row, self.steps, self._found = row, steps, {}

    def adapted(self, meta: Any, of: str = "exact") -> Any:
        return by_hand(self.row, self.steps, meta, self.episode, of)

    def loss(self, meta: Any, of: str = "exact") -> Any:
        return outer_loss(self.adapted(meta, of), meta, self.episode.query, None)

    def of(self, way: str) -> tuple[Any, Any]:
        """The loss and the gradient of one of the ways to differentiate."""
        if way not in self._found:
            try:
                self._found[way] = jax.value_and_grad(self.loss)(self.meta, way)
            except ValueError:  # reverse mode through a loop that runs until a condition holds
                self._found[way] = self.forward(way)
        return self._found[way]

    def forward(self, way: str = "exact") -> tuple[Any, Any]:
        """The same in forward mode, which does not see a NaN in a branch that is not selected."""
        return self.loss(self.meta, way), jax.jacfwd(self.loss)(self.meta, way)

    def value(self) -> Any:
        if "params" not in self._found:
            self._found["params"] = self.adapted(self.meta)
        return outer_loss(self._found["params"], self.meta, self.episode.query, None)

    def reptile(self) -> tuple[Any, Any]:
        value = self.value()
        way = jax.tree.map(jnp.subtract, self.meta["start"], self._found["params"])
        return value, {"start": way, "scale": jnp.zeros_like(self.meta["scale"])}

    def implicit(self) -> tuple[Any, Any]:
        value = self.value()
        flat, shaped = jax.flatten_util.ravel_pytree(self._found["params"])
        slope = lambda flat, scale: jax.flatten_util.ravel_pytree(
            jax.grad(inner_loss)(shaped(flat), {"scale": scale}, self.episode.support, None)
        )[0]
        hessian, mixed = jax.jacobian(slope, (0, 1))(flat, self.meta["scale"])
        outer = jax.grad(lambda f: outer_loss(shaped(f), None, self.episode.query, None))(flat)
        nothing = jax.tree.map(jnp.zeros_like, self.meta["start"])
        return value, {"start": nothing, "scale": -mixed.T @ jnp.linalg.solve(hessian, outer)}

    def evolution(self) -> tuple[Any, Any]:
        key = jax.random.fold_in(il.extend.task_keys(jax.random.split(KEY, 1)[0]).gradient, 0)
        leaves, treedef = jax.tree.flatten(self.meta)
        keys = jax.random.split(key, len(leaves))
        pairs = zip(keys, leaves, strict=True)
        noise = treedef.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in pairs])
        at = lambda sign: self.loss(
            jax.tree.map(lambda m, e: m + sign * SIGMA * e, self.meta, noise)
        )
        slope = (at(1) - at(-1)) / (2 * SIGMA)
        return self.value(), jax.tree.map(lambda e: slope * e, noise)


def _exact(oracle: Oracle) -> tuple[Any, Any]:
    return oracle.of("exact")


def _clipped(oracle: Oracle) -> tuple[Any, Any]:
    value, gradient = _exact(oracle)
    short = jnp.minimum(1, NORM / optax.tree.norm(gradient))
    return value, jax.tree.map(lambda leaf: short * leaf, gradient)


GRADIENTS: dict[str, tuple[Any, Callable[[Oracle], tuple[Any, Any]]]] = {
    "Unroll()": (il.Unroll(), _exact),
    "Unroll(MixedMode(), Segments(1))": (il.Unroll(il.MixedMode(), il.Segments(1)), _exact),
    "Unroll(loop=Binomial(2))": (il.Unroll(loop=il.gradients.Binomial(2)), _exact),
    "ForwardMode()": (il.ForwardMode(), Oracle.forward),
    "Bounded(1e6)": (il.Bounded(1e6), _exact),
    "Clipped(Unroll(), 1/8)": (il.Clipped(il.Unroll(), NORM), _clipped),
    "FirstOrder()": (il.FirstOrder(), lambda oracle: oracle.of("first order")),
    "Truncated(2)": (il.Truncated(LAST), lambda oracle: oracle.of("last")),
    "Implicit()": (il.Implicit(lx.CG(1e-9, 1e-9), throw=False), Oracle.implicit),
    "Reptile()": (il.Reptile(), Oracle.reptile),
    "EvolutionStrategies(1, 1/8)": (il.EvolutionStrategies(PAIRS, SIGMA), Oracle.evolution),
}


def measured(row: Row, gradient: Any, steps: int, dtype: str) -> tuple[Any, Any]:
    """Loss and meta-gradient by the library."""
    meta, episode = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (META, EPISODE))
    learn = il.GradientDescent(row.make(), steps, judged=row.judged)
    value_and_grad = jax.jit(il.meta_value_and_grad(PROBLEM, learn, gradient))
    (loss, _), slope = value_and_grad(meta, jax.tree.map(lambda leaf: leaf[None], episode), KEY)
    return loss, slope


# The verdict of a cell.


def error_of(found: Any, expected: Any) -> float:
    """The relative error of loss and gradient, the larger of the two; NaN where they are not."""
    flat = lambda tree: np.concatenate(
        [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
    )
    pairs = [(flat(a), flat(b)) for a, b in zip(found, expected, strict=True)]
    return max(np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-6) for a, b in pairs)


def finite(tree: Any) -> bool:
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def verdict(
    ours: Callable[[], Any], expected: Callable[[], Any], alike: Callable[[], Any], dtype: str
) -> str:
    """What a cell says.

    - `ours`: `() -> (loss, gradient)` by the library
    - `expected`: the same by hand in float64
    - `alike`: the same by hand in the cell's own type, for what rounding does to the optimizer
    """
    try:
        found = ours()
    except il.errors.RunError:  # a loss that is not finite ends a run
        if not finite(expected()):
            return "not finite"
        return "not finite in this type" if not finite(alike()) else "ended, not by hand"
    except il.errors.InnerloopError as error:
        return f"refused: {error.problem.partition(': ')[0]}"
    try:
        right = expected()
    except Exception as error:  # whatever Optax raises
        return f"only here: by hand {type(error).__name__}"
    if not finite(right):
        return "not finite" if not finite(found) else "finite, not by hand"
    error = error_of(found, right)
    if error <= TOLERANCE[dtype]:
        return "works"
    if dtype != "float64":
        rounded = alike()
        if not finite(rounded):
            return "not finite in this type"
        by_rounding = error_of(rounded, right)
        if error <= TOLERANCE[dtype] + 3 * by_rounding:
            return "works, rounded"
    return f"wrong by {error:.1e}"


def inner_cell(
    name: str, gradient: str, steps: int, dtype: str, oracles: dict | None = None
) -> str:
    """One cell of the inner table; `oracles` keeps what cells share."""
    rule, formula = GRADIENTS[gradient]
    row, oracles = ROWS[name], {} if oracles is None else oracles

    def oracle(kind: str) -> Oracle:
        key = (name, steps, kind)
        if key not in oracles:
            oracles[key] = Oracle(row, steps, kind)
        return oracles[key]

    parts = (lambda: formula(oracle("float64")), lambda: formula(oracle(dtype)))
    return verdict(lambda: measured(row, rule, steps, dtype), *parts, dtype)


# The outer optimizer of `fit`.

OUTER_STEPS = 12
LEARN = il.GradientDescent(optax.sgd(0.125), 1)


def estimator(dtype: str) -> il.WholeTasks:
    """Two tasks in each outer step, whose numbers are eighths in every type."""

    def half(key):
        numbers = jax.random.randint(key, (2, 3, 2), -8, 9).astype(dtype) / 8
        return {"x": numbers[0], "y": numbers[1]}

    tasks = il.tasks.IndependentTasks(lambda key: il.Episode(*map(half, jax.random.split(key))))
    return il.WholeTasks(PROBLEM, LEARN, il.Unroll(), tasks, batch=2)


def fitted(row: Row, dtype: str) -> tuple[Any, Any]:
    """How far `fit` moves the meta-parameters."""
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), META)
    options = {"steps": OUTER_STEPS, "key": KEY, "judged": row.judged}
    made = il.fit(estimator(dtype), start, optimizer=row.make(), **options)
    return jnp.zeros(()), jax.tree.map(jnp.subtract, made.meta, start)


@functools.cache
def _tasks_of_step(t: int) -> il.Episode:
    return il.training.tasks_of_step(estimator("float64"), KEY, t).episodes


def _mean_loss(meta: Any, episodes: il.Episode) -> Any:
    def of_task(episode):
        slope = jax.grad(inner_loss)(meta["start"], meta, episode.support, None)
        params = jax.tree.map(lambda p, g: p - 0.125 * g, meta["start"], slope)
        return outer_loss(params, meta, episode.query, None)

    return jnp.mean(jax.vmap(of_task)(episodes))


_mean_and_slope = jax.jit(jax.value_and_grad(_mean_loss))


def fitted_by_hand(row: Row, dtype: str) -> tuple[Any, Any]:
    """The same by a loop that a user of Optax would write."""
    optimizer = row.make()
    meta = start = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), META)
    state = optimizer.init(meta)
    for t in range(OUTER_STEPS):
        episodes = jax.tree.map(lambda leaf: leaf.astype(dtype), _tasks_of_step(t))
        value, slope = _mean_and_slope(meta, episodes)
        at = lambda meta, episodes=episodes, **_: _mean_loss(meta, episodes)
        offers = {"value": value, "grad": slope, "value_fn": at, "obj_fn": at}
        offers["grad_fn"] = lambda meta, i, at=at: jax.grad(at)(meta)
        asked = {name: offers[name] for name in row.asks}
        updates, state = optimizer.update(slope, state, meta, **asked)
        meta = optax.apply_updates(meta, updates)
    meta = meta if row.judged is None else row.judged(state, meta)
    return jnp.zeros(()), jax.tree.map(jnp.subtract, meta, start)


def outer_cell(name: str, dtype: str) -> str:
    """One cell of the table of `fit`."""
    row = ROWS[name]
    by_hand = lambda kind: lambda: fitted_by_hand(row, kind)
    return verdict(lambda: fitted(row, dtype), by_hand("float64"), by_hand(dtype), dtype)


# The whole table.


COMBINATIONS = [(steps, dtype) for dtype in DTYPES for steps in STEPS]


def cells_of(name: str) -> dict[str, list[tuple[int, str]]]:
    """The steps and types of an optimizer's cells, by meta-gradient.

    Every meta-gradient has one of the six combinations, in turn, so that over the optimizers each
    has all six and each optimizer meets each of them. `Unroll()` has 12 steps in float64 besides.
    Parts of optimizers, which `scale_by_` and the like make, are run with `Unroll()` and
    `FirstOrder()` alone.
    """
    i = list(ROWS).index(name)
    found = {
        gradient: [COMBINATIONS[(i + j) % len(COMBINATIONS)]]
        for j, gradient in enumerate(GRADIENTS)
    }
    found["Unroll()"] = sorted({(12, "float64"), *found["Unroll()"]}, reverse=True)
    if name in PARTS:
        return {gradient: found[gradient] for gradient in ("Unroll()", "FirstOrder()")}
    return found


def table_of(name: str) -> dict[str, Any]:
    """Every cell of one optimizer."""
    oracles = {}
    inner = {
        gradient: {
            f"{steps} {dtype}": computed(name, gradient, steps, dtype, oracles)
            for steps, dtype in combinations
        }
        for gradient, combinations in cells_of(name).items()
    }
    return {"inner": inner, "fit": {dtype: computed(name, "fit", dtype) for dtype in DTYPES}}


def computed(name: str, gradient: str, *arguments: Any) -> str:
    """One cell: `gradient, steps, dtype`, or "fit" and a type."""
    if gradient == "fit":
        return _as_users_call(outer_cell)(name, *arguments)
    return _as_users_call(inner_cell)(name, gradient, *arguments)


def _as_users_call(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call with float64 allowed and JAX's default promotion."""

    def called(*args: Any, **kwargs: Any) -> Any:
        with (
            warnings.catch_warnings(),
            jax.enable_x64(True),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
        ):
            warnings.simplefilter("ignore")  # Optax's own
            return call(*args, **kwargs)

    return called
