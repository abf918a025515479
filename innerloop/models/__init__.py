"""Networks and losses that differentiate twice and run well under vmap and in loops."""

from innerloop.masks import masked_mean
from innerloop.models._conv4 import (
    conv4,
    conv4_max_pool,
    conv_features,
    conv_features_max_pool,
    pooled_width,
)
from innerloop.models._film import film
from innerloop.models._mlp import mlp, mlp_features
from innerloop.models._transformer import transformer
from innerloop.models.base import Model
from innerloop.models.head import linear_head
from innerloop.models.layers import (
    conv,
    conv_as_matmul,
    conv_init,
    conv_xla,
    dense,
    dense_init,
    max_pool,
)
from innerloop.models.losses import ExamplesLoss, cross_entropy, mean_squared_error, supervised_loss
from innerloop.models.normalisation import Normalisation, none, per_example, transductive

__all__ = [
    "ExamplesLoss",
    "Model",
    "Normalisation",
    "conv",
    "conv4",
    "conv4_max_pool",
    "conv_as_matmul",
    "conv_features",
    "conv_features_max_pool",
    "conv_init",
    "conv_xla",
    "cross_entropy",
    "dense",
    "dense_init",
    "film",
    "linear_head",
    "masked_mean",
    "max_pool",
    "mean_squared_error",
    "mlp",
    "mlp_features",
    "none",
    "per_example",
    "pooled_width",
    "supervised_loss",
    "transductive",
    "transformer",
]
