"""Named algorithms, each a few lines that put the parts together."""

from innerloop.recipes.base import Recipe, supervised_loss
from innerloop.recipes.maml import fomaml, maml
from innerloop.recipes.pretrained import pretrained

__all__ = ["Recipe", "fomaml", "maml", "pretrained", "supervised_loss"]
