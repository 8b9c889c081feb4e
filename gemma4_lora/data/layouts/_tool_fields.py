"""Tools in the fields of a row: declared, called and answered."""

import dataclasses
from typing import Any

from gemma4_lora.data.conversations import _conversation
from gemma4_lora.data.layouts import _fields

Message = _conversation.Message

# Our field of each schema, and MCP's.
_SCHEMAS = {'parameters': 'inputSchema', 'response': 'outputSchema'}


def parse_tools(tools: Any) -> tuple[dict[str, Any], ...]:
  """Returns each declared tool as `{'name', 'description', 'parameters', ...}`.

  Args:
    tools: OpenAI's `{'type': 'function', 'function': {...}}`, the inner dict
      alone, or MCP's with `inputSchema`; that as JSON; or nothing.

  Raises:
    ValueError: They are something else.
  """
  if tools is None or (isinstance(tools, str) and not tools.strip()):
    return ()
  return tuple(
      _parse_tool(tool, field=f'tools[{i}]')
      for i, tool in enumerate(_fields.dicts(tools, field='tools'))
  )


def parse_call(call: Any, *, field: str) -> _conversation.ToolCall:
  """Returns a call, its arguments read from JSON if they are text.

  Raises:
    ValueError: It has no name, or its arguments are no dict.
  """
  function = call.get('function', call) if isinstance(call, dict) else {}
  name = function.get('name')
  if not isinstance(name, str):
    raise ValueError(
        f"Field {field!r} should be a call, {{'function': {{'name': ...,"
        f" 'arguments': {{...}}}}}}. Got: {call!r:.200}"
    )
  arguments = function.get('arguments') or {}
  if isinstance(arguments, str):
    arguments = _fields.from_json(arguments, field=f'{field}.arguments')
  if not isinstance(arguments, dict):
    raise ValueError(
        f"Field '{field}.arguments' should be a dict. Got: {arguments!r:.200}"
    )
  return _conversation.ToolCall(name, arguments, id=call.get('id'))


def add_response(
    item: dict[str, Any], content: Any, *, field: str, before: list[Message]
) -> None:
  """Adds a tool's answer to the message that called it, the last before.

  Raises:
    ValueError: That message calls no tool, or several and the answer does not
      name its own.
  """
  if not before or not before[-1].calls:
    raise ValueError(
        f"Field {field!r} is a tool's answer, but the message before it calls"
        ' no tool.'
    )
  message = before[-1]
  name = item.get('name') or _called(item.get('tool_call_id'), message)
  if name is None and len(message.calls) > len(message.responses):
    # Answers come in the order of the calls.
    name = message.calls[len(message.responses)].name
  if name is None:
    raise ValueError(
        f"Field {field!r} is a tool's answer, and does not say of which: give"
        " it a 'name'."
    )
  response = _conversation.ToolResponse(str(name), _joined_texts(content))
  before[-1] = dataclasses.replace(
      message, responses=(*message.responses, response)
  )


def _parse_tool(tool: dict[str, Any], *, field: str) -> dict[str, Any]:
  tool = tool.get('function', tool)
  if isinstance(tool, str):
    tool = _fields.from_json(tool, field=f'{field}.function')
  tool = {k: v for k, v in tool.items() if v is not None and k != 'type'}
  if not isinstance(tool.get('name'), str):
    raise ValueError(f"Field '{field}' has no 'name': {tool!r:.200}")
  for ours, mcp in _SCHEMAS.items():
    if mcp in tool:
      tool[ours] = tool.pop(mcp)
    if isinstance(tool.get(ours), str):
      tool[ours] = _fields.from_json(tool[ours], field=f'{field}.{ours}')
  return tool


def _called(call_id: Any, message: Message) -> str | None:
  names = {call.id: call.name for call in message.calls if call.id is not None}
  return names.get(call_id)


def _joined_texts(content: Any) -> Any:
  """Returns the text of a list of texts, and anything else as it is."""
  if isinstance(content, list) and all(
      isinstance(x, dict) and x.get('type') == 'text' for x in content
  ):
    return ''.join(x.get('text') or '' for x in content)
  return content
