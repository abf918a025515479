"""How many floating-point operations one primitive takes: the table behind `flops`.

A multiplication and an addition count one each, and so does any elementwise function, however
expensive it is. Moving data costs nothing. Decompositions have their textbook counts.
"""

import math
from collections.abc import Callable, Sequence

from jax.extend import core

from innerloop.programs.operations import shapes

Shape = tuple[int, ...]
Rule = Callable[[dict, Sequence[Shape], Sequence[Shape]], int | float]
"""`(parameters, input shapes, output shapes) -> count`."""

UNKNOWN = ("ffi_call", "io_callback", "pallas_call", "pure_callback", "tpu_custom_call")
"""Primitives whose work is not visible: they count nothing, and the sum is a lower bound."""

_MOVE_DATA = (
    *("all_gather", "bitcast_convert_type", "broadcast", "broadcast_in_dim", "concatenate"),
    *("convert_element_type", "copy", "copy_p", "create_token", "device_put", "dynamic_slice"),
    *("dynamic_update_slice", "empty", "empty2", "gather", "imag", "iota", "mutable_array", "name"),
    *("nonbatchable", "optimization_barrier", "pad", "pvary", "random_fold_in", "random_seed"),
    *("random_split", "random_unwrap", "random_wrap", "real", "reduce_precision", "reshape", "rev"),
    *("sharding_constraint", "slice", "split", "squeeze", "stop_gradient", "transpose"),
    *("unvmap_any", "unvmap_max"),
)
_REDUCE = (
    *("argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "psum"),
    *("reduce", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum"),
    "reduce_xor",
)
_SCATTER = (
    *("scatter-add", "scatter-apply", "scatter-max", "scatter-min", "scatter-mul"),
    *("scatter_add", "scatter_max", "scatter_min", "scatter_mul"),
)
_WINDOW = (
    *("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"),
    "select_and_gather_add",
)


def primitive_flops(equation: core.JaxprEqn) -> float:
    """The count of an equation that contains no program of its own."""
    rule = RULES.get(equation.primitive.name, _per_output)
    return float(rule(equation.params, shapes(equation.invars), shapes(equation.outvars)))


def _per_output(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return sum(map(math.prod, outputs))


def _dot_general(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * math.prod(outputs[0]) * math.prod(inputs[0][axis] for axis in contracted)


def _convolution(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    # The kernel's axes are (output features, input features of one group, space ...).
    kernel = [inputs[1][axis] for axis in params["dimension_numbers"].rhs_spec]
    return 2 * math.prod(outputs[0]) * math.prod(kernel[1:])


def _per_matrix(count: Callable[[int, int], int | float]) -> Rule:
    """A count from rows and columns, for each matrix of a stack."""
    return lambda params, inputs, _: math.prod(inputs[0][:-2]) * count(*inputs[0][-2:])


def _log2(size: int) -> float:
    return math.log2(max(size, 2))


# Golub and Van Loan, Matrix Computations (4th edition): 3.2, 4.2, 5.2, 7.5, 8.3, 8.6.
RULES: dict[str, Rule] = {
    **dict.fromkeys((*_MOVE_DATA, *UNKNOWN), lambda params, ins, outs: 0),
    **dict.fromkeys(_REDUCE, lambda params, ins, outs: sum(map(math.prod, ins))),
    **dict.fromkeys(_SCATTER, lambda params, ins, outs: math.prod(ins[2])),
    **dict.fromkeys(
        _WINDOW, lambda params, ins, outs: math.prod((*outs[0], *params["window_dimensions"]))
    ),
    "select_and_scatter_add": lambda params, ins, outs: math.prod(
        (*ins[0], *params["window_dimensions"])
    ),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "triangular_solve": lambda params, ins, outs: ins[0][-1] * math.prod(ins[1]),
    "tridiagonal_solve": lambda params, ins, outs: 8 * math.prod(outs[0]),
    "householder_product": lambda params, ins, outs: 2 * math.prod(ins[0]) * ins[0][-1],
    "cholesky": _per_matrix(lambda n, _: n**3 / 3),
    "lu": _per_matrix(lambda m, n: max(m, n) * min(m, n) ** 2 - min(m, n) ** 3 / 3),
    "geqrf": _per_matrix(lambda m, n: 2 * max(m, n) * min(m, n) ** 2 - 2 * min(m, n) ** 3 / 3),
    "qr": _per_matrix(lambda m, n: 4 * max(m, n) * min(m, n) ** 2 - 4 * min(m, n) ** 3 / 3),
    "eigh": _per_matrix(lambda n, _: 9 * n**3),
    "eig": _per_matrix(lambda n, _: 25 * n**3),
    "schur": _per_matrix(lambda n, _: 25 * n**3),
    "svd": _per_matrix(lambda m, n: 6 * max(m, n) * min(m, n) ** 2 + 20 * min(m, n) ** 3),
    "sort": lambda params, ins, outs: math.prod(ins[0]) * _log2(ins[0][params["dimension"]]),
    "top_k": lambda params, ins, outs: math.prod(ins[0]) * _log2(params["k"]),
    "fft": lambda params, ins, outs: (
        5 * math.prod(outs[0]) * sum(map(_log2, params["fft_lengths"]))
    ),
}
