"""Networks of one's own: chosen parts, frozen parts, low-rank factors, weights from files."""

from innerloop.adapters._freeze import freeze as freeze
from innerloop.adapters._lora import lora as lora
from innerloop.adapters._lora import lora_factors as lora_factors
from innerloop.adapters._lora import lora_merge as lora_merge
from innerloop.adapters._where import Where as Where
from innerloop.adapters._where import matching as matching
from innerloop.adapters.export import export_adapted as export_adapted
from innerloop.adapters.export import export_learner as export_learner
from innerloop.adapters.safetensors import load_safetensors as load_safetensors
