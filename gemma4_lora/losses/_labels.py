"""Finds labels that are not in the vocabulary and that a loss counts.

For such a label a loss would give a finite number without meaning, and it would
be trained on. `-100`, which Hugging Face's losses leave out, is one of them.
"""

from collections.abc import Mapping
import inspect
from typing import Any

from gemma import gm
import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import kontext

from gemma4_lora.losses import _dpo
from gemma4_lora.losses import _loss

# Losses of tokens: the fields with the keys of labels and mask.
_FIELDS = {
    kd.losses.SoftmaxCrossEntropyWithIntLabels: ('labels', 'mask'),
    _loss.SoftmaxCrossEntropyWithIntLabels: ('labels', 'mask'),
    gm.losses.DpoLoss: ('tokens', 'sequence_mask'),
    _dpo.DpoLoss: ('tokens', 'sequence_mask'),
}
# Methods of a loss that read labels. A subclass that overrides one is left
# alone.
_READERS = ('get_values', 'get_state', 'get_state_from_context')


def num_outside(
    losses: Any, context: Any, *, num_tokens: int
) -> dict[str, jax.Array]:
  """Returns how many labels count and are not tokens.

  Args:
    losses: Losses, in nested mappings.
    context: Has the batch.
    num_tokens: Size of the vocabulary.

  Returns:
    i32 scalars by the names of those losses that read their labels from the
    batch.
  """
  found = {}
  for path, loss in jax.tree_util.tree_leaves_with_path(losses):
    fields = _fields(type(loss))
    if fields is None:
      continue
    labels, mask = (_of_batch(loss, x, context) for x in fields)
    if labels is None or not jnp.issubdtype(labels.dtype, jnp.integer):
      continue
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    is_outside = (labels < 0) | (labels >= num_tokens)
    if mask is not None:
      is_outside &= jnp.broadcast_to(mask != 0, labels.shape)
    found[name] = is_outside.sum(dtype=jnp.int32)
  return found


def num_tokens_of(model: Any) -> int | None:
  """Returns the size of a model's vocabulary; None if it does not say."""
  return getattr(getattr(model, 'config', None), 'num_embed', None)


def num_counted(losses: Any, context: Any) -> list[jax.Array]:
  """Returns how many labels each loss counts.

  Args:
    losses: Losses, in nested mappings.
    context: Has the batch.

  Returns:
    f32 scalars, of those losses that read their labels from the batch.
  """
  found = []
  for loss in jax.tree.leaves(losses):
    fields = _fields(type(loss))
    if fields is None:
      continue
    labels, mask = (_of_batch(loss, x, context) for x in fields)
    if labels is not None:
      is_counted = jnp.ones(labels.shape, bool)
      if mask is not None:
        is_counted = jnp.broadcast_to(mask != 0, labels.shape)
      found.append(is_counted.sum(dtype=jnp.float32))
  return found


def check(
    found: Mapping[str, Any],
    *,
    num_tokens: int,
    where: str,
    losses: str = 'train_losses',
) -> None:
  """Raises if labels are not tokens.

  Args:
    found: From `num_outside`.
    num_tokens: Size of the vocabulary.
    where: What the caller did with them, for the message.
    losses: The field that has the losses, for the message.
  """
  for name, num in found.items():
    if num:
      raise ValueError(
          f'{where}: {int(num)} labels that {losses}.{name} counts are no'
          f' token of the vocabulary, 0 to {num_tokens - 1}. Labels that are not'
          ' to be trained, such as -100, need a mask that is zero there:'
          ' mask="batch.loss_mask", sequence_mask= of a DpoLoss. Labels beyond'
          ' the vocabulary come from the tokenizer of another model.'
      )


def _fields(cls: type[Any]) -> tuple[str, str] | None:
  """Returns the fields of a loss; None if it reads labels in its own way."""
  known = next((x for x in cls.__mro__ if x in _FIELDS), None)
  # Kauldron wraps some methods anew in each class.
  if known is None or any(
      inspect.unwrap(getattr(cls, name))
      is not inspect.unwrap(getattr(known, name))
      for name in _READERS
  ):
    return None
  return _FIELDS[known]


def _of_batch(loss: Any, field: str, context: Any) -> Any:
  """Returns the value at a loss's key, if it is in the batch."""
  key = kontext.get_keypaths(loss).get(field)
  if not isinstance(key, str) or not key.startswith('batch'):
    return None
  return kontext.get_by_path(context, key, default=None)
