"""Networks of other libraries as models."""

from innerloop.adapters._torch import from_torch as from_torch
