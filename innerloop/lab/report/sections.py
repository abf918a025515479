"""The sections of a report: one table, with a function per entry."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np

from innerloop.diagnostics.amounts import format_bytes
from innerloop.diagnostics.text import shown_steps
from innerloop.lab.experiments.optimizer_trials import PER_TASK
from innerloop.lab.experiments.printing import TRIALS, median_and_quartiles, trial_rows
from innerloop.lab.report import figures, text
from innerloop.lab.report.blocks import Content, Facts, Figures, Note, TextTable
from innerloop.lab.report.runs import Run, differing, half_interval, same_but_for_the_seed
from innerloop.lab.report.several import NOT_RECORDED, by_metric, by_name, by_run, having, of_runs

_CALIBRATION = "calibration error"
_FAULTS = 20
"""The most rows of the table of outer steps that were not finite."""


def results(runs: list[Run]) -> Iterator[Content]:
    """The outcome: tiles for one run, a row each for several."""
    ends = lambda metric: [r.test.interval[metric][-1] for r in runs if metric in r.test.interval]
    digits = {run.metric: text.decimals(ends(run.metric), run.metric) for run in runs}
    lines = [_outcome(run, digits[run.metric]) for run in runs]
    if len(runs) == 1:
        yield Facts([(name, *line) for name, line in lines[0].items()])
        return
    headings = list(dict.fromkeys(name for line in lines for name in line))
    cells = [[line.get(name, ("", ""))[0] for name in headings] for line in lines]
    rows = [[run.name, *values] for run, values in zip(runs, cells, strict=True)]
    yield TextTable(["", *headings], rows)


def _outcome(run: Run, digits: int) -> dict[str, tuple[str, str]]:
    """By name, a value and a remark."""
    reached, calibration = (NOT_RECORDED, ""), {}
    if run.finished:
        mean, half = run.test.mean[run.metric], run.test.interval[run.metric]
        remark = f"{run.test.tasks:,} tasks, {len(mean) - 1} inner steps"
        reached = (text.plus_minus(mean[-1], half[-1], run.metric, digits), remark)
        if run.test.ece is not None:
            calibration = {_CALIBRATION: (f"{run.test.ece[-1]:.1%}", "expected, 15 bins")}
    progress = f"{run.log.outer_steps:,}"
    if not run.finished and "steps" in run.config:
        progress += f" of {run.config.get('steps')}"
    return {
        f"test {run.metric}": reached,
        **calibration,
        "normalisation": (run.normalisation or NOT_RECORDED, ""),
        "best by validation": (_known("step {:,}".format, run.best_step), ""),
        "outer steps": (progress, "" if run.finished else "not finished"),
        "wall time": (_wall_time(run), "with compilation and validation"),
    }


def differences(runs: list[Run]) -> Iterator[Content]:
    """The config fields that differ between the runs."""
    if len(runs) < 2:
        return
    rows = [[text.words(name), *map(text.setting, values)] for name, values in differing(runs)]
    if rows:
        yield TextTable(["", *(run.name for run in runs)], rows, "Every other setting is the same.")
    else:
        yield Note("None: every setting of these runs is the same.")


def against_tuned(runs: list[Run]) -> Iterator[Content]:
    """Loss curves and a table of each evaluation; nothing for runs that learn no optimizer."""
    for of, trials in [(run, trials) for run in runs for trials in run.trials]:
        of_run = of_runs([of], runs)
        yield Note(
            f"{trials.steps:,} inner steps on {trials.tasks:,} new tasks of each family (seed "
            f"{trials.seed}){of_run}. Every tuned optimizer has the best of its rates for the "
            f"family, found on other tasks; “{PER_TASK}” has the best rate for each single task, "
            "which no method could know. The curves are medians over tasks, with the quartiles of "
            f"the learned one and of Adam. {trials.wins()}"
        )
        title = f"in {trials.steps} steps{of_run}"
        curves = [figures.tuned_curves(*found, title) for found in trials.families.items()]
        yield Figures([], curves)
        caption = (
            "Median over tasks (first to third quartile). Area: the mean loss over the run. Rate: "
            "the best for the last loss."
        )
        yield TextTable(TRIALS, trial_rows(trials.families, median_and_quartiles), caption)


def learning(runs: list[Run]) -> Iterator[Content]:
    """Training loss and validation over outer steps and over time."""
    begun = yield from having(runs, lambda run: len(run.log.losses), "the log of outer steps")
    validated = yield from having(runs, lambda run: run.log.validations.size, "validation")
    drawn = [figures.training_loss(begun)] if begun else []
    for metric, same in by_metric(validated):
        drawn += [figures.validation(same, metric, along) for along in ("outer step", "minutes")]
    if drawn:
        yield Figures(runs, drawn)


def adaptation(runs: list[Run]) -> Iterator[Content]:
    """The metrics of the test tasks after each inner step."""
    tested = yield from having(runs, lambda run: run.finished, "the test evaluation")
    if tested:
        named = by_name(tested, lambda run: run.metrics)
        yield Figures(runs, [figures.adaptation(same, name) for name, same in named])
        twice = dict.fromkeys(pair for run in tested for pair in run.same_metrics)
        for name, other in twice:
            yield Note(f"The {name} is the {other}, so it is shown once.")


def intervals(runs: list[Run]) -> Iterator[Content]:
    """Means with intervals over tasks, and over seeds where runs differ in the seed only."""
    tested = yield from having(runs, lambda run: run.finished, "the test evaluation")
    if len(tested) == 1:
        caption = f"Mean over {tested[0].test.tasks:,} test tasks ± 95% interval over tasks"
        yield _by_step(_means(tested[0]), caption)
    else:
        calibrated = f"Expected {_CALIBRATION} of all predictions, 15 bins of confidence"
        for name, same in by_name(tested, _means):
            averaged = f"{name}: mean over test tasks ± 95% interval over tasks"
            columns = {run.name: _means(run)[name] for run in same}
            yield _by_step(columns, calibrated if name == _CALIBRATION else averaged)
    for group in same_but_for_the_seed(runs):
        yield _over_seeds(group)


def _by_step(columns: dict[str, list[str]], caption: str) -> TextTable:
    """Rows by inner step; only some of many steps."""
    cells = list(zip_longest(*columns.values(), fillvalue=""))
    rows = [[f"{step:,}", *cells[step]] for step in shown_steps(len(cells) - 1)]
    return TextTable(["inner steps", *columns], rows, caption)


def _means(run: Run) -> dict[str, list[str]]:
    """By metric, the mean of the test with its interval after each inner step."""
    test = run.test
    means = {name: _column(test.mean[name], test.interval[name], name) for name in run.metrics}
    errors = {} if test.ece is None else {_CALIBRATION: [f"{error:.1%}" for error in test.ece]}
    return means | errors


def _column(means: np.ndarray, halves: np.ndarray, metric: str) -> list[str]:
    """Means with their intervals, all with the same decimals."""
    digits = text.decimals(halves, metric)
    return [text.plus_minus(*x, metric, digits) for x in zip(means, halves, strict=True)]


def _over_seeds(group: list[Run]) -> TextTable:
    metric, tests = group[0].metric, [run.test.mean for run in group]
    names = [name for name in group[0].metrics if all(name in run.metrics for run in group)]
    by_step = {name: np.stack([test[name] for test in tests], axis=1) for name in names}
    halves = {name: np.array([half_interval(x) for x in by_step[name]]) for name in names}
    digits = text.decimals(halves[metric], metric)
    shown = lambda number: text.value(number, metric, digits)
    columns = {name: _column(by_step[name].mean(axis=1), halves[name], name) for name in names}
    columns[f"{metric}, standard deviation"] = [shown(x.std(ddof=1)) for x in by_step[metric]]
    ranges = [f"{shown(x.min())} to {shown(x.max())}" for x in by_step[metric]]
    columns[f"{metric}, least to most"] = ranges
    seeds = ", ".join(str(run.config.get("seed")) for run in group)
    caption = (
        f"Over seeds {seeds}, all else the same: mean of {len(group)} runs ± 95% interval over "
        "seeds (Student's t)"
    )
    return _by_step(columns, caption)


def spread(runs: list[Run]) -> Iterator[Content]:
    """The distribution over single test tasks."""
    what = "the metrics of single test tasks"
    known = yield from having(runs, lambda run: run.metric in run.per_task, what)
    for metric, same in by_metric(known):
        drawn = [run for run in same if len(_ends(run))]
        if drawn:
            yield Figures(
                runs, [figures.histogram(drawn, metric), figures.quantiles(drawn, metric)]
            )
        yield Note(f"{metric} after the last inner step:")
        yield by_run(same, _quantiles)


def _quantiles(run: Run) -> dict[str, str]:
    finite = _ends(run)
    shown = {"5% of tasks are below": 0.05, "median task": 0.5, "95% of tasks are below": 0.95}
    values = [np.quantile(finite, share) for share in shown.values()] if len(finite) else []
    digits = text.decimals(np.diff(values) / 10, run.metric)
    cells = [text.value(each, run.metric, digits) for each in values] or [NOT_RECORDED] * len(shown)
    counted = {"tasks that are not finite": f"{len(run.per_task[run.metric]) - len(finite):,}"}
    return dict(zip(shown, cells, strict=True)) | counted


def _ends(run: Run) -> np.ndarray:
    """The finite values of the metric after the last inner step."""
    return figures.finite(run.per_task[run.metric][:, -1])


def examples(runs: list[Run]) -> Iterator[Content]:
    """Pictures of single test tasks."""
    pictured = yield from having(runs, lambda run: run.pictures, "pictures of single tasks")
    for run in pictured:
        for picture in run.pictures:
            yield picture._replace(title=f"{picture.title}{of_runs([run], runs)}")


def gradient(runs: list[Run]) -> Iterator[Content]:
    """The norm, the steps that are not finite, and the leaves that no gradient reaches."""
    what = "the norm of the meta-gradient"
    normed = yield from having(runs, lambda run: run.log.norms.size, what)
    if normed:
        yield Figures(runs, [figures.gradient_norm(normed)])
    for run in (run for run in runs if run.log.faults):
        faults = run.log.faults
        names = list(dict.fromkeys(name for fault in faults for name in fault))
        rows = [[text.setting(fault.get(name)) for name in names] for fault in faults[:_FAULTS]]
        shown = f", the first {_FAULTS} of {len(faults):,}" * (len(faults) > _FAULTS)
        caption = f"Outer steps that were not finite{of_runs([run], runs)}{shown}"
        yield TextTable(names, rows, caption)
    sound = [run for run in runs if not run.log.faults]
    if sound:
        yield Note(f"Outer steps that were not finite: none in the log{of_runs(sound, runs)}.")
    what = "which meta-parameters a gradient reaches"
    told = yield from having(runs, lambda run: run.cost["unreached"] is not None, what)
    for run in told:
        leaves = ", ".join(run.cost["unreached"]) or "none"
        yield Note(f"Meta-parameters that no gradient reaches: {leaves}{of_runs([run], runs)}.")


def cost(runs: list[Run]) -> Iterator[Content]:
    """Time, compilation, memory and operations."""
    yield by_run(runs, _cost_cells)
    yield Note(
        "The time of an outer step is the median over calls to the device, without tracing and "
        "compilation. Operations are those of the estimator's step, counted from the program."
    )


def _cost_cells(run: Run) -> dict[str, str]:
    cost = run.cost
    seconds, flops = cost.get("seconds_per_step"), cost.get("flops_per_step")
    per_second = lambda amount: amount / seconds if amount and seconds else None
    rate = lambda amount: f"{text.operations(amount)}/s"
    at_least = "at least " * (cost["flops_are_lower_bound"] and flops is not None)
    return {
        "wall time": _wall_time(run),
        "time per outer step": _known(text.duration, seconds),
        "tasks per second": _known("{:,.0f}".format, per_second(run.batch)),
        "compilation": _known(text.duration, cost.get("compile_seconds")),
        "peak memory": _known(format_bytes, cost.get("peak_memory_bytes")),
        "operations per outer step": at_least + _known(text.operations, flops),
        "operations per second": at_least + _known(rate, per_second(flops)),
    }


def configuration(runs: list[Run]) -> Iterator[Content]:
    """Every setting."""
    shown = lambda config: {text.words(name): text.setting(x) for name, x in config.items()}
    yield by_run(runs, lambda run: {"experiment": run.experiment} | shown(run.config))


def environment(runs: list[Run]) -> Iterator[Content]:
    """Versions, device, machine."""
    known = yield from having(runs, lambda run: run.environment, "the environment")
    if known:
        yield by_run(known, lambda run: run.environment)


SECTIONS: Mapping[str, Callable[[list[Run]], Iterable[Content]]] = {
    "Results": results,
    "Differences": differences,
    "Against tuned optimizers": against_tuned,
    "Learning": learning,
    "Adaptation": adaptation,
    "Intervals": intervals,
    "Distribution": spread,
    "Examples": examples,
    "Meta-gradient": gradient,
    "Cost": cost,
    "Configuration": configuration,
    "Environment": environment,
}
"""The sections in the order of the page, by title. A section without blocks is left out."""


def _known(show: Callable[[Any], str], value: Any) -> str:
    return NOT_RECORDED if value is None else show(value)


def _wall_time(run: Run) -> str:
    return text.duration(run.log.seconds) if run.log.outer_steps else NOT_RECORDED
