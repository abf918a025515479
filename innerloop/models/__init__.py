"""Networks and losses that differentiate twice and run well under vmap and in loops."""

from innerloop.masks import masked_mean as masked_mean
from innerloop.models._conv4 import conv4 as conv4
from innerloop.models._conv4 import conv_features as conv_features
from innerloop.models._conv4 import pooled_width as pooled_width
from innerloop.models._mlp import mlp as mlp
from innerloop.models._mlp import mlp_features as mlp_features
from innerloop.models._transformer import transformer as transformer
from innerloop.models.base import Model as Model
from innerloop.models.head import film as film
from innerloop.models.head import linear_head as linear_head
from innerloop.models.layers import conv as conv
from innerloop.models.layers import conv_as_matmul as conv_as_matmul
from innerloop.models.layers import conv_init as conv_init
from innerloop.models.layers import conv_xla as conv_xla
from innerloop.models.layers import dense as dense
from innerloop.models.layers import dense_init as dense_init
from innerloop.models.layers import max_pool as max_pool
from innerloop.models.losses import ExamplesLoss as ExamplesLoss
from innerloop.models.losses import cross_entropy as cross_entropy
from innerloop.models.losses import mean_squared_error as mean_squared_error
from innerloop.models.losses import supervised_loss as supervised_loss
from innerloop.models.normalisation import Normalisation as Normalisation
from innerloop.models.normalisation import none as none
from innerloop.models.normalisation import per_example as per_example
from innerloop.models.normalisation import transductive as transductive
