"""Tests of thoughts and calls in texts, in the tags of others."""

import dataclasses

import pytest

from gemma4_lora import g4

_REFUSE = g4.data.ChatTask(
    layout='messages', tokenizer=g4.testing.Gemma4Tokenizer(), max_length=512
)
_PARSE = dataclasses.replace(_REFUSE, inline_markup='parse')
_TEXT = dataclasses.replace(_REFUSE, inline_markup='text')


def _row(*messages):
  return {'messages': [{'role': 'user', 'content': 'Go.'}, *messages]}


def _say(content, **kwargs):
  return {'role': 'assistant', 'content': content, **kwargs}


_CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
_F = {'function': {'name': 'f', 'arguments': {'x': 1}}}


@pytest.mark.parametrize(
    'written, read',
    [
        (_say('<think>\nHm.\n</think>\n\nYes.'), _say('Yes.', reasoning='Hm.')),
        (_say('<think>Hm.</think>Yes.'), _say('Yes.', reasoning='Hm.')),
        # The prompt began the thought.
        (_say('Hm.\n</think>\n\nYes.'), _say('Yes.', reasoning='Hm.')),
        (_say('<think>\n\n</think>\n\nYes.'), _say('Yes.')),
        *(
            (_say(f'{begin}Hm.{end}\n\nYes.'), _say('Yes.', reasoning='Hm.'))
            for begin, end in (
                ('<thinking>', '</thinking>'),
                ('<thought>', '</thought>'),
                ('<reasoning>', '</reasoning >'),
                ('<think time="3">', '</think>'),
                ('', '</thinking>'),
                ('[THINK]', '[/THINK]'),
                ('◁think▷', '◁/think▷'),
                ('<|begin_of_thought|>', '<|end_of_thought|>'),
            )
        ),
        (
            _say(
                '<|begin_of_thought|>\n\nHm.\n\n<|end_of_thought|>\n\n'
                '<|begin_of_solution|>\n\nYes.\n\n<|end_of_solution|>'
            ),
            _say('Yes.', reasoning='Hm.'),
        ),
        (
            _say('<thinking>a </think> b</thinking>Yes.'),
            _say('Yes.', reasoning='a </think> b'),
        ),
        (
            _say('<think>a <tool_call> b</think>Yes.'),
            _say('Yes.', reasoning='a <tool_call> b'),
        ),
        (_say('Yes.', thought='Hm.'), _say('Yes.', reasoning='Hm.')),
        (
            _say('Yes.', thoughts=['Hm.', 'So.']),
            _say('Yes.', reasoning='Hm.\nSo.'),
        ),
        (
            _say(
                'Yes.',
                reasoning_details=[{'type': 'reasoning.text', 'text': 'Hm.'}],
            ),
            _say('Yes.', reasoning='Hm.'),
        ),
        (
            _say('<think>Hm.</think>Yes.', reasoning_content='Hm.\n'),
            _say('Yes.', reasoning='Hm.\n'),
        ),
        (_say(_CALL), _say('', tool_calls=[_F])),
        (_say(f'I go.\n{_CALL}\n{_CALL}'), _say('I go.', tool_calls=[_F, _F])),
        (
            _say(f'<think>Hm.</think>\n{_CALL}'),
            _say('', reasoning='Hm.', tool_calls=[_F]),
        ),
        (
            _say([{'type': 'text', 'text': '<think>Hm.</think>Yes.'}]),
            _say([{'type': 'text', 'text': 'Yes.'}], reasoning='Hm.'),
        ),
    ],
)
def test_markup_is_read_as_fields_are_on_demand(written, read):
  assert _PARSE.render(_row(written)) == _PARSE.render(_row(read))
  with pytest.raises(
      ValueError, match=r"messages\[1\]' has .*`inline_markup='p"
  ):
    _REFUSE.render(_row(written))


def test_gemmas_own_tags_are_read_on_demand():
  row = _row(_say('<|channel>thought\nHm.\n<channel|>Yes.'))
  with pytest.raises(ValueError, match="thought in its text.*inline_markup='p"):
    _REFUSE.render(row)
  for task in (_PARSE, _TEXT):
    assert task.render(row).trained == (
        '<|channel>thought\nHm.\n<channel|>Yes.<turn|>'
    )
    stripped = dataclasses.replace(task, thinking='strip_all')
    assert stripped.render(row).trained == 'Yes.<turn|>'


def test_markup_is_trained_as_written_on_demand():
  for text in ('<think>Hm.</think>Yes.', _CALL, 'a </think>', '[THINK]a'):
    assert _TEXT.render(_row(_say(text))).trained == f'{text}<turn|>'
  with pytest.raises(ValueError, match="a field 'thought', which is not read"):
    _TEXT.render(_row(_say('Yes.', thought='Hm.')))


def test_what_is_no_markup_is_text():
  text = 'I [think] <thoughts> of <b>those</b> <thinkers>.'
  assert _REFUSE.render(_row(_say(text))).trained == f'{text}<turn|>'


def test_a_users_text_is_as_it_is():
  row = {'messages': [{'role': 'user', 'content': '<think> <tool_call>?'}]}
  row['messages'].append(_say('Tags.'))
  assert '\n<think> <tool_call>?<turn|>' in _REFUSE.render(row).text


def _answers(*contents):
  calls = _say(_CALL + _CALL)
  tools = [{'role': 'tool', 'content': content} for content in contents]
  return _row(calls, *tools, _say('Done.'))


def test_hermes_answers_are_read():
  one = '<tool_response>\n{"name": "f", "content": {"y": 2}}\n</tool_response>'
  two = '<tool_response>\nall good\n</tool_response>'
  wanted = _row(
      _say('', tool_calls=[_F, _F]),
      {'role': 'tool', 'content': {'y': 2}},
      {'role': 'tool', 'content': 'all good'},
      _say('Done.'),
  )
  for row in (_answers(one, two), _answers(f'{one}\n{two}')):
    assert _PARSE.render(row) == _PARSE.render(wanted)
  plain = _row(
      _say('', tool_calls=[_F]), {'role': 'tool', 'content': two}, _say('Done.')
  )
  with pytest.raises(ValueError, match="<tool_response>' in a tool's answer"):
    _REFUSE.render(plain)
  assert two in _TEXT.render(plain).text


@pytest.mark.parametrize(
    'message, match',
    [
        (_say('<think>Hm. Yes.'), "'<think>' without its other half"),
        (_say('<thinking>Hm.</think> Yes.'), "'<thinking>' without its other"),
        (_say('[THINK] Hm.'), r"'\[THINK\]' without its other half"),
        (_say('Yes.</think>a</think>'), "'</think>' without its other half"),
        (_say('a<think>b</think>c</tool_call>'), "'</tool_call>' without its"),
        (_say('<tool_call>{"name": "f"}'), "'<tool_call>' without its other"),
        (_say('<tool_call>f(1)</tool_call>'), 'a text that is not JSON'),
        (_say('<tool_call>{}</tool_call>'), 'should be a call'),
        (_say(_CALL + 'Done.'), 'text behind a call of a tool'),
        (_say('a', thoughts=[3]), r"'thoughts\[0\]' should be text"),
        (
            _say('a', reasoning_details=[{'type': 'reasoning.encrypted'}]),
            r"'reasoning_details\[0\]' should be text",
        ),
        (
            _say('a', reasoning='b', reasoning_content='c'),
            r"\['reasoning', 'reasoning_content'\] .* different thoughts",
        ),
    ],
)
def test_broken_markup_is_malformed(message, match):
  with pytest.raises(ValueError, match=match):
    _PARSE.render(_row(message))


def test_a_broken_answer_of_hermes_is_malformed():
  with pytest.raises(ValueError, match='not of <tool_response>'):
    _PARSE.render(_answers('<tool_response>1', '2'))
