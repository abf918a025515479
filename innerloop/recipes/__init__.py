"""Named algorithms, each a few lines that put the parts together."""

from innerloop.recipes.anil import anil
from innerloop.recipes.base import Phase, Recipe
from innerloop.recipes.boil import boil
from innerloop.recipes.cavia import cavia
from innerloop.recipes.cnp import cnp
from innerloop.recipes.imaml import imaml
from innerloop.recipes.logistic_head import logistic_head
from innerloop.recipes.maml import fomaml, maml
from innerloop.recipes.maml_plus_plus import maml_plus_plus
from innerloop.recipes.matching import matching
from innerloop.recipes.meta_sgd import meta_sgd
from innerloop.recipes.nearest_neighbour import nearest_neighbour
from innerloop.recipes.pretrain_finetune import pretrain_classifier, pretrain_finetune
from innerloop.recipes.pretrained import pretrained
from innerloop.recipes.protonet import protonet
from innerloop.recipes.r2d2 import r2d2
from innerloop.recipes.reptile import reptile
from innerloop.recipes.svm_head import svm_head
from innerloop.recipes.table import RECIPES, Network, named_recipe

__all__ = [
    "RECIPES",
    "Network",
    "Phase",
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
