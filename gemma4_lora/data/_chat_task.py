"""Conversations to tokens, targets and a loss mask, for Gemma 4."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from gemma import gm
from kauldron import kd
import numpy as np

from gemma4_lora.data import _loss_weights
from gemma4_lora.data import _malformed
from gemma4_lora.data import _max_length
from gemma4_lora.data import _row_task
from gemma4_lora.data import _tokens
from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.images import _patches
from gemma4_lora.data.layouts import _columns
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _layout
from gemma4_lora.data.layouts import _layouts
from gemma4_lora.data.templates import _render


@_layouts.documented
@dataclasses.dataclass(kw_only=True, frozen=True)
class ChatTask(_row_task.ConversationTask, gm.data.Seq2SeqTask):
  r"""Conversations, in Gemma 4's own turn format.

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

  The turns are those of the `dialog` package:

  ```
  <|turn>user
  Good morning.<turn|>
  <|turn>model
  Bonjour.<turn|>
  ```

  The loss is on the model's text and on the `<turn|>` that ends it, at which
  samplers stop. After a tool call it is on the `<|tool_response>` at which they
  stop, also if the call is the last message; the tool's answer has no loss.
  Prompt and answer are tokenized separately. So the prompt's tokens are those
  that `gm.text.ChatSampler` feeds for the same text, and an exact prefix of the
  sequence.

  Layouts, by the names that datasets use:

  {layouts}

  Thoughts are in fields of the layout and, with `inline_markup='parse'`, also
  in texts of the model between `<|channel>thought\n...<channel|>` or
  `<think>...</think>`. `thinking` decides about them, in the same way in
  training, in preference pairs (`g4.data.PreferenceTask`) and in sampling:

  * `'keep'`: trained as the rest.
  * `'mask'`: in the context, and not trained.
  * `'strip'`: left out of all turns of the model but the last.
  * `'strip_all'`: left out.
  * `'empty'`: left out, and each trained turn begins with the empty thought
    that the larger models expect if thinking is off. It is part of the prompt,
    not trained.

  Texts go in as they are: nothing is stripped. `template='transformers'` is
  Google's chat template instead, which servers read from the model's folder:
  texts are stripped, arguments of tools sorted by name, ... `'strip'` then
  keeps the thoughts that the template keeps: those after the last message of a
  user. Call arguments in JSON are parsed first, as servers do; the template
  itself raises for them.

  With a path, the template in that file is rendered, as servers render it, by
  Jinja in a sandbox. What is trained begins where the template's prompt ends, and
  ends where its text of the messages up to there does. A row whose text changes
  once more messages follow is malformed: with thoughts in history,
  `thinking='strip'` or `loss_on='last'` helps. Where the prompt of the larger
  models has an empty thought, so has what is trained. Where a server begins a
  thought after a tool's answer and the row has none, the log says so once.

  Rows that cannot be trained on are errors: a missing field or one of another
  type, an unknown role, an empty answer, a tool call without its answer, a
  control tag in a text, a response that `truncate=True` would cut completely,
  no token with a loss. `max_malformed` allows some of them and leaves them out.

  Calls of tools and their answers must match: an answer with a `tool_call_id`
  belongs to the call of that id, for any `name`, as in Google's template. An
  answer with only a `name` belongs to the first call of that name without an
  answer; any other answer to the first call without one. Each call has one
  answer; calls of the last message may have none.

  Attributes:
    layout: How the row is laid out, see above.
    in_prompt: Key of the prompt: `str`, or `bytes` as TFDS gives them.
    in_response: Key of the response.
    in_messages: Key of the messages. Default: that of the layout.
    in_system: Key of a system text that is not among the messages.
    in_tools: Key of the declared tools, in OpenAI's or MCP's form, or as JSON
      of it.
    in_images: Key of the images, for a model with `text_only=False` and
      `images="batch.images"`: one or a list, as many as the conversation has
      `<|image|>` or parts of type `image`; None or none for a row of text alone.
      Batches may mix both. An image is uint8 or uint16, `[H, W]` or
      `[H, W, C]`; a PIL image; or an encoded file: `bytes`, a path, or
      `{"bytes": ..., "path": ...}` as in Parquet. It is read as viewers show
      it: EXIF's orientation is applied, transparent parts are white, and an
      animation counts as its first frame. An image that cannot be read is
      malformed.
    in_template_kwargs: Key of arguments of the template for one row, a dict or
      JSON, read where a row has it: `{"enable_thinking": True}`.
    in_enable_thinking: Key of a bool, read where a row has it. With
      `thinking='empty'`, rows with thinking on have no empty thought, and their
      thoughts are treated as by `'strip'`.
    max_images: How many images a row has room for. Each takes time in the
      tower, also if a row has fewer.
    max_soft_tokens: The most tokens that an image may take. Images are scaled,
      with their aspect ratio kept, to at most that many tokens of 48 x 48
      pixels.
    patch_size: Patch size of the vision tower, in pixels.
    out_input: Key to write the model's input to.
    out_target: Key to write the labels to.
    out_target_mask: Key to write the loss mask to.
    out_images: Key to write the patches of images to, if there is `in_images`;
      also with `sampling=True`.
    drop_inputs: Whether to remove the input keys.
    tokenizer: A Gemma 4 tokenizer.
    max_length: Length of the outputs, in tokens. Shorter examples are padded
      with 0. Not needed with `sampling=True`.
    truncate: Whether to cut longer examples at the end. If False they are an
      error. An example whose response would be cut completely is an error in
      both cases: see `g4.data.DropLongPrompts`.
    thinking: How thoughts are treated, see above.
    loss_on: `'all'` turns of the model, or the `'last'`.
    template: How turns are rendered: `'dialog'`, which gemma's samplers use;
      `'transformers'`, Google's chat template of 2026-07-09; or an older
      revision for models that are served with it, `'transformers-2026-05'` (of
      05-28) and `'transformers-2026-04'` (of 04-28). Or the path of a
      `chat_template.jinja`, or of a folder that has one: see above.
    enable_thinking: Whether the system turn has `<|think|>`, if the row does not
      decide.
    template_kwargs: Further arguments of the template: `preserve_thinking` of
      `'transformers'`, and any arguments of a file.
    token_weights: Whether the mask is f32 and has each message's `weight`. If
      False a weight other than 0 and 1 is an error.
    empty_answers: Whether the model may say nothing: content that is `''` or
      spaces, or a thought alone that `thinking` leaves out or masks. `'refuse'`:
      such a row is malformed, and a turn that ends right behind a tool's answer
      has no loss there; `'train'`: the end of the turn alone is trained.
    inline_markup: How to treat thoughts and calls that texts have in tags:
      `<think>...</think>` and what other models call it, as `<thinking>` or
      `[THINK]`; Hermes' `<tool_call>` and `<tool_response>`, Gemma's
      `<|channel>thought`; and of the fields `thought`, `thoughts`,
      `reasoning_details`, `reasoning_text` and `thinking_blocks`. `'refuse'`: the row is malformed; `'parse'`: they are
      read like thoughts, calls and answers in fields; `'text'`: they are
      trained as written (fields are refused, and Gemma's own tags are read).
    null_arguments: How to treat nulls in tool arguments, which Hugging Face's
      datasets fill in for missing fields. `'schema'`: left out if the declared
      tool has no such parameter, or one that cannot be null, unless the
      arguments are JSON in a text; `'keep'`; `'drop'`: all nulls are left out.
    allowed_tags: Control tokens whose names texts may have: of `'<pad>'`,
      `'<eos>'`, `'<bos>'`, `'<unk>'`, `'<mask>'`, `'[multimodal]'`. A row with
      another of the vocabulary's tags in any text is malformed: `<|turn>`,
      `<|tool_call>`, `<|"|>`, ... .
    max_malformed: How many rows may be left out, as a number (int) or as a share
      of those read (float). A share allows two rows at least, and three standard
      errors more, so that no run ends by chance where malformed rows are just
      below it: of a share of 0.01, 4 in 100 rows, 19 in 1,000, 129 in 10,000.
      They are counted in each worker process, and logged.
    sampling: Whether to return the prompt and the response as text, turn tags
      included, for `g4.evals.SamplerEvaluator`: all up to the model's last
      turn, and that turn.
  """

  layout: str = 'prompt_response'

  in_prompt: kd.kontext.Key = 'prompt'
  in_response: kd.kontext.Key = 'response'
  in_messages: kd.kontext.Key | None = None
  in_system: kd.kontext.Key | None = None
  in_tools: kd.kontext.Key | None = None
  in_images: kd.kontext.Key | None = None
  in_template_kwargs: kd.kontext.Key | None = 'chat_template_kwargs'
  in_enable_thinking: kd.kontext.Key | None = 'enable_thinking'

  max_images: int = 1
  max_soft_tokens: int = 280
  patch_size: int = 16

  out_input: kd.kontext.Key = 'input'
  out_target: kd.kontext.Key = 'target'
  out_target_mask: kd.kontext.Key = 'loss_mask'
  out_images: kd.kontext.Key = 'images'

  # Required unless `sampling`.
  max_length: int | None = None  # pyrefly: ignore[bad-override]

  thinking: str = 'keep'
  loss_on: str = 'all'
  template: str = 'dialog'
  enable_thinking: bool = False
  template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  token_weights: bool = False

  def __post_init__(self):
    _tokens.check_format(self.tokenizer, name='ChatTask')
    _ = self._layout  # Checks its name.
    _malformed.check_limit(self.max_malformed, name='ChatTask')
    if self.max_length is None and not self.sampling:
      raise ValueError('ChatTask needs `max_length=`, in tokens.')
    if self.in_messages is not None and not self._layout.is_chat:
      raise ValueError(
          f'ChatTask: in_messages={self.in_messages!r} is of other layouts than'
          f' layout={self.layout!r}. Write {_layouts.chats()}.'
      )
    _ = self._style, self.rules  # Check their arguments.
    _render.check(self._style)

  def fields(self, element: Any) -> dict[str, Any]:
    """Returns the output fields of an example.

    Raises:
      ValueError: It cannot be trained on.
      KeyError: It lacks a field.
    """
    conversation = self.conversation(element)
    images = self.read_images(element, num_images=conversation.num_images)
    fields = self.fields_of(conversation, images)
    return (
        fields if images is None else fields | {self.out_images: images.input}
    )

  def fields_of(
      self,
      conversation: _conversation.Conversation,
      images: _patches.Images | None = None,
  ) -> dict[str, Any]:
    """Returns the output fields of a conversation, without its images.

    Raises:
      ValueError: It cannot be trained on.
    """
    if self.sampling:
      self._check_images(conversation, images)
      rendered = _render.render(conversation, self._style)
      return {
          self.out_input: rendered.prompt,
          self.out_target: rendered.response,
      }
    ids, weights = self.tokens_of(conversation, images)
    # Places of soft tokens (-2) have no label: their targets are 0.
    return self.pad_fields(ids[:-1], np.maximum(ids[1:], 0), weights[1:])

  def field_specs(self, max_length: int | None = None) -> dict[str, Any]:
    """Returns the shapes of the output fields of an example, without data.

    Args:
      max_length: Replaces the task's.
    """
    length = max_length or self.row_length
    mask = np.float32 if self.token_weights else np.bool_
    specs: dict[str, Any] = {
        self.out_input: _tokens.spec(length, dtype=np.int32),
        self.out_target: _tokens.spec(length, 1, dtype=np.int32),
        self.out_target_mask: _tokens.spec(length, 1, dtype=mask),
    }
    if self.in_images is not None:
      specs[self.out_images] = _patches.specs(
          max_images=self.max_images,
          max_soft_tokens=self.max_soft_tokens,
          patch_size=self.patch_size,
      )
    return specs

  def pad_fields(
      self, tokens: np.ndarray, targets: np.ndarray, weights: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Returns the output fields, padded to `max_length`."""
    mask = weights if self.token_weights else weights > 0
    length = self.row_length
    return {
        self.out_input: _tokens.pad(tokens, length),
        # The loss wants a last axis of one label per token.
        self.out_target: _tokens.pad(targets, length)[:, None],
        self.out_target_mask: _tokens.pad(mask, length)[:, None],
    }

  def tokens(self, element: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of an example of text; see `tokens_of`.

    Raises:
      ValueError: It cannot be trained on.
      KeyError: It lacks a field.
    """
    return self.tokens_of(self.conversation(element))

  def tokens_of(
      self,
      conversation: _conversation.Conversation,
      images: _patches.Images | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns all tokens and their weights, within `max_length`.

    The last token is a target only: one more than `max_length` fit.

    Args:
      conversation: The conversation.
      images: Its images, if the task reads images.

    Raises:
      ValueError: It cannot be trained on.
    """
    self._check_images(conversation, images)
    ids, weights = self.tokenize(_render.render(conversation, self._style))
    if images is not None:
      ids, weights = _patches.expand(
          ids, weights, images.counts, self.tokenizer
      )
    return _max_length.cut(
        ids,
        weights,
        max_length=self.row_length,
        truncate=self.truncate,
        in_prompt=self.in_prompt if self.layout == 'prompt_response' else None,
    )

  def tokens_or_none(
      self, element: Any
  ) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns `tokens`; None for a malformed row that may be left out."""
    return self.or_none(self.tokens, element)

  @property
  def row_length(self) -> int:
    """Length of the outputs, in tokens."""
    assert self.max_length is not None  # See `__post_init__`.
    return self.max_length

  def render(self, element: Any) -> _render.Rendered:
    """Returns the text of an example: `.text`, `.prompt`, `.response`, ..."""
    return _render.render(self.conversation(element), self._style)

  def tokenize(
      self, rendered: _render.Rendered
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns all tokens of an example and the weight of each in the loss.

    Raises:
      ValueError: No token has a weight, or one has a weight that the mask
        cannot hold.
    """
    ids, weights = _tokens.tokenize(rendered, self._checked_tokenizer)
    _loss_weights.check(weights, self._style, token_weights=self.token_weights)
    return ids, weights

  def conversation(self, element: Any) -> _conversation.Conversation:
    """Returns the conversation of a row in any layout.

    Raises:
      ValueError: A field has no content.
      KeyError: A field is missing.
    """
    _columns.warn_of_unread(element, self._unread)
    conversation = self._layout.conversation(element, self._columns)
    return self.rules.applied(conversation, thinking=self.thinking)

  def read_images(
      self, element: Any, *, num_images: int
  ) -> _patches.Images | None:
    """Returns the images of an example, None if none are read.

    Args:
      element: The example.
      num_images: How many images the conversation has places for.

    Raises:
      ValueError: The number of images differs, or an image cannot be read.
      KeyError: The field is missing.
    """
    if self.in_images is None:
      return None
    return _patches.preprocess(
        _fields.raw(element, self.in_images),
        field=self.in_images,
        num_images=num_images,
        max_images=self.max_images,
        max_soft_tokens=self.max_soft_tokens,
        patch_size=self.patch_size,
    )

  def _check_images(
      self,
      conversation: _conversation.Conversation,
      images: _patches.Images | None,
  ) -> None:
    if images is None and conversation.num_images:
      raise ValueError(
          f'ChatTask: the conversation has {conversation.num_images} images.'
          ' Set `in_images=` to the field that holds them, for a model with'
          ' `text_only=False`.'
      )

  def _check(self) -> None:
    _ = self._checked_tokenizer

  @functools.cached_property
  def _checked_tokenizer(self) -> gm.text.Tokenizer:
    """The tokenizer, if its vocabulary file has Gemma 4's turn tags."""
    _tokens.check_vocabulary(self.tokenizer, name='ChatTask')
    return self.tokenizer

  @functools.cached_property
  def _style(self) -> _render.Style:
    return _render.Style(
        thinking=self.thinking,
        loss_on=self.loss_on,
        template=self.template,
        enable_thinking=self.enable_thinking,
        template_kwargs=dict(self.template_kwargs),
        trains_silence=self.empty_answers == 'train',
    )

  @property
  def _layout(self) -> _layout.Layout:
    return _layouts.by_name(self.layout)

  @functools.cached_property
  def _columns(self) -> _columns.Columns:
    return _columns.Columns(
        in_prompt=self.in_prompt,
        in_response=self.in_response,
        in_messages=self.in_messages,
        in_system=self.in_system,
        in_tools=self.in_tools,
        in_template_kwargs=self.in_template_kwargs,
        in_enable_thinking=self.in_enable_thinking,
    )

  @functools.cached_property
  def _unread(self) -> dict[str, str]:
    """The arguments that are not set, by the column that they would read."""
    return {
        column: argument
        for column, argument in _columns.ARGUMENTS.items()
        if getattr(self, argument) is None and column not in self._in_keys
    }

  @property
  def _in_keys(self) -> list[str]:
    images = [] if self.in_images is None else [self.in_images]
    columns = self._columns
    return [*self._layout.keys(columns), *columns.of_template, *images]
