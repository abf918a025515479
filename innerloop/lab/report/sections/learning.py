"""How the run learned: over outer steps, and over inner steps."""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

from innerloop.lab.experiments.printing import shown_steps
from innerloop.lab.report import figures, text
from innerloop.lab.report.blocks import Content, Figures, NotRecorded, TextTable
from innerloop.lab.report.runs import Run
from innerloop.lab.report.sections.common import by_metric, split, with_metric
from innerloop.lab.report.seeds import over_seeds, same_but_for_the_seed

_CALIBRATION = "calibration error"


def learning(runs: list[Run]) -> Iterator[Content]:
    """Training loss and validation over outer steps and over time."""
    begun, missing = split(runs, lambda run: len(run.losses))
    if missing:
        yield NotRecorded("the log of outer steps", missing)
    drawn = [figures.training_loss(begun)] if begun else []
    validated, missing = split(runs, lambda run: len(run.validations.steps))
    for same in by_metric(validated):
        drawn += [figures.validation_by_step(same), figures.validation_by_time(same)]
    if drawn:
        yield Figures(runs, drawn)
    if missing:
        yield NotRecorded("validation", missing)


def adaptation(runs: list[Run]) -> Iterator[Content]:
    """How well the test tasks are learned by each inner step."""
    tested, missing = split(runs, lambda run: run.finished)
    names = dict.fromkeys(name for run in tested for name in run.test.mean)
    if tested:
        drawn = [figures.adaptation(with_metric(tested, name), name) for name in names]
        yield Figures(runs, drawn)
    if missing:
        yield NotRecorded("the test evaluation", missing)


def intervals(runs: list[Run]) -> Iterator[Content]:
    """Means with intervals over tasks, and over seeds where runs differ in nothing else."""
    tested, missing = split(runs, lambda run: run.finished)
    if len(tested) == 1:
        yield _intervals_table(tested[0])
    else:
        names = dict.fromkeys(name for run in tested for name in run.test.mean)
        yield from (_intervals_beside(with_metric(tested, name), name) for name in names)
        calibrated = [run for run in tested if run.test.ece is not None]
        if calibrated:
            yield _calibration_beside(calibrated)
    for group in same_but_for_the_seed(runs):
        yield _seeds_table(group)
    if missing:
        yield NotRecorded("the test evaluation", missing)


def _intervals_table(run: Run) -> TextTable:
    names = list(run.test.mean)
    columns = [_means(run, name) for name in names]
    if run.test.ece is not None:
        names.append(_CALIBRATION)
        columns.append([f"{error:.1%}" for error in run.test.ece])
    rows = _by_step(zip(*columns, strict=True))
    caption = f"Mean over {run.test.tasks:,} test tasks ± 95% interval over tasks"
    return TextTable(["inner steps", *names], rows, caption)


def _calibration_beside(runs: list[Run]) -> TextTable:
    columns = [[f"{error:.1%}" for error in run.test.ece] for run in runs]  # pyright: ignore[reportOptionalIterable]
    rows = _by_step(zip_longest(*columns, fillvalue=""))
    caption = f"Expected {_CALIBRATION} of all predictions, 15 bins of confidence"
    return TextTable(["inner steps", *(run.name for run in runs)], rows, caption)


def _intervals_beside(runs: list[Run], name: str) -> TextTable:
    columns = [_means(run, name) for run in runs]
    rows = _by_step(zip_longest(*columns, fillvalue=""))
    caption = f"{name}: mean over test tasks ± 95% interval over tasks"
    return TextTable(["inner steps", *(run.name for run in runs)], rows, caption)


def _by_step(cells: Iterable[tuple[str, ...]]) -> list[list[str]]:
    """Rows by inner step; of many steps some."""
    rows = [[f"{step:,}", *row] for step, row in enumerate(cells)]
    return [rows[step] for step in shown_steps(len(rows) - 1)]


def _means(run: Run, name: str) -> list[str]:
    pairs = zip(run.test.mean[name], run.test.interval[name], strict=True)
    return [text.plus_minus(*pair, name) for pair in pairs]


def _seeds_table(group: list[Run]) -> TextTable:
    metric = group[0].metric
    names = [name for name in group[0].test.mean if all(name in run.test.mean for run in group)]
    rows = []
    for step in shown_steps(len(group[0].test.mean[metric]) - 1):
        together = {
            name: over_seeds([run.test.mean[name][step] for run in group]) for name in names
        }
        cells = [text.plus_minus(each.mean, each.half, name) for name, each in together.items()]
        judged = together[metric]
        spread, *ends = (
            text.value(each, metric) for each in (judged.deviation, judged.low, judged.high)
        )
        rows.append([str(step), *cells, spread, " to ".join(ends)])
    seeds = ", ".join(str(run.config["seed"]) for run in group)
    caption = f"Over seeds {seeds}, all else the same: mean of {len(group)} runs ± 95% interval "
    caption += "over seeds (Student's t)"
    headings = [f"{metric}, {what}" for what in ("standard deviation", "least to most")]
    return TextTable(["inner steps", *names, *headings], rows, caption)
