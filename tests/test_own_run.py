"""A run folder for a fit of one's own."""

import json

import jax
import numpy as np
import optax
import pytest
from points import HELD_OUT, KEY, POINTS, assert_same_bits, point_recipe
from rich.console import Console
from test_report import make_run

from innerloop.errors import RunError, StructureError
from innerloop.lab import best_meta, own_run, write_report
from innerloop.lab.experiments import progress
from innerloop.lab.run_folder import RunFolder
from innerloop.training import Evaluation, Validation, evaluate, fit, load_meta

RECIPE = point_recipe()
CONFIG = {"seed": 0, "steps": 6, "batch": 3, "note": ["a", 1.5]}


def trained(run, steps=6, resume=False, **changed):
    options = {"optimizer": optax.adam(0.1), "key": KEY, "per_call": 2, "steps": steps}
    options |= {"report": run.report, "checkpoints": run.checkpoints, "resume": resume}
    validation = Validation(HELD_OUT, 2)
    estimator = RECIPE.estimator(POINTS, batch=3)
    return fit(estimator, RECIPE.init_meta, validation=validation, **(options | changed))


def judged(outcome):
    return evaluate(outcome.learner, outcome.meta, HELD_OUT, KEY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "mine"
    with own_run(folder, CONFIG) as run:
        outcome = trained(run)
        run.finish(outcome, judged(outcome))
    return folder, outcome


def test_the_folder_is_that_of_an_experiment(whole, tmp_path):
    folder, outcome = whole
    names = {path.name for path in folder.iterdir()}
    figures = {"learning_curve.png", "validation_over_time.png", "adaptation_curve.png"}
    files = {"config.json", "log.jsonl", "best.eqx", "result.json", "checkpoints", "lock"}
    assert names - {"report.html"} == files | figures
    result = json.loads((folder / "result.json").read_text())
    assert result["config"] == CONFIG
    assert result["best_step"] == outcome.best_step
    np.testing.assert_allclose(result["test"]["mean"]["loss"], judged(outcome).mean["loss"])
    assert result["cost"]["flops_per_step"] > 0
    like = jax.eval_shape(RECIPE.init_meta, KEY)
    assert_same_bits(load_meta(folder / "best.eqx", like), outcome.meta)
    page = write_report([folder]).read_text()
    assert "own: mine" in page
    assert "5 tasks, 1 inner steps" in page
    beside = write_report([folder, make_run(tmp_path / "other")], tmp_path / "both.html")
    assert "2 runs of own and" in beside.read_text()


def test_a_run_that_goes_on_has_the_same_bits(whole, tmp_path):
    for steps in (4, 6):  # the same lines begin the run and go on with it
        with own_run(tmp_path / "run", CONFIG | {"steps": steps}, resume=True) as run:
            outcome = trained(run, steps, resume=True)
    assert_same_bits(outcome.meta, whole[1].meta)
    assert [line["step"] for line in RunFolder(tmp_path / "run").read_log()] == [2, 4, 6]
    page = write_report([tmp_path / "run"]).read_text()
    assert "not finished" in page


def test_it_prints_lines_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    with own_run(tmp_path / "run") as run:
        trained(run, 4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 2", "step 4"]
    monkeypatch.setattr(progress, "get_console", lambda: Console(force_terminal=True))
    folder = RunFolder(tmp_path / "run")
    for steps in (None, 4):
        with progress.progress_display(steps, "accuracy", folder) as bar:
            assert isinstance(bar, progress.ProgressBar)
            with own_run(tmp_path / f"another{steps}") as run:
                trained(run, 2, report=bar)


def test_a_run_in_the_folder_is_left_alone(whole):
    folder, _ = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(RunError, match="there is a run in this folder"), own_run(folder, CONFIG):
        pass
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_that_is_refused_leaves_nothing(tmp_path):
    with pytest.raises(StructureError, match="steps"), own_run(tmp_path / "run") as run:
        trained(run, steps=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "config",
    [{"key": KEY}, {"seed": 1.5}, {"steps": "many"}, {"f": len}, {"x": {2, 3}}],
)
def test_settings_that_json_does_not_have_are_refused(config, tmp_path):
    with pytest.raises(StructureError, match="cannot be recorded"), own_run(tmp_path / "x", config):
        pass
    assert not list(tmp_path.iterdir())


def test_an_evaluation_without_the_metric_is_refused(whole, tmp_path):
    one = np.ones(1)
    with own_run(tmp_path / "run", metric="accuracy") as run:
        with pytest.raises(StructureError, match=r"the metric of the run, accuracy.*with loss"):
            run.finish(whole[1], Evaluation({"loss": one}, {"loss": one}, 1))
        assert not (run.path / "result.json").exists()


def test_a_run_of_ones_own_is_no_experiment(whole, tmp_path):
    with pytest.raises(RunError, match=r"experiment of innerloop.*load_meta"):
        best_meta(whole[0])
    RunFolder.begin(tmp_path / "run", {"experiment": "digits", "config": {}}).close()
    with (
        pytest.raises(RunError, match="another experiment"),
        own_run(tmp_path / "run", resume=True),
    ):
        pass
