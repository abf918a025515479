"""The folder of a run: what it refuses, what it survives."""

import errno
import functools
import json
import os
from contextlib import closing

import jax.numpy as jnp
import numpy as np
import pytest
from faulty import full_disk

from innerloop.errors import RunError
from innerloop.lab.run_folder import RunFolder, environment

META = {"body": [jnp.arange(200.0)], "head": jnp.ones((2, 3))}


@pytest.fixture
def folder(tmp_path):
    config = {"experiment": "digits", "config": {"seed": 1}}
    with closing(RunFolder.begin(tmp_path / "run", config)) as folder:
        yield folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


def test_what_is_written_is_read(folder):
    folder.save_meta(META)
    opened = RunFolder.open(folder.path)
    assert opened.read_json("config.json") == {"experiment": "digits", "config": {"seed": 1}}
    read = opened.load_meta({"body": [jnp.zeros(200)], "head": jnp.zeros((2, 3))})
    np.testing.assert_array_equal(read["body"][0], META["body"][0])
    np.testing.assert_array_equal(read["head"], META["head"])


def test_other_settings_are_refused_and_those_that_may_change_are_kept(folder):
    folder.close()
    go_on = lambda **settings: RunFolder.begin(
        folder.path, {"experiment": "digits", "config": settings}, may_change=("chunk",)
    )
    with pytest.raises(RunError, match=r"--seed 2.*Expected: --seed 1"):
        go_on(seed=2)
    go_on(seed=1, chunk=4).close()
    assert folder.read_config()["config"] == {"seed": 1, "chunk": 4}


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(folder):
    before = contents(folder)
    with pytest.raises(RunError, match="already holds a run") as caught:
        RunFolder.begin(folder.path, {"experiment": "digits"})
    assert str(folder.path) in str(caught.value)
    assert contents(folder) == before


def test_a_run_of_another_experiment_is_not_gone_on_with(folder):
    other, before = {"experiment": "sinusoid", "config": {}}, contents(folder)
    for begin in (RunFolder.begin, functools.partial(RunFolder.begin, may_change=())):
        with pytest.raises(RunError, match=r"another experiment.*sinusoid in .*: digits") as caught:
            begin(folder.path, other)
        assert "--resume" not in str(caught.value)
    assert contents(folder) == before


def test_steps_of_a_falling_rate_are_told_apart(tmp_path):
    config = lambda steps: {"experiment": "x", "config": {"steps": steps, "rate": None}}
    RunFolder.begin(tmp_path, config(1)).close()
    with pytest.raises(RunError, match=r"Got: --steps 2\. Expected: --steps 1;.*--no-cosine"):
        RunFolder.begin(tmp_path, config(2), may_change=("minutes",))


def test_an_existing_folder_without_a_run_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.begin(tmp_path, {}).close()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("below", ["run", "deep/run", "."])
def test_a_file_in_the_way_is_a_run_error(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder.begin(file / below, {})
    with pytest.raises(RunError, match="no run"):
        RunFolder.open(file / below)
    assert file.read_text() == "mine"


def test_a_folder_without_a_run_cannot_be_opened(tmp_path):
    with pytest.raises(RunError, match="no run"):
        RunFolder.open(tmp_path / "none")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b""])
def test_a_truncated_file_is_a_run_error(folder, damage):
    folder.save_meta(META)
    for name in ("config.json", "best.eqx"):
        path = folder.path / name
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"config\.json"):
        folder.read_json("config.json")
    with pytest.raises(RunError, match=r"best\.eqx"):
        folder.load_meta(META)


def test_bytes_that_are_not_text_are_a_run_error(folder):
    (folder.path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"config\.json"):
        folder.read_json("config.json")


def test_missing_meta_is_a_run_error(folder):
    with pytest.raises(RunError, match=r"best\.eqx"):
        folder.load_meta(META)


@pytest.mark.parametrize(
    "like",
    [
        {"body": [jnp.zeros(3)], "head": jnp.zeros((2, 3))},
        {"other": jnp.zeros(5)},
        META | {"z": 1.0},
    ],
)
def test_meta_of_another_model_is_a_run_error(folder, like):
    folder.save_meta(META)
    with pytest.raises(RunError, match=r"best\.eqx"):
        folder.load_meta(like)


def test_a_write_that_fails_half_way_leaves_the_old_content(folder):
    folder.save_meta(META)
    before = contents(folder)
    # Made before the disk is full: JAX would write its compiled program to a cache.
    larger = {"body": [np.zeros(200)], "head": np.zeros((2, 3))}
    with full_disk(), pytest.raises(RunError, match=os.strerror(errno.EFBIG)):
        folder.save_meta(larger)
    assert contents(folder) == before


def test_a_rename_that_fails_leaves_the_old_content(folder, monkeypatch):
    before = contents(folder)

    def refuse(source, target):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    for write in (
        lambda: folder.write_json("config.json", {"new": 1}),
        lambda: folder.save_meta(META),
        folder.require_writable,
    ):
        with pytest.raises(RunError, match="no"):
            write()
    assert contents(folder) == before


def test_the_probe_for_writing_leaves_nothing(folder):
    before = contents(folder)
    folder.require_writable()
    assert contents(folder) == before


def test_what_is_not_json_is_not_half_written(folder):
    before = contents(folder)
    with pytest.raises(TypeError, match="object is not JSON"):
        folder.write_json("config.json", {"bad": object()})
    assert contents(folder) == before


def test_a_config_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match="Permission denied"):
        RunFolder.begin(tmp_path / "run", {})
    assert not list(tmp_path.iterdir())


def test_the_environment_is_json():
    record = json.loads(json.dumps(environment()))
    assert {"innerloop", "jax", "equinox", "optax"} <= set(record["versions"])
    assert record["device"]


def test_numbers_that_are_not_finite_leave_strict_json(folder):
    """A diverged task must not make the run's files unreadable to other parsers."""
    content = {"mean": [1.5, float("nan"), float("-inf")]}

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    path = folder.write_json("result.json", content)
    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read == {"mean": [1.5, "NaN", "-Infinity"]}


def test_a_refused_process_changes_nothing(tmp_path):
    config = lambda minutes: {"experiment": "x", "config": {"minutes": minutes}}
    folder = RunFolder.begin(tmp_path, config(1))
    with pytest.raises(RunError, match=f"another process writes to this run. Got: {tmp_path}, "):
        RunFolder.begin(tmp_path, config(2), may_change=("minutes",))
    assert folder.read_config()["config"] == {"minutes": 1}
    folder.close()
    RunFolder.begin(tmp_path, config(2), may_change=("minutes",)).close()
    assert folder.read_config()["config"] == {"minutes": 2}
