"""The outer loop: update meta-parameters over many outer steps, keep the best by validation."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from innerloop import diagnostics
from innerloop.arguments import (
    at_least,
    between,
    checked,
    flag,
    function,
    instance,
    or_none,
    random_key,
)
from innerloop.checks import describe_briefly, explained, require_on_host
from innerloop.devices.placement import Placement
from innerloop.devices.processes import in_any, together
from innerloop.devices.sharding import placement
from innerloop.diagnostics import Severity
from innerloop.errors import StructureError
from innerloop.estimators.base import SUCH_AS, Estimator, TaskSet
from innerloop.objective import check_meta
from innerloop.recipes import Recipe
from innerloop.storage.checkpoint import Checkpoints
from innerloop.training.non_finite import NonFinite, Stop
from innerloop.training.outer_loop import OuterLoop, init_state
from innerloop.training.results import Fit, Progress
from innerloop.training.saving import training_saved
from innerloop.training.system import Meter
from innerloop.training.validation import Validation, Validator
from innerloop.transformations import JUDGED, Judged, Transformation, transformation
from innerloop.trees import key_numbers, tree_bytes

InitMeta = Callable[[PRNGKeyArray], PyTree] | PyTree
"""The initial meta-parameters, or a function of a random key that gives them."""


@checked(
    estimator=instance(Estimator, **SUCH_AS, instead={Recipe: "recipe.estimator(tasks, batch=8)"}),
    optimizer=transformation(such_as="optax.adam(1e-3)"),
    judged=or_none(JUDGED),
    steps=at_least(1, such_as=1000),
    key=random_key(),
    validation=or_none(
        instance(
            *(Validation, Mapping),
            what="a Validation, or several by name",
            such_as="Validation(episodes, every=100)",
        )
    ),
    averaging=between(0, 1, below=True),
    per_call=at_least(1, such_as=50),
    minutes=or_none(between(0, math.inf, such_as=10)),
    check=flag(),
    resume=flag(),
    report=function("progress"),
    non_finite=instance(NonFinite, what="a policy", such_as="training.Skip()"),
    checkpoints=or_none(
        instance(Checkpoints, what="Checkpoints", such_as="training.Checkpoints(folder, every=500)")
    ),
)
def fit(
    estimator: Estimator,
    init_meta: InitMeta,
    *,
    optimizer: Transformation,
    steps: int,
    key: PRNGKeyArray,
    validation: Validation | Mapping[str, Validation] | None = None,
    memory: str | int | None = None,
    averaging: float = 0.0,
    judged: Judged | None = None,
    per_call: int = 50,
    minutes: float | None = None,
    check: bool = False,
    non_finite: NonFinite = Stop(),
    devices: Placement | Mesh | int | Literal["all"] | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    report: Callable[[Progress], Any] = lambda progress: None,
) -> Fit:
    """Meta-train: `steps` outer steps of an optimizer along an estimator's gradients.

    The same key gives the same bits, and every step after the first call runs the same compiled
    program.

    Args:
        estimator: What an outer step follows, such as `WholeTasks` or what a recipe makes.
        init_meta: The initial meta-parameters, or a function `key -> meta`.
        optimizer: Any optax transformation; clip with `optax.chain(optax.clip_by_global_norm(1.0),
            optax.adam(1e-3))`. Its `update` receives those of the keyword arguments `value`,
            `grad`, `value_fn` and `grad_fn` that its signature names. They belong to the tasks of
            the step, and their gradient is the estimator's gradient.
        steps: Outer steps.
        key: A random key, from which everything random in the run follows.
        validation: How the best meta-parameters are chosen; several by name decide together.
        memory: A budget of a device, such as `"2GiB"`. For `WholeTasks` without a chunk, `plan`
            chooses how many tasks are computed at a time, and replaces an exact meta-gradient by
            an exact one that fits. What the trainer itself holds is in the budget.
        averaging: The decay of an exponential moving average of the meta-parameters, which is then
            what is validated and returned; 0 for none.
        judged: `(optimizer_state, meta) -> meta`, which returns the meta-parameters that are
            validated, averaged and returned, such as `optax.contrib.schedule_free_eval_params`. By
            default these are the meta-parameters at which the gradient is taken.
        per_call: Outer steps per call to the device.
        minutes: Validate and stop after the first call that ends later than this, since the run
            began; None for no limit.
        check: Look for faults first, by tracing alone (`check(..., run=False)`).
        non_finite: What happens at a step whose loss, meta-gradient or model state is not finite:
            `Stop()`, `Skip()` or `Clip(norm)`.
        devices: The devices that share the tasks of a step: `"all"`, how many, a mesh, or
            `Sharding(mesh, largest_axis)` for meta-parameters in parts; None for one.
        checkpoints: Where the training state is saved. With them, SIGTERM, SIGHUP and Ctrl-C finish
            the call to the device, save, and raise `Stopped`.
        resume: Go on from the last checkpoint, to the bits of a run that was never interrupted;
            begin if there is none. `steps`, `minutes` and `per_call` may differ from before;
            another chunk gives the same up to rounding.
        report: Called after each call to the device.

    Returns:
        The best meta-parameters and what was found on the way.

    Raises:
        StructureError: An argument is of the wrong kind or out of range, a budget cannot be met, or
            a validation does not have the metric that decides; all before the first step.
        GradientError: `check` found an error.
        RunError: `non_finite` ends the run; or the checkpoints are not this run's, have taken
            more than `steps` steps, cannot be written, or are written by another process.
    """
    require_on_host("fit", init_meta, key)
    place = placement(devices)
    init_key, step_key, validation_key = run_keys(key)
    is_tree = isinstance(init_meta, eqx.Module)  # a network is callable, but is meta itself
    if not is_tree and callable(init_meta):
        init_meta = explained("init_meta", init_meta, "key")(init_key)
    meta = init_meta
    check_meta(meta)
    if not jax.tree.leaves(meta):
        raise StructureError(
            "meta is empty, so there is nothing to train",
            got=f"init_meta={describe_briefly(init_meta)}",
            expected="a pytree with at least one floating-point array",
        )
    if check:
        _stop_at_faults(estimator, meta, key)
    planned, plan = estimator.on(place), None
    if memory is not None:
        state = jax.eval_shape(partial(init_state, optimizer=optimizer), meta)
        held = 2 * tree_bytes(state)  # before and after a step
        planned, plan = planned.within(memory, meta, held)
    keys = (jax.random.fold_in(init_key, 1), step_key)
    loop = OuterLoop(*(planned, optimizer, *keys, averaging, per_call, non_finite, place, judged))
    validate = Validator(planned, validation, validation_key, place)
    validate.require_metrics(meta)
    own = {"averaging": averaging, "key": np.asarray(key_numbers(key)).tolist()}
    settings = estimator.settings() | own | validate.settings()  # a field may have such a name
    with training_saved(checkpoints, settings, resume) as saved, closing(planned):
        meter = Meter(planned.tasks_per_step)
        state, seconds = saved.begun(partial(loop.begin, meta), loop.kept, validate, steps)
        step = int(state.step)
        begin = time.perf_counter() - seconds
        with meter:
            while step < steps:
                due = [each - step % each for each in (validate.every, saved.every) if each]
                due += [end - step for end in planned.boundaries if end > step]
                n = min(per_call, steps - step, *due)
                meter.begin()
                state, metrics, fault = loop(state, n)
                meter.end(len(metrics["loss"]))
                step += len(metrics["loss"])
                late = minutes is not None and time.perf_counter() - begin > 60 * minutes
                fatal = fault if fault is not None and fault.ends else None
                ends = in_any(late) or step == steps or fatal is not None
                now = loop.kept(state)
                evaluation, best = (None, False) if fatal else validate(now, step, ends)
                seconds = time.perf_counter() - begin
                shown = now.meta if evaluation is None else place.gathered(now.meta)
                figures = meter.figures()
                with together():
                    report(
                        Progress(step, metrics, seconds, evaluation, best, shown, fault, figures)
                    )
                state = loop.enter(state)
                saved.save(state, now, validate, seconds, last=ends)
                if fatal is not None:
                    raise fatal.error()
                if ends:
                    break
    now = loop.kept(state)
    best, best_step = validate.best or (now, step)
    best_meta, last = place.gathered(best.meta), place.gathered(now.meta)
    learner = planned.learner
    if learner is not None:
        learner = learner.following(best.model_state)
    return Fit(best_meta, last, step, best_step, int(state.faults), planned, plan, learner)


def run_keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray]:
    """The keys of a run: for the initial meta-parameters, its steps, and its validation."""
    init, steps, validation = jax.random.split(key, 3)
    return init, steps, validation


@checked(key=random_key())
def tasks_of_step(estimator: Estimator, key: PRNGKeyArray, step: int) -> TaskSet | dict[str, Any]:
    """The tasks that `fit(estimator, ..., key=key)` learns from at an outer step, with their keys.

    With them a task is run again by hand:

    ```python
    episodes, keys = il.training.tasks_of_step(estimator, key, fault.step)
    i = fault.tasks[0]
    episode = jax.tree.map(lambda leaf: leaf[i], episodes)
    il.meta_objective(problem, adaptation)(meta, episode, keys[i])
    ```

    Args:
        estimator: The estimator that was given to `fit`.
        key: The key that was given to `fit`.
        step: The number of the outer step, the first being 0.

    Returns:
        A `TaskSet`, or a dictionary of them by the names of the estimator's parts.

    Raises:
        StructureError: The estimator's tasks are not drawn anew in each step.
    """
    return estimator.tasks_of_step(run_keys(key)[1], step)


def _stop_at_faults(estimator: Estimator, meta: PyTree, key: PRNGKeyArray) -> None:
    """Raise `GradientError` for the first error that `check` finds by tracing; warn of the rest."""
    _, sample_key = jax.random.split(key)
    for part in estimator.checked_parts(sample_key).values():
        learner = part.learner
        found = diagnostics.check(
            *(learner.problem, learner.adaptation, meta, part.episodes, key, part.gradient),
            run=False,
        )
        found.raise_errors()
        for finding in (*part.findings, *found.findings):
            if finding.severity is not Severity.NOTE:
                warnings.warn(str(finding), stacklevel=3)
