"""Bias and variance of online estimators: `python benchmarks/long_horizon.py`.

Influence balancing, runs of 100 inner steps, meta = 0.5. Writes `results/long-horizon.json` and
`docs/images/long-horizon.png`: the mean of each estimate and its standard deviation, relative to
the exact gradient, against the window and against the number of pairs. The deviation is that of one
window's estimate, and that of their mean over one run, for which the same inner steps are taken
whatever the window.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import innerloop as il
from innerloop.lab.plots.style import BLUE, GREEN, INK, ORANGE, RED, new_figure, plain_log_ticks
from innerloop.lab.run_folder import environment

RESULTS = Path(__file__).parent / "results" / "long-horizon.json"
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "long-horizon.png"
HORIZON, RUNS, SIGMA, META = 100, 2000, 0.1, 0.5
WINDOWS, PAIRS, WINDOW = (1, 5, 20, 50, 100), (1, 4, 16, 64), 5
PROBLEM, DYNAMICS, TASKS = il.tasks.influence_balancing()
STOCHASTIC = {
    "TruncatedES": (il.estimators.TruncatedES, ORANGE),
    "NoiseReuseES": (il.estimators.NoiseReuseES, GREEN),
    "PersistentES": (il.estimators.PersistentES, BLUE),
}


def of_one_run(kind: type[il.estimators.OnlineWindows], window: int, *settings: Any):
    """The estimator that follows one run at a time."""
    return kind(PROBLEM, DYNAMICS, TASKS, window, HORIZON, 1, *settings)


def estimates(estimator: il.estimators.OnlineWindows, runs: int) -> np.ndarray:
    """Those of every window of `runs` whole runs, `(runs, windows)`, meta standing still."""
    meta = jnp.asarray(META)

    def one_run(key):
        def window(state, i):
            estimate, state = estimator.step(meta, state, None, key, i)
            return state, estimate.grads

        state = estimator.init(meta, key)
        return jax.lax.scan(window, state, jnp.arange(HORIZON // estimator.window))[1]

    keys = jax.random.split(jax.random.key(estimator.window), runs)
    return np.asarray(jax.jit(jax.vmap(one_run))(keys))


def measured(estimator: il.estimators.OnlineWindows, exact: float, runs: int = RUNS) -> dict:
    """Mean and standard deviations, relative to the exact gradient."""
    found = estimates(estimator, runs) / exact
    of_run = float(np.std(found.mean(axis=1), ddof=1)) if runs > 1 else 0.0
    return {
        "mean": float(np.mean(found)),
        "standard_error": of_run / np.sqrt(runs),
        "deviation_of_a_run": of_run,
        "deviation_of_a_window": float(np.std(found)) if runs > 1 else 0.0,
    }


def measure() -> dict:
    """All estimators over all windows, and over pairs at one of them."""
    objective = il.meta_objective(PROBLEM, il.GradientDescent(DYNAMICS.optimizer, HORIZON))
    episode = jax.tree.map(lambda leaf: leaf[0], TASKS.sample(jax.random.key(0), 1))
    slope = jax.grad(objective, has_aux=True)
    exact = float(slope(jnp.asarray(META), episode, jax.random.key(0))[0])
    by_window = {
        "TruncatedUnroll": [
            measured(of_one_run(il.estimators.TruncatedUnroll, w), exact, 1) for w in WINDOWS
        ]
    }
    by_pairs = {}
    for name, (kind, _) in STOCHASTIC.items():
        by_window[name] = [measured(of_one_run(kind, w, 1, SIGMA), exact) for w in WINDOWS]
        of_pairs = [of_one_run(kind, WINDOW, n, SIGMA) for n in PAIRS]
        by_pairs[name] = [measured(each, exact, 4 * RUNS // each.pairs) for each in of_pairs]
    return {
        "problem": "influence_balancing()",
        "meta": META,
        "horizon": HORIZON,
        "sigma": SIGMA,
        "runs": f"{RUNS}, and {4 * RUNS} / pairs where pairs vary",
        "exact_gradient": exact,
        "by_window": {"windows": WINDOWS, "pairs": 1, **by_window},
        "by_pairs": {"pairs": PAIRS, "window": WINDOW, **by_pairs},
        "environment": environment(),
    }


def draw(result: dict) -> Path:
    """Mean against window; deviations against window and against pairs."""
    with new_figure(FIGURE, (11, 3.8)) as (figure, done):
        mean, window, pairs = panels = figure.subplots(1, 3)
        titles = ("Mean", "Standard deviation, 1 pair", f"Standard deviation, window {WINDOW}")
        for axes, title, label, ticks in zip(
            panels, titles, ("window", "window", "pairs"), (WINDOWS, WINDOWS, PAIRS), strict=True
        ):
            axes.set_title(title)
            axes.set_xlabel(label)
            axes.set_xscale("log")
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
        mean.set_ylabel("relative to the exact gradient")
        mean.axhline(0, color=INK, linewidth=0.8)
        mean.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        by_window, by_pairs = result["by_window"], result["by_pairs"]
        biased = values(by_window["TruncatedUnroll"], "mean")
        mean.plot(WINDOWS, biased, color=RED, marker="s", label="TruncatedUnroll")
        for name, (_, colour) in STOCHASTIC.items():
            rows, look = by_window[name], {"color": colour, "marker": "o", "markersize": 5}
            error = 1.96 * values(rows, "standard_error")
            mean.errorbar(WINDOWS, values(rows, "mean"), error, label=name, **look)
            for what, line in (("deviation_of_a_window", "-"), ("deviation_of_a_run", "--")):
                window.plot(WINDOWS, values(rows, what), linestyle=line, **look)
                pairs.plot(PAIRS, values(by_pairs[name], what), linestyle=line, **look)
        mean.legend()
        for axes in (window, pairs):
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis, 100)
        for line, label in (("-", "of one window's estimate"), ("--", "of their mean over a run")):
            window.plot([], [], color=INK, linestyle=line, label=label)
        window.legend(loc="lower right")
        return done()


def values(rows: list[dict], what: str) -> np.ndarray:
    """One figure of several measurements."""
    return np.array([row[what] for row in rows])


if __name__ == "__main__":
    result = measure()
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(draw(result))
