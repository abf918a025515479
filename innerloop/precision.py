"""Floating-point types for new numbers and for sums."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def default_float() -> np.dtype:
    """JAX's default floating-point dtype: float32, or float64 under `jax_enable_x64`."""
    return jnp.result_type(float)


def at_least_float32(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """`values` in float32 or wider, because sums of many narrower numbers lose digits."""
    return values if values.dtype.itemsize >= 4 else values.astype(jnp.float32)
