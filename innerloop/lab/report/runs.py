"""What a run's folder tells, read once: whatever is damaged is found here, not on the page."""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from innerloop.lab.experiments.cost import training_cost
from innerloop.lab.experiments.printing import overall
from innerloop.lab.report.trials import Trials, read_trials
from innerloop.lab.run_folder import CONFIG, LOG, RESULT, TEST_TASKS, RunFolder

PICTURES = {
    "fits.png": "Fits of four test tasks, by inner step",
    "episodes.png": "Three test episodes: support images, and what was predicted of query images",
}
"""The figures of a run that show single tasks, and what they show."""


@dataclass(frozen=True)
class Results:
    """An evaluation over all tasks: `mean` and `interval` map a metric to `(inner steps + 1,)`.

    `ece` has the same shape, or is None where it was not recorded.
    """

    mean: dict[str, np.ndarray]
    interval: dict[str, np.ndarray]
    tasks: int
    ece: np.ndarray | None = None


@dataclass(frozen=True)
class Validations:
    """When the run validated, the metric then, half its 95% interval over tasks: each `(n,)`."""

    steps: np.ndarray
    minutes: np.ndarray
    values: np.ndarray
    intervals: np.ndarray


@dataclass(frozen=True)
class RunCost:
    """As `training_cost` and `outer_step_record` give it; None is not recorded."""

    seconds_per_step: float | None
    compile_seconds: float | None
    peak_memory_bytes: float | None
    flops_per_step: float | None
    flops_are_lower_bound: bool
    unreached: list[str] | None


@dataclass(frozen=True)
class Picture:
    """A picture of single tasks: a PNG file as a `data:` address, and its size in pixels."""

    title: str
    address: str
    width: int
    height: int
    template: ClassVar[str] = "picture.html"


@dataclass(frozen=True)
class Run:
    """What the page shows of one run. None and empty stand for what the run has not recorded.

    - `name`: what it is called on the page; `place`: which of the runs it is
    - `batch`: tasks per outer step; `trained_steps`: inner steps in training
    - `metric`: what it is judged by; `normalisation`: the model's policy
    - `outer_steps`, `minutes`: as far as the log goes
    - `losses` `(outer_steps,)`: the loss of every outer step
    - `norms`: `(steps, values)`, the meta-gradient's norm, a mean over each call to the device
    - `faults`: outer steps whose gradient was not finite
    - `test`: the evaluation at the end; `per_task`: metric -> `(tasks, inner steps + 1)`
    - `trials`: evaluations of a learned optimizer against tuned ones
    """

    name: str
    place: int
    experiment: str
    config: dict[str, Any]
    batch: int | None
    trained_steps: int | None
    metric: str
    normalisation: str | None
    outer_steps: int
    minutes: float
    losses: np.ndarray
    norms: tuple[np.ndarray, np.ndarray]
    faults: list[dict[str, Any]]
    validations: Validations
    cost: RunCost
    best_step: int | None
    test: Results
    per_task: dict[str, np.ndarray]
    environment: dict[str, str]
    pictures: list[Picture]
    trials: list[Trials]

    @property
    def finished(self) -> bool:
        """Whether it came to its test."""
        return bool(self.test.mean)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders, each once. Raises `RunError` for a folder or file of no use."""
    folders = [RunFolder.open(path) for path in dict.fromkeys(map(Path, paths))]
    names = [folder.path.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder.path) for folder in folders]
    return [_read(*each, place) for place, each in enumerate(zip(folders, names, strict=True))]


def _read(folder: RunFolder, name: str, place: int) -> Run:
    begun = folder.read_config()
    with _understood(folder, CONFIG):
        experiment, config = begun["experiment"], begun["config"]
        batch, metric = _whole(config.get("batch")), str(begun["metric"])
    records = folder.read_log()
    ended = folder.read_json(RESULT) if folder.has(RESULT) else {}
    with _understood(folder, LOG):
        validated = [record for record in records if "validation" in record]
        log = _log(records, validated, metric)
        measured = training_cost(records)
    with _understood(folder, RESULT):
        cost = _cost(measured | dict(ended.get("cost", {})))
        test = _results(ended["test"]) if "test" in ended else Results({}, {}, 0)
        if test.mean and metric not in test.mean:
            raise ValueError(f"no {metric}")
        best_step = _whole(ended.get("best_step"))
        environment = _flat(ended.get("environment", {}))
        trained_steps = _whole(ended.get("trained_steps"))
        normalisation = None if "normalisation" not in ended else str(ended["normalisation"])
    return Run(
        name=name,
        place=place,
        experiment=experiment,
        config=config,
        batch=batch,
        trained_steps=trained_steps,
        metric=metric,
        normalisation=normalisation,
        cost=cost,
        best_step=best_step,
        test=test,
        per_task=_per_task(folder),
        environment=environment,
        pictures=[_picture(folder, name) for name in PICTURES if folder.has(name)],
        trials=read_trials(folder),
        **log,
    )


@contextmanager
def _understood(folder: RunFolder, name: str) -> Iterator[None]:
    """What is JSON but not what a run writes is damage too."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise folder.damaged(name, error) from error


def _whole(number: Any) -> int | None:
    return None if number is None else int(number)


def _log(records: list[dict], validated: list[dict], metric: str) -> dict[str, Any]:
    numbers = lambda values: np.asarray(values, float)  # "NaN" and "Infinity" become what they say
    losses = [numbers(record.get("losses", [])) for record in records]
    normed = [record for record in records if "gradient_norm" in record]
    scores = [_results(record["validation"]) for record in validated]
    return {
        "outer_steps": int(records[-1]["step"]) if records else 0,
        "minutes": float(records[-1]["seconds"]) / 60 if records else 0.0,
        "losses": np.concatenate([np.zeros(0), *losses]),
        "faults": [dict(fault) for record in records for fault in record.get("faults", [])],
        "norms": (
            numbers([record["step"] for record in normed]),
            numbers([record["gradient_norm"] for record in normed]),
        ),
        "validations": Validations(
            numbers([record["step"] for record in validated]),
            numbers([record["seconds"] for record in validated]) / 60,
            numbers([score.mean[metric][-1] for score in scores]),
            numbers([score.interval[metric][-1] for score in scores]),
        ),
    }


def _cost(record: dict[str, Any]) -> RunCost:
    measured = ("seconds_per_step", "compile_seconds", "peak_memory_bytes", "flops_per_step")
    numbers = {name: None if name not in record else float(record[name]) for name in measured}
    unreached = record.get("unreached")
    return RunCost(
        **numbers,
        flops_are_lower_bound=bool(record.get("flops_are_lower_bound")),
        unreached=None if unreached is None else [str(name) for name in unreached],
    )


def _results(record: dict[str, Any]) -> Results:
    mean = {name: np.asarray(record["mean"][name], float) for name in overall(record["mean"])}
    interval = {name: np.asarray(record["interval_95"][name], float) for name in mean}
    ece = np.asarray(record["ece"], float) if "ece" in record else None
    calibration = [] if ece is None else [ece]
    shapes = {array.shape for array in (*mean.values(), *interval.values(), *calibration)}
    if len(shapes) != 1 or len(shapes.pop()) != 1:
        raise ValueError("an evaluation is lists of one length")
    return Results(mean, interval, int(record["tasks"]), ece)


def _per_task(folder: RunFolder) -> dict[str, np.ndarray]:
    if not folder.has(TEST_TASKS):
        return {}
    arrays = folder.read_arrays(TEST_TASKS)
    with _understood(folder, TEST_TASKS):
        if any(array.ndim != 2 or array.dtype.kind != "f" for array in arrays.values()):
            raise ValueError("not numbers by task and inner step")
    return {name: array.astype(float) for name, array in arrays.items()}


def _flat(environment: dict[str, Any]) -> dict[str, str]:
    """Versions of packages beside the rest."""
    versions = dict(environment.get("versions", {}))
    rest = {name: value for name, value in environment.items() if name != "versions"}
    return {name: str(value) for name, value in (rest | versions).items()}


def _picture(folder: RunFolder, name: str) -> Picture:
    from PIL import Image

    try:
        content = (folder.path / name).read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            size = image.size
            image.verify()
    except (OSError, SyntaxError, ValueError) as error:
        raise folder.damaged(name, error) from error
    address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return Picture(PICTURES[name], address, *size)
