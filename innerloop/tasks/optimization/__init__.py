"""Optimization tasks for training and testing learned optimizers."""

from innerloop.tasks.optimization.data_sets import Table as Table
from innerloop.tasks.optimization.data_sets import TableTasks as TableTasks
from innerloop.tasks.optimization.data_sets import TextTasks as TextTasks
from innerloop.tasks.optimization.data_sets import breast_cancer_table as breast_cancer_table
from innerloop.tasks.optimization.data_sets import descriptions as descriptions
from innerloop.tasks.optimization.data_sets import diabetes_table as diabetes_table
from innerloop.tasks.optimization.data_sets import digits_table as digits_table
from innerloop.tasks.optimization.data_sets import tokens as tokens
from innerloop.tasks.optimization.data_sets import wine_table as wine_table
from innerloop.tasks.optimization.family import Family as Family
from innerloop.tasks.optimization.family import Quadratics as Quadratics
from innerloop.tasks.optimization.family import quadratic_family as quadratic_family
from innerloop.tasks.optimization.family import rescaled as rescaled
from innerloop.tasks.optimization.family import supervised_family as supervised_family
from innerloop.tasks.optimization.suite import ACTIVATIONS as ACTIVATIONS
from innerloop.tasks.optimization.suite import conv_family as conv_family
from innerloop.tasks.optimization.suite import held_out_families as held_out_families
from innerloop.tasks.optimization.suite import language_family as language_family
from innerloop.tasks.optimization.suite import mlp_family as mlp_family
from innerloop.tasks.optimization.suite import random_families as random_families
from innerloop.tasks.optimization.suite import training_families as training_families
