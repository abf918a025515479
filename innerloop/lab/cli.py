"""The command line: `innerloop train EXPERIMENT`, `innerloop report RUN`, `innerloop demo`, …"""

import functools
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console
from rich.markup import escape

from innerloop import diagnostics
from innerloop.devices.processes import is_first, join
from innerloop.errors import InnerloopError, RunError, StructureError
from innerloop.lab import prediction
from innerloop.lab.ending import (
    last_words,
    leave,
    more_than_there_is,
    one_line_each,
    refuse_empty,
)
from innerloop.lab.experiments import evaluation
from innerloop.lab.experiments import train as training
from innerloop.lab.experiments.base import Experiment
from innerloop.lab.experiments.few_shot import FewShot
from innerloop.lab.experiments.printing import print_test, print_trials
from innerloop.lab.experiments.table import EXPERIMENTS, experiment_name
from innerloop.lab.flags import FLAGS
from innerloop.lab.plots import error_against_cost
from innerloop.lab.report import write_report
from innerloop.storage.compiled import keep_compiled
from innerloop.storage.files import require_text_name
from innerloop.tasks.files import cache_folder
from innerloop.training.signals import own_process


def _chosen_among(kinds: Mapping[str, type[Experiment]]) -> Any:
    """The type of an argument that is one of these experiments, with its flags."""
    chosen = tyro.extras.subcommand_type_from_defaults(
        {name: kind() for name, kind in kinds.items()},
        {name: (kind.__doc__ or "").split("\n\n")[0] for name, kind in kinds.items()},
        prefix_names=False,
    )
    return Annotated[chosen, tyro.conf.arg(name="")]


_AnyExperiment = _chosen_among(EXPERIMENTS)
# Checks, comparison and plan are of meta-gradients of whole tasks.
_FewShotExperiment = _chosen_among(
    {name: kind for name, kind in EXPERIMENTS.items() if issubclass(kind, FewShot)}
)


def train(
    experiment: _AnyExperiment,  # pyright: ignore[reportInvalidTypeForm]
    cluster: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Meta-train an experiment: choose by validation, test once, draw the figures.

    Args:
        experiment: The experiment. Each has its own settings.
        cluster: This process is one of several, which SLURM, Open MPI or the cloud started.
        coordinator: HOST:PORT of process 0 if there is no scheduler; with --processes and
            --process.
        processes: The number of processes that train together. Each samples and learns its own
            tasks.
        process: The number of this process, from 0. Process 0 writes the run folder, which all
            must see.
    """
    numbers = (coordinator, processes, process)
    if cluster or numbers != (None, None, None):
        _join(experiment, cluster, *numbers)
    _train(experiment)


def _join(experiment: Experiment, cluster: bool, *numbers: Any) -> None:
    coordinator, processes, process = numbers
    known = cluster
    if None not in numbers:
        known = coordinator.rpartition(":")[2].isdigit() and 0 <= process < processes
    if experiment.run is None or not known:
        raise StructureError(
            "it is not known which processes train together, and where",
            got=f"--coordinator {coordinator} --processes {processes} --process {process}"
            + ", without --run" * (experiment.run is None),
            expected="HOST:PORT, the number of processes, and the number of this one, from 0 to "
            "one less, or --cluster if a scheduler started them; and --run, because the folders "
            "that are named by the time would differ",
        )
    try:
        join(*numbers)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            "the processes did not find each other",
            got=" ".join(str(error).split())[:200],
            expected="a job of SLURM, Open MPI or a cloud, or a process 0 that can be reached",
        ) from error


def _train(experiment: Experiment) -> None:
    name = experiment_name(experiment)
    if experiment.resume and experiment.run is None:
        raise StructureError(
            "it is not known which run to resume",
            got="--resume without --run",
            expected="the folder of the run",
        )
    run = experiment.run or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not is_first():
        training.train(experiment, run)
        return
    require_text_name(run)
    result = training.train(experiment, run)
    print_test(result["test"], result["normalisation"])
    if result["plan"] is not None:
        print(f"within {result['config']['memory']}: {result['plan']}")
    print(f"best meta-parameters: outer step {result['best_step']} of {result['outer_steps']}")
    print(f"{result['seconds']:.0f} s. Figures:")
    for figure in sorted(run.glob("*.png")):
        print(f"  {figure}")


def evaluate(
    run: tyro.conf.Positional[Path],
    asked: Annotated[evaluation.Asked, tyro.conf.arg(name="")],
) -> None:
    """Evaluate a run on its meta-test tasks; a learned optimizer against tuned ones.

    The results are printed and written into a file in the run's folder. Evaluations with a
    different seed or different numbers go into different files.

    Args:
        run: Folder of the run.
        asked: How the evaluation differs from the run's own test.
    """
    record = evaluation.evaluate(run, asked)
    if "families" in record:
        print_trials(record)
    else:
        print_test(record["test"], record["normalisation"])
    print(record["file"])


def predict(
    run: tyro.conf.Positional[Path],
    support: Path,
    query: tuple[Path, ...],
    csv: Path,
    picture: Path | None = None,
    unknown_below: float | None = None,
) -> None:
    """Learn classes from a few images of each, and predict the classes of other images.

    Args:
        run: Folder of a run of innerloop train images.
        support: Folder that holds a folder of image files for each class; they need not be classes
            of the run.
        query: Image files, and folders of image files.
        csv: File to write: a line for each image, with its class and all probabilities.
        picture: PNG file with some of the images and their classes.
        unknown_below: Probability below which an image counts as of no known class; by default
            what 95 % of the images of the run's validation tasks reach.
    """
    with _at_work("learning"):
        found = prediction.predict(run, support, query, unknown_below=unknown_below)
    print(found)
    print(found.write_csv(csv))
    if picture is not None:
        print(found.write_picture(picture))


def report(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> None:
    """Write a run, or several side by side, as one self-contained HTML page.

    Args:
        runs: Folders of the runs.
        out: File to write. By default, RUN/report.html, and report.html for several runs.
    """
    print(write_report(runs, out))


@contextmanager
def _at_work(what: str) -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is being done; gives the function that changes it."""
    with Console(stderr=True).status(f"{what} …") as status:
        yield lambda line: status.update(f"{what}: {escape(line)} …")


def check(
    experiment: _FewShotExperiment,  # pyright: ignore[reportInvalidTypeForm]
    tasks: int = 4,
    trace_only: bool = False,
    trained: Path | None = None,
) -> None:
    """Look for faults before training: one finding each, with place, cause and cure.

    Args:
        experiment: The experiment. Each has its own settings.
        tasks: Number of tasks to check.
        trace_only: Leave out the checks that compute losses and gradients.
        trained: Run whose meta-parameters are checked; the initial ones by default.
    """
    with _at_work("checking") as report:
        parts = training.on_tasks(experiment, tasks, trained)
        found = diagnostics.check(*parts, run=not trace_only, report=report)
    print(found)
    if found.errors:
        raise SystemExit(1)


def compare(
    experiment: _FewShotExperiment,  # pyright: ignore[reportInvalidTypeForm]
    trained: Path | None = None,
    figure: Path | None = None,
) -> None:
    """Compare every kind of meta-gradient with the exact one: error, memory and time.

    Args:
        experiment: The experiment. Each has its own settings.
        trained: Run whose meta-parameters are used; the initial ones by default.
        figure: File for a figure of error against memory and time.
    """
    with _at_work("comparing") as report:
        *parts, _ = training.on_tasks(experiment, experiment.batch, trained)
        comparison = diagnostics.compare(*parts, chunk=experiment.chunk, report=report)
    print(comparison)
    if figure is not None:
        print(error_against_cost(figure, comparison.records(), title=comparison.headline()))


def plan(experiment: _FewShotExperiment) -> None:  # pyright: ignore[reportInvalidTypeForm]
    """Find an exact meta-gradient that fits a budget of memory; nothing is run.

    Args:
        experiment: The experiment. Each has its own settings. --memory is the budget, 2GiB by
            default.
    """
    with _at_work("planning") as report:
        *parts, _, _ = training.on_tasks(experiment, experiment.batch, None)
        memory = experiment.memory or "2GiB"
        chosen = diagnostics.plan(*parts, memory=memory, chunk=experiment.chunk, report=report)
    print(chosen)


def demo(folder: Path | None = None) -> None:
    """Meta-train sinusoid and digits to the end, in under three minutes on two cores.

    Args:
        folder: Folder of the two runs; runs/demo-TIME by default. A demonstration that was
            interrupted goes on in its folder.
    """
    folder = folder or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    for name in ("sinusoid", "digits"):
        try:
            _train(EXPERIMENTS[name](run=folder / name, resume=True))
        except KeyboardInterrupt as error:
            error.add_note(f"; innerloop demo --folder {shlex.quote(str(folder))} goes on")
            raise


COMMANDS = (train, evaluate, predict, report, check, compare, plan, demo)


def _later(command: Callable[..., None]) -> Callable[..., Any]:
    """The command for tyro, which binds the arguments and does not run it."""

    @functools.wraps(command)
    def bound(*args: Any, **kwargs: Any) -> Any:
        return functools.partial(command, *args, **kwargs)

    # tyro breaks a line of help where a line of the docstring ends.
    command.__doc__ = re.sub(r"\n {12}", " ", command.__doc__ or "")
    return bound


def main(arguments: list[str] | None = None) -> None:
    """Entry point. An error of the library is one line on standard error, and exit status 2."""
    try:
        refuse_empty(sys.argv[1:] if arguments is None else arguments)
    except StructureError as error:
        print(f"innerloop: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    with FLAGS:
        command = tyro.extras.subcommand_cli_from_dict(
            {command.__name__: _later(command) for command in COMMANDS},
            prog="innerloop",
            description="Meta-learning on JAX: it differentiates through learning.",
            args=arguments,
            config=(tyro.conf.CascadeSubcommandArgs,),
        )
    own = arguments is None  # Otherwise the process belongs to a program or a test.
    goes_on = _GOES_ON.get(command.func, "")
    if own:
        keep_compiled(cache_folder() / "compiled")
        one_line_each(goes_on)
        own_process(f"innerloop: ended at once by a second signal{goes_on}")
    try:
        command()
        sys.stdout.flush()
        return
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        if not own:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (InnerloopError, KeyboardInterrupt) as error:
        message, status = last_words(error, goes_on)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        message, status = last_words(more_than_there_is(error), goes_on)
    if own:
        leave(message, status)
    print(message, file=sys.stderr)
    raise SystemExit(status)


_GOES_ON = {
    train: "; --run and --resume go on from the last save",
    demo: "; innerloop demo --folder FOLDER goes on, with the folder above the run folder",
}
"""How to continue a command that a signal has ended, for its last line."""
