"""vLLM: what its loader of LoRA refuses and leaves out.

Read in the wheel of vllm 0.33.0: `vllm/lora/peft_helper.py`, `lora_model.py`,
`model_manager.py`, and `vllm/model_executor/models/gemma4*.py`.
"""

from collections.abc import Iterator

from gemma4_lora.servers import _adapter
from gemma4_lora.servers import _server
from gemma4_lora.servers import _shared_rules

Finding = _server.Finding
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_DEFAULT_RANK = 16


def rules(adapter: _adapter.Adapter) -> Iterator[Finding]:
  """Yields what vLLM does with a folder."""
  yield from _shared_rules.only_plain(adapter)
  yield from _shared_rules.nothing_in_full(adapter)
  yield from _shared_rules.released_base(
      adapter.config.init_lora_weights, 'refuses'
  )
  yield from _rank(adapter)
  yield from _experts(adapter)
  yield from _values(adapter)
  yield from _towers(adapter)


def _rank(adapter: _adapter.Adapter) -> Iterator[Finding]:
  rank = max(adapter.ranks | {adapter.config.r})
  if rank > _RANKS[-1]:
    yield Finding(
        'refuses',
        f'rank {rank}: its largest is {_RANKS[-1]}; {_shared_rules.FUSE}',
    )
  elif rank > _DEFAULT_RANK:
    fits = next(x for x in _RANKS if x >= rank)
    yield Finding('needs', f'--max-lora-rank={fits} (there is rank {rank})')


def _experts(adapter: _adapter.Adapter) -> Iterator[Finding]:
  stacked = adapter.stacked_experts
  if stacked:
    halves = {x.endswith('.base_layer') for x in stacked}
    if len(halves) == 1:
      yield Finding(
          'refuses',
          'stacked experts of which only one of gate_up_proj and down_proj is'
          ' there; save them with experts="per_expert", or by'
          ' gemma4_lora export --for=vllm',
      )
    else:
      yield Finding(
          'needs',
          '--enable-mixed-moe-lora-format, and is_3d_lora_weight=True in the'
          ' LoRA request, for stacked experts',
      )
  older = [x for x in adapter.single_experts if '.moe.experts.' in x]
  if older:
    yield Finding(
        'ignores',
        f'{len(older)} modules named for earlier versions,'
        f' {_adapter.short(older, 1)}: it looks for experts without moe; export'
        ' it again by gemma4_lora export --for=vllm',
    )


def _values(adapter: _adapter.Adapter) -> Iterator[Finding]:
  """It computes values by a second copy of the weight of keys."""
  layers = adapter.layers_of_one() & adapter.layers_with(
      'k_proj'
  ) - adapter.layers_with('v_proj')
  if layers:
    yield Finding(
        'ignores',
        f'LoRA on the values of layers {_adapter.short(layers)}: k_proj gives'
        ' keys and values there, and vLLM holds the weight twice, the LoRA'
        ' once; export it by gemma4_lora export --for=vllm, which writes both',
    )


def _towers(adapter: _adapter.Adapter) -> Iterator[Finding]:
  lost = [
      x
      for x in adapter.of_towers
      if x.startswith(('vision_embedder.', 'embed_vision.patch_dense'))
  ]
  if lost:
    yield Finding(
        'ignores',
        f'{_adapter.short(lost)}: it has no LoRA there; {_shared_rules.FUSE}',
    )
  if len(lost) < len(adapter.of_towers):
    yield Finding(
        'needs',
        '--enable-tower-connector-lora, for LoRA on towers; without it, that'
        ' part is left out with a warning',
    )
