"""Resident memory over a long run: does it grow?

`python benchmarks/flat_memory.py` writes `results/flat-memory.json` and
`docs/images/flat-memory.png`. The digits experiment with a small network, with JSON lines,
TensorBoard and validation, with checkpoints and without, each in a process of its own; sampled
after each call to the device.

The slope is that of least squares through the means of 30 blocks of calls after the warm-up.
Memory is autocorrelated: what grew stays. Means of blocks are less so, and what is left of it
shortens the sample: with r the lag-1 autocorrelation of their residuals, 30 blocks count as
30 (1 - r) / (1 + r), in the standard error and in the degrees of freedom of Student's t. The
warm-up is long: it takes some ten thousand steps until the allocator finds room for everything in
what it holds.

TensorStore, which Orbax writes with, keeps every list that it makes of JSON, as in `Spec.to_json`:
`leaked_by_tensorstore` counts them. That is why checkpoints hold few arrays.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import optax
from scipy import stats

import innerloop as il
from innerloop.lab.experiments.digits import Digits
from innerloop.lab.run_folder import environment

STEPS, PER_CALL, WARM_UP, BLOCKS = 50_000, 10, 12_500, 30
EVERY = 100  # steps between validations, and between checkpoints
WITH, WITHOUT = "with checkpoints", "without checkpoints"
EXPERIMENT = Digits(filters=4, batch=2, test_queries=5)
ROOT = Path(__file__).parent.parent


class Resident(il.extend.Logger):
    """Resident bytes of this process after each call to the device."""

    def __init__(self):
        # Filled now: what grows here must not be counted.
        self.steps, self.bytes = np.full((2, STEPS // PER_CALL), -1)
        self._calls = 0
        self._page = os.sysconf("SC_PAGE_SIZE")

    def __enter__(self):
        self._file = open("/proc/self/statm", "rb", buffering=0)
        return self

    def __call__(self, progress):
        self._file.seek(0)
        self.steps[self._calls] = progress.step
        self.bytes[self._calls] = int(self._file.read().split()[1]) * self._page
        self._calls += 1

    def __exit__(self, kind, *rest):
        self._file.close()


def train(folder: Path, checkpoints: il.training.Checkpoints | None) -> Resident:
    parts = EXPERIMENT.parts()
    held_out = parts.held_out[""]
    episodes = il.tasks.evaluation_episodes(held_out.validation, 20, seed=0)
    validation = il.Validation(episodes, EVERY, held_out.learner, "accuracy", maximise=True)
    memory = Resident()
    with il.logging.Loggers(
        il.logging.JsonLines(folder / "log.jsonl"), il.logging.TensorBoard(folder), memory
    ) as log:
        il.fit(
            parts.estimator,
            EXPERIMENT.init_meta,
            optimizer=optax.adam(EXPERIMENT.outer_rate),
            steps=STEPS,
            key=jax.random.key(0),
            per_call=PER_CALL,
            validation=validation,
            checkpoints=checkpoints,
            report=log,
        )
    return memory


def slope(steps: np.ndarray, values: np.ndarray) -> dict:
    """Slope per 1,000 steps, with its 95% interval."""
    means = lambda x: np.array([block.mean() for block in np.array_split(x, BLOCKS)])
    x, y = means(steps) / 1000, means(values)
    x = x - x.mean()
    slope = x @ y / (x @ x)
    residuals = y - y.mean() - slope * x
    r = max(0.0, residuals[1:] @ residuals[:-1] / (residuals @ residuals))
    freedom = max(2.0, BLOCKS * (1 - r) / (1 + r) - 2)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(residuals @ residuals / freedom / (x @ x))
    return {
        "bytes_per_1000_steps": slope,
        "interval_95": [slope - half, slope + half],
        "autocorrelation_of_block_residuals": r,
        "degrees_of_freedom": freedom,
    }


def slopes(samples: dict) -> dict[str, dict]:
    """After the warm-up, over all steps that are left and over the first 10,000 of them."""
    step, value = np.array(samples["step"]), np.array(samples["mib"]) * 2**20
    ends = {"slope": STEPS, "slope_over_10000_steps": WARM_UP + 10_000}
    warm = {name: (step > WARM_UP) & (step <= end) for name, end in ends.items()}
    return {name: slope(step[chosen], value[chosen]) for name, chosen in warm.items()}


def draw(path: Path, runs: dict[str, dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, run in runs.items():
        slope = run["slope"]["bytes_per_1000_steps"] / 2**10
        low, high = (bound / 2**10 for bound in run["slope"]["interval_95"])
        label = f"{name}: {slope:.0f} KiB per 1,000 steps ({low:.0f} to {high:.0f})"
        axes.plot(run["samples"]["step"], run["samples"]["mib"], linewidth=1, label=label)
    axes.axvline(WARM_UP, color="0.6", linestyle=":", linewidth=1)
    axes.set_xlabel("outer step")
    axes.set_ylabel("resident memory (MiB)")
    axes.set_ylim(bottom=0)
    axes.legend(title="slope after the dotted line (95% interval)", loc="lower left")
    figure.savefig(path, dpi=150)


def one_run(with_checkpoints: bool) -> dict:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        saved = il.training.Checkpoints(Path(folder) / "checkpoints", every=EVERY)
        memory = train(Path(folder), saved if with_checkpoints else None)
    steps, values = memory.steps, memory.bytes
    samples = {"step": steps[::10].tolist(), "mib": np.round(values[::10] / 2**20, 2).tolist()}
    return {
        **slopes(samples),
        "seconds": round(time.perf_counter() - begin, 1),
        "samples": samples,
    }


def leaked_by_tensorstore(calls: int = 2000) -> dict:
    """Lists that stay after so many calls of a function that returns none of them."""
    import tensorstore

    kvstore = {"driver": "memory", "path": "array/"}
    schema = {"dtype": "float32", "domain": {"shape": [2, 3]}}
    spec = tensorstore.Spec({"driver": "zarr3", "kvstore": kvstore, "schema": schema})

    def lists() -> int:
        gc.collect()
        return sum(type(each) is list for each in gc.get_objects())

    before = lists()
    for _ in range(calls):
        spec.to_json()
    return {"version": version("tensorstore"), "calls": calls, "lists": lists() - before}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(one_run(with_checkpoints=sys.argv[1] == WITH)))
        return
    runs = {}
    for name in (WITH, WITHOUT):
        output = subprocess.check_output([sys.executable, __file__, name])
        runs[name] = json.loads(output.splitlines()[-1])
        print(name, {key: value for key, value in runs[name].items() if key != "samples"})
    record = {
        "what": f"digits, {EXPERIMENT.filters} filters, {EXPERIMENT.batch} tasks a step, "
        f"{PER_CALL} steps a call, {EVERY} steps between validations and between checkpoints",
        "steps": STEPS,
        "warm_up": WARM_UP,
        "runs": runs,
        "leaked_by_tensorstore": leaked_by_tensorstore(),
        "command": "python benchmarks/flat_memory.py",
        "environment": environment(),
    }
    path = Path(__file__).parent / "results" / "flat-memory.json"
    path.write_text(json.dumps(record) + "\n")
    draw(ROOT / "docs" / "images" / "flat-memory.png", runs)


if __name__ == "__main__":
    main()
