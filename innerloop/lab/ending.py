"""How a command begins and ends: arguments that are refused, and one line about an error."""

import contextlib
import logging
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence

import jax

from innerloop.errors import InnerloopError, RunError, StructureError
from innerloop.training import Stopped
from innerloop.training.signals import Terminated


def more_than_there_is(error: Exception) -> RunError:
    """The library's error for a lack of memory. Raises any other error of JAX again."""
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return RunError(
        "this needs more memory than there is",
        got=" ".join(str(error).split())[:200] or type(error).__name__,
        expected="numbers of tasks, rows and steps that fit into the memory of the device; --chunk "
        "sets how many tasks are computed at a time",
    )


def refuse_empty(arguments: Sequence[str]) -> None:
    """Raise `StructureError` for an empty argument, such as an unset shell variable gives.

    An empty path would mean the current folder.
    """
    for before, word in zip(["", *arguments], arguments, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            flag = (word or before).rstrip("=")
            raise StructureError(
                "an argument is empty",
                got=f"innerloop {shlex.join(arguments)}",
                expected=f"a value after {flag}, such as . for the current folder, or no {flag}",
            )


def last_words(error: BaseException, goes_on: str) -> tuple[str, int]:
    """The message about the error that ended a command, and the exit status."""
    if isinstance(error, InnerloopError):  # with flags alone where Python and flags are named
        return "innerloop: " + re.sub(r"\bfit\(\.\.\., .*\) \((--[^()]*)\)", r"\1", str(error)), 2
    known = "".join(getattr(error, "__notes__", ()))
    if isinstance(error, Stopped):
        message = f"innerloop: stopped {error}{known or '; --run and --resume go on with it'}"
        return message, 128 + error.signal
    number = error.signal if isinstance(error, Terminated) else signal.SIGINT
    return f"innerloop: stopped{known or goes_on}", 128 + number


def leave(message: str, status: int) -> None:
    """End the process at once: a compilation or a save in another thread may still run."""
    print(message, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


def one_line_each(goes_on: str) -> None:
    """Print each warning on one line, and suppress what Orbax prints about errors that it raises.

    A signal that arrives where Python cannot raise an exception ends the process with one line.
    """
    warnings.formatwarning = lambda message, *_, **__: f"innerloop: {message}\n"
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    shown = sys.unraisablehook

    def show(unraisable):
        # Python drops an exception that is raised during cleanup, and the command would continue.
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            leave(*last_words(unraisable.exc_value, goes_on))
        if str(unraisable.exc_value) != "Event loop is closed":  # From threads of Orbax.
            shown(unraisable)

    sys.unraisablehook = show
