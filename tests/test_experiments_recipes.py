"""Recipes on the command line: chosen by name, refused where they do not fit; older runs."""

import json

import jax
import numpy as np
import optax
import pytest

import innerloop as il
from innerloop.errors import StructureError
from innerloop.lab.cli import main
from innerloop.lab.experiments.digits import Digits
from innerloop.lab.experiments.omniglot import Omniglot
from innerloop.lab.experiments.photographs import MiniImageNet
from innerloop.lab.experiments.sinusoid import Sinusoid
from innerloop.lab.experiments.table import EXPERIMENTS
from innerloop.lab.experiments.train import on_tasks, outer_optimizer
from innerloop.recipes import RECIPES
from innerloop.tasks import ClassificationTasks, LabelledRows

SMALL = [
    "--steps",
    "2",
    "--batch",
    "2",
    "--validate-every",
    "2",
    "--validation-tasks",
    "3",
    "--test-tasks",
    "3",
    "--per-call",
    "2",
    "--test-steps",
    "2",
    "--width",
    "4",
]


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))


def held_out(experiment):
    return experiment.parts().held_out[""]


def refused(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_a_recipe_without_inner_steps_has_one_result(tmp_path, capsys):
    main(["train", "sinusoid", *SMALL, "--recipe", "r2d2", "--run", str(tmp_path / "run")])
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["config"]["recipe"] == "r2d2"
    assert len(result["test"]["mean"]["loss"]) == 1
    assert (tmp_path / "run/fits.png").exists()
    error = refused(capsys, "evaluate", str(tmp_path / "run"), "--steps", "3")
    assert "r2d2 learns a task in one go" in error


def test_shots_in_training_and_at_test():
    shots = lambda kind, **settings: (
        kind(**settings).parts().estimator.tasks.shots,
        held_out(kind(**settings)).test.shots,
    )
    assert shots(Sinusoid) == (10, 5)
    assert shots(Sinusoid, shots=3) == (10, 3)
    assert shots(Sinusoid, shots=3, train_shots=None) == (3, 3)
    assert shots(Digits, shots=3, train_shots=2) == (2, 3)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_an_experiment_on_images(name):
    """Only pretraining sees all classes at once."""
    experiment = Digits(recipe=name, filters=4)
    kind = LabelledRows if name == "pretrain_finetune" else ClassificationTasks
    assert isinstance(experiment.parts().estimator.tasks, kind)
    assert isinstance(held_out(experiment).test, ClassificationTasks)
    assert callable(held_out(experiment).learner.predict)


def test_given_settings_go_before_those_of_the_paper():
    steps = lambda **settings: Digits(recipe="maml", **settings).parts().trained_steps
    assert (steps(), steps(inner_steps=4)) == (1, 4)
    assert Sinusoid().parts().trained_steps == 3
    assert Sinusoid(recipe="reptile").parts().trained_steps == 10
    with pytest.raises(StructureError, match="protonet has no rate"):
        Digits(recipe="protonet", inner_rate=0.1).parts()


def test_the_command_line_names_what_it_refuses(capsys):
    error = refused(capsys, "train", "digits", "--recipe", "protonet", "--inner-steps", "2")
    assert "protonet has no steps" in error
    assert "matching" not in refused(capsys, "train", "sinusoid", "--recipe", "mamil")


def test_training_with_more_ways_than_at_test():
    experiment = Digits(recipe="protonet", ways=2, train_ways=3, filters=4)
    estimator, tested = experiment.parts().estimator, held_out(experiment)
    assert (estimator.tasks.ways, tested.test.ways) == (3, 2)
    assert (estimator.adaptation.ways, tested.learner.adaptation.ways) == (3, 2)
    with pytest.raises(StructureError, match=r"maml learns parameters of each class.*train_ways=3"):
        Digits(recipe="maml", ways=2, train_ways=3).parts()


def test_reptile_trains_on_more_shots_than_it_is_tested_with():
    experiment = Digits(recipe="reptile", filters=4)
    estimator, tested = experiment.parts().estimator, held_out(experiment)
    assert (estimator.tasks.shots, tested.test.shots) == (10, 1)
    assert estimator.adaptation == il.MiniBatches(estimator.adaptation.adaptation, 10)
    assert (estimator.adaptation.steps, tested.learner.adaptation.steps) == (5, 50)
    assert Digits(recipe="reptile", train_shots=2).parts().estimator.tasks.shots == 2
    assert Digits(recipe="maml").parts().estimator.tasks.shots == 1


def test_a_mini_batch_has_no_more_rows_than_there_are():
    rows = lambda **settings: Digits(recipe="reptile", **settings).build_recipe().adaptation.size
    assert (rows(), rows(train_shots=1), rows(ways=2, train_shots=3)) == (10, 5, 6)


def test_settings_of_images_are_not_those_of_the_sinusoids():
    rate = lambda kind, name: kind(recipe=name).recipe_settings()["rate"]
    assert [rate(kind, "anil") for kind in (Omniglot, MiniImageNet)] == [0.4, 0.01]
    for kind in (Omniglot, MiniImageNet):
        meta = kind(recipe="r2d2").build_recipe().init_meta(jax.random.key(0))
        np.testing.assert_allclose(meta["log_scale"], np.log(10), rtol=1e-6)
        assert kind(recipe="reptile").build_recipe().adaptation.size == 10


@pytest.mark.parametrize("kind", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_a_run_is_saved_before_its_end(kind):
    assert kind().save_every < kind().steps


def test_what_is_known_before_training_is_of_the_first_step():
    """MAML++ begins with a loss after each step, and ends with the last alone."""
    experiment = Digits(recipe="maml_plus_plus", filters=4, batch=1)
    assert experiment.build_recipe().problem.step_weights is None
    problem, *_ = on_tasks(experiment, 1, None)
    np.testing.assert_allclose(problem.step_weights(5), [0, *[0.2] * 5], rtol=1e-6)


def test_twenty_ways_have_settings_of_their_own():
    recipe = lambda **settings: Omniglot(recipe="maml", **settings).build_recipe()
    assert (recipe().adaptation.steps, recipe(ways=20).adaptation.steps) == (1, 5)
    assert recipe(ways=20, inner_steps=2).adaptation.steps == 2


@pytest.mark.parametrize("flag", ["--ways", "--train-ways"])
def test_one_class_is_refused_by_the_name_of_its_flag(flag, capsys):
    error = refused(capsys, "train", "digits", "--recipe", "protonet", flag, "1")
    assert "is out of range" in error
    assert f"Write: {flag} " in error


@pytest.mark.parametrize("norm", [None, 2.0])
def test_long_meta_gradients_are_clipped_before_adam(norm):
    """Adam forgets a length that never changes: here the first gradient is a hundred times one."""
    gradients = [jax.numpy.array([300.0, 400.0]), jax.numpy.array([3.0, -4.0])]

    def after(optimizer, gradients):
        state = optimizer.init(gradients[0])
        for gradient in gradients:
            update, state = optimizer.update(gradient, state)
        return update

    shortened = [g * (1 if norm is None else norm / np.linalg.norm(g)) for g in gradients]
    experiment = Sinusoid(clip_norm=norm, cosine=False, outer_rate=0.01)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax's own
        got = after(outer_optimizer(experiment), gradients)
        expected = after(optax.adam(0.01), shortened)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
