"""The outer loop: update meta-parameters over many tasks, keep the best by validation."""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from innerloop.checks import check_count, check_key, describe
from innerloop.diagnostics.plan import Plan
from innerloop.errors import RunError, StructureError
from innerloop.objective import meta_value_and_grad
from innerloop.problem import Episode, ProblemMixture
from innerloop.recipes import Recipe
from innerloop.tasks import TaskDistribution
from innerloop.training.budget import plan_training
from innerloop.training.checkpoint import Checkpoints
from innerloop.training.evaluate import Evaluation, evaluator, summarise
from innerloop.training.faults import stop_at_faults
from innerloop.training.saving import training_saved
from innerloop.training.step import init_state, outer_steps


class Validation(NamedTuple):
    """How the best meta-parameters are chosen.

    - `episodes`: a fixed batch of meta-validation episodes
    - `every`: outer steps between validations
    - `metric`: which metric decides, after `steps` inner steps
    - `maximise`: whether more of it is better
    - `steps`: inner steps at validation; those of the adaptation unless given
    """

    episodes: Episode
    every: int
    metric: str = "loss"
    maximise: bool = False
    steps: int | None = None


class Progress(NamedTuple):
    """What `fit` reports after each call to the device.

    - `step`: outer steps taken so far; `metrics`: name -> one value per step of this call
    - `seconds`: since the start, compilation included
    - `evaluation`: the validation made now, if one was due; `best`: whether it is the best so far
    - `meta`: the meta-parameters that were validated
    """

    step: int
    metrics: dict[str, np.ndarray]
    seconds: float
    evaluation: Evaluation | None
    best: bool
    meta: PyTree


class Fit(NamedTuple):
    """The outcome of meta-training.

    - `meta`: the best meta-parameters by validation (the last ones without validation)
    - `last`: the last ones
    - `step`, `best_step`: outer steps taken in all, and up to the best
    - `chunk`: tasks that were computed at a time; None for all at once
    - `plan`: what `memory=` was met by; None without a budget
    """

    meta: PyTree
    last: PyTree
    step: int
    best_step: int
    chunk: int | None
    plan: Plan | None


def fit(
    recipe: Recipe,
    tasks: TaskDistribution,
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
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    report: Callable[[Progress], Any] = lambda progress: None,
) -> Fit:
    """Meta-train: `steps` outer steps of `optimizer` on batches of `batch` tasks.

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
    - `checkpoints`: where the training state is saved. With them, SIGTERM and Ctrl-C finish the
      call to the device, save, and raise `Stopped`.
    - `resume`: go on from the last checkpoint, to the bits of a run that was never cut off. Where
      there is none, it begins. `steps`, `minutes` and `per_call` may be others than before; another
      `chunk` gives the same up to rounding.
    - `report`: called after each call to the device

    The same key gives the same bits, and every step after the first call runs the same compiled
    program. Raises `StructureError` for counts below one, for a budget that cannot be met and for
    one beside a chunk, `RunError` when the loss is no longer finite, for checkpoints that are not
    this run's or cannot be written, and where another process writes to them.
    """
    if not isinstance(recipe, Recipe):
        raise StructureError(
            "fit trains a recipe",
            got=type(recipe).__name__,
            expected="Recipe(problem, adaptation, gradient, init_meta)",
            write="fit(Recipe(problem, adaptation, Unroll(), model.init), tasks, ...)",
        )
    for name, count in {"steps": steps, "batch": batch, "per_call": per_call}.items():
        check_count(name, count, write=f"fit(..., {name}=1)")
    _check_kinds(recipe, tasks, optimizer, validation)
    check_key(key)
    budgeted = None
    if memory is not None:
        _check_no_chunk(chunk)
        budgeted = plan_training(recipe, tasks, optimizer, batch, memory)
        chunk = budgeted.chunk or batch
    gradient = budgeted or recipe.gradient
    if check:
        stop_at_faults(recipe, tasks, batch, key)
    init_key, step_key, validation_key = jax.random.split(key, 3)
    value_and_grad = meta_value_and_grad(recipe.problem, recipe.adaptation, gradient, chunk=chunk)
    take_steps = outer_steps(
        value_and_grad, optimizer, batch=batch, averaging=averaging, at_most=per_call
    )
    validate = Validator(recipe, validation, chunk, validation_key)
    state = init_state(recipe.init_meta(init_key), optimizer)
    step, seconds = 0, 0.0
    with training_saved(checkpoints, _settings(batch, averaging, key, validation)) as saved:
        if resume:
            state, seconds = saved.resumed(state, validate)
            step = int(state.step)
        else:
            saved.require_none()
        begin = time.perf_counter() - seconds
        while step < steps:
            due = (validate.steps_until_due(step), saved.steps_until_due(step))
            n = min(per_call, steps - step, *due)
            state, filled = take_steps(state, tasks, step_key, jnp.int32(n))
            metrics = {name: np.asarray(leaf)[:n] for name, leaf in filled.items()}
            _check_finite(metrics["loss"], step)
            step += n
            late = minutes is not None and time.perf_counter() - begin > 60 * minutes
            evaluation, best = validate(state.average, step, last=step == steps or late)
            seconds = time.perf_counter() - begin
            report(Progress(step, metrics, seconds, evaluation, best, state.average))
            saved.save(state, validate, seconds, last=step == steps or late)
            if late:
                break
    meta, best_step = validate.best or (state.average, step)
    return Fit(meta, state.average, step, best_step, chunk, budgeted)


class Validator:
    """Validates when it is due, and remembers the best.

    - `best`: `(meta, step)`, once there is one; `score`: its score, of which more is better
    """

    def __init__(self, recipe: Recipe, validation: Validation | None, chunk, key: PRNGKeyArray):
        self.best: tuple[PyTree, int] | None = None
        self._validation = validation
        self._key = key
        self.score = -np.inf
        if validation is not None:
            if isinstance(recipe.problem, ProblemMixture):
                raise StructureError(
                    "a mixture has no single metric to validate by",
                    got="validation for a mixture of problems",
                    expected="fit without validation",
                    write="fit(..., validation=None), then evaluate each kind by itself",
                )
            check_count("every", validation.every, write="Validation(episodes, every=100)")
            self._evaluate = evaluator(
                recipe.problem,  # pyright: ignore[reportArgumentType]
                recipe.adaptation,  # pyright: ignore[reportArgumentType]
                steps=validation.steps,
                chunk=chunk,
            )

    def steps_until_due(self, step: int) -> int:
        if self._validation is None:
            return sys.maxsize
        return self._validation.every - step % self._validation.every

    def __call__(self, meta: PyTree, step: int, last: bool) -> tuple[Evaluation | None, bool]:
        validation = self._validation
        if validation is None or not (last or step % validation.every == 0):
            return None, False
        evaluation = summarise(self._evaluate(meta, validation.episodes, self._key))
        value = evaluation.mean[validation.metric][-1]
        score = value if validation.maximise else -value
        if self.best is not None and not score > self.score:
            return evaluation, False
        # The first is kept whatever it is, so that a run never ends without meta-parameters.
        self.score, self.best = float(np.nan_to_num(score, nan=-np.inf)), (meta, step)
        return evaluation, True


def _settings(batch: int, averaging: float, key: PRNGKeyArray, validation) -> dict[str, Any]:
    """What the numbers of a run depend on, beside recipe, tasks and optimizer."""
    chosen_by = None if validation is None else list(validation[1:])
    bits = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return {
        "batch": batch,
        "averaging": averaging,
        "key": np.asarray(bits).tolist(),
        "validation": chosen_by,
    }


def _check_kinds(recipe: Recipe, tasks: Any, optimizer: Any, validation: Any) -> None:
    """Raise `StructureError` for an argument of another kind than `fit` takes."""
    kinds = {
        "tasks": (callable(getattr(tasks, "sample", None)), tasks, "SinusoidTasks(5, 5)"),
        "optimizer": (
            callable(getattr(optimizer, "init", None))
            and callable(getattr(optimizer, "update", None)),
            optimizer,
            "optax.adam(1e-3)",
        ),
        "validation": (
            validation is None or isinstance(validation, Validation),
            validation,
            "Validation(episodes, every=100)",
        ),
        "init_meta": (callable(recipe.init_meta), recipe.init_meta, "model.init"),
    }
    for name, (fits, given, write) in kinds.items():
        if not fits:
            raise StructureError(
                f"{name} is of another kind than fit takes",
                got=f"{name}={describe(given)}",
                expected={
                    "tasks": "a task distribution, with sample(key, n)",
                    "optimizer": "an optax transformation",
                    "validation": "a Validation, or None",
                    "init_meta": "a function of a key that gives meta-parameters",
                }[name],
                write=f"Recipe(..., init_meta={write})"
                if name == "init_meta"
                else f"fit(..., {name}={write})",
            )


def _check_no_chunk(chunk: int | None) -> None:
    if chunk is not None:
        raise StructureError(
            "a chunk is chosen either by hand or by a budget",
            got=f"fit(..., chunk={chunk}, memory=...)",
            expected="one of the two",
            write=f"fit(..., memory='2GiB'), or fit(..., chunk={chunk})",
        )


def _check_finite(losses: np.ndarray, step: int) -> None:
    if np.all(np.isfinite(losses)):
        return
    bad = step + int(np.argmin(np.isfinite(losses)))
    raise RunError(
        "the meta-objective is no longer finite",
        got=f"a loss of {losses[bad - step]} at outer step {bad}",
        expected="finite losses",
        write="a lower inner or outer rate, or optax.chain(optax.clip_by_global_norm(1.0), ...)",
    )
