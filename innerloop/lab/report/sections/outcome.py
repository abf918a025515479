"""What came out, and of which settings."""

from collections.abc import Iterator

from innerloop.lab.report import text
from innerloop.lab.report.blocks import Content, Facts, Note, NotRecorded, TextTable
from innerloop.lab.report.runs import Run
from innerloop.lab.report.sections.common import NONE, by_run, split
from innerloop.lab.report.seeds import differing


def results(runs: list[Run]) -> Iterator[Content]:
    """What came out: tiles for one run, a line each for several."""
    lines = [_outcome(run) for run in runs]
    if len(runs) == 1:
        yield Facts([(name, *line) for name, line in lines[0].items()])
        return
    headings = list(dict.fromkeys(name for line in lines for name in line))
    cells = [[line.get(name, ("", ""))[0] for name in headings] for line in lines]
    rows = [[run.name, *values] for run, values in zip(runs, cells, strict=True)]
    yield TextTable(["", *headings], rows)


def _outcome(run: Run) -> dict[str, tuple[str, str]]:
    """Name -> value and remark."""
    reached, calibration = (NONE, ""), {}
    if run.finished:
        ends = (run.test.mean[run.metric][-1], run.test.interval[run.metric][-1])
        steps = len(run.test.mean[run.metric]) - 1
        remark = f"{run.test.tasks:,} tasks, {steps} inner steps"
        reached = (text.plus_minus(*ends, run.metric), remark)
        if run.test.ece is not None:
            calibration = {"calibration error": (f"{run.test.ece[-1]:.1%}", "expected, 15 bins")}
    best = NONE if run.best_step is None else f"step {run.best_step:,}"
    progress = f"{run.outer_steps:,}"
    if not run.finished:
        progress += f" of {run.config.get('steps')}"
    time = text.duration(60 * run.minutes) if run.outer_steps else NONE
    return {
        f"test {run.metric}": reached,
        **calibration,
        "normalisation": (run.normalisation or NONE, ""),
        "best by validation": (best, ""),
        "outer steps": (progress, "" if run.finished else "not finished"),
        "wall time": (time, "with compilation and validation"),
    }


def differences(runs: list[Run]) -> Iterator[Content]:
    """The config fields that are not the same in all runs."""
    if len(runs) < 2:
        return
    rows = [[text.words(name), *map(text.setting, values)] for name, values in differing(runs)]
    if rows:
        yield TextTable(["", *(run.name for run in runs)], rows, "Every other setting is the same.")
    else:
        yield Note("None: every setting of these runs is the same.")


def configuration(runs: list[Run]) -> Iterator[Content]:
    """Every setting."""
    shown = lambda config: {text.words(name): text.setting(x) for name, x in config.items()}
    yield by_run(runs, [{"experiment": run.experiment} | shown(run.config) for run in runs])


def environment(runs: list[Run]) -> Iterator[Content]:
    """Versions, device, machine."""
    known, missing = split(runs, lambda run: run.environment)
    if known:
        yield by_run(known, [run.environment for run in known])
    if missing:
        yield NotRecorded("the environment", missing)
