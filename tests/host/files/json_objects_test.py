"""Tests of objects of JSON that others wrote."""

import pytest

from gemma4_lora.host.files import _json_objects


@pytest.mark.parametrize(
    'data',
    [
        b'{"a": "\\ud800"}',
        '{"a": ["\\ud83d"]}',
        b'{"\\ude00": 1}',
        '{"a": "\ud800"}',
        '{"a": "\ud800"}'.encode(errors='surrogatepass'),
    ],
)
def test_half_of_a_character_is_no_text(data):
  with pytest.raises(
      ValueError, match='^T: x.json is damaged, .* surrogates'
  ) as e:
    _json_objects.parse(data, path='x.json', who='T')
  assert str(e.value).isascii()


def test_whole_characters_are_text():
  text = '{"a": "\\ud83d\\ude00é"}'
  for data in (text, text.encode()):
    assert _json_objects.parse(data, path='x.json') == {
        'a': '\N{GRINNING FACE}é'
    }
