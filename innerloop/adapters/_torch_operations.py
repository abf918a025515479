"""Operations on images that differentiate twice at full speed, in place of those of torchax."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from innerloop.checks import describe, optional_package
from innerloop.errors import StructureError
from innerloop.masks import masked_mean
from innerloop.precision import at_least_float32

ELEMENTWISE = (
    *("add", "sub", "mul", "div", "relu", "leaky_relu", "elu", "gelu", "silu", "hardtanh"),
    *("hardswish", "sigmoid", "tanh"),
)
"""Operations, in place or not, that keep the layout of images."""


@functools.cache
def elementwise_operations() -> set[Any]:
    """The operations of `ELEMENTWISE` as PyTorch dispatches them."""
    aten = optional_package("torch", "from_torch", "torch").ops.aten
    return {getattr(aten, name + in_place) for name in ELEMENTWISE for in_place in ("", "_")}


class ImageOperations:
    """The part of a torchax environment that runs operations on images.

    Images are `(rows, channels, *sizes)` for the module. Matrix products need the channels last, so
    the operations here also keep the result in that layout, for the next of them to begin with.
    The compiler drops the layout that nothing reads.

    Attributes:
        base: The class of torchax's environments.
        ours: The classes of torchax's tensors.
        mask: `(rows,)`, False where a row is padding, or None.
    """

    base: Any
    ours: tuple[type, ...]
    mask: Array | None
    t2j_iso: Any
    j2t_iso: Any

    def on_images(self, func: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        """The result of an operation; NotImplemented if it is left to torchax."""
        torch = optional_package("torch", "from_torch", "torch")
        known = getattr(func, "overloadpacket", None) in elementwise_operations()
        if known and self._in_layout(args):
            return self._elementwise(func, types, args, kwargs)
        own = {
            torch.nn.functional.batch_norm: self._batch_norm,
            torch.nn.functional.max_pool2d: self._max_pool,
            torch.ops.aten.convolution.default: self._convolution,
        }.get(func)
        return NotImplemented if own is None else own(*args, **kwargs)

    def _in_layout(self, args: tuple) -> bool:
        """Whether the channels of the first image are last already."""
        rest = (leaf.ndim for leaf in args[1:] if isinstance(leaf, self.ours))
        return known_layout(args[0]) is not None and {*rest} <= {args[0].ndim}

    def _channels_last(self, image: Any) -> Array:
        known = known_layout(image)
        return jnp.moveaxis(self.t2j_iso(image), 1, -1) if known is None else known

    def _channels_first(self, array: Array, image: Any = None) -> Any:
        """A tensor for the module, or this one with other values; it knows both layouts."""
        first = jnp.moveaxis(array, -1, 1)
        image = self.j2t_iso(first) if image is None else image.apply_jax_(lambda _: first)
        image.layout_ = (first, array)
        return image

    def _elementwise(self, func: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        last = lambda leaf: (
            self.j2t_iso(self._channels_last(leaf)) if isinstance(leaf, self.ours) else leaf
        )
        result = self.base.dispatch(self, func, types, tuple(map(last, args)), kwargs)
        in_place = func.overloadpacket.__name__.endswith("_")
        return self._channels_first(self.t2j_iso(result), args[0] if in_place else None)

    def _batch_norm(
        self, x, mean, variance, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ):
        averages, x = (mean, variance), self._channels_last(x)
        mean, variance, weight, bias = self.t2j_iso((mean, variance, weight, bias))
        if training:
            mean, variance, unbiased = batch_statistics(x, self.mask)
            for average, value in zip(averages, (mean, unbiased), strict=True):
                if average is not None:
                    average.apply_jax_(lambda old, new=value: old + momentum * (new - old))
        y = (at_least_float32(x) - mean) * lax.rsqrt(variance + eps)
        y = y if weight is None else y * weight
        y = y if bias is None else y + bias
        return self._channels_first(y.astype(x.dtype))

    def _max_pool(
        self, x, size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
    ):
        if x.ndim != 4 or ceil_mode or return_indices:
            return NotImplemented
        pair = lambda value: (value,) * 2 if isinstance(value, int) else tuple(value)
        window = (size, size if stride in (None, (), []) else stride, padding, dilation)
        return self._channels_first(max_pool(self._channels_last(x), *map(pair, window)))

    def _convolution(
        self, x, weights, bias, stride, padding, dilation, transposed, output_padding, groups
    ):
        # As for il.models.conv: XLA's convolution is slow on CPU in a gradient of a gradient.
        if jax.default_backend() != "cpu" or transposed or groups != 1:
            return NotImplemented
        x, (weights, bias) = self._channels_last(x), self.t2j_iso((weights, bias))
        # PyTorch gives one number for all axes with padding="valid".
        of_each_axis = lambda window: tuple(window) * (1 if len(window) > 1 else x.ndim - 2)
        windows = map(of_each_axis, (stride, padding, dilation))
        y = convolution_as_matmul(x, weights, *windows)
        return self._channels_first(y if bias is None else y + bias)


def known_layout(image: Any) -> Array | None:
    """The values with the channels last, unless the tensor was changed since they were noted."""
    first, last = getattr(image, "layout_", (None, None))
    return last if first is not None and image.jax() is first else None


def batch_statistics(x: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Mean, variance, and the unbiased variance of the running average, each `(channels,)`."""
    if mask is not None and x.shape[0] != mask.shape[0]:
        raise StructureError(
            "batch normalisation sees other rows than those of the mask",
            got=f"{describe(x)} for a mask of {mask.shape[0]} rows",
            expected="batches without a mask, or one row for each example",
        )
    wide = at_least_float32(x)
    axes = tuple(range(x.ndim - 1))
    mean = masked_mean(wide, mask, axes)
    variance = masked_mean(jnp.square(wide - mean), mask, axes)
    rows = x.shape[0] if mask is None else jnp.sum(mask)
    count = rows * math.prod(x.shape[1:-1])
    return mean, variance, variance * (count / jnp.maximum(count - 1, 1)).astype(variance.dtype)


Window = Sequence[int]
"""One number for each axis of an image."""


def shifted_copies(x: Array, window: Window, stride: Window, dilation: Window) -> list[Array]:
    """For each entry of a window, its values at all positions: `(rows, *positions, channels)`.

    Args:
        x: `(rows, *sizes, channels)`.
        window: The number of entries.
        stride: The step between windows.
        dilation: The step between the entries of a window.
    """
    axes = range(len(window))
    span = [dilation[i] * (window[i] - 1) + 1 for i in axes]
    reach = [(x.shape[i + 1] - span[i]) // stride[i] * stride[i] + 1 for i in axes]

    def entry(offsets: Window) -> Array:
        begin = [dilation[i] * offsets[i] for i in axes]
        return x[(slice(None), *(slice(begin[i], begin[i] + reach[i], stride[i]) for i in axes))]

    return [entry(offsets) for offsets in itertools.product(*map(range, window))]


def padded(x: Array, padding: Window, value: float) -> Array:
    """The images, `(rows, *sizes, channels)`, with a border of `value`."""
    return jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)), constant_values=value)


def convolution_as_matmul(
    x: Array, weights: Array, stride: Window, padding: Window, dilation: Window
) -> Array:
    """PyTorch's convolution without groups, as one matrix product of shifted copies.

    Args:
        x: `(rows, *sizes, inputs)`.
        weights: `(outputs, inputs, *window)`.
        stride: The step between windows.
        padding: The number of zeros at both ends.
        dilation: The step between the entries of a window.
    """
    outputs, inputs, *window = weights.shape
    copies = shifted_copies(padded(x, padding, 0.0), window, stride, dilation)
    columns = jnp.concatenate([copy.reshape(-1, inputs) for copy in copies], axis=1)
    flat = columns @ jnp.moveaxis(weights, (0, 1), (-1, -2)).reshape(-1, outputs)
    return flat.reshape(*copies[0].shape[:-1], outputs)


def max_pool(x: Array, window: Window, stride: Window, padding: Window, dilation: Window) -> Array:
    """PyTorch's max pooling of images, `(rows, *sizes, channels)`.

    The first of several largest entries has the derivative. Derivatives of any order are
    selections, where those of XLA's pooling are scatters.
    """
    copies = shifted_copies(padded(x, padding, -jnp.inf), window, stride, dilation)
    larger = lambda first, second: jnp.where((second > first) | jnp.isnan(second), second, first)
    return functools.reduce(larger, copies)
