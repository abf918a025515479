"""Sinusoid regression: the MAML paper's first experiment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from innerloop.lab.experiments.base import Parts
from innerloop.lab.experiments.few_shot import FewShot, ThreeTasks, learned_tasks
from innerloop.lab.experiments.ranges import PositiveInt
from innerloop.lab.plots import sinusoid_fits
from innerloop.models import mean_squared_error, mlp, mlp_features
from innerloop.recipes import Network, Recipe, named_recipe
from innerloop.recipes.table import RegressionRecipe
from innerloop.tasks import SinusoidTasks


@dataclass(frozen=True)
class Sinusoid(FewShot):
    """Regression to sinusoids (Finn et al. 2017, section 5.1): trained 10-shot, tested 5-shot.

    MAML's paper trains with 1 inner step. Beyond it such a start is fragile: one task in some
    thousand diverges, and that one ruins the mean. So half of the outer loss is taken after 1 step
    and half after the others (multi-step loss, Antoniou et al. 2019), and the average of the
    meta-parameters is kept. `--inner-steps 1 --averaging 0` is the paper's training.
    """

    steps: int = 20_000
    batch: int = 25
    recipe: RegressionRecipe = "maml"
    cosine: bool = False
    averaging: float = 0.999
    validate_every: int = 1000
    validation_tasks: int = 10_000
    test_tasks: int = 10_000
    per_call: int = 500
    shots: int = 5
    """Support points at validation and test."""
    train_shots: PositiveInt | None = 10
    """Support points in training; None for as many as at test."""
    width: PositiveInt = 40
    """Units in each of the two hidden layers."""

    def build_network(self) -> Network:
        """A network of two hidden layers."""
        sizes = [1, self.width, self.width]
        return Network(
            mlp([*sizes, 1]), mlp_features(sizes), self.width, outputs=1, loss=mean_squared_error
        )

    def build_recipe(self) -> Recipe:
        """The recipe for the network; MAML with a multi-step loss."""
        defaults = _SETTINGS.get(self.recipe, {})
        return named_recipe(self.recipe, self.build_network(), defaults, **self.inner_settings())

    def build_tasks(self) -> ThreeTasks:
        """Sinusoids: with as many query points as support points in training, and 100 at test."""
        test = SinusoidTasks(self.shots, 100)
        points = self.shots if self.train_shots is None else self.train_shots
        return SinusoidTasks(points, points), test, test

    def write_learned(self, parts: Parts, meta: PyTree, folder: Path) -> list[Path]:
        """Four test tasks: true function, support points, and the fits after some steps."""
        (held_out,) = parts.held_out.values()
        shown = [step for step in (0, 1, 5, 10) if step <= (held_out.steps or 0)]
        tasks = [
            {
                "x": episode.query.inputs[:, 0],
                "truth": episode.query.targets[:, 0],  # They have no noise.
                "support_x": episode.support.inputs[:, 0],
                "support_y": episode.support.targets[:, 0],
                "fits": {step: fits[step, :, 0] for step in shown},
            }
            for episode, fits in learned_tasks(held_out, meta, 4, self.seed)
        ]
        return [sinusoid_fits(folder / "fits.png", tasks, shown)]


def half_after_one_step(steps: int) -> np.ndarray:
    """Weights of the outer losses after 0 ... K steps: ½ after the first, the rest shared."""
    weights = np.zeros(steps + 1)
    weights[2:] = 0.5 / max(steps - 1, 1)
    weights[min(steps, 1)] = 1 - weights[2:].sum()
    return weights


_MULTI_STEP = {"steps": 3, "step_weights": half_after_one_step}
_ONE_STEP = {"rate": 0.01, "steps": 1}
# Other values than the recipes' defaults, which are for images except in MAML.
_SETTINGS: dict[str, dict[str, Any]] = {
    "maml": _MULTI_STEP,
    "fomaml": _MULTI_STEP,
    "anil": _ONE_STEP,
    "boil": _ONE_STEP,
    "maml_plus_plus": {"rate": 0.01, "steps": 3},
    "cavia": {"steps": 1},
    "imaml": {"rate": 0.005},
    "reptile": {"rate": 0.005, "steps": 10, "rows": 10},
}
