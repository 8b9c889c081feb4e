"""Nulls in arguments of tools: values, or fields that a dataset filled in."""

import dataclasses
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.rows import _schemas

Conversation = _conversation.Conversation

CHOICES = ('schema', 'keep', 'drop')


def dropped(conversation: Conversation, *, policy: str) -> Conversation:
  """Returns the conversation without nulls that are no values.

  Args:
    conversation: Its calls have arguments, its tools the schemas.
    policy: `'schema'`: what the schema of a declared tool does not allow is
      dropped; a tool that is not declared allows all. `'keep'`: nothing is;
      `'drop'`: all nulls are.
  """
  if policy == 'keep' or not any(
      _schemas.has_null(call.arguments)
      for message in conversation.messages
      for call in message.calls
  ):
    return conversation
  schemas = {
      tool['name']: tool.get('parameters') for tool in conversation.tools
  }

  def arguments(call: _conversation.ToolCall) -> dict[str, Any]:
    if policy == 'drop':
      return _schemas.without_nulls(call.arguments, None, None)
    if call.name not in schemas:
      return call.arguments
    schema = schemas[call.name]
    return _schemas.without_nulls(call.arguments, schema, schema)

  messages = [
      dataclasses.replace(
          message,
          calls=tuple(
              dataclasses.replace(call, arguments=arguments(call))
              for call in message.calls
          ),
      )
      if message.calls
      else message
      for message in conversation.messages
  ]
  return dataclasses.replace(conversation, messages=tuple(messages))
