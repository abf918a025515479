"""The command line, in process: what it writes, and one line with the cure for each bad input."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from quick import without

from innerloop.errors import RunError
from innerloop.lab.cli import main
from innerloop.lab.run_folder import RunFolder
from innerloop.training import Stopped

# Where the groups are honoured, one worker makes the run that the tests share.
pytestmark = pytest.mark.xdist_group("cli")

SMALL = shlex.split(
    "--steps 4 --batch 2 --validate-every 2 --validation-tasks 4 --test-tasks 4 --per-call 2"
    " --test-steps 2"
)
DIGITS = ["train", "digits", *SMALL, "--filters", "4", "--test-queries", "3", "--inner-steps", "1"]
FILES = {
    *("config.json", "lock", "log.jsonl", "best.eqx", "checkpoints"),
    *("result.json", "test_tasks.npz"),
}
SINUSOID = ["train", "sinusoid", *SMALL, "--width", "5"]


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    """No test reads or writes outside its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INNERLOOP_DATA", raising=False)


@pytest.fixture(scope="module")
def sinusoid_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("sinusoid") / "run"
    main([*SINUSOID, "--run", str(path)])
    return path


def read(path):
    return json.loads(path.read_text())


def everything_under(folder):
    return {
        path: hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refused(capsys, folder, *arguments):
    """The one line on standard error; checks the exit status and that nothing is written."""
    before = everything_under(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("innerloop: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert "Expected: " in error
    assert everything_under(folder) == before
    return error


# --- what is written ----------------------------------------------------------------------------


def test_digits_leaves_config_log_meta_result_and_figures(tmp_path, capsys):
    digits_run = tmp_path / "run"
    main([*DIGITS, "--run", str(digits_run)])
    names = {path.name for path in digits_run.iterdir()}
    figures = {
        "learning_curve.png",
        "validation_over_time.png",
        "adaptation_curve.png",
        "episodes.png",
    }
    assert names == FILES | figures
    for figure in figures:
        assert (digits_run / figure).read_bytes().startswith(b"\x89PNG")
    config, result = read(digits_run / "config.json"), read(digits_run / "result.json")
    assert config["experiment"] == result["experiment"] == "digits"
    assert config["config"] == result["config"]
    assert result["config"]["seed"] == 0
    assert result["config"]["filters"] == 4
    assert result["normalisation"] == "transductive"
    assert result["environment"]["versions"]["jax"]
    assert result["environment"]["device"]
    assert result["outer_steps"] == 4
    assert result["best_step"] in (2, 4)
    test = result["test"]
    assert test["tasks"] == 4
    assert len(test["mean"]["accuracy"]) == len(test["interval_95"]["loss"]) == 3
    assert len(test["ece"]) == 3
    with np.load(digits_run / "test_tasks.npz") as per_task:
        for name, mean in test["mean"].items():
            assert per_task[name].shape == (4, 3)
            assert per_task[name].dtype == np.float32
            np.testing.assert_allclose(per_task[name].mean(axis=0), mean, rtol=1e-5)
    cost = result["cost"]
    assert cost["flops_per_step"] > 1e5
    assert cost["unreached"] == []
    assert min(cost["seconds_per_step"], cost["compile_seconds"]) > 0
    assert 5e7 < cost["peak_memory_bytes"] < 1e12
    assert all(0 <= value <= 1 for value in test["mean"]["accuracy"])
    log = [json.loads(line) for line in (digits_run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4]
    assert all("validation" in line and np.isfinite(line["loss"]) for line in log)
    assert all(line["system"]["step_seconds"] > 0 for line in log)

    main(["evaluate", str(digits_run), "--shuffle-support-labels"])
    file = digits_run / "evaluation-seed0-steps2-tasks4-shuffled.json"
    output = capsys.readouterr().out
    assert "accuracy" in output
    assert str(file) in output.replace("\n", "")
    shuffled = read(file)
    assert shuffled["shuffled_support_labels"] is True
    assert shuffled["test"]["mean"]["loss"][0] == pytest.approx(test["mean"]["loss"][0], rel=1e-5)
    assert shuffled["test"]["mean"]["loss"][1:] != test["mean"]["loss"][1:]
    assert shuffled["shots"] == 1

    main(["evaluate", str(digits_run), "--shots", "2"])
    record = read(digits_run / "evaluation-seed0-steps2-tasks4-shots2.json")
    assert record["shots"] == 2
    assert record["test"]["mean"]["loss"] != test["mean"]["loss"]


@pytest.mark.full
def test_the_run_is_held_until_its_last_figure(tmp_path, monkeypatch):
    """A second process that resumes it would write the same files, while it is tested and drawn."""
    drawn = []

    def draw(folder, *rest):
        config = json.loads((folder / "config.json").read_text())
        with pytest.raises(RunError, match="another process writes to this run"):
            RunFolder.begin(folder, config, may_change=())
        drawn.append(folder)

    monkeypatch.setattr("innerloop.lab.experiments.train.draw_curves", draw)
    main([*SINUSOID, "--run", str(tmp_path / "run")])
    assert drawn == [tmp_path / "run"]
    main([*SINUSOID, "--run", str(tmp_path / "run"), "--resume"])  # it is free again
    assert len(drawn) == 2


def test_sinusoid_leaves_its_figures_too(sinusoid_run):
    names = {path.name for path in sinusoid_run.iterdir()}
    figures = {"learning_curve.png", "validation_over_time.png", "adaptation_curve.png", "fits.png"}
    assert names == FILES | figures
    assert read(sinusoid_run / "result.json")["normalisation"] == "none"


def test_the_same_seed_gives_the_same_result_and_another_seed_does_not(
    sinusoid_run, tmp_path, capsys
):
    main([*SINUSOID, "--run", str(tmp_path / "again")])
    main([*SINUSOID, "--run", str(tmp_path / "other"), "--seed", "1"])
    output = capsys.readouterr().out
    assert str(tmp_path / "again" / "fits.png") in output
    first = read(sinusoid_run / "result.json")["test"]
    assert read(tmp_path / "again/result.json")["test"] == first
    assert read(tmp_path / "other/result.json")["test"] != first
    kept = [(path / "best.eqx").read_bytes() for path in (sinusoid_run, tmp_path / "again")]
    assert kept[0] == kept[1]


@pytest.fixture
def own_run(sinusoid_run, tmp_path):
    return shutil.copytree(sinusoid_run, tmp_path / "copy")


def test_evaluate_repeats_the_test_of_the_run(own_run, capsys):
    main(["evaluate", str(own_run)])
    assert "mse" in capsys.readouterr().out
    (file,) = own_run.glob("evaluation-*.json")
    record, result = read(file), read(own_run / "result.json")
    assert record["shuffled_support_labels"] is False
    assert record["normalisation"] == "none"
    assert record["test"] == result["test"]


def test_evaluate_takes_other_tasks_steps_and_seed(own_run):
    main(["evaluate", str(own_run), "--tasks", "3", "--steps", "1", "--seed", "7"])
    main(["evaluate", str(own_run), "--tasks", "3", "--steps", "1", "--seed", "8"])
    assert len(list(own_run.glob("evaluation-*.json"))) == 2  # neither overwrote the other
    record = read(own_run / "evaluation-seed7-steps1-tasks3.json")
    assert record["seed"] == 7
    assert record["test"]["tasks"] == 3
    assert len(record["test"]["mean"]["loss"]) == 2


def test_evaluate_takes_other_shots(own_run):
    main(["evaluate", str(own_run)])
    main(["evaluate", str(own_run), "--shots", "5"])
    main(["evaluate", str(own_run), "--shots", "20"])
    kept = [
        read(own_run / f"evaluation-seed0-steps2-tasks4{name}.json")
        for name in ("", "-shots5", "-shots20")
    ]
    assert [record["shots"] for record in kept] == [5, 5, 20]
    unadapted, adapted = zip(*(record["test"]["mean"]["loss"][:2] for record in kept), strict=True)
    assert unadapted[0] == unadapted[1] == pytest.approx(unadapted[2])  # queries are the same
    assert adapted[0] == adapted[1] != adapted[2]


def test_report_writes_a_page_that_lacks_nothing(own_run, capsys):
    capsys.readouterr()
    main(["report", str(own_run)])
    assert capsys.readouterr().out == f"{own_run / 'report.html'}\n"
    page = (own_run / "report.html").read_text()
    mean = read(own_run / "result.json")["test"]["mean"]["loss"][-1]
    assert f"{mean:.1f}" in page
    assert "not recorded" not in page.lower()


def test_report_refuses_what_is_no_run(sinusoid_run, tmp_path, capsys):
    assert "no run" in refused(capsys, tmp_path, "report", sinusoid_run, tmp_path)
    assert "needs a run" in refused(capsys, tmp_path, "report")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "a.html", tmp_path / "page.json"):
        assert "cannot be written" in refused(
            capsys, tmp_path, "report", sinusoid_run, "--out", out
        )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", '{"experiment": "sinusoid"}'),
        ("config.json", '{"experiment": "sinusoid", "config": {"batch": "many"}}'),
        ("log.jsonl", '{"step": 1}'),
        ("log.jsonl", '{"step": "soon", "seconds": 1, "losses": []}'),
        ("log.jsonl", '{"step": 1, "seconds": 1, "losses": [1], "system": {}}'),
        ("log.jsonl", '{"step": 1, "seconds": 1, "losses": [1], "faults": [3]}'),
        ("result.json", '{"test": 3}'),
        ("result.json", '{"test": {"mean": {"loss": [1]}, "interval_95": {}, "tasks": 1}}'),
        ("result.json", '{"cost": {"seconds_per_step": "long"}}'),
        ("test_tasks.npz", "rubbish"),
        ("fits.png", "rubbish"),
    ],
)
def test_report_refuses_a_damaged_run(own_run, tmp_path, capsys, name, content):
    (own_run / name).write_text(content)
    assert name in refused(capsys, tmp_path, "report", own_run)


def test_check_says_that_nothing_is_wrong(capsys):
    main(["check", "sinusoid", "--tasks", "2", "--trace-only", "--width", "5"])
    assert capsys.readouterr().out == "No findings.\n"


def test_check_exits_with_1_where_it_finds_an_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check", "sinusoid", "--inner-rate", "1e30", "--tasks", "2", "--width", "5"])
    assert caught.value.code == 1
    assert "error: not finite on 2 of 2 tasks: the loss, the gradient" in capsys.readouterr().out


def test_compare_tells_and_draws(own_run, tmp_path, capsys):
    figure = tmp_path / "compare.png"
    small = ["--batch", "2", "--width", "5", "--inner-steps", "1"]
    main(["compare", "sinusoid", *small, "--trained", str(own_run), "--figure", str(figure)])
    output = capsys.readouterr().out
    assert "Unroll(HoldConstant())" in output
    assert str(figure) in output.replace("\n", "")
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("check", "--tasks", "0"), "--tasks 1"),
        (("check", "--shots", "0"), "--shots 5"),
        (("compare", "--batch", "0"), "--batch 25"),
        (
            (
                "plan",
                "--inner-steps=-1",
            ),
            "--inner-steps 0",
        ),
        (("train", "--chunk", "1", "--memory", "1GiB"), "--chunk 1 --memory 1GiB"),
        (("train", "--clip-norm", "0"), "--clip-norm"),
    ],
)
def test_settings_out_of_range_are_named_by_their_flags(tmp_path, capsys, arguments, named):
    command, *flags = arguments
    assert named in refused(capsys, tmp_path, command, "sinusoid", *flags)


def test_a_run_of_other_settings_is_told_from_this_one(own_run, tmp_path, capsys):
    message = refused(
        capsys, tmp_path, "check", "sinusoid", "--width", "9", "--trained", str(own_run)
    )
    assert "other settings" in message
    assert "--width 5" in message
    message = refused(capsys, tmp_path, "compare", "digits", "--trained", str(own_run))
    assert "a run of sinusoid" in message


def test_train_takes_a_budget_and_checks_and_logs_for_tensorboard(tmp_path, capsys):
    run = tmp_path / "run"
    main([*SINUSOID, "--run", str(run), "--memory", "64MiB", "--check", "--tensorboard"])
    (events,) = run.glob("events.out.tfevents.*")
    assert b"validation/loss/interval_95" in events.read_bytes()
    assert "within 64MiB: Unroll(MixedMode())" in " ".join(capsys.readouterr().out.split())
    assert json.loads((run / "result.json").read_text())["chunk"] >= 1
    main(["evaluate", str(run), "--tasks", "3"])


def test_plan_fits_the_budget(capsys):
    main(["plan", "sinusoid", "--width", "5", "--batch", "2", "--memory", "1MiB"])
    assert "chosen" in capsys.readouterr().out


def test_a_budget_that_cannot_be_read_is_refused(tmp_path, capsys):
    assert "2parsecs" in refused(capsys, tmp_path, "plan", "sinusoid", "--memory", "2parsecs")


@pytest.mark.parametrize(
    "flags",
    without(["--averaging 0", "--cosine"], ["--averaging 0", "--cosine", "--inner-steps 1"]),
)
def test_settings_change_the_result(sinusoid_run, tmp_path, flags):
    main([*SINUSOID, *flags.split(), "--run", str(tmp_path / "run")])
    assert read(tmp_path / "run/result.json")["test"] != read(sinusoid_run / "result.json")["test"]


def test_an_interrupt_is_one_line_and_keeps_what_is_there(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("innerloop.lab.experiments.train.test_evaluation", interrupted)
    with pytest.raises(SystemExit) as caught:
        main([*SINUSOID, "--run", str(tmp_path / "run")])
    assert caught.value.code == 130
    error = capsys.readouterr().err
    assert error.startswith("innerloop: stopped")
    assert error.count("\n") == 1
    assert (tmp_path / "run/best.eqx").exists()


def test_evaluate_finds_out_before_it_works_that_it_cannot_write(own_run, capsys, monkeypatch):
    def too_late(*_, **__):
        raise AssertionError("evaluated first")

    monkeypatch.setattr("innerloop.lab.experiments.evaluation.test_evaluation", too_late)
    (own_run / "probe.tmp").mkdir()  # a file system that refuses, even for root
    assert "cannot be written" in refused(capsys, own_run, "evaluate", own_run)


def test_a_reader_that_has_gone_ends_the_command_quietly():
    """As `head` does; a shell then reports SIGPIPE."""
    command = [sys.executable, "-m", "innerloop", "plan", "sinusoid", "--width", "5"]
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes) as output:
        result = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--ways 50", "ways=50"),
        ("--ways 1", "ways"),
        ("--shots 500", "shots=500"),
        ("--shots 0", "shots"),
        ("--test-queries 500", "queries=500"),
        ("--inner-steps -1", "inner-steps"),
        ("--test-steps -1", "test-steps"),
        ("--steps 0", "steps"),
        ("--steps -5", "steps"),
        ("--batch 0", "batch"),
        ("--validate-every 0", "validate-every"),
        ("--validation-tasks 0", "validation-tasks"),
        ("--test-tasks 0", "test-tasks"),
        ("--per-call 0", "per-call"),
        ("--chunk 0", "chunk"),
        ("--filters 0", "filters"),
        ("--outer-rate nan", "outer-rate"),
        ("--inner-rate inf", "inner-rate"),
        ("--minutes nan", "minutes"),
        ("--seed 99999999999999999999", "seed"),
    ],
)
def test_numbers_that_make_no_run_are_refused(arguments, named, tmp_path, capsys):
    run = tmp_path / "run"
    assert named in refused(capsys, tmp_path, *DIGITS, *arguments.split(), "--run", run)


def omniglot(capsys, tmp_path, *arguments):
    train = ["train", "omniglot", *SMALL, "--filters", "4", "--run", tmp_path / "run"]
    return refused(capsys, tmp_path, *train, *arguments)


@pytest.mark.parametrize(
    ("flags", "package", "extra"),
    [("--tensorboard", "tensorboardX", "tensorboard"), ("--wandb project", "wandb", "wandb")],
)
def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path, capsys, monkeypatch, flags, package, extra
):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    message = refused(capsys, tmp_path, *SINUSOID, "--run", tmp_path / "run", *flags.split())
    assert f"pip install 'innerloop[{extra}]'" in message


def test_an_unknown_data_folder_is_named(tmp_path, capsys):
    assert "nowhere" in omniglot(capsys, tmp_path, "--data", tmp_path / "nowhere")


def test_an_unknown_data_folder_of_the_environment_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("INNERLOOP_DATA", str(tmp_path / "nowhere"))
    error = omniglot(capsys, tmp_path)
    assert "nowhere" in error
    assert "INNERLOOP_DATA" in error


def test_a_missing_archive_is_named(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    error = omniglot(capsys, tmp_path, "--data", tmp_path / "data")
    assert "images_background.zip" in error


def test_a_corrupt_archive_is_named(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / "data" / name).write_bytes(b"not an archive")
    error = omniglot(capsys, tmp_path, "--data", tmp_path / "data")
    assert "corrupt" in error


def test_a_run_folder_below_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    error = refused(capsys, tmp_path, *SINUSOID, "--run", tmp_path / "file" / "run")
    assert "cannot be written" in error


def test_a_folder_that_holds_a_run_is_refused(sinusoid_run, capsys):
    error = refused(capsys, sinusoid_run, *SINUSOID, "--run", sinusoid_run)
    assert "already holds a run" in error


def test_evaluate_without_a_run_is_refused(tmp_path, capsys):
    assert "no run" in refused(capsys, tmp_path, "evaluate", tmp_path)
    assert "no run" in refused(capsys, tmp_path, "evaluate", tmp_path / "none")


@pytest.mark.parametrize(
    "arguments",
    [
        [*SINUSOID, "--run", ""],
        [*SINUSOID, "--run="],
        ["train", "omniglot", "--data", ""],
        [*SINUSOID, "--pretrained", ""],
        ["report", ""],
        ["demo", "--folder", ""],
    ],
)
def test_an_empty_argument_is_no_path(arguments, tmp_path, capsys):
    """An empty path is the current folder, and a variable of a shell may have no value."""
    assert "an argument is empty" in refused(capsys, tmp_path, *arguments)


@pytest.mark.parametrize(
    "flag",
    [
        *("--steps", "--batch", "--validate-every", "--validation-tasks", "--test-tasks"),
        *("--chunk", "--save-every", "--per-call", "--shots", "--inner-steps", "--test-steps"),
        *("--width", "--train-shots", "--devices"),
    ],
)
def test_counts_beyond_any_machine_are_refused(flag, tmp_path, capsys):
    error = refused(capsys, tmp_path, *SINUSOID, flag, 10**10, "--run", tmp_path / "run")
    assert flag.strip("-") in error.replace("_", "-")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--memory", "1KiB"), "smaller than what the trainer keeps"),
        pytest.param(("--batch", 2**31 - 1), "more memory than there is", marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("run", ["deep/run", "mine"])
def test_a_run_that_is_refused_before_its_first_step_leaves_nothing(
    flags, named, run, tmp_path, capsys
):
    (tmp_path / "mine").mkdir()
    assert named in refused(capsys, tmp_path, *SINUSOID, *flags, "--run", tmp_path / run)


def test_a_run_without_its_config_is_noticed(sinusoid_run, tmp_path, capsys):
    run = shutil.copytree(sinusoid_run, tmp_path / "run")
    (run / "config.json").unlink()
    assert "already holds a run" in refused(capsys, tmp_path, *SINUSOID, "--run", run)
    with pytest.warns(UserWarning, match=r"without its config\.json\. The file is written again"):
        main([*SINUSOID, "--run", str(run), "--resume"])
    assert read(run / "config.json")["config"]["steps"] == 4


def test_a_finished_run_that_is_resumed_shows_its_steps(sinusoid_run, tmp_path, capsys):
    """Also where its log is damaged, which the run then mends."""
    run = shutil.copytree(sinusoid_run, tmp_path / "run")
    whole = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text('{"step": "soon"}\n' + whole)
    assert "makes the file anew" in refused(capsys, tmp_path, "report", run)
    main([*SINUSOID, "--run", str(run), "--resume"])
    shown = capsys.readouterr().out
    assert "step 4 is in the log" in shown
    assert [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] == [
        json.loads(line) for line in whole.splitlines()
    ]


def test_a_demo_that_is_stopped_tells_the_command_that_goes_on(tmp_path, capsys, monkeypatch):
    asked, command = [], ["innerloop", "demo", "--folder", "my runs"]

    def stopped(experiment, run):
        asked.append((experiment, run))
        raise Stopped(signal.SIGTERM, 4)

    monkeypatch.setattr("innerloop.lab.experiments.train.train", stopped)
    for _ in range(2):  # The second time the command of the first.
        with pytest.raises(SystemExit) as caught:
            main(command[1:])
        assert caught.value.code == 128 + signal.SIGTERM
        error = capsys.readouterr().err
        assert "stopped by signal 15 at outer step 4, which is saved" in error
        if len(asked) == 1:
            command = shlex.split(error.split("; ")[1].split(" goes on")[0])
            assert command[0] == "innerloop"
    assert asked[0] == asked[1]


def test_a_demo_goes_on_with_both_runs_in_its_folder(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("innerloop.lab.cli._train", asked.append)
    main(["demo", "--folder", str(tmp_path / "demo")])
    main(["demo"])
    folders = [tmp_path / "demo" / name for name in ("sinusoid", "digits")]
    assert [experiment.run for experiment in asked[:2]] == folders
    assert all(experiment.resume for experiment in asked)
    assert asked[2].run.parent == asked[3].run.parent != tmp_path / "demo"


def test_a_run_whose_name_is_no_text_is_refused(tmp_path, capsys):
    run = os.fsencode(tmp_path) + b"/\xff"
    assert "not UTF-8" in refused(capsys, tmp_path, *SINUSOID, "--run", os.fsdecode(run))


@pytest.mark.parametrize("arguments", ["--tasks 0", "--steps -1", "--shots 0"])
def test_evaluate_refuses_counts_out_of_range(sinusoid_run, capsys, arguments):
    flag, *_ = arguments.split()
    error = refused(capsys, sinusoid_run, "evaluate", sinusoid_run, *arguments.split())
    assert flag in error


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "{}"),
        ("config.json", '{"experiment": "unknown", "config": {}}'),
        ("config.json", '{"experiment": "sinusoid", "config": {"colour": 1}}'),
        ("config.json", '{"experiment": "sinusoid", "config": null}'),
        ("config.json", '{"experiment": "sinusoid", "config": {"test_tasks": "many"}}'),
        ("best.eqx", ""),
        ("best.eqx", "rubbish"),
    ],
)
def test_evaluate_refuses_a_damaged_run(sinusoid_run, tmp_path, capsys, name, content):
    run = shutil.copytree(sinusoid_run, tmp_path / "run")
    (run / name).write_text(content)
    assert str(run / name) in refused(capsys, tmp_path, "evaluate", run)


def test_a_loss_that_diverges_is_one_line(tmp_path, capsys):
    arguments = [*SINUSOID, "--inner-rate", "1e30", "--run", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith(
        "innerloop: the loss, the meta-gradient or the model state is no longer finite"
    )
    assert error.count("\n") == 1
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    (fault,) = json.loads(log[-1])["faults"]
    assert (fault["step"], fault["policy"]) == (0, "stop")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--devices gpu", "Expected: all, None or a whole number from 1"),
        ("--chunk all", "Expected: None or a whole number from 1"),
        ("--clip-norm small", "Expected: None or a finite number above 0"),
    ],
)
def test_a_word_that_is_no_number_is_told_what_is(flags, expected, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*SINUSOID, *flags.split()])
    assert caught.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert expected in said
    assert "typing" not in said and "Field(" not in said


def test_words_and_numbers_are_read(capsys):
    for flags in ("--devices all --chunk 2", "--devices 1 --chunk None", "--clip-norm 0.5"):
        main(["check", "sinusoid", "--width", "5", "--tasks", "2", "--trace-only", *flags.split()])
    assert capsys.readouterr().out == 3 * "No findings.\n"


def test_fewer_steps_than_were_taken_are_refused_by_the_flag(sinusoid_run, tmp_path, capsys):
    run = shutil.copytree(sinusoid_run, tmp_path / "run")
    flags = ("--no-cosine", "--steps")
    main([*SINUSOID, *flags, "3", "--run", str(tmp_path / "own")])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*SINUSOID, *flags, "2", "--run", str(tmp_path / "own"), "--resume"])
    shown = capsys.readouterr()
    assert shown.err.endswith("Write: --steps 3\n")
    assert "3/2" not in shown.out
    assert "the runs in its folders are" in refused(capsys, tmp_path, "report", tmp_path)
    assert str(run) in refused(capsys, tmp_path, "report", tmp_path)


def test_unknown_flags_and_experiments_exit_with_2(capsys):
    for arguments in (["train", "nothing"], [*DIGITS, "--colour", "1"], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
