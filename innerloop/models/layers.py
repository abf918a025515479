"""Layers as pure functions of explicit parameters that differentiate twice at full speed."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, PRNGKeyArray

from innerloop.arguments import at_least, checked
from innerloop.checks import describe
from innerloop.errors import StructureError
from innerloop.precision import default_float

Dense = dict[str, Array]
"""Parameters of a dense layer: `{"weights": (inputs, outputs), "bias": (outputs,)}`."""

GLOROT = jax.nn.initializers.glorot_uniform()
"""The default for all weights (Glorot and Bengio 2010), as in MAML's convolutions. For sinusoid
regression it meta-learned faster than He's variance and than the authors' N(0, 0.01²)."""


def dense_init(
    key: PRNGKeyArray, inputs: int, outputs: int, weights: Initializer = GLOROT
) -> Dense:
    """Parameters of `dense`: weights from a `jax.nn.initializers` function, zero biases."""
    dtype = default_float()
    return {"weights": weights(key, (inputs, outputs), dtype), "bias": jnp.zeros(outputs, dtype)}


def dense(params: Dense, x: Float[Array, "..."]) -> Float[Array, "rows outputs"]:
    """`x @ weights + bias`, row by row, for x of shape `(rows, inputs)`.

    Raises:
        StructureError: If x is not `(rows, inputs)`.
    """
    inputs = params["weights"].shape[0]
    if x.ndim != 2 or x.shape[1] != inputs:
        raise StructureError(
            "the inputs do not fit the dense layer",
            got=describe(x),
            expected=f"shape (rows, {inputs})",
        )
    return x @ params["weights"] + params["bias"][None, :]


def conv_init(
    key: PRNGKeyArray, inputs: int, outputs: int, size: int = 3, weights: Initializer = GLOROT
) -> Float[Array, "size size inputs outputs"]:
    """Weights of `conv`, `(size, size, inputs, outputs)`, from a `jax.nn.initializers` function."""
    return weights(key, (size, size, inputs, outputs), default_float())


def conv(
    weights: Float[Array, "..."], x: Float[Array, "..."], stride: int = 1
) -> Float[Array, "rows out_height out_width outputs"]:
    """Two-dimensional convolution (cross-correlation) with SAME zero padding and no bias.

    `out_height = ceil(height / stride)`; if the padding is odd, the larger half is at the end, as
    in XLA and TensorFlow.

    The form is chosen while tracing by `jax.default_backend()`: one matrix product on CPU, XLA's
    convolution elsewhere. Both give the same numbers; call `conv_as_matmul` or `conv_xla` to
    choose yourself, for example where CPU is not the default backend but the one you run on.

    Args:
        weights: `(size_h, size_w, inputs, outputs)`.
        x: `(rows, height, width, inputs)`.
        stride: Step between windows, along height and width.

    Raises:
        StructureError: If the shapes do not fit or the stride is not a positive integer.
    """
    # Not lax.platform_dependent: under reverse mode it would keep the residuals of both forms.
    form = conv_as_matmul if jax.default_backend() == "cpu" else conv_xla
    return form(weights, x, stride)


def conv_xla(
    weights: Float[Array, "..."], x: Float[Array, "..."], stride: int = 1
) -> Float[Array, "rows out_height out_width outputs"]:
    """`conv` by `lax.conv_general_dilated`: fast on accelerators.

    On CPU, avoid it inside a gradient of a gradient: one MAML step of `conv4` took about 20 times
    the processor time of `conv_as_matmul`.
    """
    _check_conv(weights, x, stride)
    return lax.conv_general_dilated(
        x, weights, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_as_matmul(
    weights: Float[Array, "..."], x: Float[Array, "..."], stride: int = 1
) -> Float[Array, "rows out_height out_width outputs"]:
    """`conv` by shifted copies of the padded input, side by side, and one matrix product.

    Memory: `size_h · size_w / stride²` times the input. Every derivative, of any order, is again
    made of slices, paddings and matrix products.
    """
    _check_conv(weights, x, stride)
    size_h, size_w, inputs, outputs = weights.shape
    out_h, out_w = (-(-size // stride) for size in x.shape[1:3])
    same = lax.padtype_to_pads(x.shape[1:3], (size_h, size_w), (stride, stride), "SAME")
    padded = jnp.pad(x, ((0, 0), *same, (0, 0)))
    # Rows and positions as one axis: under vmap, products with several contracted axes are slow.
    positions = x.shape[0] * out_h * out_w

    def shifted(i: int, j: int) -> Float[Array, "positions inputs"]:
        rows = slice(i, i + (out_h - 1) * stride + 1, stride)
        columns = slice(j, j + (out_w - 1) * stride + 1, stride)
        return padded[:, rows, columns, :].reshape(positions, inputs)

    patches = [shifted(i, j) for i in range(size_h) for j in range(size_w)]
    flat = jnp.concatenate(patches, axis=1) @ weights.reshape(size_h * size_w * inputs, outputs)
    return flat.reshape(x.shape[0], out_h, out_w, outputs)


def max_pool(x: Float[Array, "..."]) -> Float[Array, "rows half_height half_width channels"]:
    """Maximum over 2 × 2 windows, stride 2; an odd last row or column is dropped (VALID).

    `x` is `(rows, height, width, channels)`. Where several entries of a window are the largest,
    they share the derivative equally.

    Raises:
        StructureError: If the image is smaller than the window.
    """
    if x.ndim != 4 or min(x.shape[1:3]) < 2:
        raise StructureError(
            "the image is too small for a 2 × 2 pooling window",
            got=describe(x),
            expected="shape (rows, height, width, channels) with height and width of at least 2",
        )
    rows, height, width, channels = x.shape
    half_h, half_w = height // 2, width // 2
    # A reshape and a reduction: derivatives of any order are selections, under vmap too.
    windows = x[:, : 2 * half_h, : 2 * half_w].reshape(rows, half_h, 2, half_w, 2, channels)
    return jnp.max(windows, axis=(2, 4))


@checked("conv", stride=at_least(1))
def _check_conv(weights: Array, x: Array, stride: int) -> None:
    if weights.ndim != 4 or x.ndim != 4 or x.shape[3] != weights.shape[2]:
        raise StructureError(
            "the images do not fit the convolution",
            got=f"images {describe(x)}, weights {describe(weights)}",
            expected="images (rows, height, width, inputs), weights (size, size, inputs, outputs)",
        )
