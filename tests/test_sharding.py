"""Several devices and several processes come to what one device comes to."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import pytest
from fitting import fit
from halving import ESTIMATORS
from jax.sharding import AbstractMesh
from jaxtyping import config
from optax_rows import ROWS
from points import POINTS, point_recipe
from quick import without

import innerloop as il
from innerloop.devices.sharding import largest_axis, placement
from innerloop.errors import StructureError
from innerloop.lab.cli import main
from innerloop.training.outer_loop import init_state

SCRIPT = Path(__file__).parent / "on_eight_devices.py"
FAST = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # of the time, most is compilation


# --- eight devices of one process ---------------------------------------------------------------


def on_eight_devices(*flags, compiled=FAST):
    environment = os.environ | compiled | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, SCRIPT, *flags]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    return on_eight_devices()


def hold(distances, placements):
    assert len(distances) == placements
    assert {name: d for name, d in distances.items() if not d < 1e-14} == {}


@pytest.mark.xdist_group("eight devices")
def test_eight_devices_give_what_one_device_gives(found):
    hold(found["distances"], 1)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_every_placement_gives_what_one_device_gives_also_with_faults():
    found = on_eight_devices("--all")
    hold(found["distances"], 17)
    assert found["faults"]["named alike"]
    assert found["faults"]["count"] > 2
    assert found["faults"]["distance"] < 1e-14


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_adaptation_meta_gradient_and_estimator_comes_to_the_same_on_devices():
    """`make test` has them on one device: test_laws.py and test_estimators.py."""
    # Without optimisations, rounding keeps the solver of a ConvexHead from its tolerance.
    found = on_eight_devices("--laws", compiled={})
    assert found["broken"] == {}
    assert found["held"] == len([*laws.pairs_on_devices()]) + len(ESTIMATORS)


@pytest.mark.parametrize("context", [nullcontext, jax.set_mesh])
def test_a_problem_may_close_over_a_value_that_is_on_the_devices(context):
    """A loop of Equinox, whose types name the mesh that is set and the mesh of the value."""
    place = placement(1)
    tasks = il.Episode(jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [5.0]]))

    def gradient(factor, meta, spread):
        square = lambda params, meta, batch, key: factor * jnp.sum((params - batch) ** 2)
        problem = il.Problem(lambda meta, support, key: meta, square, square)
        learn, loop = il.GradientDescent(optax.sgd(0.1), 3), il.Unroll(loop=il.Binomial(2))
        f = il.meta_value_and_grad(problem, learn, loop, spread=spread)
        return f(meta, tasks, jax.random.key(0))[1]

    with context(place.mesh):
        found = jax.jit(partial(gradient, spread=place.spread))(*place.place(ON_DEVICES))
    # The distance shrinks by 1 - 2 (0.1) (2) in each step, and so does its derivative in meta.
    left = [[support - 0.6**3 * (support - 0.5) - query] for support, query in ((1, 3), (2, 5))]
    np.testing.assert_allclose(found, 2 * 2 * 0.6**3 * np.mean(left, axis=0), rtol=1e-6)


ON_DEVICES = (jnp.array(2.0), jnp.array([0.5]))
"""A factor of the losses, and meta."""


@pytest.mark.xdist_group("eight devices")
def test_a_rule_spreads_meta_its_average_and_the_optimizers_state(found):
    assert found["leaves in parts"] == [3, 3, 3, 3]  # of four leaves: one has a single element


NO_STATE_HERE = {  # refused on one device too, or they ask for gradients per example
    *("scale_by_muon", "sam in a chain", "lookahead", "measure_with_ema", "monitor"),
    *("differentially_private_aggregate", "dpsgd"),
}


@pytest.mark.parametrize("name", [name for name in ROWS if name not in NO_STATE_HERE])
def test_every_optimizers_state_has_a_place(name):
    """Beside the leaf of meta that it belongs to, also where `init` reads its parameters."""
    place = placement(jax.make_mesh((1,), ("tasks",)))
    place = type(place)(place.mesh, largest_axis)
    meta = {"w": jnp.ones((64, 32)), "b": jnp.ones(3), "in": {"w": jnp.ones((32, 64))}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of Optax's own
        state = init_state(meta, ROWS[name].make())
    placed = place.place_state(state).optimizer
    assert jax.tree.structure(placed) == jax.tree.structure(state.optimizer)
    for leaf in jax.tree.leaves(placed):
        split = leaf.shape in ((64, 32), (32, 64))
        assert any(leaf.sharding.spec) == split


@pytest.mark.parametrize("name", without({"lbfgs", "sm3"}, ["lbfgs", "sm3", "multi_transform"]))
def test_on_devices_a_run_may_have_any_optimizer(name):
    optimizer = ROWS[name].make()
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    recipe, options = point_recipe(), {"optimizer": optimizer, "steps": 2, "key": jax.random.key(0)}
    on = lambda devices: il.fit(
        recipe.estimator(POINTS, 2), recipe.init_meta, **options, devices=devices
    )
    jax.tree.map(close, on(None).meta, on(1).meta)


@pytest.mark.xdist_group("eight devices")
def test_a_checkpoint_packs_what_is_whole_and_leaves_parts_where_they_are(found):
    assert found["packed"] == [["whole"], ["0", "packed"], True]


@pytest.mark.xdist_group("eight devices")
def test_each_device_draws_its_own_tasks(found):
    assert found["share of the draw"] == 1 / 8


# --- two processes, on the command line ----------------------------------------------------------

DIGITS = [
    *(sys.executable, "-m", "innerloop", "train", "digits", "--steps", "16", "--batch", "3"),
    *("--filters", "4", "--validate-every", "8", "--validation-tasks", "5", "--test-tasks", "5"),
    *("--test-steps", "2", "--per-call", "4", "--save-every", "4", "--devices", "all"),
]


def start(run, *flags):
    return subprocess.Popen(
        [*DIGITS, "--run", str(run), *flags],
        env=os.environ | FAST | {"JAX_ENABLE_X64": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def two(run, *flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    numbers = ("--coordinator", address, "--processes", "2", "--process")
    return [start(run, *flags, *numbers, str(i)) for i in range(2)]


def losses_and_test(run):
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    test = json.loads((run / "result.json").read_text())["test"]["mean"]["loss"]
    return np.concatenate([record["losses"] for record in log]), np.asarray(test)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_two_processes_train_what_one_trains(tmp_path, monkeypatch):
    """Stopped by a signal to the second alone, and gone on with."""
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))
    one, several = tmp_path / "one", tmp_path / "several"
    alone = start(one)
    first, second = two(several)
    while not (several / "checkpoints" / "4").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        _, errors = process.communicate()
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert "which is saved" in errors
    outputs = [process.communicate() for process in two(several, "--resume")]
    assert "best meta-parameters" in outputs[0][0], outputs[0]
    assert "test tasks" not in outputs[1][0]  # the first alone reports
    _, errors = alone.communicate()
    assert alone.returncode == 0, errors
    for a, b in zip(losses_and_test(one), losses_and_test(several), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert len(losses_and_test(several)[0]) == 16


@pytest.mark.parametrize(
    "flags",
    [
        ("--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "0"),
        ("--coordinator", "127.0.0.1:1", "--processes", "2", "--run", "RUN"),
        ("--cluster",),
        ("--processes", "2", "--process", "1", "--run", "RUN"),
        ("--coordinator", "HOST", "--processes", "2", "--process", "0", "--run", "RUN"),
        ("--coordinator", "HOST:1", "--processes", "2", "--process", "2", "--run", "RUN"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["train", "digits", *flags])
    assert exit.value.code == 2
    assert "which processes train together, and where" in capsys.readouterr().err


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("devices", ["some", 0, -1, True, 2.0, object()])
def test_other_things_are_no_devices(devices):
    with pytest.raises(StructureError, match="devices"):
        placement(devices)


def test_more_devices_than_there_are():
    there = jax.device_count()
    with pytest.raises(StructureError, match=rf"devices={there + 1} of {there} .*at most {there}"):
        fit(
            il.recipes.maml(il.models.mlp([1, 4, 1]), il.models.mean_squared_error, 0.01, 1),
            il.tasks.SinusoidTasks(3, 3),
            optimizer=optax.sgd(0.1),
            steps=1,
            batch=2,
            key=jax.random.key(0),
            devices=there + 1,
        )


def test_a_sharding_needs_a_mesh():
    config.update("jaxtyping_disable", True)  # as users see it
    try:
        with pytest.raises(StructureError, match=r"mesh must be .*mesh=jax.make_mesh"):
            il.training.Sharding("all")
    finally:
        config.update("jaxtyping_disable", False)


RECIPE = il.recipes.maml(il.models.mlp([1, 4, 1]), il.models.mean_squared_error, 0.01, 1)


@pytest.mark.parametrize("axis", [-1, 7, "first"])
def test_a_rule_gives_an_axis_that_there_is(axis):
    config.update("jaxtyping_disable", True)  # as users see it
    sharding = il.training.Sharding(placement("all").mesh, lambda leaf, devices: axis)
    try:
        with pytest.raises(StructureError, match=f"cannot be spread.*axis {axis!r} of a leaf"):
            fit(
                *(RECIPE, il.tasks.SinusoidTasks(3, 3)),
                optimizer=optax.sgd(0.1),
                steps=1,
                batch=2,
                key=jax.random.key(0),
                devices=sharding,
            )
    finally:
        config.update("jaxtyping_disable", False)


def test_a_mesh_is_no_spread():
    """It can be called, on a function, and then does nothing."""
    config.update("jaxtyping_disable", True)  # as users see it
    mesh = placement("all").mesh
    try:
        for spread in (mesh, il.training.Sharding(mesh)):
            with pytest.raises(StructureError, match=r"Write: .*spread=Sharding\(mesh\).spread"):
                il.meta_value_and_grad(*RECIPE[:2], spread=spread)
    finally:
        config.update("jaxtyping_disable", False)


def test_in_a_loop_of_ones_own_the_devices_must_share_the_tasks_evenly():
    mesh = AbstractMesh((4,), ("tasks",))
    sharding = il.training.Sharding(placement("all").mesh)
    object.__setattr__(sharding, "mesh", mesh)
    f = il.meta_value_and_grad(*RECIPE[:2], spread=sharding.spread)
    key = jax.random.key(0)
    with pytest.raises(StructureError, match=r"6 tasks on 4 devices"):
        f(RECIPE.init_meta(key), il.tasks.SinusoidTasks(3, 3).sample(key, 6), key)
