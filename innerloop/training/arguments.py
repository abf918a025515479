"""What `fit` is given: each argument of the kind that it takes."""

from typing import Any

from innerloop.checks import check_count, check_key, describe
from innerloop.errors import StructureError
from innerloop.estimators import OnlineGradient
from innerloop.gradients import MetaGradient
from innerloop.problem import ProblemMixture
from innerloop.recipes import Recipe
from innerloop.storage.checkpoint import Checkpoints
from innerloop.tasks import StreamedTasks, TaskMixture
from innerloop.training.non_finite import NonFinite
from innerloop.training.validation import Validation


def check_arguments(
    recipe: Any, tasks: Any, optimizer: Any, validation: Any, key: Any, counts: dict[str, Any]
) -> None:
    """Raise `StructureError` for the first argument that is of another kind, or out of range."""
    if not isinstance(recipe, Recipe):
        raise StructureError(
            "fit trains a recipe",
            got=type(recipe).__name__,
            expected="Recipe(problem, adaptation, gradient, init_meta)",
            write="fit(Recipe(problem, adaptation, Unroll(), model.init), tasks, ...)",
        )
    for name, count in counts.items():
        check_count(name, count, write=f"fit(..., {name}=1)")
    _check_kind(
        "tasks",
        tasks,
        _has(tasks, "sample"),
        "a task distribution, with sample(key, n)",
        "fit(recipe, SinusoidTasks(5, 5), ...)",
    )
    _check_kind(
        "optimizer",
        optimizer,
        _has(optimizer, "init") and _has(optimizer, "update"),
        "an optax transformation",
        "fit(..., optimizer=optax.adam(1e-3))",
    )
    _check_kind(
        "validation",
        validation,
        validation is None or isinstance(validation, Validation),
        "a Validation, or None",
        "fit(..., validation=Validation(episodes, every=100))",
    )
    _check_kind(
        "init_meta",
        recipe.init_meta,
        callable(recipe.init_meta),
        "a function of a key that gives meta-parameters",
        "Recipe(problem, adaptation, gradient, init_meta=model.init)",
    )
    check_key(key)
    _check_phases(recipe)


def _check_phases(recipe: Recipe) -> None:
    """Raise `StructureError` for phases out of order, or of inner runs that span outer steps."""
    ends = [phase.until for phase in recipe.phases]
    whole = [_of_whole_tasks(g) for _, g in recipe.phases]
    if not recipe.phases or (
        _of_whole_tasks(recipe.gradient)
        and all(whole)
        and ends == sorted(set(ends))
        and ends[0] > 0
    ):
        return
    named = [(until, describe(gradient)) for until, gradient in recipe.phases]
    raise StructureError(
        "phases end one after the other, each of them with a meta-gradient of whole tasks",
        got=f"phases={named}, and then {describe(recipe.gradient)}",
        expected="outer steps that grow, from 1 on, and no OnlineGradient",
        write="recipe._replace(phases=(Phase(1000, FirstOrder()),), gradient=Unroll())",
    )


def check_policies(non_finite: Any, checkpoints: Any, averaging: Any) -> None:
    """Raise `StructureError` for the first of them that is of another kind, or out of range."""
    _check_kind(
        "non_finite",
        non_finite,
        isinstance(non_finite, NonFinite),
        "a policy",
        "fit(..., non_finite=Stop()), or Skip() or Clip(1.0)",
    )
    _check_kind(
        "checkpoints",
        checkpoints,
        checkpoints is None or isinstance(checkpoints, Checkpoints),
        "Checkpoints, or None",
        "fit(..., checkpoints=Checkpoints(folder, every=500))",
    )
    _check_kind(
        "averaging",
        averaging,
        isinstance(averaging, int | float) and 0 <= averaging < 1,
        "a decay of at least 0 and below 1",
        "fit(..., averaging=0.999)",
    )


def check_no_chunk(chunk: int | None) -> None:
    """Raise `StructureError` for a chunk that is given beside a budget."""
    if chunk is not None:
        raise StructureError(
            "a chunk is chosen either by hand or by a budget",
            got=f"fit(..., chunk={chunk}, memory=...)",
            expected="one of the two",
            write=f"fit(..., memory='2GiB'), or fit(..., chunk={chunk})",
        )


def of_whole_tasks(recipe: Recipe, asked: str) -> MetaGradient | tuple[MetaGradient, ...]:
    """The recipe's meta-gradient. Raises `StructureError` for one of inner runs that go on."""
    if not isinstance(recipe.gradient, OnlineGradient):
        return recipe.gradient
    raise StructureError(
        f"{asked} is for meta-gradients of whole tasks",
        got=f"{type(recipe.gradient).__name__}, whose inner runs span outer steps",
        expected="a MetaGradient",
        write="the same on one window: recipe._replace(gradient=Unroll(), "
        f"adaptation=GradientDescent(optimizer, steps={recipe.gradient.window}))",
    )


def _of_whole_tasks(gradient: Any) -> bool:
    """Whether it is a meta-gradient of whole tasks, or one for each kind of a mixture."""
    each = gradient if isinstance(gradient, tuple) else (gradient,)
    return bool(each) and all(isinstance(one, MetaGradient) for one in each)


def check_runs(recipe: Recipe, tasks: Any, batch: int, devices: int) -> None:
    """Raise `StructureError` where inner runs that go on cannot be drawn or shared out evenly."""
    gradient = recipe.gradient
    if not isinstance(gradient, OnlineGradient):
        return
    if isinstance(recipe.problem, ProblemMixture) and not isinstance(tasks, TaskMixture):
        raise StructureError(
            "the problems of a mixture have tasks of their own each",
            got=f"{len(recipe.problem.problems)} problems with {describe(tasks)}",
            expected="the tasks of the mixture",
            write="problems, adaptations, tasks = mixture((problem, adaptation, tasks, 1.0), ...)",
        )
    if isinstance(tasks, StreamedTasks):
        raise StructureError(
            "inner runs that go on draw their tasks on the device, when one has come to its end",
            got=f"{type(gradient).__name__} with StreamedTasks",
            expected="a task distribution",
            write="fit(recipe, tasks, ...) with data that the device holds",
        )
    counts = tasks.shares(batch) if isinstance(tasks, TaskMixture) else [batch]
    if any(count % devices for count in counts):
        each = -(-batch // (devices * len(counts))) * devices
        raise StructureError(
            "the devices cannot share the inner runs evenly",
            got=f"batch={batch} on {devices} devices"
            + (f", of each kind {counts}" if len(counts) > 1 else ""),
            expected="a multiple of the number of devices" + " of each kind" * (len(counts) > 1),
            write=f"fit(..., batch={each * len(counts)})",
        )


def _check_kind(name: str, given: Any, fits: bool, expected: str, write: str) -> None:
    if not fits:
        raise StructureError(
            f"{name} is of another kind than fit takes",
            got=f"{name}={describe(given)}",
            expected=expected,
            write=write,
        )


def _has(given: Any, method: str) -> bool:
    return callable(getattr(given, method, None))
