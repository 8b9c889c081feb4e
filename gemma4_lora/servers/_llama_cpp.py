"""llama.cpp: what its converter refuses and what its graph leaves out.

Read in llama.cpp as llama-cpp-python 0.3.36 has it: `convert_lora_to_gguf.py`,
`src/models/gemma4.cpp`, `src/llama-graph.cpp`; and run, see `tests/serving`.
"""

from collections.abc import Iterator

from gemma4_lora.servers import _adapter
from gemma4_lora.servers import _server

Finding = _server.Finding
_FUSE = 'convert the merged model: gemma4_lora fuse --format=hf'
_AGAIN = 'export it by gemma4_lora export --for=llama.cpp'


def rules(adapter: _adapter.Adapter) -> Iterator[Finding]:
  """Yields what llama.cpp does with a folder."""
  config = adapter.config
  if config.variant.name != 'LoRA':
    yield Finding('refuses', f'{config.variant.name}; {_FUSE}')
  if adapter.full:
    yield Finding(
        'refuses', f'modules_to_save ({_adapter.short(adapter.full)}); {_FUSE}'
    )
  if config.init_lora_weights.startswith(('pissa', 'olora')):
    yield Finding(
        'ignores',
        f'init_lora_weights={config.init_lora_weights!r}, whose base is another'
        f' than the released one; {_FUSE}',
    )
  if config.use_rslora:
    yield Finding('ignores', f'use_rslora: it divides by the rank; {_AGAIN}')
  if len(adapter.alphas) > 1:
    yield Finding(
        'ignores', f'alpha_pattern: it has one lora_alpha for all; {_AGAIN}'
    )
  experts = [*adapter.stacked_experts, *adapter.single_experts]
  if experts:
    yield Finding(
        'refuses',
        f'LoRA on routed experts ({_adapter.short(experts, 1)}); {_FUSE}',
    )
  lost = [
      x for x in adapter.of_text if x.startswith('per_layer_model_projection')
  ]
  if lost:
    yield Finding(
        'ignores',
        'per_layer_model_projection: it multiplies by that weight without'
        f' LoRA; {_FUSE}',
    )
  if adapter.of_towers:
    yield Finding(
        'ignores',
        f'LoRA on towers ({_adapter.short(adapter.of_towers, 1)}): its converter'
        f' leaves them out; {_FUSE}',
    )
  if not config.base_model_name_or_path:
    yield Finding(
        'needs',
        '--base DIR for convert_lora_to_gguf.py, a folder with config.json of'
        ' the base; or name the base by gemma4_lora export --base_model=NAME',
    )
