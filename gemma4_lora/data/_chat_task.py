"""Prompt/response fields to tokens, targets and a loss mask, for Gemma 4."""

import dataclasses
import difflib
import functools
from typing import Any

import dialog
from etils.etree import jax as etree  # pylint: disable=g-importing-member
from gemma import gm
from kauldron import kd
import numpy as np

_TURN_TAGS = (dialog.Tags.TURN.open, dialog.Tags.TURN.close)


@dataclasses.dataclass(kw_only=True, frozen=True)
class ChatTask(gm.data.Seq2SeqTask):
  r"""One prompt and its response, in Gemma 4's own turn format.

  Takes the place of `gm.data.Seq2SeqTask`, which writes Gemma 3's tags on
  gemma 4.0.1. It is one, so `gm.evals.SamplerEvaluator` finds it in a dataset.

  ```python
  # Before:
  {"prompt": "Good morning.", "response": "Bonjour."}
  # After, with max_length=16:
  {
      "input": i32[16],  # [<bos>, <|turn>, user, \n, Good, ...]
      "target": i32[16 1],  # input, one step ahead
      "loss_mask": bool[16 1],  # True for `Bonjour.` and its `<turn|>`
  }
  ```

  The `dialog` package renders the turns:

  ```
  <|turn>user
  Good morning.<turn|>
  <|turn>model
  Bonjour.<turn|>
  ```

  Loss is on the response and on the `<turn|>` that ends it, at which samplers
  stop; the sequence ends there. Prompt and response are tokenized apart, so
  the prompt's tokens are those that `gm.text.ChatSampler` feeds for the same
  text, and an exact prefix of the sequence.

  The texts go in as they are: nothing is stripped. A `<|channel>thought`
  block in the response is trained like the rest of it.

  Attributes:
    in_prompt: Key of the prompt: `str`, or `bytes` as TFDS gives them.
    in_response: Key of the response.
    out_input: Key to write the model's input to.
    out_target: Key to write the labels to.
    out_target_mask: Key to write the loss mask to.
    drop_inputs: Whether to remove the two input keys.
    tokenizer: A Gemma 4 tokenizer.
    max_length: Length of the outputs, in tokens. Shorter examples are padded
      with 0. Not needed with `sampling=True`.
    truncate: Whether to cut longer examples at the end. If False they are an
      error. An example whose response would be cut away whole is an error in
      both cases: see `g4.data.DropLongPrompts`.
    sampling: Whether to give the prompt and the response as text, turn tags
      included, for `gm.evals.SamplerEvaluator`.
  """

  out_input: kd.kontext.Key = "input"
  out_target: kd.kontext.Key = "target"
  out_target_mask: kd.kontext.Key = "loss_mask"

  # Required unless `sampling`.
  max_length: int | None = None  # pyrefly: ignore[bad-override]

  def __post_init__(self):
    check_format(self.tokenizer, name="ChatTask")
    if self.max_length is None and not self.sampling:
      raise ValueError("ChatTask needs `max_length=`, in tokens.")

  def map(self, element: Any) -> Any:
    """Returns the example with the output fields, and without the inputs."""
    element = etree.copy(element)  # Not to change the caller's.
    prompt = get_text(element, self.in_prompt)
    response = get_text(element, self.in_response)
    if self.drop_inputs:
      _delete(element, self.in_prompt)
      _delete(element, self.in_response)

    prompt = render_prompt(prompt)
    response = _render_response(response)
    if self.sampling:
      fields = {self.out_input: prompt, self.out_target: response}
    else:
      fields = self._tokenize(prompt, response)
    for key, value in fields.items():
      kd.kontext.set_by_path(element, key, value)
    return element

  def _tokenize(self, prompt: str, response: str) -> dict[str, np.ndarray]:
    """Returns input, target and mask, padded or cut to `max_length`."""
    prompt_ids = self._checked_tokenizer.encode(prompt, add_bos=True)
    response_ids = self._checked_tokenizer.encode(response)
    ids = np.asarray(prompt_ids + response_ids, np.int32)
    mask = np.arange(1, len(ids)) >= len(prompt_ids)
    length = self._check_length(len(prompt_ids), len(response_ids))
    return {
        self.out_input: _pad(ids[:-1], length),
        # The loss wants a last axis of one label per token.
        self.out_target: _pad(ids[1:], length)[:, None],
        self.out_target_mask: _pad(mask, length)[:, None],
    }

  def _check_length(self, prompt_len: int, response_len: int) -> int:
    """Returns `max_length`, if the example fits or may be cut to it."""
    assert self.max_length is not None  # See `__post_init__`.
    # The last token of the sequence is a target only.
    length = prompt_len + response_len - 1
    lengths = (
        f"{length} tokens (prompt {prompt_len}, response {response_len}, less"
        f" the last) and max_length={self.max_length}"
    )
    if length > self.max_length and not self.truncate:
      raise ValueError(
          f"ChatTask: the example has {lengths}. Raise `max_length`, or set"
          " `truncate=True` to cut its end."
      )
    if prompt_len > self.max_length:
      raise ValueError(
          f"ChatTask: the example has {lengths}: `truncate=True` would cut the"
          " whole response, and nothing of it would be trained. Raise"
          " `max_length`, or drop such examples: put"
          f" `g4.data.DropLongPrompts(in_prompt={self.in_prompt!r},"
          f" tokenizer=..., max_length={self.max_length})` before ChatTask."
      )
    return self.max_length

  @functools.cached_property
  def _checked_tokenizer(self) -> gm.text.Tokenizer:
    """The tokenizer, if its vocabulary file has Gemma 4's turn tags."""
    special = self.tokenizer.special_tokens
    for tag, token_id in zip(
        _TURN_TAGS, (special.START_OF_TURN, special.END_OF_TURN), strict=True
    ):
      ids = self.tokenizer.encode(tag)
      if ids != [token_id]:
        raise ValueError(
            f"ChatTask: the vocabulary at {self.tokenizer.path} is not Gemma"
            f" 4's: it encodes {tag!r} as {ids} rather than [{token_id:d}]."
        )
    return self.tokenizer


def check_format(tokenizer: gm.text.Tokenizer, *, name: str) -> None:
  """Raises ValueError if the tokenizer is not one of Gemma 4."""
  if tokenizer.FORMAT == dialog.Format.GEMMA4:
    return
  raise ValueError(
      f"{name} writes Gemma 4's turns, but tokenizer={type(tokenizer).__name__}"
      f" is of Gemma {tokenizer.VERSION}, whose format is"
      f" {str(tokenizer.FORMAT)!r}. Write `tokenizer=gm.text.Gemma4Tokenizer()`,"
      " or use `gm.data.Seq2SeqTask` for other models."
  )


def get_text(element: Any, key: kd.kontext.Key) -> str:
  """Returns the text at `key`.

  Args:
    element: An example: nested dicts, or anything that kontext reads.
    key: The field, a kontext path.

  Returns:
    The text, decoded if it is bytes.

  Raises:
    KeyError: If there is no such field.
    ValueError: If it is not text, or has one of Gemma 4's turn tags in it.
  """
  try:
    value = kd.kontext.get_by_path(element, key)
  except (KeyError, AttributeError, IndexError, TypeError):
    raise KeyError(_missing_field(element, key)) from None
  if isinstance(value, np.ndarray) and value.ndim == 0:
    value = value.item()
  if isinstance(value, bytes):
    value = value.decode("utf-8")
  if not isinstance(value, str):
    raise ValueError(
        f"Field {key!r} should be text (`str` or `bytes`), but it is a"
        f" {type(value).__name__}: {value!r:.100}"
    )
  for tag in _TURN_TAGS:
    if tag in value:
      raise ValueError(
          f"Field {key!r} has the turn tag {tag!r} in its text, which would"
          " begin or end a turn in the middle of it. Give bare text: the tags"
          f" are added to it. Remove or rewrite it in: {value!r:.200}"
      )
  return str(value)


def render_prompt(prompt: str) -> str:
  """Returns the prompt's turn and the opening of the model's."""
  return str(dialog.Conversation(dialog.User(prompt)).as_text())


def _render_response(response: str) -> str:
  """Returns what the model should say after `render_prompt`, with its end."""
  return dialog.Model(response).as_text(open=False)


def _missing_field(element: Any, key: kd.kontext.Key) -> str:
  fields = list(kd.kontext.flatten_with_path(element))
  close = difflib.get_close_matches(key, fields)
  hint = f" Did you mean {close[0]!r}?" if close else ""
  return f"The example has no field {key!r}.{hint} Its fields are: {fields}."


def _delete(element: Any, key: kd.kontext.Key) -> None:
  """Deletes the field at `key`, if it is still there."""
  path = kd.kontext.Path.from_str(key)
  parent = element
  for part in path[:-1]:
    parent = parent[part]
  parent.pop(path[-1], None)


def _pad(values: np.ndarray, length: int) -> np.ndarray:
  values = values[:length]
  return np.pad(values, (0, length - len(values)))
