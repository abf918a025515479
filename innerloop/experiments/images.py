"""What the image experiments share: few-shot classification with a four-block convolutional net."""

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from innerloop.adaptation import run
from innerloop.experiments.base import Experiment, Parts
from innerloop.gradients.inner import exact_inner_gradient
from innerloop.gradients.loops import store_all
from innerloop.models import conv4, conv_features, cross_entropy
from innerloop.models.normalisation import per_example, transductive
from innerloop.problem import task_keys
from innerloop.recipes import Network, Recipe, named_recipe
from innerloop.tasks import ClassificationTasks, LabelledImages, Splits, evaluation_episodes

# MAML's 5-way Omniglot, where the recipe has the sinusoids' for defaults.
_OMNIGLOT_5_WAY = {"rate": 0.4, "steps": 1}
SETTINGS: dict[str, dict[str, Any]] = {"maml": _OMNIGLOT_5_WAY, "fomaml": _OMNIGLOT_5_WAY}


@dataclass(frozen=True)
class FewShotImages(Experiment):
    """Few-shot image classification."""

    ways: int = 5
    """Classes per task."""
    shots: int = 1
    """Support images per class."""
    queries: int = 5
    """Query images per class in training."""
    test_queries: int = 15
    """Query images per class at validation and test."""
    filters: int = 64
    """Filters per convolution."""
    transductive: bool = True
    """Normalise with the statistics of the batch at hand, in training and test alike (MAML's
    protocol: predictions depend on the other query images). Otherwise each example by itself."""

    @abc.abstractmethod
    def splits(self) -> Splits:
        """Meta-training, meta-validation and meta-test classes."""

    def network(self) -> Network:
        """The strided four-block network."""
        policy = transductive if self.transductive else per_example
        return Network(
            model=conv4(self.ways, self.filters, normalisation=policy),
            features=conv_features(self.filters, normalisation=policy),
            width=self.filters,
            outputs=self.ways,
            loss=cross_entropy,
            classes=lambda: len(self.splits().train),
        )

    def build_recipe(self) -> Recipe:
        """The recipe for the network."""
        defaults = SETTINGS.get(self.recipe, {})
        return named_recipe(self.recipe, self.network(), defaults, **self.inner_settings())

    def parts(self) -> Parts:
        """Tasks drawn from disjoint classes."""
        recipe, splits = self.build_recipe(), self.splits()
        train = ClassificationTasks(splits.train, self.ways, self.shots, self.queries)
        if recipe.tested is not None:  # pretraining: of all classes at once
            train = LabelledImages(splits.train, rows=self.ways * self.queries)
        held_out = (self.ways, self.shots, self.test_queries)
        return Parts(
            recipe,
            train,
            ClassificationTasks(splits.validation, *held_out),
            ClassificationTasks(splits.test, *held_out),
            metric="accuracy",
            maximise=True,
            normalisation=self.network().model.normalisation,
        )

    def figures(self, parts: Parts, meta: PyTree, folder: Path) -> list[Path]:
        """Three test episodes: what is predicted for the query images after the steps at test."""
        from innerloop.plots import episodes_with_predictions

        episodes = evaluation_episodes(parts.test, 3, self.seed, "figures")
        problem, adaptation = parts.recipe.at_test
        predict = parts.recipe.predict

        @jax.jit
        def learn_and_predict(episode, key):
            state, *_ = run(
                problem,
                adaptation,
                meta,
                episode.support,
                task_keys(key).adapt,
                exact_inner_gradient,
                store_all,
                steps=self.steps_at_test(parts.recipe),
            )
            params = adaptation.params(state)
            return jax.nn.softmax(predict(params, meta, episode.query, key))  # pyright: ignore[reportOptionalCall]

        shown = []
        for i in range(3):
            episode = jax.tree.map(lambda leaf, i=i: leaf[i], episodes)
            probability = np.asarray(learn_and_predict(episode, jax.random.key(i)))
            shown.append(
                {
                    "support_images": np.asarray(episode.support.inputs[..., 0]),
                    "support_labels": np.asarray(episode.support.targets),
                    "query_images": np.asarray(episode.query.inputs[..., 0]),
                    "query_labels": np.asarray(episode.query.targets),
                    "predictions": probability.argmax(axis=1),
                    "probability": probability.max(axis=1),
                }
            )
        return [episodes_with_predictions(folder / "episodes.png", shown)]
