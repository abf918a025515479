"""A learning-rate schedule found by gradient, against a random search with ten times its steps.

`python benchmarks/schedule.py` trains a network of 32 hidden units on the digits by SGD for 200
steps. A schedule is five rates, geometrically interpolated. For each of five splits of the data,
with their own initialisation and mini-batches:

- random search: 200 runs, each rate log-uniform between 0.001 and 10; once more with a straight
  line between two such rates, which has fewer ways to be bad;
- `LearnedSchedule`, by the exact derivative of the validation loss after 200 steps: 20 runs from a
  constant rate of 0.1, an outer step of Adam after each.

Each method gives its best run's validation loss, and its schedule's mean on 50 other tasks. It
writes `results/schedule.json`.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import innerloop as il
from innerloop.lab.experiments.optimizer_trials import last, loss_curves
from innerloop.lab.run_folder import environment
from innerloop.storage.files import strict_json

RESULTS = Path(__file__).parent / "results" / "schedule.json"

STEPS, KNOTS = 200, 5
SEARCHED, LEARNED = 200, 20
"""Runs of each method."""
LOW, HIGH = 1e-3, 10.0
OUTER_RATE = 0.3
SPLITS, OTHERS = 5, 50

SCHEDULE = il.optimizers.LearnedSchedule(horizon=STEPS, knots=KNOTS, rate=0.1)


def searches(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Logarithms of rates to try, `(SEARCHED, KNOTS)`, by the name of the search."""
    ends = lambda n: rng.uniform(np.log(LOW), np.log(HIGH), (SEARCHED, n))
    lines = ends(2)
    along = np.linspace(0, 1, KNOTS)
    return {
        "random knots": ends(KNOTS),
        "random lines": lines[:, :1] * (1 - along) + lines[:, 1:] * along,
    }


def by_search(run, log_rates: np.ndarray) -> dict:
    """The best of all; what is not finite is infinite."""
    begin = time.perf_counter()
    losses = np.array([float(run({"log_rates": jnp.asarray(row, "f4")})) for row in log_rates])
    seconds = time.perf_counter() - begin
    losses = np.where(np.isfinite(losses), losses, np.inf)
    best = int(np.argmin(losses))
    return outcome(losses, log_rates[best], seconds)


def by_gradient(value_and_grad) -> dict:
    """The best of the runs that gradients were taken through; no further run is needed."""
    begin = time.perf_counter()
    meta, optimizer = SCHEDULE.init(jax.random.key(0), None), optax.adam(OUTER_RATE, b1=0.8)
    state, tried, losses = optimizer.init(meta), [], []
    for _ in range(LEARNED):
        value, grads = value_and_grad(meta)
        tried.append(np.asarray(meta["log_rates"]))
        losses.append(float(value))
        updates, state = optimizer.update(grads, state)
        meta = optax.apply_updates(meta, updates)
    return outcome(np.array(losses), tried[int(np.argmin(losses))], time.perf_counter() - begin)


def outcome(losses: np.ndarray, log_rates: np.ndarray, seconds: float) -> dict:
    """What a method found, and at what cost."""
    return {
        "validation": float(losses.min()),
        "rates": np.exp(np.asarray(log_rates, float)).tolist(),
        "inner_steps": STEPS * len(losses),
        "seconds": seconds,
        "losses": losses.tolist(),
    }


def on_split(family: il.tasks.optimization.Family, seed: int) -> dict[str, dict]:
    """All methods on one split of the data, one initialisation and one order of mini-batches."""
    episodes = il.tasks.evaluation_episodes(family.tasks, 1, seed, "validation")
    episode, key = jax.tree.map(lambda leaf: leaf[0], episodes), jax.random.key(seed)
    objective = il.meta_objective(family.problem, family.adaptation(SCHEDULE, STEPS))
    run = jax.jit(lambda meta: objective(meta, episode, key)[0])
    value_and_grad = jax.jit(jax.value_and_grad(lambda meta: objective(meta, episode, key)[0]))
    start = SCHEDULE.init(jax.random.key(0), None)
    jax.block_until_ready((run(start), value_and_grad(start)))  # compiles
    found = {"gradient": by_gradient(value_and_grad)}
    for name, log_rates in searches(np.random.default_rng(seed)).items():
        found[name] = by_search(run, log_rates)
    curves = loss_curves(family, SCHEDULE, STEPS)
    others = il.tasks.evaluation_episodes(family.tasks, OTHERS, seed, "test")
    for each in found.values():
        meta = {"log_rates": jnp.log(jnp.asarray(each["rates"], "f4"))}
        each["other_tasks"] = float(last(curves([meta], others, jax.random.key(0))).mean())
    return found


def main() -> None:
    """Run, print and write."""
    family = il.tasks.optimization.mlp_family(il.tasks.optimization.digits_table(), (32,), "relu")
    splits = []
    for seed in range(SPLITS):
        splits.append(on_split(family, seed))
        cells = (
            f"{name} {it['validation']:.4f} in {it['inner_steps']:,} steps, {it['seconds']:.1f} s "
            f"(other tasks {it['other_tasks']:.4f}, rates {np.round(it['rates'], 3)})"
            for name, it in splits[-1].items()
        )
        print(f"split {seed}: " + "; ".join(cells), flush=True)
    ratios = {
        name: [it["gradient"]["validation"] / it[name]["validation"] for it in splits]
        for name in splits[0]
    }
    print({name: np.round(each, 3) for name, each in ratios.items()})
    content = {
        "optimizer": repr(SCHEDULE),
        "searched_rates": [LOW, HIGH],
        "outer_rate": OUTER_RATE,
        "gradient_over_search": ratios,
        "splits": splits,
        "environment": environment(),
    }
    RESULTS.write_text(strict_json(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
