"""A run that was cut off ends with the same bits as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import jax
import numpy as np
import optax
import pytest
from fitting import fit

from innerloop.errors import RunError, StructureError
from innerloop.models import mean_squared_error, mlp
from innerloop.recipes import maml
from innerloop.tasks import SinusoidTasks, evaluation_episodes
from innerloop.training import Checkpoints, Stopped, Validation

TASKS = SinusoidTasks(5, 5)
STEPS = 60


def train(folder=None, resume=False, *, every=8, **changed):
    options = {
        "optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
        "steps": STEPS,
        "batch": 3,
        "key": jax.random.key(3),
        "per_call": 7,
        "averaging": 0.9,
        "validation": Validation(evaluation_episodes(TASKS, 10, seed=1), every=15),
    }
    checkpoints = None if folder is None else Checkpoints(folder, every)
    recipe = maml(mlp([1, 5, 1]), mean_squared_error, 0.01, 1)
    return fit(recipe, TASKS, checkpoints=checkpoints, resume=resume, **(options | changed))


@pytest.fixture(scope="module")
def undisturbed():
    return train()


def assert_same(one, other):
    assert (one.step, one.best_step) == (other.step, other.best_step)
    for a, b in zip(
        *map(jax.tree.leaves, ((one.meta, one.last), (other.meta, other.last))), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_run_does_not_go_back(tmp_path):
    train(tmp_path, steps=30)
    with pytest.raises(RunError, match=r"steps=20, and a checkpoint at outer step 30.*steps=30"):
        train(tmp_path, steps=20, resume=True)
    assert train(tmp_path, steps=30, resume=True).step == 30


@pytest.mark.parametrize("limit", [0, 60, 2**20])  # none packed, some, all
def test_what_is_packed_changes_no_bit(undisturbed, tmp_path, monkeypatch, limit):
    monkeypatch.setattr("innerloop.storage.packing.PACKED_BELOW", limit)
    train(tmp_path, steps=30)
    assert_same(train(tmp_path, resume=True), undisturbed)


def saved_steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def stop_after(step, number):
    def report(progress):
        if progress.step > step:
            os.kill(os.getpid(), number)

    return report


def test_saving_changes_nothing(undisturbed, tmp_path):
    assert_same(train(tmp_path), undisturbed)
    assert saved_steps(tmp_path) == [48, 56, 60]


@pytest.mark.parametrize("steps", [15, 45])
def test_a_shorter_run_goes_on_to_the_same_bits(undisturbed, tmp_path, steps):
    train(tmp_path, steps=steps)
    assert_same(train(tmp_path, resume=True, per_call=11), undisturbed)


@contextmanager
def hangup(action):
    """SIGHUP is handled so: the tests themselves may run under `nohup`."""
    before = signal.signal(signal.SIGHUP, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_finishes_the_call_and_saves(undisturbed, tmp_path, number):
    stopping = pytest.raises(Stopped, match="outer step 30, which is saved")
    with hangup(signal.SIG_DFL), stopping as stopped:
        train(tmp_path, report=stop_after(25, number))
    assert stopped.value.signal == number
    assert saved_steps(tmp_path)[-1] == stopped.value.step == 30
    assert_same(train(tmp_path, resume=True), undisturbed)


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path):
    """As under `nohup`."""
    with hangup(signal.SIG_IGN):
        train(tmp_path, report=stop_after(25, signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert saved_steps(tmp_path)[-1] == 60


def test_a_damaged_checkpoint_is_passed_over(undisturbed, tmp_path):
    train(tmp_path)
    for path in (tmp_path / "60").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    with pytest.warns(UserWarning, match="outer step 60 cannot be read"):
        again = train(tmp_path, resume=True)
    assert_same(again, undisturbed)


WIDE = 70_000  # a network with arrays above 1 MiB, which are stored as they are


def train_wide(folder, resume=False, **changed):
    wide = maml(mlp([1, 4, WIDE, 1]), mean_squared_error, 0.01, 1)
    options = {"optimizer": optax.sgd(1e-3), "batch": 1, "key": jax.random.key(3), "per_call": 1}
    saved = Checkpoints(folder, every=1)
    return fit(wide, TASKS, checkpoints=saved, resume=resume, **(options | changed))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, cut])
def test_damaged_numbers_are_not_gone_on_with(tmp_path, damage):
    whole = train_wide(tmp_path / "whole", steps=2)
    train_wide(tmp_path / "run", steps=2)
    largest = max((tmp_path / "run" / "2").rglob("*"), key=lambda path: path.stat().st_size)
    assert largest.stat().st_size > 2**18
    damage(largest)
    with pytest.warns(UserWarning, match="outer step 2 cannot be read"):
        assert_same(train_wide(tmp_path / "run", resume=True, steps=2), whole)


@pytest.mark.parametrize("digit", ["seconds", "score", "packed"])
def test_a_damaged_record_is_not_believed(undisturbed, tmp_path, digit):
    """Still JSON, of another content."""
    train(tmp_path, steps=16)
    path = tmp_path / "16" / "about" / "metadata"
    about = path.read_text()
    assert digit in about
    path.write_text(about.replace(digit, digit[:-1] + "x", 1))
    with pytest.warns(UserWarning, match="outer step 16 cannot be read"):
        assert_same(train(tmp_path, resume=True), undisturbed)


def test_numbers_in_an_optimizers_state_come_back_as_they_were(tmp_path):
    """A weakly typed array, a Python number, an array of NumPy: rates of a bfloat16 update."""

    def init(params):
        return {"weak": jax.numpy.asarray(0.0371), "python": 0.5, "numpy": np.ones(1, "f4")}

    def update(updates, state, params=None):
        rate = state["weak"] * state["python"] * state["numpy"][0]
        step = lambda leaf: (-rate * leaf).astype(leaf.dtype)
        return jax.tree.map(step, updates), state

    optimizer = optax.GradientTransformation(init, update)
    whole = train(optimizer=optimizer, steps=20)
    train(tmp_path, optimizer=optimizer, steps=10)
    assert_same(train(tmp_path, optimizer=optimizer, steps=20, resume=True), whole)


def test_nothing_to_read_is_said(tmp_path):
    train(tmp_path, steps=8)
    for path in (tmp_path / "8").rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
    with (
        pytest.warns(UserWarning, match="outer step 8 cannot be read"),
        pytest.raises(RunError, match="no checkpoint of this run"),
    ):
        train(tmp_path, resume=True)


def test_random_keys_in_the_state_are_saved(tmp_path):
    optimizer = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(5)), optax.sgd(0.01))
    whole = train(optimizer=optimizer)
    train(tmp_path, steps=30, optimizer=optimizer)
    assert_same(train(tmp_path, resume=True, optimizer=optimizer), whole)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch": 4}, r"settings that it began with.*batch=4.*batch=3"),
        ({"key": jax.random.key(4)}, r"key=\[0, 4\].*key=\[0, 3\]"),
        (
            {"validation": Validation(evaluation_episodes(TASKS, 11, seed=1), every=15)},
            r"validation_episodes=.*\[11, 5, 1\].*\[10, 5, 1\]",
        ),
        ({"validation": None}, r"validation=\{\}.*validation=\{'': \[15"),
        ({"optimizer": optax.sgd(0.1)}, r"another training state"),
    ],
)
def test_another_run_is_not_gone_on_with(tmp_path, changed, message):
    train(tmp_path, steps=8)
    with pytest.raises(RunError, match=message):
        train(tmp_path, resume=True, **changed)


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path):
    train(tmp_path, steps=8)
    with pytest.raises(RunError, match=r"an earlier run.*outer step 8.*resume=True"):
        train(tmp_path)


def test_resume_needs_checkpoints():
    with pytest.raises(StructureError, match="nothing to resume from"):
        train(resume=True)


def test_resume_begins_where_nothing_was_saved(undisturbed, tmp_path):
    assert_same(train(tmp_path, resume=True), undisturbed)


def test_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("innerloop.storage.checkpoint.FORMAT", 3)
        train(tmp_path, steps=8)
    with pytest.raises(RunError, match=r"does not know. Got: format 3. Expected: format 4"):
        train(tmp_path, resume=True)


def test_one_process_writes_to_a_run(tmp_path):
    def second(progress):
        with pytest.raises(RunError, match="another process writes to this run"):
            train(tmp_path, resume=True)

    train(tmp_path, steps=7, report=second)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="checkpoints cannot be written"):
        train(tmp_path / "file" / "checkpoints")


# --- the command line ---------------------------------------------------------------------------

DIGITS = [
    *(sys.executable, "-m", "innerloop", "train", "digits", "--steps", "60", "--batch", "2"),
    *("--filters", "4", "--validate-every", "20", "--validation-tasks", "8", "--test-tasks", "8"),
    *("--test-steps", "2", "--per-call", "4", "--save-every", "8"),
]


@contextmanager
def started(run, *flags):
    command = [*DIGITS, "--run", str(run), *flags]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process


def finished(run, *flags):
    with started(run, *flags) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors


def wait_for_checkpoint(process, run, after):
    while process.poll() is None:
        steps = saved_steps(run / "checkpoints") if (run / "checkpoints").exists() else []
        if steps and steps[-1] > after:
            return steps[-1]
        time.sleep(0.02)
    raise AssertionError(process.stderr.read())


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith(("JAX_COMPIL", "JAX_PERSIST"))]:
        monkeypatch.delenv(name)  # the command line's own cache is what is tested
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished(whole)
    assert len(list((tmp_path / "cache" / "compiled").iterdir())) > 20  # small programs too
    reached, flags = 0, ()
    for number, status in (
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, 128 + signal.SIGTERM),
    ):
        with started(killed, *flags) as process:
            reached, flags = wait_for_checkpoint(process, killed, reached), ("--resume",)
            process.send_signal(number)
            _, message = process.communicate()
        assert process.returncode == status, message
    assert "which is saved; --run and --resume go on with it" in message
    finished(killed, "--resume")
    assert (whole / "best.eqx").read_bytes() == (killed / "best.eqx").read_bytes()
    results = [json.loads((run / "result.json").read_text()) for run in (whole, killed)]
    assert results[0]["test"] == results[1]["test"]
    logs = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (whole, killed)
    ]
    losses = [[loss for record in log for loss in record["losses"]] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 60
