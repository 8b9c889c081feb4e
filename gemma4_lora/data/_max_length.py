"""Cuts examples to `max_length`, or raises an error that says why not."""

from kauldron import kd
import numpy as np


def cut(
    ids: np.ndarray,
    weights: np.ndarray,
    *,
    max_length: int,
    truncate: bool,
    in_prompt: kd.kontext.Key | None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens and weights that fit.

  The last token is a target only: one more than `max_length` fit.

  Args:
    ids: All tokens, i32 `[L]`.
    weights: The loss weight of each token, f32 `[L]`.
    max_length: The limit, in tokens.
    truncate: Whether longer examples may be cut.
    in_prompt: Field of the prompt, if it is a text, for errors.

  Raises:
    ValueError: They do not fit and may not be cut, or no response would be
      left.
  """
  length = len(ids) - 1
  if length > max_length:
    prompt = int(np.argmax(weights > 0))
    lengths = (
        f'{length} tokens (prompt {prompt}, response {len(ids) - prompt}, less'
        f' the last) and max_length={max_length}'
    )
    if not truncate:
      raise ValueError(
          f'ChatTask: the example has {lengths}. Raise `max_length`, or set'
          ' `truncate=True` to cut its end.'
      )
    if prompt > max_length:
      raise ValueError(
          f'ChatTask: the example has {lengths}: `truncate=True` would cut the'
          ' whole response, and nothing of it would be trained. Raise'
          ' `max_length`, or drop such examples:'
          f'{_how_to_drop(in_prompt, max_length)}'
      )
  return ids[: max_length + 1], weights[: max_length + 1]


def _how_to_drop(in_prompt: kd.kontext.Key | None, max_length: int) -> str:
  if in_prompt is None:
    return ' set `max_malformed=` to a share of the rows.'
  return (
      f' put `g4.data.DropLongPrompts(in_prompt={in_prompt!r},'
      f' tokenizer=..., max_length={max_length})` before ChatTask.'
  )
