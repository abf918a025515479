"""Learning an optimizer: meta-trained on families of optimization tasks, as one mixture."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from innerloop.errors import StructureError
from innerloop.experiments.base import Experiment, Parts
from innerloop.gradients import EvolutionStrategies, MetaGradient, Unroll
from innerloop.long_horizon import (
    NoiseReuseES,
    OnlineGradient,
    PersistentES,
    TruncatedES,
    TruncatedUnroll,
)
from innerloop.optimizers import (
    Celo2,
    CoordinateLSTM,
    Hypergradient,
    LearnedOptimizer,
    LearnedSchedule,
    ScalarRate,
    SmallMLP,
)
from innerloop.problem import Problem, loss_function
from innerloop.recipes import Recipe
from innerloop.tasks import evaluation_episodes, mixture
from innerloop.tasks.optimization import Family, training_families
from innerloop.training import evaluate, save_optimizer

OptimizerName = Literal["small_mlp", "celo2", "lstm", "schedule", "rate", "hypergradient"]
EstimatorName = Literal[
    "persistent_es",
    "noise_reuse_es",
    "truncated_es",
    "truncated_unroll",
    "evolution_strategies",
    "unroll",
]
LEARNED = "learned.opt"
"""The file of a run's folder that `load_optimizer` reads."""

UNIT_TASKS = 20
"""Tasks over which the first loss of a family, the unit of its losses, is averaged."""


@dataclass(frozen=True)
class OptimizerTraining(Experiment):
    """Learn an optimizer on quadratics, linear models, small networks and a language model.

    The objective is the mean loss over an inner run from a random start, of each family in units of
    the loss before the first step, all families alike. The best by the validation tasks' last loss
    is kept, as meta-parameters and as a file that `load_optimizer` reads.
    """

    steps: int = 5000
    outer_rate: float = 3e-3
    clip_norm: float | None = 1.0
    validate_every: int = 250
    validation_tasks: int = 80
    test_tasks: int = 160
    per_call: int = 10
    non_finite: Literal["stop", "skip", "clip"] = "skip"
    optimizer: OptimizerName = "small_mlp"
    """What is learned: a network for each number of the parameters (small_mlp, celo2, lstm), or the
    rate of Adam, constant (rate), by the step (schedule), or of SGD as it goes (hypergradient)."""
    families: tuple[str, ...] | None = None
    """Names of the training families to learn on; all of them unless given."""
    horizon: int = 200
    """Inner steps of a run, in training, at validation and test."""
    estimator: EstimatorName = "persistent_es"
    """The meta-gradient. Those of a window take --batch runs one window further per outer step;
    evolution_strategies and unroll learn whole runs."""
    window: int = 20
    """Inner steps per outer step, of the estimators that go by windows."""
    pairs: int = 4
    """Antithetic pairs of perturbations, of the evolution strategies."""
    sigma: float = 0.01
    """Their standard deviation."""
    loss_clip: float | None = None
    """The most that a loss of a window counts, in units of the first, also one that is not finite;
    without it a run that diverges is left out."""

    def learned(self) -> LearnedOptimizer:
        """The optimizer that is learned."""
        return OPTIMIZERS[self.optimizer](self)

    def training_families(self) -> list[Family]:
        """The families to learn on. Raises `StructureError` for names that there are not."""
        known = {family.name: family for family in training_families()}
        chosen = self.families or tuple(known)
        if not set(chosen) <= set(known) or len(set(chosen)) < len(chosen):
            raise StructureError(
                "families are training families, each once",
                got="--families " + " ".join(chosen),
                expected=", ".join(known),
                write=f"--families {' '.join(list(known)[:2])}",
            )
        return [known[name] for name in chosen]

    def fit_options(self) -> dict[str, Any]:
        """Nothing else: neither budgets nor checks are for runs that go on over outer steps."""
        return {}

    def steps_at_test(self, recipe: Recipe) -> int:
        """As many as in training."""
        return self.horizon

    def build_recipe(self) -> Recipe:
        """The mixture of all families, their losses as they are."""
        return self._mixed(self.training_families(), ESTIMATORS[self.estimator](self))[0]

    def parts(self) -> Parts:
        """The same, each loss in units of the first."""
        families, gradient = self.training_families(), ESTIMATORS[self.estimator](self)
        for name in ("batch", "validation_tasks", "test_tasks"):
            if getattr(self, name) < len(families):
                raise StructureError(
                    f"{name} holds a task of every family at least",
                    got=f"{name}={getattr(self, name)} for {len(families)} families",
                    expected=f"at least {len(families)}",
                    write=f"--{name.replace('_', '-')} {len(families)}, or fewer --families",
                )
        in_units = [over_the_run(each, first_loss(each)) for each in families]
        recipe, tasks = self._mixed(in_units, gradient)
        return Parts(recipe, tasks, tasks, tasks, "loss", maximise=False, normalisation="none")

    def write_learned(self, parts: Parts, meta: PyTree, folder: Path) -> list[Path]:
        """The optimizer as one file."""
        return [save_optimizer(folder / LEARNED, self.learned(), meta)]

    def _mixed(
        self, families: list[Family], gradient: MetaGradient | OnlineGradient
    ) -> tuple[Recipe, Any]:
        learned = self.learned()
        problems, adaptations, tasks = mixture(
            *(family.kind(learned, self.horizon) for family in families)
        )
        init_meta = lambda key: learned.init(key, families[0].params(key))
        return Recipe(problems, adaptations, gradient, init_meta), tasks


def over_the_run(family: Family, unit: float) -> Family:
    """The family with the mean loss over the inner run, in this unit, for its objective."""
    problem = family.problem
    plain = loss_function("outer_loss", problem.outer_loss, needed_by="a learned optimizer")

    def outer_loss(params: PyTree, meta: PyTree, batch: PyTree, key):
        value, aux = plain(params, meta, batch, key)
        return value / unit, aux

    even = lambda steps: jnp.full(steps + 1, 1 / (steps + 1))
    return family._replace(problem=Problem(problem.init, problem.inner_loss, outer_loss, even))


def first_loss(family: Family) -> float:
    """The mean loss before any step."""
    episodes = evaluation_episodes(family.tasks, UNIT_TASKS, 0, "unit")
    stand = family.adaptation(optax.identity(), 0)
    found = evaluate(family.problem, stand, None, episodes, jax.random.key(0))
    return float(found.mean["loss"][0])


def _of_windows(kind: Callable[..., OnlineGradient], *also: str) -> Callable[..., OnlineGradient]:
    def build(config: OptimizerTraining) -> OnlineGradient:
        settings = {name: getattr(config, name) for name in ("window", "horizon", *also)}
        return kind(**settings, clip=config.loss_clip)

    return build


def _of_runs(build: Callable[[OptimizerTraining], MetaGradient]) -> Callable[..., MetaGradient]:
    def checked(config: OptimizerTraining) -> MetaGradient:
        if config.loss_clip is not None:
            raise StructureError(
                "losses are clipped by the estimators that go by windows",
                got=f"--loss-clip {config.loss_clip} --estimator {config.estimator}",
                expected="no --loss-clip",
                write="--estimator persistent_es, or no --loss-clip",
            )
        return build(config)

    return checked


ESTIMATORS: Mapping[EstimatorName, Callable[[OptimizerTraining], MetaGradient | OnlineGradient]] = {
    "persistent_es": _of_windows(PersistentES, "pairs", "sigma"),
    "noise_reuse_es": _of_windows(NoiseReuseES, "pairs", "sigma"),
    "truncated_es": _of_windows(TruncatedES, "pairs", "sigma"),
    "truncated_unroll": _of_windows(TruncatedUnroll),
    "evolution_strategies": _of_runs(
        lambda config: EvolutionStrategies(config.pairs, config.sigma)
    ),
    "unroll": _of_runs(lambda config: Unroll()),
}

# The second derivative of a square root is infinite at a zero gradient.
_ADAM = functools.partial(optax.scale_by_adam, eps_root=1e-16)

OPTIMIZERS: Mapping[OptimizerName, Callable[[OptimizerTraining], LearnedOptimizer]] = {
    "small_mlp": lambda config: SmallMLP(),
    "celo2": lambda config: Celo2(),
    "lstm": lambda config: CoordinateLSTM(),
    "schedule": lambda config: LearnedSchedule(horizon=config.horizon, direction=_ADAM),
    "rate": lambda config: ScalarRate(_ADAM),
    "hypergradient": lambda config: Hypergradient(),
}
