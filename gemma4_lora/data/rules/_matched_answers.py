"""Matches tool calls and their answers, and checks that all match.

Google's template writes answers after the calls, under the calls' names;
servers run all calls before the model continues.
"""

import dataclasses

from gemma4_lora.data.conversations import _conversation

Conversation = _conversation.Conversation
Message = _conversation.Message
ToolResponse = _conversation.ToolResponse


def matched(conversation: Conversation) -> Conversation:
  """Returns the conversation with the tool's name at each answer.

  An answer with an id belongs to the call of that id, for any name, as in
  Google's template. An answer with only a name belongs to the first call of
  that name without an answer; any other answer to the first call without one.
  Each call has one answer. Calls of the last message may have none: the model
  is trained to make them.

  Raises:
    ValueError: Calls and answers do not match.
  """
  messages = list(conversation.messages)
  is_changed = False
  for i, message in enumerate(messages):
    if not message.calls and not message.responses:
      continue
    is_last = i + 1 == len(messages)
    answers = _matched(message, following=None if is_last else messages[i + 1])
    if answers != message.responses:
      messages[i] = dataclasses.replace(message, responses=answers)
      is_changed = True
  if not is_changed:
    return conversation
  return dataclasses.replace(conversation, messages=tuple(messages))


def _matched(
    message: Message, *, following: Message | None
) -> tuple[ToolResponse, ...]:
  """Returns the answers of a message's calls, with their names."""
  field, calls = message.field, message.calls
  ids = [str(call.id) for call in calls if call.id]
  if len(set(ids)) < len(ids):
    raise ValueError(
        f'Field {field!r} has several calls of one id: {ids}. Each call needs an'
        ' id of its own, or none has one.'
    )
  waiting = list(range(len(calls)))
  answers = []
  for answer in message.responses:
    i = _answered(answer, message, waiting)
    waiting.remove(i)
    answers.append(dataclasses.replace(answer, name=calls[i].name))
  if waiting and (message.responses or following is not None):
    names = [calls[i].name for i in waiting]
    behind = ''
    if following is not None and not message.responses:
      behind = f' Behind it the {following.role} speaks.'
    raise ValueError(
        f'Field {field!r} has calls without an answer: {names}.{behind} Add the'
        " tool's answer, or remove the call."
    )
  return tuple(answers)


def _answered(
    answer: ToolResponse, message: Message, waiting: list[int]
) -> int:
  """Returns the call that is answered."""
  field, calls = message.field, message.calls
  if answer.call_id:
    by_id = {str(c.id): i for i, c in enumerate(calls) if c.id}
    i = by_id.get(str(answer.call_id))
    if i is None:
      raise ValueError(
          f'Field {field!r} has an answer to an unknown call, tool_call_id='
          f'{answer.call_id!r}. Its calls have the ids: {list(by_id)}.'
      )
    if i not in waiting:
      raise ValueError(
          f'Field {field!r} has several answers to one call, tool_call_id='
          f'{answer.call_id!r}.'
      )
    return i
  if answer.given_name:
    for i in waiting:
      if calls[i].name == answer.given_name:
        return i
    names = [call.name for call in calls]
    raise ValueError(
        f"Field {field!r} has an answer of another tool, 'name'="
        f'{answer.given_name!r}. Calls without an answer are of:'
        f' {[names[i] for i in waiting]}.'
    )
  if not waiting:
    raise ValueError(
        f'Field {field!r} has more answers of tools than calls: {len(calls)}'
        ' calls.'
    )
  return waiting[0]
