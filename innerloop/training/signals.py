"""SIGTERM and Ctrl-C: the step is finished and saved before the run ends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    """Hold SIGINT and SIGTERM back; yields a function that tells which has come.

    A second one is not held back. Outside the main thread, where Python lets no handler be set,
    nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number, frame):
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
