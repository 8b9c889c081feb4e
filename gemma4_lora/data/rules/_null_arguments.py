"""Nulls in arguments and answers: values, or filled in by a dataset."""

import dataclasses
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.rows import _schemas

Conversation = _conversation.Conversation

CHOICES = ('schema', 'keep', 'drop')


def dropped(conversation: Conversation, *, policy: str) -> Conversation:
  """Returns the conversation without nulls that are not values.

  Args:
    conversation: Its calls have arguments, its tools the schemas.
    policy: `'schema'`: nulls that the schema of a declared tool does not allow
      are dropped, unless the arguments are JSON in a text, where nothing is
      filled in. A tool that is not declared allows all nulls; so does an answer
      that is not declared. `'keep'`: nothing is dropped; `'drop'`: all nulls
      are.
  """
  if policy == 'keep' or not any(map(_has_null, conversation.messages)):
    return conversation
  tools = {tool['name']: tool for tool in conversation.tools}

  def without(value: Any, name: str, key: str) -> Any:
    if policy == 'drop':
      return _schemas.without_nulls(value, None, None)
    if name not in tools or key == 'response' and key not in tools[name]:
      return value
    schema = tools[name].get(key)
    return _schemas.without_nulls(value, schema, schema)

  messages = []
  for message in conversation.messages:
    if _has_null(message):
      calls = [
          call
          if call.is_json and policy == 'schema'
          else dataclasses.replace(
              call, arguments=without(call.arguments, call.name, 'parameters')
          )
          for call in message.calls
      ]
      answers = [
          dataclasses.replace(
              answer,
              response=without(answer.response, answer.name, 'response'),
          )
          for answer in message.responses
      ]
      message = dataclasses.replace(
          message, calls=tuple(calls), responses=tuple(answers)
      )
    messages.append(message)
  return dataclasses.replace(conversation, messages=tuple(messages))


def _has_null(message: _conversation.Message) -> bool:
  return any(
      _schemas.has_null(call.arguments) for call in message.calls
  ) or any(_schemas.has_null(answer.response) for answer in message.responses)
