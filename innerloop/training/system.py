"""System figures of a run: the time of a step, compilation, memory."""

import resource
import sys
import time

import jax

_COMPILE = "/jax/core/compile/"
_BACKEND_COMPILE = _COMPILE + "backend_compile_duration"


class Meter:
    """Measures the calls to the device between its `__enter__` and its `__exit__`.

    `begin` and `end` stand around a call, whose results have arrived on the host at `end`: nothing
    is fetched from the device for the sake of measuring.

    - `batch`: tasks per outer step
    """

    def __init__(self, batch: int):
        self._batch = batch
        self._begin = 0.0
        self._step_seconds = 0.0
        self._compile_seconds = 0.0
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> "Meter":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def begin(self) -> None:
        """A call to the device begins."""
        self._spans.clear()
        self._begin = time.perf_counter()

    def end(self, steps: int) -> None:
        """The call has ended, after so many outer steps."""
        preparing = sum(end - begin for begin, end in self._spans)
        seconds = max(time.perf_counter() - self._begin - preparing, 1e-9)
        self._step_seconds = seconds / max(steps, 1)

    def figures(self) -> dict[str, float]:
        """The figures of the last call, by name.

        - `step_seconds`: seconds of an outer step, without tracing and compilation
        - `tasks_per_second`: tasks of the batch over `step_seconds`
        - `compile_seconds`: spent by the backend on compilation (or on reading what was compiled
          before from disk) since the meter was entered, validation's included
        - `peak_memory_bytes`: the most that the fullest device held, where devices tell; otherwise
          the most that this process had resident. Either since the process began.
        """
        return {
            "step_seconds": self._step_seconds,
            "tasks_per_second": self._batch / self._step_seconds,
            "compile_seconds": self._compile_seconds,
            "peak_memory_bytes": _peak_memory_bytes(),
        }

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if not event.startswith(_COMPILE):
            return
        if event == _BACKEND_COMPILE:
            self._compile_seconds += duration_secs
        # A function that is traced within another reports first: the outer span replaces it.
        end = time.perf_counter()
        begin = end - duration_secs
        self._spans = [span for span in self._spans if span[1] <= begin]
        self._spans.append((begin, end))


def _peak_memory_bytes() -> float:
    told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if told:
        return float(max(stats["peak_bytes_in_use"] for stats in told))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(resident if sys.platform == "darwin" else resident * 1024)
