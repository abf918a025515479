"""The command line: `innerloop train EXPERIMENT`, `innerloop report RUN`, `innerloop demo`, …"""

import contextlib
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from innerloop.devices.processes import is_first, join
from innerloop.errors import InnerloopError, RunError, StructureError
from innerloop.lab.experiments.base import Experiment
from innerloop.lab.experiments.before_training import (
    check_experiment,
    compare_experiment,
    plan_experiment,
)
from innerloop.lab.experiments.evaluation import evaluate_run
from innerloop.lab.experiments.few_shot import FewShot
from innerloop.lab.experiments.printing import print_test, print_trials
from innerloop.lab.experiments.protocols import ProtocolName
from innerloop.lab.experiments.table import EXPERIMENTS, experiment_name
from innerloop.lab.experiments.train import train
from innerloop.lab.plots import error_against_cost
from innerloop.lab.report import write_report
from innerloop.tasks.known_files import cache_folder
from innerloop.training import Stopped
from innerloop.training.signals import Terminated, own_process


def _chosen_among(kinds: Mapping[str, type[Experiment]]) -> Any:
    """The type of an argument that is one of these experiments, with its flags."""
    return tyro.extras.subcommand_type_from_defaults(
        {name: kind() for name, kind in kinds.items()},
        {name: (kind.__doc__ or "").split("\n\n")[0] for name, kind in kinds.items()},
        prefix_names=False,
    )


_AnyExperiment = _chosen_among(EXPERIMENTS)
# What is known of a meta-gradient before training is known of those of whole tasks.
_FewShotExperiment = _chosen_among(
    {name: kind for name, kind in EXPERIMENTS.items() if issubclass(kind, FewShot)}
)


@dataclass(frozen=True)
class TrainCommand:
    """Meta-train an experiment: choose by validation, test once, draw the figures."""

    experiment: Annotated[_AnyExperiment, tyro.conf.arg(name="")]  # pyright: ignore[reportInvalidTypeForm]
    """Which experiment; each has its own settings."""
    cluster: bool = False
    """This process is one of several, which SLURM, Open MPI or the cloud started."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where no scheduler tells; with --processes and --process."""
    processes: int | None = None
    """How many processes train together. Each samples and learns its own tasks."""
    process: int | None = None
    """Number of this process, from 0. Process 0 writes the run folder, which all must see."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a finished run on its meta-test tasks; a learned optimizer against tuned ones."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    tasks: int | None = None
    """Number of test tasks, of a learned optimizer for each family; the experiment's own unless
    given."""
    steps: int | None = None
    """Inner steps; results come after each of 0 to this many."""
    seed: int | None = None
    """Seed of the test set; the run's own unless given."""
    shots: int | None = None
    """Support examples, of each class where there are classes; the run's own unless given."""
    families: tuple[str, ...] | None = None
    """Of a learned optimizer: names of training or held-out families; those that it was trained on
    unless given."""
    shuffle_support_labels: bool = False
    """Shuffle each task's support labels: accuracy must fall to chance."""
    protocol: ProtocolName | None = None
    """Tasks that the data's authors fixed, in place of the run's own: omniglot-one-shot has 20,
    each of 20 characters of one alphabet, with one drawing of each to learn from."""


@dataclass(frozen=True)
class ReportCommand:
    """Write a run, or several side by side, as one self-contained HTML page."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the runs."""
    out: Path | None = None
    """File to write; RUN/report.html unless given, and report.html for several runs."""


@dataclass(frozen=True)
class CheckCommand:
    """Look for faults before training: one finding each, with place, cause and cure."""

    experiment: Annotated[_FewShotExperiment, tyro.conf.arg(name="")]  # pyright: ignore[reportInvalidTypeForm]
    """Which experiment; each has its own settings."""
    tasks: int = 4
    """Tasks to look at."""
    trace_only: bool = False
    """Leave out the checks that compute losses and gradients."""
    trained: Path | None = None
    """Run whose meta-parameters are looked at; the initial ones unless given."""


@dataclass(frozen=True)
class CompareCommand:
    """Hold every kind of meta-gradient against the exact one: error, memory and time."""

    experiment: Annotated[_FewShotExperiment, tyro.conf.arg(name="")]  # pyright: ignore[reportInvalidTypeForm]
    """Which experiment; each has its own settings."""
    trained: Path | None = None
    """Run whose meta-parameters are looked at; the initial ones unless given."""
    figure: Path | None = None
    """File for a figure of error against memory and time."""


@dataclass(frozen=True)
class PlanCommand:
    """Find the cheapest exact meta-gradient that fits a budget of memory; nothing is run."""

    experiment: Annotated[_FewShotExperiment, tyro.conf.arg(name="")]  # pyright: ignore[reportInvalidTypeForm]
    """Which experiment; each has its own settings. --memory is the budget, 2GiB unless given."""


@dataclass(frozen=True)
class DemoCommand:
    """Meta-train sinusoid and digits to the end, in under three minutes on two cores."""

    folder: Path = Path("runs")
    """Where the runs go."""


COMMANDS = {
    "train": TrainCommand,
    "evaluate": EvaluateCommand,
    "report": ReportCommand,
    "check": CheckCommand,
    "compare": CompareCommand,
    "plan": PlanCommand,
    "demo": DemoCommand,
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Errors of the library are one line on standard error and exit status 2."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="innerloop",
        description="Meta-learning on JAX: it differentiates through learning.",
        args=arguments,
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
    own = arguments is None  # not where a program or a test calls, whose settings these are
    goes_on = "; --run and --resume go on from the last save" * isinstance(command, TrainCommand)
    if own:
        _keep_compiled()
        _one_line_each(goes_on)
        own_process(f"innerloop: ended at once by a second signal{goes_on}")
    try:
        _run(command)
        return
    except (InnerloopError, KeyboardInterrupt) as error:
        ended = error
    message, status = _last_words(ended, goes_on)
    if own:
        _leave(message, status)
    print(message, file=sys.stderr)
    raise SystemExit(status)


def _last_words(error: BaseException, goes_on: str) -> tuple[str, int]:
    """What is said of what ended a command, and its exit status."""
    if isinstance(error, InnerloopError):
        return f"innerloop: {error}", 2
    if isinstance(error, Stopped):
        message = f"innerloop: stopped {error}; --run and --resume go on with it"
        return message, 128 + error.signal
    number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
    return f"innerloop: stopped{goes_on}", 128 + number


def _leave(message: str, status: int) -> None:
    """End the process at once: a compilation or a save in another thread may still run."""
    print(message, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


def _keep_compiled() -> None:
    """Compiled programs are kept on disk, so that the second start compiles little.

    Also those that compile in less than a second, which JAX leaves out: a run has a hundred. JAX's
    own variables say otherwise where they are set.
    """
    import jax

    settings = {
        "jax_compilation_cache_dir": str(cache_folder() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _one_line_each(goes_on: str) -> None:
    """Warnings are one line, and so are a save that failed and a signal that nobody could raise.

    The error is raised; what the storage layer prints of it besides is left out.
    """
    warnings.formatwarning = lambda message, *_, **__: f"innerloop: {message}\n"
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    shown = sys.unraisablehook

    def show(unraisable):
        # A signal that arrives while Python clears up ends there, and the command would go on.
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            _leave(*_last_words(unraisable.exc_value, goes_on))
        if str(unraisable.exc_value) != "Event loop is closed":  # of its threads, which are late
            shown(unraisable)

    sys.unraisablehook = show


def _run(command: Any) -> None:
    match command:
        case TrainCommand(experiment):
            numbers = (command.coordinator, command.processes, command.process)
            if command.cluster or numbers != (None, None, None):
                _join(command)
            _train(experiment)
        case EvaluateCommand():
            settings = dict(vars(command))
            record = evaluate_run(settings.pop("run"), **settings)
            if "families" in record:
                print_trials(record)
            else:
                print_test(record["test"], record["normalisation"])
            print(record["file"])
        case ReportCommand(runs, out):
            print(write_report(runs, out))
        case CheckCommand(experiment, tasks, trace_only, trained):
            with _working("checking"):
                report = check_experiment(experiment, tasks, not trace_only, trained)
            print(report)
            if report.errors:
                raise SystemExit(1)
        case CompareCommand(experiment, trained, figure):
            with _working("comparing"):
                comparison = compare_experiment(experiment, trained)
            print(comparison)
            if figure is not None:
                print(error_against_cost(figure, comparison.records(), title=comparison.headline()))
        case PlanCommand(experiment):
            with _working("planning"):
                plan = plan_experiment(experiment)
            print(plan)
        case DemoCommand(folder):
            stamp = time.strftime("%Y%m%d-%H%M%S")
            for name in ("sinusoid", "digits"):
                _train(EXPERIMENTS[name](run=folder / f"demo-{stamp}" / name))


@contextmanager
def _working(what: str) -> Iterator[None]:
    """A sign of life on standard error."""
    from rich.console import Console

    with Console(stderr=True).status(f"{what} …"):
        yield


def _join(command: TrainCommand) -> None:
    numbers = (command.coordinator, command.processes, command.process)
    named, known = command.experiment.run is not None, command.cluster
    if None not in numbers:
        _, _, port = (command.coordinator or "").rpartition(":")
        known = port.isdigit() and 0 <= (command.process or 0) < (command.processes or 0)
    if not named or not known:
        raise StructureError(
            "it is not said which processes train together, and where",
            got=f"--coordinator {numbers[0]} --processes {numbers[1]} --process {numbers[2]}"
            + ("" if named else ", without --run"),
            expected="HOST:PORT, how many, and which of them, from 0 to one less, or --cluster "
            "where a scheduler started them; and --run, or the time would give each another folder",
            write="innerloop train digits --run RUN --devices all --coordinator HOST:1234 "
            "--processes 2 --process 0",
        )
    try:
        join(*numbers)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            "the processes did not find each other",
            got=" ".join(str(error).split())[:200],
            expected="a job of SLURM, Open MPI or a cloud, or a process 0 that can be reached",
            write="--coordinator HOST:1234 --processes 2 --process 0",
        ) from error


def _train(experiment: Experiment) -> None:
    name = experiment_name(experiment)
    if experiment.resume and experiment.run is None:
        raise StructureError(
            "it is not said which run is to go on",
            got="--resume without --run",
            expected="the folder of the run",
            write=f"innerloop train {name} --run runs/{name}-... --resume",
        )
    run = experiment.run or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not is_first():
        train(experiment, run)
        return
    print(f"{name}: run folder {run}")
    result = train(experiment, run)
    print_test(result["test"], result["normalisation"])
    if result["plan"] is not None:
        print(f"within {result['config']['memory']}: {result['plan']}")
    print(f"best meta-parameters: outer step {result['best_step']} of {result['outer_steps']}")
    print(f"{result['seconds']:.0f} s. Figures:")
    for figure in sorted(run.glob("*.png")):
        print(f"  {figure}")
