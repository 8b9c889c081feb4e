"""Thoughts and calls that a dataset has in texts, in tags of other models.

`<think>...</think>` of R1 and Qwen, and what others call it; `<tool_call>{...}
</tool_call>` and `<tool_response>...</tool_response>` of Hermes; Gemma's own
`<|channel>thought`.
"""

from collections.abc import Iterator
import dataclasses
import re
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _fields
from gemma4_lora.data.layouts import _tool_fields

Conversation = _conversation.Conversation
Message = _conversation.Message
Part = _conversation.Part
Text = _conversation.Text
Thought = _conversation.Thought
ToolCall = _conversation.ToolCall
ToolResponse = _conversation.ToolResponse

CHOICES = ('refuse', 'parse', 'text')

_CALL = '<tool_call>'
# Of thoughts, as R1, Qwen, Claude, Reflection, Magistral, Kimi and OpenThoughts
# write them. Elements may have attributes, as `<think time="3">`.
_ELEMENTS = (
    'think',
    'thinking',
    'thought',
    'reasoning',
    'scratchpad',
    'tool_call',
)
_OTHERS = {
    '[THINK]': '[/THINK]',
    '◁think▷': '◁/think▷',
    '<|begin_of_thought|>': '<|end_of_thought|>',
}
_CLOSES = {f'<{x}>': f'</{x}>' for x in _ELEMENTS} | _OTHERS
_THOUGHTS_END = frozenset(_CLOSES.values()) - {_CLOSES[_CALL]}
# Around an answer behind a thought, and nothing by themselves.
_AROUND = ('<|begin_of_solution|>', '<|end_of_solution|>')
_ATTRIBUTES = re.compile(r'\s[^<>]*(?=>)')
_TAG = re.compile(
    '|'.join(
        [
            rf'</?(?:{"|".join(_ELEMENTS)})(?:{_ATTRIBUTES.pattern})?>',
            *map(re.escape, (*_OTHERS, *_OTHERS.values(), *_AROUND)),
        ]
    )
)
_STARTS = ('<', '[THINK]', '[/THINK]', '◁')  # Most texts have none.
_RESPONSE = re.compile(r'</?tool_response>')
_ADVICE = (
    " Set `inline_markup='parse'` to read it, or 'text' to train it as it is"
    ' written.'
)


def read(conversation: Conversation, *, policy: str) -> Conversation:
  """Returns the conversation with thoughts and calls read from texts.

  Args:
    conversation: The output of a layout.
    policy: `'refuse'`, `'parse'` or `'text'`, see `ChatTask`.

  Raises:
    ValueError: There is markup and the policy refuses it; or it is broken.
  """
  marked = [
      (i, found)
      for i, message in enumerate(conversation.messages)
      if (found := _found(message))
  ]
  if not marked:
    return conversation
  messages = list(conversation.messages)
  for i, found in marked:
    message = messages[i]
    if policy == 'parse':
      messages[i] = _parsed(message)
    elif policy == 'refuse' or found.startswith('a field'):
      raise ValueError(
          f'Field {message.field!r} has {found}, which is not read.{_ADVICE}'
      )
  return dataclasses.replace(conversation, messages=tuple(messages))


def _found(message: Message) -> str:
  """Returns a description of a message's markup; `''` if there is none."""
  if message.role != _conversation.MODEL:
    return ''
  for part in message.parts:
    if isinstance(part, Thought):
      if part.found:
        return f'a field {part.found!r}'
      if part.is_inline:
        return 'a thought in its text, <|channel>thought'
    elif isinstance(part, Text) and any(x in part.text for x in _STARTS):
      tag = _TAG.search(part.text)
      if tag:
        return f'the tag {tag[0]!r} in its text'
  for answer in message.responses:
    for text in _texts(answer.response):
      tag = _RESPONSE.search(text)
      if tag:
        return f"the tag {tag[0]!r} in a tool's answer"
  return ''


def _texts(response: Any) -> tuple[str, ...]:
  return (response,) if isinstance(response, str) and '<' in response else ()


def _parsed(message: Message) -> Message:
  reader = _Reader(message)
  for i, part in enumerate(message.parts):
    if isinstance(part, Text):
      reader.read(part, is_first=i == 0)
    else:
      reader.parts.append(part)
  responses = [
      new for answer in message.responses for new in _answers(answer, message)
  ]
  return dataclasses.replace(
      message,
      parts=_one_thought(reader.parts, message.field),
      calls=(*message.calls, *reader.calls),
      responses=tuple(responses),
  )


class _Reader:
  """Collects parts and calls of one message's texts."""

  def __init__(self, message: Message):
    self._field = message.field
    self.parts: list[Part] = []
    self.calls: list[ToolCall] = []

  def read(self, part: Text, *, is_first: bool) -> None:
    """Adds the content of a text."""
    tags = list(_TAG.finditer(part.text))
    if not tags:
      self._say(part.text, part)
      return
    if is_first and _bare(tags[0]) in _THOUGHTS_END:
      # The prompt began the thought, as R1's does.
      self._think(part.text[: tags[0].start()])
      begin = tags[0].end()
      tags = tags[1:]
    else:
      begin = 0
    opened = ''  # The tag that is to be closed.
    for tag in tags:
      bare = _bare(tag)
      if opened and bare != _CLOSES[opened]:
        continue  # In a thought, or in JSON.
      inner = part.text[begin : tag.start()]
      begin = tag.end()
      if opened == _CALL:
        self._call(inner)
        opened = ''
      elif opened:
        self._think(inner)
        opened = ''
      elif bare in _CLOSES or bare in _AROUND:
        self._say(inner, part)
        opened = bare if bare in _CLOSES else ''
      else:
        self._raise(f'{tag[0]!r} without its other half', part.text)
    if opened:
      self._raise(f'{opened!r} without its other half', part.text)
    self._say(part.text[begin:], part)

  def _say(self, text: str, part: Text) -> None:
    # Newlines around the tags are the markup's.
    text = text.strip('\n') if text != part.text else text
    if not text.strip() and text != part.text:
      return
    if self.calls:
      self._raise('text behind a call of a tool', text)
    self.parts.append(dataclasses.replace(part, text=text))

  def _think(self, text: str) -> None:
    if text.strip():
      self.parts.append(Thought(text.strip('\n')))

  def _call(self, text: str) -> None:
    field = f'{self._field}: <tool_call>'
    call = _fields.from_json(text.strip(), field=field)
    calls = call if isinstance(call, list) else [call]
    self.calls += [_tool_fields.parse_call(x, field=field) for x in calls]

  def _raise(self, what: str, text: str) -> None:
    raise ValueError(f'Field {self._field!r} has {what}. Got: {text!r:.200}')


def _bare(tag: re.Match[str]) -> str:
  """Returns a tag without its attributes."""
  return _ATTRIBUTES.sub('', tag[0])


def _answers(answer: ToolResponse, message: Message) -> Iterator[ToolResponse]:
  """Yields the answers in one text of Hermes, or the answer as it is."""
  texts = _texts(answer.response)
  if not texts or not _RESPONSE.search(texts[0]):
    yield answer
    return
  pieces = _RESPONSE.split(texts[0])
  tags = _RESPONSE.findall(texts[0])
  is_broken = tags != ['<tool_response>', '</tool_response>'] * (len(tags) // 2)
  if is_broken or any(piece.strip() for piece in pieces[::2]):
    raise ValueError(
        f"Field {message.field!r} has a tool's answer that is not of"
        f' <tool_response>...</tool_response>. Got: {texts[0]!r:.200}'
    )
  for piece in pieces[1::2]:
    yield _answer(answer, piece.strip())


def _answer(answer: ToolResponse, text: str) -> ToolResponse:
  """Returns the content between the tags: Hermes' dict, or a text."""
  try:
    value = _fields.from_json(text, field='<tool_response>')
  except ValueError:
    value = text
  name = answer.given_name
  if isinstance(value, dict) and {'name', 'content'} <= set(value):
    name, value = value['name'], value['content']
  elif not isinstance(value, dict):
    value = text
  return dataclasses.replace(answer, response=value, given_name=name)


def _one_thought(parts: list[Part], field: str) -> tuple[Part, ...]:
  """Returns the parts without a repeated thought."""
  kept: list[Part] = []
  for part in parts:
    if isinstance(part, Thought) and not part.is_inline:
      part = dataclasses.replace(part, found='')
      before = [x for x in kept if isinstance(x, Thought) and not x.is_inline]
      if any(x.text.strip() == part.text.strip() for x in before):
        continue
    kept.append(part)
  return tuple(kept)
