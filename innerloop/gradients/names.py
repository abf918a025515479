"""The name of a meta-gradient: the code that constructs it."""

import dataclasses
from typing import Any

import equinox as eqx

from innerloop.checks import describe


def gradient_name(gradient: Any) -> str:
    """The code that constructs a meta-gradient, such as `Unroll(MixedMode(), Segments(1))`.

    Args:
        gradient: The meta-gradient.

    Returns:
        The code, without the arguments that have their default value.
    """
    if isinstance(gradient, eqx.Module):
        return f"{type(gradient).__name__}({', '.join(_arguments(gradient))})"
    if callable(gradient):
        return getattr(gradient, "__name__", type(gradient).__name__)
    return describe(gradient)


def _arguments(module: eqx.Module) -> list[str]:
    """The arguments that are not defaults; leading ones without a name if they are clear."""
    arguments, leading = [], True
    for i, field in enumerate(dataclasses.fields(module)):
        value = getattr(module, field.name, None)
        if not field.init or _is_default(field, value):
            leading = False
            continue
        required = field.default is field.default_factory is dataclasses.MISSING
        leading = leading and (i == 0 or required or isinstance(value, eqx.Module))
        arguments.append(("" if leading else f"{field.name}=") + gradient_name(value))
    return arguments


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return type(value) is type(default) and bool(eqx.tree_equal(value, default))
