"""Faults of the machine: one line with the cure, and a state that --resume goes on from."""

import errno
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faulty import full_disk

import innerloop as il
import innerloop.lab
from innerloop.lab.cli import main
from innerloop.lab.run_folder import RunFolder
from innerloop.logging.json_lines import JsonLines
from innerloop.storage.checkpoint import CheckpointFolder

ROOT = Path(__file__).parents[1]
TASKS = il.tasks.SinusoidTasks(5, 5)
SINUSOID = [
    *("train", "sinusoid", "--steps", "8", "--batch", "2", "--width", "5", "--per-call", "2"),
    *("--validate-every", "4", "--validation-tasks", "4", "--test-tasks", "4", "--test-steps", "2"),
    *("--save-every", "2"),
]


def fitted(folder=None, *, steps=12, resume=False, report=lambda progress: None):
    recipe = il.recipes.maml(il.models.mlp([1, 5, 1]), il.models.mean_squared_error)
    return il.fit(
        recipe.estimator(TASKS, batch=2),
        recipe.init_meta,
        optimizer=optax.adam(1e-2),
        steps=steps,
        key=jax.random.key(0),
        per_call=3,
        checkpoints=None if folder is None else il.training.Checkpoints(folder, every=3),
        resume=resume,
        report=report,
    )


OF_NO_FIELDS = '{"experiment": "sinusoid", "config": 3}'


@pytest.fixture(scope="module")
def undisturbed():
    return fitted()


def assert_same(one, other):
    assert one.step == other.step
    for a, b in zip(*map(jax.tree.leaves, (one.last, other.last)), strict=True):
        np.testing.assert_array_equal(a, b)


def at(step, strike):
    return lambda progress: strike() if progress.step == step else None


def assert_one_line(error):
    assert "\n" not in str(error)
    assert error.expected


# The storage layer's threads end after its event loop, and say so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_while_a_checkpoint_is_written(undisturbed, tmp_path):
    full = full_disk()
    with pytest.raises(
        il.errors.RunError, match=r"checkpoints cannot be written.*--resume"
    ) as caught:
        try:
            fitted(tmp_path, report=at(6, full.__enter__))
        finally:
            full.__exit__(None, None, None)
    assert_one_line(caught.value)
    assert os.strerror(errno.EFBIG) in caught.value.got
    assert_same(fitted(tmp_path, resume=True), undisturbed)


# What Orbax still writes in the background fails after the run has said so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.full
def test_checkpoints_that_are_deleted_while_a_run_goes_on(undisturbed, tmp_path):
    folder = tmp_path / "run"

    def delete():
        while folder.exists():  # while the last save still writes to it
            shutil.rmtree(folder, ignore_errors=True)

    with pytest.raises(il.errors.RunError, match=r"cannot be written|were deleted") as caught:
        fitted(folder, report=at(9, delete))
    assert_one_line(caught.value)
    assert_same(fitted(folder, resume=True), undisturbed)


def damage(folder, steps):
    for step in steps:
        for path in (folder / str(step)).rglob("*"):
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)


@pytest.mark.filterwarnings("ignore:the checkpoint at outer step")
def test_nothing_is_deleted_where_no_checkpoint_can_be_read(undisturbed, tmp_path):
    fitted(tmp_path / "run", steps=6)
    kept = shutil.copytree(tmp_path / "run", tmp_path / "kept")
    damage(tmp_path / "run", [3, 6])
    for _ in range(2):
        with pytest.raises(il.errors.RunError, match=r"no checkpoint.*begins anew"):
            fitted(tmp_path / "run", resume=True)
    shutil.copytree(kept, tmp_path / "run", dirs_exist_ok=True)  # the disk can be read again
    assert_same(fitted(tmp_path / "run", resume=True), undisturbed)


def test_a_lock_of_a_dead_process_does_not_block(undisturbed, tmp_path):
    (tmp_path / "lock").write_text("1\n")
    assert_same(fitted(tmp_path, resume=True), undisturbed)


def test_who_holds_the_lock_is_said(tmp_path):
    folder = CheckpointFolder(il.training.Checkpoints(tmp_path), {})
    try:
        with pytest.raises(il.errors.RunError, match=f"written by process {os.getpid()}"):
            CheckpointFolder(il.training.Checkpoints(tmp_path), {})
    finally:
        folder.close()


@pytest.mark.parametrize("step", [6, pytest.param(12, marks=pytest.mark.full)])
def test_a_signal_at_any_call_stops_the_run_with_all_of_it_saved(undisturbed, tmp_path, step):
    """At the last one too, after which a run would be tested and drawn."""
    terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(il.training.Stopped, match=f"outer step {step}, which is saved"):
        fitted(tmp_path, report=at(step, terminate))
    assert_same(fitted(tmp_path, resume=True), undisturbed)


def test_a_signal_during_the_last_save_is_not_forgotten(undisturbed, tmp_path, monkeypatch):
    close = CheckpointFolder.close

    def interrupted(folder):
        os.kill(os.getpid(), signal.SIGINT)
        close(folder)

    monkeypatch.setattr(CheckpointFolder, "close", interrupted)
    with pytest.raises(il.training.Stopped, match="outer step 12"):
        fitted(tmp_path)
    monkeypatch.undo()
    assert_same(fitted(tmp_path, resume=True), undisturbed)


# --- the command line ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "whole"
    main([*SINUSOID, "--run", str(path)])
    return path


@pytest.fixture
def run(whole_run, tmp_path):
    return shutil.copytree(whole_run, tmp_path / "run")


def failed(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("innerloop: ")
    assert error.count("\n") == 1
    return error


def result(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    test = json.loads((run / "result.json").read_text())["test"]
    return (run / "best.eqx").read_bytes(), test, [line["losses"] for line in lines]


def goes_on(run, whole_run):
    main([*SINUSOID, "--run", str(run), "--resume"])
    assert result(run) == result(whole_run)
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_disk_that_is_full_for_the_log(tmp_path, whole_run, capsys, monkeypatch):
    whole, run = JsonLines.__call__, tmp_path / "run"

    def full(*given):
        with full_disk():
            return whole(*given)

    monkeypatch.setattr(JsonLines, "__call__", full)
    # no checkpoint yet, which would be written meanwhile: the limit is the whole process's
    error = failed(capsys, *SINUSOID, "--run", str(run), "--save-every", "100")
    assert "the log cannot be written" in error
    assert "resume" in error
    monkeypatch.undo()
    goes_on(run, whole_run)


@pytest.mark.full
@pytest.mark.parametrize("name", ["best.eqx", "result.json"])
def test_a_disk_that_is_full_for_one_file(name, tmp_path, whole_run, capsys, monkeypatch):
    run, whole = tmp_path / "run", RunFolder._write

    def full(folder, file, write):
        with full_disk() if file == name else nullcontext():
            return whole(folder, file, write)

    monkeypatch.setattr(RunFolder, "_write", full)
    error = failed(capsys, *SINUSOID, "--run", str(run))
    assert "the run folder cannot be written" in error
    assert os.strerror(errno.EFBIG) in error
    assert "resume" in error
    monkeypatch.undo()
    goes_on(run, whole_run)


@pytest.mark.full
def test_a_disk_that_is_full_for_the_figures(run, whole_run, capsys, monkeypatch):
    from matplotlib.figure import Figure

    save = Figure.savefig

    def full(*given, **options):
        with full_disk():
            save(*given, **options)

    monkeypatch.setattr(Figure, "savefig", full)
    for figure in run.glob("*.png"):
        figure.unlink()
    error = failed(capsys, *SINUSOID, "--run", str(run), "--resume")
    assert "the run folder cannot be written" in error
    assert not list(run.glob("*.png")) + list(run.glob(".*"))
    monkeypatch.undo()
    goes_on(run, whole_run)


def test_a_line_of_the_log_that_was_cut_short(run, whole_run):
    log, last = run / "log.jsonl", max((run / "checkpoints").glob("[0-9]*"))
    os.truncate(log, log.stat().st_size - 10)
    shutil.rmtree(last)
    goes_on(run, whole_run)


@pytest.mark.full
@pytest.mark.parametrize("name", ["best.eqx", "result.json", "learning_curve.png"])
def test_what_is_lost_is_made_again(name, run, whole_run):
    (run / name).unlink()
    goes_on(run, whole_run)


@pytest.mark.parametrize(
    "content",
    ["{", *(pytest.param(x, marks=pytest.mark.full) for x in ("{}", OF_NO_FIELDS, "\x00"))],
)
def test_a_damaged_config_says_how_it_is_made_anew(content, run, whole_run, capsys):
    (run / "config.json").write_text(content)
    error = failed(capsys, *SINUSOID, "--run", str(run), "--resume")
    assert "config.json" in error
    assert "once config.json is deleted" in error
    (run / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"without its config\.json"):
        goes_on(run, whole_run)


@pytest.mark.full
def test_a_second_signal_ends_a_compilation_at_once(tmp_path):
    """A subprocess: it is the process's own end. The compiler is entered, and holds the first."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    process = subprocess.Popen(
        [sys.executable, "-m", "innerloop", *SINUSOID, "--run", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},  # where nothing is yet
    )
    try:
        while process.poll() is None and not (run / "checkpoints" / "lock").exists():
            time.sleep(0.01)
        while process.poll() is None:  # two that come close together count as one
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert error.startswith("innerloop: ended at once by a second signal; --run and --resume go on")
    assert error.count("\n") == 1
    assert not (run / "log.jsonl").exists()


# --- another run's meta-parameters --------------------------------------------------------------


def test_best_meta_is_what_training_kept(run):
    kept = il.lab.best_meta(str(run))
    recipe = il.recipes.maml(il.models.mlp([1, 5, 5, 1]), il.models.mean_squared_error)
    like = recipe.init_meta(jax.random.key(0))
    assert jax.tree.structure(kept) == jax.tree.structure(like)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(like), strict=True):
        assert isinstance(a, jnp.ndarray)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert not np.array_equal(a, b)


def test_best_meta_needs_a_run(tmp_path):
    with pytest.raises(il.errors.RunError, match="no run"):
        il.lab.best_meta(tmp_path)


def test_train_starts_from_another_run(run, tmp_path, capsys):
    flags = [*SINUSOID, "--pretrained", str(run), "--seed", "5"]
    flags += ["--outer-rate", "0", "--averaging", "0"]  # whose mean would round
    main([*flags, "--run", str(tmp_path / "next")])
    kept, weights = il.lab.best_meta(tmp_path / "next"), il.lab.best_meta(run)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(a, b)
    config = json.loads((tmp_path / "next" / "config.json").read_text())["config"]
    assert config["pretrained"] == str(run)
    main(["evaluate", str(tmp_path / "next")])


def test_train_refuses_a_run_of_other_shapes_by_leaf(run, tmp_path, capsys):
    flags = [*SINUSOID, "--pretrained", str(run), "--width", "7"]
    error = failed(capsys, *flags, "--run", str(tmp_path / "next"))
    assert str(run) in error
    assert "float32[1, 5]" in error
    assert "float32[1, 7]" in error
    assert not Path(tmp_path / "next").exists()


# --- the documentation --------------------------------------------------------------------------


def test_the_table_of_faults_is_what_was_measured(monkeypatch):
    """`python benchmarks/faults.py` writes both; every row went on to the same bits."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = runpy.run_path(str(ROOT / "benchmarks" / "faults.py"))
    text = script["PAGE"].read_text()
    assert script["updated"](text) == text
    rows = json.loads(script["FILE"].read_text())["faults"]
    assert [row["what"] for row in rows] == list(script["FAULTS"])
    for row in rows:
        assert row["same_bits"], row
        assert row["resumed_exit_status"] == 0, row
        assert all(line.startswith("innerloop: ") for line in row["printed"]), row
        warned = [line for line in row["printed"] if "cannot be read; the one before" in line]
        assert len(row["printed"]) <= len(warned) + 1, row


def test_the_documentation_tells_the_number_of_kills():
    record = json.loads((ROOT / "benchmarks" / "results" / "kills.json").read_text())
    assert record["same_parameters"]
    assert record["same_metrics"]
    told = re.search(r"after (\d+)\s+kills", (ROOT / "docs" / "long-runs.md").read_text())
    assert told is not None
    assert int(told[1]) == record["sigkills"]
