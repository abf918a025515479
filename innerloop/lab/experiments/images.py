"""The common part of image experiments: few-shot classification with a four-block conv net."""

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from innerloop import models
from innerloop.errors import StructureError
from innerloop.lab.experiments.base import Parts
from innerloop.lab.experiments.few_shot import FewShot, ThreeTasks, learned_tasks
from innerloop.lab.experiments.ranges import PositiveInt, Ways
from innerloop.lab.plots import episodes_with_predictions
from innerloop.models.normalisation import per_example, transductive
from innerloop.recipes import Network, Recipe, named_recipe
from innerloop.tasks import ClassificationTasks, LabelledRows, RandomAffine, Splits
from innerloop.tasks.augmentation import Augment, Augmented

# Of MAML on 5-way Omniglot; the recipe's defaults are for sinusoids.
_OMNIGLOT_5_WAY = {"rate": 0.4, "steps": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "maml": _OMNIGLOT_5_WAY,
    "fomaml": _OMNIGLOT_5_WAY,
    "anil": {"rate": 0.4},
    "reptile": {"rows": 10},
    "r2d2": {"scale": 10.0},  # Classes are regressed: a difference of 1 is not yet certain.
}
# Shots in training, for recipes that learn little from as few shots as at test.
_TRAIN_SHOTS = {"reptile": 10}


@dataclass(frozen=True)
class FewShotImages(FewShot, abc.ABC):
    """Few-shot image classification."""

    image: ClassVar[tuple[int, int]] = (28, 28)
    """Height and width in pixels."""
    channels: ClassVar[int] = 1
    settings: ClassVar[dict[str, dict[str, Any]]] = SETTINGS
    """Hyper-parameters by recipe, where those of its paper are for other data."""
    judged: ClassVar[tuple[str, bool, bool]] = ("accuracy", True, True)
    augmentation: ClassVar[Augment] = RandomAffine(degrees=10, shift=2)

    ways: Ways = 5
    """Classes per task."""
    train_ways: Ways | None = None
    """Classes per task in training, for a recipe without parameters of each class; as at test by
    default. Prototypical networks are trained with more (Snell et al. 2017)."""
    shots: int = 1
    """Support images per class at validation and test."""
    train_shots: PositiveInt | None = None
    """Support images per class in training; as at test by default, and 10 for Reptile."""
    queries: PositiveInt = 5
    """Query images per class in training."""
    test_queries: PositiveInt = 15
    """Query images per class at validation and test."""
    filters: PositiveInt = 64
    """Filters per convolution."""
    network: Literal["strided", "max_pool"] = "strided"
    """Between the four blocks: convolutions with stride 2, and a mean over positions (MAML's on
    Omniglot), or 2 x 2 max pooling (that of matching and prototypical networks)."""
    augment: bool = False
    """Augment the training images: photographs by crops and mirror images, drawings by turns of up
    to 10 degrees and shifts of up to 2 pixels (1 of digits)."""
    transductive: bool = True
    """Normalise with the statistics of the current batch, in training and at test (MAML's protocol:
    predictions depend on the other query images). Otherwise each example by itself."""

    @abc.abstractmethod
    def splits(self) -> Splits:
        """Meta-training, meta-validation and meta-test classes."""

    def build_network(self, ways: int | None = None) -> Network:
        """The four-block network, for tasks of as many ways as at test by default."""
        ways = self.ways if ways is None else ways
        sizes: dict[str, Any] = {"filters": self.filters, "channels": self.channels}
        sizes["normalisation"] = transductive if self.transductive else per_example
        pooled = self.image if self.network == "max_pool" else None
        features = models.conv_features(**sizes, pooled=pooled)
        width = self.filters if pooled is None else models.pooled_width(pooled, self.filters)
        model = models.linear_head(features, width, ways)
        classes = lambda: len(self.splits().train)
        return Network(model, features, width, ways, models.cross_entropy, classes)

    def build_recipe(self) -> Recipe:
        """The recipe for the network."""
        recipe = self._recipe_of(self.ways)
        if self.train_ways in (None, self.ways):
            return recipe
        training = self._recipe_of(self.train_ways)
        shapes = [jax.eval_shape(each.init_meta, jax.random.key(0)) for each in (training, recipe)]
        if not eqx.tree_equal(*shapes):
            raise StructureError(
                f"{self.recipe} learns parameters of each class, which other ways do not have",
                got=f"train_ways={self.train_ways}, ways={self.ways}",
                expected="as many ways in training as at test",
            )
        return training._replace(predict=recipe.predict, tested=recipe.learner)

    def _recipe_of(self, ways: int | None) -> Recipe:
        defaults, network = self.recipe_settings(), self.build_network(ways)
        if "rows" in defaults:  # Of a mini-batch: no more than the support set has.
            support = (self.train_ways or self.ways) * self._shots_in_training()
            defaults = defaults | {"rows": min(defaults["rows"], support)}
        return named_recipe(self.recipe, network, defaults, **self.inner_settings())

    def _shots_in_training(self) -> int:
        return self.train_shots or _TRAIN_SHOTS.get(self.recipe, self.shots)

    def recipe_settings(self) -> dict[str, Any]:
        """The recipe's hyper-parameters that differ from its own defaults."""
        return self.settings.get(self.recipe, {})

    def build_tasks(self) -> ThreeTasks:
        """Tasks drawn from disjoint classes."""
        splits, ways = self.splits(), self.train_ways or self.ways
        train = ClassificationTasks(splits.train, ways, self._shots_in_training(), self.queries)
        if self.recipe == "pretrain_finetune":  # Of all classes at once.
            train = LabelledRows(splits.train, rows=ways * self.queries)
        if self.augment:
            train = Augmented(train, self.augmentation)
        sizes = (self.ways, self.shots, self.test_queries)
        validation = ClassificationTasks(splits.validation, *sizes)
        return train, validation, ClassificationTasks(splits.test, *sizes)

    def write_learned(self, parts: Parts, meta: PyTree, folder: Path) -> list[Path]:
        """Three test episodes, with the predictions of the query images after the last step."""
        (held_out,) = parts.held_out.values()
        shown = []
        for episode, logits in learned_tasks(held_out, meta, 3, self.seed):
            probability = np.asarray(jax.nn.softmax(logits[-1]))
            shown.append(
                {
                    "support_images": episode.support.inputs,
                    "support_labels": episode.support.targets,
                    "query_images": episode.query.inputs,
                    "query_labels": episode.query.targets,
                    "predictions": probability.argmax(axis=1),
                    "probability": probability.max(axis=1),
                }
            )
        return [episodes_with_predictions(folder / "episodes.png", shown)]
