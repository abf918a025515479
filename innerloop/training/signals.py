"""SIGTERM, SIGHUP and Ctrl-C: the step is finished and saved before the run ends."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last comes when a terminal is closed
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, where nothing holds it back; Ctrl-C is a plain `KeyboardInterrupt`.

    - `signal`: the signal's number
    """

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__(f"by signal {number}")
        self.signal = number


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop, and did after its state was saved.

    - `signal`: the signal's number; `step`: the outer step that was saved
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"by signal {number} at outer step {step}, which is saved")
        self.signal = number
        self.step = step


@contextmanager
def signals_deferred() -> Iterator[Callable[[], int | None]]:
    """Hold the signals back that end a run; yields a function that tells which has come.

    A second one is not held back, and a SIGHUP that is ignored (`nohup`) stays ignored. Outside the
    main thread, where Python lets no handler be set, nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _heeded()}

    def note(number, frame):
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heeded() -> list[int]:
    """The signals that end a run.

    SIGHUP is left out if it is ignored, because the run is then to outlive its terminal.
    """
    hangup = getattr(signal, "SIGHUP", None)
    outlives = hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN
    ours = [number for number in _SIGNALS if not (outlives and number == hangup)]
    return [number for number in ours if signal.getsignal(number) is not None]  # not Python's own


def own_process(message: str) -> None:
    """For the command line, whose process is its own: SIGTERM and SIGHUP raise `Terminated`, and
    the second signal prints `message` and ends the process at once.

    Python runs its handlers between two of its own instructions, so not during a compilation or a
    call to the device. What arrives is therefore read from the wakeup file by a thread.
    """

    def terminate(number, frame):
        raise Terminated(number)

    for heeded in _heeded():
        if heeded != signal.SIGINT:
            signal.signal(heeded, terminate)
    came, arrives = os.pipe()
    os.set_blocking(arrives, False)
    signal.set_wakeup_fd(arrives, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(came, message), daemon=True).start()


def _end_at_second(came: int, message: str) -> None:
    number = 0
    for _ in range(2):
        number = os.read(came, 1)[0]
        while number not in _SIGNALS:
            number = os.read(came, 1)[0]
    print(message, file=sys.stderr, flush=True)
    os._exit(128 + number)
