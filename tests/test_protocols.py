"""`innerloop evaluate RUN --protocol omniglot-one-shot`."""

import json

import jax
import numpy as np
import pytest

from innerloop.lab.cli import main
from innerloop.lab.experiments import omniglot
from innerloop.tasks import ClassificationTasks, Splits, upright

SMALL = [
    *("--ways", "5", "--steps", "2", "--batch", "2", "--validate-every", "2", "--filters", "2"),
    *("--validation-tasks", "2", "--test-tasks", "2", "--per-call", "2", "--queries", "1"),
    *("--test-queries", "1"),
]


@pytest.fixture(autouse=True)
def small_omniglot(monkeypatch, tmp_path):
    """Characters of 28 x 28 random pixels, two drawings of each alike, and two runs of them."""
    monkeypatch.setenv("INNERLOOP_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    characters = random.integers(0, 256, (3, 20, 1, 28, 28)).astype(np.uint8)
    drawings = np.repeat(characters, 2, axis=2)
    splits = Splits(*map(upright, drawings))
    monkeypatch.setattr(omniglot, "omniglot", lambda data: splits)
    episodes = ClassificationTasks(splits.test, 20, 1, 1).sample(jax.random.key(0), 2)
    monkeypatch.setattr(omniglot, "omniglot_one_shot", lambda data: episodes)


def trained(recipe, run, *flags):
    main(["train", "omniglot", *SMALL, "--recipe", recipe, "--run", str(run), *flags])
    return str(run)


def refused(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.full
def test_a_recipe_without_outputs_of_its_own_is_tested_on_twenty_classes(tmp_path, capsys):
    run = trained("protonet", tmp_path / "run")
    main(["evaluate", run, "--protocol", "omniglot-one-shot"])
    record = json.loads((tmp_path / "run/evaluation-omniglot-one-shot-steps0.json").read_text())
    test = record["test"]
    assert (record["protocol"], test["tasks"]) == ("omniglot-one-shot", 2)
    assert test["mean"]["error"] == [0.0]  # both drawings are the same
    assert test["mean"]["accuracy"] == [1.0]
    assert len(test["ece"]) == 1
    printed = capsys.readouterr().out
    assert "normalisation: transductive" in printed
    assert "error" in printed
    main(["evaluate", run, "--protocol", "omniglot-one-shot", "--shuffle-support-labels"])
    shuffled = tmp_path / "run/evaluation-omniglot-one-shot-steps0-shuffled.json"
    assert json.loads(shuffled.read_text())["test"]["mean"]["error"][0] > 0.7
    for given in (["--tasks", "3"], ["--seed", "1"], ["--shots", "2"]):
        message = refused(capsys, run, "--protocol", "omniglot-one-shot", *given)
        assert "has its own tasks" in message and " ".join(given) in message


def begun(run, experiment, **config):
    """A run's folder before anything is trained."""
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"experiment": experiment, "config": config}))
    return str(run)


def test_a_network_with_other_outputs_is_refused(tmp_path, capsys):
    run = begun(tmp_path / "run", "omniglot", recipe="anil", queries=1, test_queries=1)
    message = refused(capsys, run, "--protocol", "omniglot-one-shot")
    assert "--recipe anil --ways 5" in message
    assert "a run with --ways 20" in message


def test_a_run_of_other_data_is_refused(tmp_path, capsys):
    run = begun(tmp_path / "run", "digits")
    message = refused(capsys, run, "--protocol", "omniglot-one-shot")
    assert "a run of digits" in message
