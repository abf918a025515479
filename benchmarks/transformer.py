"""Time and memory of MAML's exact meta-gradient on a transformer, by the ways to store its steps.

All variants compute one gradient, that of `Unroll()` on a model that stores every intermediate
value ("plain"). Tokens are random. Memory is what the compiler allots beside arguments and results;
seconds are medians of warm calls, taken in turn, and ratios medians over the rounds.

    python benchmarks/transformer.py [--rounds 4] [--only K=16] [--replot]
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from overhead import machine

import innerloop as il
from innerloop.lab.plots.style import BLUE, GREY, new_figure

RESULTS = Path(__file__).parent / "results" / "transformer.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "transformer.png"
VOCABULARY, DEPTH, LENGTH, RATE = 256, 12, 256, 0.01


class Setting(NamedTuple):
    """A model, K inner steps, the sequences of support and of query set, and what is aimed at."""

    name: str
    width: int
    heads: int
    steps: int
    rows: int
    memory_target: float
    time_target: float = 0.7


SETTINGS = [
    Setting("width 128, K=16", 128, 4, 16, 1, memory_target=24),
    Setting("width 256, K=4", 256, 8, 4, 2, memory_target=15),
]


class Variant(NamedTuple):
    """How inner steps and, inside of them, the transformer's blocks are stored."""

    name: str
    gradient: il.Unroll
    checkpoint_blocks: bool


VARIANTS = [
    Variant("plain", il.Unroll(), False),
    Variant("mixed mode", il.Unroll(il.MixedMode()), False),
    Variant("checkpoint", il.Unroll(loop=il.Segments(1)), True),
    Variant("checkpoint, mixed mode", il.Unroll(il.MixedMode(), il.Segments(1)), True),
    Variant(
        "checkpoint, gradients kept, mixed mode",
        il.Unroll(il.MixedMode(), il.Segments(1, True)),
        True,
    ),
]


def compiled(setting: Setting, variant: Variant, arguments: tuple) -> tuple[Callable, dict]:
    """`(meta, episode, key) -> ((loss, aux), gradient)`, and what compiling it said."""
    model = model_of(setting, variant.checkpoint_blocks)
    recipe = il.recipes.maml(model, il.models.cross_entropy, RATE, setting.steps)
    objective = il.meta_objective(recipe.problem, recipe.adaptation, variant.gradient)
    start = time.perf_counter()
    lowered = jax.jit(jax.value_and_grad(objective, has_aux=True)).lower(*arguments)
    traced_at = time.perf_counter()
    program = lowered.compile()
    return program, {
        "variant": variant.name,
        "trace_seconds": traced_at - start,
        "compile_seconds": time.perf_counter() - traced_at,
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
    }


def model_of(setting: Setting, checkpoint_blocks: bool) -> il.models.Model:
    return il.models.transformer(
        VOCABULARY,
        setting.width,
        DEPTH,
        setting.heads,
        LENGTH,
        checkpoint_blocks=checkpoint_blocks,
    )


def arguments_of(setting: Setting) -> tuple:
    """Meta-parameters as they start, random sequences, a key."""
    meta = model_of(setting, False).init(jax.random.key(0))

    def examples(key) -> il.Examples:
        tokens = jax.random.randint(key, (setting.rows, LENGTH + 1), 0, VOCABULARY)
        return il.Examples(tokens[:, :-1], tokens[:, 1:])

    support, query = map(examples, jax.random.split(jax.random.key(1)))
    return meta, il.Episode(support, query), jax.random.key(2)


def measure(setting: Setting, rounds: int) -> dict:
    """All variants of one setting."""
    arguments = arguments_of(setting)
    programs, records, plain = [], [], None
    for variant in VARIANTS:
        program, record = compiled(setting, variant, arguments)
        (loss, _), gradient = jax.block_until_ready(program(*arguments))
        plain = plain or (loss, gradient)
        record["loss_relative_error"] = relative_error(loss, plain[0])
        record["gradient_relative_error"] = relative_error(gradient, plain[1])
        programs.append(program)
        records.append(record)
        print(f"  {variant.name}: {record}", flush=True)

    seconds = np.zeros((rounds, len(programs)))
    for i in range(rounds):
        for j in np.roll(np.arange(len(programs)), -i):
            start = time.perf_counter()
            jax.block_until_ready(programs[j](*arguments))
            seconds[i, j] = time.perf_counter() - start

    for j, record in enumerate(records):
        record["seconds"] = seconds[:, j].tolist()
        record["median_seconds"] = float(np.median(seconds[:, j]))
        record["time_ratio"] = float(np.median(seconds[:, j] / seconds[:, 0]))
        record["times_less_memory"] = records[0]["temporary_bytes"] / record["temporary_bytes"]
        record["meets_targets"] = bool(
            record["times_less_memory"] >= setting.memory_target
            and record["time_ratio"] <= setting.time_target
        )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(arguments[0]))
    return {
        "setting": setting._asdict(),
        "parameters": parameters,
        "load_average_after": os.getloadavg(),
        "variants": records,
    }


def relative_error(tree, reference) -> float:
    """‖tree - reference‖ / ‖reference‖ over all leaves."""
    square = lambda tree: sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree))
    return (square(jax.tree.map(jnp.subtract, tree, reference)) / square(reference)) ** 0.5


def show(record: dict) -> None:
    """One setting as a table."""
    print(f"\n{record['setting']['name']}, {record['parameters']:,} parameters")
    heads = ["MiB", "less", "seconds", "ratio", "compile", "error"]
    print(f"  {'':40}" + "".join(f"{head:>10}" for head in heads))
    for row in record["variants"]:
        print(f"  {row['variant']:40}{row['temporary_bytes'] / 2**20:10.1f}"
              f"{row['times_less_memory']:9.1f}x{row['median_seconds']:10.2f}"
              f"{row['time_ratio']:10.3f}{row['compile_seconds']:10.1f}"
              f"{row['gradient_relative_error']:10.1e}", flush=True)  # fmt: skip


def draw(result: dict) -> None:
    """Memory and seconds of each variant, one row of panels per setting."""
    with new_figure(FIGURE, (10, 5)) as (figure, done):
        grid = figure.subplots(len(result["settings"]), 2, sharey="row", squeeze=False)
        for record, (left, right) in zip(result["settings"], grid, strict=True):
            rows = record["variants"]
            names = [row["variant"] for row in rows]
            memory = [row["temporary_bytes"] / 2**30 for row in rows]
            less = [f"{row['times_less_memory']:.1f}× less" for row in rows]
            _bars(left, names, memory, less, "temporary memory, GiB")
            shares = [f"{row['time_ratio']:.2f}×" for row in rows]
            _bars(right, names, [row["median_seconds"] for row in rows], shares, "seconds")
            left.set_title(f"{DEPTH} blocks, {record['setting']['name']}", loc="left")
            left.invert_yaxis()
        done()


def _bars(axes, names: list[str], values: list[float], ratios: list[str], label: str) -> None:
    """One bar per variant, with its value and, but for the first, its ratio to the first."""
    axes.barh(names, values, 0.62, color=[GREY, *[BLUE] * (len(values) - 1)])
    for i, (value, ratio) in enumerate(zip(values, ratios, strict=True)):
        text = f" {value:.2f}" + (f"  ({ratio})" if i else "")
        axes.text(value, i, text, va="center", fontsize=9)
    axes.set(xlim=(0, 1.3 * max(values)), xlabel=label)
    axes.grid(visible=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="timed calls of each variant")
    parser.add_argument("--only", default="", help="settings whose name holds this; writes nothing")
    parser.add_argument("--replot", action="store_true", help="draw the recorded numbers again")
    arguments = parser.parse_args()
    if arguments.replot:
        draw(json.loads(RESULTS.read_text()))
        return
    result = {
        "command": shlex.join(["python", "benchmarks/transformer.py", *sys.argv[1:]]),
        "machine": machine(),
        "config": {"vocabulary": VOCABULARY, "depth": DEPTH, "length": LENGTH, "rate": RATE},
        "settings": [],
    }
    for setting in SETTINGS:
        if arguments.only in setting.name:
            result["settings"].append(measure(setting, arguments.rounds))
            show(result["settings"][-1])
    if arguments.only:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    draw(result)


if __name__ == "__main__":
    main()
