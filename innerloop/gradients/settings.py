"""Named settings of `Unroll`."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from innerloop.gradients.bound import Bound
from innerloop.gradients.hold_constant import HoldConstant
from innerloop.gradients.last import Last
from innerloop.gradients.unroll import Unroll


def FirstOrder(where: Callable[[Any, PyTree], PyTree] | None = None) -> Unroll:
    """The first-order meta-gradient, FOMAML: `Unroll(HoldConstant(where))`.

    Args:
        where: See `HoldConstant`.

    Returns:
        The setting of `Unroll`. For another loop, write `Unroll(HoldConstant(where), loop)`.
    """
    return Unroll(HoldConstant(where))


def Truncated(last: int, identity: bool = True) -> Unroll:
    """The meta-gradient of the last inner steps: `Unroll(loop=Last(last, identity))`.

    Args:
        last: How many inner steps are differentiated.
        identity: See `Last`.

    Returns:
        The setting of `Unroll`. If the last steps take too much memory, write
        `Unroll(MixedMode(), Last(last, of=Segments(1)))`.
    """
    return Unroll(loop=Last(last, identity))


def Bounded(norm: float) -> Unroll:
    """A bound on the cotangent that each inner gradient passes back: `Unroll(Bound(norm))`.

    Args:
        norm: See `Bound`.

    Returns:
        The setting of `Unroll`. If memory is short, write
        `Unroll(Bound(norm, of=MixedMode()), Segments(1))`.
    """
    return Unroll(Bound(norm))
