"""Implicit differentiation against a ten times longer unroll: `python benchmarks/implicit.py`.

Ridge and logistic regression on scikit-learn's digits, the strength of the penalty meta-learned.
Writes `results/implicit.json` and `docs/images/implicit.png`: the relative error of the
meta-gradient against the number of inner steps, and against the tolerance of CG.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from sklearn.datasets import load_digits

import innerloop as il
from innerloop.lab.plots.style import new_figure
from innerloop.lab.run_folder import environment

RESULTS = Path(__file__).parent / "results" / "implicit.json"
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "implicit.png"
STEPS = (10, 30, 100, 300, 1000, 3000)
TOLERANCES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
META = {"log_strength": jnp.array(np.log(0.05))}


def data() -> il.Episode:
    """Digits 3 against 8: 60 support and 100 query rows of 64 pixels, targets -1 and 1."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, (3, 8))
    x, y = images[chosen] / 16, np.where(labels[chosen] == 3, 1.0, -1.0)
    order = np.random.default_rng(0).permutation(len(y))
    part = lambda rows: il.Examples(jnp.asarray(x[rows]), jnp.asarray(y[rows]))
    return il.Episode(part(order[:60]), part(order[60:160]))


def regression(loss) -> il.Problem:
    """Linear model, loss of the margin or residual, and a learned ridge penalty."""

    def fit(params, batch):
        return jnp.mean(loss(batch.inputs @ params, batch.targets))

    def inner(params, meta, batch, key):
        return fit(params, batch) + jnp.exp(meta["log_strength"]) * jnp.sum(params**2) / 2

    outer = lambda params, meta, batch, key: fit(params, batch)
    return il.Problem(lambda meta, support, key: jnp.zeros(64), inner, outer)


PROBLEMS = {
    "ridge": (regression(lambda z, y: (z - y) ** 2 / 2), 0.1),
    "logistic": (regression(lambda z, y: jnp.logaddexp(0.0, -y * z)), 0.4),
}


def gradient(problem, rate, steps, estimator) -> float:
    """The meta-gradient after `steps` inner steps."""
    learn = il.GradientDescent(optax.sgd(rate), steps)
    f = jax.jit(jax.grad(il.meta_objective(problem, learn, estimator), has_aux=True))
    return float(f(META, data(), jax.random.key(0))[0]["log_strength"])


def measure() -> dict:
    """Relative errors, per problem."""
    result = {}
    tight = il.Implicit(lx.CG(1e-13, 1e-13, max_steps=1000))
    for name, (problem, rate) in PROBLEMS.items():
        exact = gradient(problem, rate, 10 * STEPS[-1], il.Unroll(loop=il.Binomial(20)))
        error = lambda value, exact=exact: abs(value / exact - 1)
        by_steps = {
            kind: [error(gradient(problem, rate, k, estimator)) for k in STEPS]
            for kind, estimator in (("implicit", tight), ("unroll", il.Unroll()))
        }
        by_tolerance = [
            error(gradient(problem, rate, STEPS[-1], il.Implicit(lx.CG(t, t)))) for t in TOLERANCES
        ]
        result[name] = {
            "gradient": exact,
            "reference": f"Unroll over {10 * STEPS[-1]} steps",
            "rate": rate,
            "error_by_steps": by_steps,
            "error_by_tolerance": by_tolerance,
        }
    return result


def draw(result: dict) -> None:
    """Two panels: error by inner steps, error by tolerance."""
    colours = {"ridge": "#0072B2", "logistic": "#E69F00"}
    with new_figure(FIGURE, (10.0, 4.2)) as (figure, done):
        left, right = figure.subplots(1, 2, sharey=True)
        for name, values in result.items():
            for kind, style in (("implicit", "-"), ("unroll", "--")):
                errors = np.maximum(values["error_by_steps"][kind], 1e-15)
                left.loglog(
                    STEPS, errors, style, marker="o", color=colours[name], label=f"{name}, {kind}"
                )
            errors = np.maximum(values["error_by_tolerance"], 1e-15)
            right.loglog(TOLERANCES, errors, marker="o", color=colours[name], label=name)
        left.set(xlabel="inner steps", ylabel="relative error of the meta-gradient")
        right.set(xlabel=f"tolerance of CG, after {STEPS[-1]} inner steps")
        right.invert_xaxis()
        left.legend()
        right.legend()
        done()


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    META = {"log_strength": jnp.array(np.log(0.05))}
    measured = measure()
    record = {"steps": STEPS, "tolerances": TOLERANCES, "environment": environment()} | measured
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    draw(measured)
    print(json.dumps(measured, indent=1))
