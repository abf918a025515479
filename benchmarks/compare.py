"""Every meta-gradient held against the exact one, on three problems: error, memory and time.

What is compared, and at which meta-parameters, is said by `PROBLEMS`. Memory is the compiler's;
seconds are medians of warm calls that take turns.

    python benchmarks/compare.py sinusoid|digits|transformer [--replot]
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from overhead import machine

import innerloop as il
from innerloop.diagnostics._compare import compare
from innerloop.diagnostics.candidates import one_of_every_kind
from innerloop.diagnostics.comparison.result import Comparison
from innerloop.lab.experiments.digits import Digits
from innerloop.lab.experiments.sinusoid import Sinusoid
from innerloop.lab.plots import error_against_cost

FOLDER = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs" / "images"

VOCABULARY, WIDTH, DEPTH, HEADS, LENGTH, STEPS = 64, 64, 4, 4, 64, 4


class Setting(NamedTuple):
    """A problem with a batch of tasks.

    - `title`: of the figure
    - `outer_steps`: Adam steps on the exact meta-gradient before the comparison
    """

    title: str
    recipe: il.recipes.Recipe
    tasks: Any
    batch: int
    outer_rate: float
    outer_steps: int


def sinusoid() -> Setting:
    config = Sinusoid()
    parts = config.parts()
    title = f"Sinusoids, K = {parts.trained_steps}, {config.batch} tasks, after 1,000 outer steps"
    return Setting(
        title, config.build_recipe(), parts.estimator.tasks, config.batch, config.outer_rate, 1000
    )


def digits() -> Setting:
    config = Digits()
    parts = config.parts()
    title = f"Digits, K = {parts.trained_steps}, {config.batch} tasks, after 100 outer steps"
    return Setting(
        title, config.build_recipe(), parts.estimator.tasks, config.batch, config.outer_rate, 100
    )


def transformer() -> Setting:
    model = il.models.transformer(VOCABULARY, WIDTH, DEPTH, HEADS, LENGTH)
    recipe = il.recipes.maml(model, il.models.cross_entropy, 0.05, STEPS)
    title = f"Transformer, {DEPTH} blocks × {WIDTH}, K = {STEPS}, 2 tasks, after 20 outer steps"
    return Setting(title, recipe, Chains(), 2, 1e-3, 20)


class Chains:
    """Sequences of one Markov chain per task, which is the task: 4 to learn from, 4 to predict."""

    def sample(self, key, n: int) -> il.Episode:
        return jax.vmap(self._task)(jax.random.split(key, n))

    def _task(self, key) -> il.Episode:
        chain_key, *keys = jax.random.split(key, 3)
        logits = 3 * jax.random.normal(chain_key, (VOCABULARY, VOCABULARY))

        def sequence(key):
            first, *rest = jax.random.split(key, LENGTH + 1)
            start = jax.random.randint(first, (), 0, VOCABULARY)
            follow = lambda token, key: (jax.random.categorical(key, logits[token]), token)
            last, tokens = jax.lax.scan(follow, start, jnp.stack(rest))
            tokens = jnp.append(tokens, last)
            return il.Examples(tokens[:-1], tokens[1:])

        support, query = (jax.vmap(sequence)(jax.random.split(k, 4)) for k in keys)
        return il.Episode(support, query)


PROBLEMS: dict[str, Callable[[], Setting]] = {
    "sinusoid": sinusoid,
    "digits": digits,
    "transformer": transformer,
}


def trained(setting: Setting, meta):
    """Meta-parameters after a few steps of Adam on the exact meta-gradient, and the losses."""
    optimizer = optax.adam(setting.outer_rate)
    exact = il.Unroll(il.MixedMode(), il.Segments(1))
    value_and_grad = il.meta_value_and_grad(*setting.recipe[:2], exact)

    def step(state, key):
        meta, moments = state
        sample_key, own_key = jax.random.split(key)
        episodes = setting.tasks.sample(sample_key, setting.batch)
        (loss, _), grads = value_and_grad(meta, episodes, own_key)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(meta, updates), moments), loss

    keys = jax.random.split(jax.random.key(1), setting.outer_steps)
    run = jax.jit(lambda state: jax.lax.scan(step, state, keys))
    (meta, _), losses = run((meta, optimizer.init(meta)))
    return meta, losses


def measure(setting: Setting) -> tuple[Comparison, dict]:
    """All estimators after training, and the biased ones at the start of it too."""
    problem, adaptation, _, init_meta, *_ = setting.recipe
    rest = (setting.tasks.sample(jax.random.key(2), setting.batch), jax.random.key(3))
    start = init_meta(jax.random.key(0))
    biased = [
        gradient
        for gradient in one_of_every_kind(adaptation, start)
        if gradient.fidelity(adaptation).kind == "biased"
    ]
    at_start = compare(problem, adaptation, start, *rest, biased, seconds=0)
    meta, losses = trained(setting, start)
    tenth = max(len(losses) // 10, 1)
    record = {
        "outer_steps": setting.outer_steps,
        "loss_first": float(losses[:tenth].mean()),
        "loss_last": float(losses[-tenth:].mean()),
        "cosine_at_start": {row.name: row.cosine for row in at_start.rows},
        "relative_error_at_start": {row.name: row.relative_error for row in at_start.rows},
    }
    print(record, flush=True)
    return compare(problem, adaptation, meta, *rest), record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--replot", action="store_true", help="draw the recorded numbers again")
    arguments = parser.parse_args()
    path = FOLDER / f"compare-{arguments.problem}.json"
    if not arguments.replot:
        before, setting = machine(), PROBLEMS[arguments.problem]()
        comparison, training = measure(setting)
        print(comparison)
        result = {
            "command": shlex.join(["python", "benchmarks/compare.py", *sys.argv[1:]]),
            "machine": before,
            "title": setting.title,
            "training": training,
            **comparison.as_dict(),
        }
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    result = json.loads(path.read_text())
    figure = FIGURES / f"compare-{arguments.problem}.png"
    error_against_cost(figure, result["rows"], title=result["title"])


if __name__ == "__main__":
    main()
