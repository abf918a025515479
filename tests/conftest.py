"""Every test runs with strict promotion; oracles run in float64 (`x64`)."""

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import extras
import jax
import jaxtyping
import pytest
import typed
from quick import mark_slow

typed.skip_inner_functions()

# XLA's optimiser and LLVM's would take most of the suite's time, for programs that run once. The
# passes over the whole program, which decide what it stores, are left on. Not level 0: with it the
# gradient of a max-pool comes out wrong, which no test of ours should see or miss. Flags of one's
# own are kept: `XLA_FLAGS= make test` compiles as a user's program is compiled.
QUICK_COMPILATION = (
    "--xla_backend_optimization_level=1"
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
# Each compiled program maps memory, and the system limits the maps of a process (65,530 on Linux):
# beyond them the next compilation crashes the interpreter. This many are a few GB of programs.
MANY_MAPS = 10_000


def _known_to_xla(flags: str) -> bool:
    """XLA ends the process that gives it a flag of another version."""
    read = "from jaxlib import xla_client as x; x.CompileOptions().executable_build_options"
    command = [sys.executable, "-c", f"{read}.debug_options"]
    environment = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


if "XLA_FLAGS" not in os.environ and _known_to_xla(QUICK_COMPILATION):
    os.environ["XLA_FLAGS"] = QUICK_COMPILATION  # read at the first compilation, and by workers

# Many tests compile the same programs, also those in processes of their own: each is compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.mkdtemp(prefix="innerloop-tests-")
    atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
    for name, value in {
        "jax_compilation_cache_dir": COMPILED,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        os.environ[name.upper()] = str(value)  # for workers and the processes that tests start
        jax.config.update(name, value)


MISSING = extras.MISSING


@pytest.hookimpl(tryfirst=True)  # before `-m` selects, and before xdist adds the group to the names
def pytest_collection_modifyitems(config, items):
    mark_slow(items, whole=config.args_source is config.ArgsSource.TESTPATHS)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """In an environment without some extra, the files that import it are left out."""
    if MISSING and collection_path.suffix == ".py" and extras.needs(collection_path, MISSING):
        return True
    return None


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """There, a test that is told to install the extra is skipped."""
    try:
        return (yield)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # a test of another refusal fails while this one is handled
            # Not by its class: the package is imported later, with the checks of its types.
            problem = getattr(cause, "problem", "")
            if any(problem.endswith(f"needs the package {name}") for name in MISSING):
                pytest.skip(problem)
            cause = cause.__context__
        raise


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


@pytest.fixture
def as_users_see_it():
    """The tests' type checker off: users do not run it, so our own messages must do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def few_compiled_programs():
    """Forgets compiled programs before there are too many."""
    yield
    if _maps() > MANY_MAPS:
        laws = sys.modules.get("laws")
        if laws is not None:
            laws._COMPILED.clear()
        jax.clear_caches()
        gc.collect()


def _maps() -> int:
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0
