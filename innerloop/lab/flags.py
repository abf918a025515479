"""How the flags of the command line are read, where tyro's own errors show internals."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro

from innerloop.arguments import requirement_of

FLAGS = tyro.constructors.ConstructorRegistry()
"""The rules of the command line, which hold inside `with FLAGS`."""


@FLAGS.primitive_rule
def _number_or_word(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """A flag that is a number of a range or one of a few words, such as --devices.

    tyro's own error would show the declaration of the range.
    """
    ways = get_args(info.type) if info.type_origin in (Union, types.UnionType) else ()
    numbers = [get_args(way) for way in ways if get_origin(way) is Annotated]
    words = [word for way in ways if get_origin(way) is Literal for word in get_args(way)]
    words += [None] * (types.NoneType in ways)
    if len(numbers) != 1 or not words:
        return None
    ((kind, declared, *_),) = numbers
    requirement = requirement_of(declared)
    if requirement is None:
        return None
    by_text = {str(word): word for word in words}

    def read(texts: list[str]) -> Any:
        (text,) = texts
        try:
            return by_text[text] if text in by_text else kind(text)
        except ValueError:
            expected = ", ".join(by_text) + f" or {requirement.what}"
            raise ValueError(f"Got: {text}. Expected: {expected}") from None

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="|".join([*by_text, kind.__name__.upper()]),
        instance_from_str=read,
        is_instance=lambda value: value in words or type(value) is kind,
        str_from_instance=lambda value: [str(value)],
    )
