"""A and B that start from the restored base: PiSSA, OLoRA, LoftQ."""

from collections.abc import Callable
import dataclasses
import itertools
from typing import Any

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.branches import _pending
from gemma4_lora.nn.from_base import _loftq


class Start:
  """Sets A and B once the base is restored."""

  def __init__(self, model: nn.LoRA | None, *, who: str):
    """Creates it, before the base is restored.

    Args:
      model: The trained model; None if it is not given.
      who: The transform that asks, for messages.
    """
    self._model, self._who = model, who
    self._loftq: _loftq.LoftQ | None = None
    if model is not None and _init.is_loftq(model.init_lora_weights):
      self._loftq = _loftq.LoftQ(model)

  @property
  def on_quantized(self) -> Callable[[_trees.Path, Any, Any], None] | None:
    """Callback for each quantised weight, for `Request.on_quantized`."""
    loftq = self._loftq
    if loftq is None:
      return None
    return lambda path, *args: loftq.add(_trees.join(path), *args)

  def apply(self, state: Any) -> Any:
    """Returns the state with A and B set, and their part taken from the base.

    Args:
      state: After the base was restored.

    Raises:
      ValueError: The model is missing, or the base was quantised before.
    """
    if self._loftq is not None:
      params = self._loftq.set(state.params)
    elif self._model is not None:
      params = nn.init_from_base(self._model, state.params)
    else:
      _check_no_pending(state.params, who=self._who)
      return state
    return dataclasses.replace(state, params=params)


def _check_no_pending(params: Any, *, who: str) -> None:
  """Raises if A and B wait for the base and nothing sets them."""
  # One is enough: `init_lora_weights=` holds for all of them.
  leaves = _trees.flatten(params).items()
  lora = {p: x for p, x in leaves if _trees.is_lora(p) and p[-1] == 'a'}
  problem = _pending.not_set(dict(itertools.islice(lora.items(), 1)))
  if problem:
    raise ValueError(f'{who}: {problem}')
