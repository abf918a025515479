"""The content of a run's folder, read once: damaged files are found here and not on the page."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from innerloop.lab.experiments.cost import training_cost
from innerloop.lab.experiments.printing import overall
from innerloop.lab.report.trials import Trials, read_trials
from innerloop.lab.run_folder import CONFIG, LOG, RESULT, TEST_TASKS, RunFolder

PICTURES = {
    "fits.png": "Fits of four test tasks, by inner step",
    "episodes.png": "Three test episodes: support images, and predictions of query images",
}
"""The figures of a run that show single tasks, and their titles."""


class Results(NamedTuple):
    """An evaluation over all tasks: `mean` and `interval` map a metric to `(inner steps + 1,)`.

    `ece` has the same shape, or is None if it was not recorded.
    """

    mean: dict[str, np.ndarray]
    interval: dict[str, np.ndarray]
    tasks: int
    ece: np.ndarray | None = None


class Validations(NamedTuple):
    """The steps and minutes of validations, the metric, and half its 95% interval: each `(n,)`."""

    steps: np.ndarray
    minutes: np.ndarray
    values: np.ndarray
    intervals: np.ndarray


class RunCost(NamedTuple):
    """The figures of `training_cost` and `outer_step_record`; None is not recorded."""

    seconds_per_step: float | None
    compile_seconds: float | None
    peak_memory_bytes: float | None
    flops_per_step: float | None
    flops_are_lower_bound: bool
    unreached: list[str] | None


class Picture(NamedTuple):
    """A picture of single tasks: a PNG file as a `data:` address, and its size in pixels."""

    title: str
    address: str
    width: int
    height: int


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
        outer_steps: Outer steps, as far as the log goes.
        minutes: Minutes, as far as the log goes.
        losses: The loss of every outer step, `(outer_steps,)`.
        norms: `(steps, values)`, the norm of the meta-gradient, a mean over each call to the
            device.
        faults: The outer steps whose gradient was not finite.
        validations: The validations.
        cost: Time, memory and operations.
        trained_steps: Inner steps in training.
        normalisation: The model's policy.
        best_step: The outer step of the best validation.
        environment: Versions, device and machine.
        test: The evaluation at the end.
        per_task: By metric, `(tasks, inner steps + 1)`.
        pictures: Pictures of single tasks.
        trials: Evaluations of a learned optimizer against tuned ones.
    """

    name: str
    place: int
    experiment: str
    config: dict[str, Any]
    batch: int | None
    metric: str
    outer_steps: int
    minutes: float
    losses: np.ndarray
    norms: tuple[np.ndarray, np.ndarray]
    faults: list[dict[str, Any]]
    validations: Validations
    cost: RunCost
    trained_steps: int | None
    normalisation: str | None
    best_step: int | None
    environment: dict[str, str]
    test: Results
    per_task: dict[str, np.ndarray]
    pictures: list[Picture]
    trials: list[Trials]

    @property
    def finished(self) -> bool:
        """Whether the run was tested."""
        return bool(self.test.mean)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders, each once. Raises `RunError` for a folder or file of no use."""
    folders = [RunFolder.open(path) for path in dict.fromkeys(map(Path, paths))]
    names = [folder.path.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder.path) for folder in folders]
    return [_read(*each, place) for place, each in enumerate(zip(folders, names, strict=True))]


def _read(folder: RunFolder, name: str, place: int) -> Run:
    begun, records = folder.read_config(), folder.read_log()
    with folder.reading(CONFIG):
        metric, batch = str(begun["metric"]), _known(int, begun["config"].get("batch"))
    with folder.reading(LOG):
        log, measured = _log(records, metric), training_cost(records)
    ended = folder.read_json(RESULT) if folder.has(RESULT) else {}
    with folder.reading(RESULT):
        result = _result(ended, measured, metric)
    arrays = folder.read_arrays(TEST_TASKS) if folder.has(TEST_TASKS) else {}
    with folder.reading(TEST_TASKS):
        if any(array.ndim != 2 or array.dtype.kind != "f" for array in arrays.values()):
            raise ValueError("not numbers by task and inner step")
    return Run(
        name=name,
        place=place,
        experiment=begun["experiment"],
        config=begun["config"],
        batch=batch,
        metric=metric,
        per_task={name: array.astype(float) for name, array in arrays.items()},
        pictures=[_picture(folder, name) for name in PICTURES if folder.has(name)],
        trials=read_trials(folder),
        **log,
        **result,
    )


def _known(kind: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else kind(value)


def _log(records: list[dict], metric: str) -> dict[str, Any]:
    numbers = lambda values: np.asarray(values, float)  # Also of the strings "NaN" and "Infinity".
    normed = [record for record in records if "gradient_norm" in record]
    validated = [record for record in records if "validation" in record]
    losses = [numbers(record.get("losses", [])) for record in records]
    scores = [_results(record["validation"]) for record in validated]
    return {
        "outer_steps": int(records[-1]["step"]) if records else 0,
        "minutes": float(records[-1]["seconds"]) / 60 if records else 0.0,
        "losses": np.concatenate([np.zeros(0), *losses]),
        "faults": [dict(fault) for record in records for fault in record.get("faults", [])],
        "norms": tuple(numbers([each[of] for each in normed]) for of in ("step", "gradient_norm")),
        "validations": Validations(
            numbers([record["step"] for record in validated]),
            numbers([record["seconds"] for record in validated]) / 60,
            numbers([score.mean[metric][-1] for score in scores]),
            numbers([score.interval[metric][-1] for score in scores]),
        ),
    }


def _result(ended: dict[str, Any], measured: dict[str, float], metric: str) -> dict[str, Any]:
    cost = measured | dict(ended.get("cost", {}))
    test = _results(ended["test"]) if "test" in ended else Results({}, {}, 0)
    if test.mean and metric not in test.mean:
        raise ValueError(f"no {metric}")
    environment = dict(ended.get("environment", {}))
    environment |= environment.pop("versions", {})
    return {
        "cost": RunCost(
            *(_known(float, cost.get(name)) for name in RunCost._fields[:4]),
            flops_are_lower_bound=bool(cost.get("flops_are_lower_bound")),
            unreached=_known(lambda names: list(map(str, names)), cost.get("unreached")),
        ),
        "trained_steps": _known(int, ended.get("trained_steps")),
        "normalisation": _known(str, ended.get("normalisation")),
        "best_step": _known(int, ended.get("best_step")),
        "environment": {name: str(value) for name, value in environment.items()},
        "test": test,
    }


def _results(record: dict[str, Any]) -> Results:
    mean = {name: np.asarray(record["mean"][name], float) for name in overall(record["mean"])}
    interval = {name: np.asarray(record["interval_95"][name], float) for name in mean}
    ece = np.asarray(record["ece"], float) if "ece" in record else None
    calibration = [] if ece is None else [ece]
    shapes = {array.shape for array in (*mean.values(), *interval.values(), *calibration)}
    if len(shapes) != 1 or len(shapes.pop()) != 1:
        raise ValueError("an evaluation is lists of one length")
    return Results(mean, interval, int(record["tasks"]), ece)


def _picture(folder: RunFolder, name: str) -> Picture:
    from PIL import Image

    with folder.reading(name):
        content = (folder.path / name).read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            size = image.size
            image.verify()
    address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return Picture(PICTURES[name], address, *size)
