"""The report of runs: all that they recorded is on the page, and the page fetches nothing."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import innerloop as il
from innerloop.diagnostics.text import shown_steps
from innerloop.lab.report import write_report
from innerloop.lab.report.figures import _edges
from innerloop.lab.report.runs import (
    differing,
    half_interval,
    read_runs,
    same_but_for_the_seed,
)
from innerloop.lab.report.sections import SECTIONS
from innerloop.lab.report.text import decimals, duration, operations, plus_minus
from innerloop.lab.run_folder import RunFolder
from innerloop.storage.files import strict_json

SYSTEM = {"step_seconds": 0.02, "compile_seconds": 3.0, "peak_memory_bytes": 2.0**29}
COST = {"flops_per_step": 3e9, "flops_are_lower_bound": False, "unreached": []}


def make_run(path, *, seed=0, losses=60, tasks=75, faults=(), result=(), **settings):
    """A folder as `innerloop train` leaves it, with other numbers in it."""
    config = {"seed": seed, "steps": losses, "batch": 8, "inner_steps": 1, "run": str(path)}
    config["inner_rate"] = 0.4
    begun = {"experiment": "digits", "config": config | settings, "metric": "accuracy"}
    folder = RunFolder.begin(path, begun)
    folder.close()
    random = np.random.default_rng(seed)
    accuracy = random.integers(0, 76, (tasks, 4)) / 75
    per_task = {"accuracy": accuracy.astype("f4"), "loss": random.exponential(1, (tasks, 4))}
    test = {
        "tasks": tasks,
        "mean": {name: array.mean(axis=0) for name, array in per_task.items()},
        "interval_95": {name: np.full(4, 0.0123) for name in per_task},
        "ece": [0.5, 0.25, 0.125, 0.0625],
    }
    for call in range(3):
        step = losses // 3 * (call + 1)
        record = {"step": step, "seconds": 10.0 * step, "gradient_norm": 1.0 / step}
        record |= {"losses": random.exponential(1, losses // 3), "system": SYSTEM}
        record |= {"validation": test} | dict(faults if call == 1 else {})
        with (path / "log.jsonl").open("a") as log:
            log.write(strict_json(record) + "\n")
    environment = {"versions": {"jax": "0.10"}, "device": "cpu: cpu"}
    finished = {"test": test, "best_step": 20, "environment": environment, "cost": COST}
    finished |= {"normalisation": "transductive", "trained_steps": 1}
    folder.write_json("result.json", begun | finished | dict(result))
    folder.write_arrays("test_tasks.npz", per_task)
    Image.new("L", (30, 20)).save(path / "episodes.png")
    return path


def add_trials(run, steps):
    """An evaluation of a learned optimizer: better than Adam on one of two families."""
    curve = lambda end: np.outer((1, 2, 3), np.linspace(1, end, steps + 1)).tolist()
    trial = lambda end: {"final": [end, 2 * end, 3 * end], "area": [2, 3, 4], "curve": curve(end)}
    adam = {"rates": [0.1, 0.2], "at_the_edge": True}
    families = {
        "quadratic": {"learned": trial(0.25), "Adam": trial(0.5) | adam},
        "wine-linear": {"learned": trial(0.5) | {"final": [1, "Infinity", "Infinity"]}}
        | {"Adam": trial(0.125) | adam},
    }
    content = {"settings": {"steps": steps, "tasks": 5, "seed": 7}, "families": families}
    RunFolder(run).write_json(f"optimizers-seed7-steps{steps}-tasks5.json", content)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of three runs, two of which differ in the seed only."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / f"seed{seed}", seed=seed) for seed in (0, 1)]
    runs.append(make_run(folder / '<b>"other"&', seed=2, inner_rate=0.2))
    add_trials(runs[0], steps=3)
    return write_report(runs, folder / "new" / "page.html").read_text()


class Reader(HTMLParser):
    """Attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, pieces = [], [], []
        self.handle_data = pieces.append
        self.feed(page)
        self.text = re.sub(r"[ \n]+", " ", " ".join(pieces))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def all(self, *names):
        return [value for name, value in self.attributes if name in names]


def text_of(path):
    return Reader(path.read_text()).text


# --- the page -----------------------------------------------------------------------------------


def test_it_fetches_nothing_and_runs_nothing(page):
    read = Reader(page)
    for address in read.all("src", "href", "xlink:href", "srcset", "data", "action"):
        assert address.startswith(("#", "data:image/png;base64,"))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(read.tags)
    assert "@import" not in page
    assert all(address.startswith("#") for address in re.findall(r"url\(\s*[\"']?(.)", page))


def test_what_is_referred_to_is_there_once(page):
    names = Reader(page).all("id")
    assert len(names) == len(set(names))
    referred = re.findall(r'(?:url\(|href=")#([\w-]+)', page)
    assert len(referred) > 20
    assert set(referred) <= set(names)


def test_every_section_is_there_in_order_and_linked(page):
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == list(SECTIONS)
    links = re.findall(r'<a href="#(.*?)">(.*?)</a>', page)
    assert links == [(heading.lower().replace(" ", "-"), heading) for heading in SECTIONS]
    assert re.findall(r'<section id="(.*?)">', page) == [anchor for anchor, _ in links]


def test_a_learned_optimizer_stands_beside_tuned_ones(tmp_path):
    run = make_run(tmp_path / "run")
    add_trials(run, steps=20)
    add_trials(run, steps=3)
    shown = text_of(write_report([run]))
    assert shown.index("3 inner steps on 5 new tasks") < shown.index("20 inner steps on 5 new")
    assert shown.count("below tuned Adam: 1 of 2 by last loss, 0 of 2 by area") == 2
    assert "Adam 1 (0.5 to 1.5) 3 (2 to 4) 0.1 (at the edge)" in shown
    assert "learned inf (1 to inf)" in shown


TRIALS_DAMAGED = {
    "no families": lambda content: content.pop("families"),
    "another length": lambda content: content["settings"].update(steps=4),
    "no quartiles": lambda content: content["families"]["quadratic"]["Adam"].update(final=1.0),
    "no rates": lambda content: content["families"]["quadratic"]["Adam"].update(rates="none"),
}


@pytest.mark.parametrize("damage", TRIALS_DAMAGED.values(), ids=TRIALS_DAMAGED)
def test_a_damaged_evaluation_is_named(damage, tmp_path):
    run = make_run(tmp_path / "run")
    add_trials(run, steps=3)
    (path,) = run.glob("optimizers-*.json")
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(il.errors.RunError, match=r"optimizers-seed7-steps3-tasks5\.json"):
        write_report([run])


def test_a_table_of_many_inner_steps_shows_some():
    assert shown_steps(3) == [0, 1, 2, 3]
    assert shown_steps(200) == [0, 1, 2, 5, 10, 20, 50, 100, 200]
    assert shown_steps(30) == [0, 1, 2, 5, 10, 20, 30]


def test_colours_are_the_style_sheets_in_light_dark_and_print(page):
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    colours = [set(re.findall(r"(--[\w-]+):", part)) for part in re.split("@media", style)]
    light, dark, printed = filter(None, colours)
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    assert {"--run-0", "--run-1", "--run-2", "--ink", "--line"} <= used <= light
    assert light == dark == printed
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.findall(r"#(?:0072b2|222222|e6e6e6)", drawn)


def test_names_are_text_and_never_markup(page):
    read = Reader(page)
    assert '<b>"other"&' in read.text
    assert "b" in read.tags  # the page's own; none of them around the name
    assert "<b>&" not in page
    assert '<b>"other"' not in page


def test_the_numbers_are_those_of_the_runs(page, tmp_path):
    (run,) = read_runs([make_run(tmp_path / "run")])
    text = Reader(page).text
    mean, interval = run.test.mean["accuracy"], run.test.interval["accuracy"]
    for step in range(4):
        assert plus_minus(mean[step], interval[step], "accuracy", 1) in text
    assert f"{100 * mean[-1]:.1f}\xa0±\xa01.2%" in text
    assert "20 ms" in text  # a step
    assert "400" in text  # tasks per second
    assert "transductive" in text
    for error in ("50.0%", "25.0%", "12.5%", "6.2%"):
        assert error in text
    assert "512 MiB" in text
    assert "3 GFLOP" in text
    assert "150 GFLOP/s" in text
    assert "not recorded" not in text.lower()


def test_runs_that_differ_in_the_seed_are_put_together(page):
    text = Reader(page).text
    assert "Over seeds 0, 1, all else the same: mean of 2 runs" in text
    assert "accuracy, standard deviation" in text
    assert "Expected calibration error of all predictions" in text
    assert "inner rate 0.4 0.4 0.2" in text
    assert "seed 0 1 2" in text


def test_it_is_the_same_each_time(tmp_path):
    run = make_run(tmp_path / "run")
    first = write_report([run]).read_bytes()
    assert write_report([run]) == run / "report.html"
    assert (run / "report.html").read_bytes() == first


def test_a_long_run_makes_no_large_page(tmp_path):
    run = make_run(tmp_path / "run", losses=60_000, tasks=10_000)
    assert 5e4 < len(write_report([run]).read_bytes()) < 5e5


# --- what is missing, or not finite -------------------------------------------------------------


def test_validations_of_which_none_is_finite(tmp_path):
    make_run(tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for record in records:
        for values in record.get("validation", {}).get("mean", {}).values():
            values[:] = ["NaN"] * len(values)
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert "NaN" in log.read_text()
    assert "Validation accuracy" in text_of(write_report([tmp_path / "run"]))


def test_a_run_that_has_only_begun_says_so(tmp_path):
    config = {"experiment": "digits", "config": {"steps": 300}, "metric": "accuracy"}
    RunFolder.begin(tmp_path / "run", config).close()
    (tmp_path / "run/log.jsonl").write_text('[1]\n{"step": 20, "seco')  # as a kill leaves it
    text = text_of(write_report([tmp_path / "run"]))
    for missing in (
        "log of outer steps",
        "validation",
        "test evaluation",
        "metrics of single test tasks",
        "pictures of single tasks",
        "norm of the meta-gradient",
        "which meta-parameters a gradient reaches",
        "environment",
    ):
        assert re.search(rf"Not recorded: (the )?{missing}", text), missing
    assert "0 of 300" in text


def test_the_run_that_lacks_something_is_named(tmp_path):
    whole, old = make_run(tmp_path / "whole"), make_run(tmp_path / "old", result={"cost": {}})
    (old / "test_tasks.npz").unlink()
    text = text_of(write_report([whole, old], tmp_path / "page.html"))
    assert "Not recorded: the metrics of single test tasks (old)" in text
    assert "Not recorded: which meta-parameters a gradient reaches (old)" in text


def test_runs_of_different_metrics_share_no_axes(tmp_path):
    one = make_run(tmp_path / "one")
    begun = {"experiment": "sinusoid", "config": {"inner_steps": 3}, "metric": "loss"}
    two = make_run(tmp_path / "two", result=begun)
    (two / "config.json").write_text(json.dumps(begun))
    text = text_of(write_report([one, two], tmp_path / "page.html"))
    for metric in ("accuracy", "loss"):
        assert f"Validation {metric} by minutes" in text
        assert f"Distribution of {metric} over tasks" in text


@pytest.mark.parametrize("astray", [1, 75])
def test_tasks_that_are_not_finite_are_counted(tmp_path, astray):
    run = make_run(tmp_path / "run", losses=6)
    folder = RunFolder.open(run)
    arrays = {name: x.copy() for name, x in folder.read_arrays("test_tasks.npz").items()}
    arrays["accuracy"][:astray, 1:] = np.nan
    arrays["accuracy"][0, -1] = np.inf
    folder.write_arrays("test_tasks.npz", arrays)
    result = folder.read_json("result.json")
    result["test"]["mean"]["accuracy"][-1] = "NaN"
    result["test"]["interval_95"]["accuracy"] = ["Infinity"] * 4
    folder.write_json("result.json", result)
    text = text_of(write_report([run]))
    assert f"tasks that are not finite {astray}" in text
    assert "test accuracy not finite" in text


def test_faults_and_unreached_leaves_are_told(tmp_path):
    fault = {"step": 30, "loss": "NaN", "tasks": [2, 5], "keys": [[0, 7]], "policy": "skip"}
    cost = COST | {"unreached": ["['rate']"], "flops_are_lower_bound": True}
    run = make_run(tmp_path / "run", faults={"faults": [fault] * 25}, result={"cost": cost})
    text = text_of(write_report([run]))
    assert "not finite, the first 20 of 25" in text
    assert "step loss tasks keys policy" in text
    assert "30 NaN 2, 5 0, 7 skip" in text
    assert "no gradient reaches: ['rate']." in text
    assert "at least 3 GFLOP" in text


def test_an_old_report_stays_where_a_new_one_fails(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", losses=6)
    (run / "report.html").write_text("old")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("innerloop.lab.report.page.render", lambda runs: "new")
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(il.errors.RunError, match="Permission denied"):
        write_report([run])
    assert (run / "report.html").read_text() == "old"
    assert not list(run.glob(".report*"))


# --- the parts ----------------------------------------------------------------------------------


def test_the_interval_over_seeds_is_students():
    half = half_interval(np.array([1.0, 3.0]))
    assert half == pytest.approx(12.706, rel=1e-4)  # t(0.975, 1) * sqrt(2) / sqrt(2)


def test_the_table_over_seeds_has_deviation_and_range(tmp_path):
    means = {seed: {"mean": {"accuracy": [end, end]}} for seed, end in enumerate((0.25, 0.75))}
    test = {"interval_95": {"accuracy": [0.1, 0.1]}, "tasks": 9}
    runs = [
        make_run(tmp_path / f"{seed}", seed=seed, result={"test": test | mean})
        for seed, mean in means.items()
    ]
    text = text_of(write_report(runs, tmp_path / "page.html"))
    assert "0 50.0 ± 317.7% 35.4% 25.0% to 75.0%" in text.replace("\xa0", " ")


def columns(page):
    """The cells of each column of each table, by its heading."""
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        head, *rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
        headings = re.findall(r"<th[^>]*>(.*?)</th>", head)
        yield from zip(headings, zip(*cells, strict=True), strict=True)


def test_the_numbers_of_a_column_have_the_same_decimals(tmp_path):
    mean, half = {"loss": [123.4, 5.0, 0.25]}, {"loss": [17.0, 0.04, 0.0012]}
    test = {"tasks": 75, "mean": mean, "interval_95": half}
    runs = [
        make_run(tmp_path / f"{i}", seed=i, result={"test": test, "metric": "loss"}, batch=4 * i)
        for i in range(2)
    ]
    for run in runs:
        config = json.loads((run / "config.json").read_text()) | {"metric": "loss"}
        (run / "config.json").write_text(json.dumps(config))
    for each in (runs[:1], runs):
        page = write_report(each, tmp_path / "page.html").read_text()
        found = [(name, cells) for name, cells in columns(page) if any("±" in c for c in cells)]
        assert found
        for _, cells in found:
            numbers = [n for cell in cells for n in re.findall(r"\d+\.?(\d*)", cell) if "±" in cell]
            assert len(set(map(len, numbers))) == 1, cells
    assert "0.2500\xa0±\xa00.0012" in page and "123.4000\xa0±\xa017.0000" in page


def test_a_metric_that_is_another_one_is_shown_once(tmp_path):
    mean, half = [0.5, 0.25], [0.1, 0.1]
    test = {"tasks": 75, "mean": {"loss": mean, "accuracy": mean, "other": [1.0, 2.0]}}
    test["interval_95"] = dict.fromkeys(test["mean"], half)
    run = make_run(tmp_path / "run", result={"test": test})
    page = write_report([run]).read_text()
    assert [name for name, _ in columns(page)] == ["inner steps", "accuracy", "other"]
    assert "Test accuracy by inner step" in page and "Test other by inner step" in page
    assert "Test loss by inner step" not in page
    assert "The loss is the accuracy, so it is shown once." in page


def test_only_what_makes_another_experiment_differs(tmp_path):
    make_run(tmp_path / "x" / "run")
    make_run(tmp_path / "y" / "run", seed=1)
    make_run(tmp_path / "z" / "run", seed=1, inner_rate=0.1)
    (make_run(tmp_path / "unfinished", seed=5) / "result.json").unlink()
    paths = [tmp_path / name / "run" for name in "xyz"]
    runs = read_runs([*paths, tmp_path / "unfinished", paths[0]])
    assert [run.name for run in runs[:3]] == list(map(str, paths))
    assert len(runs) == 4
    assert dict(differing(runs[:3])) == {"seed": [0, 1, 1], "inner_rate": [0.4, 0.4, 0.1]}
    assert same_but_for_the_seed(runs) == [runs[:2]]


def test_bins_fit_the_steps_between_values():
    queries = np.random.default_rng(0).integers(20, 76, 1000) / 75
    edges = _edges(queries)
    widths = np.diff(edges) * 75
    assert widths == pytest.approx(widths[0], rel=1e-6)
    assert widths[0] == pytest.approx(round(widths[0]), rel=1e-2)
    assert len(edges) <= 30
    astray = np.append(np.linspace(0, 1, 500), 1e9)
    assert _edges(astray)[-1] < 1.2
    for values in ([0.0], [3.0, 3.0], [1e-9, 2e-9], [-5e6, 7e6]):
        edges = _edges(np.array(values))
        assert np.all(np.diff(edges) > 0)
        assert edges[0] < min(values) < edges[-1]


def test_numbers_are_short():
    assert plus_minus(0.8047, 0.0078, "accuracy", 1) == "80.5\xa0±\xa00.8%"
    assert plus_minus(1.79482, 0.0412, "loss", decimals([0.0412], "loss")) == "1.795\xa0±\xa00.041"
    assert plus_minus(123.4, 17.0, "loss", decimals([17.0, 19.0], "loss")) == "123\xa0±\xa017"
    assert plus_minus(float("inf"), 1.0, "loss", 2) == "not finite"
    assert decimals([17.0, 0.0, 0.0012, np.nan], "loss") == 4
    assert decimals([0.0], "loss") == 3
    times = [duration(seconds) for seconds in (0.0032, 12.44, 59.9, 60.0, 425.0, 7800.0)]
    assert times == ["3.2 ms", "12.4 s", "59.9 s", "1 min 00 s", "7 min 05 s", "2 h 10 min"]
    assert [operations(x) for x in (12.0, 822e3, 3.14e9)] == ["12 FLOP", "822 kFLOP", "3.14 GFLOP"]
