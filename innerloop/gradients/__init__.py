"""How the meta-gradient is computed: one short file per idea."""

from innerloop.adaptation import InnerRule, Loop
from innerloop.fidelity import Derivatives, Fidelity
from innerloop.gradients.base import Aux, MetaGradient
from innerloop.gradients.bound import Bound
from innerloop.gradients.checkpoint import Binomial, Segments
from innerloop.gradients.clipped import Clipped
from innerloop.gradients.conditions import fixed_point, projected_gradient, proximal
from innerloop.gradients.evolution import EvolutionStrategies
from innerloop.gradients.forward_mode import Basis, Coordinates, ForwardMode, RandomDirections
from innerloop.gradients.hold_constant import HoldConstant
from innerloop.gradients.implicit import Implicit
from innerloop.gradients.inner import Exact
from innerloop.gradients.last import Last
from innerloop.gradients.linear_solve import Neumann
from innerloop.gradients.loops import StoreAll
from innerloop.gradients.mixed_mode import MixedMode
from innerloop.gradients.names import gradient_name
from innerloop.gradients.reptile import Reptile
from innerloop.gradients.settings import Bounded, FirstOrder, Truncated
from innerloop.gradients.unroll import Unroll

__all__ = [
    "Aux",
    "Basis",
    "Binomial",
    "Bound",
    "Bounded",
    "Clipped",
    "Coordinates",
    "Derivatives",
    "EvolutionStrategies",
    "Exact",
    "Fidelity",
    "FirstOrder",
    "ForwardMode",
    "HoldConstant",
    "Implicit",
    "InnerRule",
    "Last",
    "Loop",
    "MetaGradient",
    "MixedMode",
    "Neumann",
    "RandomDirections",
    "Reptile",
    "Segments",
    "StoreAll",
    "Truncated",
    "Unroll",
    "fixed_point",
    "gradient_name",
    "projected_gradient",
    "proximal",
]
