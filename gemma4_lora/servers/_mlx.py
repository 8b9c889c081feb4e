"""mlx-lm: what its loader of adapters refuses.

It reads no PEFT folder, but one of its own. Read in mlx-lm 0.32.2:
`mlx_lm/tuner/utils.py`, `lora.py`, `dora.py`, `mlx_lm/models/gemma4*.py`.
"""

from collections.abc import Collection
from collections.abc import Iterator

from gemma4_lora import variants
from gemma4_lora.servers import _adapter
from gemma4_lora.servers import _server
from gemma4_lora.servers import _shared_rules

Finding = _server.Finding


def rules(adapter: _adapter.Adapter) -> Iterator[Finding]:
  """Yields what mlx-lm does with what a folder holds."""
  return of_lora(
      variant=adapter.config.variant,
      init_lora_weights=adapter.config.init_lora_weights,
      of_towers=adapter.of_towers,
      full=adapter.full,
      has_experts=bool(adapter.stacked_experts or adapter.single_experts),
  )


def of_lora(
    *,
    variant: variants.Variant,
    init_lora_weights: str,
    of_towers: Collection[str],
    full: Collection[str],
    has_experts: bool,
) -> Iterator[Finding]:
  """Yields the same for a LoRA that is not in a folder.

  Args:
    variant: Its variant.
    init_lora_weights: See `g4.nn.LoRA`.
    of_towers: Names of modules of towers.
    full: Names of what is trained in full.
    has_experts: Whether routed experts are adapted.
  """
  if variant.name not in ('LoRA', 'DoRA'):
    yield Finding('refuses', f'{variant.name}; {_shared_rules.FUSE}')
  if variant.name == 'DoRA' and has_experts:
    yield Finding('refuses', f'DoRA on routed experts; {_shared_rules.FUSE}')
  if full:
    yield Finding(
        'refuses',
        f'modules_to_save ({_adapter.short(full)}); {_shared_rules.FUSE}',
    )
  yield from _shared_rules.released_base(init_lora_weights, 'ignores')
  if of_towers:
    yield Finding(
        'refuses',
        f'LoRA on towers ({_adapter.short(of_towers, 1)}): it is text alone;'
        f' {_shared_rules.FUSE}',
    )
