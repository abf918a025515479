"""Ordinary classification of all classes at once, as tasks for pretraining."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from innerloop.arguments import CheckedModule, at_least
from innerloop.problem import Episode, Examples
from innerloop.tasks.base import sample_each
from innerloop.tasks.image_classes import ImageClasses, turn
from innerloop.tasks.images import as_classes, as_unit_interval


class LabelledImages(CheckedModule):
    """Batches of labelled images, whose labels are numbers of all classes.

    All tasks have the same distribution: `rows` images, drawn independently and uniformly over
    classes and examples. The target is the number of the image's class in `images`. Support and
    query are the same `Examples`, like those of `ClassificationTasks` except for the labels and
    their order.

    Args:
        images: An `ImageClasses`, or an array by class, as in `ClassificationTasks`.
        rows: Images per task.

    Raises:
        StructureError: If `rows` is below 1.
    """

    images: ImageClasses = eqx.field(converter=as_classes)
    rows: int = at_least(1, such_as=25, static=True)

    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """One batch."""
        class_key, example_key = jax.random.split(key)
        targets = jax.random.randint(class_key, (self.rows,), 0, len(self.images), jnp.int32)
        row, turns = self.images.classes[targets, 0], self.images.classes[targets, 1]
        counts = self.images.counts
        number = self.images.images.shape[1] if counts is None else counts[row]
        example = jax.random.randint(example_key, (self.rows,), 0, number, jnp.int32)
        images = self.images.images[row, example]
        if self.images.turned:
            images = turn(images[:, None], turns)[:, 0]
        examples = Examples(as_unit_interval(images), targets)
        return Episode(examples, examples)

    def sample(self, key: PRNGKeyArray, n: int) -> Episode:
        """A batch of `n` episodes. Raises `StructureError` for `n < 1`."""
        return sample_each(self.sample_one, key, n)
