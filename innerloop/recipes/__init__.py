"""Named algorithms, each a few lines that put the parts together."""

from innerloop.recipes._anil import anil
from innerloop.recipes._boil import boil
from innerloop.recipes._cavia import cavia
from innerloop.recipes._cnp import cnp
from innerloop.recipes._imaml import imaml
from innerloop.recipes._logistic_head import logistic_head
from innerloop.recipes._maml import fomaml, maml
from innerloop.recipes._maml_plus_plus import maml_plus_plus
from innerloop.recipes._matching import matching
from innerloop.recipes._meta_sgd import meta_sgd
from innerloop.recipes._nearest_neighbour import nearest_neighbour
from innerloop.recipes._pretrain_finetune import pretrain_classifier, pretrain_finetune
from innerloop.recipes._pretrained import pretrained
from innerloop.recipes._protonet import protonet
from innerloop.recipes._r2d2 import r2d2
from innerloop.recipes._reptile import reptile
from innerloop.recipes._svm_head import svm_head
from innerloop.recipes.base import Recipe
from innerloop.recipes.table import RECIPES, Network, named_recipe

__all__ = [
    "RECIPES",
    "Network",
    "Recipe",
    "anil",
    "boil",
    "cavia",
    "cnp",
    "fomaml",
    "imaml",
    "logistic_head",
    "maml",
    "maml_plus_plus",
    "matching",
    "meta_sgd",
    "named_recipe",
    "nearest_neighbour",
    "pretrain_classifier",
    "pretrain_finetune",
    "pretrained",
    "protonet",
    "r2d2",
    "reptile",
    "svm_head",
]
