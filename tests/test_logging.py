"""Loggers: what they write, how they go on after a cut, what they say without their package."""

import errno
import json
import math
import os
import sys
import time

import jax
import numpy as np
import optax
import pytest
from faulty import full_disk

import innerloop as il
from innerloop.errors import RunError, StructureError
from innerloop.logging.records import record
from innerloop.storage.files import strict_json

KEY = jax.random.key(0)


def progress(step, steps=2, *, loss=0.5, accuracy=None):
    """A report of `steps` steps up to `step`, with a validation where there is an accuracy."""
    evaluation = None
    if accuracy is not None:
        mean = {"accuracy": np.array([0.2, accuracy]), "loss": np.array([2.0, 1.0])}
        interval = {name: np.full(2, 0.01) for name in mean}
        evaluation = il.training.Evaluation(mean, interval, 3)
    losses = np.full(steps, loss, np.float32)
    metrics = {"loss": losses, "gradient_norm": np.arange(steps, dtype=np.float32)}
    system = {"step_seconds": 0.25, "compile_seconds": 1.0, "peak_memory_bytes": 2.0**20}
    return il.training.Progress(step, metrics, 1.23456, evaluation, False, {}, None, system)


def logged(logger, *reports):
    with logger as log:
        for each in reports:
            log(each)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what is logged -----------------------------------------------------------------------------


def test_scalars_are_flat_numbers():
    flat = il.logging.scalars(progress(4, accuracy=0.9))
    assert flat == {
        "loss": 0.5,
        "gradient_norm": 0.5,
        "validation/accuracy": 0.9,
        "validation/loss": 1.0,
        "validation/accuracy/interval_95": 0.01,
        "validation/loss/interval_95": 0.01,
        "system/step_seconds": 0.25,
        "system/compile_seconds": 1.0,
        "system/peak_memory_bytes": 2.0**20,
    }
    assert all(type(value) is float for value in flat.values())
    assert not any(name.startswith("validation") for name in il.logging.scalars(progress(4)))


@pytest.mark.parametrize("why", [None, StructureError("a label", got="5", expected="0 to 1")])
def test_a_fault_is_recorded_with_what_explains_it(why):
    fault = il.training.Fault(3, math.nan, (0,), ([1, 2],), "stop", True, why)
    (found,) = json.loads(strict_json(record(progress(4)._replace(fault=fault))))["faults"]
    assert found["why"] == (None if why is None else str(why))


def test_a_record_has_every_loss_and_the_validation_after_every_inner_step():
    assert record(progress(4, accuracy=0.9)) == {
        "step": 4,
        "seconds": 1.235,
        "loss": 0.5,
        "gradient_norm": 0.5,
        "losses": [0.5, 0.5],
        "system": progress(4).system,
        "validation": {
            "tasks": 3,
            "mean": {"accuracy": [0.2, 0.9], "loss": [2.0, 1.0]},
            "interval_95": {"accuracy": [0.01, 0.01], "loss": [0.01, 0.01]},
        },
    }


# --- several as one -----------------------------------------------------------------------------


class Told(il.extend.Logger):
    """Writes down what happens to it."""

    def __init__(self, name, story, fails_at=None):
        self.name, self.story, self.fails_at = name, story, fails_at

    def tell(self, what, *more):
        self.story.append((self.name, what, *more))
        if what == self.fails_at:
            raise OSError(what)

    def __enter__(self):
        self.tell("enter")
        return self

    def __call__(self, progress):
        self.tell("step", progress.step)

    def __exit__(self, kind, *rest):
        self.tell("exit", kind)


def test_several_are_called_in_order_and_closed_in_the_reverse_one():
    story = []
    logged(il.logging.Loggers(Told("a", story), il.logging.Loggers(Told("b", story))), progress(2))
    assert story == [
        *(("a", "enter"), ("b", "enter")),
        *(("a", "step", 2), ("b", "step", 2)),
        *(("b", "exit", None), ("a", "exit", None)),
    ]


def test_one_that_cannot_begin_closes_those_that_have():
    story = []
    with pytest.raises(OSError, match="enter"):
        logged(
            il.logging.Loggers(Told("a", story), Told("b", story, fails_at="enter")), progress(2)
        )
    assert story == [("a", "enter"), ("b", "enter"), ("a", "exit", OSError)]


def test_the_error_that_ends_a_run_reaches_each():
    story = []
    with pytest.raises(OSError, match="step"):
        logged(il.logging.Loggers(Told("a", story), Told("b", story, fails_at="step")), progress(2))
    assert story[-2:] == [("b", "exit", OSError), ("a", "exit", OSError)]


# --- JSON lines ---------------------------------------------------------------------------------


def test_each_line_is_in_the_file_at_once(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    with il.logging.JsonLines(path) as log:
        for step in (2, 4):
            log(progress(step, accuracy=0.5))
            assert lines(path)[-1] == record(progress(step, accuracy=0.5))
    assert len(lines(path)) == 2


def test_numbers_that_are_not_finite_leave_strict_json(tmp_path):
    logged(il.logging.JsonLines(tmp_path / "log.jsonl"), progress(2, loss=math.nan))
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(line, parse_constant=refuse)["loss"] == "NaN"


def test_lines_that_come_again_are_taken_back(tmp_path):
    path = tmp_path / "log.jsonl"
    logged(il.logging.JsonLines(path), progress(2), progress(4), progress(6))
    with path.open("ab") as file:
        file.write(b"\xff\x00 no text\n")  # a damaged disk
        file.write(b'{"step": 8, "lo')  # cut short by a kill
    logged(il.logging.JsonLines(path), progress(6, loss=0.1), progress(8))
    assert [(line["step"], line["losses"][0]) for line in lines(path)] == [
        *((2, 0.5), (4, 0.5)),
        *((6, pytest.approx(0.1)), (8, 0.5)),
    ]
    logged(il.logging.JsonLines(path), progress(2))  # a new run
    assert [line["step"] for line in lines(path)] == [2]


def test_a_full_disk_is_a_run_error(tmp_path):
    log = il.logging.JsonLines(tmp_path / "log.jsonl")
    with full_disk(), pytest.raises(RunError, match=os.strerror(errno.EFBIG)):
        logged(log, progress(2))


# --- TensorBoard --------------------------------------------------------------------------------


def events(folder):
    """The events of every file in the folder, in order: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def shown(folder):
    """What TensorBoard shows: tag -> {step: value}, less what a restart hides."""
    tags = {}
    for event in events(folder):
        if event.HasField("session_log"):
            for values in tags.values():
                for step in [step for step in values if step >= event.step]:
                    del values[step]
        for value in event.summary.value:
            assert event.step not in tags.setdefault(value.tag, {})
            tags[value.tag][event.step] = value.simple_value
    return tags


def test_tensorboard_has_every_scalar_at_its_step(tmp_path):
    reports = [progress(2), progress(4, accuracy=0.75)]
    logged(il.logging.TensorBoard(tmp_path / "events"), *reports)
    got = shown(tmp_path / "events")
    assert got["loss"] == {2: 0.5, 4: 0.5}
    assert got["validation/accuracy"] == {4: 0.75}
    assert set(got) == set(il.logging.scalars(reports[1]))


def test_tensorboard_hides_steps_that_come_again(tmp_path):
    logged(il.logging.TensorBoard(tmp_path), progress(2), progress(4), progress(6))
    logged(il.logging.TensorBoard(tmp_path), progress(6, loss=0.25), progress(8, loss=0.25))
    assert shown(tmp_path)["loss"] == {2: 0.5, 4: 0.5, 6: 0.25, 8: 0.25}


def test_a_folder_below_a_file_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    for logger in (
        il.logging.TensorBoard(tmp_path / "file" / "run"),
        il.logging.JsonLines(tmp_path / "file/log"),
    ):
        with pytest.raises(RunError, match=r"cannot be written.*another"):
            logged(logger, progress(2))


# --- Weights & Biases ---------------------------------------------------------------------------


def wandb_records(path):
    """The records of an offline run's file.

    It is LevelDB's log format: after a header of seven bytes, blocks of 32 KiB with chunks of
    checksum, length and kind (1 whole, 2 first, 3 middle, 4 last).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, whole = path.read_bytes(), 7, b""
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), position + 6
        whole += data[position + 7 : position + 7 + length]
        if data[kind] in (1, 4):
            yield Record.FromString(whole)
            whole = b""
        position += 7 + length


def history(folder):
    """The name of each offline run in the folder and what it logged, once it is all written."""
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=str):
        deadline = time.monotonic() + 20  # another process writes, which may lag behind
        while not any(each.HasField("exit") for each in wandb_records(path)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        rows = [
            {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in each.history.item
            }
            for each in wandb_records(path)
            if each.HasField("history")
        ]
        yield path.stem, rows


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_weights_and_biases_goes_on_without_a_step_twice(tmp_path):
    pytest.importorskip("wandb")
    make = lambda: il.logging.WeightsAndBiases("tests", tmp_path, config={"path": tmp_path})
    reports = [progress(2), progress(4, accuracy=0.75), progress(6)]
    logged(make(), *reports)
    logged(make(), progress(6), progress(8))  # resumed from step 4
    (first, rows), (second, more) = history(tmp_path)
    assert first == second  # one run, in two parts
    assert [row["_step"] for row in rows] == [2, 4, 6]
    assert [row["_step"] for row in more] == [8]
    for row, report in zip(rows, reports, strict=True):
        assert row.items() >= il.logging.scalars(report).items()
    logged(make(), progress(2))  # a new run
    (rows,) = [rows for name, rows in history(tmp_path) if name != first]
    assert [row["_step"] for row in rows] == [2]


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_that_refuses_is_a_run_error(tmp_path):
    pytest.importorskip("wandb")
    with pytest.raises(RunError, match=r"does not begin a run.*offline"):
        logged(il.logging.WeightsAndBiases("a/project/with/slashes", tmp_path), progress(2))


# --- without the package ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "extra", "make"),
    [
        ("tensorboardX", "tensorboard", il.logging.TensorBoard),
        ("wandb", "wandb", lambda folder: il.logging.WeightsAndBiases("project", folder)),
    ],
)
def test_a_missing_package_is_named_with_its_cure(monkeypatch, tmp_path, package, extra, make):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(RunError, match=rf"{package}.*pip install 'innerloop\[{extra}\]'"):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- with fit -----------------------------------------------------------------------------------


def test_a_run_that_is_cut_off_and_goes_on_is_logged_once(tmp_path):
    recipe = il.recipes.maml(
        il.models.mlp([1, 4, 1]), il.models.mean_squared_error, rate=0.01, steps=1
    )
    tasks = il.tasks.SinusoidTasks(2, 2)
    estimator = recipe.estimator(tasks, batch=2)
    settings = {"optimizer": optax.sgd(0.1), "key": KEY, "per_call": 2}

    def run(folder, steps, resume=False):
        saved = il.training.Checkpoints(folder / "checkpoints", every=4)
        with il.logging.Loggers(
            il.logging.JsonLines(folder / "log.jsonl"), il.logging.TensorBoard(folder)
        ) as log:
            options = {"checkpoints": saved, "resume": resume, "report": log}
            il.fit(estimator, recipe.init_meta, steps=steps, **settings, **options)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, 8)
    run(cut, 4)
    logged(
        il.logging.Loggers(il.logging.JsonLines(cut / "log.jsonl"), il.logging.TensorBoard(cut)),
        progress(6),
    )  # lost
    run(cut, 8, resume=True)
    logs = [[line["losses"] for line in lines(folder / "log.jsonl")] for folder in (whole, cut)]
    assert logs[0] == logs[1]
    assert shown(cut)["loss"] == shown(whole)["loss"]
    assert list(shown(cut)["loss"]) == [2, 4, 6, 8]
