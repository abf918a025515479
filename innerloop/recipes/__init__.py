"""Named algorithms, each a few lines that put the parts together."""

from innerloop.recipes._cnp import cnp as cnp
from innerloop.recipes._linear_heads import logistic_head as logistic_head
from innerloop.recipes._linear_heads import r2d2 as r2d2
from innerloop.recipes._linear_heads import svm_head as svm_head
from innerloop.recipes._maml import fomaml as fomaml
from innerloop.recipes._maml import imaml as imaml
from innerloop.recipes._maml import maml as maml
from innerloop.recipes._maml import maml_plus_plus as maml_plus_plus
from innerloop.recipes._maml import meta_sgd as meta_sgd
from innerloop.recipes._maml import reptile as reptile
from innerloop.recipes._partly_adapted import anil as anil
from innerloop.recipes._partly_adapted import boil as boil
from innerloop.recipes._partly_adapted import cavia as cavia
from innerloop.recipes._pretrained import pretrain_classifier as pretrain_classifier
from innerloop.recipes._pretrained import pretrain_finetune as pretrain_finetune
from innerloop.recipes._pretrained import pretrained as pretrained
from innerloop.recipes._similarity import matching as matching
from innerloop.recipes._similarity import nearest_neighbour as nearest_neighbour
from innerloop.recipes._similarity import protonet as protonet
from innerloop.recipes.base import Recipe as Recipe
from innerloop.recipes.table import RECIPES as RECIPES
from innerloop.recipes.table import Network as Network
from innerloop.recipes.table import named_recipe as named_recipe
