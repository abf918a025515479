"""Heads: adaptation in closed form or by a convex solver, on learned features."""

from innerloop.heads.closed_form import ClassMeans as ClassMeans
from innerloop.heads.closed_form import Prototypes as Prototypes
from innerloop.heads.closed_form import RidgeHead as RidgeHead
from innerloop.heads.convex import ConvexHead as ConvexHead
from innerloop.heads.convex import logistic as logistic
from innerloop.heads.convex import squared_hinge as squared_hinge
