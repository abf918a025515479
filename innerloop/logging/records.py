"""A report as a record for a file, and as flat numbers for a dashboard."""

from typing import Any

from innerloop.storage.kinds import (
    amount,
    anything,
    by_name,
    count,
    fields,
    listed,
    number,
    numbers,
)
from innerloop.training._evaluate import Evaluation
from innerloop.training.results import Progress


def evaluation(value: Any) -> dict[str, Any]:
    """The kind of `evaluation_record` in a file: its lists, as arrays, have one length."""
    content = _EVALUATION(value)
    mean, interval = content["mean"], content["interval_95"]
    lengths = {len(each) for each in (*mean.values(), *interval.values())}
    lengths |= {len(content[name]) for name in ("ece",) if name in content}
    if mean.keys() != interval.keys() or len(lengths) != 1 or 0 in lengths:
        raise ValueError("an evaluation is lists of one length, a mean and an interval by name")
    return content


_EVALUATION = fields(
    {"tasks": count, "mean": by_name(numbers), "interval_95": by_name(numbers)},
    {"ece": numbers},
    rest=anything,
)
_SYSTEM = fields(
    {"step_seconds": amount, "compile_seconds": amount, "peak_memory_bytes": amount}, rest=number
)
LINE = fields(
    {"step": count, "seconds": amount},
    {
        "losses": numbers,
        "system": _SYSTEM,
        "validation": evaluation,
        "faults": listed(fields({"step": count}, rest=anything)),
    },
    rest=number,
)
"""The kind of `record` in a file."""


def record(progress: Progress) -> dict[str, Any]:
    """A report as JSON.

    - `"step"`, `"seconds"`; each metric by its name, as the mean over the steps of the call
    - `"losses"`: the loss of each outer step
    - `"system"`: the system figures
    - `"validation"`: the evaluation, if one was made
    - `"faults"`: the step whose loss, meta-gradient or model state was not finite, if there was one
    """
    content = {"step": progress.step, "seconds": round(progress.seconds, 3)}
    content |= progress.means() | {"losses": progress.metrics["loss"].tolist()}
    content["system"] = progress.system
    if progress.evaluation is not None:
        content["validation"] = evaluation_record(progress.evaluation)
    if progress.fault is not None:
        why = progress.fault.why
        content["faults"] = [progress.fault._asdict() | {"why": None if why is None else str(why)}]
    return content


def scalars(progress: Progress) -> dict[str, float]:
    """A report as flat numbers by name, for dashboards.

    - `"loss"`, `"gradient_norm"`, `"accuracy"`, …: mean over the steps of the call
    - `"validation/accuracy"`, …: after the last inner step, if a validation was made, with half the
      width of its 95% interval as `"validation/accuracy/interval_95"`
    - `"system/step_seconds"`, …: the system figures
    """
    flat = progress.means()
    flat |= {f"system/{name}": value for name, value in progress.system.items()}
    if progress.evaluation is not None:
        mean, interval = progress.evaluation.mean, progress.evaluation.interval
        last = mean | {f"{name}/interval_95": leaf for name, leaf in interval.items()}
        flat |= {f"validation/{name}": float(leaf[-1]) for name, leaf in last.items()}
    return flat


def evaluation_record(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON: lists over 0 ... K inner steps, or the last step of a validation."""
    calibration = {} if evaluation.ece is None else {"ece": evaluation.ece.tolist()}
    return {
        "tasks": evaluation.tasks,
        "mean": {name: leaf.tolist() for name, leaf in evaluation.mean.items()},
        "interval_95": {name: leaf.tolist() for name, leaf in evaluation.interval.items()},
        **calibration,
    }
