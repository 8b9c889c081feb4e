"""llama.cpp: what its converter refuses and what its graph leaves out.

Read in llama.cpp as llama-cpp-python 0.3.36 has it: `convert_lora_to_gguf.py`,
`src/models/gemma4.cpp`, `src/llama-graph.cpp`; and run, see `tests/serving`.
"""

from collections.abc import Iterator

from gemma4_lora.servers import _adapter
from gemma4_lora.servers import _server
from gemma4_lora.servers import _shared_rules

Finding = _server.Finding
_AGAIN = 'export it by gemma4_lora export --for=llama.cpp'


def rules(adapter: _adapter.Adapter) -> Iterator[Finding]:
  """Yields what llama.cpp does with a folder."""
  yield from _shared_rules.only_plain(adapter)
  yield from _shared_rules.nothing_in_full(adapter)
  yield from _shared_rules.released_base(
      adapter.config.init_lora_weights, 'ignores'
  )
  yield from _shared_rules.one_scale(adapter, _AGAIN)
  experts = [*adapter.stacked_experts, *adapter.single_experts]
  if experts:
    yield Finding(
        'refuses',
        f'LoRA on routed experts ({_adapter.short(experts, 1)}); {_shared_rules.FUSE}',
    )
  lost = [
      x for x in adapter.of_text if x.startswith('per_layer_model_projection')
  ]
  if lost:
    yield Finding(
        'ignores',
        'per_layer_model_projection: it multiplies by that weight without'
        f' LoRA; {_shared_rules.FUSE}',
    )
  if adapter.of_towers:
    yield Finding(
        'ignores',
        f'LoRA on towers ({_adapter.short(adapter.of_towers, 1)}): its converter'
        f' leaves them out; {_shared_rules.FUSE}',
    )
  if not adapter.config.base_model_name_or_path:
    yield Finding(
        'needs',
        '--base DIR for convert_lora_to_gguf.py, a folder with config.json of'
        ' the base; or name the base by gemma4_lora export --base_model=NAME',
    )
