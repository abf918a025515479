"""Temporary memory of each meta-gradient against the number of inner steps, K.

The numbers are what the compiler allots beside arguments and results; nothing is run. The task is
a regression by a small mlp with weight decay. Meta-parameters are its initial parameters, the
logarithm of the learning rate and that of the decay; for `ForwardMode`, the two logarithms alone.

    python benchmarks/memory.py [--replot]
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from line_ends import label_ends
from overhead import machine

import innerloop as il
from innerloop.lab.plots.style import BLUE, GREEN, ORANGE, RED, new_figure

RESULTS = Path(__file__).parent / "results" / "memory.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "memory.png"

STEPS = [1, 4, 16, 64, 256, 1024]
SIZES, ROWS = [16, 48, 48, 1], 64

GROWTH = {"log K": np.log2, "√K": np.sqrt, "K": np.asarray}
"""Beside "constant"."""

LEARNED = ("start", "log_rate", "log_decay")


class Row(NamedTuple):
    """An estimator, for K steps, how its memory should grow, and the meta-parameters."""

    name: str
    growth: str
    gradient: Callable[[int], il.extend.MetaGradient]
    learned: tuple[str, ...] = LEARNED


def rows() -> list[Row]:
    """All estimators. `FirstOrder` keeps its K inner gradients where the rate has a derivative."""

    def slots(steps: int) -> int:
        return max(1, math.ceil(math.log2(steps)))

    return [
        Row("Unroll()", "K", lambda steps: il.Unroll()),
        Row("Unroll(MixedMode())", "K", lambda steps: il.Unroll(il.MixedMode())),
        Row("Unroll(loop=Segments(1))", "K", lambda steps: il.Unroll(loop=il.Segments(1))),
        Row(
            "Unroll(MixedMode(), Segments(1))",
            "K",
            lambda steps: il.Unroll(il.MixedMode(), il.Segments(1)),
        ),
        Row("Unroll(loop=Segments())", "√K", lambda steps: il.Unroll(loop=il.Segments())),
        Row(
            "Unroll(loop=Binomial(log2 K))",
            "log K",
            lambda steps: il.Unroll(loop=il.Binomial(slots(steps))),
        ),
        Row("Unroll(loop=Binomial(4))", "constant", lambda steps: il.Unroll(loop=il.Binomial(4))),
        Row("Truncated(8)", "constant", lambda steps: il.Truncated(8)),
        Row("FirstOrder()", "K", lambda steps: il.FirstOrder()),
        Row("FirstOrder(), rate fixed", "constant", lambda steps: il.FirstOrder(), ("start",)),
        Row("Implicit()", "constant", lambda steps: il.Implicit()),
        Row("Reptile()", "constant", lambda steps: il.Reptile()),
        Row(
            "ForwardMode(chunk=1)",
            "constant",
            lambda steps: il.ForwardMode(chunk=1),
            ("log_rate", "log_decay"),
        ),
        Row(
            "EvolutionStrategies(8, 0.01)",
            "constant",
            lambda steps: il.EvolutionStrategies(8, 0.01),
        ),
    ]


def task(learned: tuple[str, ...]) -> tuple[il.Problem, Callable, dict, il.Episode]:
    """Problem, optimizer, meta and episode. Only shapes matter."""
    model = il.models.mlp(SIZES)
    model_loss = il.models.supervised_loss(model, il.models.mean_squared_error)
    values = {
        "start": model.init(jax.random.key(0)),
        "log_rate": jnp.log(0.01),
        "log_decay": jnp.log(0.001),
    }

    def inner_loss(params, meta, batch, key):
        loss, metrics = model_loss(params, meta, batch, key)
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return loss + jnp.exp((values | meta)["log_decay"]) * squares, metrics

    init = lambda meta, support, key: (values | meta)["start"]
    optimizer = lambda meta: optax.sgd(jnp.exp((values | meta)["log_rate"]))
    problem = il.Problem(init, inner_loss, model_loss)
    examples = il.Examples(jnp.zeros((ROWS, SIZES[0])), jnp.zeros((ROWS, SIZES[-1])))
    meta = {name: values[name] for name in learned}
    return problem, optimizer, meta, il.Episode(examples, examples)


def temporary_bytes(row: Row, steps: int) -> int:
    """Temporary memory of the value, aux and meta-gradient of one task."""
    problem, optimizer, meta, episode = task(row.learned)
    adaptation = il.GradientDescent(optimizer, steps)
    objective = il.meta_objective(problem, adaptation, row.gradient(steps))
    value_and_grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
    program = value_and_grad.lower(meta, episode, jax.random.key(1)).compile()
    return program.memory_analysis().temp_size_in_bytes


def measure(row: Row) -> dict:
    """One estimator: its memory for each K, and how it grows."""
    sizes = [temporary_bytes(row, steps) for steps in STEPS]
    many = STEPS.index(16)
    exponent = np.polyfit(np.log(STEPS[many:]), np.log(sizes[many:]), 1)[0]
    growth = closest_growth(np.asarray(STEPS[many:]), np.asarray(sizes[many:]))
    cells = "".join(f"{size / 1000:>11,.1f}" for size in sizes)
    mark = "" if growth == row.growth else f", EXPECTED {row.growth}"
    print(f"{row.name:38}{cells}{exponent:>9.3f}  {growth}{mark}", flush=True)
    return {
        "estimator": row.name,
        "meta": row.learned,
        "temporary_bytes": sizes,
        "exponent_16_to_1024": float(exponent),
        "growth": growth,
        "expected_growth": row.growth,
    }


def closest_growth(steps: np.ndarray, sizes: np.ndarray) -> str:
    """Constant within one per cent, or that of the best fit of a + b growth(K)."""
    if np.ptp(sizes) < 0.01 * np.min(sizes):
        return "constant"

    def misfit(growth: Callable) -> float:
        columns = np.stack([np.ones(len(steps)), growth(steps)], axis=1)
        fitted = columns @ np.linalg.lstsq(columns / sizes[:, None], np.ones(len(steps)))[0]
        return float(np.max(np.abs(fitted / sizes - 1)))

    return min(GROWTH, key=lambda name: misfit(GROWTH[name]))


def draw(result: dict) -> None:
    """Memory against K, one line per estimator, coloured by its growth."""
    colours = {"K": RED, "√K": ORANGE, "log K": GREEN, "constant": BLUE}
    records = sorted(result["estimators"], key=lambda record: record["temporary_bytes"][-1])
    with new_figure(FIGURE, (9, 5.4)) as (figure, done):
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="inner steps K", xticks=STEPS)
        axes.set_title("Temporary memory of one meta-gradient, by growth in K", loc="left", pad=28)
        axes.set_ylabel("compiled temporary memory")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(_bytes)
        axes.minorticks_off()
        for record in records:
            colour = colours[record["expected_growth"]]
            axes.plot(STEPS, record["temporary_bytes"], "o-", color=colour, markersize=4)
        for name, colour in colours.items():
            axes.plot([], [], color=colour, label=name)
        axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(-0.02, 0.99))
        label_ends(
            axes,
            [(STEPS[-1], record["temporary_bytes"][-1]) for record in records],
            [record["estimator"] for record in records],
            [colours[record["expected_growth"]] for record in records],
        )
        done()


def _bytes(size: float, _=None) -> str:
    unit, name = (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    return f"{size / unit:g} {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replot", action="store_true", help="draw the recorded numbers again")
    if parser.parse_args().replot:
        draw(json.loads(RESULTS.read_text()))
        return
    parameters = sum(leaf.size for leaf in jax.tree.leaves(task(LEARNED)[2]["start"]))
    result = {
        "command": shlex.join(["python", "benchmarks/memory.py", *sys.argv[1:]]),
        "machine": machine(),
        "config": {"sizes": SIZES, "parameters": parameters, "support_rows": ROWS},
        "steps": STEPS,
    }
    print(f"{'temporary kB for K =':38}" + "".join(f"{steps:>11}" for steps in STEPS) + " exponent")
    result["estimators"] = [measure(row) for row in rows()]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    draw(result)


if __name__ == "__main__":
    main()
