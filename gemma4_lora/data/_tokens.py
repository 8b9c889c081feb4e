"""From spans of text to the arrays that a model trains on."""

from typing import Any

import dialog
from etils import enp
from gemma import gm
import numpy as np

from gemma4_lora.data.conversations import _spans

_TURN_TAGS = (dialog.Tags.TURN.open, dialog.Tags.TURN.close)


def check_format(tokenizer: gm.text.Tokenizer, *, name: str) -> None:
  """Raises ValueError if the tokenizer is not one of Gemma 4."""
  if tokenizer.FORMAT == dialog.Format.GEMMA4:
    return
  raise ValueError(
      f"{name} writes Gemma 4's turns, but tokenizer={type(tokenizer).__name__}"
      f' is of Gemma {tokenizer.VERSION}, whose format is'
      f' {str(tokenizer.FORMAT)!r}. Write `tokenizer=gm.text.Gemma4Tokenizer()`,'
      ' or use `gm.data.Seq2SeqTask` for other models.'
  )


def check_vocabulary(tokenizer: gm.text.Tokenizer, *, name: str) -> None:
  """Raises ValueError if its file lacks Gemma 4's turn tags."""
  special = tokenizer.special_tokens
  for tag, token_id in zip(
      _TURN_TAGS, (special.START_OF_TURN, special.END_OF_TURN), strict=True
  ):
    ids = tokenizer.encode(tag)
    if ids != [token_id]:
      raise ValueError(
          f"{name}: the vocabulary at {tokenizer.path} is not Gemma 4's: it"
          f' encodes {tag!r} as {ids} rather than [{token_id:d}].'
      )


def tokenize(
    rendered: _spans.Rendered, tokenizer: gm.text.Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens, `<bos>` included, and the weight of each as a target.

  Each span is tokenized by itself, so that a sampler's prompt and the model's
  answer have separate tokens.

  Returns:
    i32 `[L]` and f32 `[L]`.
  """
  ids = [int(tokenizer.special_tokens.BOS)]
  weights = [0.0]
  for span in rendered.spans:
    new = tokenizer.encode(span.text)
    ids.extend(new)
    weights.extend([span.weight] * len(new))
  return np.asarray(ids, np.int32), np.asarray(weights, np.float32)


def pad(values: np.ndarray, length: int) -> np.ndarray:
  """Returns the first `length` values, padded with zeros."""
  padded = np.zeros(length, values.dtype)
  values = values[:length]
  padded[: len(values)] = values
  return padded


def spec(*shape: int, dtype: Any) -> enp.ArraySpec:
  """Returns the shape and dtype of an array that an example will have."""
  return enp.ArraySpec(shape=shape, dtype=np.dtype(dtype))
