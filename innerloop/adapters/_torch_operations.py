"""How torchax runs a module: the operations that are not those of torchax."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from innerloop.checks import describe, optional_package
from innerloop.errors import StructureError
from innerloop.masks import masked_mean
from innerloop.precision import at_least_float32


def environment(key: PRNGKeyArray | None, mask: Array | None) -> Any:
    """A torchax environment for one forward pass.

    - Random numbers come from `key`.
    - Batch normalisation leaves out padded rows, and updates running averages in place.
    - Max pooling, and on CPU convolutions, differentiate twice at full speed.
    - Tensors that are neither parameters nor buffers of the module are constants.
    - Results of operations under `torch.no_grad()` are constants for every derivative.

    Args:
        key: The key of this pass; None if the network may not draw at random.
        mask: `(rows,)`, False where a row is padding, or None.
    """
    torch = optional_package("torch", "from_torch", "torch")
    torchax = optional_package("torchax", "from_torch", "torch")
    ours = (torchax.tensor.Tensor, torchax.tensor.View)
    # A tensor without axes does not promote the dtype of others; torchax takes it as a number.
    is_constant = lambda leaf: (
        isinstance(leaf, torch.Tensor) and not isinstance(leaf, ours) and leaf.ndim > 0
    )

    class Environment(torchax.tensor.Environment):
        def get_and_rotate_prng_key(self, generator=None):
            nonlocal key
            if generator is not None:
                return super().get_and_rotate_prng_key(generator)
            if key is None:
                raise StructureError(
                    "the network draws at random, and this pass has no key",
                    got="key=None",
                    expected="a key, such as jax.random.key(0)",
                )
            key, own = jax.random.split(key)
            return own

        def dispatch(self, func, types, args, kwargs):
            given = jax.tree.leaves((args, kwargs))
            if not any(isinstance(leaf, ours) for leaf in given):
                return super().dispatch(func, types, args, kwargs)
            constant = lambda leaf: self.j2t_iso(self.t2j_copy(leaf)) if is_constant(leaf) else leaf
            args, kwargs = jax.tree.map(constant, (args, kwargs or {}))
            own = {
                torch.nn.functional.batch_norm: self.batch_norm,
                torch.nn.functional.max_pool2d: self.max_pool,
                torch.ops.aten.convolution.default: self.convolution,
            }.get(func)
            result = NotImplemented if own is None else own(*args, **kwargs)
            if result is NotImplemented:
                result = super().dispatch(func, types, args, kwargs)
            if torch.is_grad_enabled():
                return result
            old = {id(leaf) for leaf in given}
            is_new = lambda leaf: isinstance(leaf, ours[0]) and id(leaf) not in old
            return jax.tree.map(lambda leaf: leaf.detach() if is_new(leaf) else leaf, result)

        def batch_norm(
            self, x, mean, variance, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
        ):
            averages = (mean, variance)
            x, mean, variance, weight, bias = self.t2j_iso((x, mean, variance, weight, bias))
            if training:
                mean, variance, unbiased = batch_statistics(x, mask)
                for average, value in zip(averages, (mean, unbiased), strict=True):
                    if average is not None:
                        average.apply_jax_(lambda old, new=value: old + momentum * (new - old))
            y = at_least_float32(x) - per_channel(mean, x.ndim)
            y = y * per_channel(lax.rsqrt(variance + eps), x.ndim)
            y = y if weight is None else y * per_channel(weight, x.ndim)
            y = y if bias is None else y + per_channel(bias, x.ndim)
            return self.j2t_iso(y.astype(x.dtype))

        def max_pool(
            self, x, size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
        ):
            if x.ndim != 4 or ceil_mode or return_indices:
                return NotImplemented
            pair = lambda value: (value,) * 2 if isinstance(value, int) else tuple(value)
            window = (size, size if stride in (None, (), []) else stride, padding, dilation)
            return self.j2t_iso(max_pool(self.t2j_iso(x), *map(pair, window)))

        def convolution(
            self, x, weights, bias, stride, padding, dilation, transposed, output_padding, groups
        ):
            # As for il.models.conv: XLA's convolution is slow on CPU in a gradient of a gradient.
            if jax.default_backend() != "cpu" or transposed or groups != 1:
                return NotImplemented
            x, weights, bias = self.t2j_iso((x, weights, bias))
            y = convolution_as_matmul(x, weights, stride, padding, dilation)
            return self.j2t_iso(y if bias is None else y + per_channel(bias, y.ndim))

    return Environment()


def per_channel(values: Array, rank: int) -> Array:
    """`(channels,)` as `(1, channels, 1, ...)`."""
    return values.reshape((1, -1) + (1,) * (rank - 2))


def batch_statistics(x: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Mean, variance, and the unbiased variance of the running average, each `(channels,)`."""
    if mask is not None and x.shape[0] != mask.shape[0]:
        raise StructureError(
            "batch normalisation sees other rows than those of the mask",
            got=f"{describe(x)} for a mask of {mask.shape[0]} rows",
            expected="batches without a mask, or one row for each example",
        )
    wide = at_least_float32(x)
    axes = (0, *range(2, x.ndim))
    mean = masked_mean(wide, mask, axes)
    variance = masked_mean(jnp.square(wide - per_channel(mean, x.ndim)), mask, axes)
    rows = x.shape[0] if mask is None else jnp.sum(mask)
    count = rows * math.prod(x.shape[2:])
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


def channels_last(x: Array, padding: Window, value: float) -> Array:
    """`(rows, channels, *sizes)` as `(rows, *padded sizes, channels)`."""
    widths = ((0, 0), *((p, p) for p in padding), (0, 0))
    return jnp.pad(jnp.moveaxis(x, 1, -1), widths, constant_values=value)


def convolution_as_matmul(
    x: Array, weights: Array, stride: Window, padding: Window, dilation: Window
) -> Array:
    """PyTorch's convolution without groups, as one matrix product of shifted copies.

    Args:
        x: `(rows, inputs, *sizes)`.
        weights: `(outputs, inputs, *window)`.
        stride: The step between windows.
        padding: The number of zeros at both ends.
        dilation: The step between the entries of a window.
    """
    outputs, inputs, *window = weights.shape
    copies = shifted_copies(channels_last(x, padding, 0.0), window, stride, dilation)
    columns = jnp.concatenate([copy.reshape(-1, inputs) for copy in copies], axis=1)
    flat = columns @ jnp.moveaxis(weights, (0, 1), (-1, -2)).reshape(-1, outputs)
    return jnp.moveaxis(flat.reshape(*copies[0].shape[:-1], outputs), -1, 1)


def max_pool(x: Array, window: Window, stride: Window, padding: Window, dilation: Window) -> Array:
    """PyTorch's max pooling of `(rows, channels, *sizes)`.

    The first of several largest entries has the derivative. Derivatives of any order are
    selections, where those of XLA's pooling are scatters.
    """
    copies = shifted_copies(channels_last(x, padding, -jnp.inf), window, stride, dilation)
    larger = lambda first, second: jnp.where((second > first) | jnp.isnan(second), second, first)
    return jnp.moveaxis(functools.reduce(larger, copies), -1, 1)
