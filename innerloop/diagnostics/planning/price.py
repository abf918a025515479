"""What predicts the time of a meta-gradient: operations, memory touched, and calls."""

import math
from typing import NamedTuple

import jax

from innerloop.programs.cost import Cost


class Rates(NamedTuple):
    """What takes as long as one floating-point operation, the other way round.

    - `fresh_byte`: operations in the time that a byte of temporary memory takes which is asked of
      the system anew in each call, so that every page of it is set up again
    - `stored_byte`: operations in the time that a byte takes which is kept for the backward pass,
      written once and read once
    - `call`: operations in the time that it takes to begin a product, a reduction or a turn of a
      loop
    """

    fresh_byte: float
    stored_byte: float
    call: float


CPU = Rates(fresh_byte=50.0, stored_byte=0.0, call=2e4)
"""Fitted to two cores: 7e10 operations, 1.4e9 bytes or 3.5e6 calls in a second."""

ACCELERATOR = Rates(fresh_byte=0.0, stored_byte=30.0, call=1e8)
"""From what is printed on accelerators, not measured: 5e13 operations and 3e12 bytes in a second,
two microseconds for a call. Memory once taken is kept there."""


def price(cost: Cost, temporary: int, tasks: int, chunk: int) -> float:
    """The predicted time of a batch, in floating-point operations of this backend.

    - `cost`, `temporary`: operations, and bytes of temporary memory, of all tasks at once
    - `chunk`: how many tasks are run at a time
    """
    rates = CPU if jax.default_backend() == "cpu" else ACCELERATOR
    memory = rates.fresh_byte * temporary * chunk / tasks + rates.stored_byte * temporary
    return cost.flops + memory + rates.call * cost.calls * math.ceil(tasks / chunk)
