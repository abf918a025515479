"""A learned optimizer, meta-trained on a weighted sum of families of optimization tasks."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop import estimators as online
from innerloop import gradients, optimizers
from innerloop.errors import StructureError
from innerloop.estimators import Estimator, WeightedSum, WholeTasks
from innerloop.lab.experiments.base import Experiment, HeldOut, Parts
from innerloop.lab.experiments.ranges import PositiveInt, Rate
from innerloop.learner import Learner
from innerloop.normal_form import loss_function
from innerloop.problem import Problem
from innerloop.tasks.optimization import Family, held_out_families, training_families

OptimizerName = Literal[
    "adam_controller", "small_mlp", "celo2", "lstm", "schedule", "rate", "hypergradient"
]
EstimatorName = Literal[
    "unroll",
    "persistent_es",
    "noise_reuse_es",
    "truncated_es",
    "truncated_unroll",
    "evolution_strategies",
]
FLOOR = 1e-4
"""Added to a loss before its logarithm: a loss far below this counts as solved."""

FORMULA_WEIGHT = 0.25
"""Weight of a family without mini-batches; families of data have weight 1. The log-loss of a
quadratic falls without end and is easily learned, by steps that are too large for networks."""

JUDGED = 2
"""Rows by which the experiment judges a run, for each row that a step sees."""


@dataclass(frozen=True)
class OptimizerTraining(Experiment):
    """Learn an optimizer on quadratics, linear models and small networks.

    The objective is the logarithm of the loss, which has no unit: half of it after the last step of
    an inner run from a random start, half as the mean over the run. `FORMULA_WEIGHT` is the weight
    of quadratics, and `log_loss` documents the rows. Validation and test have the same objective.
    The best by the validation tasks' last log-loss is kept, as meta-parameters and as a file that
    `load_optimizer` reads.
    """

    steps: int = 2000
    batch: int = 20
    outer_rate: float = 1e-3
    weight_decay: float = 0.3
    clip_norm: float | None = 1.0
    averaging: float = 0.99
    validate_every: int = 1000
    validation_tasks: int = 160
    test_tasks: int = 160
    per_call: int = 10
    non_finite: Literal["stop", "skip", "clip"] = "skip"
    optimizer: OptimizerName = "adam_controller"
    """What is learned: a network that steers Adam for each array (adam_controller), one for each
    number of the parameters (small_mlp, celo2, lstm), or the rate of Adam, constant (rate), by the
    step (schedule), or of SGD as it goes (hypergradient)."""
    families: tuple[str, ...] | None = None
    """Names of the families to learn on; all training families by default."""
    horizon: PositiveInt = 100
    """Inner steps of a run, in training, at validation and test."""
    estimator: EstimatorName = "unroll"
    """How the gradient is estimated. unroll and evolution_strategies learn whole runs; the others
    advance --batch runs by one window per outer step."""
    bound: Rate | None = 0.3
    """The largest norm of the cotangent that unroll passes back through an inner step's gradient,
    for families with mini-batches, whose gradients explode at the edge of stability otherwise. None
    for the exact gradient."""
    task_norm: Rate | None = 1.0
    """The largest norm of a task's meta-gradient, for the estimators of whole runs. Longer ones, of
    runs at the edge of stability, are clipped to it."""
    window: PositiveInt = 20
    """Inner steps per outer step, for the estimators that go by windows."""
    pairs: PositiveInt = 4
    """Antithetic pairs of perturbations, for the evolution strategies."""
    sigma: Rate = 0.01
    """The standard deviation of the perturbations."""
    loss_clip: Rate | None = None
    """The largest log-loss of a window, to which larger ones and those that are not finite are set.
    Without it a run that diverges is left out."""

    def learned(self) -> optimizers.LearnedOptimizer:
        """The optimizer that is learned."""
        return _LEARNED[self.optimizer](self)

    def training_families(self) -> list[Family]:
        """The families to learn on. Raises `StructureError` for unknown names."""
        return training_families() if self.families is None else named_families(self.families)

    def init_meta(self, key: PRNGKeyArray) -> PyTree:
        """The initial meta-parameters of the optimizer."""
        return self.learned().init(key, self.training_families()[0].params(key))

    def parts(self) -> Parts:
        """The weighted sum of all families; each has its share of every set of tasks."""
        families = self.training_families()
        for name in ("batch", "validation_tasks", "test_tasks"):
            if getattr(self, name) < len(families):
                raise StructureError(
                    f"{name} holds a task of every family at least",
                    got=f"{name}={getattr(self, name)} for {len(families)} families",
                    expected=f"at least {len(families)}",
                    write=f"--{name.replace('_', '-')} {len(families)}",
                )
        learned = self.learned()
        weights = [FORMULA_WEIGHT if family.batch is None else 1.0 for family in families]
        counts = (self.batch, self.validation_tasks, self.test_tasks)
        shares = zip(*(share_out(count, weights) for count in counts), strict=True)
        estimators, held_out = {}, {}
        for family, weight, share in zip(families, weights, shares, strict=True):
            batch, validation, test = share
            objective = log_loss(family)
            learner = Learner(objective.problem, objective.adaptation(learned, self.horizon))
            estimator = ESTIMATORS[self.estimator](self, family, learner, batch)
            estimators[family.name] = (estimator, weight)
            sets = (family.tasks, validation, family.tasks, test)
            held_out[family.name] = HeldOut(learner, *sets, self.horizon)
        return Parts(WeightedSum(**estimators), held_out, self.horizon)

    def write_learned(self, parts: Parts, meta: PyTree, folder: Path) -> list[Path]:
        """The optimizer as one file, which `load_optimizer` reads."""
        return [optimizers.save_optimizer(folder / "learned.opt", self.learned(), meta)]


def named_families(names: tuple[str, ...]) -> list[Family]:
    """Training and held-out families by name. Raises `StructureError` for unknown names."""
    known = {family.name: family for family in training_families() + held_out_families()}
    if names and set(names) <= set(known) and len(set(names)) == len(names):
        return [known[name] for name in names]
    raise StructureError(
        "families are training or held-out families, each once",
        got="--families " + " ".join(names),
        expected=", ".join(known),
        write=f"--families {' '.join(list(known)[:2])}",
    )


def log_loss(family: Family) -> Family:
    """The family with an objective that is the logarithm of the loss, over the run and at its end.

    Where inner steps see mini-batches, a run is judged by `JUDGED` times as many rows of its query
    set, drawn once for all its steps: after every step the whole set would cost more than the step.
    `innerloop evaluate` judges by the whole set.
    """
    problem = family.problem
    plain = loss_function("outer_loss", problem, needed_by="a learned optimizer")

    def outer_loss(params: PyTree, meta: PyTree, batch: PyTree, key):
        rows_key, key = jax.random.split(key)
        if family.batch is not None:
            rows = len(jax.tree.leaves(batch)[0])
            drawn = jax.random.permutation(rows_key, rows)[: JUDGED * family.batch]
            batch = jax.tree.map(lambda leaf: leaf[drawn], batch)
        value, aux = plain(params, meta, batch, key)
        return jnp.log(value + FLOOR), aux

    return family._replace(
        problem=Problem(problem.init, problem.inner_loss, outer_loss, half_at_the_end)
    )


def half_at_the_end(steps: int) -> jax.Array:
    """Weights of the losses after 0 ... K steps: half for the last, half shared by all."""
    return jnp.full(steps + 1, 0.5 / (steps + 1)).at[-1].add(0.5)


def share_out(n: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to n, at least 1 each; the rest by weight and largest remainder."""
    spare = n - len(weights)
    shares = spare * (np.asarray(weights) / sum(weights))
    counts = np.floor(shares).astype(int)
    by_remainder = np.argsort(counts - shares, kind="stable")
    counts[by_remainder[: spare - counts.sum()]] += 1
    return (counts + 1).tolist()


Build = Callable[["OptimizerTraining", Family, Learner, int], Estimator]
"""`(config, family, learner, batch) -> estimator`, the estimator of a family."""


def _of_windows(kind: Callable[..., Estimator], *also: str) -> Build:
    def build(config: OptimizerTraining, family: Family, learner: Learner, batch: int):
        settings = {name: getattr(config, name) for name in ("window", "horizon", "chunk", *also)}
        where = (learner.problem, learner.adaptation, family.tasks)
        return kind(*where, batch=batch, clip=config.loss_clip, **settings)

    return build


def _of_runs(of_family: Callable[[OptimizerTraining, Family], gradients.MetaGradient]) -> Build:
    def build(config: OptimizerTraining, family: Family, learner: Learner, batch: int):
        if config.loss_clip is not None:
            raise StructureError(
                "losses are clipped by the estimators that go by windows",
                got=f"--loss-clip {config.loss_clip} --estimator {config.estimator}",
                expected="no --loss-clip, or --estimator persistent_es",
            )
        gradient = of_family(config, family)
        if config.task_norm is not None:
            gradient = gradients.Clipped(gradient, config.task_norm)
        where = (learner.problem, learner.adaptation, gradient, family.tasks)
        return WholeTasks(*where, batch, chunk=config.chunk)

    return build


def _unroll(config: OptimizerTraining, family: Family) -> gradients.MetaGradient:
    if config.bound is None or family.batch is None:
        return gradients.Unroll(gradients.MixedMode())
    return gradients.Unroll(gradients.Bound(config.bound, of=gradients.MixedMode()))


ESTIMATORS: Mapping[EstimatorName, Build] = {
    "unroll": _of_runs(_unroll),
    "persistent_es": _of_windows(online.PersistentES, "pairs", "sigma"),
    "noise_reuse_es": _of_windows(online.NoiseReuseES, "pairs", "sigma"),
    "truncated_es": _of_windows(online.TruncatedES, "pairs", "sigma"),
    "truncated_unroll": _of_windows(online.TruncatedUnroll),
    "evolution_strategies": _of_runs(
        lambda config, family: gradients.EvolutionStrategies(config.pairs, config.sigma)
    ),
}

# The second derivative of a square root is infinite at a zero gradient.
_ADAM = functools.partial(optax.scale_by_adam, eps_root=1e-16)

_LEARNED: Mapping[OptimizerName, Callable[[OptimizerTraining], optimizers.LearnedOptimizer]] = {
    "adam_controller": lambda config: optimizers.AdamController(horizon=config.horizon),
    "small_mlp": lambda config: optimizers.SmallMLP(),
    "celo2": lambda config: optimizers.Celo2(),
    "lstm": lambda config: optimizers.CoordinateLSTM(),
    "schedule": lambda config: optimizers.LearnedSchedule(
        horizon=max(config.horizon, 2), direction=_ADAM
    ),
    "rate": lambda config: optimizers.ScalarRate(_ADAM),
    "hypergradient": lambda config: optimizers.Hypergradient(),
}
