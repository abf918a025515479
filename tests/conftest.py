"""Every test runs with strict promotion; oracles run in float64 (`x64`)."""

import gc
import sys

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


@pytest.fixture(autouse=True)
def few_compiled_programs(request):
    """Every compiled program maps memory, and the system limits the maps of a process.

    With some thousand programs alive, the next compilation crashes the interpreter.
    """
    yield
    count = request.config.stash.setdefault(_TESTS_RUN, 0) + 1
    request.config.stash[_TESTS_RUN] = count
    if count % 40 == 0:
        laws = sys.modules.get("laws")
        if laws is not None:
            laws._COMPILED.clear()
        jax.clear_caches()
        gc.collect()


_TESTS_RUN = pytest.StashKey[int]()
