"""Rules that several servers have."""

from collections.abc import Iterator

from gemma4_lora.servers import _adapter
from gemma4_lora.servers import _server

Finding = _server.Finding
FUSE = 'take the merged model: gemma4_lora fuse --format=hf'


def only_plain(adapter: _adapter.Adapter) -> Iterator[Finding]:
  """Refuses variants."""
  variant = adapter.config.variant.name
  if variant != 'LoRA':
    yield Finding('refuses', f'{variant}; {FUSE}')


def nothing_in_full(
    adapter: _adapter.Adapter, kind: _server.Kind = 'refuses'
) -> Iterator[Finding]:
  """Has no place for what is trained in full."""
  if adapter.full:
    yield Finding(
        kind, f'modules_to_save ({_adapter.short(adapter.full)}); {FUSE}'
    )


def released_base(
    init_lora_weights: str, kind: _server.Kind
) -> Iterator[Finding]:
  """Has no place for a start that changes the base."""
  if init_lora_weights.startswith(('pissa', 'olora')):
    yield Finding(
        kind,
        f'init_lora_weights={init_lora_weights!r}, whose base is another than'
        f' the released one; {FUSE}',
    )


def one_scale(adapter: _adapter.Adapter, again: str) -> Iterator[Finding]:
  """Reads `lora_alpha`, and divides it by the rank, for all modules."""
  if adapter.config.use_rslora:
    yield Finding('ignores', f'use_rslora: it divides by the rank; {again}')
  if len(adapter.alphas) > 1:
    yield Finding(
        'ignores', f'alpha_pattern: it has one lora_alpha for all; {again}'
    )
