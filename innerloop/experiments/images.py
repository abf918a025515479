"""What the image experiments share: few-shot classification with a four-block convolutional net."""

import abc
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from innerloop.adaptation import run
from innerloop.experiments.base import Experiment, Parts
from innerloop.gradients.inner import exact_inner_gradient
from innerloop.gradients.loops import store_all
from innerloop.models import Model, conv4, cross_entropy
from innerloop.models.normalisation import per_example, transductive
from innerloop.problem import task_keys
from innerloop.recipes import Recipe, fomaml, maml
from innerloop.tasks import ClassificationTasks, Splits, evaluation_episodes


@dataclass(frozen=True)
class FewShotImages(Experiment):
    """Few-shot image classification with MAML."""

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

    def model(self) -> Model:
        """The strided four-block network."""
        policy = transductive if self.transductive else per_example
        return conv4(self.ways, self.filters, normalisation=policy)

    def recipe(self) -> Recipe:
        """MAML."""
        algorithm = fomaml if self.first_order else maml
        return algorithm(self.model(), cross_entropy, self.inner_rate, self.inner_steps)

    def parts(self) -> Parts:
        """Tasks drawn from disjoint classes."""
        splits = self.splits()
        held_out = (self.ways, self.shots, self.test_queries)
        return Parts(
            self.recipe(),
            ClassificationTasks(splits.train, self.ways, self.shots, self.queries),
            ClassificationTasks(splits.validation, *held_out),
            ClassificationTasks(splits.test, *held_out),
            metric="accuracy",
            maximise=True,
            normalisation=self.model().normalisation,
        )

    def figures(self, parts: Parts, meta: PyTree, folder: Path) -> list[Path]:
        """Three test episodes: what is predicted for the query images after `test_steps` steps."""
        from innerloop.plots import episodes_with_predictions

        episodes = evaluation_episodes(parts.test, 3, self.seed, "figures")
        model = self.model()
        problem, adaptation, *_ = parts.recipe

        @jax.jit
        def learn_and_predict(episode, key):
            state, *_ = run(
                problem,  # pyright: ignore[reportArgumentType]
                adaptation,  # pyright: ignore[reportArgumentType]
                meta,
                episode.support,
                task_keys(key).adapt,
                exact_inner_gradient,
                store_all,
                steps=self.test_steps,
            )
            params = adaptation.params(state)  # pyright: ignore[reportAttributeAccessIssue]
            return jax.nn.softmax(model.apply(params, episode.query.inputs, None, None))

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
