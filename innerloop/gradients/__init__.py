"""How the meta-gradient is computed: one short file per estimator."""

from innerloop.gradients.base import Aux, Fidelity, MetaGradient
from innerloop.gradients.bounded import Bounded
from innerloop.gradients.checkpoint import Binomial, Segments
from innerloop.gradients.clipped import Clipped
from innerloop.gradients.conditions import fixed_point, projected_gradient, proximal
from innerloop.gradients.evolution import EvolutionStrategies
from innerloop.gradients.first_order import FirstOrder
from innerloop.gradients.forward_mode import Basis, Coordinates, ForwardMode, RandomDirections
from innerloop.gradients.implicit import Implicit
from innerloop.gradients.linear_solve import Neumann
from innerloop.gradients.reptile import Reptile
from innerloop.gradients.truncated import Truncated
from innerloop.gradients.unroll import Unroll

__all__ = [
    "Aux",
    "Basis",
    "Binomial",
    "Bounded",
    "Clipped",
    "Coordinates",
    "EvolutionStrategies",
    "Fidelity",
    "FirstOrder",
    "ForwardMode",
    "Implicit",
    "MetaGradient",
    "Neumann",
    "RandomDirections",
    "Reptile",
    "Segments",
    "Truncated",
    "Unroll",
    "fixed_point",
    "projected_gradient",
    "proximal",
]
