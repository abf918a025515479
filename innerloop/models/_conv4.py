"""The four-block convolutional network of few-shot learning, in its two forms."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from innerloop.arguments import at_least, checked, each, or_none, random_key
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.models.base import Model, model_inputs
from innerloop.models.head import linear_head
from innerloop.models.layers import GLOROT, conv, conv_init, max_pool
from innerloop.models.normalisation import Normalisation, transductive

Image = tuple[int, int]
"""Height and width in pixels."""

COUNT = at_least(1)
IMAGE = each(at_least(1, such_as=28), length=2)


@checked(ways=at_least(1, such_as=5))
def conv4(
    ways: int,
    filters: int = 64,
    channels: int = 1,
    *,
    pooled: Image | None = None,
    blocks: int = 4,
    normalisation: Normalisation = transductive,
    weights: Initializer = GLOROT,
) -> Model:
    """`conv_features`, then a linear head with `ways` outputs: `(rows, ...) -> (rows, ways)`.

    MAML's network for Omniglot is `conv4(ways)` (Finn et al. 2017). The head starts from Glorot
    weights; the authors' code draws them from N(0, 1), which is `linear_head(conv_features(), 64,
    ways, weights=jax.nn.initializers.normal(1.0))`. The network of matching networks (Vinyals et
    al. 2016) is `conv4(ways, pooled=(28, 28))`, and MAML's for miniImageNet `conv4(5, filters=32,
    channels=3, pooled=(84, 84))`.

    For the other arguments, the parameters and the errors, see `conv_features` and `linear_head`.

    Args:
        ways: The number of classes.
    """
    options: Any = {"blocks": blocks, "normalisation": normalisation, "weights": weights}
    features = conv_features(filters, channels, pooled=pooled, **options)
    width = filters if pooled is None else pooled_width(pooled, filters, blocks)
    return linear_head(features, width, ways)


@checked(filters=COUNT, channels=COUNT, pooled=or_none(IMAGE), blocks=COUNT)
def conv_features(
    filters: int = 64,
    channels: int = 1,
    *,
    pooled: Image | None = None,
    blocks: int = 4,
    normalisation: Normalisation = transductive,
    weights: Initializer = GLOROT,
) -> Model:
    """Blocks of 3 × 3 convolution, normalisation and relu, in one of two forms.

    The convolutions have stride 2, and a mean over positions follows the last block:
    `(rows, height, width, channels) -> (rows, filters)`, for images of any size. 28 becomes
    14, 7, 4, 2 before the mean.

    With `pooled`, the convolutions have stride 1, 2 × 2 max pooling follows each block, and the
    result is flattened: `(rows, *pooled, channels) -> (rows, pooled_width(pooled, filters,
    blocks))`. 28 becomes 14, 7, 3, 1, so 28 × 28 images give `filters` features. This is the
    embedding of prototypical networks (Snell et al. 2017), with about four times the
    multiplications.

    Parameters: a list of `{"weights": (3, 3, inputs, filters), "normalisation": ...}`.

    Args:
        filters: The number of filters of each convolution.
        channels: The number of channels of the images.
        pooled: Height and width of the images in pixels, for the form with max pooling; None for
            the form with strides.
        blocks: The number of blocks.
        normalisation: The normalisation policy; `transductive` is MAML's, and makes predictions
            depend on the other rows of the batch.
        weights: Initialises the convolutions, which have no bias.

    Raises:
        StructureError: If a size is not a positive integer or a side of `pooled` is smaller than
            `2**blocks` pixels, and while tracing if the images are not `(rows, height, width,
            channels)`.
    """
    width = None if pooled is None else pooled_width(pooled, filters, blocks)

    @checked("init", key=random_key())
    def init(key: PRNGKeyArray) -> PyTree[Array]:
        inputs = [channels] + [filters] * (blocks - 1)
        return [
            {
                "weights": conv_init(block_key, block_inputs, filters, weights=weights),
                "normalisation": normalisation.init(filters),
            }
            for block_key, block_inputs in zip(jax.random.split(key, blocks), inputs, strict=True)
        ]

    def apply(params, inputs, key, mask) -> Float[Array, "rows outputs"]:
        x = _images(params, inputs, mask, pooled)
        for layer in params:
            x = conv(layer["weights"], x, stride=2 if pooled is None else 1)
            x = jax.nn.relu(normalisation.apply(layer["normalisation"], x, mask))
            x = x if pooled is None else max_pool(x)
        return jnp.mean(x, axis=(1, 2)) if width is None else x.reshape(x.shape[0], width)

    return Model(init, apply, normalisation.name)


@checked(image=IMAGE, filters=COUNT, blocks=COUNT)
def pooled_width(image: Image, filters: int = 64, blocks: int = 4) -> int:
    """The number of features of `conv_features` with `pooled=image`: filters times positions.

    Raises:
        StructureError: If nothing remains of the image.
    """
    height, width = image
    smallest = 2**blocks
    if min(height, width) < smallest:
        raise StructureError(
            f"nothing remains of the image after {blocks} poolings by 2",
            got=f"image={height} × {width}, blocks={blocks}",
            expected=f"at least {smallest} × {smallest} pixels",
            write=f"conv4(..., blocks={max(min(height, width).bit_length() - 1, 1)}), or "
            "conv4(..., pooled=None)",
        )
    return filters * (height // smallest) * (width // smallest)


def _images(
    params: PyTree[Array], inputs: ArrayLike, mask: Array | None, image: Image | None
) -> Float[Array, "rows height width channels"]:
    """The inputs in the parameters' dtype, after a check of their shape."""
    first = params[0]["weights"]
    x = model_inputs(inputs, first.dtype, mask)
    channels = first.shape[2]
    fits = x.ndim == 4 and x.shape[3] == channels and min(x.shape[1:3]) > 0
    if not fits or (image is not None and x.shape[1:3] != tuple(image)):
        size = "height, width" if image is None else f"{image[0]}, {image[1]}"
        raise StructureError(
            "the inputs are not images that this network takes",
            got=describe(x),
            expected=f"shape (rows, {size}, {channels})",
        )
    return x
