"""Optimization tasks for training and testing learned optimizers."""

from innerloop.tasks.optimization.family import Family, rescaled
from innerloop.tasks.optimization.quadratic import Quadratics, quadratic_family
from innerloop.tasks.optimization.suite import (
    ACTIVATIONS,
    conv_family,
    held_out_families,
    language_family,
    mlp_family,
    random_families,
    training_families,
)
from innerloop.tasks.optimization.supervised import supervised_family
from innerloop.tasks.optimization.tables import (
    Table,
    TableTasks,
    breast_cancer_table,
    diabetes_table,
    digits_table,
    wine_table,
)
from innerloop.tasks.optimization.text import TextTasks, descriptions, tokens

__all__ = [
    "ACTIVATIONS",
    "Family",
    "Quadratics",
    "Table",
    "TableTasks",
    "TextTasks",
    "breast_cancer_table",
    "conv_family",
    "descriptions",
    "diabetes_table",
    "digits_table",
    "held_out_families",
    "language_family",
    "mlp_family",
    "quadratic_family",
    "random_families",
    "rescaled",
    "supervised_family",
    "tokens",
    "training_families",
    "wine_table",
]
