"""What `fit` reports on the way, and its outcome."""

from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from innerloop.checks import describe
from innerloop.diagnostics import Plan
from innerloop.diagnostics.amounts import format_bytes
from innerloop.diagnostics.text import plus_minus, table
from innerloop.estimators.base import Estimator
from innerloop.learner import Learner
from innerloop.training._evaluate import Evaluation
from innerloop.training.non_finite import Fault
from innerloop.trees import number_count, tree_bytes


class Progress(NamedTuple):
    """What `fit` reports after each call to the device; prints as one line.

    `fit(..., report=print)` shows how far it has come.

    Attributes:
        step: Outer steps taken so far.
        metrics: Name -> one value per step of this call.
        seconds: Since the start, compilation included.
        evaluation: The validation made now, if one was due.
        best: Whether it is the best so far.
        meta: The meta-parameters now; those that were validated if an evaluation was due.
        fault: The last of these steps, if its loss, meta-gradient or model state was not finite.
        system: Seconds, tasks per second, memory: the figures of `innerloop.training.system.Meter`.
    """

    step: int
    metrics: dict[str, np.ndarray]
    seconds: float
    evaluation: Evaluation | None
    best: bool
    meta: PyTree
    fault: Fault | None
    system: dict[str, float]

    def __repr__(self) -> str:
        return describe(self)

    def __str__(self) -> str:
        parts = [f"{name} {value:.4g}" for name, value in self.means().items()]
        if self.evaluation is not None:
            mean, interval = self.evaluation.mean, self.evaluation.interval
            last = {name: plus_minus(mean[name][-1:], interval[name][-1:])[0] for name in mean}
            parts += [f"validation {name} {text}" for name, text in last.items()]
        best = ", the best so far" * self.best
        return f"step {self.step:,}, {self.seconds:.1f} s: {', '.join(parts)}{best}"

    def means(self) -> dict[str, float]:
        """The mean of each metric over the finite steps of the call; NaN if there are none."""
        rows = {name: np.asarray(leaf, np.float64) for name, leaf in self.metrics.items()}
        sound = np.isfinite(rows["loss"]) & np.isfinite(rows["gradient_norm"])
        return {n: float(row[sound].mean()) if sound.any() else np.nan for n, row in rows.items()}


class Fit(NamedTuple):
    """The outcome of meta-training; prints as a table.

    Attributes:
        meta: The best meta-parameters by validation; the last ones without validation.
        last: The last meta-parameters.
        step: Outer steps taken in all.
        best_step: Outer steps taken up to the best.
        faults: How many steps were not finite, as in `non_finite`.
        estimator: The estimator that was followed: the one given, or within a budget the one that
            was planned.
        plan: The plan by which `memory=` was met; None without a budget.
        learner: The learner of new tasks, with the model state of the best meta-parameters; None if
            the estimator has none.
    """

    meta: PyTree
    last: PyTree
    step: int
    best_step: int
    faults: int
    estimator: Estimator
    plan: Plan | None
    learner: Learner | None

    def __repr__(self) -> str:
        return describe(self)

    def __str__(self) -> str:
        numbers, size = number_count(self.meta), format_bytes(tree_bytes(self.meta))
        rows = [
            ("outer steps", f"{self.step:,}"),
            ("best after step", f"{self.best_step:,}"),
            ("steps that were not finite", f"{self.faults:,}"),
            ("meta-parameters", f"{numbers:,}, {size}"),
            ("estimator", type(self.estimator).__name__),
        ]
        if self.plan is not None:
            rows.append(("plan", self.plan.summary()))
        return table(("meta-training", ""), rows, right=2)
