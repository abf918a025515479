"""The outer loop: update meta-parameters over many tasks, keep the best by validation."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.devices.placement import Placement
from innerloop.devices.processes import in_any, together
from innerloop.devices.sharding import placement
from innerloop.diagnostics._plan import Plan
from innerloop.recipes import Recipe
from innerloop.storage.checkpoint import Checkpoints
from innerloop.tasks import StreamedTasks, TaskDistribution
from innerloop.training._evaluate import Evaluation
from innerloop.training.arguments import (
    check_arguments,
    check_no_chunk,
    check_policies,
    check_runs,
)
from innerloop.training.batch import run_keys
from innerloop.training.budget import plan_training
from innerloop.training.faults import stop_at_faults
from innerloop.training.non_finite import Fault, NonFinite, Stop
from innerloop.training.outer_loop import OuterLoop
from innerloop.training.saving import training_saved
from innerloop.training.step import averaged
from innerloop.training.system import Meter
from innerloop.training.validation import Validation, Validator
from innerloop.trees import leaf_shapes


class Progress(NamedTuple):
    """What `fit` reports after each call to the device.

    - `step`: outer steps taken so far; `metrics`: name -> one value per step of this call
    - `seconds`: since the start, compilation included
    - `evaluation`: the validation made now, if one was due; `best`: whether it is the best so far
    - `meta`: the meta-parameters now, those that were validated where an evaluation was due
    - `fault`: the last of these steps, where its loss or meta-gradient was not finite
    - `system`: seconds, tasks per second, memory: the figures of `innerloop.training.system.Meter`
    """

    step: int
    metrics: dict[str, np.ndarray]
    seconds: float
    evaluation: Evaluation | None
    best: bool
    meta: PyTree
    fault: Fault | None
    system: dict[str, float]


class Fit(NamedTuple):
    """The outcome of meta-training.

    - `meta`: the best meta-parameters by validation (the last ones without validation)
    - `last`: the last ones
    - `step`, `best_step`: outer steps taken in all, and up to the best
    - `faults`: how many of them had a loss or meta-gradient that was not finite
    - `chunk`: tasks that were computed at a time; None for all at once
    - `plan`: what `memory=` was met by; None without a budget
    """

    meta: PyTree
    last: PyTree
    step: int
    best_step: int
    faults: int
    chunk: int | None
    plan: Plan | None


def fit(
    recipe: Recipe,
    tasks: TaskDistribution | StreamedTasks,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch: int,
    key: PRNGKeyArray,
    validation: Validation | None = None,
    chunk: int | None = None,
    memory: str | int | None = None,
    averaging: float = 0.0,
    per_call: int = 50,
    minutes: float | None = None,
    check: bool = False,
    non_finite: NonFinite = Stop(),
    devices: Placement | Mesh | int | Literal["all"] | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    report: Callable[[Progress], Any] = lambda progress: None,
) -> Fit:
    """Meta-train: `steps` outer steps of `optimizer` on batches of `batch` tasks.

    Where the recipe's gradient is an `OnlineGradient`, a step takes `batch` inner runs one window
    further; they are a part of the training state, and the metric `diverged` counts those whose
    numbers are not finite. Of a mixture, each kind has its share of the runs, and a kind of which
    none is finite is left out of the step.

    - `tasks`: a task distribution, or `StreamedTasks` from data that the device does not hold
    - `optimizer`: any optax transformation; clip with `optax.chain(optax.clip_by_global_norm(1.0),
      optax.adam(1e-3))`
    - `chunk`: tasks at a time, see `meta_value_and_grad`
    - `memory`: a budget, such as `"2GiB"`, in place of `chunk`: `plan` chooses how many tasks at a
      time, and in place of an exact gradient the cheapest exact one that fits. What the trainer
      itself holds is in the budget; validation runs as many tasks at a time.
    - `averaging`: decay of an exponential moving average of the meta-parameters, which is then what
      is validated and returned; 0 for none
    - `per_call`: outer steps per call to the device
    - `minutes`: validate and stop after the first call that ends later than this, since the run
      began; None for no limit
    - `check`: look for faults first, by tracing alone (`check(..., run=False)`): an error raises
      `GradientError`, what is less than an error warns
    - `non_finite`: what happens at a step whose loss or meta-gradient is not finite: `Stop()`,
      `Skip()` or `Clip(norm)`
    - `devices`: over which the tasks of a batch are shared out: `"all"`, how many, a mesh, or
      `Sharding(mesh, largest_axis)` for meta-parameters in parts; None for one. `chunk` and
      `memory` are then of each device.
    - `checkpoints`: where the training state is saved. With them, SIGTERM and Ctrl-C finish the
      call to the device, save, and raise `Stopped`.
    - `resume`: go on from the last checkpoint, to the bits of a run that was never cut off. Where
      there is none, it begins. `steps`, `minutes` and `per_call` may be others than before; another
      `chunk` gives the same up to rounding.
    - `report`: called after each call to the device

    The same key gives the same bits, and every step after the first call runs the same compiled
    program. Raises `StructureError` for counts below one, for a budget that cannot be met and for
    one beside a chunk, `RunError` when `non_finite` ends the run, for checkpoints that are not this
    run's, have come further than `steps` or cannot be written, and where another process writes to
    them.
    """
    counts = {"steps": steps, "batch": batch, "per_call": per_call}
    check_arguments(recipe, tasks, optimizer, validation, key, counts)
    check_policies(non_finite, checkpoints, averaging)
    place = placement(devices)
    check_runs(recipe, tasks, batch, place.devices)
    budgeted = None
    if memory is not None:
        check_no_chunk(chunk)
        budgeted = plan_training(recipe, tasks, optimizer, -(-batch // place.devices), memory)
        chunk = budgeted.chunk or batch
    gradient = recipe.gradient if budgeted is None else budgeted.gradient
    if check:
        stop_at_faults(recipe, tasks, batch, key)
    init_key, step_key, validation_key = run_keys(key)
    take = OuterLoop(
        *(recipe, gradient, tasks, optimizer, step_key),
        batch=batch,
        chunk=chunk,
        averaging=averaging,
        at_most=per_call,
        non_finite=non_finite,
        placement=place,
    )
    validate = Validator(recipe, validation, chunk, validation_key, place)
    state = take.begin(init_key)
    step, seconds = 0, 0.0
    settings = _settings(batch, averaging, key, validation)
    with training_saved(checkpoints, settings) as saved, Meter(batch) as meter, closing(take):
        if resume:
            state, seconds = saved.resumed(state, validate, steps)
            step = int(state.step)
        else:
            saved.require_none()
        begin = time.perf_counter() - seconds
        while step < steps:
            due = (validate.steps_until_due(step), saved.steps_until_due(step))
            n = min(per_call, steps - step, *due)
            meter.begin()
            state, metrics, fault = take(state, n)
            meter.end(len(metrics["loss"]))
            step += len(metrics["loss"])
            late = minutes is not None and time.perf_counter() - begin > 60 * minutes
            fatal = fault if fault is not None and fault.ends else None
            ends = in_any(late) or step == steps or fatal is not None
            meta = averaged(state)
            evaluation, best = (None, False) if fatal else validate(meta, step, ends)
            seconds = time.perf_counter() - begin
            shown = meta if evaluation is None else place.gathered(meta)
            figures = meter.figures()
            with together():
                report(Progress(step, metrics, seconds, evaluation, best, shown, fault, figures))
            saved.save(state, validate, seconds, last=ends)
            if fatal is not None:
                raise fatal.error()
            if ends:
                break
    meta, best_step = validate.best or (averaged(state), step)
    meta, last = place.gathered(meta), place.gathered(averaged(state))
    return Fit(meta, last, step, best_step, int(state.faults), chunk, budgeted)


def _settings(batch: int, averaging: float, key: PRNGKeyArray, validation) -> dict[str, Any]:
    """What the numbers of a run depend on, beside recipe, tasks and optimizer."""
    chosen_by = None if validation is None else list(validation[1:])
    bits = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return {
        "batch": batch,
        "averaging": averaging,
        "key": np.asarray(bits).tolist(),
        "validation": chosen_by,
        "validation_episodes": None if validation is None else leaf_shapes(validation.episodes),
    }
