"""How many floating-point operations one primitive takes: the table behind `flops`.

A multiplication and an addition count one each, and so does any elementwise function, however hard
it is to evaluate. Moving data costs nothing. Decompositions have their textbook counts.
"""

import math
from collections.abc import Callable, Sequence

from jax.extend import core

Shape = tuple[int, ...]
Count = int | float

DATA_MOVEMENT = frozenset(
    [
        "all_gather",
        "bitcast_convert_type",
        "broadcast",
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "create_token",
        "device_put",
        "dynamic_slice",
        "dynamic_update_slice",
        "empty",
        "empty2",
        "gather",
        "imag",
        "iota",
        "mutable_array",
        "name",
        "nonbatchable",
        "optimization_barrier",
        "pad",
        "pvary",
        "random_fold_in",
        "random_seed",
        "random_split",
        "random_unwrap",
        "random_wrap",
        "real",
        "reduce_precision",
        "reshape",
        "rev",
        "sharding_constraint",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "transpose",
        "unvmap_any",
        "unvmap_max",
    ]
)

REDUCTIONS = frozenset(
    [
        "argmax",
        "argmin",
        "cumlogsumexp",
        "cummax",
        "cummin",
        "cumprod",
        "cumsum",
        "psum",
        "reduce",
        "reduce_and",
        "reduce_max",
        "reduce_min",
        "reduce_or",
        "reduce_prod",
        "reduce_sum",
        "reduce_xor",
    ]
)
"""One operation per element that goes in."""

SCATTERS = frozenset(
    [
        "scatter-add",
        "scatter-apply",
        "scatter-max",
        "scatter-min",
        "scatter-mul",
        "scatter_add",
        "scatter_max",
        "scatter_min",
        "scatter_mul",
    ]
)
"""One operation per update."""

UNKNOWN = frozenset(["ffi_call", "io_callback", "pallas_call", "pure_callback", "tpu_custom_call"])
"""What they compute cannot be seen: they count nothing, and the sum is a lower bound."""


def primitive_flops(equation: core.JaxprEqn) -> float:
    """The count of an equation that holds no program of its own."""
    name = equation.primitive.name
    inputs = [_shape(atom) for atom in equation.invars]
    outputs = [_shape(atom) for atom in equation.outvars]
    if name in DATA_MOVEMENT or name in UNKNOWN:
        return 0.0
    if name in REDUCTIONS:
        return float(sum(map(math.prod, inputs)))
    if name in SCATTERS:
        return float(math.prod(inputs[2]))
    rule = RULES.get(name)
    if rule is not None:
        return float(rule(equation.params, inputs, outputs))
    return float(sum(map(math.prod, outputs)))


def _shape(atom: core.Var | core.Literal) -> Shape:
    return getattr(atom.aval, "shape", ())


def _dot_general(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * math.prod(outputs[0]) * math.prod(inputs[0][axis] for axis in contracted)


def _convolution(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
    # The kernel's axes are (output features, input features of one group, space ...).
    kernel = [inputs[1][axis] for axis in params["dimension_numbers"].rhs_spec]
    return 2 * math.prod(outputs[0]) * math.prod(kernel[1:])


def _window(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
    return math.prod(outputs[0]) * math.prod(params["window_dimensions"])


def _scattered_window(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
    return math.prod(inputs[0]) * math.prod(params["window_dimensions"])


def _triangular_solve(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
    return inputs[0][-1] * math.prod(inputs[1])


def _tridiagonal_solve(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
    return 8 * math.prod(outputs[0])


def _householder_product(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
    return 2 * math.prod(inputs[0]) * inputs[0][-1]


def _sort(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
    size = inputs[0][params["dimension"]]
    return math.prod(inputs[0]) * math.log2(max(size, 2))


def _top_k(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
    return math.prod(inputs[0]) * math.log2(max(params["k"], 2))


def _fft(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
    sizes = [max(size, 2) for size in params["fft_lengths"]]
    return 5 * math.prod(outputs[0]) * sum(map(math.log2, sizes))


def _per_matrix(count: Callable[[int, int], Count]):
    """A count from rows and columns, for each matrix of a stack."""

    def rule(params: dict, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> Count:
        *stack, rows, columns = inputs[0]
        return math.prod(stack) * count(rows, columns)

    return rule


# Golub and Van Loan, Matrix Computations (4th edition): 3.2, 4.2, 5.2, 7.5, 8.3, 8.6.
RULES: dict[str, Callable[[dict, Sequence[Shape], Sequence[Shape]], Count]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "reduce_window": _window,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "select_and_gather_add": _window,
    "select_and_scatter_add": _scattered_window,
    "triangular_solve": _triangular_solve,
    "tridiagonal_solve": _tridiagonal_solve,
    "householder_product": _householder_product,
    "cholesky": _per_matrix(lambda n, _: n**3 / 3),
    "lu": _per_matrix(lambda m, n: max(m, n) * min(m, n) ** 2 - min(m, n) ** 3 / 3),
    "geqrf": _per_matrix(lambda m, n: 2 * max(m, n) * min(m, n) ** 2 - 2 * min(m, n) ** 3 / 3),
    "qr": _per_matrix(lambda m, n: 4 * max(m, n) * min(m, n) ** 2 - 4 * min(m, n) ** 3 / 3),
    "eigh": _per_matrix(lambda n, _: 9 * n**3),
    "eig": _per_matrix(lambda n, _: 25 * n**3),
    "schur": _per_matrix(lambda n, _: 25 * n**3),
    "svd": _per_matrix(lambda m, n: 6 * max(m, n) * min(m, n) ** 2 + 20 * min(m, n) ** 3),
    "sort": _sort,
    "top_k": _top_k,
    "fft": _fft,
}


def is_elementwise(name: str) -> bool:
    """Whether compilers fuse this primitive into what reads its result: moved data counts too."""
    return not (name in REDUCTIONS or name in SCATTERS or name in UNKNOWN or name in RULES)
