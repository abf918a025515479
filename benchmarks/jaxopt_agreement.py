"""Our implicit meta-gradient against jaxopt's: `python benchmarks/jaxopt_agreement.py`.

jaxopt is abandoned, so it lives in an environment of its own (`pip install jaxopt`). Ridge and
logistic regression from `benchmarks/implicit.py`; writes `results/jaxopt-agreement.json`.
"""

import functools
import json
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxopt
import lineax as lx
import optimistix as optx
from implicit import META, PROBLEMS, data

import innerloop as il

RESULTS = Path(__file__).parent / "results" / "jaxopt-agreement.json"


def relative_difference(problem: il.Problem) -> float:
    """Of the two libraries' gradients of the outer loss in the log of the penalty's strength."""
    key, episode = jax.random.key(0), data()
    meta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), META)
    learn = il.Minimise(optx.BFGS(1e-10, 1e-10))
    f = il.meta_objective(problem, learn, il.Implicit(lx.CG(1e-12, 1e-12)))
    ours = jax.grad(f, has_aux=True)(meta, episode, key)[0]["log_strength"]

    def theirs(meta):
        inner = lambda params, meta: problem.inner_loss(params, meta, episode.support, key)
        # Its own tolerance of the linear solve is 1e-5.
        solve = functools.partial(jaxopt.linear_solve.solve_cg, tol=1e-12, maxiter=1000)
        solver = jaxopt.LBFGS(
            inner, tol=1e-12, maxiter=2000, implicit_diff=True, implicit_diff_solve=solve
        )
        params = solver.run(jnp.zeros(64), meta).params
        return problem.outer_loss(params, meta, episode.query, key)

    return float(abs(jax.grad(theirs)(meta)["log_strength"] / ours - 1))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    record = {
        "versions": {name: version(name) for name in ("jax", "jaxopt", "optimistix", "lineax")},
        "relative_difference": {
            name: relative_difference(problem) for name, (problem, _) in PROBLEMS.items()
        },
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
