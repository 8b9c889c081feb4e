"""Rows of conversations by chance: spelled as datasets do, and damaged.

What a row is to become is written out here a second time, by hand, in the turns
that `dialog` writes.
"""

import dataclasses
import json
import random
from typing import Any

import numpy as np

_WORDS = ('Où', 'is', 'the', '🙂', 'hôtel', '<b>', 'a|b', '"', '{x}', '\n', '3')
_TOOLS = {
    'f': (
        {'type': 'object', 'properties': {'x': {'type': 'integer'}}},
        '{parameters:{properties:{x:{type:<|"|>INTEGER<|"|>}},'
        'type:<|"|>OBJECT<|"|>}}',
    ),
    'g': (None, '{}'),
}


@dataclasses.dataclass(kw_only=True)
class Turn:
  """What one side says at a time."""

  role: str
  text: str = ''
  thought: str | None = None
  calls: list[tuple[str, int]] = dataclasses.field(default_factory=list)
  answers: list[str] = dataclasses.field(default_factory=list)
  is_trained: bool = True


@dataclasses.dataclass(kw_only=True)
class Case:
  """A row, and what becomes of it.

  Attributes:
    task: Arguments of `ChatTask`.
    row: The row.
    text: What is rendered; None for a row that is malformed.
    trained: Its part with a loss.
    damage: How it was damaged, for messages.
  """

  task: dict[str, Any]
  row: Any
  text: str | None = None
  trained: str = ''
  damage: str = ''


def valid(rng: random.Random) -> Case:
  """Returns a row that is trained."""
  turns = _turns(rng)
  tools = rng.choice([[], ['f'], ['f', 'g']])
  system = _text(rng) if rng.random() < 0.3 else None
  text, trained = _rendered(turns, tools, system)
  layout = rng.choice(['messages', 'messages', 'sharegpt'])
  task = dict(layout=layout, in_tools='tools', in_system='system')
  row = _spelled(rng, turns, layout)
  row['system'] = rng.choice([None, '', b'']) if system is None else system
  row['tools'] = _declared(rng, tools)
  return Case(task=task, row=row, text=text, trained=trained)


def damaged(rng: random.Random) -> Case:
  """Returns a row that is malformed, whatever a task's policies are."""
  case = valid(rng)
  key = 'messages' if case.task['layout'] == 'messages' else 'conversations'
  while not isinstance(case.row[key], list):
    case = valid(rng)
    key = 'messages' if case.task['layout'] == 'messages' else 'conversations'
  names = ('role', 'content') if key == 'messages' else ('from', 'value')
  name = rng.choice(sorted(_DAMAGES))
  messages = [dict(message) for message in case.row[key]]
  row = dict(case.row, **{key: messages})
  row = _DAMAGES[name](rng, row, messages, *names)
  return Case(task=case.task, row=row, damage=name)


def mutated(rng: random.Random) -> Case:
  """Returns a row in which anything was put somewhere: malformed, or not."""
  case = valid(rng)
  row = json.loads(json.dumps(case.row, default=_as_json))
  for _ in range(rng.randint(1, 3)):
    row = _put(rng, row, rng.randint(0, 5))
  return Case(task=case.task, row=row, damage='mutated')


def _text(rng: random.Random) -> str:
  return ' '.join(rng.choices(_WORDS, k=rng.randint(1, 5))) + '.'


def _turns(rng: random.Random) -> list[Turn]:
  turns: list[Turn] = []
  for _ in range(rng.randint(1, 3)):
    turns.append(Turn(role='user', text=_text(rng)))
    while rng.random() < 0.3:  # Calls, and what comes of them.
      calls = [
          (rng.choice('fg'), rng.randint(-3, 9))
          for _ in range(rng.randint(1, 3))
      ]
      turns.append(
          Turn(
              role='model',
              text=rng.choice(['', _text(rng)]),
              calls=calls,
              answers=[_text(rng) for _ in calls],
          )
      )
    turns.append(Turn(role='model', text=_text(rng)))
  for turn in turns:
    if turn.role == 'model':
      turn.thought = _text(rng) if rng.random() < 0.2 else None
      turn.is_trained = rng.random() < 0.8
  if rng.random() < 0.1:
    turns[-1].calls = [('f', 1)]
  turns[-1].is_trained = True
  return turns


def _rendered(
    turns: list[Turn], tools: list[str], system: str | None
) -> tuple[str, str]:
  """Returns all text, and that which is trained."""
  pieces: list[tuple[str, bool]] = []
  if system is not None or tools:
    declared = ''.join(
        f'<|tool>declaration:{name}{_TOOLS[name][1]}<tool|>' for name in tools
    )
    pieces.append((f'<|turn>system\n{system or ""}{declared}<turn|>\n', False))
  for i, turn in enumerate(turns):
    is_trained = turn.role == 'model' and turn.is_trained
    before = turns[i - 1].role if i else None
    after = turns[i + 1].role if i + 1 < len(turns) else None
    if before != turn.role:
      pieces.append((f'<|turn>{turn.role}\n', False))
    said = ''
    if turn.thought is not None:
      said = f'<|channel>thought\n{turn.thought}<channel|>'
    said += turn.text
    for name, x in turn.calls:
      said += f'<|tool_call>call:{name}{{x:{x}}}<tool_call|>'
    pieces.append((said, is_trained))
    for j, answer in enumerate(turn.answers):
      pieces.append(('<|tool_response>', is_trained and not j))
      name = turn.calls[j][0]
      value = f'{{value:<|"|>{answer}<|"|>}}'
      pieces.append((f'response:{name}{value}<tool_response|>', False))
    if after is None and turn.calls and not turn.answers:
      pieces.append(('<|tool_response>', is_trained))
    elif after != turn.role:
      pieces.append(('<turn|>', is_trained))
      pieces.append(('' if after is None else '\n', False))
  return (
      ''.join(text for text, _ in pieces),
      ''.join(text for text, is_trained in pieces if is_trained),
  )


def _spelled(
    rng: random.Random, turns: list[Turn], layout: str
) -> dict[str, Any]:
  """Returns the turns as a dataset of the layout may have them."""
  messages = []
  for number, turn in enumerate(turns):
    if layout == 'messages':
      messages += _as_messages(rng, turn, number)
    else:
      messages += _as_sharegpt(rng, turn)
  if rng.random() < 0.3:  # As Arrow: each has the fields of all.
    keys = {key: None for message in messages for key in message}
    messages = [{**keys, **message} for message in messages]
  return {
      'messages'
      if layout == 'messages'
      else 'conversations': rng.choice(
          [lambda x: x, tuple, json.dumps, lambda x: np.array(x, object)]
      )(messages)
  }


def _trained(rng: random.Random, turn: Turn) -> dict[str, Any]:
  """Returns a field that says whether a message is trained."""
  if turn.role != 'model':
    return {}
  if turn.is_trained:
    return rng.choice(
        [{}, {}, {'weight': 1}, {'train': True}, {'masked': False}, {'loss': 1}]
    )
  return rng.choice(
      [
          {'weight': 0},
          {'train': False},
          {'training': False},
          {'loss': False},
          {'masked': True},
      ]
  )


def _as_messages(
    rng: random.Random, turn: Turn, number: int
) -> list[dict[str, Any]]:
  role = 'user' if turn.role == 'user' else rng.choice(['assistant', 'model'])
  content: Any = turn.text
  fields = _trained(rng, turn)
  if turn.thought is not None:
    name = rng.choice(['reasoning', 'reasoning_content', 'thinking'])
    fields[name] = turn.thought
  if turn.calls and not turn.text:
    content = rng.choice(['', None, []])
  elif rng.random() < 0.2:
    content = [{'type': 'text', 'text': turn.text, 'image': None}]
  elif rng.random() < 0.1 and turn.role == 'model':
    fields['refusal'] = turn.text
    content = None
  has_ids = rng.random() < 0.5
  calls = []
  for i, (name, x) in enumerate(turn.calls):
    arguments = {'x': x}
    arguments = rng.choice([arguments, json.dumps(arguments)])
    call: dict[str, Any] = {'name': name, 'arguments': arguments}
    if has_ids or rng.random() < 0.5:
      call = {'type': 'function', 'function': call}
    if has_ids:
      call['id'] = f'{number}-{i}'
    calls.append(call)
  answers = []
  for i, answer in enumerate(turn.answers):
    message: dict[str, Any] = {'role': 'tool', 'content': answer}
    if rng.random() < 0.2:
      message['content'] = [{'type': 'text', 'text': answer}]
    if has_ids:
      message['tool_call_id'] = f'{number}-{i}'
    elif len(set(turn.calls)) == 1 and rng.random() < 0.3:
      message['name'] = turn.calls[i][0]
    answers.append(message)
  if len(calls) == 1 and not has_ids and rng.random() < 0.3:
    fields['function_call'] = {
        'name': turn.calls[0][0],
        'arguments': json.dumps({'x': turn.calls[0][1]}),
    }
    for message in answers:
      message |= {'role': 'function', 'name': turn.calls[0][0]}
  elif calls:
    fields['tool_calls'] = calls
  return [{'role': role, 'content': content, **fields}, *answers]


def _as_sharegpt(rng: random.Random, turn: Turn) -> list[dict[str, Any]]:
  if turn.role == 'user':
    return [{'from': rng.choice(['human', 'user']), 'value': turn.text}]
  fields = _trained(rng, turn)
  said: dict[str, Any] = {'from': 'gpt', 'value': turn.text, **fields}
  if turn.thought is not None:
    said['reasoning'] = turn.thought
  calls = [{'name': name, 'arguments': {'x': x}} for name, x in turn.calls]
  messages = [said]
  if calls and (turn.text or turn.thought is not None or rng.random() < 0.5):
    said['tool_calls'] = calls
  elif calls:
    together = [json.dumps(calls)]
    values = rng.choice([together, [json.dumps(call) for call in calls]])
    messages = [
        {'from': 'function_call', 'value': value, **fields} for value in values
    ]
  messages += [{'from': 'observation', 'value': x} for x in turn.answers]
  return messages


def _declared(rng: random.Random, tools: list[str]) -> Any:
  declared: list[dict[str, Any]] = []
  for name in tools:
    tool = {'name': name}
    if _TOOLS[name][0] is not None:
      tool['parameters'] = _TOOLS[name][0]
    declared.append(
        rng.choice(
            [
                tool,
                {'type': 'function', 'function': tool},
                dict(tool, function=None),
            ]
        )
    )
  if not declared:
    return rng.choice([None, [], ''])
  return rng.choice([declared, json.dumps(declared)])


def _as_json(value: Any) -> Any:
  if isinstance(value, np.ndarray):
    return value.tolist()
  return value.decode() if isinstance(value, bytes) else str(value)


_TAGS = ('<|turn>', '<turn|>', '<|tool_call>', '<|"|>', '<eos>', '<|channel>')
_LONE = '\udc00'


def _any(messages: list[dict], rng: random.Random, *roles: str) -> dict:
  kinds = [m for m in messages if (m.get('role') or m.get('from')) in roles]
  return rng.choice(kinds or messages)


_MODEL = ('assistant', 'model', 'gpt')


def _damage(change: Any) -> Any:
  """Makes a damage of a function that changes the messages in place."""

  def damage(rng, row, messages, role, content):
    change(rng, messages, role, content)
    return row

  return damage


def _set(key: str, value: Any) -> Any:
  def change(rng, messages, role, content):
    del role
    name = content if key == 'content' else key
    made = value(rng) if callable(value) else value
    _any(messages, rng, *_MODEL)[name] = made

  return _damage(change)


def _nested(rng: random.Random) -> Any:
  del rng
  value: Any = 'a'
  for _ in range(5000):
    value = [value]
  return value


_DAMAGES = {
    'no messages': lambda rng, row, *_: {
        k: v for k, v in row.items() if k in ('system', 'tools')
    },
    'no row': lambda rng, *_: rng.choice([None, 3, 'a', [], {}]),
    'empty list': lambda rng, row, *_: row
    | {k: [] for k in row if k not in ('system', 'tools')},
    'tag in a text': _set('content', lambda rng: f'a {rng.choice(_TAGS)} b'),
    'surrogate': _set('content', f'a {_LONE}'),
    'bytes': _set('content', b'a\xff'),
    'number': _set('content', 3.5),
    'dict': _set('content', {'a': 1}),
    'deep': _set('content', _nested),
    'unknown part': _set('content', [{'type': 'video'}]),
    'no part': _set('content', [None]),
    'think': _set('content', '<think>a</think>b'),
    'half a thought': _set('content', 'a</think>'),
    'thoughts': _set('thoughts', 'a'),
    'audio': _set('audio', {'id': 'a'}),
    'weight': _set('weight', lambda rng: rng.choice([-1, 'a', float('nan')])),
    'switch': _set('train', lambda rng: rng.choice(['no', 0.5, {}])),
    'reasoning': _set(
        'reasoning', lambda rng: rng.choice([3, ['a'], {'a': 1}])
    ),
    'tag in a thought': _set('reasoning', lambda rng: rng.choice(_TAGS)),
    'no function': _set('tool_calls', [{'function': None}]),
    'calls of none': _set(
        'tool_calls', lambda rng: rng.choice([[None], 3, [3]])
    ),
    'arguments': _set(
        'tool_calls',
        lambda rng: [
            {'name': 'f', 'arguments': rng.choice(['[1]', '{', [1], 3, True])}
        ],
    ),
    'tag in arguments': _set(
        'tool_calls',
        lambda rng: [
            {'name': 'f', 'arguments': {'a': {'b': [rng.choice(_TAGS)]}}}
        ],
    ),
    'tag in a name': _set(
        'tool_calls', lambda rng: [{'name': f'f{rng.choice(_TAGS)}'}]
    ),
    'role': _damage(
        lambda rng, messages, role, content: rng.choice(messages).update(
            {role: rng.choice(['usr', None, 3, [], {}])}
        )
    ),
    'empty answer': _damage(
        lambda rng, messages, role, content: messages.append(
            {role: 'user', content: 'a'}
        )
        or messages.append(
            {role: 'model', content: rng.choice(['', ' ', None])}
        )
    ),
    'answer to nothing': _damage(
        lambda rng, messages, role, content: messages.insert(
            0, {role: 'tool', content: 'a'}
        )
    ),
    'a second answer': _damage(
        lambda rng, messages, role, content: messages.extend(
            [{role: 'user', content: 'a'}, {role: 'model', content: 'b'}]
        )
        or messages.append({role: 'tool', content: 'a', 'tool_call_id': 'zz'})
    ),
    'no answer': _damage(
        lambda rng, messages, role, content: messages.extend(
            [
                {role: 'model', content: 'b', 'tool_calls': [{'name': 'f'}]},
                {role: 'user', content: 'a'},
                {role: 'model', content: 'b'},
            ]
        )
    ),
    'system': lambda rng, row, *_: dict(row, system=rng.choice([3, [], _LONE])),
    'tools': lambda rng, row, *_: dict(
        row,
        tools=rng.choice(
            [
                3,
                '{',
                [{'name': ''}],
                [{'function': None}],
                [{'name': f'f{rng.choice(_TAGS)}'}],
                [{'name': 'f', 'description': rng.choice(_TAGS)}],
                [{'name': 'f', 'parameters': {'properties': {'q': 3}}}],
                [{'name': 'f', 'parameters': 3}],
            ]
        ),
    ),
}

_JUNK = (
    None,
    True,
    0,
    -1,
    2.5,
    float('nan'),
    10**400,
    '',
    'a',
    '{',
    '[]',
    'null',
    b'\xff',
    b'a',
    [],
    [None],
    [[]],
    {},
    {'type': 'text'},
    {'a': None},
    {'function': None},
    _LONE,
    '\0',
    '<turn|>',
    '<think>',
    np.zeros(3),
    np.array(None),
    object(),
    set(),
    float('inf'),
    ('a',),
)


def _put(rng: random.Random, value: Any, depth: int) -> Any:
  """Returns the value with junk somewhere in it."""
  if isinstance(value, dict) and value and depth:
    key = rng.choice(sorted(value))
    kind = rng.random()
    if kind < 0.1:
      return {k: v for k, v in value.items() if k != key}
    if kind < 0.2:
      names = ('content', 'tool_calls', 'name', 'weight', 'thoughts', 'role')
      return value | {rng.choice(names): rng.choice(_JUNK)}
    return value | {key: _put(rng, value[key], depth - 1)}
  if isinstance(value, list) and value and depth:
    i = rng.randrange(len(value))
    kind = rng.random()
    if kind < 0.1:
      return value[:i] + value[i + 1 :]
    if kind < 0.2:
      return value[: i + 1] + value[i:]
    return [*value[:i], _put(rng, value[i], depth - 1), *value[i + 1 :]]
  return rng.choice(_JUNK)
