"""The sections of a report: one table, with a function per entry."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from innerloop.diagnostics.amounts import format_bytes
from innerloop.lab.experiments.optimizer_trials import PER_TASK
from innerloop.lab.experiments.printing import median_and_quartiles, shown_steps, trial_rows
from innerloop.lab.report import figures, optimizers, text
from innerloop.lab.report.blocks import Content, Facts, Figures, Missing, Note, Pairs, TextTable
from innerloop.lab.report.runs import Run
from innerloop.lab.report.seeds import differing, over_seeds, same_but_for_the_seed

_NONE = "not recorded"
_CALIBRATION = "calibration error"
_FAULTS = 20
"""The most rows of the table of outer steps that were not finite."""


def results(runs: list[Run]) -> Iterator[Content]:
    """The outcome: tiles for one run, a row each for several."""
    lines = [_outcome(run) for run in runs]
    if len(runs) == 1:
        yield Facts([(name, *line) for name, line in lines[0].items()])
        return
    headings = list(dict.fromkeys(name for line in lines for name in line))
    cells = [[line.get(name, ("", ""))[0] for name in headings] for line in lines]
    rows = [[run.name, *values] for run, values in zip(runs, cells, strict=True)]
    yield TextTable(["", *headings], rows)


def _outcome(run: Run) -> dict[str, tuple[str, str]]:
    """By name, a value and a remark."""
    reached, calibration = (_NONE, ""), {}
    if run.finished:
        mean, half = run.test.mean[run.metric], run.test.interval[run.metric]
        remark = f"{run.test.tasks:,} tasks, {len(mean) - 1} inner steps"
        reached = (text.plus_minus(mean[-1], half[-1], run.metric), remark)
        if run.test.ece is not None:
            calibration = {_CALIBRATION: (f"{run.test.ece[-1]:.1%}", "expected, 15 bins")}
    progress = f"{run.outer_steps:,}"
    if not run.finished:
        progress += f" of {run.config.get('steps')}"
    return {
        f"test {run.metric}": reached,
        **calibration,
        "normalisation": (run.normalisation or _NONE, ""),
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
        of_run = _of_runs([of], runs)
        yield Note(
            f"{trials.steps:,} inner steps on {trials.tasks:,} new tasks of each family (seed "
            f"{trials.seed}){of_run}. Every tuned optimizer has the best of its rates for the "
            f"family, found on other tasks; “{PER_TASK}” has the best rate for each single task, "
            "which no method could know. The curves are medians over tasks, with the quartiles of "
            f"the learned one and of Adam. {optimizers.wins(trials)}"
        )
        title = f"in {trials.steps} steps{of_run}"
        curves = trials.curves.items()
        yield Figures([], [optimizers.curves(family, found, title) for family, found in curves])
        rows = [
            [family, *row]
            for family, found in trials.families.items()
            for row in trial_rows(found, median_and_quartiles)
        ]
        caption = (
            "Median over tasks (first to third quartile). Area: the mean loss over the run. Rate: "
            "the best for the last loss."
        )
        yield TextTable(["family", "optimizer", "last loss", "area", "rate"], rows, caption)


def learning(runs: list[Run]) -> Iterator[Content]:
    """Training loss and validation over outer steps and over time."""
    begun = yield from _having(runs, lambda run: len(run.losses), "the log of outer steps")
    validated = yield from _having(runs, lambda run: len(run.validations.steps), "validation")
    drawn = [figures.training_loss(begun)] if begun else []
    for same in _by_metric(validated):
        drawn += [figures.validation_by_step(same), figures.validation_by_time(same)]
    if drawn:
        yield Figures(runs, drawn)


def adaptation(runs: list[Run]) -> Iterator[Content]:
    """The metrics of the test tasks after each inner step."""
    tested = yield from _having(runs, lambda run: run.finished, "the test evaluation")
    if tested:
        drawn = [figures.adaptation(same, name) for name, same in _by_name(tested)]
        yield Figures(runs, drawn)


def intervals(runs: list[Run]) -> Iterator[Content]:
    """Means with intervals over tasks, and over seeds where runs differ in the seed only."""
    tested = yield from _having(runs, lambda run: run.finished, "the test evaluation")
    if len(tested) == 1:
        (run,) = tested
        names = [*run.test.mean, *[_CALIBRATION] * (run.test.ece is not None)]
        caption = f"Mean over {run.test.tasks:,} test tasks ± 95% interval over tasks"
        yield _by_step(names, [_means(run, name) for name in names], caption)
    else:
        for name, same in _by_name(tested):
            caption = f"{name}: mean over test tasks ± 95% interval over tasks"
            yield _by_step([run.name for run in same], [_means(run, name) for run in same], caption)
        calibrated = [run for run in tested if run.test.ece is not None]
        if calibrated:
            caption = f"Expected {_CALIBRATION} of all predictions, 15 bins of confidence"
            columns = [_means(run, _CALIBRATION) for run in calibrated]
            yield _by_step([run.name for run in calibrated], columns, caption)
    for group in same_but_for_the_seed(runs):
        yield _seeds_table(group)


def _by_step(names: list[str], columns: list[list[str]], caption: str) -> TextTable:
    """Rows by inner step; only some of many steps."""
    cells = list(zip_longest(*columns, fillvalue=""))
    rows = [[f"{step:,}", *cells[step]] for step in shown_steps(len(cells) - 1)]
    return TextTable(["inner steps", *names], rows, caption)


def _means(run: Run, name: str) -> list[str]:
    if name == _CALIBRATION:
        return [f"{error:.1%}" for error in run.test.ece]  # pyright: ignore[reportOptionalIterable]
    pairs = zip(run.test.mean[name], run.test.interval[name], strict=True)
    return [text.plus_minus(*pair, name) for pair in pairs]


def _seeds_table(group: list[Run]) -> TextTable:
    metric = group[0].metric
    names = [name for name in group[0].test.mean if all(name in run.test.mean for run in group)]
    rows = []
    for step in shown_steps(len(group[0].test.mean[metric]) - 1):
        at = {name: over_seeds([run.test.mean[name][step] for run in group]) for name in names}
        cells = [text.plus_minus(each.mean, each.half, name) for name, each in at.items()]
        shown = [text.value(number, metric) for number in at[metric][2:]]
        rows.append([str(step), *cells, shown[0], f"{shown[1]} to {shown[2]}"])
    seeds = ", ".join(str(run.config["seed"]) for run in group)
    headings = [f"{metric}, {what}" for what in ("standard deviation", "least to most")]
    caption = (
        f"Over seeds {seeds}, all else the same: mean of {len(group)} runs ± 95% interval over "
        "seeds (Student's t)"
    )
    return TextTable(["inner steps", *names, *headings], rows, caption)


def spread(runs: list[Run]) -> Iterator[Content]:
    """The distribution over single test tasks."""
    what = "the metrics of single test tasks"
    known = yield from _having(runs, lambda run: run.metric in run.per_task, what)
    for same in _by_metric(known):
        metric = same[0].metric
        drawn = [run for run in same if len(_ends(run))]
        if drawn:
            both = [figures.histogram(drawn, metric), figures.quantiles(drawn, metric)]
            yield Figures(runs, both)
        yield Note(f"{metric} after the last inner step:")
        yield _by_run(same, _quantiles)


def _quantiles(run: Run) -> dict[str, str]:
    finite = _ends(run)
    shown = {"5% of tasks are below": 0.05, "median task": 0.5, "95% of tasks are below": 0.95}
    at = lambda share: text.value(np.quantile(finite, share), run.metric) if len(finite) else _NONE
    counted = {"tasks that are not finite": f"{len(run.per_task[run.metric]) - len(finite):,}"}
    return {name: at(share) for name, share in shown.items()} | counted


def _ends(run: Run) -> np.ndarray:
    """The finite values of the metric after the last inner step."""
    return figures.finite(run.per_task[run.metric][:, -1])


def examples(runs: list[Run]) -> Iterator[Content]:
    """Pictures of single test tasks."""
    pictured = yield from _having(runs, lambda run: run.pictures, "pictures of single tasks")
    for run in pictured:
        for picture in run.pictures:
            yield picture._replace(title=f"{picture.title}{_of_runs([run], runs)}")


def gradient(runs: list[Run]) -> Iterator[Content]:
    """The norm, the steps that are not finite, and the leaves that no gradient reaches."""
    what = "the norm of the meta-gradient"
    normed = yield from _having(runs, lambda run: len(run.norms[0]), what)
    if normed:
        yield Figures(runs, [figures.gradient_norm(normed)])
    for run in (run for run in runs if run.faults):
        names = list(dict.fromkeys(name for fault in run.faults for name in fault))
        first = run.faults[:_FAULTS]
        rows = [[text.setting(fault.get(name)) for name in names] for fault in first]
        shown = f", the first {_FAULTS} of {len(run.faults):,}" * (len(run.faults) > _FAULTS)
        caption = f"Outer steps that were not finite{_of_runs([run], runs)}{shown}"
        yield TextTable(names, rows, caption)
    sound = [run for run in runs if not run.faults]
    if sound:
        yield Note(f"Outer steps that were not finite: none in the log{_of_runs(sound, runs)}.")
    what = "which meta-parameters a gradient reaches"
    told = yield from _having(runs, lambda run: run.cost.unreached is not None, what)
    for run in told:
        leaves = ", ".join(run.cost.unreached or ()) or "none"
        yield Note(f"Meta-parameters that no gradient reaches: {leaves}{_of_runs([run], runs)}.")


def cost(runs: list[Run]) -> Iterator[Content]:
    """Time, compilation, memory and operations."""
    yield _by_run(runs, _cost_cells)
    yield Note(
        "The time of an outer step is the median over calls to the device, without tracing and "
        "compilation. Operations are those of the meta-gradient, counted from the program."
    )


def _cost_cells(run: Run) -> dict[str, str]:
    cost, seconds = run.cost, run.cost.seconds_per_step
    per_second = lambda amount: amount / seconds if amount and seconds else None
    rate = lambda amount: f"{text.operations(amount)}/s"
    at_least = "at least " * (cost.flops_are_lower_bound and cost.flops_per_step is not None)
    return {
        "wall time": _wall_time(run),
        "time per outer step": _known(text.duration, seconds),
        "tasks per second": _known("{:,.0f}".format, per_second(run.batch)),
        "compilation": _known(text.duration, cost.compile_seconds),
        "peak memory": _known(format_bytes, cost.peak_memory_bytes),
        "operations per outer step": at_least + _known(text.operations, cost.flops_per_step),
        "operations per second": at_least + _known(rate, per_second(cost.flops_per_step)),
    }


def configuration(runs: list[Run]) -> Iterator[Content]:
    """Every setting."""
    shown = lambda config: {text.words(name): text.setting(x) for name, x in config.items()}
    yield _by_run(runs, lambda run: {"experiment": run.experiment} | shown(run.config))


def environment(runs: list[Run]) -> Iterator[Content]:
    """Versions, device, machine."""
    known = yield from _having(runs, lambda run: run.environment, "the environment")
    if known:
        yield _by_run(known, lambda run: run.environment)


class Section(NamedTuple):
    """A heading, and the function that fills it. A section without blocks is left out."""

    title: str
    blocks: Callable[[list[Run]], Iterable[Content]]

    @property
    def anchor(self) -> str:
        """The id that links refer to."""
        return self.title.lower().replace(" ", "-")


SECTIONS = (
    Section("Results", results),
    Section("Differences", differences),
    Section("Against tuned optimizers", against_tuned),
    Section("Learning", learning),
    Section("Adaptation", adaptation),
    Section("Intervals", intervals),
    Section("Distribution", spread),
    Section("Examples", examples),
    Section("Meta-gradient", gradient),
    Section("Cost", cost),
    Section("Configuration", configuration),
    Section("Environment", environment),
)
"""The sections in the order of the page. A new section is a new entry."""


def _having(
    runs: Sequence[Run], has: Callable[[Run], Any], what: str
) -> Generator[Content, None, list[Run]]:
    """Returns the runs that have something, and yields a note about those that do not."""
    missing = [run for run in runs if not has(run)]
    if missing:
        yield Missing(what, missing)
    return [run for run in runs if has(run)]


def _by_run(runs: Sequence[Run], entries: Callable[[Run], dict[str, str]]) -> Pairs | TextTable:
    """Names and values, with a column for each of several runs."""
    columns = [entries(run) for run in runs]
    if len(runs) == 1:
        return Pairs(list(columns[0].items()))
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, _NONE) for column in columns)] for name in names]
    return TextTable(["", *(run.name for run in runs)], rows)


def _by_metric(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of runs that are judged by one metric and so can share axes."""
    metrics = dict.fromkeys(run.metric for run in runs)
    return [[run for run in runs if run.metric == metric] for metric in metrics]


def _by_name(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Each metric of the tests, and the runs whose test has it."""
    names = dict.fromkeys(name for run in runs for name in run.test.mean)
    return [(name, [run for run in runs if name in run.test.mean]) for name in names]


def _of_runs(some: Sequence[Run], runs: Sequence[Run]) -> str:
    """The names of some runs, if there are others besides."""
    return f" ({', '.join(run.name for run in some)})" if len(runs) > 1 else ""


def _known(show: Callable[[Any], str], value: Any) -> str:
    return _NONE if value is None else show(value)


def _wall_time(run: Run) -> str:
    return text.duration(60 * run.minutes) if run.outer_steps else _NONE
