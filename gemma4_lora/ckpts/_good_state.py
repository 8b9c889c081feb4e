"""Checks that a state can be continued from."""

from typing import Any

from gemma4_lora import _trees
from gemma4_lora.ckpts.lora import _lora_item
from gemma4_lora.host import _finite
from gemma4_lora.nn.branches import _pending

_SHOWN = 3


def problem(item: Any) -> str:
  """Returns why a state is not to be saved, or an empty string.

  Args:
    item: What a checkpointer saves. It checks the LoRA leaves, or all
      parameters if there are none, and the optimizer's state, where infinite
      values are allowed.
  """
  if isinstance(item, _lora_item.LoRAItem):
    item = item.item
  state = _lora_item.train_state(item)
  if state is None:
    return ''
  params = _trees.flatten(state.params)
  lora = {path: x for path, x in params.items() if _trees.is_lora(path)}
  if problem := _pending.problem(lora):
    return problem
  bad = _finite.not_finite({} if lora else params)
  bad += [
      ('opt_state', *path)
      for path in _finite.not_finite(
          _trees.flatten(state.opt_state), infinite=False
      )
  ]
  if not bad:
    return ''
  shown = ', '.join(map(_trees.join, bad[:_SHOWN]))
  return f'{len(bad)} leaves of it have NaN or infinite values: {shown}.'
