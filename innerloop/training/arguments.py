"""Checks of what `fit` is given, before anything is computed."""

from collections.abc import Mapping
from typing import Any

from innerloop.checks import check_count, check_key, describe
from innerloop.errors import StructureError
from innerloop.estimators import Estimator
from innerloop.storage.checkpoint import Checkpoints
from innerloop.training.non_finite import NonFinite
from innerloop.training.validation import Validation


def check_arguments(
    estimator: Any,
    optimizer: Any,
    validation: Any,
    key: Any,
    non_finite: Any,
    checkpoints: Any,
    averaging: Any,
    counts: dict[str, Any],
) -> None:
    """Raise `StructureError` for the first argument that is of another kind, or out of range."""
    kinds = {
        "estimator": (
            estimator,
            isinstance(estimator, Estimator),
            "an Estimator, such as WholeTasks",
            "fit(WholeTasks(problem, adaptation, Unroll(), tasks, batch=8), init_meta, ...), or "
            "fit(recipe.estimator(tasks, batch=8), recipe.init_meta, ...)",
        ),
        "optimizer": (
            optimizer,
            _has(optimizer, "init") and _has(optimizer, "update"),
            "an optax transformation",
            "fit(..., optimizer=optax.adam(1e-3))",
        ),
        "validation": (
            validation,
            _is_validation(validation),
            "a Validation, several by name, or None",
            "fit(..., validation=Validation(episodes, every=100))",
        ),
        "non_finite": (
            non_finite,
            isinstance(non_finite, NonFinite),
            "a policy",
            "fit(..., non_finite=Stop()), or Skip() or Clip(1.0)",
        ),
        "checkpoints": (
            checkpoints,
            checkpoints is None or isinstance(checkpoints, Checkpoints),
            "Checkpoints, or None",
            "fit(..., checkpoints=Checkpoints(folder, every=500))",
        ),
        "averaging": (
            averaging,
            isinstance(averaging, int | float) and 0 <= averaging < 1,
            "a decay of at least 0 and below 1",
            "fit(..., averaging=0.999)",
        ),
    }
    for name, (given, fits, expected, write) in kinds.items():
        if not fits:
            raise StructureError(
                f"{name} is of another kind than fit takes",
                got=f"{name}={describe(given)}",
                expected=expected,
                write=write,
            )
    for name, count in counts.items():
        check_count(name, count, write=f"fit(..., {name}=1)")
    check_key(key)


def _is_validation(given: Any) -> bool:
    if isinstance(given, Mapping):
        return bool(given) and all(isinstance(each, Validation) for each in given.values())
    return given is None or isinstance(given, Validation)


def _has(given: Any, method: str) -> bool:
    return callable(getattr(given, method, None))
