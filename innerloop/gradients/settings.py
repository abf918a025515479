"""Settings of `Unroll` that have a name of their own."""

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
        where: see `HoldConstant`

    Returns:
        The setting of `Unroll`. Write `Unroll(HoldConstant(where), loop)` for another loop.
    """
    return Unroll(HoldConstant(where))


def Truncated(last: int, identity: bool = True) -> Unroll:
    """The meta-gradient of the last inner steps: `Unroll(loop=Last(last, identity))`.

    Args:
        last: how many inner steps are differentiated
        identity: see `Last`

    Returns:
        The setting of `Unroll`. Write `Unroll(MixedMode(), Last(last, of=Segments(1)))` where the
        last steps take too much memory.
    """
    return Unroll(loop=Last(last, identity))


def Bounded(norm: float) -> Unroll:
    """A bound on what goes back through each inner gradient: `Unroll(Bound(norm))`.

    Args:
        norm: see `Bound`

    Returns:
        The setting of `Unroll`. Write `Unroll(Bound(norm, of=MixedMode()), Segments(1))` where
        memory is short.
    """
    return Unroll(Bound(norm))
