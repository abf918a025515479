"""How the meta-gradient is computed: one short file per estimator."""

from innerloop.gradients.base import Aux, Fidelity, MetaGradient
from innerloop.gradients.first_order import FirstOrder
from innerloop.gradients.unroll import Unroll

__all__ = ["Aux", "Fidelity", "FirstOrder", "MetaGradient", "Unroll"]
