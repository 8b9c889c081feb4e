"""What a message says, by the names that datasets use for its fields."""

from collections.abc import Mapping
from typing import Any

from gemma4_lora.data.conversations import _choices
from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _fields

# Where datasets keep what the model thought; the first two are those that
# Hugging Face's template reads.
_THOUGHT_FIELDS = ('reasoning', 'reasoning_content', 'thinking')


def role_of(
    item: dict[str, Any], key: str, roles: Mapping[str, str], *, field: str
) -> str:
  """Returns our role of a message.

  Args:
    item: The message, as the dataset has it.
    key: Its field of the role.
    roles: Our role of each name.
    field: Where the message stands, for errors.

  Raises:
    ValueError: The role is missing or unknown.
  """
  role = item.get(key)
  if role in roles:
    return roles[role]
  if role is None:
    raise ValueError(
        f'Field {field!r} has no {key!r}. Its fields are: {list(item)}. Is'
        ' `layout=` the right one?'
    )
  raise ValueError(
      f"Field '{field}.{key}' is {role!r}, which is none of {list(roles)}."
      f'{_choices.close_match(role, roles)}'
  )


def weight_of(item: dict[str, Any], *, field: str) -> float:
  """Returns the weight of a message in the loss, 1 if it has none.

  Raises:
    ValueError: It is no number, or negative.
  """
  weight = item.get('weight')
  if weight is None:
    return 1.0
  if not isinstance(weight, int | float) or not 0 <= weight < float('inf'):
    raise ValueError(
        f"Field '{field}.weight' should be a number that is not negative. Got:"
        f' {weight!r}'
    )
  return float(weight)


def thoughts_of(
    item: dict[str, Any], *, role: str
) -> tuple[_conversation.Thought, ...]:
  """Returns the thought that stands in a field of its own, if there is one.

  Raises:
    ValueError: It is not text.
  """
  if role != 'model':
    return ()
  for name in _THOUGHT_FIELDS:
    if item.get(name):
      thought = _fields.text(item[name], field=name)
      return (_conversation.Thought(thought),)
  return ()


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
  if kind in ('text', 'input_text', 'output_text'):
    text = _fields.text(entry.get('text'), field=f'{field}.text')
    return _conversation.parse_text(text, role=role, field=field, item=i)
  if kind in ('image', 'image_url', 'input_image'):
    return [_conversation.Image(i)]
  raise ValueError(
      f"Field {field!r} should be {{'type': 'text', 'text': ...}} or"
      f" {{'type': 'image'}}. Got: {entry!r:.200}"
  )
