"""Augmentation of images on the device, as a task distribution around another."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, PRNGKeyArray

from innerloop.arguments import CheckedModule, at_least, between, each, function, with_methods
from innerloop.checks import describe, explained
from innerloop.errors import StructureError
from innerloop.masks import blank_rows
from innerloop.problem import Episode, Examples
from innerloop.tasks.base import OneByOne, TaskDistribution, sampled
from innerloop.trees import element

Images = Float[Array, "rows height width channels"]

Augment = Callable[[PRNGKeyArray, Array], Array]
"""`(key, images) -> images`, both `(rows, height, width, channels)`, each row by itself."""


class Augmented(OneByOne):
    """The tasks of another distribution, with their images augmented.

    Support and query are augmented alike, each image by draws of its own. Use it for meta-training
    and leave the tasks of validation and test as they are:

    ```python
    train = il.tasks.Augmented(
        tasks, il.tasks.Compose((il.tasks.RandomCrop(4), il.tasks.RandomHorizontalFlip()))
    )
    ```

    Masked rows stay zeros.

    Args:
        tasks: A task distribution whose support and query sets are `Examples` of images.
        augment: `(key, images) -> images`, of the same shape and type.

    Raises:
        StructureError: While tracing, if the episodes do not hold images or the images change
            their shape or type.
    """

    tasks: TaskDistribution = with_methods(
        "sample", what="a task distribution", such_as="tasks.IndependentTasks(sample_one)"
    )
    augment: Augment = function("key", "images", gives="images")

    def sample_one(self, key: PRNGKeyArray) -> Episode:
        """One task."""
        draw_key, support_key, query_key = jax.random.split(key, 3)
        episode = element(sampled(self.tasks, draw_key, 1), 0)
        support = self._augmented(support_key, episode.support)
        return Episode(support, self._augmented(query_key, episode.query), episode.weight)

    def _augmented(self, key: PRNGKeyArray, examples: Examples) -> Examples:
        images: Any = examples.inputs if isinstance(examples, Examples) else None
        if jnp.ndim(images) != 4:
            raise StructureError(
                "there are no images to augment",
                got=f"a support or query set {describe(examples)}",
                expected="Examples with inputs (rows, height, width, channels)",
                write="Augmented(ClassificationTasks(images, 5, 1, 15), augment)",
            )
        changed = explained("augment", self.augment, "key", "images")(key, images)
        if (changed.shape, changed.dtype) != (images.shape, images.dtype):
            raise StructureError(
                "augmentation changes the images' shape or type",
                got=f"{describe(images)} became {describe(changed)}",
                expected="the same shape and type",
            )
        return eqx.tree_at(lambda e: e.inputs, examples, blank_rows(changed, examples.mask))


class Compose(CheckedModule):
    """Several augmentations, one after the other."""

    parts: tuple[Augment, ...] = each(function("key", "images", gives="images"))

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        for part, part_key in zip(self.parts, jax.random.split(key, len(self.parts)), strict=True):
            images = part(part_key, images)
        return images


class RandomCrop(CheckedModule):
    """Adds a margin of zeros around the image and cuts out a random part of the original size.

    Args:
        padding: Pixels of the margin on each side, which is also the largest shift.
    """

    padding: int = at_least(1, such_as=4, static=True)

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        margin = (self.padding, self.padding)
        padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))
        corners = jax.random.randint(key, (len(images), 2), 0, 2 * self.padding + 1, jnp.int32)
        crop = lambda image, corner: jax.lax.dynamic_slice(
            image, (corner[0], corner[1], jnp.int32(0)), images.shape[1:]
        )
        return jax.vmap(crop)(padded, corners)


class RandomHorizontalFlip(eqx.Module):
    """Exchanges left and right in half of the images."""

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
        return jnp.where(flipped, images[:, :, ::-1], images)


class RandomAffine(CheckedModule):
    """Turns about the centre and shifts by uniform draws; outside the image there are zeros.

    Between pixels the image is interpolated linearly.

    Args:
        degrees: The largest turn in degrees, in either direction, from 0 to 180.
        shift: The largest shift along each axis in pixels, in either direction, at least 0.
    """

    degrees: int | float = between(0, 180, static=True)
    shift: int | float = between(0, math.inf, static=True)

    def __call__(self, key: PRNGKeyArray, images: Images) -> Images:
        rows, height, width, _ = images.shape
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        turn_key, shift_key = jax.random.split(key)
        angles = jnp.deg2rad(self.degrees) * jax.random.uniform(turn_key, (rows,), dtype, -1, 1)
        shifts = self.shift * jax.random.uniform(shift_key, (rows, 2), dtype, -1, 1)
        centre = jnp.array([(height - 1) / 2, (width - 1) / 2], dtype)
        grid = jnp.stack(jnp.mgrid[:height, :width], axis=-1).astype(dtype) - centre[None, None]

        def move(image: Array, angle: Array, shift: Array) -> Array:
            cos, sin = jnp.cos(angle), jnp.sin(angle)
            back = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
            at = (grid - shift[None, None]) @ back + centre[None, None]
            channel = lambda values: map_coordinates(values, [at[..., 0], at[..., 1]], order=1)
            return jax.vmap(channel, in_axes=2, out_axes=2)(image)

        return jax.vmap(move)(images.astype(dtype), angles, shifts).astype(images.dtype)
