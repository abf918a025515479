"""The compiler's information about a program before it is run."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from innerloop.problem import Problem


class Compiled(NamedTuple):
    """A program compiled for given shapes.

    Attributes:
        call: Runs the program.
        seconds: How long tracing and compiling took.
        memory: Peak bytes on the device while it runs: arguments, results and all temporary values.
        temporary: Bytes of all temporary values.
    """

    call: Callable[..., Any]
    seconds: float
    memory: int
    temporary: int


def compile_for(build: Callable[[Problem], Callable], problem: Problem, *args: PyTree) -> Compiled:
    """Compile `build(problem)` for arguments of these shapes.

    The frozen arrays and the model state of the problem are arguments of the program, too.
    """
    held = problem.frozen, problem.state
    function = lambda held, *args: build(problem.holding(*held))(*args)
    program = compile_ahead(function, held, *args)
    return program._replace(call=lambda *args: program.call(held, *args))


def compile_ahead(function: Callable, *args: PyTree) -> Compiled:
    """Compile `function` for arguments of these shapes, such as `jax.ShapeDtypeStruct`s."""
    begin = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - begin
    sizes: Any = program.memory_analysis()  # every current backend of JAX has one
    memory = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )
    return Compiled(program, seconds, memory, sizes.temp_size_in_bytes)
