"""What gradients through whole runs of a learned optimizer say, exact and bounded.

    python benchmarks/bounded.py

writes results/bounded.json. `AdamController` trains a network and a language model for 100 steps:
before meta-training, at rates around the nominal one, and as published beside
results/learned-optimizer.md. Of 16 tasks each, the norm of the meta-gradient of the log-loss, and
its signal-to-noise ratio: the squared norm of the mean over tasks, less what the noise adds to it,
over the variance of one task.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree
from runs import RESULTS

import innerloop as il
from innerloop.lab.experiments.learned_optimizer import log_loss, named_families
from innerloop.lab.run_folder import environment
from innerloop.storage.files import strict_json
from innerloop.tasks.optimization import Family

STEPS, TASKS = 100, 16
FAMILIES = ("digits-32-relu", "text")
TIMES_NOMINAL = (0.3, 1.0, 3.0)
LEARNED = il.optimizers.AdamController(STEPS)
ESTIMATORS = {
    "exact": il.Unroll(il.MixedMode()),
    "bounded by 1": il.Unroll(il.gradients.Bound(1.0, of=il.MixedMode())),
    "bounded by 0.3": il.Unroll(il.gradients.Bound(0.3, of=il.MixedMode())),
}


def metas(family: Family) -> dict[str, PyTree]:
    """Where gradients are taken, by name."""
    untrained = LEARNED.init(jax.random.key(0), family.params(jax.random.key(0)))

    def at(times: float) -> PyTree:
        bias = untrained["head"]["bias"].at[0].set(jnp.log(times))
        return untrained | {"head": untrained["head"] | {"bias": bias}}

    found = {f"{times:g} times the nominal rate": at(times) for times in TIMES_NOMINAL}
    _, published = il.optimizers.load_optimizer(RESULTS / "learned-optimizer.opt")
    return found | {"meta-trained": published}


def signal_to_noise(gradients: np.ndarray) -> float:
    """Of one task, from the gradients of several; 0 where the mean is no longer than by chance."""
    mean, tasks = gradients.mean(axis=0), len(gradients)
    variance = ((gradients - mean) ** 2).sum() / (tasks - 1)
    return float(max((mean**2).sum() - variance / tasks, 0) / variance)


def measured(family: str, gradient: il.extend.MetaGradient) -> dict[str, dict[str, float]]:
    """Norms and signal-to-noise, by where they are taken."""
    (plain,) = named_families((family,))
    objective = log_loss(plain)
    episodes = plain.tasks.sample(jax.random.key(1), TASKS)
    keys = jax.random.split(jax.random.key(2), TASKS)
    of_task = il.meta_objective(objective.problem, objective.adaptation(LEARNED, STEPS), gradient)
    flat = lambda meta, *task: ravel_pytree(jax.grad(lambda m: of_task(m, *task)[0])(meta))[0]
    each = jax.jit(lambda meta: jax.lax.map(lambda task: flat(meta, *task), (episodes, keys)))
    found = {}
    for name, meta in metas(plain).items():
        gradients = np.asarray(each(meta), np.float64)
        norms = np.linalg.norm(gradients, axis=1)
        found[name] = {
            "median_norm": float(np.median(norms)),
            "largest_norm": float(norms.max()),
            "signal_to_noise": signal_to_noise(gradients),
        }
        print(family, gradient, name, found[name], flush=True)
    return found


def main() -> None:
    """Measure and write."""
    found = {
        family: {name: measured(family, gradient) for name, gradient in ESTIMATORS.items()}
        for family in FAMILIES
    }
    content = {"families": found, "environment": environment()}
    (RESULTS / "bounded.json").write_text(strict_json(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
