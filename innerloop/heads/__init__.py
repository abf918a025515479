"""Heads: adaptation in closed form or by a convex solver, on learned features."""

from innerloop.heads.closed_form import ClassMeans, Prototypes, RidgeHead
from innerloop.heads.convex import ConvexHead, logistic, squared_hinge

__all__ = ["ClassMeans", "ConvexHead", "Prototypes", "RidgeHead", "logistic", "squared_hinge"]
