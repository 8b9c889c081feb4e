"""Reads a message, by the names that datasets use for its fields."""

from collections.abc import Mapping
from typing import Any

from gemma4_lora.data.conversations import _choices
from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _fields

# Fields of the model's thoughts; Hugging Face's template reads the first two.
_THOUGHT_FIELDS = ('reasoning', 'reasoning_content', 'thinking')
# Fields that are only read with `inline_markup='parse'`.
_ALL_THOUGHT_FIELDS = (
    *_THOUGHT_FIELDS,
    'thought',
    'thoughts',
    'reasoning_details',
    'reasoning_text',
    'thinking_blocks',
)
# Whether a message is trained, by the names of axolotl, ms-swift and torchtune.
_SWITCHES = {
    'train': True,
    'training': True,
    'trainable': True,
    'loss': True,
    'loss_scale': True,
    'loss_weight': True,
    'masked': False,
}
# Fields that say it in a way that is not read, and what to write.
_NOT_READ = {
    'train_detail': "pieces of a message have no switch. Set 'train' of all",
    'mask': "it may mean either. Set 'train', or 'masked'",
}
_ON_OFF = {True: True, False: False, 'true': True, 'false': False}


def role_of(
    item: dict[str, Any], key: str, roles: Mapping[str, str], *, field: str
) -> str:
  """Returns our role of a message.

  Args:
    item: The message, as the dataset has it.
    key: Its field of the role.
    roles: Our role of each name.
    field: The message's place, for errors.

  Raises:
    ValueError: The role is missing or unknown.
  """
  role = item.get(key)
  if isinstance(role, str) and role in roles:
    return roles[role]
  if role is None:
    raise ValueError(
        f'Field {field!r} has no {key!r}. Its fields are: {list(item)}. Is'
        ' `layout=` the right one?'
    )
  raise ValueError(
      f"Field '{field}.{key}' is {_fields.short(role)}, which is none of {list(roles)}."
      f'{_choices.close_match(role, roles)}'
  )


def weight_of(item: dict[str, Any], *, field: str) -> float:
  """Returns the weight of a message in the loss, 1 if it has none.

  0 if a switch says that it is not trained: `train`, `training`, `trainable`,
  `loss`, `loss_scale` or `loss_weight` is False or 0, or `masked` True.

  Raises:
    ValueError: It is not a number, or negative; a switch is not a bool; or
      there is one that is not read.
  """
  for name, advice in _NOT_READ.items():
    if not _fields.is_nothing(item.get(name)):
      raise ValueError(f"Field '{field}.{name}' is not read: {advice}.")
  weight = item.get('weight')
  if weight is None:
    weight = 1.0
  elif not isinstance(weight, int | float) or not 0 <= weight < 1e30:
    raise ValueError(
        f"Field '{field}.weight' should be a number that is not negative. Got:"
        f' {_fields.short(weight)}'
    )
  if item.keys().isdisjoint(_SWITCHES):
    return float(weight)
  for name, trained in _SWITCHES.items():
    value = item.get(name)
    if value is None:
      continue
    if isinstance(value, str):
      value = value.lower()
    if not isinstance(value, bool | int | float | str) or value not in _ON_OFF:
      raise ValueError(
          f"Field '{field}.{name}' should be true or false: whether the message"
          f" is trained. Another number is read at 'weight'. Got:"
          f' {_fields.short(value)}'
      )
    if _ON_OFF[value] != trained:
      weight = 0.0
  return float(weight)


def thoughts_of(
    item: dict[str, Any], *, role: str
) -> tuple[_conversation.Thought, ...]:
  """Returns the thought in its own field, if there is one.

  Raises:
    ValueError: It is not text; or two fields have different ones.
  """
  if role != 'model' or item.keys().isdisjoint(_ALL_THOUGHT_FIELDS):
    return ()
  found: dict[str, str] = {}
  for name in _ALL_THOUGHT_FIELDS:
    value = item.get(name)
    if not _fields.is_nothing(value):
      found[name] = _thought(value, name)
  if not found:
    return ()
  name, text = next(iter(found.items()))
  if any(other.strip() != text.strip() for other in found.values()):
    raise ValueError(
        f'Fields {list(found)} of a message have different thoughts. Keep one.'
    )
  if name in _THOUGHT_FIELDS:
    name = ''
  return (_conversation.Thought(text, found=name),)


def _thought(value: Any, name: str) -> str:
  """Returns a thought: a text, or for some fields a list of texts."""
  if name in _THOUGHT_FIELDS or not isinstance(value, list):
    return _fields.text(value, field=name)
  texts = []
  for i, entry in enumerate(value):
    if isinstance(entry, dict):  # OpenRouter's, and LiteLLM's.
      names = ('text', 'summary', 'thinking')
      entry = next((entry[k] for k in names if entry.get(k)), None)
    texts.append(_fields.text(entry, field=f'{name}[{i}]'))
  return '\n'.join(texts)


def content_of(item: dict[str, Any], key: str, *, field: str) -> Any:
  """Returns the content of a message: at `key`, or at OpenAI's `refusal`.

  Raises:
    ValueError: It has both; or it has audio, which is not read.
  """
  if not _fields.is_nothing(item.get('audio')):
    raise ValueError(
        f"Field '{field}.audio' is not read: ChatTask trains texts and images."
    )
  content, refusal = item.get(key), item.get('refusal')
  if _fields.is_nothing(refusal):
    return content
  if content:
    raise ValueError(
        f"Field {field!r} has both {key!r} and a 'refusal'. Keep one."
    )
  return refusal


def parts_of(
    content: Any, *, role: str, field: str
) -> list[_conversation.Part]:
  """Returns the parts of a text, or of a list of texts and images.

  Raises:
    ValueError: It is neither, or a text has a turn tag or half a thought.
  """
  if content is None:
    return []
  if isinstance(content, str):
    return _conversation.parse_text(content, role=role, field=field)
  if not isinstance(content, list):
    _fields.text(content, field=field)  # Raises.
  parts: list[_conversation.Part] = []
  for i, entry in enumerate(content):
    parts += _parts_of_entry(entry, i, role=role, field=f'{field}[{i}]')
  return parts


def _parts_of_entry(
    entry: Any, i: int, *, role: str, field: str
) -> list[_conversation.Part]:
  if isinstance(entry, str):
    entry = {'type': 'text', 'text': entry}
  kind = entry.get('type') if isinstance(entry, dict) else None
  if kind == 'refusal':
    text = _fields.text(entry.get('refusal'), field=f'{field}.refusal')
    return _conversation.parse_text(text, role=role, field=field, item=i)
  if kind in ('text', 'input_text', 'output_text'):
    text = _fields.text(entry.get('text'), field=f'{field}.text')
    parts = _conversation.parse_text(text, role=role, field=field, item=i)
    return parts or [_conversation.Text('', i)]  # Templates see each entry.
  if kind in ('image', 'image_url', 'input_image'):
    return [_conversation.Image(i)]
  raise ValueError(
      f"Field {field!r} should be {{'type': 'text', 'text': ...}} or"
      f" {{'type': 'image'}}. Got: {_fields.short(entry, 200)}"
  )
