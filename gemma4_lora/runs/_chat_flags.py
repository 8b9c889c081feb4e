"""Flags of the command `chat`."""

from typing import Any

from absl import flags

_LORA = flags.DEFINE_bool(
    'lora', True, 'chat: with LoRA from the start; --no-lora for the base.'
)
_NO_LORA = flags.DEFINE_bool('no-lora', False, 'chat: --nolora.')
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    'max_new_tokens', 512, 'chat: tokens of an answer.', lower_bound=1
)
_CACHE_LENGTH = flags.DEFINE_integer(
    'cache_length', 4096, 'chat: tokens of the conversation.'
)
_TEMPERATURE = flags.DEFINE_float(
    'temperature', 0.0, 'chat: 0 for the most likely token.', lower_bound=0.0
)


def arguments() -> dict[str, Any]:
  """Returns what the flags say, as arguments of `_chat.run`."""
  return {
      'with_lora': _LORA.value and not _NO_LORA.value,
      'max_new_tokens': _MAX_NEW_TOKENS.value,
      'cache_length': _CACHE_LENGTH.value,
      'temperature': _TEMPERATURE.value,
  }
