"""Conversations in OpenAI's form, made by chance, for chat templates.

Imports nothing but the standard library: `template_reference.py` makes the same
rows in its own environment.
"""

from collections.abc import Iterator
import random
from typing import Any

_WORDS = (
    'Paris',
    'the',
    ' ',
    '\n',
    '\n\n',
    'Où ',
    '🙂',
    '日本',
    '. ',
    '\t',
    '{x}',
    '{{ y }}',
    '<b>',
    "'",
    '"',
    '\\n',
    'None',
    'null',
    'a\u00a0b',
    '\u2028',
    '12',
)
_KEYS = ('a', 'B', 'c d', 'Zeta', 'zeta2', '_x', 'été', 'items', 'type', 'A2')
_TYPES = ('string', 'integer', 'number', 'boolean', 'array', 'object', 'STRING')
_NAMES = ('f', 'get_weather', 'Book2', 'x.y')


def rows(number: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
  """Yields `{'messages': ..., 'tools': ..., 'enable_thinking': ...}`."""
  rng = random.Random(seed)
  for _ in range(number):
    yield _Row(rng).made()


class _Row:
  """Makes one row."""

  def __init__(self, rng: random.Random):
    self._rng = rng
    self._num_calls = 0

  def made(self) -> dict[str, Any]:
    rng = self._rng
    messages = []
    if self._likely(0.4):
      role = rng.choice(['system', 'system', 'developer'])
      messages.append({'role': role, 'content': self._content()})
    for _ in range(rng.randint(1, 3)):
      messages += self._users()
      messages += self._turn()
    if self._likely(0.05):
      messages += self._users()
    row = {
        'messages': messages,
        'tools': None,
        'enable_thinking': self._likely(0.3),
    }
    if self._likely(0.6):
      row['tools'] = [self._tool() for _ in range(rng.randint(1, 3))]
    return row

  def _users(self) -> list[dict[str, Any]]:
    users = [
        {'role': 'user', 'content': self._content(images=True)}
        for _ in range(1 + self._likely(0.1))
    ]
    if self._likely(0.05):
      role = self._rng.choice(['system', 'developer'])
      users.append({'role': role, 'content': self._content()})
    return users

  def _turn(self) -> list[dict[str, Any]]:
    """Returns what the model says and calls until the user is next."""
    messages = []
    while self._likely(0.4) and len(messages) < 6:
      messages += self._calls()
    if not messages or self._likely(0.9):
      messages.append(self._answer())
      while self._likely(0.15):
        messages.append(self._answer())
    return messages

  def _answer(self) -> dict[str, Any]:
    return self._thinks({'role': 'assistant', 'content': self._content(word=1)})

  def _calls(self) -> list[dict[str, Any]]:
    """Returns a message that calls tools, and their answers."""
    rng = self._rng
    message: dict[str, Any] = {'role': 'assistant', 'tool_calls': []}
    says = rng.choice(['', None, 'missing', 'missing', 'text'])
    if says != 'missing':
      message['content'] = self._content(word=1) if says == 'text' else says
    has_ids = self._likely(0.8)
    for _ in range(rng.choice([1, 1, 1, 2, 3]) if has_ids else 1):
      call = {
          'type': 'function',
          'function': {'name': rng.choice(_NAMES), 'arguments': self._dict(2)},
      }
      if has_ids:
        self._num_calls += 1
        call['id'] = f'call_{self._num_calls}'
      message['tool_calls'].append(call)
    self._thinks(message)
    if self._likely(0.15):
      message['tool_responses'] = [
          {
              'name': call['function']['name'],
              'response': rng.choice([self._dict(1), self._value(1) or 0]),
          }
          for call in message['tool_calls']
      ]
      return [message]
    answers = [self._answered(call) for call in message['tool_calls']]
    if self._likely(0.2):
      rng.shuffle(answers)
    return [message, *answers]

  def _answered(self, call: dict[str, Any]) -> dict[str, Any]:
    rng = self._rng
    content = self._text()
    kind = rng.random()
    if kind < 0.01:
      content = self._dict(2)  # At which the template raises.
    elif kind < 0.15:
      content = rng.choice([3, 2.5, True])
    elif kind < 0.35:
      content = [
          {'type': 'text', 'text': self._text()}
          for _ in range(rng.randint(1, 2))
      ]
      if self._likely(0.3):
        content.insert(rng.randint(0, 1), {'type': 'image'})
    answer = {'role': 'tool', 'content': content}
    if 'id' in call:
      answer['tool_call_id'] = call['id']
    if 'id' not in call or self._likely(0.3):
      answer['name'] = call['function']['name']
    return answer

  def _thinks(self, message: dict[str, Any]) -> dict[str, Any]:
    if self._likely(0.35):
      key = self._rng.choice(['reasoning', 'reasoning_content'])
      message[key] = self._text(word=1)
    return message

  def _content(self, *, images: bool = False, word: int = 0) -> Any:
    """Returns a text, or a list of texts and images."""
    if self._likely(0.7):
      return self._text(word=word)
    texts: list[Any] = [
        {'type': 'text', 'text': self._text(word=1)}
        for _ in range(self._rng.randint(1, 3))
    ]
    if images and self._likely(0.4):
      texts.insert(self._rng.randint(0, len(texts)), {'type': 'image'})
    return texts

  def _text(self, *, word: int = 0) -> str:
    words = self._rng.choices(_WORDS, k=self._rng.randint(0, 5))
    return ''.join(words) + 'end' * word + self._rng.choice(['', '', ' ', '\n'])

  def _dict(self, depth: int) -> dict[str, Any]:
    keys = self._rng.sample(_KEYS, self._rng.randint(0, 3))
    return {key: self._value(depth) for key in keys}

  def _value(self, depth: int) -> Any:
    rng = self._rng
    kind = rng.randint(0, 9 if depth else 6)
    if kind >= 9:
      return [self._value(depth - 1) for _ in range(rng.randint(0, 3))]
    if kind >= 7:
      return self._dict(depth - 1)
    return (
        None,
        True,
        rng.randint(-9, 10 ** rng.randint(1, 20)),
        rng.choice([0.5, 1.0, 1e-7, 1e22]),
        *[self._text()] * 3,
    )[kind]

  def _tool(self) -> dict[str, Any]:
    function: dict[str, Any] = {'name': self._rng.choice(_NAMES)}
    if self._likely(0.9):
      function['description'] = self._text()
    if self._likely(0.9):
      function['parameters'] = self._schema(3, of_tool=True)
    if self._likely(0.15):
      function['response'] = {'type': self._rng.choice(['object', 'string'])}
      if self._likely(0.5):
        function['response']['description'] = self._text(word=1)
    return {'type': 'function', 'function': function}

  def _schema(self, depth: int, *, of_tool: bool = False) -> dict[str, Any]:
    rng = self._rng
    kind: Any = 'object' if of_tool else rng.choice(_TYPES)
    schema: dict[str, Any] = {}
    if self._likely(0.1) and not of_tool:
      kind = [kind.lower(), 'null']
    if self._likely(0.95):
      schema['type'] = kind
    if self._likely(0.5):
      schema['description'] = self._text()
    if self._likely(0.1):
      schema['nullable'] = self._likely(0.7)
    if self._likely(0.2):
      schema['enum'] = [self._value(1) for _ in range(2)]
    if self._likely(0.1) and not of_tool:
      schema['default'] = self._value(1)
    if kind == 'object' and self._likely(0.8) and depth:
      names = rng.sample(_KEYS, rng.randint(0, 3))
      schema['properties'] = {n: self._schema(depth - 1) for n in names}
      if self._likely(0.5):
        schema['required'] = names[:2]
      if self._likely(0.2):
        schema['additionalProperties'] = self._likely(0.5)
    elif kind == 'object' and self._likely(0.5):
      schema['additionalProperties'] = self._schema(0)
      schema['title'] = 'T'
    if kind == 'array' and self._likely(0.8):
      schema['items'] = self._schema(max(depth - 1, 0))
    return schema

  def _likely(self, share: float) -> bool:
    return self._rng.random() < share
