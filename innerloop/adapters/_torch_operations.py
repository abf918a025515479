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

from innerloop.adapters._torch_views import Memories, makes_views, name_of, refuse_out_of_date
from innerloop.checks import describe, optional_package
from innerloop.errors import StructureError
from innerloop.masks import masked_mean
from innerloop.precision import at_least_float32

ELEMENTWISE = (
    *("add", "sub", "mul", "div", "relu", "leaky_relu", "elu", "gelu", "silu", "hardtanh"),
    *("hardswish", "sigmoid", "tanh"),
)
"""Operations, in place or not, that keep the layout of images."""


ROWS = 4099
"""What PyTorch takes for the number of rows of a program that is exported for any number.

A prime number that is no size of a layer, so that the arguments that PyTorch computes from it are
found and replaced. The module itself never sees it.
"""


def environment(key: PRNGKeyArray | None, mask: Array | None, rows: Any) -> Any:
    """A torchax environment for one forward pass.

    - Random numbers come from `key`.
    - Batch normalisation leaves out padded rows, and updates running averages in place.
    - Max pooling, and on CPU convolutions, differentiate twice at full speed.
    - Tensors that are neither parameters nor buffers of the module are constants.
    - Results of operations under `torch.no_grad()` are constants for every derivative.
    - A program for any number of rows is right, or an error: torchax gives PyTorch one row.
    - A change in place that torchax would lose, in a view or in its base, is an error.

    Images are `(rows, channels, *sizes)` for the module. Matrix products need the channels last, so
    the operations here also keep the result in that layout, for the next of them to begin with.
    The compiler drops the layout that nothing reads.

    Args:
        key: The key of this pass; None if the network may not draw at random.
        mask: `(rows,)`, False where a row is padding, or None.
        rows: The number of rows, of which JAX may know the name alone.
    """
    torch = optional_package("torch", "from_torch", "torch")
    torchax = optional_package("torchax", "from_torch", "torch")
    functional, aten = torch.nn.functional, torch.ops.aten
    ours = (torchax.tensor.Tensor, torchax.tensor.View)
    elementwise = {getattr(aten, name + in_place) for name in ELEMENTWISE for in_place in ("", "_")}
    # A tensor without axes does not promote the dtype of others; torchax takes it as a number.
    is_constant = lambda leaf: (
        isinstance(leaf, torch.Tensor) and not isinstance(leaf, ours) and leaf.ndim > 0
    )

    class Tensor(torchax.tensor.Tensor):
        """A tensor whose methods that are no operations for torchax are noted too."""

        @staticmethod
        def __new__(cls, elem, env, requires_grad=False):
            shape = [for_torch(size, rows) for size in elem.shape]
            mappings = optional_package("torchax.ops.mappings", "from_torch", "torch")
            options = {"dtype": mappings.j2t_dtype(elem.dtype), "device": "meta"}
            return torch.Tensor._make_wrapper_subclass(cls, shape, **options)

        type_as = torch.Tensor.type_as

        def flatten(self, start_dim=0, end_dim=-1):
            return self._env.noted(super().flatten(start_dim, end_dim), of=self)

        def detach(self):
            return self._env.noted(super().detach(), of=self)

    size = lambda x, dim=None: torch.Size(x.jax().shape) if dim is None else x.jax().shape[dim]
    numel = lambda x: math.prod(x.jax().shape)
    sizes = {
        torch.Tensor.size: size,
        **dict.fromkeys((torch.numel, torch.Tensor.numel, torch.Tensor.nelement), numel),
    }

    class Environment(torchax.tensor.Environment):
        def __init__(self):
            super().__init__()
            self.memories = Memories(torchax.tensor.View)
            self.operation = ""

        def noted(self, view, of):
            view = self.own(view)
            self.memories.note_view(of, [view], divided=False)
            return view

        def constant_of(self, tensor):
            constant = torchax.tensor.Tensor.detach(tensor)
            is_view = id(tensor) in self.memories.known
            return self.noted(constant, tensor) if is_view else self.own(constant)

        def own(self, result):
            """The result of an operation with tensors of this environment in it."""
            is_other = lambda leaf: type(leaf) is torchax.tensor.Tensor
            own = lambda leaf: Tensor(leaf.jax(), self) if is_other(leaf) else leaf
            return jax.tree.map(own, result)

        def j2t_iso(self, jaxarray):
            return self.own(super().j2t_iso(jaxarray))

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
            within, self.operation = self.operation, self.operation or name_of(func)
            try:
                return self.run(func, types, args, kwargs)
            finally:
                self.operation = within

        def run(self, func, types, args, kwargs):
            given = jax.tree.leaves((args, kwargs))
            tensors = [leaf for leaf in given if isinstance(leaf, ours)]
            if not isinstance(rows, int):
                args, kwargs = jax.tree.map(lambda x: for_jax(x, rows), (args, kwargs or {}))
            if not tensors:
                return self.own(super().dispatch(func, types, args, kwargs))
            if func in sizes:
                return sizes[func](*args, **(kwargs or {}))
            out_of_date = self.memories.out_of_date(tensors)
            constant = lambda leaf: self.j2t_iso(self.t2j_copy(leaf)) if is_constant(leaf) else leaf
            args, kwargs = jax.tree.map(constant, (args, kwargs or {}))
            own = {
                functional.batch_norm: self.batch_norm,
                functional.max_pool2d: self.max_pool,
                aten.convolution.default: self.convolution,
            }.get(func)
            if getattr(func, "overloadpacket", None) in elementwise and self.in_layout(args):
                result = self.elementwise(func, types, args, kwargs)
            else:
                result = NotImplemented if own is None else own(*args, **kwargs)
            if result is NotImplemented:
                # An operation that torchax does not know is left here, for the parts of it.
                result = super().dispatch(func, types, args, kwargs)
            result = self.own(result)
            refuse_out_of_date(out_of_date, self.operation)
            self.memories.note_changes(tensors, self.operation)
            old = {id(leaf) for leaf in given}
            is_new = lambda leaf: isinstance(leaf, ours[0]) and id(leaf) not in old
            if not torch.is_grad_enabled():
                result = jax.tree.map(lambda x: self.constant_of(x) if is_new(x) else x, result)
            new = [leaf for leaf in jax.tree.leaves(result) if is_new(leaf)]
            if makes_views(func):
                same = [leaf for leaf in new if leaf.dtype == tensors[0].dtype]
                divided = isinstance(result, list | tuple)
                self.memories.note_view(tensors[0], same, divided=divided)
            return result

        def finish(self, tree):
            """Ends the pass, whose results these are."""
            tensors = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, ours)]
            refuse_out_of_date(self.memories.out_of_date(tensors), "the end of the forward pass")
            self.memories.known.clear()

        def in_layout(self, args) -> bool:
            """Whether the channels of the first image are last already."""
            rest = (leaf.ndim for leaf in args[1:] if isinstance(leaf, ours))
            return known_layout(args[0]) is not None and {*rest} <= {args[0].ndim}

        def channels_last(self, image):
            known = known_layout(image)
            return jnp.moveaxis(self.t2j_iso(image), 1, -1) if known is None else known

        def channels_first(self, array, image=None):
            """A tensor for the module, or this one with other values; it knows both layouts."""
            first = jnp.moveaxis(array, -1, 1)
            image = self.j2t_iso(first) if image is None else image.apply_jax_(lambda _: first)
            image.layout_ = (first, array)
            return image

        def elementwise(self, func, types, args, kwargs):
            last = lambda leaf: (
                self.j2t_iso(self.channels_last(leaf)) if isinstance(leaf, ours) else leaf
            )
            result = super().dispatch(func, types, tuple(map(last, args)), kwargs)
            in_place = func.overloadpacket.__name__.endswith("_")
            return self.channels_first(self.t2j_iso(result), args[0] if in_place else None)

        def batch_norm(
            self, x, mean, variance, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
        ):
            averages, x = (mean, variance), self.channels_last(x)
            mean, variance, weight, bias = self.t2j_iso((mean, variance, weight, bias))
            if training:
                mean, variance, unbiased = batch_statistics(x, mask)
                for average, value in zip(averages, (mean, unbiased), strict=True):
                    if average is not None:
                        average.apply_jax_(lambda old, new=value: old + momentum * (new - old))
            y = (at_least_float32(x) - mean) * lax.rsqrt(variance + eps)
            y = y if weight is None else y * weight
            y = y if bias is None else y + bias
            return self.channels_first(y.astype(x.dtype))

        def max_pool(
            self, x, size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
        ):
            if x.ndim != 4 or ceil_mode or return_indices:
                return NotImplemented
            pair = lambda value: (value,) * 2 if isinstance(value, int) else tuple(value)
            window = (size, size if stride in (None, (), []) else stride, padding, dilation)
            return self.channels_first(max_pool(self.channels_last(x), *map(pair, window)))

        def convolution(
            self, x, weights, bias, stride, padding, dilation, transposed, output_padding, groups
        ):
            # As for il.models.conv: XLA's convolution is slow on CPU in a gradient of a gradient.
            if jax.default_backend() != "cpu" or transposed or groups != 1:
                return NotImplemented
            x, (weights, bias) = self.channels_last(x), self.t2j_iso((weights, bias))
            # PyTorch gives one number for all axes with padding="valid".
            of_each_axis = lambda window: tuple(window) * (1 if len(window) > 1 else x.ndim - 2)
            windows = map(of_each_axis, (stride, padding, dilation))
            y = convolution_as_matmul(x, weights, *windows)
            return self.channels_first(y if bias is None else y + bias)

    return Environment()


def known_layout(image: Any) -> Array | None:
    """The values with the channels last, unless the tensor was changed since they were noted."""
    first, last = getattr(image, "layout_", (None, None))
    return last if first is not None and image.jax() is first else None


def for_torch(size: Any, rows: Any) -> int:
    """A size as PyTorch is told it, a multiple of `ROWS` if only JAX knows it."""
    if isinstance(size, int):
        return size
    times = size // rows
    if isinstance(rows, int) or times * rows != size:
        raise StructureError(
            "PyTorch needs to know this number of rows",
            got=f"an array with {size} rows",
            expected="any_rows=False, or an operation that has a multiple of the rows",
        )
    return ROWS * for_torch(times, rows)


def for_jax(number: Any, rows: Any) -> Any:
    """An argument of an operation, with the sizes of which PyTorch was told `ROWS`."""
    if isinstance(number, int | float) and number > 0 and number % ROWS == 0:
        return for_jax(int(number) // ROWS, rows) * rows
    return number


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
