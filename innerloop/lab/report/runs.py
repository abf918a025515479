"""The content of a run's folder, read once: damaged files are found here and not on the page."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from innerloop.lab.experiments.curves import Log, read_evaluation, series
from innerloop.lab.experiments.optimizer_trials import LEARNED
from innerloop.lab.run_folder import CONFIG, RESULT, SETTINGS, TEST_TASKS, RunFolder
from innerloop.logging.records import evaluation
from innerloop.storage.kinds import (
    amount,
    anything,
    by_name,
    count,
    fields,
    flag,
    listed,
    number,
    numbers,
    or_null,
    text,
)
from innerloop.training import Evaluation

PICTURES = {
    "fits.png": "Fits of four test tasks, by inner step",
    "episodes.png": "Three test episodes: support images, and predictions of query images",
}
"""The figures of a run that show single tasks, and their titles."""

# The kinds of the files of a run. The page shows only values that were checked by these kinds.
_AMOUNTS = ("seconds_per_step", "compile_seconds", "peak_memory_bytes", "flops_per_step")
_COST = {each: or_null(amount) for each in _AMOUNTS}
_COST |= {"flops_are_lower_bound": flag, "unreached": or_null(listed(text))}
_BEGUN = fields({"experiment": text, "metric": text, "config": SETTINGS}, rest=anything)
_ENVIRONMENT = fields({}, {"versions": by_name(text)}, rest=anything)
_ENDED = fields(
    {},
    {
        "test": evaluation,
        "cost": fields({}, _COST, rest=anything),
        "environment": _ENVIRONMENT,
        "trained_steps": or_null(count),
        "normalisation": or_null(text),
        "best_step": or_null(count),
    },
    rest=anything,
)
_TRIAL = fields(
    {"final": listed(number), "area": listed(number), "curve": listed(numbers)},
    {"rates": listed(number), "at_the_edge": flag},
    rest=anything,
)
_SETTINGS = ("tasks", "steps", "seed")
_TRIALS = fields(
    {
        "settings": fields(dict.fromkeys(_SETTINGS, count), rest=anything),
        "families": by_name(by_name(_TRIAL)),
    },
    rest=anything,
)

_PLACE_AND_SEED = ("run", "resume", "seed")
"""Runs of one setting may differ in their folder, in whether they were resumed, and in the seed."""


class Picture(NamedTuple):
    """A picture of single tasks: a PNG file as a `data:` address, and its size in pixels."""

    title: str
    address: str
    width: int
    height: int


class Trials(NamedTuple):
    """An evaluation of a learned optimizer against tuned ones.

    Attributes:
        tasks: Tasks of each family.
        steps: Inner steps.
        seed: The seed of the tasks.
        families: By family and by optimizer, what `trial_record` gives.
    """

    tasks: int
    steps: int
    seed: int
    families: dict[str, dict[str, dict[str, Any]]]

    def wins(self) -> str:
        """The number of families on which the learned optimizer has the lower median than Adam."""
        known = [found for found in self.families.values() if {LEARNED, "Adam"} <= set(found)]
        parts = []
        for what, name in (("last loss", "final"), ("area", "area")):
            medians = [[float(found[of][name][1]) for of in (LEARNED, "Adam")] for found in known]
            better = sum(learned < adam for learned, adam in medians)
            parts.append(f"{better} of {len(known)} by {what}")
        what = "Families on which the learned one is below tuned Adam"
        return f"{what}: {', '.join(parts)} (medians)."


@dataclass(frozen=True)
class Run:
    """What the page shows of one run. None and empty mean that the run has not recorded it.

    Attributes:
        name: The name of the run on the page.
        place: The number of the run among all on the page, from 0.
        experiment: The name of the experiment.
        config: The settings.
        batch: Tasks per outer step.
        metric: The metric by which the run is judged.
        log: The series in its log.
        cost: The figures of `training_cost` and `outer_step_record` that it recorded.
        trained_steps: Inner steps in training.
        normalisation: The model's policy.
        best_step: The outer step of the best validation.
        environment: Versions, device and machine.
        test: The evaluation at the end.
        per_task: By metric, `(tasks, inner steps + 1)`.
        pictures: Pictures of single tasks.
        trials: Evaluations of a learned optimizer against tuned ones, shorter runs first.
    """

    name: str
    place: int
    experiment: str
    config: dict[str, Any]
    batch: int | None
    metric: str
    log: Log
    cost: dict[str, Any]
    trained_steps: int | None
    normalisation: str | None
    best_step: int | None
    environment: dict[str, str]
    test: Evaluation
    per_task: dict[str, np.ndarray]
    pictures: list[Picture]
    trials: list[Trials]

    @property
    def finished(self) -> bool:
        """Whether the run was tested."""
        return bool(self.test.mean)

    @property
    def same_metrics(self) -> list[tuple[str, str]]:
        """Pairs of metrics that have the same numbers; the second is the one that is shown."""
        mean, interval = self.test.mean, self.test.interval
        first = sorted(mean, key=lambda name: name != self.metric)
        pairs = [(a, b) for j, a in enumerate(first) for b in first[:j]]
        equal = lambda a, b: all(np.array_equal(of[a], of[b]) for of in (mean, interval))
        found = {a: b for a, b in reversed(pairs) if equal(a, b)}
        return list(found.items())

    @property
    def metrics(self) -> list[str]:
        """The metrics of the test, each once."""
        twice = dict(self.same_metrics)
        return [name for name in self.test.mean if name not in twice]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders, each once. Raises `RunError` for a folder or file of no use."""
    folders = [RunFolder.open(path) for path in dict.fromkeys(map(Path, paths))]
    names = [folder.path.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder.path) for folder in folders]
    return [_read(*each, place) for place, each in enumerate(zip(folders, names, strict=True))]


def _read(folder: RunFolder, name: str, place: int) -> Run:
    begun, records = folder.read_json(CONFIG, _BEGUN), folder.read_log()
    log, metric = series(records, begun["metric"]), begun["metric"]
    ended = folder.read_json(RESULT, _ENDED) if folder.has(RESULT) else {}
    test = read_evaluation(ended["test"]) if "test" in ended else Evaluation({}, {}, 0)
    arrays = folder.read_arrays(TEST_TASKS) if folder.has(TEST_TASKS) else {}
    with folder.reading(TEST_TASKS):
        _require_by_task(arrays)
    with folder.reading(RESULT):
        if test.mean and metric not in test.mean:
            raise ValueError(f"no {metric}")
    trials = [_trials(folder, path.name) for path in sorted(folder.path.glob("optimizers-*.json"))]
    cost = {"flops_are_lower_bound": False, "unreached": None, **log.cost}
    cost |= {each: value for each, value in ended.get("cost", {}).items() if value is not None}
    environment = dict(ended.get("environment", {}))
    environment |= environment.pop("versions", {})
    return Run(
        name=name,
        place=place,
        experiment=begun["experiment"],
        config=begun["config"],
        batch=begun["config"].get("batch"),
        metric=metric,
        log=log,
        cost=cost,
        trained_steps=ended.get("trained_steps"),
        normalisation=ended.get("normalisation"),
        best_step=ended.get("best_step"),
        environment={each: str(value) for each, value in environment.items()},
        test=test,
        per_task={each: array.astype(float) for each, array in arrays.items()},
        pictures=[_picture(folder, each) for each in PICTURES if folder.has(each)],
        trials=sorted(trials, key=lambda each: each.steps),
    )


def _require_by_task(arrays: dict[str, np.ndarray]) -> None:
    """Raise `ValueError` unless these are numbers by task and inner step."""
    for name, array in arrays.items():
        if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")


def _trials(folder: RunFolder, name: str) -> Trials:
    content = folder.read_json(name, _TRIALS)
    numbers_of = {each: content["settings"][each] for each in _SETTINGS}
    trials = Trials(**numbers_of, families=content["families"])
    shapes = {"final": (3,), "area": (3,), "curve": (3, trials.steps + 1)}
    with folder.reading(name):
        if not (trials.families and all(trials.families.values())):
            raise ValueError("no trials")
        for trial in (trial for found in trials.families.values() for trial in found.values()):
            for each, shape in shapes.items():
                if np.shape(trial[each]) != shape:
                    raise ValueError(f"{each} is not of shape {shape}: three quartiles")
            if "rates" in trial and not len(trial["rates"]):
                raise ValueError("no rates")
    return trials


def _picture(folder: RunFolder, name: str) -> Picture:
    from PIL import Image

    content = folder.read_bytes(name)
    with folder.reading(name), Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        size = image.size
        image.verify()
    address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return Picture(PICTURES[name], address, *size)


def settings(run: Run) -> dict[str, Any]:
    """The config without the fields that runs of one setting may differ in."""
    kept = {name: value for name, value in run.config.items() if name not in _PLACE_AND_SEED}
    return {"experiment": run.experiment} | kept


def differing(runs: Sequence[Run]) -> Iterator[tuple[str, list[Any]]]:
    """The names of the config fields in which the runs differ, with the value of each run."""
    configs = [settings(run) | {"seed": run.config.get("seed")} for run in runs]
    for name in dict.fromkeys(name for config in configs for name in config):
        values = [config.get(name) for config in configs]
        if any(value != values[0] for value in values):
            yield name, values


def same_but_for_the_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of at least two finished runs of one setting and different seeds."""
    finished = [run for run in runs if run.finished]
    groups = [[run for run in finished if settings(run) == settings(one)] for one in finished]
    distinct = [group for i, group in enumerate(groups) if group not in groups[:i]]
    return [group for group in distinct if len({run.config.get("seed") for run in group}) > 1]


def half_interval(values: np.ndarray) -> float:
    """Half the width of the 95% interval of the mean of at least two numbers, by Student's t."""
    from scipy.stats import sem, t

    return float(t.ppf(0.975, len(values) - 1) * sem(values))
