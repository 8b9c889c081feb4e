"""Plain text to tokens, targets and a loss mask: no turns, no template."""

from collections.abc import Collection
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from gemma import gm
from grain import python as grain
from kauldron import kd
import numpy as np

from gemma4_lora.data import _malformed
from gemma4_lora.data import _row_task
from gemma4_lora.data import _tokens
from gemma4_lora.data.conversations import _control_tags
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.rules import _empty_answers

_ALL = 'all'
_BOS_TEXT = '<bos>'


@dataclasses.dataclass(kw_only=True, frozen=True)
class TextTask(_row_task.RowTask, grain.MapTransform):
  """Texts, to continue pre-training; or completions of prompts, without turns.

  ```python
  # Before:
  {"text": "The cat sleeps."}
  # After, with max_length=8:
  {
      "input": i32[8],  # [<bos>, The, cat, ...]
      "target": i32[8 1],  # input, one step ahead
      "loss_mask": bool[8 1],  # True for all of the text
  }
  ```

  Pack texts with `g4.data.PackedSource(transforms=[..., TextTask(...)])`. It
  puts several into a row, without attention between them, and splits texts that
  are longer than a row. Each piece begins with `<bos>`, as Gemma models expect,
  and each token of a text is trained once.

  With `in_prompt=` a text completes another one, which is context and not
  trained. The two are tokenized separately and joined unchanged. Set
  `add_eos=True`, so that the model learns where a completion ends.

  Attributes:
    in_text: Key of the text: `str`, or `bytes` as TFDS gives them.
    in_prompt: Key of the text before it, which is not trained. None for none.
    out_input: Key to write the model's input to.
    out_target: Key to write the labels to.
    out_target_mask: Key to write the loss mask to.
    drop_inputs: Whether to remove the input keys.
    tokenizer: A Gemma 4 tokenizer.
    max_length: Length of the outputs, in tokens. Shorter examples are padded
      with 0.
    truncate: Whether to cut longer examples at the end. If False,
      `PackedSource` splits texts without a prompt; other long texts are an
      error.
    add_bos: Whether each example begins with `<bos>`.
    add_eos: Whether each text ends with `<eos>`, which is trained.
    allowed_tags: Gemma 4's tags that may stand in a text, as `('<mask>',)`, and
      become their tokens; `'all'` for texts that a template has rendered, which
      may begin with `<bos>`. A text with another tag is malformed.
    max_malformed: See `ChatTask`.
  """

  in_text: kd.kontext.Key = 'text'
  in_prompt: kd.kontext.Key | None = None

  out_input: kd.kontext.Key = 'input'
  out_target: kd.kontext.Key = 'target'
  out_target_mask: kd.kontext.Key = 'loss_mask'

  tokenizer: gm.text.Tokenizer
  max_length: int
  truncate: bool = False

  add_bos: bool = True
  add_eos: bool = False
  allowed_tags: Collection[str] = ()

  def __post_init__(self):
    _tokens.check_format(self.tokenizer, name='TextTask')
    _malformed.check_limit(self.max_malformed, name='TextTask')
    if isinstance(self.allowed_tags, str) and self.allowed_tags != _ALL:
      raise ValueError(
          f'TextTask: allowed_tags={self.allowed_tags!r} should be a tuple of'
          f' tags, or {_ALL!r}.'
      )
    if self.in_prompt is not None and self.in_prompt == self.in_text:
      raise ValueError(
          f'TextTask: in_prompt= and in_text= are both {self.in_text!r}.'
      )

  def fields(self, element: Any) -> dict[str, np.ndarray]:
    """Returns the output fields of an example.

    Raises:
      ValueError: It cannot be trained on.
      KeyError: It lacks a field.
    """
    ids, weights = self.tokens(element)
    return self.pad_fields(ids[:-1], ids[1:], weights[1:])

  def field_specs(self, max_length: int | None = None) -> dict[str, Any]:
    """Returns the shapes of the output fields; see `ChatTask.field_specs`."""
    length = max_length or self.max_length
    return {
        self.out_input: _tokens.spec(length, dtype=np.int32),
        self.out_target: _tokens.spec(length, 1, dtype=np.int32),
        self.out_target_mask: _tokens.spec(length, 1, dtype=np.bool_),
    }

  def pad_fields(
      self, tokens: np.ndarray, targets: np.ndarray, weights: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Returns the output fields, padded to `max_length`."""
    return {
        self.out_input: _tokens.pad(tokens, self.row_length),
        # The loss wants a last axis of one label per token.
        self.out_target: _tokens.pad(targets, self.row_length)[:, None],
        self.out_target_mask: _tokens.pad(weights > 0, self.row_length)[
            :, None
        ],
    }

  def tokens(self, element: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns all tokens of an example and their weights, within `max_length`.

    The last token is a target only: one more than `max_length` fit.

    Raises:
      ValueError: It cannot be trained on.
      KeyError: It lacks a field.
    """
    first, *rest = self.pieces(element)
    if rest:
      length = sum(len(ids) - 1 for ids, _ in (first, *rest))
      raise ValueError(
          f'TextTask: the text has {length} tokens and'
          f' max_length={self.max_length}. Pack texts with g4.data.PackedSource,'
          ' which splits them, or set `truncate=True` to cut the end.'
      )
    return first

  def pieces(self, element: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the tokens and weights of each piece of a text, as `tokens`.

    Raises:
      ValueError: It cannot be trained on.
      KeyError: It lacks a field.
    """
    bos = [int(self.tokenizer.special_tokens.BOS)] if self.add_bos else []
    prompt: list[int] = []
    if self.in_prompt is not None:
      prompt = self._encode(element, self.in_prompt)
    text = self._encode(element, self.in_text)
    if not text or not _empty_answers.says_something(
        _fields.get_text(element, self.in_text)
    ):
      raise ValueError(f'TextTask: the text is empty, at {self.in_text!r}.')
    if self.add_eos:
      text.append(int(self.tokenizer.special_tokens.EOS))
    length = self.row_length
    if self.in_prompt is not None or self.truncate:
      context = bos + prompt
      self._check_fits(len(context), len(text))
      return [_piece(context, text[: length + 1 - len(context)])]
    if bos:
      starts = range(0, len(text), length)
      return [_piece(bos, text[i : i + length]) for i in starts]
    # The last token of a piece is a target, and the first input of the next.
    starts = range(0, max(len(text) - 1, 1), length)
    return [_piece([], text[i : i + length + 1]) for i in starts]

  def pieces_or_none(
      self, element: Any
  ) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Returns `pieces`; None for a malformed row that may be left out."""
    return self.or_none(self.pieces, element)

  @property
  def row_length(self) -> int:
    """Length of the outputs, in tokens."""
    return self.max_length

  def _encode(self, element: Any, key: kd.kontext.Key) -> list[int]:
    text = _fields.get_text(element, key)
    if self.allowed_tags == _ALL:
      text = text.removeprefix(_BOS_TEXT) if self.add_bos else text
    else:
      _control_tags.check(text, field=key, allowed=self.allowed_tags)
    return self.tokenizer.encode(text)

  def _check_fits(self, num_context: int, num_text: int) -> None:
    length = num_context + num_text - 1
    if length <= self.max_length:
      return
    lengths = (
        f'{length} tokens (context {num_context}, text {num_text}, less the'
        f' last) and max_length={self.max_length}'
    )
    if not self.truncate:
      raise ValueError(
          f'TextTask: the example has {lengths}. Raise `max_length`, or set'
          ' `truncate=True` to cut its end.'
      )
    if num_context > self.max_length:
      raise ValueError(
          f'TextTask: the example has {lengths}: `truncate=True` would cut the'
          ' whole text, and nothing of it would be trained. Raise `max_length`,'
          ' or set `max_malformed=` to a share of the rows.'
      )

  def _check(self) -> None:
    _ = self._checked_tokenizer

  @functools.cached_property
  def _checked_tokenizer(self) -> gm.text.Tokenizer:
    """The tokenizer, if its vocabulary file has Gemma 4's turn tags."""
    _tokens.check_vocabulary(self.tokenizer, name='TextTask')
    return self.tokenizer

  @property
  def _in_keys(self) -> list[str]:
    prompt = [] if self.in_prompt is None else [self.in_prompt]
    return [*prompt, self.in_text]


def _piece(
    context: Sequence[int], text: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens; those of the text have a weight."""
  weights = np.zeros(len(context) + len(text), np.float32)
  weights[len(context) :] = 1
  if len(weights) < 2:
    raise ValueError(
        'TextTask: a text of one token trains nothing without `add_bos=True`.'
    )
  return np.array([*context, *text], np.int32), weights
