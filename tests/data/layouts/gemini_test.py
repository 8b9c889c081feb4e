"""Tests of contents of parts, as Gemini has them."""

import dataclasses

import pytest

from gemma4_lora import g4

_COMMON = dict(tokenizer=g4.testing.Gemma4Tokenizer(), max_length=512)
_TASK = g4.data.ChatTask(layout='gemini', in_tools='tools', **_COMMON)
_MESSAGES = g4.data.ChatTask(layout='messages', in_tools='tools', **_COMMON)
_SCHEMA = {
    'type': 'OBJECT',
    'properties': {'city': {'type': 'STRING'}},
    'required': ['city'],
}
_ROW = {
    'systemInstruction': {'role': 'system', 'parts': [{'text': 'Be kind.'}]},
    'contents': [
        {'role': 'user', 'parts': [{'text': 'Weather '}, {'text': 'in Oslo?'}]},
        {
            'role': 'model',
            'parts': [
                {'text': 'Look it up.', 'thought': True},
                {'functionCall': {'name': 'f', 'args': {'city': 'Oslo'}}},
            ],
        },
        {
            'role': 'user',
            'parts': [
                {'functionResponse': {'name': 'f', 'response': {'t': 3}}}
            ],
        },
        {'role': 'model', 'parts': [{'text': 'Three degrees.'}]},
    ],
    'tools': [
        {
            'functionDeclarations': [
                {'name': 'f', 'description': 'Says it.', 'parameters': _SCHEMA}
            ]
        }
    ],
}
_SAME = {
    'messages': [
        {'role': 'system', 'content': 'Be kind.'},
        {'role': 'user', 'content': 'Weather in Oslo?'},
        {
            'role': 'assistant',
            'reasoning': 'Look it up.',
            'tool_calls': [
                {'function': {'name': 'f', 'arguments': {'city': 'Oslo'}}}
            ],
            # In a message of role tool, the template knows texts alone.
            'tool_responses': [{'name': 'f', 'response': {'t': 3}}],
        },
        {'role': 'assistant', 'content': 'Three degrees.'},
    ],
    'tools': [{'name': 'f', 'description': 'Says it.', 'parameters': _SCHEMA}],
}


def _snake(value):
  names = {
      'systemInstruction': 'system_instruction',
      'functionCall': 'function_call',
      'functionResponse': 'function_response',
      'functionDeclarations': 'function_declarations',
  }
  if isinstance(value, dict):
    return {names.get(k, k): _snake(v) for k, v in value.items()}
  return [_snake(x) for x in value] if isinstance(value, list) else value


def _filled(row):
  """As Parquet gives parts: each has all fields."""
  names = ('text', 'thought', 'functionCall', 'functionResponse', 'inlineData')
  contents = [
      dict(x, parts=[dict.fromkeys(names) | part for part in x['parts']])
      for x in row['contents']
  ]
  return dict(row, contents=contents)


@pytest.mark.parametrize('template', ['dialog', 'transformers'])
@pytest.mark.parametrize('change', [dict, _snake, _filled])
def test_what_a_row_says(change, template):
  task, same = (
      dataclasses.replace(x, template=template) for x in (_TASK, _MESSAGES)
  )
  assert task.render(change(_ROW)) == same.render(_SAME)
  assert set(task.map(change(_ROW))) == {'input', 'target', 'loss_mask'}


def test_a_system_text_and_images():
  contents = [
      {
          'role': 'user',
          'parts': [
              {'inlineData': {'mimeType': 'image/png', 'data': 'aGk='}},
              {'text': 'What?'},
          ],
      },
      {'role': 'model', 'parts': [{'text': 'A cat.'}]},
  ]
  text = _TASK.render(
      {'systemInstruction': 'Be kind.', 'contents': contents, 'tools': None}
  ).text
  assert text.startswith(
      '<|turn>system\nBe kind.<turn|>\n<|turn>user\n<|image|>What?'
  )


@pytest.mark.parametrize(
    ('part', 'message'),
    [
        ({}, r"'contents\[0\].parts\[0\]' should be one of text"),
        ({'text': 'a', 'fileData': {}}, 'should be one of text'),
        ({'executableCode': {'code': '1'}}, 'should be one of text'),
        (
            {'fileData': {'mimeType': 'video/mp4', 'fileUri': 'x'}},
            'or an image at inlineData',
        ),
        ({'functionCall': {'name': 'f'}}, "tool calls, but its role is 'user'"),
        (
            {'functionResponse': {'name': 'f', 'response': {}}},
            'the message before it calls no tool',
        ),
    ],
)
def test_parts_that_cannot_be_given_to_gemma(part, message):
  row = {'contents': [{'role': 'user', 'parts': [part]}], 'tools': None}
  with pytest.raises(ValueError, match=message):
    _TASK.map(row)


def test_other_malformed_rows():
  for row, message in (
      (dict(_ROW, contents=[{'role': 'user', 'parts': []}]), 'has no parts'),
      (
          dict(
              _ROW,
              contents=[
                  *_ROW['contents'][:2],
                  {'role': 'function', 'parts': [{'text': 'Three.'}]},
              ],
          ),
          'says more than what tools answered',
      ),
      (
          dict(
              _ROW,
              contents=[
                  *_ROW['contents'][:3],
                  {'role': 'model', 'parts': [{'text': ''}]},
              ],
          ),
          'an empty answer',
      ),
      (dict(_ROW, contents=[{'role': 'bot', 'parts': [{}]}]), "role' is 'bot'"),
      (dict(_ROW, tools=[{'googleSearch': {}}]), 'a tool that is not of func'),
  ):
    with pytest.raises(ValueError, match=message):
      _TASK.map(row)
