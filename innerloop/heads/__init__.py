"""Heads: adaptation in closed form or by a convex solver, on learned features."""

from innerloop.heads.convex import ConvexHead, logistic, squared_hinge
from innerloop.heads.prototypes import ClassMeans, Prototypes
from innerloop.heads.ridge import RidgeHead

__all__ = ["ClassMeans", "ConvexHead", "Prototypes", "RidgeHead", "logistic", "squared_hinge"]
