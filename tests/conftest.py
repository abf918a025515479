"""Every test runs with strict promotion; oracles run in float64 (`x64`)."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
    """No implicit rank or dtype promotion in the library or in a user's loss."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """Double precision for the duration of one test."""
    with jax.enable_x64(True):
        yield
