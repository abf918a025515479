"""Models from networks of other libraries, and from functions of your own."""

from innerloop.adapters._equinox import from_equinox as from_equinox
from innerloop.adapters._functions import from_functions as from_functions
from innerloop.adapters._linen import from_linen as from_linen
from innerloop.adapters._nnx import from_nnx as from_nnx
from innerloop.adapters._torch import from_torch as from_torch
