"""`learned-optimizer` on the command line: trained, resumed, evaluated, reported, used."""

import dataclasses
import functools
import json
import shutil
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import innerloop as il
import innerloop.lab
from innerloop.lab.cli import main
from innerloop.lab.experiments import optimizer_trials
from innerloop.lab.experiments.learned_optimizer import (
    ESTIMATORS,
    OptimizerName,
    OptimizerTraining,
    log_loss,
    share_out,
)
from innerloop.lab.experiments.table import best_meta
from innerloop.lab.experiments.train import outer_optimizer

# Where the groups are honoured, one worker makes the run that the tests share.
pytestmark = pytest.mark.xdist_group("learned-optimizer")

TINY = {
    "families": "quadratic noisy-quadratic",
    "optimizer": "schedule",
    "estimator": "persistent_es",
    "batch": 2,
    "horizon": 10,
    "window": 5,
    "pairs": 1,
    "validate-every": 2,
    "validation-tasks": 4,
    "test-tasks": 4,
    "per-call": 2,
    "save-every": 2,
}


def command(**settings):
    flags = TINY | {"steps": 4} | {name.replace("_", "-"): x for name, x in settings.items()}
    parts = [(f"--{name}", *str(value).split()) for name, value in flags.items()]
    return ["train", "learned-optimizer", "--no-cosine", *(word for part in parts for word in part)]


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("learned") / "run"
    main(command(run=path))
    return path


def test_a_run_leaves_its_results_and_the_optimizer(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.json", "log.jsonl", "best.eqx", "result.json", "learned.opt"}
    assert names >= {"learning_curve.png", "adaptation_curve.png", "checkpoints"}
    result = read(run / "result.json")
    assert result["experiment"] == "learned-optimizer"
    assert result["outer_steps"] == 4 and result["best_step"] in (2, 4)
    assert result["trained_steps"] == 10
    assert result["cost"]["flops_per_step"] > 1e4
    test = result["test"]
    assert test["tasks"] == 4 and len(test["mean"]["loss"]) == 11
    families = [test["mean"][f"{name}/loss"] for name in ("quadratic", "noisy-quadratic")]
    np.testing.assert_allclose(test["mean"]["loss"], np.mean(families, axis=0), rtol=1e-6)
    assert 0 < test["mean"]["loss"][0] < np.log(10)  # of the quadratics, near log 3


def test_any_optax_loop_takes_the_optimizer(run):
    learned, meta = il.optimizers.load_optimizer(run / "learned.opt")
    assert isinstance(learned, il.optimizers.LearnedSchedule)
    jax.tree.map(np.testing.assert_array_equal, meta, best_meta(run))
    optimizer, params = learned(meta), jnp.ones(3)
    with jax.numpy_dtype_promotion("standard"):  # optax promotes by itself
        updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert np.all(np.isfinite(optax.apply_updates(params, updates)))


@pytest.mark.full
def test_a_run_that_goes_on_is_the_same_to_the_bit(run, tmp_path):
    path = tmp_path / "run"
    main(command(run=path, steps=2))
    main([*command(run=path), "--resume"])
    assert (path / "best.eqx").read_bytes() == (run / "best.eqx").read_bytes()
    assert read(path / "result.json")["test"] == read(run / "result.json")["test"]


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(run, path)
    baselines = {name: optimizer_trials.BASELINES[name] for name in ("SGD", "Adam")}
    few = functools.partial(optimizer_trials.tuned_trials, rates=np.array([0.01, 0.1, 1.0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer_trials, "BASELINES", baselines)
        patch.setattr(optimizer_trials, "tuned_trials", few)
        main(["evaluate", str(path), "--tasks", "3", "--steps", "6", "--seed", "1"])
    return path


def test_evaluate_holds_it_against_tuned_optimizers(evaluated):
    record = read(evaluated / "optimizers-seed1-steps6-tasks3.json")
    assert record["settings"] == {"steps": 6, "tasks": 3, "seed": 1}
    assert set(record["families"]) == {"quadratic", "noisy-quadratic"}
    assert set(record["seconds_per_step"]) == {"learned", "SGD", "Adam"}
    learned, meta = il.optimizers.load_optimizer(evaluated / "learned.opt")
    for name, found in record["families"].items():
        assert list(found) == ["learned", "SGD", "Adam", optimizer_trials.PER_TASK]
        (family,) = (
            each for each in il.tasks.optimization.training_families() if each.name == name
        )
        settings = record["settings"]
        trial = optimizer_trials.learned_trial(family, learned, meta, **settings)
        median = np.median(optimizer_trials.last(trial.losses))
        np.testing.assert_allclose(found["learned"]["final"][1], median, rtol=1e-5)  # six digits
        assert found[optimizer_trials.PER_TASK]["final"][1] <= found["Adam"]["final"][1]
        assert found["Adam"]["rates"][0] in (0.01, 0.1, 1.0)


@pytest.mark.parametrize("given", [1, 7])
def test_an_optimizer_that_knows_the_end_of_a_run_is_told_it(given, monkeypatch):
    seen = []
    monkeypatch.setattr(optimizer_trials, "seconds_per_step", lambda *args, steps: 0.0)
    note = lambda family, learned, meta, **settings: seen.append((family.name, learned.horizon))
    monkeypatch.setattr(optimizer_trials, "family_record", note)
    held_out = ("ill-conditioned-quadratic", "quadratic")
    trained = OptimizerTraining(horizon=given)
    name, _ = optimizer_trials.optimizer_record(trained, None, families=held_out)
    assert seen == [(each, given) for each in held_out]
    assert "-2-families-" in name


def test_the_report_shows_curves_and_table(evaluated):
    main(["report", str(evaluated)])
    page = (evaluated / "report.html").read_text()
    assert page.count("loss on ") == 2 and "loss on noisy-quadratic in 6 steps" in page
    section = page.split("<h2>Against tuned optimizers</h2>")[1].split("</section>")[0]
    record = read(evaluated / "optimizers-seed1-steps6-tasks3.json")
    for found in record["families"].values():
        for name, each in found.items():
            assert name in section
            assert f"{each['final'][1]:.3g} (" in section
    with pytest.raises(il.errors.RunError, match=r"optimizers-seed1-steps7-tasks3\.json"):
        (evaluated / "optimizers-seed1-steps7-tasks3.json").write_text("{}")
        il.lab.write_report([evaluated])


REFUSED = {
    "family": (command(families="quadratic nothing"), "families are training or held-out families"),
    "batch": (command(batch=1), "batch holds a task of every family"),
    "window": (command(window=3), "a horizon is made of whole windows"),
    "sigma": (command(sigma=0), "sigma=0"),
    "bound": (command(bound=-1.0), "bound is out of range"),
    "decay": (command(weight_decay=-0.1), "weight_decay is out of range"),
    "clip": (command(loss_clip=2.0, estimator="unroll"), "clipped by the estimators that go by"),
    "norm": (command(clip_norm=-1.0), "clip_norm is out of range"),
    "task norm": (command(task_norm=0, estimator="unroll"), "norm must be a finite number above 0"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_do_not_fit_are_refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--run", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and "Expected: " in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--ways", "--recipe", "--memory", "--inner-rate"])
def test_flags_of_few_shot_learning_are_none_of_it(flag, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command(run=tmp_path / "run"), flag, "2"])
    assert caught.value.code == 2 and "nrecognized" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--shuffle-support-labels"],
        ["--protocol", "omniglot-one-shot"],
        ["--shots", "5"],
        ["--families", "no-such-family"],
        ["--steps", "-1"],
    ],
)
def test_an_evaluation_of_few_shot_tasks_is_refused(run, words, capsys):
    before = set(run.iterdir())
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(run), *words])
    assert caught.value.code == 2 and "Expected: " in capsys.readouterr().err
    assert set(run.iterdir()) == before


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_of_the_flag_is_built(estimator):
    experiment = OptimizerTraining(estimator=estimator, families=("quadratic",), window=10, pairs=3)
    (built,) = experiment.parts().estimator.parts
    if isinstance(built, il.WholeTasks):
        assert built.gradient.norm == 1.0
        built = built.gradient.gradient
    assert getattr(built, "window", 10) == 10 and getattr(built, "pairs", 3) == 3
    assert type(built).__name__.lower() == estimator.replace("_", "")


def test_without_a_task_norm_nothing_is_clipped():
    experiment = OptimizerTraining(estimator="unroll", families=("quadratic",), task_norm=None)
    assert isinstance(experiment.parts().estimator.parts[0].gradient, il.Unroll)


@pytest.mark.parametrize("bound", [None, 0.25])
def test_families_that_see_mini_batches_are_bounded(bound):
    names = ("quadratic", "wine-linear")
    experiment = OptimizerTraining(families=names, bound=bound, task_norm=None)
    exact = il.Unroll(il.MixedMode())
    bounded = exact if bound is None else il.Unroll(il.gradients.Bound(bound, of=il.MixedMode()))
    assert [part.gradient for part in experiment.parts().estimator.parts] == [exact, bounded]


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_of_the_flag_can_be_saved(name, tmp_path):
    learned = OptimizerTraining(optimizer=name, horizon=30).learned()
    meta = learned.init(jax.random.key(0), jnp.zeros(3))
    again, _ = il.optimizers.load_optimizer(
        il.optimizers.save_optimizer(tmp_path / "one", learned, meta)
    )
    said = lambda each: {name: repr(value) for name, value in vars(each).items()}
    assert said(again) == said(learned)  # a direction is a partial, which equals itself alone


def test_the_objective_is_the_log_loss_half_of_it_at_the_end():
    (family,) = OptimizerTraining(families=("quadratic",)).training_families()
    objective, episodes = log_loss(family), family.tasks.sample(jax.random.key(0), 1)
    losses, logs = (
        il.evaluate(
            il.Learner(each.problem, each.adaptation(optax.sgd(0.1), 4)),
            None,
            episodes,
            jax.random.key(0),
        ).mean["loss"]
        for each in (family, objective)
    )
    np.testing.assert_allclose(logs, np.log(losses + 1e-4), rtol=1e-5)
    weights = objective.problem.step_weights(4)
    np.testing.assert_allclose(weights, [0.1, 0.1, 0.1, 0.1, 0.6], rtol=1e-6)


def test_the_objective_of_mini_batches_reads_as_many_rows_after_every_step():
    """Drawn once for a run: two mini-batches of the query set."""
    (family,) = OptimizerTraining(families=("wine-linear",)).training_families()
    objective = log_loss(family)
    episode = jax.tree.map(lambda leaf: leaf[0], family.tasks.sample(jax.random.key(0), 1))
    params, key = family.params(jax.random.key(1)), jax.random.key(2)
    value = lambda query, key: objective.problem.outer_loss(params, None, query, key)[0]
    rows = len(episode.query.targets)
    spoilt = [value(_spoilt(episode.query, row), key) for row in range(rows)]
    assert np.sum(~np.isfinite(spoilt)) == 2 * family.batch < rows
    assert value(episode.query, key) == value(episode.query, key)
    assert value(episode.query, key) != value(episode.query, jax.random.key(3))


def _spoilt(batch, row):
    return dataclasses.replace(batch, inputs=batch.inputs.at[row].set(jnp.nan))


def test_the_outer_decay_spares_logarithms_of_rates():
    """Towards zero, a logarithm goes to a rate of one."""
    meta = {"log_rates": {"w": jnp.ones(2)}, "head": {"weights": jnp.ones(2)}}
    optimizer = outer_optimizer(OptimizerTraining(weight_decay=0.5, outer_rate=0.1, cosine=False))
    zeros = jax.tree.map(jnp.zeros_like, meta)
    with jax.numpy_dtype_promotion("standard"):  # optax promotes by itself
        moves, _ = optimizer.update(zeros, optimizer.init(meta), meta)
    np.testing.assert_array_equal(moves["log_rates"]["w"], 0)
    np.testing.assert_allclose(moves["head"]["weights"], -0.05, rtol=1e-6)


def test_without_decay_the_outer_optimizer_is_adam_as_it_was():
    """Its state is in checkpoints, leaf by leaf: runs from before the flag go on."""
    experiment = OptimizerTraining(weight_decay=0.0, clip_norm=None, cosine=False)
    meta = {"weights": jnp.ones(2)}
    state = outer_optimizer(experiment).init(meta)
    assert jax.tree.structure(state) == jax.tree.structure(optax.adam(1e-3).init(meta))


def test_a_family_that_is_a_formula_counts_a_quarter():
    """Whatever its name, so that networks are not outvoted."""
    names = ("quadratic", "ill-conditioned-quadratic", "wine-linear", "text")
    parts = OptimizerTraining(families=names, batch=24).parts()
    assert parts.estimator.names == names
    np.testing.assert_allclose(parts.estimator.shares, [0.1, 0.1, 0.4, 0.4])
    assert [part.batch for part in parts.estimator.parts] == [3, 3, 9, 9]


@pytest.mark.parametrize(
    ("n", "weights", "shares"),
    [(8, (3.0, 1.0), [6, 2]), (2, (9.0, 1.0), [1, 1]), (7, (1.0, 1.0, 1.0), [3, 2, 2])],
)
def test_every_family_has_its_share_and_one_task_at_least(n, weights, shares):
    assert share_out(n, weights) == shares


@pytest.mark.full
def test_the_default_estimator_trains_from_the_command_line(tmp_path):
    """Exact on the quadratic and bounded on the table, each kind with its own."""
    words = command(families="quadratic wine-linear", run=tmp_path / "run", steps=2, horizon=3)
    for flag in ("--estimator", "--window", "--optimizer"):
        del words[(i := words.index(flag)) : i + 2]
    main(words)
    result = read(tmp_path / "run" / "result.json")
    assert result["outer_steps"] == 2 and result["faults"] == 0
    assert result["cost"]["flops_per_step"] > 1e4 and result["cost"]["unreached"] == []
    assert isinstance(
        il.optimizers.load_optimizer(tmp_path / "run" / "learned.opt")[0],
        il.optimizers.AdamController,
    )
