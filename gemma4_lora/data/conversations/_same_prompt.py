"""Whether conversations have the same prompt, in any spelling of the row.

Preference datasets hold a prompt up to three times: in a field of its own, and
before each answer. The copies differ in white space, in fields that are None,
in ids of calls, in lists of parts, and in whether the system message is among
them.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any
import unicodedata

from gemma4_lora.data.conversations import _conversation

Conversation = _conversation.Conversation
Message = _conversation.Message

_SYSTEM, _USER = 'system', 'user'


def joined(
    prompt: Sequence[Message],
    messages: Sequence[Message],
    *,
    in_prompt: str | None,
    in_answer: str,
) -> list[Message]:
  """Returns the conversation of a prompt and its answer, the prompt once.

  Args:
    prompt: Messages of the prompt; none if the answer is a whole conversation.
    messages: The messages of the prompt and the answer, or of the answer alone.
      They repeat the prompt if the first message that is not a system message
      is the user's. Then the prompt's own messages are taken, and a system
      message from either.
    in_prompt: Field of the prompt, for errors.
    in_answer: Field of the answer, for errors.

  Raises:
    ValueError: The answer has another prompt; or there is no prompt.
  """
  answer = list(messages[len(prompt) :])
  own_system, answer_rest = _split_system(answer)
  repeats = bool(answer_rest) and answer_rest[0].role == _USER
  if not prompt:
    if not repeats and in_prompt is not None:
      raise ValueError(
          f'Field {in_prompt!r} has no prompt, and {in_answer!r} does not begin'
          ' with one.'
      )
    return answer
  if not repeats:
    if own_system:
      raise ValueError(
          f'Field {in_answer!r} has a system message behind the prompt at'
          f' {in_prompt!r}. Move it before the prompt.'
      )
    return list(messages)
  system, prompt_rest = _split_system(prompt)
  if system and own_system and not _are_same(system, own_system):
    _raise_other(system, own_system, in_prompt, in_answer)
  num_prompt = len(prompt_rest)
  if not _are_same(prompt_rest, answer_rest[:num_prompt]):
    _raise_other(prompt_rest, answer_rest[:num_prompt], in_prompt, in_answer)
  return [*(system or own_system), *prompt_rest, *answer_rest[num_prompt:]]


def shared(
    chosen: Conversation,
    rejected: Conversation,
    *,
    in_chosen: str,
    in_rejected: str,
) -> Conversation:
  """Returns the rejected conversation with the prompt of the chosen one.

  The prompt is all before the last turn of the model. Token by token it is then
  the same.

  Raises:
    ValueError: The prompts differ; or a conversation does not end with an
      answer of the model.
  """
  prompts = []
  for conversation, field in ((chosen, in_chosen), (rejected, in_rejected)):
    num_prompt = check_answered(conversation, field=field)
    prompts.append(conversation.messages[:num_prompt])
  of_chosen, of_rejected = prompts
  if not _are_same(of_chosen, of_rejected):
    _raise_other(of_chosen, of_rejected, in_chosen, in_rejected)
  answer = rejected.messages[len(of_rejected) :]
  return dataclasses.replace(rejected, messages=(*of_chosen, *answer))


def check_answered(conversation: Conversation, *, field: str) -> int:
  """Returns how many messages stand before the last turn of the model.

  Raises:
    ValueError: The conversation does not end with that turn; or an image is in
      it.
  """
  messages = conversation.messages
  others = [i for i, m in enumerate(messages) if m.role != _conversation.MODEL]
  num_prompt = others[-1] + 1 if others else 0
  if num_prompt == len(messages):
    last = f'a message of the {messages[-1].role}' if messages else 'nothing'
    raise ValueError(
        f"Field {field!r} does not end with the model's answer, but with {last}."
    )
  num_images = Conversation(messages=messages[num_prompt:]).num_images
  if num_images:
    raise ValueError(
        f'Field {field!r} has {num_images} images in its answer: the model says'
        ' no images.'
    )
  return num_prompt


def _split_system(
    messages: Sequence[Message],
) -> tuple[list[Message], list[Message]]:
  messages = list(messages)
  is_system = bool(messages) and messages[0].role == _SYSTEM
  return messages[: int(is_system)], messages[int(is_system) :]


def _are_same(a: Sequence[Message], b: Sequence[Message]) -> bool:
  return len(a) == len(b) and all(
      x == y or _normalized(x) == _normalized(y)
      for x, y in zip(a, b, strict=True)
  )


def _normalized(message: Message) -> Any:
  """Returns the content of a message, without its spelling."""
  texts = {_conversation.Text: '', _conversation.Thought: ''}
  num_images = 0
  for part in message.parts:
    if isinstance(part, _conversation.Image):
      num_images += 1
    else:
      texts[type(part)] += part.text
  return (
      message.role,
      num_images,
      *map(_without_space, texts.values()),
      [(call.name, _bare(call.arguments)) for call in message.calls],
      [_bare(answer.response) for answer in message.responses],
  )


def _without_space(text: str) -> str:
  return ''.join(unicodedata.normalize('NFC', text).split())


def _bare(value: Any) -> Any:
  """Returns a value without white space in texts and without keys of None."""
  if isinstance(value, str):
    return _without_space(value)
  if isinstance(value, dict):
    return {k: _bare(v) for k, v in value.items() if v is not None}
  if isinstance(value, list):
    return [_bare(v) for v in value]
  return value


def _raise_other(
    a: Sequence[Message], b: Sequence[Message], in_a: str | None, in_b: str
) -> None:
  i = next(
      (
          i
          for i, (x, y) in enumerate(zip(a, b, strict=False))
          if not _are_same([x], [y])
      ),
      min(len(a), len(b)),
  )
  said = [_short(messages[i : i + 1]) for messages in (a, b)]
  raise ValueError(
      f'Fields {in_a!r} and {in_b!r} have different prompts: message {i} is'
      f' {said[0]} in one and {said[1]} in the other. Answers to different'
      ' prompts cannot be compared.'
  )


def _short(messages: Sequence[Message]) -> str:
  if not messages:
    return 'missing'
  (message,) = messages
  text = ''.join(
      '<|image|>' if isinstance(part, _conversation.Image) else part.text
      for part in message.parts
  )
  calls = [f'{call.name}({call.arguments})' for call in message.calls]
  answers = [f'-> {answer.response}' for answer in message.responses]
  return f'{message.role}: {" ".join([text, *calls, *answers]).strip()!r:.120}'
