"""Models from other libraries' networks; choosing, freezing, factoring, reading and exporting."""

from innerloop.adapters._equinox import from_equinox as from_equinox
from innerloop.adapters._freeze import freeze as freeze
from innerloop.adapters._freeze import merged_params as merged_params
from innerloop.adapters._functions import from_functions as from_functions
from innerloop.adapters._linen import from_linen as from_linen
from innerloop.adapters._lora import lora as lora
from innerloop.adapters._lora import lora_factors as lora_factors
from innerloop.adapters._lora import lora_merge as lora_merge
from innerloop.adapters._nnx import from_nnx as from_nnx
from innerloop.adapters._torch import from_torch as from_torch
from innerloop.adapters._where import Where as Where
from innerloop.adapters._where import matching as matching
from innerloop.adapters.export import export_adapted as export_adapted
from innerloop.adapters.export import export_learner as export_learner
from innerloop.adapters.safetensors import load_safetensors as load_safetensors
