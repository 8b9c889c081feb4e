"""SGLang: what its loader of LoRA refuses and leaves out.

Read in the wheel of sglang 0.5.23: `sglang/srt/lora/*.py` and
`sglang/srt/models/gemma4_mm.py`.
"""

from collections.abc import Iterator

from gemma4_lora.servers import _adapter
from gemma4_lora.servers import _server
from gemma4_lora.servers import _shared_rules

Finding = _server.Finding
_AGAIN = 'export it by gemma4_lora export --for=sglang'
_SUPPORTED = (
    'q_proj',
    'k_proj',
    'v_proj',
    'o_proj',
    'gate_proj',
    'up_proj',
    'down_proj',
)


def rules(adapter: _adapter.Adapter) -> Iterator[Finding]:
  """Yields what SGLang does with a folder."""
  config = adapter.config
  yield from _shared_rules.only_plain(adapter)
  if isinstance(config.target_modules, str) and config.target_modules not in (
      'all',
      'all-linear',
  ):
    yield Finding(
        'refuses', f'target_modules as a regular expression; {_AGAIN}'
    )
  lacking = adapter.layers_with('q_proj') - adapter.layers_with('v_proj')
  if lacking:
    yield Finding(
        'refuses',
        f'q_proj without v_proj, in layers {_adapter.short(lacking)}: a KeyError.'
        ' 31B, 26B_A4B and 12B have no v_proj in their global layers, E2B and'
        f' E4B none in those that share keys and values; {_shared_rules.FUSE}',
    )
  yield from _shared_rules.one_scale(adapter, _AGAIN)
  if len(adapter.ranks) > 1:
    yield Finding('refuses', f'several ranks (rank_pattern); {_AGAIN}')
  others = [
      x
      for x in adapter.modules
      if x.rpartition('.')[2] not in _SUPPORTED
      or x not in adapter.of_text
      or '.experts' in x
  ]
  if others:
    yield Finding(
        'refuses',
        f'{len(others)} modules that its Gemma 4 has no LoRA for,'
        f' {_adapter.short(others)}; {_shared_rules.FUSE}',
    )
  yield from _shared_rules.nothing_in_full(adapter, 'ignores')
  yield Finding(
      'needs',
      'a version whose Gemma 4 starts with LoRA: 0.5.23 takes sizes of its'
      ' buffers from fields that the config of Gemma 4 has only below'
      ' text_config, and one head size for all layers (read, not run)',
  )
