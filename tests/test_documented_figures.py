"""Tables of the documentation say what was measured, to the digits that they give."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

import innerloop as il
from innerloop.lab.experiments.learned_optimizer import OptimizerTraining
from innerloop.lab.experiments.optimizer_trials import area, last, learned_trial

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
measured = lambda name: json.loads((RESULTS / name).read_text())
BY_WINDOW = measured("long-horizon.json")["by_window"]
COLUMNS = ("TruncatedUnroll", "TruncatedES", "NoiseReuseES", "PersistentES")


def prose(page):
    """The text of the page on one line: where its lines break says nothing."""
    return " ".join((ROOT / "docs" / page).read_text().split())


def table_rows(page, begin):
    """The cells of the only table whose first line begins so."""
    _, text = (ROOT / "docs" / page).read_text().split(begin)
    lines = text.splitlines()[2:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def assert_says(text, value):
    decimals = len(text.partition(".")[2])
    assert float(text.replace("−", "-")) == pytest.approx(value, abs=0.5001 * 10**-decimals)


def test_the_predictions_of_folders_of_images():
    found = measured("image-folder.json")["data"]
    begin = "| images | classes in training |"
    rows = table_rows("image-folder.md", begin)
    for name, row in zip(("omniglot", "fashion-mnist"), rows, strict=True):
        _, _, images, *shares = row
        assert int(images) == found[name]["images"]
        of_row = [found[name][each] for each in ("predicted", "nearest_neighbour", "unknown")]
        for text, value in zip(shares, of_row, strict=True):
            assert_says(text.removesuffix("%"), 100 * value)
    train, predict = (
        round(max(each["seconds"][command] for each in found.values()))
        for command in ("train", "predict")
    )
    said = f"Training took {train} seconds on two cores, and prediction {predict} seconds."
    assert said in prose("image-folder.md")


def test_the_estimates_by_window():
    rows = table_rows("long-horizons.md", "| window | ")
    assert [int(row[0]) for row in rows] == BY_WINDOW["windows"]
    for i, row in enumerate(rows):
        for column, cell in zip(COLUMNS, row[1:], strict=True):
            found = BY_WINDOW[column][i]
            mean, *interval = re.findall(r"[−\d.]+", cell)
            assert_says(mean, found["mean"])
            for text in interval:
                assert_says(text, 1.96 * found["standard_error"])


def test_schedules_by_gradient_and_by_search():
    splits = measured("schedule.json")["splits"]
    rows = table_rows("learned-optimizers.md", "| split | ")
    assert len(rows) == len(splits)
    for row, split in zip(rows, splits, strict=True):
        for name, cell in zip(("gradient", "random lines", "random knots"), row[1:], strict=True):
            validation, others = re.findall(r"[\d.]+", cell)
            assert_says(validation, split[name]["validation"])
            assert_says(others, split[name]["other_tasks"])
            assert split[name]["inner_steps"] == (4000 if name == "gradient" else 40_000)


def test_the_cost_of_persistent_es():
    found = measured("persistent-es.json")
    page = prose("long-horizons.md")
    (numbers,) = re.findall(
        r"([\d.]+) times the time of the handwritten loop \(([\d.]+) to ([\d.]+)", page
    )
    for text, name in zip(numbers, ("median", "low", "high"), strict=True):
        assert_says(text, found["wall_ratio"][name])


def test_few_shot_accuracy_after_thirty_minutes():
    runs = measured("fewshot.json")["long"].values()
    rows = table_rows("few-shot.md", "| recipe | tasks | minutes |")
    assert len(rows) == len(runs)
    for (recipe, tasks, minutes, accuracy, _), run in zip(rows, runs, strict=True):
        config, test = run["config"], run["test"]
        assert (recipe, tasks) == (f"`{config['recipe']}`", f"{config['ways']}-way 1-shot")
        assert int(minutes) == config["minutes"]
        for text, name in zip(accuracy.split(" ± "), ("mean", "interval_95"), strict=True):
            assert_says(text, 100 * test[name]["accuracy"][-1])


def test_one_shot_errors_within_an_alphabet():
    runs = measured("omniglot-one-shot.json")
    rows = table_rows("few-shot.md", "| recipe | 30 alphabets, % |")
    assert len(rows) * 3 == len(runs)
    for recipe, *cells in rows:
        for split, cell in zip(("official", "small1", "small2"), cells, strict=True):
            test = runs[f"{recipe.strip('`')}-{split}"]["one_shot"]["test"]
            for text, name in zip(cell.split(" ± "), ("mean", "interval_95"), strict=True):
                assert_says(text, 100 * test[name]["error"][-1])


def test_sinusoids_of_six_recipes():
    runs = measured("sinusoid-table.json")
    rows = table_rows("few-shot.md", "| recipe | 5-shot | 10-shot |")
    assert len(rows) == len(runs)
    for recipe, *cells in rows:
        run = runs[recipe.split("`")[1]]
        for cell, test in zip(cells, (run["test"], run["ten_shot"]["test"]), strict=True):
            losses = test["mean"]["loss"]
            said = cell.split(" / ")
            for text, step in zip(said, (1, 5, 10) if len(said) > 1 else (0,), strict=True):
                if text == "diverges":
                    assert losses[step] == "NaN" or losses[step] > 1e3
                else:
                    assert_says(text, losses[step])


def test_a_learned_optimizer_against_tuned_ones():
    found = measured("learned-optimizer.json")
    groups = found["groups"]
    rows = table_rows("learned-optimizers.md", "| family | last: learned ")
    families = [each for group in groups.values() for each in group.items()]
    assert len(rows) == len(families) == 23
    names = ("learned", "Adam", "Adam, cosine", "Adam, tuned per task")
    for row, (family, trials) in zip(rows, families, strict=True):
        assert row[0].partition(",")[0] == family
        expected = [trials[name][what][1] for what in ("final", "area") for name in names]
        assert row[1:] == [f"{value:.3g}" for value in expected]
    trained, *_ = groups.values()
    for trials in trained.values():  # what the page says of the first seven rows
        for what in ("final", "area"):
            assert trials["learned"][what][1] < trials["Adam"][what][1]
    below = [
        np.less(trials["learned"]["tasks"][what], trials["Adam"]["tasks"][what])
        for trials in trained.values()
        for what in ("final", "area")
    ]
    counts = [int(np.sum(each)) for each in below]
    page = prose("learned-optimizers.md")
    (least, most, tasks) = re.findall(r"on (\d+) to (\d+) of (\d+) tasks\. They", page)[0]
    assert (int(least), int(most), {int(tasks)}) == (
        *(min(counts), max(counts)),
        {len(each) for each in below},
    )
    (minutes,) = re.findall(r"([\d.]+) minutes, 2,000 outer steps", page)
    assert_says(minutes, found["training"]["minutes_trained"])
    assert found["training"]["outer_steps"] == 2000
    took = re.findall(r"takes (\d+) µs with it, (\d+) with Adam and (\d+) with SGD", page)
    for text, name in zip(*took, ("learned", "Adam", "SGD"), strict=True):
        assert_says(text, 1e6 * found["seconds_per_step"][name])


def test_the_published_optimizer_was_trained_by_the_defaults():
    config = measured("learned-optimizer.json")["training"]["config"]
    defaults = json.loads(json.dumps(dataclasses.asdict(OptimizerTraining())))
    given = {"run", "minutes", "resume"}  # by the benchmark
    assert {name for name, value in defaults.items() if config.get(name) != value} <= given


@pytest.mark.parametrize("family", ["quadratic", "noisy-quadratic", "wine-linear"])
def test_the_published_optimizer_gives_the_published_losses(family):
    """The file beside the table, on the table's tasks; another machine rounds otherwise."""
    learned, meta = il.optimizers.load_optimizer(RESULTS / "learned-optimizer.opt")
    (found,) = (each for each in il.tasks.optimization.training_families() if each.name == family)
    trial = learned_trial(found, learned, meta, steps=100, tasks=60, seed=2)
    published = measured("learned-optimizer.json")["groups"]
    published = published["new tasks of the training families"][family]["learned"]
    np.testing.assert_allclose(np.median(area(trial.by_area)), published["area"][1], rtol=0.05)
    if family != "quadratic":  # whose last loss is a millionth
        np.testing.assert_allclose(np.median(last(trial.losses)), published["final"][1], rtol=0.1)


def test_what_exact_and_bounded_gradients_say():
    rows = table_rows("choose.md", "| family | where ")
    assert len(rows) == 8
    families = measured("bounded.json")["families"]
    for family, where, *cells in rows:
        what = ("median_norm", "signal_to_noise")
        values = [each[where][name] for name in what for each in families[family].values()]
        assert cells == [value if value == "NaN" else f"{value:.2g}" for value in values]
